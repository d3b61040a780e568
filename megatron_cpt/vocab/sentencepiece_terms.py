"""Forcing a user's terms into a SentencePiece base: characters first, then neighbours joined until each term is one piece.

SentencePiece joins whatever makes a piece, so a term is taken only when no string on its way stands in general text: there is no
bound within which it may change some. What a term is may break the trainer's rules of length and script, but not cross a space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from megatron_cpt.record.tokenizer_file import BYTE_PIECE, SPACE_MARK, continuing
from megatron_cpt.vocab.forced import ALREADY, CHANGES, CROSSES, FORCED, Outcome, count_forms
from megatron_cpt.vocab.merges import Merge

Refuses = Callable[[str, set[str]], bool]


class Terms:
    """Takes terms one after another and keeps the pieces."""

    def __init__(self, tokenizer: Tokenizer, vocab: Mapping[str, int], *, first_new_id: int, refuses: Refuses) -> None:
        self._tokenizer = continuing(tokenizer)
        self._id_of = dict(vocab)
        self._first_new_id = first_new_id
        self._refuses = refuses
        self.merges: list[Merge] = []

    def strings_of(self, form: str) -> list[str]:
        """Return the pieces of a form, and characters where it has byte pieces."""
        strings: list[str] = []
        held = b""
        for token in self._tokenizer.encode(form.replace(SPACE_MARK, " "), add_special_tokens=False).tokens:
            found = BYTE_PIECE.fullmatch(token)
            if found:
                held += bytes([int(found[1], 16)])
                continue
            strings += [*held.decode("utf-8"), token]
            held = b""
        return [*strings, *held.decode("utf-8")]

    def chain(self, strings: Sequence[str]) -> list[Merge] | None:
        """Return the pieces still lacking to make one of the strings; None when one on the way may not be added."""
        id_of = dict(self._id_of)
        chain: list[Merge] = []

        def add(piece: str, parts: tuple[int, ...], *, is_character: bool) -> None:
            new_id = self._first_new_id + len(self.merges) + len(chain)
            chain.append(Merge(parts[0], parts[-1], new_id, piece, 0, forced=True, byte_ids=parts if is_character else ()))
            id_of[piece] = new_id

        for string in strings:
            if string not in id_of:
                if self._refuses(string, set(id_of)) or len(string.encode("utf-8")) == 1:
                    return None
                add(string, tuple(id_of[f"<0x{byte:02X}>"] for byte in string.encode("utf-8")), is_character=True)
        now = self._joined(strings, id_of)
        while len(now) > 1:
            taken = set(id_of)
            choices = [
                (len(left) + len(right), place)
                for place, (left, right) in enumerate(pairwise(now))
                if left + right not in taken and not self._refuses(left + right, taken)
            ]
            if not choices:
                return None
            _, place = min(choices)
            left, right = now[place], now[place + 1]
            add(left + right, (id_of[left], id_of[right]), is_character=False)
            now = self._joined(now, id_of)
        return chain

    def _joined(self, strings: Sequence[str], id_of: Mapping[str, int]) -> list[str]:
        """Join neighbours to new pieces as SentencePiece does: best score first, which is the lowest id, left to right."""
        now = list(strings)
        while found := [
            (id_of[left + right], place)
            for place, (left, right) in enumerate(pairwise(now))
            if id_of.get(left + right, -1) >= self._first_new_id
        ]:
            _, place = min(found)
            now[place : place + 2] = [now[place] + now[place + 1]]
        return now

    def add(self, chain: Iterable[Merge]) -> None:
        for merge in chain:
            self.merges.append(merge)
            self._id_of[merge.piece] = merge.new_id


def force_terms(
    tokenizer: Tokenizer,
    terms: Sequence[str],
    *,
    vocab: Mapping[str, int],
    first_new_id: int,
    refuses: Refuses,
    may_hold_space: bool,
    domain: Iterable[str],
) -> tuple[list[Merge], list[Outcome]]:
    """Return the pieces that make the terms pieces, and what became of each term.

    Args:
        refuses: says of a piece, and the pieces there are by then, whether it may not be added.
        may_hold_space: whether the base's own pieces cross spaces.
    """
    forcing = Terms(tokenizer, vocab, first_new_id=first_new_id, refuses=refuses)
    counts = count_forms(terms, domain)
    outcomes = []
    for term in terms:
        alone, spaced = counts[term]
        form = f" {term}" if spaced > alone else term
        strings = forcing.strings_of(form)
        if " " in term and not may_hold_space:
            outcomes.append(Outcome(term, form, CROSSES))
        elif len(strings) == 1 and strings[0] in vocab:
            outcomes.append(Outcome(term, form, ALREADY))
        elif (chain := forcing.chain(strings)) is None:
            outcomes.append(Outcome(term, form, CHANGES))
        else:
            forcing.add(chain)
            outcomes.append(Outcome(term, form, FORCED, len(chain)))
    return forcing.merges, outcomes
