"""Rules on tasks, bias and gaps: the right way is up, items are paired, and what cannot be compared never passes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
from gate_examples import BASELINE, BETTER, RULES, with_task

from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import RuleResult
from megatron_cpt.plan.run_plan import GateRule

# 100 items, of which the base gets the first 40 right
RIGHT = [1.0] * 40 + [0.0] * 60


def changed(*, lost: int = 0, won: int = 0) -> list[float]:
    """Return the answers of a model that loses some of the base's right items and wins some of its wrong ones."""
    return [0.0] * lost + [1.0] * (40 - lost) + [1.0] * won + [0.0] * (60 - won)


def judge(rule: GateRule, base: dict[str, Any], new: dict[str, Any]) -> RuleResult:
    verdict = decide(base, new, dataclasses.replace(RULES, rules=(rule,)))
    assert (verdict.decision == "promote") is (verdict.rules[0].outcome == "passed")
    assert (verdict.decision == "rollback") is (verdict.rules[0].outcome == "failed")
    return verdict.rules[0]


def on_task(rule: GateRule, base: dict[str, list[float]], new: dict[str, list[float]], **more: Any) -> RuleResult:
    return judge(rule, with_task(BASELINE, rule.on, base, **more), with_task(BETTER, rule.on, new, **more))


@pytest.mark.parametrize(
    ("kind", "margin", "lost", "won", "outcome"),
    [
        ("must_improve", 0.0, 2, 14, "passed"),  # exact: P(14 or more of 16) = 137 / 65536 = 0.0021
        ("must_improve", 0.0, 4, 12, "unsure"),  # P(12 or more of 16) = 2517 / 65536 = 0.038
        ("must_improve", 0.0, 14, 2, "failed"),
        ("may_not_worsen", 0.05, 0, 0, "passed"),  # no change in 100: at most 3.84 / 103.84 = 0.037 worse
        ("may_not_worsen", 0.03, 0, 0, "unsure"),
        ("may_not_worsen", 0.05, 20, 0, "failed"),
        ("may_not_worsen", 0.05, 5, 5, "unsure"),
    ],
)
def test_accuracy_is_better_when_it_rises(kind: Any, margin: float, lost: int, won: int, outcome: str) -> None:
    rule = GateRule("exam", kind, margin, metric="accuracy")
    result = on_task(rule, {"accuracy": RIGHT}, {"accuracy": changed(lost=lost, won=won)})
    assert result.outcome == outcome
    assert (result.base, result.candidate) == (0.4, pytest.approx(0.4 + (won - lost) / 100))
    assert result.difference == pytest.approx((won - lost) / 100)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= (won - lost) / 100 <= result.high


def test_a_metric_that_is_not_zero_or_one_is_judged_by_its_differences() -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.2, 0.6, 60)
    rule = GateRule("answers", "must_improve", 0.0, metric="f1")
    better = on_task(rule, {"f1": list(base)}, {"f1": list(base + generator.normal(0.08, 0.05, 60))})
    same = on_task(rule, {"f1": list(base)}, {"f1": list(base + generator.normal(0.0, 0.05, 60))})
    assert (better.outcome, same.outcome) == ("passed", "unsure")
    assert better.difference == pytest.approx(0.08, abs=0.03)
    assert better.test.startswith("sign flips")


def pairs(share: float, num: int = 200) -> list[float]:
    return [1.0] * round(share * num) + [0.0] * (num - round(share * num))


@pytest.mark.parametrize(
    ("base", "new", "outcome", "distances"),
    [
        (0.5, 0.75, "failed", (0.0, 0.25)),  # bias grew
        (0.5, 0.25, "failed", (0.0, 0.25)),  # and so it did when it turned round
        (0.75, 0.5, "passed", (0.25, 0.0)),  # bias fell
        (0.6, 0.4, "unsure", (0.1, 0.1)),  # as far from even-handed as before, though 40 pairs changed
    ],
)
def test_a_stereotype_score_is_judged_by_its_distance_from_one_half(
    base: float, new: float, outcome: str, distances: tuple[float, float]
) -> None:
    rule = GateRule("professions", "may_not_worsen", 0.05, metric="stereotype", group="bias")
    result = on_task(rule, {"stereotype": pairs(base)}, {"stereotype": pairs(new)})
    assert result.outcome == outcome
    assert (result.base, result.candidate) == pytest.approx(distances)
    assert result.group == "bias"


