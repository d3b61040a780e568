"""Selection finds the domain, weighs as the paper does, and depends on texts and seed alone."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.schema import SelectConfig, SourceConfig
from megatron_cpt.corpus.select.choose import Documents, Features, Selector, choose, count_buckets, gumbel_noise, log_ratios, take, weigh
from megatron_cpt.corpus.select.ngrams import PIECE_CHARS, buckets_of, longer, ngram_buckets, unit_hashes
from megatron_cpt.corpus.select.target import select_problems, target_texts
from megatron_cpt.corpus.select.terms import TermFinder
from megatron_cpt.errors import DataError
from megatron_cpt.record.hashing import sha256_text

LAW = "The court shall hear the party; the party may appeal within 30 days of the judgment."
SEA = "The whale breached near the ship, and the sailors rowed after it into the storm."
NUM_BUCKETS = 10_000


def features(texts, *, settings=None, terms=()):
    selector = Selector(settings or SelectConfig(), terms)
    found = [selector.features(text) for text in texts]
    buckets = np.concatenate([buckets for buckets, _ in found]) if found else np.empty(0, np.uint16)
    return Features(buckets, np.array([len(b) for b, _ in found], np.int64), np.array([hits for _, hits in found], np.int64))


def documents(texts, is_pooled=None):
    digests = [sha256_text(text) for text in texts]
    return Documents(
        np.array([int(digest[:16], 16) for digest in digests], np.uint64),
        np.array([int(digest[16:32], 16) for digest in digests], np.uint64),
        np.array([len(text.encode()) for text in texts], np.int64),
        np.ones(len(texts), bool) if is_pooled is None else np.array(is_pooled),
    )


def counts_of(texts):
    return count_buckets([features(texts)], np.ones(len(texts), bool), NUM_BUCKETS)


def chosen(texts, target, **settings):
    config = SelectConfig(**settings)
    found = choose([features(texts)], documents(texts), target_counts=counts_of(target), settings=config, seed=7)
    return {text for text, is_chosen in zip(texts, found.is_chosen, strict=True) if is_chosen}


def finder_counts(finder, text):
    found = finder.found(text)
    return [found.get(place, 0) for place in range(len(finder.terms))]


def bucket_of(run):
    """The bucket of a run of units, one run at a time."""
    units = runs = np.concatenate([unit_hashes(unit) for unit in run])
    for length in range(2, len(run) + 1):
        runs = longer(runs, units, length)
    return int(buckets_of(runs, NUM_BUCKETS)[0])


def by_hand(text):
    """Buckets of unigrams and bigrams over words and runs of punctuation in lower case, counted as the paper says."""
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    return Counter(bucket_of([word]) for word in words) + Counter(bucket_of(pair) for pair in itertools.pairwise(words))


def test_features_are_the_unigrams_and_bigrams_of_words_and_punctuation_runs():
    text = "Don't stop... e.g. at 3.14, or snake_case;\n\nÜBER naïve"
    assert Counter(ngram_buckets(text, max_length=2, num_buckets=NUM_BUCKETS).tolist()) == by_hand(text)


def test_chinese_is_counted_by_characters_and_pairs_of_them():
    found = ngram_buckets("法律第3条", max_length=2, num_buckets=NUM_BUCKETS)
    units = ["法", "律", "第", "3", "条"]
    assert found.tolist() == [bucket_of([unit]) for unit in units] + [bucket_of(pair) for pair in itertools.pairwise(units)]


def test_a_text_longer_than_a_piece_has_the_same_ngrams_as_if_cut_at_once():
    text = "alpha beta, gamma 法律 " * (PIECE_CHARS // 10)
    assert len(text) > 2 * PIECE_CHARS
    words = re.findall(r"[法律]|[a-z]+|,", text)
    found = ngram_buckets(text, max_length=2, num_buckets=NUM_BUCKETS)
    assert len(found) == 2 * len(words) - 1
    known = {word: bucket_of([word]) for word in set(words)} | {pair: bucket_of(pair) for pair in set(itertools.pairwise(words))}
    wanted = [known[word] for word in words] + [known[pair] for pair in itertools.pairwise(words)]
    assert found.tolist() == wanted


def test_buckets_are_filled_evenly_by_real_words():
    words = sorted(
        set(re.findall(r"[a-z]+", (Path(re.__file__).parent / "__init__.py").read_text().lower() + SEA.lower() + json.__doc__.lower()))
    )
    pairs = [bucket_of([left, right]) for left in words[:60] for right in words[:60]]
    counts = np.bincount(np.array(pairs) // 100, minlength=100)  # 3,600 pairs in 100 groups: 36 each, standard deviation 6
    assert counts.min() > 36 - 5 * 6
    assert counts.max() < 36 + 5 * 6


def test_a_weight_is_the_sum_of_log_ratios_of_smoothed_frequencies():
    pool, target = [LAW, SEA], [LAW + " " + LAW, "Appeal to the court."]
    raw, wanted = sum((by_hand(text) for text in pool), Counter()), sum((by_hand(text) for text in target), Counter())
    ratio = {
        bucket: math.log(wanted[bucket] / wanted.total() + 1e-8) - math.log(raw[bucket] / raw.total() + 1e-8) for bucket in {*raw, *wanted}
    }
    by_formula = [sum(ratio[bucket] * count for bucket, count in by_hand(text).items()) for text in pool]
    found = weigh([features(pool)], log_ratios(counts_of(target), counts_of(pool), prior_per_bucket=0.0))
    assert found == pytest.approx(by_formula, abs=1e-6)
    assert found[0] > 0 > found[1]


def test_the_prior_spreads_the_pools_frequencies_over_a_small_target():
    target, pool = np.array([3, 1, 0, 0]), np.array([1, 1, 1, 5])
    # with half an n-gram a bucket: two n-grams as in the pool, (3 + 2/8) / 6, (1 + 2/8) / 6, (2/8) / 6, (2 * 5/8) / 6
    wanted = [math.log(3.25 / 6 * 8), math.log(1.25 / 6 * 8), math.log(0.25 / 6 * 8), math.log(1.25 / 6 * 8 / 5)]
    assert log_ratios(target, pool, prior_per_bucket=0.5) == pytest.approx(wanted, abs=1e-5)


def test_features_and_weights_are_those_of_the_papers_own_code(tmp_path, monkeypatch):
    """The package of the paper's authors on the same texts, with its hash of an n-gram replaced by ours and all else its own."""
    hashed = pytest.importorskip("data_selection.hashed_ngram_dsir", reason="pip install data-selection nltk")
    monkeypatch.setattr(hashed, "hash_buckets", lambda text, num_buckets: bucket_of(text.split(" ")))
    sources = sorted(Path(json.__file__).parent.glob("*.py"))
    pool, target = [path.read_text() for path in sources if path.name != "decoder.py"], [sources[1].read_text()]
    paths = {}
    for name, texts in (("pool", pool), ("target", target)):
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    theirs = hashed.HashedNgramDSIR([str(paths["pool"])], [str(paths["target"])], str(tmp_path / "cache"), num_proc=1)
    theirs.fit_importance_estimator(num_tokens_to_fit="all")
    theirs.compute_importance_weights()
    for text in pool:
        assert np.bincount(features([text]).buckets, minlength=NUM_BUCKETS).tolist() == theirs.featurizer(text).tolist()
    ours = weigh([features(pool)], log_ratios(counts_of(target), counts_of(pool), prior_per_bucket=0.0))
    assert ours == pytest.approx(np.load(tmp_path / "cache" / "log_importance_weights" / "0.npy"), abs=1e-3)  # 2**-33 for each n-gram


