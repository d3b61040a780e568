"""The training sample of all candidates: read from the corpus once, kept in one scratch file, every character accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import compress, pairwise
from pathlib import Path
from typing import BinaryIO

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

FLUSHED_BYTES = 1 << 22
RETURNS = re.compile(rb"\r+\n")

Counts = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


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

    def for_sentencepiece(self, path: Path) -> Path:
        """Return a file of the lines as SentencePiece is to see them: the scratch file, or the part of it that is written to `path`."""
        has_returns = bool(self.characters[ord("\r")])
        if self.kept is None and not has_returns:
            return self.path
        with self.path.open("rb") as file, path.open("wb") as part:
            for data in self._kept_bytes(file):
                part.write(RETURNS.sub(b"\n", data) if has_returns and b"\r" in data else data)
        return path

    def _kept_bytes(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield what is kept of the scratch file, whole lines, some megabytes at a time."""
        kept = np.ones(1, dtype=bool) if self.kept is None else self.kept
        begins = np.flatnonzero(np.diff(kept, prepend=~kept[:1]))
        stops = np.append(self._line_starts()[begins[1:]], self.path.stat().st_size).tolist()
        for first, end in zip(begins.tolist(), stops, strict=True):
            while kept[first] and file.tell() < end:
                data = file.read(min(FLUSHED_BYTES, end - file.tell()))
                rest = 0 if file.tell() == end else len(data) - 1 - data.rindex(b"\n")
                file.seek(-rest, 1)
                yield data[: len(data) - rest]
            file.seek(end)

    def _line_starts(self) -> Counts:
        """Return the byte at which each line begins, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.line_bytes + np.int64(1))])

    def blocks(self) -> Iterator[str]:
        """Yield parts of documents of about `BLOCK_CHARS` characters, as they stood in the text."""
        spans, added = self._block_spans()
        held, place = np.searchsorted(added, spans), 0
        with self.path.open("rb") as file:
            for (start, stop), (low, high) in zip(spans.tolist(), held.tolist(), strict=True):
                if start != place:
                    file.seek(start)
                data, place = file.read(stop - start), stop
                if high == low + 1 and added[low] == stop - 1:
                    data = data[:-1]
                elif low < high:
                    newlines = (added[low:high] - start).tolist()
                    data = b"".join(data[before + 1 : after] for before, after in pairwise([-1, *newlines, len(data)]))
                yield data.decode("utf-8")

    def _block_spans(self) -> tuple[Counts, Counts]:
        """Return the first byte and the end of each block, and the places of the newlines that the texts did not have."""
        kept = np.ones(self.line_ends.size, dtype=bool) if self.kept is None else self.kept
        begins = np.flatnonzero(np.concatenate([[True], (self.line_ends[:-1] == END) | (kept[1:] != kept[:-1])]))
        stops = np.append(begins[1:], kept.size)
        chars = np.concatenate([[0], np.cumsum(self.line_chars + np.int64(1))])
        lines: list[tuple[int, int]] = []
        for start, stop in zip(begins[kept[begins]].tolist(), stops[kept[begins]].tolist(), strict=True):
            first = start
            while chars[stop] - chars[first] > BLOCK_CHARS:
                after = min(stop, int(np.searchsorted(chars, chars[first] + BLOCK_CHARS, side="right")))
                lines.append((first, after))
                first = after
            if first < stop:
                lines.append((first, stop))
        starts = self._line_starts()
        return starts[np.array(lines, dtype=np.int64).reshape(-1, 2)], starts[1:][self.line_ends != NEWLINE] - 1

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
        returns = 0
        if self.characters[ord("\r")]:
            with self.path.open("rb") as file:
                returns = sum(map(num_returns, smaller._kept_bytes(file)))
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
        self.ends: list[npt.NDArray[np.uint8]] = []
        self.line_bytes: list[npt.NDArray[np.uint16]] = []
        self.line_chars: list[npt.NDArray[np.uint16]] = []
        self.characters = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
        self.waiting: list[bytes] = []
        self.waiting_bytes = 0
        self.num_bytes = self.chars_in = self.newlines = self.returns = self.reserved = 0

    def add(self, text: str) -> None:
        """Take one text."""
        self.chars_in += len(text)
        for mark in RESERVED:
            if mark in text:
                self.reserved += text.count(mark)
                text = text.replace(mark, "")
        data = text.encode("utf-8")
        self.waiting.append(data)
        self.waiting_bytes += len(data)
        if self.waiting_bytes > FLUSHED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Count and write what is waiting: some megabytes at a time, so that counting costs little for each text."""
        if not self.waiting:
            return
        data = b"\n".join([*self.waiting, b""])
        document_ends = np.cumsum([len(text) + 1 for text in self.waiting]) - 1
        values = np.frombuffer(data, dtype=np.uint8)
        newlines = np.flatnonzero(values == ord("\n"))
        ends = np.full(newlines.size, NEWLINE, dtype=np.uint8)
        ends[np.searchsorted(newlines, document_ends)] = END
        self.newlines += newlines.size - len(self.waiting)
        sizes = np.diff(newlines, prepend=-1) - 1
        if sizes.max() > MAX_LINE_BYTES:
            data, ends = cut_lines(data, newlines, sizes, ends)
            values = np.frombuffer(data, dtype=np.uint8)
            newlines = np.flatnonzero(values == ord("\n"))
            sizes = np.diff(newlines, prepend=-1) - 1
        self.line_bytes.append(sizes.astype(np.uint16))
        self.line_chars.append(sizes_in_characters(values, newlines))
        self.ends.append(ends)
        self.characters += count_characters(values)
        self.returns += num_returns(data)
        self.num_bytes += len(data)
        self.file.write(data)
        self.waiting, self.waiting_bytes = [], 0

    def close(self) -> Sample:
        self.flush()
        self.file.close()
        self.characters[ord("\n")] = 0
        trained = int(self.characters.sum()) - self.returns
        line_breaks = self.newlines + self.returns
        assert self.chars_in == trained + line_breaks + self.reserved, "a character was lost on the way to the trainer"
        return Sample(
            path=self.path,
            line_ends=np.concatenate([*self.ends, np.zeros(0, dtype=np.uint8)]),
            line_bytes=np.concatenate([*self.line_bytes, np.zeros(0, dtype=np.uint16)]),
            line_chars=np.concatenate([*self.line_chars, np.zeros(0, dtype=np.uint16)]),
            characters=self.characters,
            num_bytes=self.num_bytes,
            chars_in=self.chars_in,
            chars_trained=trained,
            line_breaks=line_breaks,
            reserved=self.reserved,
        )


