"""What turns texts into ids and back: the reference library of a tokenizer, and the same tokenizer as the fast library reads it.

The reference is `tokenizers` for a `tokenizer.json` and `sentencepiece` for a `.model`; its ids are right by definition. The fast
library is `gigatoken`; whether its ids may be used is for `parity.py` to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.record.tokenizer_file import dummy_prefix, load_tokenizer, marks_spaces, normal_form, text_sizes

Ids = npt.NDArray[Any]
Lengths = npt.NDArray[np.int64]
# how the library itself begins a tokenizer.json that neither cuts nor pads
USUAL_START = re.compile(rb'\s*\{\s*"version":\s*"1\.0",\s*"truncation":\s*null,\s*"padding":\s*null,\s*"added_tokens":\s*(?=\[)')
EXACT_BYTES = 2_000_000  # of text handed to a reference library at once: its results take about 100 bytes a token


class Encoder(Protocol):
    """Encodes texts as plain text: a special token's name inside one stays text."""

    name: str
    version: str

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Return the ids of all texts one after another, and the number of ids of each."""
        ...


class Codec(Protocol):
    """A tokenizer as the index needs it.

    Attributes:
        num_ids: the largest id + 1.
        sha256: digest of the tokenizer's file or files.
        unknown_id: the id of pieces that the vocabulary lacks where such texts are indexed all the same, else None.
    """

    num_ids: int
    sha256: str
    unknown_id: int | None
    exact: Encoder

    def fast(self) -> Encoder:
        """Return the fast encoder; raises whatever the library raises for a tokenizer that it does not know."""
        ...

    def special_texts(self) -> list[str]:
        """Return the names of special tokens: texts that an encoder could take for more than text."""
        ...

    def id_of(self, token: str) -> int | None:
        """Return the id of one piece, None where the tokenizer has no such piece."""
        ...

    def holds_whole(self, texts: Sequence[str], sizes: Lengths, ids: Ids, lengths: Lengths) -> npt.NDArray[np.bool_]:
        """Say for each text whether its ids hold all of it; `sizes` are its bytes in UTF-8."""
        ...

    def back(self, ids: list[int]) -> str: ...

    def expected_back(self, text: str) -> str: ...


class HfCodec:
    """A `tokenizer.json`: byte-level BPE, or a SentencePiece tokenizer in that form."""

    def __init__(self, tokenizer: Tokenizer, data: bytes, *, num_ids: int | None = None) -> None:
        self._data = data
        self._early: Future[Encoder] | None = None
        self._tokenizer = tokenizer
        self._sizes: npt.NDArray[np.int64] | None = None
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.num_ids = num_ids or 1 + max(self._vocab.values())
        self.unknown_id: int | None = None
        self.exact: Encoder = _Tokenizers(tokenizer)
        self.expected_back: Callable[[str], str] = normal_form(tokenizer)
        kinds = {type(tokenizer.normalizer).__name__} if tokenizer.normalizer else set()
        self._same_when_ascii = marks_spaces(tokenizer) or kinds <= {"NFC", "NFKC", "NFD", "NFKD"}
        self._prefix_bytes = 1 if dummy_prefix(tokenizer) else 0  # of each text, and gone again when it is decoded
        self._drops_first_space = dummy_prefix(tokenizer) == "unless a space begins it"

    @classmethod
    def from_file(cls, path: Path, *, num_ids: int | None = None) -> HfCodec:
        """Read a `tokenizer.json`.

        Raises:
            DataError: it is missing or cannot be loaded.
        """
        if not path.is_file():
            raise DataError("A tokenizer.json is missing.", where=path)
        data = path.read_bytes()
        with ThreadPoolExecutor(1) as aside:  # both libraries need half a second for 128,000 pieces
            early = aside.submit(_gigatoken_of, data)
            codec = cls(load_tokenizer(path), data, num_ids=num_ids)
        codec._early = early
        return codec

    def fast(self) -> Encoder:
        return self._early.result() if self._early else _gigatoken_of(self._data)

    def special_texts(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def holds_whole(self, texts: Sequence[str], sizes: Lengths, ids: Ids, lengths: Lengths) -> npt.NDArray[np.bool_]:
        """Compare numbers of bytes: a byte without a piece is dropped by the library without a word."""
        if self._sizes is None:
            self._sizes = text_sizes(self._tokenizer, self.num_ids, vocab=self._vocab).astype(np.int32)
            self._vocab = {}
        found, some = np.zeros(lengths.size, np.int64), lengths > 0
        if ids.size:
            found[some] = np.add.reduceat(self._sizes[ids], (np.cumsum(lengths) - lengths)[some], dtype=np.int64)
        wanted = sizes
        if self.expected_back is not str:
            wanted = np.fromiter(map(self._size_of, texts, sizes.tolist()), dtype=np.int64, count=len(texts))
        return np.asarray(found == wanted + self._prefix_bytes)

    def _size_of(self, text: str, size: int) -> int:
        if self._same_when_ascii and text.isascii() and not (self._drops_first_space and text.startswith(" ")):
            return size
        return len(self.expected_back(text).encode("utf-8"))

    def back(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


class SentencePieceCodec:
    """A SentencePiece `.model`, with the library's own ids; pieces that the model lacks become its unknown id, as the library has it."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - only for files of this kind

        try:
            self._data = path.read_bytes()
            self._processor = SentencePieceProcessor(model_proto=self._data)
        except FileNotFoundError:
            raise DataError("A SentencePiece model is missing.", where=path) from None
        except Exception as error:  # the C++ library raises RuntimeError and ValueError for damaged content
            raise DataError("This is no SentencePiece model.", where=path, value=str(error)[:300]) from None
        self.sha256 = hashlib.sha256(self._data).hexdigest()
        self.num_ids = self._processor.get_piece_size()
        self.unknown_id: int | None = self._processor.unk_id()
        self.exact: Encoder = _SentencePiece(self._processor)

    @property
    def end_token(self) -> str | None:
        """The model's own end mark."""
        end_id = self._processor.eos_id()
        return str(self._processor.id_to_piece(end_id)) if end_id >= 0 else None

    def fast(self) -> Encoder:
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json  # noqa: PLC0415

        data = json.loads(sentencepiece_to_tokenizer_json(self._data))
        data["added_tokens"] = [token for token in data["added_tokens"] if not token["special"]]
        return _Gigatoken(json.dumps(data, ensure_ascii=False))

    def special_texts(self) -> list[str]:
        pieces = range(self.num_ids)
        return [self._processor.id_to_piece(n) for n in pieces if self._processor.is_control(n) or self._processor.is_unknown(n)]

    def id_of(self, token: str) -> int | None:
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def holds_whole(self, texts: Sequence[str], sizes: Lengths, ids: Ids, lengths: Lengths) -> npt.NDArray[np.bool_]:
        """A text that holds more than white space has an id; the model's own normaliser decides on the rest."""
        return lengths > 0

    def back(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))

    def expected_back(self, text: str) -> str:
        return self.back(self._processor.encode(text))


