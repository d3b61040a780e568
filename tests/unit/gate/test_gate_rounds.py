"""Rounds on real folders: what moves, what stays, what is declared; and a move that is killed at every write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gate_examples import BASELINE, BETTER, FORGETFUL, RULES, Killed, killed_at, run_folder, snapshot

from megatron_cpt.errors import CheckpointError, DataError
from megatron_cpt.gate import rounds
from megatron_cpt.gate.act import GoodCheckpoint, carry_out, check_digest
from megatron_cpt.gate.audit import past_problems
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.rounds import FIRST, Round, begin_round, current_round, finish_move, next_retry, resume_point, tried_rounds
from megatron_cpt.plan.run_plan import PLAN_NAME, GatePlan, ResumePoint, Retry, RunPlan
from megatron_cpt.record.hashing import files_under, sha256_file, sha256_plain
from megatron_cpt.record.store import append_line, read_json, read_lines, write_json, write_text

STAGES = ("corpus", "vocab", "index", "init", "plan", "baseline", "train", "eval", "gate", "export", "report")
CANDIDATE = "train/checkpoints/step_00002500"
PROMOTE, ROLLBACK = decide(BASELINE, BETTER, RULES), decide(BASELINE, FORGETFUL, RULES)
ASKED = Round(2, "asked for", "plan", ResumePoint(CANDIDATE, "train", 1))
KEEP = Round(2, "retry 1 of 1: vocabulary keep", "vocab", None, (Retry(vocabulary="keep"),), 1)


def judged(folder: Path, verdict: Any = PROMOTE) -> Path:
    """Return a run folder whose verdict was carried out, with a file for every stage."""
    run = run_folder(folder, verdict)
    for stage in STAGES:
        write_json(run / stage / "manifest.json", {"stage": stage})
    write_json(run / "train" / "outcome.json", {"status": "finished"})
    write_text(run / "train" / "wandb-run-id", "abcd")
    carry_out(run, verdict, checkpoint=CANDIDATE, init_sha256="start")
    return run


def test_a_new_round_keeps_the_preparation_the_checkpoints_and_the_logs_and_puts_the_rest_away(tmp_path: Path) -> None:
    run = judged(tmp_path)
    before = snapshot(run)
    begin_round(run, ASKED, stages=STAGES)
    assert current_round(run) == ASKED
    for stage in ("corpus", "vocab", "index", "init"):
        assert (run / stage / "manifest.json").exists()
    for stage in ("plan", "baseline", "eval", "gate", "export", "report"):
        assert not (run / stage).exists()
    after = snapshot(run)
    for name, content in before.items():  # nothing is lost: each file is where it was, has grown, or lies under rounds/1
        assert after.get(f"rounds/1/{name}", "") == content or after[name].startswith(content), name
    assert sorted(path.name for path in (run / "train").iterdir()) == ["checkpoints", "metrics.jsonl", "wandb-run-id"]
    assert GoodCheckpoint.load(run).checkpoint == CANDIDATE
    for name in ("ledger.jsonl", "train/metrics.jsonl"):
        (event,) = [line for line in read_lines(run / name) if line.get("event") == "new round"]
        assert (event["round"], event["reasons"], event["resumes_from"]["checkpoint"]) == (2, ["asked for"], CANDIDATE)
    assert tried_rounds(run) == ["round 1 (the first): promote: all 2 required rules passed"]
    assert past_problems(run) == []


def test_a_round_from_the_vocabulary_on_takes_the_pointer_to_the_old_start_with_it(tmp_path: Path) -> None:
    run = judged(tmp_path, ROLLBACK)
    assert GoodCheckpoint.load(run).checkpoint == "init/checkpoint"
    begin_round(run, KEEP, stages=STAGES)
    assert (run / "corpus").exists()
    assert not (run / "vocab").exists()
    good = GoodCheckpoint.load(run)
    assert (good.checkpoint, good.sha256, good.is_trained) == ("rounds/1/init/checkpoint", "start", False)
    assert (run / good.checkpoint).is_dir()
    assert past_problems(run) == []
    for path in (run / "train" / "branches").glob("*/branch.json"):
        path.unlink()
    assert "the rollback was not carried out" in past_problems(run)[0]


@pytest.mark.parametrize("following", [ASKED, KEEP], ids=["plan", "vocab"])
def test_a_new_round_killed_at_any_write_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, following: Round
) -> None:
    verdict = PROMOTE if following is ASKED else ROLLBACK
    begin_round(whole := judged(tmp_path / "whole", verdict), following, stages=STAGES)
    num_kills = 0
    for moment in range(50):
        run = judged(tmp_path / str(moment), verdict)

        with monkeypatch.context() as patch:
            killed_at(patch, rounds, moment)
            try:
                begin_round(run, following, stages=STAGES)
            except Killed:
                num_kills += 1
            else:
                break
        assert current_round(run) == FIRST
        finish_move(run)
        if moment == 0:  # nothing was written: the round has not begun
            assert current_round(run) == FIRST
            begin_round(run, following, stages=STAGES)
        assert snapshot(run) == snapshot(whole), moment
        finish_move(run)
        assert snapshot(run) == snapshot(whole), moment
    # the record of the move; 6 stages, or 9 with vocab, index and init; manifest and outcome of train; two events; the round,
    # and with init the pointer
    assert num_kills == (12 if following is ASKED else 16)


def test_a_round_record_cannot_move_files_from_elsewhere(tmp_path: Path) -> None:
    run = judged(tmp_path)
    write_json(run / "rounds" / "1" / "round.json", {"moved": ["../../elsewhere"], "following": {**vars_of(ASKED)}})
    with pytest.raises(DataError, match="outside the run"):
        finish_move(run)


def vars_of(each: Round) -> dict[str, Any]:
    return {"number": each.number, "why": each.why, "first_stage": each.first_stage, "resumes_from": None, "changes": [], "num_retries": 0}


def saved(folder: Path, name: str, *, step: int, fingerprint: str) -> str:
    """Write a checkpoint's record over a file of weights, and return the digest by which it is known."""
    checkpoint = folder / name
    write_text(checkpoint / "model" / "weights", f"weights of step {step}")
    files = {path.relative_to(checkpoint).as_posix(): {"size_bytes": 1, "sha256": sha256_file(path)} for path in files_under(checkpoint)}
    record = {"step": step, "sources": ["law"], "source_samples": [8 * step], "plan_fingerprint": fingerprint, "files": files}
    write_json(checkpoint / "checkpoint.json", record)
    return sha256_plain({file: entry["sha256"] for file, entry in files.items()})


