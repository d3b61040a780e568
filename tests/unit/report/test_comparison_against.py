"""`megatron-cpt compare --against`: two trained models on the same items, by arithmetic that can be done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.cli import main
from megatron_cpt.line.inputs import plan_settings
from megatron_cpt.plan.derive import derive
from megatron_cpt.record.manifest import write_manifest
from megatron_cpt.record.store import write_json
from tests.unit.gate.gate_examples import SIZES, record
from tests.unit.plan.plan_examples import experiment, facts


def trained_run(folder: Path, *, peak_lr: float, law: list[float], news: list[float], base: float = 2.0, seen: str = "") -> Path:
    """Write a run whose trained model has these bits per byte on its documents, and whose base has the same on all of them."""
    config = experiment()
    config.schedule.peak_lr = peak_lr
    inputs: dict[str, dict[str, Any]] = {
        "vocab": {"tokenizer": {"num_new_pieces": 0}},
        "init": {"row_init": "mean", "base": {}},
        "plan": {"settings": plan_settings(config), "seed": config.seed},
    }
    for stage, each in inputs.items():
        (folder / stage).mkdir(parents=True)
        if stage == "plan":
            derive(config, **facts()).save(folder / stage)
        write_manifest(folder / stage, stage, each, {})
    baseline = record("base", {name: [base] * len(values) for name, values in (("law", law), ("news", news))})
    if seen:
        baseline["contaminated"] = {"law": [{"id": seen, "share": 0.9}]}
    write_json(folder / "baseline" / "eval.json", baseline)
    write_json(folder / "eval" / "eval.json", record("train", {"law": law, "news": news}))
    return folder


def compared(capsys: pytest.CaptureFixture[str], out: Path, *words: object) -> tuple[dict[str, Any], str]:
    assert main(["compare", *map(str, words), "--out", str(out)]) == 0
    return json.loads((out / "comparison.json").read_text()), capsys.readouterr().out


def test_the_difference_of_two_trained_models_is_taken_document_by_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both gain about as much against the base, with wide intervals; against each other one is better by the same amount everywhere."""
    law = [0.5 + 0.03 * index for index in range(30)]
    one = trained_run(tmp_path / "one", peak_lr=1e-5, law=law, news=[2.0] * 30)
    other = trained_run(tmp_path / "other", peak_lr=2e-5, law=[value - 0.01 for value in law], news=[2.25] * 30)
    data, said = compared(capsys, tmp_path / "out", one, other, "--against", one)
    first, second = data["runs"]
    assert first["against"] is None
    difference = second["against"]
    assert difference["run"] == "one"
    assert [difference["gain"][key] for key in ("value", "low", "high")] == pytest.approx([0.01] * 3)
    assert [difference["forgetting"][key] for key in ("value", "low", "high")] == pytest.approx([0.25] * 3)
    assert second["gain"]["high"] - second["gain"]["low"] > 0.1  # of other documents, which both share
    assert "minus one" in said
    assert "+0.0100 (+0.0100 to +0.0100)" in said
    for name in ("comparison.md", "comparison.html"):
        assert "+0.0100 (+0.0100 to +0.0100)" in (tmp_path / "out" / name).read_text()


def test_documents_weigh_their_bytes_and_those_seen_in_training_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = trained_run(tmp_path / "one", peak_lr=1e-5, law=[1.0, 2.0, 9.0], news=[2.0] * 3)
    other = trained_run(tmp_path / "other", peak_lr=2e-5, law=[1.0, 1.0, 3.0], news=[2.0] * 3, seen="law-2")
    data, _ = compared(capsys, tmp_path / "out", one, other, "--against", one)
    gain = data["runs"][1]["against"]["gain"]
    first, second, _ = SIZES[:3]
    assert (gain["value"], gain["items"]) == (pytest.approx(second / (first + second)), 2)


def test_the_run_to_hold_against_joins_the_comparison_and_must_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        trained_run(tmp_path / name, peak_lr=1e-5, law=[1.0, 2.0, 2.0], news=[2.0] * 3)
    data, _ = compared(capsys, tmp_path / "out", tmp_path / "other", "--against", tmp_path / "one")
    assert [run["run"] for run in data["runs"]] == ["one", "other"]
    assert main(["compare", "--runs-dir", str(tmp_path), "--against", "o*", "--out", str(tmp_path / "out")]) == 2
    assert "held against one run" in capsys.readouterr().err
    assert main(["compare", "--runs-dir", str(tmp_path), "--against", "onee", "--out", str(tmp_path / "out")]) == 3
    assert "Did you mean one?" in capsys.readouterr().err


def test_a_run_on_another_base_or_without_scores_has_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = trained_run(tmp_path / "one", peak_lr=1e-5, law=[1.0, 2.0, 2.0], news=[2.0] * 3)
    stranger = trained_run(tmp_path / "stranger", peak_lr=2e-5, law=[1.0, 2.0, 2.0], news=[2.0] * 3)
    going_on = trained_run(tmp_path / "going-on", peak_lr=3e-5, law=[1.0, 2.0, 2.0], news=[2.0] * 3)
    baseline = json.loads((stranger / "baseline" / "eval.json").read_text())
    baseline["subjects"]["base"]["weights_sha256"] = "another"
    write_json(stranger / "baseline" / "eval.json", baseline)
    (going_on / "eval" / "eval.json").unlink()
    data, _ = compared(capsys, tmp_path / "out", one, stranger, going_on, "--against", one)
    by_name = {run["run"]: run["against"] for run in data["runs"]}
    assert by_name["stranger"] is None
    assert "has not been scored" in by_name["going-on"]["gain"]["unavailable"]
