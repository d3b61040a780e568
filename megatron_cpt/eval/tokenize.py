"""Text to ids with a tokenizer file, on the promise that no byte of the text goes unscored."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.eval.texts import Document
from megatron_cpt.record.tokenizer_file import normal_form

logger = logging.getLogger(__name__)


def encode(tokenizer: Tokenizer, documents: Sequence[Document], *, num_ids: int, where: object) -> list[list[int]]:
    """Return each document's ids without special tokens around them.

    Warns when ids do not give the text back: its bits per byte then leave out what the tokenizer dropped.

    Raises:
        DataError: an id has no row in the model.
    """
    encoded = [encoding.ids for encoding in tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False)]
    highest = max((max(ids) for ids in encoded if ids), default=-1)
    if highest >= num_ids:
        raise DataError("The tokenizer gives an id that the model has no row for.", where=where, value=highest, rule=f"ids below {num_ids}")
    wanted = normal_form(tokenizer)
    lossy = [
        document.id
        for document, ids in zip(documents, encoded, strict=True)
        if tokenizer.decode(ids, skip_special_tokens=False) != wanted(document.text)
    ]
    if lossy:
        logger.warning("%d of %d documents do not survive the tokenizer %s, first %r.", len(lossy), len(documents), where, lossy[0])
    return encoded