class Plan:
    """What `resume_point` asks of a plan."""

    def __init__(self, path: Path) -> None:
        self.fingerprint = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]


def test_the_point_to_go_on_from_is_known_by_its_bytes_and_by_the_plan_that_it_was_saved_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunPlan, "load", classmethod(lambda _, path: Plan(path)))
    digest = saved(tmp_path, CANDIDATE, step=2500, fingerprint="first")
    write_json(tmp_path / "plan" / PLAN_NAME, {"fingerprint": "third"})
    for number, name in ((1, "first"), (2, "second")):
        write_json(tmp_path / "rounds" / str(number) / "plan" / PLAN_NAME, {"fingerprint": name})
    write_json(tmp_path / "round.json", vars_of(Round(3, "asked for", "plan")))
    assert resume_point(tmp_path, CANDIDATE, digest) == ResumePoint(CANDIDATE, digest, 1)
    with pytest.raises(CheckpointError, match="not the one that was judged"):
        resume_point(tmp_path, CANDIDATE, "0" * 64)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        resume_point(tmp_path, "train/checkpoints/step_00009999", digest)
    other = saved(tmp_path, CANDIDATE, step=2500, fingerprint="unknown")
    with pytest.raises(CheckpointError, match="No round of this run has the plan"):
        resume_point(tmp_path, CANDIDATE, other)


@pytest.mark.parametrize("damage", ["swap", "more", "less"])
def test_a_checkpoint_that_is_not_the_promoted_bytes_is_refused_and_the_file_named(tmp_path: Path, damage: str) -> None:
    digest = saved(tmp_path, CANDIDATE, step=2500, fingerprint="p")
    good = GoodCheckpoint(CANDIDATE, digest, "promote", "v")
    check_digest(tmp_path, good)
    weights = tmp_path / CANDIDATE / "model" / "weights"
    if damage == "swap":
        data = bytearray(weights.read_bytes())
        data[3] ^= 1
        weights.write_bytes(data)
    elif damage == "more":
        (weights.parent / "more").write_text("x", encoding="utf-8")
    else:
        weights.unlink()
    with pytest.raises(CheckpointError, match="not the one that was promoted") as refused:
        check_digest(tmp_path, good)
    assert ("model/more" if damage == "more" else "model/weights") in str(refused.value)


def test_the_policy_changes_one_thing_more_each_time_and_ends() -> None:
    class Policy:
        gate = GatePlan((), 0.95, 10, 0, retries=(Retry(lower_rate=0.3), Retry(replay=0.25), Retry(vocabulary="keep")), max_retries=3)

    plan: Any = Policy()
    first = next_retry(FIRST, plan)
    assert first is not None
    assert (first.number, first.why, first.first_stage, first.changes) == (2, "retry 1 of 3: lower_rate 0.3", "plan", (Retry(0.3),))
    second = next_retry(first, plan)
    assert second is not None
    assert second.changes == (Retry(0.3), Retry(replay=0.25))
    third = next_retry(second, plan)
    assert third is not None
    assert (third.first_stage, third.num_retries) == ("vocab", 3)
    assert next_retry(third, plan) is None


def test_the_event_of_a_round_is_not_written_twice_over_a_log_that_has_it(tmp_path: Path) -> None:
    run = judged(tmp_path)
    append_line(run / "ledger.jsonl", {"kind": "event", "event": "new round", "round": 2})
    begin_round(run, ASKED, stages=STAGES)
    assert len([line for line in read_lines(run / "ledger.jsonl") if line.get("event") == "new round"]) == 1
    assert read_json(run / "round.json")["number"] == 2
