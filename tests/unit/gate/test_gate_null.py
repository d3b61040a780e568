"""Candidates that are neither better nor worse: the gate promotes and rolls back no more of them than it states."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gate_examples import BASELINE, SIZES, record, with_task

from megatron_cpt.gate.null_experiment import count_verdicts, main, null_experiment, swapped
from megatron_cpt.plan.run_plan import GatePlan, GateRule
from megatron_cpt.record.store import write_json

RULES = (
    GateRule("law", "must_improve", 0.0, group="domain"),
    GateRule("web", "may_not_worsen", 0.0),
    GateRule("exam", "may_not_worsen", 0.0, metric="accuracy"),
)
PLAN = GatePlan(RULES, 0.95, 500, 0)


def two_models(seed: int) -> tuple[dict, dict]:
    """Return scores of two models that differ item by item as models do: skewed, heavier on some documents."""
    generator = np.random.default_rng(seed)
    texts = {name: generator.normal(center, 0.3, len(SIZES)) for name, center in (("law", 1.8), ("web", 1.2))}
    other = {name: values + generator.gamma(1.0, 0.05, len(SIZES)) for name, values in texts.items()}
    answers = generator.integers(0, 2, 120).astype(float)
    others = np.where(generator.random(120) < 0.2, 1 - answers, answers)
    base = with_task(record("base", {name: list(values) for name, values in texts.items()}), "exam", {"accuracy": list(answers)})
    new = with_task(record("init", {name: list(values) for name, values in other.items()}), "exam", {"accuracy": list(others)})
    return base["subjects"]["base"], new["subjects"]["init"]


@pytest.fixture(scope="module")
def counts() -> dict:
    base, other = two_models(3)
    return {count.experiment: count for count in null_experiment(base, other, PLAN, seeds=200, noise=0.02)}


def test_the_base_against_itself_promotes_nothing_and_rolls_nothing_back_in_200_seeds(counts: dict) -> None:
    assert (counts["itself"].promoted, counts["itself"].rolled_back, counts["itself"].unknown) == (0, 0, 200)


@pytest.mark.parametrize("experiment", ["swapped", "noise"])
def test_without_any_difference_false_rollbacks_stay_at_the_stated_rate(counts: dict, experiment: str) -> None:
    """Stated: 2.5 % over all three rules together. More than 12 of 200 has a chance of 0.002 at that rate (binomial)."""
    assert counts[experiment].rolled_back <= 12
    assert counts[experiment].promoted <= 12
    assert counts[experiment].holds


def test_without_the_correction_the_same_experiment_would_be_fooled_more_often() -> None:
    """Three independent chances of 2.5 % make 7.3 %: the sum over rules that stand alone must exceed what they do together."""
    base, other = two_models(3)

    def rolled_back(*rules: GateRule) -> int:
        plan = dataclasses.replace(PLAN, rules=rules)
        return count_verdicts("swapped", lambda generator: swapped(base, other, generator), plan, seeds=120).rolled_back

    assert sum(map(rolled_back, RULES)) > rolled_back(*RULES)


def test_a_real_difference_is_not_lost_by_the_same_gate() -> None:
    """The experiment must be able to fail: swapping nothing leaves the other model's harm, which is seen every time."""
    from megatron_cpt.gate.decide import decide  # noqa: PLC0415

    base, other = two_models(3)
    verdicts = [
        decide({"subjects": {"base": base}}, {"subjects": {"train": other}}, dataclasses.replace(PLAN, seed=seed)).decision
        for seed in range(5)
    ]
    assert verdicts == ["rollback"] * 5


def test_a_swap_shares_out_the_same_scores() -> None:
    base, other = two_models(3)
    first, second = swapped(base, other, np.random.default_rng(0))
    for document, left, right in zip(
        base["texts"]["law"]["documents"], first["texts"]["law"]["documents"], second["texts"]["law"]["documents"], strict=True
    ):
        assert document["id"] == left["id"] == right["id"]
        assert document in (left, right)
        assert left != right


def test_the_command_reads_a_baseline_and_says_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other = two_models(5)
    path = tmp_path / "eval.json"
    write_json(path, {"subjects": {"base": base, "init": other}})
    assert main([f"eval_json={path}", "seeds=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["itself", "swapped", "noise"]
    assert "100.0% unknown" in lines[0]
    assert main(["eval_json=nowhere.json"]) == 3
    assert main([f"eval_json={path}", "seed=20"]) == 2
    assert BASELINE["subjects"]["base"]["weights_sha256"] == "base"
