"""Documents to ids: Rust batch encoding with a bounded number of documents and bytes in flight, and a check on every document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from megatron_cpt.record.tokenizer_file import dummy_prefix, normal_form, text_sizes

BATCH_DOCUMENTS = 256
BATCH_BYTES = 4_000_000


@dataclass(frozen=True)
class Document:
    """A document of a shard; `number` counts from 1."""

    number: int
    name: str
    text: str


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in lists of at most `BATCH_DOCUMENTS`, cut earlier at `BATCH_BYTES`."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += 4 * len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[tuple[Document, npt.NDArray[np.int64]]]:
    """Yield each document with its ids, without the end-of-document id."""
    for batch in batches(documents):
        encoded = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encoded, strict=True):
            yield document, np.array(encoding.ids, dtype=np.int64)


class Faithful:
    """Says whether ids hold a whole text, by its number of bytes: a byte without a piece is dropped by the library without a word.

    Cheap enough for every document; texts themselves are compared on a sample by `verify`.
    """

    def __init__(self, tokenizer: Tokenizer, num_ids: int) -> None:
        self._normal_form = normal_form(tokenizer)
        self._sizes = text_sizes(tokenizer, num_ids)
        self._prefix_bytes = 1 if dummy_prefix(tokenizer) else 0  # of each text, and gone again when it is decoded

    def __call__(self, text: str, ids: npt.NDArray[np.int64]) -> bool:
        whole = self._normal_form(text)
        return int(self._sizes[ids].sum()) == len(whole.encode("utf-8")) + self._prefix_bytes
