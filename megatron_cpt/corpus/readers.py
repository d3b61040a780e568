"""Files to raw records, as a stream: one record a line (jsonl), a row (parquet) or a file (txt); memory is bounded by one record.

A record that cannot be read becomes an `Unreadable` with its reason; the ones around it are not touched. A file that ends in the
middle of its compressed stream is an error: what came before the cut is no complete shard.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from megatron_cpt.errors import DataError

READABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".txt.gz", ".txt.zst", ".parquet")
MAX_RECORD_BYTES = 256 * 1024 * 1024  # longer lines and files are rejected by name instead of filling the memory
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """A parsed record: `fields` as they stand in the file. `line` counts from 1; a txt file is line 1."""

    line: int
    fields: dict[str, Any]
    had_bom: bool = False


@dataclass(frozen=True)
class Unreadable:
    """A record that was given up, and why."""

    line: int
    reason: str
    detail: str


def is_readable(path: Path) -> bool:
    return path.name.lower().endswith(READABLE_SUFFIXES)


def is_one_text(path: Path) -> bool:
    """Say whether a file is one document: it has no fields, and its text stands under the first text key."""
    return path.name.lower().endswith((".txt", ".txt.gz", ".txt.zst"))


def read_records(path: Path, *, text_keys: Sequence[str], start: int = 0, end: int | None = None) -> Iterator[Row | Unreadable]:
    """Yield every record of a file in order; of a plain jsonl file those whose lines begin at bytes `start` to `end - 1`.

    Raises:
        DataError: the file cannot be opened, or its compressed stream is cut or damaged (says how many records came before).
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from read_parquet(path, text_keys=text_keys)
        return
    done = 0
    try:
        if name.endswith((".gz", ".zst")) and path.stat().st_size == 0:
            raise EOFError("no byte in it, where even empty texts leave some")  # the libraries take it for an empty text
        with open_stream(path) as stream:
            for record in read_whole(stream, text_key=text_keys[0]) if is_one_text(path) else read_lines(stream, start=start, end=end):
                yield record
                done += 1
    except (EOFError, zlib.error, gzip.BadGzipFile, ZstdDamage) as error:
        raise DataError(
            "A compressed file is cut or damaged.",
            where=path,
            value=f"{str(error) or type(error).__name__}; {done} whole records before the damage",
            rule="an incomplete shard is never taken for a whole one",
            next_step="Fetch the file again, or decompress what is left of it into a new file and use that.",
        ) from None
    except OSError as error:
        raise DataError("A file cannot be read.", where=path, value=error.strerror or str(error)) from None


class ZstdDamage(Exception):
    """A zstd stream that ends inside a frame or does not decode."""


class ZstdFrames(io.RawIOBase):
    """Reads all frames of a zstd file, and notices a stream that stops inside one (the library's reader does not)."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard  # noqa: PLC0415 - needed for this kind of file only

        self._library = zstandard
        self._file = file
        self._decoder = zstandard.ZstdDecompressor().decompressobj()
        self._waiting = b""
        self._ready = memoryview(b"")
        self._inside_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _fill(self) -> bool:
        # 64 KiB in: at zstd's limit of about 1:10,000 a hostile block still stays below 1 GB
        block = self._waiting or self._file.read(1 << 16)
        self._waiting = b""
        if not block:
            if self._inside_frame:
                raise ZstdDamage("the stream ends inside a zstd frame")
            return False
        self._inside_frame = True
        try:
            self._ready = memoryview(self._decoder.decompress(block))
        except self._library.ZstdError as error:
            raise ZstdDamage(str(error)) from None
        if self._decoder.eof:
            self._waiting = self._decoder.unused_data
            self._decoder = self._library.ZstdDecompressor().decompressobj()
            self._inside_frame = False
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def open_stream(path: Path) -> BinaryIO:
    """Open a plain, gzip or zstd file as one stream of bytes.

    Raises:
        DataError: a zst file without the zstandard package.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if name.endswith(".zst"):
        file = path.open("rb")
        try:
            return io.BufferedReader(ZstdFrames(file), 1 << 20)
        except ImportError:
            file.close()
            raise DataError(
                "Reading .zst files needs the zstandard package.", where=path, next_step="pip install 'megatron-cpt[data]'"
            ) from None
    return path.open("rb")


