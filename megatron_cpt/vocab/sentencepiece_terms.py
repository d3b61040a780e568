"""Forcing a user's terms into a SentencePiece base: characters first, then neighbours joined until each term is one piece.

SentencePiece joins whatever makes a piece, so a term leaves general text as it is when no string on its way stands there. A term
without such a way changes general text, and is taken only within the share of documents that `max_share` allows. What a term is may
break the trainer's rules of length and script, but not cross a space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise

from tokenizers import Tokenizer

from megatron_cpt.record.tokenizer_file import BYTE_PIECE, SPACE_MARK, continuing
from megatron_cpt.vocab.forced import ALREADY, CHANGES, CROSSES, FORCED, Outcome, count_forms, documents_with
from megatron_cpt.vocab.merges import Merge

Refuses = Callable[[str, set[str]], bool]
Texts = Callable[[], Iterator[str]]


class Terms:
    """Takes terms one after another and keeps the pieces."""

    def __init__(
        self, tokenizer: Tokenizer, vocab: Mapping[str, int], *, first_new_id: int, in_general: frozenset[str], refuses: Refuses
    ) -> None:
        self._tokenizer = continuing(tokenizer)
        self._id_of = dict(vocab)
        self._first_new_id = first_new_id
        self._in_general = in_general
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

    def chain(self, strings: Sequence[str], *, may_change_general: bool) -> list[Merge] | None:
        """Return the pieces still lacking to make one of the strings; None when one on the way may not be added."""
        id_of = dict(self._id_of)
        chain: list[Merge] = []

        def add(piece: str, parts: tuple[int, ...], *, is_character: bool) -> None:
            new_id = self._first_new_id + len(self.merges) + len(chain)
            chain.append(Merge(parts[0], parts[-1], new_id, piece, 0, forced=True, byte_ids=parts if is_character else ()))
            id_of[piece] = new_id

        def may_add(piece: str) -> bool:
            return (may_change_general or piece not in self._in_general) and not self._refuses(piece, set(id_of))

        for string in strings:
            if string not in id_of:
                if not may_add(string) or len(string.encode("utf-8")) == 1:
                    return None
                add(string, tuple(id_of[f"<0x{byte:02X}>"] for byte in string.encode("utf-8")), is_character=True)
        now = self._joined(strings, id_of)
        while len(now) > 1:
            choices = [
                (left + right in self._in_general, len(left) + len(right), place)
                for place, (left, right) in enumerate(pairwise(now))
                if left + right not in id_of and may_add(left + right)
            ]
            if not choices:
                return None
            *_, place = min(choices)
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
    in_general: frozenset[str],
    refuses: Refuses,
    crosses: Callable[[str, Sequence[str]], bool],
    domain: Texts,
    general: Texts,
    max_share: float,
) -> tuple[list[Merge], list[Outcome]]:
    """Return the pieces that make the terms pieces, and what became of each term.

    Args:
        in_general: what two neighbours in general text make, and its characters without a piece.
        refuses: says of a piece, and the pieces there are by then, whether it may not be added at all.
        crosses: says of a term and its parts whether it reaches over what the base never joins.
        max_share: share of general documents that the terms together may change.
    """
    forcing = Terms(tokenizer, vocab, first_new_id=first_new_id, in_general=in_general, refuses=refuses)
    counts = count_forms(terms, domain())
    outcomes: dict[str, Outcome] = {}
    left_over: list[tuple[str, str, list[str]]] = []
    for term in terms:
        alone, spaced = counts[term]
        form = f" {term}" if spaced > alone else term
        strings = forcing.strings_of(form)
        if crosses(term, strings):
            outcomes[term] = Outcome(term, form, CROSSES)
        elif len(strings) == 1 and strings[0] in vocab:
            outcomes[term] = Outcome(term, form, ALREADY)
        elif (chain := forcing.chain(strings, may_change_general=False)) is None:
            left_over.append((term, form, strings))
        else:
            forcing.add(chain)
            outcomes[term] = Outcome(term, form, FORCED, len(chain))
    if left_over:
        wanted = {"".join(strings[start:end]) for _, _, strings in left_over for start, end in combinations(range(len(strings) + 1), 2)}
        held, num_documents = documents_that_hold(tokenizer, wanted & in_general, vocab, general())
        changed: set[int] = set()
        for term, form, strings in left_over:
            way = forcing.chain(strings, may_change_general=True)
            touched = set().union(*(held.get(merge.piece, set()) for merge in way or []))
            if way is None or len(changed | touched) > max_share * num_documents:
                outcomes[term] = Outcome(term, form, CHANGES, 0, len(touched))
                continue
            forcing.add(way)
            changed |= touched
            outcomes[term] = Outcome(term, form, FORCED, len(way), len(touched))
    return forcing.merges, [outcomes[term] for term in terms]


def documents_that_hold(
    tokenizer: Tokenizer, strings: Iterable[str], vocab: Mapping[str, int], texts: Iterable[str]
) -> tuple[dict[str, set[int]], int]:
    """Return per string the documents in which it would become a piece, and how many documents there are.

    These are the documents where two neighbours make it, or where it is a character in bytes. What new pieces make of each other stands
    in the same documents, for the first new piece of a document is made of two old ones.
    """
    pairs_of = {string: [(vocab[left], vocab[right]) for left, right in splits(string, vocab)] for string in strings}
    held: dict[str, set[int]] = {string: set() for string in pairs_of}

    def watched() -> Iterator[str]:
        characters = [string for string in pairs_of if len(string) == 1]
        for number, text in enumerate(texts):
            for character in characters:
                if character in text:
                    held[character].add(number)
            yield text

    by_pair, num_documents = documents_with(tokenizer, {pair for pairs in pairs_of.values() for pair in pairs}, watched())
    for string, pairs in pairs_of.items():
        held[string].update(*(by_pair[pair] for pair in pairs))
    return held, num_documents


def splits(piece: str, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every split of a piece into two pieces, by their ids: the pairs that SentencePiece would join to it."""
    found = [(piece[:place], piece[place:]) for place in range(1, len(piece)) if piece[:place] in vocab and piece[place:] in vocab]
    return sorted(found, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
