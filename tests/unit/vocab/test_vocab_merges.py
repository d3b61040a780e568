"""Continued BPE equals its plain definition, written here a second time without any index or heap."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from megatron_cpt.vocab.base import load_base
from megatron_cpt.vocab.merges import END, WordTable, count_words, learn_merges, neighbour_pairs

NO_PAIRS = np.zeros(0, dtype=np.int64)


def table_of(words: dict[tuple[int, ...], int]) -> WordTable:
    ids, weights = [END], [0]
    for word, count in words.items():
        ids += [*word, END]
        weights += [count] * (len(word) + 1)
    return WordTable(np.array(ids), np.array(weights), sum(len(word) * count for word, count in words.items()))


def joined(word: tuple[int, ...], pair: tuple[int, int], new_id: int) -> tuple[int, ...]:
    out, place = [], 0
    while place < len(word):
        if word[place : place + 2] == pair:
            out.append(new_id)
            place += 2
        else:
            out.append(word[place])
            place += 1
    return tuple(out)


def plain_merges(words, *, num_pieces, first_new_id, pieces, forbidden):
    """The definition: try every pair, keep the one that shortens the text most; the lower ids win a draw."""
    words, pieces = dict(words), dict(pieces)
    merges = []
    while len(merges) < num_pieces:
        savings = {}
        for pair in {pair for word in words for pair in pairwise(word)}:
            if pair not in forbidden and pieces[pair[0]] + pieces[pair[1]] not in pieces.values():
                savings[pair] = sum(count * (len(word) - len(joined(word, pair, -5))) for word, count in words.items())
        savings = {pair: saved for pair, saved in savings.items() if saved >= 2}
        if not savings:
            break
        pair, saved = min(savings.items(), key=lambda item: (-item[1], item[0]))
        new_id = first_new_id + len(merges)
        pieces[new_id] = pieces[pair[0]] + pieces[pair[1]]
        merges.append((*pair, saved))
        shorter = Counter()
        for word, count in words.items():
            shorter[joined(word, pair, new_id)] += count
        words = shorter
    return merges


@pytest.mark.parametrize("seed", range(12))
def test_the_fast_merges_equal_the_definition_on_random_words(seed):
    rng = random.Random(seed)
    letters = 2 + seed % 4  # few letters: many runs and draws
    words = Counter(tuple(rng.choices(range(letters), k=rng.randint(2, 12))) for _ in range(60))
    pieces = {number: chr(97 + number) for number in range(letters)}
    forbidden = {(0, 1)} if seed % 3 == 0 else set()
    packed = np.array([(left << 32) | right for left, right in forbidden], dtype=np.int64)
    merges = learn_merges(table_of(words), num_pieces=40, first_new_id=100, pieces=pieces, forbidden=packed)
    expected = plain_merges(words, num_pieces=40, first_new_id=100, pieces=pieces, forbidden=forbidden)
    assert [(merge.left, merge.right, merge.count) for merge in merges] == expected


def test_overlapping_runs_are_counted_by_the_tokens_they_save():
    # aaaaa (3 times) shortens by 2 each; ab (5 times) by 1 each: 6 > 5, although the pair aa stands 12 times
    words = {(0, 0, 0, 0, 0): 3, (0, 1): 5}
    merges = learn_merges(table_of(words), num_pieces=2, first_new_id=9, pieces={0: "a", 1: "b"}, forbidden=NO_PAIRS)
    assert [(merge.piece, merge.count) for merge in merges] == [("aa", 6), ("ab", 5)]


def test_pieces_that_exist_are_skipped_and_a_pair_seen_once_is_no_piece():
    words = {(0, 1): 9, (1, 2): 4, (2, 0): 1}
    merges = learn_merges(table_of(words), num_pieces=9, first_new_id=9, pieces={0: "a", 1: "b", 2: "c", 3: "ab"}, forbidden=NO_PAIRS)
    assert [(merge.piece, merge.count, merge.new_id) for merge in merges] == [("bc", 4, 9)]


def test_words_are_counted_as_the_library_cuts_them(base_folder):
    base = load_base(base_folder)
    table = count_words(base.tokenizer, ["zq zq zq", "zq\n1"])
    letter = {character: base.tokenizer.token_to_id(character) for character in ("Ġ", "z", "q")}
    words, word, weights = {}, [], []
    for number, weight in zip(table.ids.tolist(), table.weights.tolist(), strict=True):
        if number == END and word:
            words[tuple(word)] = weights[0]
            word, weights = [], []
        elif number != END:
            word.append(number)
            weights.append(weight)
    assert words[letter["z"], letter["q"]] == 2
    assert words[letter["Ġ"], letter["z"], letter["q"]] == 2
    encoded = base.tokenizer.encode_batch(["zq zq zq", "zq\n1"], add_special_tokens=False)
    assert table.num_tokens == sum(len(encoding.ids) for encoding in encoded)


def test_neighbour_pairs_are_those_of_whole_documents(base_folder):
    base = load_base(base_folder)
    texts = ["zq 1", "", "a"]
    wanted = set()
    for text in texts:
        ids = base.tokenizer.encode(text, add_special_tokens=False).ids
        wanted |= {(left << 32) | right for left, right in pairwise(ids)}
    pairs, num_documents, num_bytes = neighbour_pairs(base.tokenizer, texts)
    assert set(pairs.tolist()) == wanted
    assert (num_documents, num_bytes) == (3, 5)
