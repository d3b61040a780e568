"""Small real tokenizers and files for the tests of the index."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[3]
END = "<|end|>"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SAMPLE = [
    "The parser reads one token after another, and then the parser stops.",
    "第一条　为了规范民事法律行为，根据宪法，制定本法。第二条　民法调整平等主体之间的关系。",
    "def parse(text):\n    return [int(part) for part in text.split(',')]\n",
    "Numbers such as 1,234 and 5678 don't matter; it's the words that do.",
] * 8


def byte_level(*, vocab_size: int = 500, texts: list[str] = SAMPLE, special: tuple[str, ...] = (END, "<|other|>")) -> Tokenizer:
    """Train a byte-level BPE with GPT-2's split pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_appended_merge(tokenizer: Tokenizer, left: str, right: str) -> Tokenizer:
    """Return the tokenizer with one more merge at the end and its piece as the last id, as the vocabulary stage appends them."""
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"][left + right] = tokenizer.get_vocab_size(with_added_tokens=True)
    data["model"]["merges"].append([left, right])
    return Tokenizer.from_str(json.dumps(data))


def save(tokenizer: Tokenizer, folder: Path, *, end: str | None = END) -> Path:
    """Write a folder as Hugging Face has it: tokenizer.json, and tokenizer_config.json that names the end token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if end:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def add_token(tokenizer: Tokenizer, content: str, *, special: bool) -> Tokenizer:
    tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])
    return tokenizer


def write_lines(path: Path, texts: list[str], **fields: str) -> Path:
    path.write_text("".join(json.dumps({"text": text, **fields}) + "\n" for text in texts), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


def run_tool(name: str, *arguments: object) -> Answer:
    """Run a tool of tools/ in this process; its settings of threads are taken back."""
    tool = importlib.import_module(f"tools.{name.removesuffix('.py')}")
    before, out, err = dict(os.environ), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = tool.main([str(argument) for argument in arguments])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Answer(code, out.getvalue(), err.getvalue())


def run_alone(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a tool of tools/ as a user does."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