def sizes_in_characters(values: Bytes, newlines: npt.NDArray[np.intp]) -> npt.NDArray[np.uint16]:
    """Return the characters of each line of UTF-8 text, its newline left out: its bytes but for those that continue a character."""
    continuing = np.flatnonzero((values & 0xC0) == 0x80)
    before = np.searchsorted(continuing, newlines)
    return (np.diff(newlines, prepend=-1) - 1 - np.diff(before, prepend=0)).astype(np.uint16)


def count_characters(values: Bytes) -> Counts:
    """Return how often each code point stands in UTF-8 text: ASCII by pairs of bytes, which halves the work, the others decoded."""
    even = values.size // 2 * 2
    pairs = np.bincount(values[:even].view(np.uint16), minlength=1 << 16).reshape(256, 256)
    others = values[values >= 0x80].tobytes().decode("utf-8")
    counts = np.bincount(np.frombuffer(others.encode("utf-32-le"), dtype=np.uint32), minlength=NUM_CODE_POINTS)
    counts[:0x80] = (pairs.sum(axis=0) + pairs.sum(axis=1) + np.bincount(values[even:], minlength=256))[:0x80]
    return counts


def num_returns(data: bytes) -> int:
    """Return how many carriage returns stand at line ends."""
    return sum(len(found[0]) - 1 for found in RETURNS.finditer(data)) if b"\r" in data else 0


def cut_lines(data: bytes, newlines: npt.NDArray[np.intp], sizes: npt.NDArray[np.intp], ends: Bytes) -> tuple[bytes, Bytes]:
    """Return lines with those beyond `MAX_LINE_BYTES` in parts, and how each line ends."""
    parts, done = [], 0
    long = np.flatnonzero(sizes > MAX_LINE_BYTES)
    num_cuts = []
    for number in long.tolist():
        start, end = newlines[number] - sizes[number], newlines[number]
        rest = data[start:end].decode("utf-8")
        parts.append(data[done:start])
        cut = []
        while len(rest) > MAX_LINE_CHARS and len(rest.encode("utf-8")) > MAX_LINE_BYTES:
            cut.append(rest[:MAX_LINE_CHARS])
            rest = rest[MAX_LINE_CHARS:]
        parts.append("\n".join([*cut, rest]).encode("utf-8"))
        num_cuts.append(len(cut))
        done = end
    return b"".join([*parts, data[done:]]), np.insert(ends, np.repeat(long, num_cuts), CUT)
