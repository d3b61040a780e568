"""Reading and extending a SentencePiece `tokenizer.model` without generated code, which breaks on releases of protobuf.

The file is one protocol-buffer message (google/sentencepiece, src/sentencepiece_model.proto): pieces (field 1), trainer settings (2),
normaliser (3). Only the few fields needed here are read. Everything else is kept byte for byte; an extension appends pieces and changes
`vocab_size` in the trainer settings, nothing more.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import DataError

MAX_MODEL_BYTES = 64 * 1024 * 1024
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
PIECES, TRAINER, NORMALISER = 1, 2, 3
INPUT, VOCAB_SIZE = 1, 4  # in the trainer settings
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\n")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `tokenizer.model` says.

    Attributes:
        data: the file.
        pieces: by id.
        num_ids: what the trainer settings say; None where they say nothing.
        has_charsmap: whether the normaliser rewrites characters (NFKC and the like).
    """

    data: bytes
    pieces: tuple[Piece, ...]
    model_type: str
    num_ids: int | None
    byte_fallback: bool
    max_piece_chars: int
    split_by_unicode_script: bool
    split_by_whitespace: bool
    split_digits: bool
    whitespace_as_suffix: bool
    normaliser_name: str
    has_charsmap: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


@dataclass(frozen=True)
class _Field:
    """A field of a message: `value` is a number or bytes, `start` to `end` all of it with its tag."""

    number: int
    value: int | bytes
    start: int
    end: int


def read_model(path: Path) -> SentencePieceModel:
    """Return what a SentencePiece model file says.

    Raises:
        DataError: it is missing, too large, or no such file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise DataError("A SentencePiece model is too large.", where=path, value=f"{size} bytes", rule=f"at most {MAX_MODEL_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError("A SentencePiece model cannot be read.", where=path, value=error.strerror) from None
    try:
        return parse_model(data)
    except (ValueError, struct.error) as error:
        if TIKTOKEN_LINE.match(data):
            raise DataError(
                "The file is a tiktoken vocabulary, not a SentencePiece model.",
                where=path,
                rule="a SentencePiece model, or a tokenizer.json beside it",
                next_step="Use the model's release with a tokenizer.json.",
            ) from None
        raise DataError(
            "The file is not a SentencePiece model, or it is damaged.",
            where=path,
            value=str(error)[:200],
            next_step="Download it again, and compare its digest with the publisher's.",
        ) from None


def parse_model(data: bytes) -> SentencePieceModel:
    """Return the content of a model file; ValueError or struct.error where the bytes are no such message."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for field in _fields(data):
        if field.number == PIECES:
            pieces.append(_piece(_bytes(field)))
        elif field.number == TRAINER:
            trainer |= {each.number: each.value for each in _fields(_bytes(field))}
        elif field.number == NORMALISER:
            normaliser |= {each.number: each.value for each in _fields(_bytes(field))}
    if not pieces or not trainer:
        raise ValueError("it holds no piece" if not pieces else "it ends before the trainer's settings")

    def flag(fields: dict[int, int | bytes], number: int, *, default: bool) -> bool:
        return bool(fields.get(number, default))

    kind, size, longest = trainer.get(3, 1), trainer.get(VOCAB_SIZE), trainer.get(20, 16)
    name = normaliser.get(1, b"")
    return SentencePieceModel(
        data,
        tuple(pieces),
        MODEL_TYPES.get(kind, f"type {kind!r}") if isinstance(kind, int) else "unknown",
        size if isinstance(size, int) else None,
        byte_fallback=flag(trainer, 35, default=False),
        max_piece_chars=longest if isinstance(longest, int) else 16,
        split_by_unicode_script=flag(trainer, 21, default=True),
        split_by_whitespace=flag(trainer, 22, default=True),
        split_digits=flag(trainer, 25, default=False),
        whitespace_as_suffix=flag(trainer, 24, default=False),
        normaliser_name=name.decode("utf-8", "replace") if isinstance(name, bytes) else "",
        has_charsmap=bool(normaliser.get(2)),
        add_dummy_prefix=flag(normaliser, 3, default=True),
        remove_extra_whitespaces=flag(normaliser, 4, default=True),
        escape_whitespaces=flag(normaliser, 5, default=True),
    )


