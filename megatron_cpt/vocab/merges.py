"""Continued BPE: which merges to append to a BPE so that domain text needs fewer tokens.

New merges rank after all old ones, so an old text is first cut exactly as before; a new merge then joins neighbours that stand in
domain text and never stood beside each other in general text. Each step takes the pair with the largest count, which is the number of
tokens that the added row saves on the sample.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Ints = npt.NDArray[np.int64]
MIN_COUNT = 2  # a pair seen once is no pattern
BATCH_DOCUMENTS = 64
END = -1  # between words
GONE = -2  # the right half of a pair that was merged
FIRST_CHARACTER = -3  # and below: characters without a piece of their own


@dataclass(frozen=True)
class WordTable:
    """Distinct words of a text in base ids: `ids` holds them one after another, each with `END` before and after it.

    `characters` are those that the base writes as several byte pieces, by their number in `ids` (`FIRST_CHARACTER` and below): in a
    SentencePiece vocabulary no piece is built from bytes, so such a character takes part in merges only once it is a piece itself.
    """

    ids: Ints
    weights: Ints
    num_tokens: int
    characters: dict[int, Character] = field(default_factory=dict)


@dataclass(frozen=True)
class Character:
    """A character and the ids of its byte pieces."""

    text: str
    byte_ids: tuple[int, ...]


@dataclass(frozen=True)
class Merge:
    """A piece to append, joined from the ids `left` and `right`; `count` are the tokens it saves on the sample, `forced` a user's term.

    A character that takes the place of byte pieces is joined from `byte_ids`; `left` and `right` are then the first and last of them.
    """

    left: int
    right: int
    new_id: int
    piece: str
    count: int
    forced: bool = False
    byte_ids: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[int, ...]:
        return self.byte_ids or (self.left, self.right)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_DOCUMENTS)):
        yield batch


def count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> WordTable:
    """Return the distinct words (pre-tokens) of the texts, encoded by the base tokenizer, with how often each stands there."""
    counts: dict[bytes, int] = {}
    num_tokens = 0
    for batch in batches(texts):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            ids = np.array(encoding.ids, dtype=np.int32)
            num_tokens += ids.size
            if not ids.size:
                continue
            words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
            cuts = [0, *(np.flatnonzero(np.diff(words)) + 1).tolist(), ids.size]
            packed = ids.tobytes()
            for start, end in pairwise(cuts):
                if end - start > 1:
                    word = packed[4 * start : 4 * end]
                    counts[word] = counts.get(word, 0) + 1
    return word_table(counts, num_tokens)


def word_table(counts: dict[bytes, int], num_tokens: int, characters: dict[int, Character] | None = None) -> WordTable:
    """Return the table of words, each given as the bytes of its 32-bit ids."""
    marker = np.array([END], dtype=np.int32).tobytes()
    flat = np.frombuffer(marker + b"".join(word + marker for word in counts), dtype=np.int32).astype(np.int64)
    lengths = np.fromiter((len(word) // 4 + 1 for word in counts), dtype=np.int64, count=len(counts))
    per_word = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    weights = np.concatenate([np.zeros(1, dtype=np.int64), np.repeat(per_word, lengths)])
    return WordTable(flat, weights, num_tokens, characters or {})


def pack(left: Ints, right: Ints) -> Ints:
    return np.bitwise_or(np.left_shift(left, 32), right)


def neighbour_pairs(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Ints, int, int]:
    """Return the distinct pairs of neighbouring ids in the texts (packed, sorted), and how many documents and bytes they hold."""
    found: set[int] = set()
    num_documents = num_bytes = 0
    for batch in batches(texts):
        for text, encoding in zip(batch, tokenizer.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            found.update(np.unique(pack(ids[:-1], ids[1:])).tolist())
            num_documents += 1
            num_bytes += len(text.encode("utf-8"))
    return np.array(sorted(found), dtype=np.int64), num_documents, num_bytes


def grouped(keys: Ints, positions: Ints, weights: Ints) -> Iterator[tuple[int, Ints, int]]:
    """Yield `(key, its positions, its summed weight)` for each distinct key."""
    if not keys.size:
        return
    order = np.argsort(keys, kind="stable")
    keys, positions, weights = keys[order], positions[order], weights[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sums = np.add.reduceat(weights, starts)
    for start, end, total in zip(starts.tolist(), [*starts[1:].tolist(), keys.size], sums.tolist(), strict=True):
        yield int(keys[start]), positions[start:end], total


class PairIndex:
    """All words as one linked list, with the count and the places of every pair that may be merged.

    Counts of known pairs only ever fall, and a pair with a new id is counted once, when that id appears. So a heap entry is never
    too low, and refreshing it when it comes up is enough.
    """

    def __init__(self, table: WordTable, forbidden: Ints) -> None:
        size = table.ids.size
        self.ids = table.ids.copy()
        self.weights = table.weights
        self.following = np.arange(1, size + 1, dtype=np.int64)
        self.before = np.arange(-1, size - 1, dtype=np.int64)
        places = np.flatnonzero((self.ids[:-1] >= 0) & (self.ids[1:] >= 0))
        keys = pack(self.ids[places], self.ids[places + 1])
        allowed = ~np.isin(keys, forbidden)
        self.counts: dict[int, int] = {}
        self.places: dict[int, Ints] = {}
        self.heap: list[tuple[int, int]] = []
        self.add(keys[allowed], places[allowed])

    def add(self, keys: Ints, places: Ints) -> None:
        for key, where, count in grouped(keys, places, self.weights[places]):
            if count >= MIN_COUNT:
                self.counts[key], self.places[key] = count, where
                heapq.heappush(self.heap, (-count, key))

    def occurrences(self, key: int) -> Ints:
        """Return where a pair can be merged now, left to right; `aaa` holds the pair `aa` once."""
        left, right = key >> 32, key & 0xFFFFFFFF
        known = self.places.get(key)  # a forced merge can join a pair that is barred or rare, and so has no places yet
        where: Ints = np.flatnonzero(self.ids == left) if known is None else np.sort(known)
        where = where[self.ids[where] == left]
        where = where[self.ids[self.following[where]] == right]
        if left == right and where.size:
            continues = np.concatenate([[False], self.following[where[:-1]] == where[1:]])
            index = np.arange(where.size)
            run_start = np.maximum.accumulate(np.where(continues, 0, index))
            where = where[(index - run_start) % 2 == 0]
        return where

    def saving(self, key: int) -> int:
        """Return how many tokens merging a pair saves now."""
        if key >> 32 == key & 0xFFFFFFFF:
            return int(self.weights[self.occurrences(key)].sum())
        return self.counts[key]

    def best(self) -> tuple[int, int] | None:
        """Remove and return `(key, count)` of the pair that saves most; the lower ids win a draw."""
        while self.heap:
            negative, key = heapq.heappop(self.heap)
            if key not in self.counts:
                continue  # a forced merge took it
            count = self.saving(key)
            if count == -negative:
                return key, count
            if count >= MIN_COUNT:
                heapq.heappush(self.heap, (-count, key))
            else:
                self.forget(key)
        return None

    def forget(self, key: int) -> None:
        self.counts.pop(key, None)
        self.places.pop(key, None)

    def pairs_at(self, places: Ints) -> tuple[Ints, Ints]:
        """Return `(keys, places)` for those distinct places where a pair begins."""
        places = np.unique(places)
        places = places[self.ids[places] >= 0]
        right = self.ids[self.following[places]]
        places, right = places[right >= 0], right[right >= 0]
        return pack(self.ids[places], right), places

    def give_back(self, key: int, count: int) -> None:
        """Put back what `best` returned."""
        heapq.heappush(self.heap, (-count, key))

    def name(self, places: Ints, new_id: int) -> None:
        """Make a character a piece: it can be merged with its neighbours from now on."""
        self.ids[places] = new_id
        self.add(*self.pairs_at(np.concatenate([self.before[places], places])))

    def merge(self, key: int, new_id: int) -> None:
        """Replace every occurrence of a pair by `new_id` and bring the counts of its neighbours up to date."""
        where = self.occurrences(key)
        right = self.following[where]
        keys, places = self.pairs_at(np.concatenate([self.before[where], where, right]))
        for touched, _, count in grouped(keys, places, self.weights[places]):
            if touched in self.counts:
                self.counts[touched] -= count
        after = self.following[right]
        self.following[where], self.before[after] = after, where
        self.ids[where], self.ids[right] = new_id, GONE
        self.forget(key)
        self.add(*self.pairs_at(np.concatenate([self.before[where], where])))


class Characters:
    """The characters that could become pieces, those that save most first."""

    def __init__(self, table: WordTable) -> None:
        places = np.flatnonzero(table.ids <= FIRST_CHARACTER)
        found = [
            (total * (len(table.characters[number].byte_ids) - 1), -number, where)
            for number, where, total in grouped(table.ids[places], places, table.weights[places])
            if total >= MIN_COUNT
        ]
        self._left = sorted(found, key=lambda each: each[:2])
        self._of = table.characters

    def best_count(self) -> int:
        return self._left[-1][0] if self._left else 0

    def places(self, text: str) -> Ints:
        """Return where a character stands."""
        return next((where for _, number, where in self._left if self._of[-number].text == text), np.empty(0, dtype=np.int64))

    def take(self) -> tuple[Character, int, Ints]:
        """Remove and return `(character, tokens saved, places)` of the one that saves most."""
        count, number, where = self._left.pop()
        return self._of[-number], count, where


def learn_merges(
    table: WordTable,
    *,
    num_pieces: int,
    first_new_id: int,
    pieces: dict[int, str],
    forbidden: Ints,
    refuses: Callable[[str, set[str]], bool] = lambda piece, taken: False,
    first: Sequence[Merge] = (),
) -> list[Merge]:
    """Return up to `num_pieces` merges in the order they are to be appended; fewer when the text gives no more.

    Args:
        table: the domain text in base ids.
        first_new_id: id of the first new piece.
        pieces: id to piece of the base vocabulary.
        forbidden: packed pairs that are never merged: those that stand in general text.
        refuses: says of a piece, and the pieces there are by then, whether it may not be added.
        first: merges that are appended before any that is learned, whatever they save; they are returned with their counts.
    """
    index, characters = PairIndex(table, forbidden), Characters(table)
    pieces = dict(pieces)
    taken = set(pieces.values())
    merges: list[Merge] = []
    for merge in first:
        if merge.byte_ids:
            where = characters.places(merge.piece)
            saved = int(index.weights[where].sum()) * (len(merge.byte_ids) - 1)
            index.name(where, merge.new_id)
        else:
            key = merge.left << 32 | merge.right
            saved = int(index.weights[index.occurrences(key)].sum())
            index.merge(key, merge.new_id)
        merges.append(replace(merge, count=saved))
        taken.add(merge.piece)
        pieces[merge.new_id] = merge.piece
    while len(merges) < num_pieces:
        found = index.best()
        new_id = first_new_id + len(merges)
        if characters.best_count() > (found[1] if found else 0):
            if found:
                index.give_back(*found)
            character, count, places = characters.take()
            if character.text in taken or refuses(character.text, taken):
                continue
            ids = character.byte_ids
            merges.append(Merge(ids[0], ids[-1], new_id, character.text, count, byte_ids=ids))
            index.name(places, new_id)
        elif found:
            key, count = found
            left, right = key >> 32, key & 0xFFFFFFFF
            piece = pieces[left] + pieces[right]
            if piece in taken or refuses(piece, taken):
                index.forget(key)
                continue
            merges.append(Merge(left, right, new_id, piece, count))
            index.merge(key, new_id)
        else:
            break
        taken.add(merges[-1].piece)
        pieces[new_id] = merges[-1].piece
    return merges