def test_the_choice_depends_on_texts_and_seed_alone():
    rng = random.Random(5)
    words = ["court", "party", "whale", "ship", "appeal", "judge", "storm", "sail", "law", "the", "of", "and"]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
    target = ["court party appeal judge law of the court"]
    config = SelectConfig(max_documents=60)

    def choice(order, cuts, seed=3):
        parts, documents_now = [], [texts[place] for place in order]
        for start, end in zip([0, *cuts], [*cuts, len(texts)], strict=True):
            parts.append(features(documents_now[start:end]))
        found = choose(parts, documents(documents_now), target_counts=counts_of(target), settings=config, seed=seed)
        return {documents_now[place] for place in np.flatnonzero(found.is_chosen)}

    first = choice(range(300), [])
    order = rng.sample(range(300), 300)
    assert len(first) == 60
    assert choice(order, [10, 10, 170]) == first
    assert choice(range(300), [], seed=4) != first


def test_noise_is_gumbel_and_follows_the_digest():
    noise = gumbel_noise(documents([f"text {number}" for number in range(20_000)]), 1)
    # mean is Euler's constant, variance pi^2/6; the standard error of the mean of 20,000 is 0.009
    assert noise.mean() == pytest.approx(0.5772, abs=0.04)
    assert noise.var() == pytest.approx(math.pi**2 / 6, rel=0.06)
    assert gumbel_noise(documents(["text 5"]), 1)[0] == noise[5]


def test_equal_weights_are_drawn_evenly_over_seeds():
    """Without a preference every document of eight has the same chance of being among two."""
    texts = [f"{letter} same words here" for letter in "abcdefgh"]
    counts = Counter()
    for seed in range(2000):
        found = choose(
            [features(texts, terms=["zebra"])], documents(texts), target_counts=None, settings=SelectConfig(max_documents=2), seed=seed
        )
        counts.update(np.flatnonzero(found.is_chosen).tolist())
    assert all(400 < counts[place] < 600 for place in range(8)), counts  # 500 expected, standard deviation 19


