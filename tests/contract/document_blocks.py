"""The fenced blocks of the documents, and the commands in them as a shell would read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from command_pages import command_page, tools_page

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$", re.MULTILINE | re.DOTALL
)
PLACEHOLDER = re.compile(r"(?<!<)<(?![<(])[^<>\n|]+>")  # <folder of ...>, which a shell would take for a file to read


@dataclass(frozen=True)
class Block:
    """One fenced block; `page` is relative to the repository, `line` where its first line stands."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command: its words, and what a shell adds to them."""

    words: tuple[str, ...]
    text: str
    page: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text}"


def pages() -> Iterator[tuple[str, str]]:
    """Yield every document by its path, and the generated pages that hold commands."""
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        name = str(path.relative_to(ROOT))
        if not name.startswith(("docs/_build", "docs/reference/generated")):
            yield name, path.read_text(encoding="utf-8")
    yield "docs/reference/generated/commands.md", command_page()
    yield "docs/reference/generated/tools.md", tools_page()


def blocks() -> list[Block]:
    """Return every fenced block of every document."""
    found = []
    for page, text in pages():
        for match in FENCE.finditer(text):
            body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
            found.append(Block(page, text.count("\n", 0, match.start()) + 2, match["language"].strip(), body))
    return found


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a block of shell: continued lines joined, comments and what is piped or written into left out.

    A here-document is taken with its command. `...` stands for settings that the reader knows, and is left out.
    """
    lines = block.text.split("\n")
    number = 0
    while number < len(lines):
        first, line = number, lines[number]
        while line.rstrip().endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line.rstrip()[:-1] + " " + lines[number]
        here = re.search(r"<<-?\s*['\"]?(\w+)", line)
        if here:
            line = line[: here.start()] + line[here.end() :].lstrip("'\"")
            while number + 1 < len(lines) and lines[number + 1].strip() != here[1]:
                number += 1
            number += 1
        number += 1
        line = re.sub(r"<\((.*?)\)", r"'process:\1'", PLACEHOLDER.sub("PLACEHOLDER", line.removeprefix("$ ")))
        for part in _split(line):
            words = tuple(word for word in part if word != "...")
            if words:
                yield Command(words, " ".join(line.split()), block.page, block.line + first)


def _split(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line that holds several, without redirections and variables that are set for one command."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
    words.whitespace_split = True
    words.commenters = "#"
    command: list[str] = []
    is_target = False
    for word in words:
        if set(word) <= set(";&|"):
            yield command
            command = []
        elif set(word) <= set(">"):
            is_target = True
        elif is_target:
            is_target = False
        elif command or not re.match(r"[A-Z_]+=", word):
            command.append(word)
    yield command
