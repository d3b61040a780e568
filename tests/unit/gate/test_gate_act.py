"""Promotion and rollback on real folders, killed at every write and finished by running again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gate_examples import BASELINE, BETTER, FORGETFUL, RULES, Killed, good_of, killed_at, record, run_folder, snapshot, spread

from megatron_cpt.errors import DataError
from megatron_cpt.gate import act
from megatron_cpt.gate.act import branch_id, carry_out
from megatron_cpt.gate.audit import STAGES_WITH_MANIFEST, audit, training_problems, verdict_problems
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.record.store import read_json, read_lines, write_json
from megatron_cpt.record.typed import to_plain

CANDIDATE = "train/checkpoints/step_00002500"
PROMOTE, ROLLBACK = decide(BASELINE, BETTER, RULES), decide(BASELINE, FORGETFUL, RULES)
UNKNOWN = decide(BASELINE, {}, RULES)


def act_on(folder: Path, verdict: Verdict) -> None:
    carry_out(folder, verdict, checkpoint=CANDIDATE, init_sha256="start")


def test_promotion_points_to_the_candidate_and_moves_nothing(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    before = snapshot(run)
    act_on(run, PROMOTE)
    assert good_of(run) == {"checkpoint": CANDIDATE, "sha256": "train", "verdict": "promote", "verdict_sha256": PROMOTE.fingerprint}
    after = snapshot(run)
    del after["good.json"]
    assert after == before
    assert verdict_problems(run, expected=PROMOTE, recorded=PROMOTE) == []


def test_rollback_points_to_the_start_keeps_the_checkpoints_as_a_branch_and_is_in_both_records(tmp_path: Path) -> None:
    run = run_folder(tmp_path, ROLLBACK)
    act_on(run, ROLLBACK)
    assert good_of(run)["checkpoint"] == "init/checkpoint"
    assert good_of(run)["sha256"] == "start"
    assert list((run / "train/checkpoints").iterdir()) == []
    branch = run / "train/branches" / branch_id(ROLLBACK)
    assert (branch / "step_00002500/weights").read_text(encoding="utf-8") == "2500"
    assert read_json(branch / "branch.json")["abandoned"] == ["step_00000500", "step_00002500"]
    assert read_json(branch / "branch.json")["reasons"] == list(ROLLBACK.reasons)
    for name in ("ledger.jsonl", "train/metrics.jsonl"):
        assert [line["event"] for line in read_lines(run / name) if line["kind"] == "event"] == ["rollback"]
    assert verdict_problems(run, expected=ROLLBACK, recorded=ROLLBACK) == []


def test_an_unknown_verdict_moves_nothing(tmp_path: Path) -> None:
    run = run_folder(tmp_path, UNKNOWN)
    before = snapshot(run)
    act_on(run, UNKNOWN)
    assert snapshot(run) == before


@pytest.mark.parametrize("verdict", [PROMOTE, ROLLBACK], ids=["promote", "rollback"])
def test_a_second_time_changes_nothing(tmp_path: Path, verdict: Verdict) -> None:
    run = run_folder(tmp_path, verdict)
    act_on(run, verdict)
    before = snapshot(run)
    act_on(run, verdict)
    assert snapshot(run) == before


@pytest.mark.parametrize("moment", range(7))
def test_a_rollback_killed_at_any_write_is_finished_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    whole = run_folder(tmp_path / "whole", ROLLBACK)
    act_on(whole, ROLLBACK)
    run = run_folder(tmp_path / "killed", ROLLBACK)

    with monkeypatch.context() as patch:
        killed_at(patch, act, moment)
        if moment < 6:  # branch.json, two renames, two events, the pointer: six writes in all
            with pytest.raises(Killed):
                act_on(run, ROLLBACK)
            assert not (run / "good.json").exists()  # the pointer is the last thing written
            assert verdict_problems(run, expected=ROLLBACK, recorded=ROLLBACK) != []
        else:
            act_on(run, ROLLBACK)
    act_on(run, ROLLBACK)
    assert snapshot(run) == snapshot(whole)


def test_checkpoints_made_after_a_finished_rollback_are_not_moved_by_it(tmp_path: Path) -> None:
    run = run_folder(tmp_path, ROLLBACK)
    act_on(run, ROLLBACK)
    (run / "train/checkpoints/step_00000500").mkdir()
    act_on(run, ROLLBACK)
    assert (run / "train/checkpoints/step_00000500").is_dir()


def test_a_rollback_keeps_the_checkpoint_that_an_earlier_verdict_promoted(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    carry_out(run, PROMOTE, checkpoint="train/checkpoints/step_00000500", init_sha256="start")
    write_json(run / "gate/verdict.json", to_plain(ROLLBACK))
    act_on(run, ROLLBACK)
    assert good_of(run)["checkpoint"] == "train/checkpoints/step_00000500"
    assert [path.name for path in (run / "train/checkpoints").iterdir()] == ["step_00000500"]


def test_a_verdict_that_is_not_the_recorded_one_is_not_carried_out(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    with pytest.raises(DataError, match="not the recorded one"):
        act_on(run, ROLLBACK)
    shutil.rmtree(run / "gate")
    with pytest.raises(DataError, match="missing"):
        act_on(run, ROLLBACK)
    assert not (run / "good.json").exists()


def test_a_promotion_of_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    shutil.rmtree(run / CANDIDATE)
    with pytest.raises(DataError, match="missing"):
        act_on(run, PROMOTE)


def test_a_branch_record_cannot_move_files_from_elsewhere(tmp_path: Path) -> None:
    run = run_folder(tmp_path, ROLLBACK)
    folder = run / "train/branches" / branch_id(ROLLBACK)
    write_json(folder / "branch.json", {"abandoned": ["../../init/checkpoint"]})
    with pytest.raises(DataError, match="outside"):
        act_on(run, ROLLBACK)
    assert (run / "init/checkpoint").is_dir()


def test_the_audit_sees_a_regression_that_was_recorded_as_a_promotion(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    act_on(run, PROMOTE)
    (problem,) = verdict_problems(run, expected=ROLLBACK, recorded=PROMOTE)
    assert "says promote; the scores and the plan's rules give rollback" in problem


def test_the_audit_sees_figures_that_do_not_follow_from_the_scores(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    act_on(run, PROMOTE)
    better = decide(BASELINE, record("train", {"law": spread(1.5), "web": spread(1.2)}), RULES)
    assert "does not hold the figures" in verdict_problems(run, expected=better, recorded=PROMOTE)[0]


def test_the_audit_sees_a_rollback_that_was_undone(tmp_path: Path) -> None:
    run = run_folder(tmp_path, ROLLBACK)
    act_on(run, ROLLBACK)
    branch = run / "train/branches" / branch_id(ROLLBACK)
    shutil.move(branch / "step_00002500", run / CANDIDATE)
    assert "still holds step_00002500" in verdict_problems(run, expected=ROLLBACK, recorded=ROLLBACK)[0]


def test_the_audit_sees_missing_training_records_and_a_bill_without_reason(tmp_path: Path) -> None:
    run = run_folder(tmp_path, PROMOTE)
    assert training_problems(run) == []  # an unknown figure with its reason is a record
    (run / "ledger.jsonl").write_text('{"kind":"end","attempt":"a","stage":"train","joules":null}\n', encoding="utf-8")
    (run / "train/metrics.jsonl").unlink()
    problems = training_problems(run)
    assert problems[0] == "train/metrics.jsonl holds no training step"
    assert [problem.split(" records no ")[1][:6] for problem in problems[1:]] == ["usd, n", "joules"]


def test_the_audit_of_an_empty_folder_lists_every_missing_record_and_does_not_fail(tmp_path: Path) -> None:
    problems = audit(tmp_path)
    for stage in STAGES_WITH_MANIFEST:
        assert f"{stage}/manifest.json is missing" in problems
    for name in ("plan.yaml", "baseline/eval.json", "eval/eval.json", "gate/verdict.json", "metrics.jsonl", "ledger.jsonl"):
        assert any(name in problem for problem in problems), name
