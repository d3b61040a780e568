"""What the vocab stage asks of a kind of tokenizer; `byte_level.py` and `sentencepiece_bpe.py` answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from megatron_cpt.vocab.forced import Outcome
from megatron_cpt.vocab.merges import Ints, Merge, WordTable


@dataclass(frozen=True)
class Barred:
    """What may not be merged because it stands in general text: packed pairs of ids, or the strings that a merge would make."""

    pairs: Ints
    strings: frozenset[str]
    num_documents: int
    num_bytes: int

    @property
    def num_barred(self) -> int:
        return self.pairs.size or len(self.strings)


class Family(Protocol):
    """A kind of BPE tokenizer that can be extended."""

    @property
    def title(self) -> str: ...

    @property
    def remark(self) -> str:
        """How texts and the ids of a text differ in this family, for the contract; empty where they do not."""

    def piece_bytes(self, piece: str) -> bytes | None:
        """Return the bytes of text that a piece stands for, None where it stands for none (a special token)."""

    def missing_bytes(self, vocab: Mapping[str, int]) -> list[int]:
        """Return the bytes that have no piece of their own."""

    def barred(self, tokenizer: Tokenizer, texts: Iterable[str]) -> Barred:
        """Return what stands side by side in general text."""

    def words(self, tokenizer: Tokenizer, texts: Iterable[str]) -> WordTable:
        """Return the distinct words of domain text in base ids; no new piece crosses a word's end."""

    def force(
        self,
        tokenizer: Tokenizer,
        terms: Sequence[str],
        *,
        first_new_id: int,
        barred: Barred,
        domain: Callable[[], Iterator[str]],
        general: Callable[[], Iterator[str]],
        max_share: float,
    ) -> tuple[list[Merge], list[Outcome]]:
        """Return the merges that make a user's terms pieces, and what became of each term.

        Args:
            max_share: share of general documents that the terms together may change.
        """

    def refuses(self, barred: Barred) -> Callable[[str, set[str]], bool]:
        """Return the test whether a piece may not be added, given the pieces there are."""

    def pairs(self, merge: Merge, piece_of: Mapping[int, str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
        """Return the pairs of tokenizer.json that make a new piece; `vocab` holds all pieces, old and new."""

    def write_beside(self, folder: Path, base_folder: Path, data: dict[str, Any], merges: Sequence[Merge], *, num_base_ids: int) -> None:
        """Write the other forms that a base has beside tokenizer.json, with the new pieces."""
