"""Rules that could never be judged are refused before training; those that guard little are told."""

from __future__ import annotations

import re
from typing import Any

import pytest
from plan_examples import experiment, facts

from megatron_cpt.config.schema import GateConfig, GateRuleConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.metrics import metric_named
from megatron_cpt.plan.page import page
from megatron_cpt.plan.rules import rule_problems

TASKS = {"exam": ("domain", ("accuracy", "accuracy_per_byte")), "code": ("domain", ("pass@1", "pass@10")), "broken": None}
LAW = GateRuleConfig(on="law", kind="must_improve", margin=0.0)


def rule(**changes: Any) -> GateRuleConfig:
    return GateRuleConfig(**{"on": "exam", "kind": "may_not_worsen", "margin": 0.02, "metric": "accuracy", **changes})


def problems(*rules: GateRuleConfig, **changes: Any) -> list[str]:
    return rule_problems(GateConfig(rules=[LAW, *rules], **changes), texts=["law", "news"], tasks=TASKS)


@pytest.mark.parametrize("good", [rule(), rule(metric="accuracy_per_byte"), rule(on="code", metric="pass@10"), rule(on="broken")])
def test_a_rule_on_what_is_measured_is_taken(good: GateRuleConfig) -> None:
    assert problems(good) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rule(on="bar"), r"gate.rules\[1\].on='bar' is not one of eval.texts \(law, news\) or eval.tasks \(exam, code, broken\)"),
        (rule(metric="bleu"), r"metric='bleu' is not a metric. Known: bits_per_byte, accuracy"),
        (rule(metric="pass@0"), r"metric='pass@0' is not a metric"),
        (rule(metric="f1"), r"metric=f1 is not measured by exam, which gives accuracy, accuracy_per_byte"),
        (rule(on="code", metric="pass@5"), r"metric=pass@5 is not measured by code, which gives pass@1, pass@10"),
        (rule(on="news"), r"metric=accuracy: news is a held-out text, which gives bits_per_byte only"),
        (rule(metric="bits_per_byte"), r"metric=bits_per_byte is not measured by exam"),
        (rule(kind="must_rise"), r"kind='must_rise' is not one of must_improve, may_not_worsen"),
        (rule(group="law"), r"group='law' is not one of domain, general, bias, safety"),
        (rule(margin=-0.1), r"margin=-0.1 is not a margin"),
        (rule(margin=float("nan")), r"margin=nan is not a margin"),
        (rule(margin=2.0), r"margin=2.0 can never be reached: accuracy lies between 0 and 1"),
        (rule(confidence=95.0), r"gate.rules\[1\].confidence=95.0 is not between 0 and 1"),
        (LAW, r"gate.rules names law bits_per_byte must_improve twice"),
    ],
)
def test_a_rule_that_could_never_be_judged_is_refused(bad: GateRuleConfig, message: str) -> None:
    (problem,) = problems(bad)
    assert re.search(message, problem), problem


def test_all_problems_are_named_at_once() -> None:
    assert len(problems(rule(on="bar", kind="x", margin=-1, confidence=0.0), rule(metric="f1"), confidence=1.0)) == 6


def test_advisory_rules_alone_decide_nothing() -> None:
    alone = rule_problems(GateConfig(rules=[rule(required=False)]), texts=["law"], tasks=TASKS)
    assert "advisory rules only" in alone[0]


def test_too_few_resamples_for_the_outermost_quantile_are_refused_with_the_least_that_do() -> None:
    """Two rules at 95 %: 0.025 / 2 on a side, so ten resamples beyond an end are one in eighty of 800."""
    assert problems(rule(), bootstrap_samples=800) == []
    assert "Use 800 or more" in problems(rule(), bootstrap_samples=799)[0]
    assert "Use 4000 or more" in problems(rule(confidence=0.99), bootstrap_samples=2000)[0]


def test_a_metric_knows_which_way_is_better() -> None:
    up = ("accuracy", "accuracy_per_byte", "exact_match", "f1", "regex", "pass@1", "pass@100")
    assert [metric_named(name).lower_is_better for name in up] == [False] * 7  # type: ignore[union-attr]
    assert [metric_named(name).lower_is_better for name in ("bits_per_byte", "stereotype", "gap")] == [True] * 3  # type: ignore[union-attr]
    assert metric_named("pass@x") is None


def test_the_page_says_each_promise_and_warns_of_what_nothing_guards() -> None:
    config = experiment()
    text = " ".join(page(derive(config, **facts())).split())
    assert "law falls by more than 0 bits per byte" in text
    assert "news does not rise by 0.02 bits per byte or more" in text
    assert "WARNING" not in text
    config.gate.rules[1].required = False
    text = " ".join(page(derive(config, **facts())).split())
    assert "or more (advisory: decides nothing)" in text
    assert "WARNING: no required rule is on general ability: forgetting can be promoted" in text


def test_a_grace_window_over_the_whole_run_is_refused() -> None:
    config = experiment()
    config.monitor.grace_steps = 9
    assert derive(config, **facts()).gate.rules[0].group == "domain"
    config.monitor.grace_steps = 10
    with pytest.raises(ConfigError, match="grace_steps=10 covers all 10 steps"):
        derive(config, **facts())
