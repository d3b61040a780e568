"""`eval.json` of a model that has diverged: written, readable, and judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from megatron_cpt.eval.report import SCHEMA_VERSION, EvalReport, SubjectScore, text_score
from megatron_cpt.eval.texts import Document
from megatron_cpt.gate.decide import decide
from megatron_cpt.plan.run_plan import GatePlan, GateRule
from megatron_cpt.record.store import read_json


def report(path: Path, subject: str, nats: list[float]) -> Path:
    documents = [Document(id=f"d{number}", text="x" * 100) for number in range(len(nats))]
    score = text_score("domain", documents, tokens=[30] * len(nats), nats=nats)
    EvalReport(SCHEMA_VERSION, {subject: SubjectScore("a", "b", "c", 7, 0, {"law": score}, {})}, 1.0).save(path)
    return path


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_candidate_is_recorded_and_rolled_back(tmp_path: Path, bad: float) -> None:
    base = report(tmp_path / "base.json", "base", [100.0, 110.0, 120.0])
    new = report(tmp_path / "new.json", "train", [bad, 90.0, -bad])
    json.loads(new.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    rules = (GateRule(of="law", kind="must_improve", margin=0.0),)
    verdict = decide(read_json(base), read_json(new), GatePlan(rules=rules, confidence=0.95, bootstrap_samples=100, seed=1))
    assert verdict.decision == "rollback"
    assert "diverged" in verdict.reasons[0]