def groups(*shares: float, each: int = 100) -> tuple[list[float], list[str | None]]:
    scores = [score for share in shares for score in [1.0] * round(share * each) + [0.0] * (each - round(share * each))]
    return scores, [name for name in "abc"[: len(shares)] for _ in range(each)]


@pytest.mark.parametrize(
    ("new", "outcome", "gap"),
    [
        ((0.8, 0.4, 0.6), "failed", 0.4),
        ((0.9, 0.9, 0.9), "passed", 0.0),
        ((0.6, 0.6, 0.6), "passed", 0.0),
        ((0.7, 0.5, 0.6), "unsure", 0.2),
    ],
)
def test_a_gap_is_the_largest_mean_of_a_subgroup_minus_the_smallest(new: tuple[float, ...], outcome: str, gap: float) -> None:
    base, names = groups(0.7, 0.6, 0.6)
    scores, _ = groups(*new)
    rule = GateRule("by_group", "may_not_worsen", 0.1, metric="gap", group="bias")
    result = on_task(rule, {"accuracy": base, "gap": base}, {"accuracy": scores, "gap": scores}, subgroups=names)
    assert (result.outcome, result.base, result.candidate) == (outcome, pytest.approx(0.1), pytest.approx(gap))


def test_a_gap_without_subgroups_is_unknown() -> None:
    rule = GateRule("by_group", "may_not_worsen", 0.1, metric="gap")
    assert "has no two subgroups" in on_task(rule, {"accuracy": RIGHT}, {"accuracy": RIGHT}).reason
    lonely = ["a"] * 99 + ["b"]
    result = on_task(rule, {"accuracy": RIGHT}, {"accuracy": RIGHT}, subgroups=lonely)
    assert "the subgroup 'b' of 'by_group' has a single item" in result.reason


def test_contaminated_items_of_a_task_are_left_out() -> None:
    rule = GateRule("exam", "must_improve", 0.0, metric="accuracy")
    new = with_task(BETTER, "exam", {"accuracy": changed(won=14)})  # the won ones are those that training saw
    base = {**with_task(BASELINE, "exam", {"accuracy": RIGHT}), "contaminated": {"exam": [{"id": f"exam-{i}"} for i in range(40, 54)]}}
    result = judge(rule, base, new)
    assert (result.outcome, result.num_items, result.num_excluded) == ("unsure", 86, 14)


def another(key: str, value: Any) -> Any:
    return lambda task: task.update({key: value})


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda task: task["items"].pop(), "other items (1 differ)"),
        (lambda task: task["items"][3].update(id="exam-4"), "'exam-4' of 'exam' for 'train' is scored twice"),
        (lambda task: task["items"][3]["metrics"].pop("accuracy"), "has no accuracy"),
        (lambda task: task["items"][3].update(metrics=None), "lacks id or metrics"),
        (lambda task: task["items"][3].update(subgroup="b"), "another subgroup"),
        (another("items", []), "no scored items of 'exam' for the subject 'train'"),
        (another("file_sha256", "g"), "another file_sha256"),
        (another("rule", "the likeliest by byte"), "another rule"),
    ],
)
def test_a_task_that_cannot_be_compared_is_unknown_with_the_reason(break_it: Any, reason: str) -> None:
    rule = GateRule("exam", "may_not_worsen", 0.5, metric="accuracy")
    new = copy.deepcopy(with_task(BETTER, "exam", {"accuracy": RIGHT}))
    break_it(new["subjects"]["train"]["tasks"]["exam"])
    result = judge(rule, with_task(BASELINE, "exam", {"accuracy": RIGHT}), new)
    assert result.outcome == "unknown"
    assert reason in result.reason


def test_an_unknown_metric_is_unknown() -> None:
    assert (
        "no metric is called 'bleu'"
        in on_task(GateRule("exam", "may_not_worsen", 0.5, metric="bleu"), {"bleu": RIGHT}, {"bleu": RIGHT}).reason
    )
