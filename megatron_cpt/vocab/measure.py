"""How well a vocabulary fits a text: the same figures for every kind of tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.vocab.merges import batches

Encode = Callable[[list[str]], list[list[int]]]
# One word: one CJK ideograph or kana, or a run of other characters without white space. So Chinese has a fertility too.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{CJK}]|[^\\s{CJK}]+")


@dataclass(frozen=True)
class Fit:
    """A vocabulary on a text.

    Attributes:
        fertility: tokens per word; a word is one CJK character or a run of other characters between spaces.
        unknown_rate: share of tokens that are the unknown token.
        byte_fragment_rate: share of tokens that are no valid UTF-8 on their own (a part of a character).
        ids_used: distinct ids that the text uses, and `new_ids_used` those of them that were added.
    """

    num_documents: int
    num_bytes: int
    num_chars: int
    num_tokens: int
    bytes_per_token: float
    tokens_per_char: float
    fertility: float
    unknown_rate: float
    byte_fragment_rate: float
    num_ids: int
    ids_used: int
    new_ids_used: int


def measure(
    encode: Encode,
    texts: Iterable[str],
    *,
    fragments: npt.NDArray[np.bool_],
    unknown_id: int | None,
    first_new_id: int | None,
) -> Fit | None:
    """Return the figures of a vocabulary on the texts, or None when they hold nothing.

    Args:
        encode: a batch of texts to their ids.
        fragments: per id, whether its piece is no valid UTF-8 on its own.
        unknown_id: the id for what cannot be encoded, None where the vocabulary has none.
        first_new_id: ids from here on count as added.
    """
    use = np.zeros(fragments.size, dtype=np.int64)
    documents = num_bytes = chars = words = 0
    for batch in batches(texts):
        for text, ids in zip(batch, encode(batch), strict=True):
            use += np.bincount(np.array(ids, dtype=np.int64), minlength=use.size)
            documents += 1
            num_bytes += len(text.encode("utf-8"))
            chars += len(text)
            words += sum(1 for _ in WORD.finditer(text))
    tokens = int(use.sum())
    if not tokens or not words:
        return None
    return Fit(
        num_documents=documents,
        num_bytes=num_bytes,
        num_chars=chars,
        num_tokens=tokens,
        bytes_per_token=num_bytes / tokens,
        tokens_per_char=tokens / chars,
        fertility=tokens / words,
        unknown_rate=0.0 if unknown_id is None else int(use[unknown_id]) / tokens,
        byte_fragment_rate=int(use[fragments].sum()) / tokens,
        num_ids=fragments.size,
        ids_used=int(np.count_nonzero(use)),
        new_ids_used=0 if first_new_id is None else int(np.count_nonzero(use[first_new_id:])),
    )
