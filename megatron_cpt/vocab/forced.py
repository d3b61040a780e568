"""Forcing a user's terms into the extension: the merges that make each of them one piece, before any merge that is learned.

A term becomes a piece by joining neighbours, within characters first and short before long, so that terms share their parts. A pair that
stands in general text is not joined; one pair of the term that stands nowhere there is enough, since what is joined from it stands
nowhere there either. A term without such a pair changes general text, and is taken only within the share of documents that
`max_share` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError, printable
from megatron_cpt.vocab.byte_level import is_utf8, piece_bytes
from megatron_cpt.vocab.merges import Ints, Merge, batches, pack

COUNTED_CHARS = 2_000_000  # enough to see whether a term follows a space; a thousand terms take some seconds
Holders = dict[tuple[int, int], set[int]]
FORCED, ALREADY, CROSSES, CHANGES = "forced", "one piece already", "crosses words", "changes general text"


@dataclass(frozen=True)
class Outcome:
    """What became of a term.

    Attributes:
        form: what was made a piece: the term, or the term after a space where the domain text has it so more often.
        num_merges: merges added for it; less than its tokens where earlier terms share parts.
        num_general_documents: documents of general text that it changes, or would change.
    """

    term: str
    form: str
    outcome: str
    num_merges: int = 0
    num_general_documents: int = 0


class Forcing:
    """Takes terms one after another and keeps the merges."""

    def __init__(self, tokenizer: Tokenizer, *, first_new_id: int, forbidden: Ints) -> None:
        self._tokenizer = tokenizer
        self._forbidden = forbidden
        self._first_new_id = first_new_id
        self._pieces = {number: piece for piece, number in tokenizer.get_vocab(with_added_tokens=True).items()}
        self._taken = set(self._pieces.values())
        self._new_of: dict[tuple[int, int], int] = {}
        self.merges: list[Merge] = []

    def ids_of(self, form: str) -> list[int] | None:
        """Return a form's ids in the base, None when the pre-tokenizer does not take it as one word."""
        encoding = self._tokenizer.encode(form, add_special_tokens=False)
        return encoding.ids if encoding.ids and len(set(encoding.word_ids)) == 1 else None

    def joined(self, ids: Sequence[int], new_of: dict[tuple[int, int], int]) -> list[int]:
        """Apply the merges to base ids as the library does: lowest id first, left to right."""
        ids = list(ids)
        while found := [(new_of[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in new_of]:
            number, place = min(found)
            ids[place : place + 2] = [number]
        return ids

    def may_join(self, left: int, right: int, *, may_change_general: bool) -> bool:
        if may_change_general or max(left, right) >= self._first_new_id:
            return True
        key = pack(np.array([left]), np.array([right]))[0]
        place = int(np.searchsorted(self._forbidden, key))
        return not (place < self._forbidden.size and self._forbidden[place] == key)

    def chain(self, ids: Sequence[int], *, may_change_general: bool) -> list[Merge] | None:
        """Return the merges still lacking to make a word one piece; None when some pair may not be joined and no other leads there."""
        new_of, pieces, taken = dict(self._new_of), dict(self._pieces), set()
        chain: list[Merge] = []
        now = self.joined(ids, new_of)
        while len(now) > 1:
            choices = [
                (cuts_a_character(pieces[left], pieces[right]), len(piece), place)
                for place, (left, right) in enumerate(pairwise(now))
                if self.may_join(left, right, may_change_general=may_change_general)
                and (piece := pieces[left] + pieces[right]) not in self._taken
                and piece not in taken
            ]
            if not choices:
                return None
            *_, place = min(choices)
            left, right = now[place], now[place + 1]
            new_id = self._first_new_id + len(self.merges) + len(chain)
            merge = Merge(left, right, new_id, pieces[left] + pieces[right], 0, forced=True)
            chain.append(merge)
            new_of[left, right], pieces[new_id] = new_id, merge.piece
            taken.add(merge.piece)
            now = self.joined(ids, new_of)
        return chain

    def add(self, chain: Sequence[Merge]) -> None:
        for merge in chain:
            self.merges.append(merge)
            self._new_of[merge.left, merge.right] = merge.new_id
            self._pieces[merge.new_id] = merge.piece
            self._taken.add(merge.piece)


def cuts_a_character(left: str, right: str) -> bool:
    """Say whether joining two pieces puts a part of a character beside another character, a piece that no other term can share."""
    parts = piece_bytes(left) or b"", piece_bytes(right) or b""
    begins_inside = any(byte & 0xC0 != 0x80 for byte in (parts[0] + parts[1])[1:])
    return begins_inside and not all(map(is_utf8, parts))


def count_forms(terms: Sequence[str], texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return per term how often it stands in the first texts without a space before it, and with one."""
    counts = dict.fromkeys(terms, (0, 0))
    num_chars = 0
    for text in texts:
        num_chars += len(text)
        if num_chars > COUNTED_CHARS:
            break
        for term in terms:
            if found := text.count(term):
                spaced = text.count(f" {term}")
                alone, after_space = counts[term]
                counts[term] = alone + found - spaced, after_space + spaced
    return counts


def documents_with(tokenizer: Tokenizer, pairs: Iterable[tuple[int, int]], texts: Iterable[str]) -> tuple[Holders, int]:
    """Return per pair of neighbouring ids the numbers of the documents that hold it, and how many documents there are."""
    wanted = {int(pack(np.array([left]), np.array([right]))[0]): (left, right) for left, right in pairs}
    keys = np.array(sorted(wanted), dtype=np.int64)
    held: Holders = {pair: set() for pair in wanted.values()}
    number = 0
    for batch in batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            ids = np.array(encoding.ids, dtype=np.int64)
            found = np.unique(pack(ids[:-1], ids[1:]))
            for key in found[np.isin(found, keys)].tolist():
                held[wanted[key]].add(number)
            number += 1
    return held, number


def force_terms(
    tokenizer: Tokenizer,
    terms: Sequence[str],
    *,
    first_new_id: int,
    forbidden: Ints,
    domain: Callable[[], Iterator[str]],
    general: Callable[[], Iterator[str]],
    max_share: float,
) -> tuple[list[Merge], list[Outcome]]:
    """Return the merges that make the terms pieces, and what became of each term.

    Args:
        forbidden: packed pairs of neighbouring ids in general text, sorted.
        max_share: share of general documents that the terms together may change.
    """
    forcing = Forcing(tokenizer, first_new_id=first_new_id, forbidden=forbidden)
    counts = count_forms(terms, domain())
    outcomes: dict[str, Outcome] = {}
    left_over: list[tuple[str, str, list[int]]] = []
    for term in terms:
        alone, spaced = counts[term]
        form = f" {term}" if spaced > alone else term
        ids = forcing.ids_of(form)
        if ids is None:
            outcomes[term] = Outcome(term, form, CROSSES)
        elif len(ids) == 1:
            outcomes[term] = Outcome(term, form, ALREADY)
        elif (chain := forcing.chain(ids, may_change_general=False)) is not None:
            forcing.add(chain)
            outcomes[term] = Outcome(term, form, FORCED, len(chain))
        else:
            left_over.append((term, form, ids))
    if left_over:
        _within_bound(forcing, tokenizer, left_over, outcomes, general=general, max_share=max_share)
    return forcing.merges, [outcomes[term] for term in terms]


def _within_bound(
    forcing: Forcing,
    tokenizer: Tokenizer,
    left_over: Sequence[tuple[str, str, list[int]]],
    outcomes: dict[str, Outcome],
    *,
    general: Callable[[], Iterator[str]],
    max_share: float,
) -> None:
    """Take the terms whose pairs all stand in general text, in the order of the list, while the documents they change stay in the bound."""
    pairs = {pair for _, _, ids in left_over for pair in pairwise(ids)}
    held, num_documents = documents_with(tokenizer, pairs, general())
    changed: set[int] = set()
    for term, form, ids in left_over:
        chain = forcing.chain(ids, may_change_general=True)
        touched = set().union(*(held.get((merge.left, merge.right), set()) for merge in chain or []))
        if chain is None or len(changed | touched) > max_share * num_documents:
            outcomes[term] = Outcome(term, form, CHANGES, 0, len(touched))
            continue
        forcing.add(chain)
        changed |= touched
        outcomes[term] = Outcome(term, form, FORCED, len(chain), len(touched))


def check_room(merges: Sequence[Merge], outcomes: Sequence[Outcome], num_new_pieces: int) -> None:
    """Refuse terms that need more pieces than were asked for.

    Raises:
        DataError: saying how many they need.
    """
    if len(merges) > num_new_pieces:
        raise DataError(
            "The terms need more new pieces than tokenizer.num_new_pieces.",
            where="tokenizer.terms",
            value=f"{len(merges)} merges for {sum(each.outcome == FORCED for each in outcomes)} terms",
            rule=f"at most {num_new_pieces}",
            next_step=f"Set tokenizer.num_new_pieces={len(merges)} or more, or shorten the list.",
        )


def remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what became of the terms in words, those that are no piece by name."""
    lines = [f"{sum(each.outcome == FORCED for each in outcomes)} of {len(outcomes)} terms forced in as one piece"]
    for kind in (ALREADY, CROSSES, CHANGES):
        named = [printable(each.term) for each in outcomes if each.outcome == kind]
        if named:
            lines.append(f"{len(named)} {kind}: {', '.join(named[:5])}{', ...' if len(named) > 5 else ''}")
    return lines