def extended_model(model: SentencePieceModel, pieces: Sequence[Piece]) -> bytes:
    """Return the model's file with pieces appended: the old ones, the normaliser and the other settings stay byte-identical.

    Raises:
        DataError: a new piece is empty or there already; such a file does not load.
    """
    known = {piece.text for piece in model.pieces}
    for piece in pieces:
        if not piece.text or piece.text in known:
            raise DataError("A new piece is empty or already in the model.", value=repr(piece.text))
        known.add(piece.text)
    fields = list(_fields(model.data))
    last = max(field.end for field in fields if field.number == PIECES)
    appended = b"".join(_message(PIECES, _piece_bytes(piece)) for piece in pieces)
    parts = []
    for field in fields:
        is_trainer = field.number == TRAINER
        parts.append(
            _message(TRAINER, _with_size(_bytes(field), len(model.pieces) + len(pieces)))
            if is_trainer
            else model.data[field.start : field.end]
        )
        if field.end == last:
            parts.append(appended)
    return b"".join(parts)


def without_paths(data: bytes) -> bytes:
    """Return a model's file without the names of the files that it was trained on, which trainer settings hold."""
    parts = []
    for field in _fields(data):
        whole = data[field.start : field.end]
        if field.number == TRAINER:
            trainer = _bytes(field)
            whole = _message(TRAINER, b"".join(trainer[each.start : each.end] for each in _fields(trainer) if each.number != INPUT))
        parts.append(whole)
    return b"".join(parts)


def built_model(pieces: Sequence[Piece], *, split_digits: bool = False) -> bytes:
    """Return a BPE model file of these pieces: byte fallback, a dummy prefix, no normaliser; for a vocabulary kept in another form."""
    unknown_id = next(number for number, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    trainer = _numbers({3: 2, VOCAB_SIZE: len(pieces), 25: int(split_digits), 35: 1, 40: unknown_id})
    normaliser = _message(1, b"identity") + _numbers({3: 1, 4: 0, 5: 1})
    listed = b"".join(_message(PIECES, _piece_bytes(piece)) for piece in pieces)
    return listed + _message(TRAINER, trainer) + _message(NORMALISER, normaliser)


def _numbers(values: Mapping[int, int]) -> bytes:
    return b"".join(_varint(number << 3) + _varint(value) for number, value in values.items())


def _with_size(trainer: bytes, num_ids: int) -> bytes:
    """Return trainer settings with another `vocab_size`, in its place; settings that name none stay as they are."""
    return b"".join(
        _varint(field.number << 3) + _varint(num_ids) if field.number == VOCAB_SIZE else trainer[field.start : field.end]
        for field in _fields(trainer)
    )


def _piece(data: bytes) -> Piece:
    text, score, kind = b"", 0.0, NORMAL
    for field in _fields(data):
        if field.number == 1:
            text = _bytes(field)
        elif field.number == 2:
            (score,) = struct.unpack("<f", _bytes(field))
        elif field.number == 3 and isinstance(field.value, int):
            kind = field.value
    return Piece(text.decode("utf-8"), score, kind)


def _piece_bytes(piece: Piece) -> bytes:
    """Return a piece as sentencepiece itself writes it: a kind of NORMAL is the default and left out."""
    data = _message(1, piece.text.encode("utf-8")) + _varint(2 << 3 | _FIXED32) + struct.pack("<f", piece.score)
    return data if piece.kind == NORMAL else data + _varint(3 << 3) + _varint(piece.kind)


def _bytes(field: _Field) -> bytes:
    if not isinstance(field.value, bytes):
        raise ValueError(f"field {field.number} is a number, not bytes")
    return field.value


def _message(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield the fields of a protocol-buffer message in their order (protobuf.dev, Encoding)."""
    place = 0
    while place < len(data):
        start = place
        tag, place = _read_varint(data, place)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, place = _read_varint(data, place)
        else:
            if kind == _BYTES:
                length, place = _read_varint(data, place)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise ValueError(f"byte {start} begins no field")
            value = data[place : place + length]
            place += length
            if len(value) < length:
                raise ValueError(f"it ends inside the field that begins at byte {start}")
        if number == 0:
            raise ValueError(f"byte {start} begins no field")
        yield _Field(number, value, start, place)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError(f"it ends inside a number, at byte {place}")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number is too long, at byte {place}")