def test_a_size_above_the_pool_takes_all_and_says_so():
    found = choose(
        [features([LAW, SEA])], documents([LAW, SEA]), target_counts=counts_of([LAW]), settings=SelectConfig(max_documents=9), seed=1
    )
    assert found.is_chosen.all()
    assert found.facts["is_whole_pool"]


def test_a_pool_of_one_document_and_an_empty_pool_stand():
    assert chosen([SEA], [LAW], max_documents=1) == {SEA}
    none = choose(
        [features([LAW])], documents([LAW], [False]), target_counts=counts_of([LAW]), settings=SelectConfig(max_documents=1), seed=1
    )
    assert none.is_chosen.all()  # what is not of the pool stays
    assert none.facts["pool_documents"] == 0


def test_a_size_in_bytes_is_never_passed_and_one_too_long_is_passed_over():
    sizes = np.array([50, 10, 70, 5, 30])
    ranked = np.array([2, 0, 4, 1, 3])
    assert take(ranked, sizes, max_documents=None, max_bytes=100).tolist() == [2, 4]
    assert take(ranked, sizes, max_documents=None, max_bytes=60).tolist() == [0, 1]
    assert take(ranked, sizes, max_documents=2, max_bytes=60).tolist() == [0, 1]
    assert take(ranked, sizes, max_documents=1, max_bytes=1000).tolist() == [2]
    assert take(ranked, sizes, max_documents=None, max_bytes=4).tolist() == []
    assert take(ranked, sizes, max_documents=3, max_bytes=None).tolist() == [2, 0, 4]


def test_documents_with_too_few_hits_are_left_out_and_hits_add_weight():
    texts = ["heart attack", "heart failure and heart attack", "no organ at all"]
    terms = ["heart", "heart attack"]
    few = choose([features(texts, terms=terms)], documents(texts), target_counts=None, settings=SelectConfig(min_hits=3), seed=1)
    assert few.is_chosen.tolist() == [False, True, False]
    assert few.reason_of(0) == "2 hits of the term list, min_hits 3"
    weighted = choose(
        [features(texts, terms=terms)],
        documents(texts),
        target_counts=None,
        settings=SelectConfig(max_documents=1, hit_weight=50.0),
        seed=1,
    )
    assert weighted.is_chosen.tolist() == [False, True, False]
    assert weighted.log_weights.tolist() == [100.0, 150.0, 0.0]


def test_terms_are_whole_words_in_spaced_scripts_and_runs_of_characters_in_others():
    finder = TermFinder(["art", "heart attack", "行政", "行政处罚", "C++", "naïve", "राम"])
    text = "Art starts. HEART\n attack; heart-attack 行政处罚法 行政 C++ c+ +, nai\u0308ve रामा राम"
    assert finder_counts(finder, text) == [1, 1, 2, 1, 2, 1, 1]


def test_many_terms_are_found_as_by_a_search_of_each():
    words = re.findall(r"\w+", Path(json.decoder.__file__).read_text())
    text = " ".join(words)
    rng = random.Random(2)
    terms = sorted({" ".join(words[start : start + rng.randint(1, 4)]).lower() for start in rng.sample(range(len(words) - 4), 300)})
    spaced = f" {text.lower()} "
    by_search = [sum(spaced.startswith(f" {term} ", place) for place in range(len(spaced))) for term in terms]
    assert finder_counts(TermFinder(terms), text) == by_search


def test_nothing_is_found_with_a_term_of_no_units_and_it_is_named():
    finder = TermFinder(["ok", " \u3000"])
    assert finder.unusable == [" \u3000"]
    assert finder_counts(finder, "ok \u3000") == [1, 0]


def test_settings_that_cannot_choose_are_refused_together(tmp_path):
    sources = {"law": SourceConfig(path=str(tmp_path))}
    settings = SelectConfig(target=["lwa"], pool=["web"], max_documents=0, min_hits=2, ngram=9, num_buckets=70_000, prior_per_bucket=-1.0)
    said = "\n".join(select_problems(settings, sources))
    for part in (
        "max_documents is 0",
        "ngram is 9",
        "num_buckets is 70000",
        "prior_per_bucket is -1",
        "pool names 'web'",
        "target names 'lwa'",
        "set corpus.select.terms",
    ):
        assert part in said
    assert "nothing to choose by" in select_problems(SelectConfig(max_bytes=10), sources)[0]
    assert "every source is a target" in select_problems(SelectConfig(max_bytes=10, target=["law"]), sources)[0]
    assert select_problems(SelectConfig(), sources) == []


def test_a_target_without_text_is_refused_and_records_without_one_are_passed_over(tmp_path):
    path = tmp_path / "target.jsonl"
    path.write_text('{"text": ""}\n{"other": "x"}\n{broken\n')
    with pytest.raises(DataError, match="holds no text"):
        list(target_texts(SelectConfig(target=[str(path)]), {}))
    path.write_text('{"text": null}\n{"text": "good\\u0000"}\n')
    assert list(target_texts(SelectConfig(target=[str(path)]), {})) == ["good"]
