"""The training sample of all candidates: read from the corpus once, kept in one scratch file, every character accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.errors import DataError

MAX_LINE_BYTES = 4096  # a longer line would be dropped by SentencePiece's trainer
MAX_LINE_CHARS = MAX_LINE_BYTES // 4  # a character has at most 4 bytes
BLOCK_CHARS = 16_384  # what the byte-level trainer gets at a time: its working copy of a text is some 20 times as large
# SentencePiece drops a line that holds its own marks, space (U+2581) or unknown (U+2585), and leaves NUL out of what it counts
RESERVED = ("\u2581", "\u2585", "\x00")
NEWLINE, CUT, END = 0, 1, 2  # how a line of the scratch file ends: at a newline of the text, at the line limit, with its document
NUM_CODE_POINTS = 0x110000

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Lines in a scratch file, at most `MAX_LINE_BYTES` each.

    Attributes:
        line_ends: per line `NEWLINE`, `CUT` or `END`.
        characters: how often each code point stands in the file, without its line ends.
        chars_in: characters of the texts; `chars_trained` of them reach SentencePiece, `line_breaks` are newlines, where it splits,
            and carriage returns before them, which it strips, `reserved` are its own marks, which are taken out, and `left_out` belong
            to blocks beyond a trainer's bound. Asserted to add up.
    """

    path: Path
    line_ends: npt.NDArray[np.uint8]
    characters: Counts
    num_bytes: int
    chars_in: int
    chars_trained: int
    line_breaks: int
    reserved: int
    left_out: int = 0

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their newlines."""
        with self.path.open("rb") as file:
            yield from file

    def blocks(self) -> Iterator[tuple[str, list[int]]]:
        """Yield parts of documents of about `BLOCK_CHARS` characters, as they stood in the text, and the ends of their lines."""
        lines: list[str] = []
        ends: list[int] = []
        chars = 0
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line, end in zip(file, self.line_ends.tobytes(), strict=True):
                lines.append(line if end == NEWLINE else line[:-1])
                ends.append(end)
                chars += len(line)
                if end == END or chars > BLOCK_CHARS:
                    yield "".join(lines), ends
                    lines, ends, chars = [], [], 0

    def bounded(self, max_bytes: int, path: Path) -> Sample:
        """Return a sample of at most `max_bytes`, of blocks taken evenly over this one, or this one when it is no larger."""
        if self.num_bytes <= max_bytes:
            return self
        writer = _Writer(path)
        seen = taken = 0
        share = max_bytes / self.num_bytes
        for block, ends in self.blocks():
            size = len(block.encode("utf-8")) + sum(end != NEWLINE for end in ends)
            seen += size
            if taken + size <= share * seen:
                taken += size
                writer.add(block)
        smaller = writer.close()
        left_out = self.chars_in - self.reserved - smaller.chars_in
        return replace(smaller, left_out=left_out, reserved=self.reserved, chars_in=self.chars_in)


def write_sample(texts: Iterable[str], path: Path) -> Sample:
    """Write texts to a scratch file, split at newlines and at the line limit; memory does not grow with their number.

    Raises:
        DataError: there is no text, or white space only.
    """
    writer = _Writer(path)
    for text in texts:
        writer.add(text)
    sample = writer.close()
    if blank(sample.characters):
        path.unlink()
        raise DataError(
            "The sample to train a vocabulary on is empty or holds white space only.",
            value=f"{sample.chars_in} characters",
            next_step="Name a source with text, or raise tokenizer.compare.sample_bytes.",
        )
    return sample


def blank(characters: Counts) -> bool:
    return all(chr(point).isspace() for point in np.flatnonzero(characters).tolist())


class _Writer:
    """Writes lines and keeps the account."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w", encoding="utf-8", newline="\n")
        self.ends = bytearray()
        self.characters = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
        self.waiting: list[str] = []
        self.waiting_chars = 0
        self.num_bytes = self.chars_in = self.newlines = self.returns = self.reserved = 0

    def add(self, text: str) -> None:
        """Write one text as lines."""
        self.chars_in += len(text)
        for mark in RESERVED:
            if mark in text:
                self.reserved += text.count(mark)
                text = text.replace(mark, "")
        lines = text.split("\n")
        self.newlines += len(lines) - 1
        ends = bytearray(len(lines))
        ends[-1] = END
        if max(map(len, lines)) > MAX_LINE_CHARS:
            lines, ends = cut_lines(lines)
            text = "\n".join(lines)
        if "\r" in text:
            self.returns += sum(len(line) - len(line.rstrip("\r")) for line in lines)
        self.ends += ends
        self.waiting.append(text)
        self.waiting_chars += len(text)
        if self.waiting_chars > 1 << 20:
            self.flush()

    def flush(self) -> None:
        """Count and write what is waiting: a megabyte at a time, so that counting costs little for each text."""
        if not self.waiting:
            return
        text = "\n".join(self.waiting) + "\n"
        self.characters += np.bincount(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), minlength=NUM_CODE_POINTS)
        data = text.encode("utf-8")
        self.num_bytes += len(data)
        self.file.write(text)
        self.waiting, self.waiting_chars = [], 0

    def close(self) -> Sample:
        self.flush()
        self.file.close()
        self.characters[ord("\n")] = 0
        trained = int(self.characters.sum()) - self.returns
        line_breaks = self.newlines + self.returns
        assert self.chars_in == trained + line_breaks + self.reserved, "a character was lost on the way to the trainer"
        ends = np.frombuffer(self.ends, dtype=np.uint8)
        return Sample(self.path, ends, self.characters, self.num_bytes, self.chars_in, trained, line_breaks, self.reserved)


def cut_lines(lines: list[str]) -> tuple[list[str], bytearray]:
    """Return the lines of one text in parts of at most `MAX_LINE_BYTES` bytes, and how each part ends."""
    parts: list[str] = []
    ends = bytearray()
    for line in lines:
        rest = line
        while len(rest) > MAX_LINE_CHARS and len(rest.encode("utf-8")) > MAX_LINE_BYTES:
            parts.append(rest[:MAX_LINE_CHARS])
            ends.append(CUT)
            rest = rest[MAX_LINE_CHARS:]
        parts.append(rest)
        ends.append(NEWLINE)
    ends[-1] = END
    return parts, ends
