"""The audit of whole runs: an honest one holds, and a regression that was not rolled back is found however it was hidden."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate_examples import BASELINE, BETTER, FORGETFUL, RULES, audited_run, record, spread

from megatron_cpt.gate.act import carry_out
from megatron_cpt.gate.audit import audit
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.manifest import Manifest, write_manifest
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import to_plain
from tests.unit.plan import plan_examples

WORSE = record("train", {"law": [value + 0.1 for value in spread(1.8)], "web": spread(1.2)})  # the domain itself regressed


@pytest.fixture(scope="module")
def plan() -> RunPlan:
    return dataclasses.replace(derive(plan_examples.experiment(), **plan_examples.facts()), gate=RULES)


def finished(folder: Path, plan: RunPlan, candidate: dict[str, Any]) -> Path:
    run = audited_run(folder, BASELINE, candidate, plan)
    verdict = Verdict.load(run / "gate/verdict.json")
    carry_out(run, verdict, checkpoint="train/checkpoints/step_00002500", init_sha256="start")
    return run


@pytest.mark.parametrize("candidate", [BETTER, FORGETFUL, WORSE], ids=["promoted", "forgot", "regressed"])
def test_the_records_of_an_honest_run_hold(tmp_path: Path, plan: RunPlan, candidate: dict) -> None:
    assert audit(finished(tmp_path, plan, candidate)) == []


def resealed(run: Path, stage: str) -> None:
    """Write the stage's manifest anew, as one who hides a change would."""
    before = Manifest.load(run / stage)
    write_manifest(run / stage, stage, before.inputs, before.facts)


def test_a_regression_recorded_and_carried_out_as_a_promotion_is_found(tmp_path: Path, plan: RunPlan) -> None:
    """The domain regressed; the verdict, the pointer and the manifest all claim a promotion."""
    run = finished(tmp_path, plan, BETTER)
    write_json(run / "eval/eval.json", WORSE)
    resealed(run, "eval")
    problems = audit(run)
    assert problems == ["gate/verdict.json says promote; the scores and the plan's rules give rollback"]


def test_scores_that_were_made_better_afterwards_are_found_by_their_digest(tmp_path: Path, plan: RunPlan) -> None:
    run = audited_run(tmp_path, BASELINE, WORSE, plan)
    write_json(run / "eval/eval.json", BETTER)
    forged = decide(BASELINE, BETTER, plan.gate, step=2500, grace_steps=1)
    write_json(run / "gate/verdict.json", to_plain(forged))
    carry_out(run, forged, checkpoint="train/checkpoints/step_00002500", init_sha256="start")
    problems = audit(run)
    assert "eval/eval.json was changed after its stage wrote it" in problems
    assert "gate/verdict.json was changed after its stage wrote it" in problems


def test_a_regression_without_any_verdict_is_found(tmp_path: Path, plan: RunPlan) -> None:
    run = audited_run(tmp_path, BASELINE, WORSE, plan)
    (run / "gate/verdict.json").unlink()
    assert any("a rule failed and no rollback was triggered: law must improve" in problem for problem in audit(run))


def test_a_rollback_that_was_decided_and_not_carried_out_is_found(tmp_path: Path, plan: RunPlan) -> None:
    run = audited_run(tmp_path, BASELINE, WORSE, plan)
    assert audit(run) == ["the verdict rollback was not carried out: good.json is missing"]


def test_a_candidate_inside_the_grace_window_is_not_judged_by_the_audit_either(tmp_path: Path, plan: RunPlan) -> None:
    run = audited_run(tmp_path, BASELINE, WORSE, dataclasses.replace(plan, grace_steps=2500))
    (problem,) = audit(run)
    assert "the verdict is unknown: step 2500 lies inside the grace window" in problem


def without_line(run: Path, keep: Callable[[dict], bool]) -> None:
    path = run / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if keep(line)), encoding="utf-8")


@pytest.mark.parametrize("stage", ["baseline", "train", "eval"])
def test_a_missing_bill_of_a_stage_that_computed_is_found(tmp_path: Path, plan: RunPlan, stage: str) -> None:
    run = finished(tmp_path, plan, BETTER)
    without_line(run, lambda line: line.get("stage") != stage)
    assert audit(run) == [f"ledger.jsonl holds no ended attempt of {stage}"]


@pytest.mark.parametrize("figure", ["usd", "joules"])
def test_a_bill_without_cost_or_energy_is_found(tmp_path: Path, plan: RunPlan, figure: str) -> None:
    run = finished(tmp_path, plan, BETTER)
    path = run / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != figure}) + "\n" for line in lines), encoding="utf-8")
    assert {problem.split(" records no ")[1] for problem in audit(run)} == {f"{figure}, nor why it is unknown"}
    assert len(audit(run)) == 3


@pytest.mark.parametrize("name", ["train/metrics.jsonl", "baseline/eval.json", "eval/eval.json", "plan/plan.yaml", "train/manifest.json"])
def test_a_missing_record_is_found(tmp_path: Path, plan: RunPlan, name: str) -> None:
    run = finished(tmp_path, plan, BETTER)
    (run / name).unlink()
    assert audit(run) != []
    assert read_json(run / "good.json")["verdict"] == "promote"
