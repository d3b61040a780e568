"""The three sizes of an extended vocabulary, and the one fingerprint that every later stage checks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_cpt.record.hashing import sha256_plain


@dataclass(frozen=True)
class VocabLayout:
    """Sizes of a vocabulary, in ids and rows.

    Attributes:
        num_base_ids: ids of the base tokenizer, `0 .. num_base_ids - 1`; none of them moves.
        num_ids: ids of the extended tokenizer; rows `num_base_ids .. num_ids - 1` are new.
        num_padded_rows: rows of the embedding; rows `num_ids ..` belong to no id and are masked in the loss.
        end_of_document_id: the id that separates documents in the index and starts every scored text.
        tokenizer_sha256: digest of the extended tokenizer's `tokenizer.json`.
    """

    num_base_ids: int
    num_ids: int
    num_padded_rows: int
    end_of_document_id: int
    tokenizer_sha256: str

    @cached_property
    def fingerprint(self) -> str:
        return sha256_plain([self.num_base_ids, self.num_ids, self.num_padded_rows, self.end_of_document_id, self.tokenizer_sha256])


def padded_rows(num_ids: int, *, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that holds `num_ids` rows."""
    return -(-num_ids // multiple) * multiple