class _Tokenizers:
    """huggingface/tokenizers, in batches on its own threads."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.version = version("tokenizers")

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        parts = []
        for part in _parts(texts):
            parts += [np.array(each.ids, dtype=np.uint32) for each in self._tokenizer.encode_batch_fast(part, add_special_tokens=False)]
        return _joined(parts)


class _SentencePiece:
    """google/sentencepiece, in batches on its own threads."""

    name = "sentencepiece"

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.version = version("sentencepiece")

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        parts = []
        for part in _parts(texts):
            encoded = self._processor.encode(part, out_type=int, num_threads=num_threads())
            parts += [np.array(ids, dtype=np.uint32) for ids in encoded]
        return _joined(parts)


class _Gigatoken:
    """gigatoken, in batches on its own threads; in a worker process on one thread, where its pool could hang."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: str) -> None:
        import gigatoken  # noqa: PLC0415 - optional

        self.version = version("gigatoken")
        self._tokenizer = gigatoken.Tokenizer.from_json(tokenizer_json)
        self._tokenizer.encode_batch([""])  # imports awkward

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        layout = self._tokenizer.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


def _gigatoken_of(tokenizer_json: bytes) -> Encoder:
    """Return the fast encoder of a `tokenizer.json` for plain text: it knows no special tokens, as the reference is told not to."""
    start = USUAL_START.match(tokenizer_json)
    if start:  # the vocabulary, nearly all of the file, goes through unread: a quarter of a second for 128,000 pieces
        text = tokenizer_json.decode("utf-8")
        begin = len(start.group().decode("utf-8"))
        added, end = json.JSONDecoder().raw_decode(text, begin)
        kept = json.dumps([token for token in added if not token.get("special")], ensure_ascii=False)
        return _Gigatoken(text[:begin] + kept + text[end:])
    data = json.loads(tokenizer_json)
    data["added_tokens"] = [token for token in data.get("added_tokens") or [] if not token.get("special")]
    data["post_processor"] = data["truncation"] = data["padding"] = None
    return _Gigatoken(json.dumps(data, ensure_ascii=False))


def num_threads() -> int:
    """Return how many threads an encoder may use: what `--workers` set, else the cores of this process."""
    return int(os.environ.get("RAYON_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))


def _parts(texts: Sequence[str]) -> list[list[str]]:
    """Cut a batch into lists of at most about `EXACT_BYTES` characters."""
    parts: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size and size + len(text) > EXACT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(text)
    return parts


def _joined(parts: list[Ids]) -> tuple[Ids, Lengths]:
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint32)), lengths
