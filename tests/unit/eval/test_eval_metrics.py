"""Metrics against figures worked out by hand or published."""

from __future__ import annotations

import math
import random
import time
from fractions import Fraction
from itertools import combinations

import pytest

from megatron_cpt.eval.metrics import cut_at_stop, exact_match, f1, normalise_answer, pass_at_k, pattern_found
from megatron_cpt.gate.groups import group_gap
from megatron_cpt.text.units import is_spaceless, units_of


@pytest.mark.parametrize(
    ("given", "right", "is_same"),
    [
        ("The Court.", "the court", True),
        ("  article 12(3) ", "Article 12 3", True),
        ("well-known", "well known", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("5%", "5", False),
        ("1,000", "1000", False),
        ("北京。", "北京", True),
        ("Ｂｅｉｊｉｎｇ", "beijing", True),  # full-width letters
        ("“yes”", "yes", True),
        ("", "yes", False),
    ],
)
def test_exact_match_forgives_case_and_punctuation_but_no_number(given: str, right: str, is_same: bool) -> None:
    assert exact_match(given, ["another", right]) == float(is_same), (normalise_answer(given), normalise_answer(right))


@pytest.mark.parametrize(
    ("given", "right", "expected"),
    [
        ("the second court", "second court", 4 / 5),  # 2 of 3 and 2 of 2
        ("a a b", "a b b", 2 * 2 / 6),  # bags, not sets: one a and one b in common
        ("北京市", "北京", 4 / 5),  # by character
        ("nothing alike", "second court", 0.0),
        ("...", "second", 0.0),
    ],
)
def test_f1_is_that_of_bags_of_words_or_characters(given: str, right: str, expected: float) -> None:
    assert f1(given, [right]) == pytest.approx(expected)
    assert f1(given, ["zzz", right, "yyy"]) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_draws_with_a_pass() -> None:
    """Counted out over all draws of k programs, instead of by the formula."""
    for num, passed in ((5, 2), (6, 0), (6, 6), (7, 1)):
        results = [True] * passed + [False] * (num - passed)
        for k in range(1, num + 1):
            draws = list(combinations(results, k))
            assert pass_at_k(num, passed, k) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))))
    assert pass_at_k(200, 20, 1) == pytest.approx(0.1)
    # HumanEval's own code (openai/human-eval, evaluation.py): 1 - prod(1 - k / arange(n - c + 1, n + 1))
    assert pass_at_k(100, 7, 10) == pytest.approx(1 - math.prod(1 - 10 / n for n in range(100 - 7 + 1, 101)))


def test_a_pattern_that_searches_for_ever_is_not_found_and_takes_a_second() -> None:
    began = time.monotonic()
    assert pattern_found("a" * 40 + "!", [r"^(a+)+$", r"!$"]) == 1.0  # the second one is still tried
    assert 0.5 < time.monotonic() - began < 5
    assert pattern_found("in 1815", [r"\b18\d\d\b"]) == 1.0
    assert pattern_found("in 1715", [r"\b18\d\d\b"]) == 0.0


def test_an_answer_ends_before_the_first_stop() -> None:
    assert cut_at_stop("one\ntwo\n\nthree", ["\n\n", "\n"]) == "one"
    assert cut_at_stop("one", ["\n"]) == "one"
    assert cut_at_stop("\none", ["\n"]) == ""


def test_units_are_words_and_single_characters() -> None:
    assert units_of("The Court's 第12条：公司（AB）") == ["the", "court", "s", "第", "12", "条", "公", "司", "ab"]
    assert is_spaceless(units_of("公司应当依照law法律"))
    assert not is_spaceless(units_of("the word 法 in English"))


def test_the_gap_is_between_the_best_and_the_worst_subgroup() -> None:
    assert group_gap([1, 1, 0, 0, 1, 0.5], ["a", "a", "b", "b", None, "c"]) == pytest.approx(1.0)
    assert group_gap([1, 0, 1, 1], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert group_gap([1, 0], ["a", "a"]) is None
    assert group_gap([1, 0], [None, "a"]) is None
    assert math.isnan(group_gap([math.nan, 0, 1], ["a", "b", "c"]) or 0.0)
    rng = random.Random(1)
    scores, names = [rng.random() for _ in range(60)], [rng.choice("abcd") for _ in range(60)]
    means = {name: sum(s for s, n in zip(scores, names, strict=True) if n == name) / names.count(name) for name in "abcd"}
    assert group_gap(scores, names) == pytest.approx(max(means.values()) - min(means.values()))
