"""A validation side is what an in-loop evaluation scores; the test side is left to the gate."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from test_eval_bits_per_byte import bits_per_byte_by_transformers
from tiny_run import TEXTS, make_layout, make_plan, make_run, sentences

from megatron_cpt.plan.run_plan import EvalPlan, RunPlan
from megatron_cpt.train.forgetting import forgetting_record


def test_the_loop_scores_the_validation_side_against_the_bases_score_of_it(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    valid = run_dir / "corpus" / "law.valid.jsonl"
    rows = [{"id": f"v{number}", "text": text, "source": "law"} for number, text in enumerate(sentences("law", 5, seed=9))]
    valid.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    law, talk = TEXTS
    texts = (dataclasses.replace(law, watch_path="corpus/law.valid.jsonl"), talk)
    plan_path = make_plan(run_dir, make_layout(), eval=EvalPlan(texts, 48, 4))
    ((scores, out),) = launch_ranks(_score, 1, str(plan_path), str(tmp_path / "eval.json"))
    base = json.loads(Path(out).read_text(encoding="utf-8"))
    assert [document["id"] for document in scores["law"]["documents"]] == [row["id"] for row in rows]
    assert scores["talk"]["documents"][0]["id"] == "talk-0"  # no validation side: the test side serves
    subject = base["subjects"]["base"]
    assert set(subject["watched"]) == {"law"}
    assert subject["texts"]["law"]["documents"][0]["id"] == "law-0"
    expected, _, _ = bits_per_byte_by_transformers(run_dir.parent / "run-base", valid)
    assert subject["watched"]["law"]["bits_per_byte"] == pytest.approx(expected, abs=1e-5)
    record = forgetting_record(RunPlan.load(plan_path), base, scores, step=1)
    assert record["texts"]["law"]["base"] == pytest.approx(expected, abs=1e-5)
    assert record["texts"]["law"]["num_documents"] == 5
    assert record["texts"]["talk"]["num_documents"] == 7


def _score(plan_path: str, out: str) -> tuple[dict[str, Any], str]:
    from megatron_cpt.backend import choose

    backend = choose("cpu")
    from megatron_cpt.eval.in_loop import scores_of
    from megatron_cpt.eval.run import load_subject, run
    from megatron_cpt.eval.subjects import find_subject
    from megatron_cpt.model.parallel import ranks

    path = Path(plan_path)
    run(path, subjects=("base",), checkpoint=None, out=Path(out))
    plan, run_dir = RunPlan.load(path), path.parent.parent
    with ranks(plan.layout, backend=backend, seed=plan.seed):
        chunks = load_subject(find_subject("init", plan, run_dir), plan, backend=backend)
        return scores_of(plan, run_dir, chunks), out
