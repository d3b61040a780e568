"""What must be true of a finished index, read back from disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.index.encode import Document
from megatron_cpt.index.format import Index, open_index
from megatron_cpt.record.tokenizer_file import normal_form

CHUNK_TOKENS = 1 << 22
SAMPLE_EVERY = 50  # decode every 50th document, and the first ones
SAMPLE_FIRST = 20


def verify_index(prefix: Path, *, num_ids: int, end_id: int, num_documents: int) -> Index:
    """Read an index back and check it as a whole.

    Raises:
        DataError: lengths and files disagree, an id lies outside the vocabulary, or a document does not end in exactly one
            end-of-document id.
    """
    index = open_index(prefix)
    if index.num_documents != num_documents:
        raise DataError(
            "An index does not hold every document.", where=prefix, value=index.num_documents, rule=f"{num_documents} documents"
        )
    largest, ends = 0, 0
    for start in range(0, index.tokens.size, CHUNK_TOKENS):
        block = index.tokens[start : start + CHUNK_TOKENS]
        largest = max(largest, int(block.max()))
        ends += int(np.count_nonzero(block == end_id))
    if largest >= num_ids:
        raise DataError("An index holds an id outside the vocabulary.", where=prefix, value=largest, rule=f"below {num_ids}")
    last_sequences = index.documents[1:] - 1
    last_tokens = index.tokens[index.starts[last_sequences] + index.lengths[last_sequences] - 1]
    wrong = np.flatnonzero(last_tokens != end_id)
    if wrong.size or ends != num_documents:
        raise DataError(
            "Documents do not end in exactly one end-of-document id.",
            where=prefix,
            value=f"{ends} such ids in {num_documents} documents" + (f"; document {wrong[0]} ends otherwise" if wrong.size else ""),
            rule=f"id {end_id} once, at each document's end",
        )
    return index


def compare_texts(index: Index, tokenizer: Tokenizer, documents: Iterable[Document]) -> int:
    """Decode the first documents and every 50th and compare them with their texts; return how many were compared.

    Raises:
        DataError: a decoded document differs.
    """
    wanted = normal_form(tokenizer)
    compared = 0
    for number, document in enumerate(documents):
        if number >= SAMPLE_FIRST and number % SAMPLE_EVERY:
            continue
        back = tokenizer.decode(index.document(number)[:-1].tolist(), skip_special_tokens=False)
        if back != wanted(document.text):
            raise DataError("A document does not decode to its text.", where=f"{index.prefix}, document {document.name!r}")
        compared += 1
    return compared