def read_lines(stream: BinaryIO, *, start: int = 0, end: int | None = None) -> Iterator[Row | Unreadable]:
    """Yield one record for each line; only LF ends a line, so U+2028, U+0085 and form feeds stay inside texts.

    Lines count from 1 within the range; bytes in messages count from 0 within the file (decompressed, where it is compressed).
    """
    offset = start
    if start:
        stream.seek(start - 1)
        offset += skip_line(stream) - 1
    number = 0
    while (end is None or offset < end) and (line := stream.readline(MAX_RECORD_BYTES + 1)):
        number += 1
        line_start, offset = offset, offset + len(line)
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            offset += skip_line(stream)
            yield Unreadable(number, "too_long", f"more than {MAX_RECORD_BYTES} bytes, from byte {line_start} of the file")
            continue
        had_bom = line.startswith(BOM)  # at a line's start anywhere: shards with a mark each are often concatenated
        yield parse_line(line.rstrip(b"\r\n"), number, had_bom=had_bom, line_start=line_start)


def skip_line(stream: BinaryIO) -> int:
    """Read to the next line in blocks; return the number of bytes read."""
    skipped = 0
    while rest := stream.readline(1 << 20):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def parse_line(line: bytes, number: int, *, had_bom: bool, line_start: int) -> Row | Unreadable:
    if not line.removeprefix(BOM).strip():
        return Unreadable(number, "blank_line", "nothing on this line")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Unreadable(number, "invalid_utf8", invalid_byte(line, line_start)[1])
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Unreadable(number, "invalid_json", str(error)[:200])
    if not isinstance(fields, dict):
        return Unreadable(number, "invalid_json", f"a record is an object, this is {type(fields).__name__}")
    return Row(number, fields, had_bom)


def invalid_byte(data: bytes, start: int) -> tuple[int, str]:
    """Return the place in `data` of the first byte that is not UTF-8, and a sentence; `start` is the place of `data` in the file."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:  # utf-8-sig counts from behind the mark, plain utf-8 from the first byte
        return error.start, f"byte 0x{data[error.start]:02x} at byte {start + error.start} of the file"
    raise AssertionError("the data are UTF-8")


def read_whole(stream: BinaryIO, *, text_key: str) -> Iterator[Row | Unreadable]:
    """Yield a text file as one record."""
    data = stream.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        yield Unreadable(1, "too_long", f"more than {MAX_RECORD_BYTES} bytes")
        return
    try:
        yield Row(1, {text_key: data.decode("utf-8-sig")}, data.startswith(BOM))
    except UnicodeDecodeError:
        place, shown = invalid_byte(data, 0)
        yield Unreadable(data.count(b"\n", 0, place) + 1, "invalid_utf8", shown)


def read_parquet(path: Path, *, text_keys: Sequence[str]) -> Iterator[Row | Unreadable]:
    """Yield the rows of a parquet file in batches of 256; only the columns of text and `id` are read.

    Raises:
        DataError: pyarrow is not installed, or the file is not parquet.
    """
    try:
        import pyarrow  # noqa: PLC0415 - optional: extra [data]
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise DataError("Reading parquet needs the pyarrow package.", where=path, next_step="pip install 'megatron-cpt[data]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in dict.fromkeys((*text_keys, "id")) if name in file.schema_arrow.names]
            for key in text_keys:
                if key not in columns:
                    raise DataError(
                        "A parquet file has no text column.", where=path, value=f"columns: {', '.join(file.schema_arrow.names)}",
                        rule=f"text_key {key!r}",
                    )  # fmt: skip
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(number, fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("A parquet file cannot be read.", where=path, value=f"{error}; {number} rows before it") from None
