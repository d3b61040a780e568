"""The training sample of all candidates: read from the corpus once, kept in one scratch file, every character accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import compress
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
        line_ends: per line of the file `NEWLINE`, `CUT` or `END`; `line_bytes` and `line_chars` its size without the newline.
        characters: how often each code point stands in the file, without its line ends.
        kept: per line of the file, whether it belongs to the sample; None where all do.
        chars_in: characters of the texts; `chars_trained` of them reach SentencePiece, `line_breaks` are newlines, where it splits,
            and carriage returns before them, which it strips, `reserved` are its own marks, which are taken out, and `left_out` belong
            to blocks beyond a trainer's bound. Asserted to add up.
    """

    path: Path
    line_ends: npt.NDArray[np.uint8]
    line_bytes: npt.NDArray[np.uint16]
    line_chars: npt.NDArray[np.uint16]
    characters: Counts
    num_bytes: int
    chars_in: int
    chars_trained: int
    line_breaks: int
    reserved: int
    left_out: int = 0
    kept: npt.NDArray[np.bool_] | None = None

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their newlines."""
        with self.path.open("rb") as file:
            yield from file if self.kept is None else compress(file, self.kept.tobytes())

    def blocks(self) -> Iterator[str]:
        """Yield parts of documents of about `BLOCK_CHARS` characters, as they stood in the text."""
        ends = self.line_ends if self.kept is None else self.line_ends[self.kept]
        lines: list[str] = []
        chars = 0
        for data, end in zip(self.lines(), ends.tobytes(), strict=True):
            line = data.decode("utf-8")
            lines.append(line if end == NEWLINE else line[:-1])
            chars += len(line)
            if end == END or chars > BLOCK_CHARS:
                yield "".join(lines)
                lines, chars = [], 0

    def bounded(self, max_bytes: int) -> Sample:
        """Return a sample of at most `max_bytes`, of blocks taken evenly over this one, or this one when it is no larger."""
        if self.num_bytes <= max_bytes:
            return self
        sizes = self.line_bytes.astype(np.int64) + 1
        place = np.cumsum(sizes) // BLOCK_CHARS
        begins = np.concatenate([[True], (self.line_ends[:-1] == END) | (place[1:] != place[:-1])])
        starts = np.flatnonzero(begins)
        chosen = evenly(np.add.reduceat(sizes, starts), max_bytes / self.num_bytes)
        kept = np.repeat(chosen, np.diff(np.append(starts, sizes.size)))
        ends = self.line_ends.copy()
        torn = chosen & ~np.append(chosen[1:], False)  # what follows is left out: the line ends as if its document did
        ends[np.append(starts[1:], sizes.size)[torn] - 1] = END
        smaller = replace(self, kept=kept, line_ends=ends, num_bytes=int(sizes[kept].sum()))
        returns = 0 if self.characters[ord("\r")] == 0 else sum(len(each) - 1 - len(each.rstrip(b"\r\n")) for each in smaller.lines())
        trained = int(self.line_chars[kept].sum(dtype=np.int64)) - returns
        line_breaks = int(np.count_nonzero(self.line_ends[kept] == NEWLINE)) + returns
        left_out = self.chars_in - self.reserved - trained - line_breaks
        return replace(smaller, chars_trained=trained, line_breaks=line_breaks, left_out=left_out)


def evenly(sizes: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Return which blocks to take so that at every place about `share` of what lies before it is taken, and never more."""
    chosen, seen, taken = [], 0, 0
    for size in sizes.tolist():
        seen += size
        take = taken + size <= share * seen
        taken += size if take else 0
        chosen.append(take)
    return np.array(chosen, dtype=bool)


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
        self.file = path.open("wb")
        self.ends = bytearray()
        self.line_bytes: list[npt.NDArray[np.uint16]] = []
        self.line_chars: list[npt.NDArray[np.uint16]] = []
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
        if self.waiting_chars > 1 << 22:
            self.flush()

    def flush(self) -> None:
        """Count and write what is waiting: some megabytes at a time, so that counting costs little for each text."""
        if not self.waiting:
            return
        text = "\n".join(self.waiting) + "\n"
        points, data = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), text.encode("utf-8")
        self.characters += np.bincount(points, minlength=NUM_CODE_POINTS)
        self.line_chars.append(line_sizes(points))
        self.line_bytes.append(line_sizes(np.frombuffer(data, dtype=np.uint8)))
        self.num_bytes += len(data)
        self.file.write(data)
        self.waiting, self.waiting_chars = [], 0

    def close(self) -> Sample:
        self.flush()
        self.file.close()
        self.characters[ord("\n")] = 0
        trained = int(self.characters.sum()) - self.returns
        line_breaks = self.newlines + self.returns
        assert self.chars_in == trained + line_breaks + self.reserved, "a character was lost on the way to the trainer"
        return Sample(
            path=self.path,
            line_ends=np.frombuffer(self.ends, dtype=np.uint8),
            line_bytes=np.concatenate([*self.line_bytes, np.zeros(0, dtype=np.uint16)]),
            line_chars=np.concatenate([*self.line_chars, np.zeros(0, dtype=np.uint16)]),
            characters=self.characters,
            num_bytes=self.num_bytes,
            chars_in=self.chars_in,
            chars_trained=trained,
            line_breaks=line_breaks,
            reserved=self.reserved,
        )


def line_sizes(values: npt.NDArray[np.uint8] | npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """Return how many values stand in each line, its newline left out; no line is beyond `MAX_LINE_BYTES`."""
    newlines = np.flatnonzero(values == ord("\n"))
    return (np.diff(newlines, prepend=-1) - 1).astype(np.uint16)


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
