"""What was trained on is found in what is evaluated, whatever its spelling, and nothing else is."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_cpt.eval import contamination
from megatron_cpt.eval.contamination import SeenRuns, training_units
from megatron_cpt.index.format import IndexWriter
from megatron_cpt.text import runs as runs_module
from megatron_cpt.text.known_runs import KnownRuns, Probe
from megatron_cpt.text.runs import RunHashes, TextHashes, UnitHashes, run_hashes
from megatron_cpt.text.units import units_of

WORDS = [f"w{number}" for number in range(300)]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def seen(probes: list[Probe], documents: list[str]) -> list[float]:
    hashes = TextHashes()
    runs = SeenRuns(KnownRuns.of(probes, words=13, characters=24, hashes=hashes))
    for document in documents:
        runs.look_at(hashes.of(document)[0])
    return [-1.0 if np.isnan(share) else share for share in runs.shares().tolist()]


def probe(*parts: str) -> Probe:
    return Probe("t", "1", parts, 0.0, or_equal=False)


def test_shares_are_those_of_a_search_by_hand() -> None:
    rng = random.Random(3)
    documents = [sentence(rng, 200) for _ in range(5)]
    whole = " ".join(documents[2].split()[40:90])
    half = " ".join(documents[1].split()[10:40]) + " " + sentence(rng, 30)
    probes = [probe(text) for text in (whole, half, sentence(rng, 60), documents[4].upper().replace(" ", ",  "))]
    grams = {tuple(words[begin : begin + 13]) for words in map(units_of, documents) for begin in range(len(words) - 12)}
    expected = []
    for each in probes:
        words = units_of(each.parts[0])
        mine = {tuple(words[begin : begin + 13]) for begin in range(len(words) - 12)}
        expected.append(len(mine & grams) / len(mine))
    assert expected[0] == expected[3] == 1.0
    assert expected[2] == 0.0
    assert 0.3 < expected[1] < 0.5
    assert seen(probes, documents) == pytest.approx(expected)


def test_twelve_words_in_common_are_chance_and_thirteen_are_not() -> None:
    rng = random.Random(4)
    document = sentence(rng, 100).split()
    twelve = " ".join(["new", *document[20:32], "other", *["more"] * 10])
    thirteen = " ".join(["new", *document[20:33], "other", *["more"] * 10])
    assert seen([probe(twelve)], [" ".join(document)]) == [0.0]
    assert seen([probe(thirteen)], [" ".join(document)])[0] > 0


def test_a_short_item_counts_when_all_of_it_is_there_and_a_very_short_one_is_not_judged() -> None:
    text = "the general assembly of the members shall elect the board every three years in may"
    assert seen([probe("The members shall elect the board every three years")], [text]) == [1.0]  # 9 words
    assert seen([probe("The members shall elect the board every nine years")], [text]) == [0.0]
    assert seen([probe("shall elect the board")], [text]) == [-1.0]


def test_chinese_is_compared_by_characters() -> None:
    law = "有限责任公司的股东以其认缴的出资额为限对公司承担责任股份有限公司的股东以其认购的股份为限对公司承担责任"
    assert seen([probe(law[4:34] + "？")], [law]) == [1.0]
    assert seen([probe(law[4:24] + "而不是别的什么东西罢了")], [law]) == [0.0]  # 20 characters in common
    assert seen([probe("公司承担责任")], [law]) == [-1.0]


def test_run_hashes_are_a_polynomial_modulo_2_to_the_64() -> None:
    words = np.array([3, 2**63 + 5, 7, 11], dtype=np.uint64)
    base, exact = int(runs_module.MULTIPLIER), [3, 2**63 + 5, 7, 11]
    expected = [(exact[i] * base**2 + exact[i + 1] * base + exact[i + 2]) % 2**64 for i in range(2)]
    assert run_hashes(words, 3).tolist() == expected
    assert run_hashes(words, 5).size == 0
    assert RunHashes(words).at(np.array([0, 2]), np.array([3, 1])).tolist() == [expected[0], 7]


@pytest.mark.parametrize(("slice_tokens", "batch_tokens"), [(1 << 17, 1 << 20), (700, 900), (1, 50)])
def test_documents_are_streamed_in_slices_without_losing_a_run(
    slice_tokens: int, batch_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination, "SLICE_TOKENS", slice_tokens)
    monkeypatch.setattr(contamination, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(contamination, "TOKENS_PER_UNIT", 5)
    vocabulary = {piece: number for number, piece in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    rng = random.Random(5)
    documents = [sentence(rng, count) for count in (400, 1, 13, 90)]
    with IndexWriter(tmp_path / "x", num_ids=300) as writer:
        for document in documents:
            writer.add([*tokenizer.encode(document).ids, 0])
        writer.finish()
    across = " ".join([*documents[0].split()[-6:], *documents[1].split(), *documents[2].split()[:6]])
    inside = [probe(" ".join(documents[0].split()[begin : begin + 13])) for begin in range(0, 388, 7)]
    probes = [*inside, probe(documents[2]), probe(across)]
    hashes = TextHashes()
    runs = SeenRuns(KnownRuns.of(probes, words=13, characters=24, hashes=hashes))
    for units in training_units([tmp_path / "x"], tokenizer, hashes, longest=13, say=lambda _: None):
        runs.look_at(units)
    found = [share == 1 for share in runs.shares().tolist()]
    assert found == [True] * (len(inside) + 1) + [False]  # a run across two documents is none


def test_words_forgotten_by_the_cache_have_the_same_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = UnitHashes(), UnitHashes()
    monkeypatch.setattr(runs_module, "MAX_CACHED_UNITS", 3)
    units = [random.Random(6).choice(WORDS) for _ in range(50)]
    first = small.of(units)
    monkeypatch.setattr(runs_module, "MAX_CACHED_UNITS", 1000)
    assert first.tolist() == large.of(units).tolist()
