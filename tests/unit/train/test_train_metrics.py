"""No step appears twice in the metrics, and lost time is not forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from megatron_cpt.record.store import append_line, read_lines
from megatron_cpt.train.hooks import MetricsFile, TrainingClock, short_duration
from megatron_cpt.train.metrics import SHOWN, rewind, unseen_events
from megatron_cpt.train.state import StepResult, TrainState


def fill(path: Path, steps: range) -> None:
    for step in steps:
        append_line(path, {"kind": "step", "step": step, "elapsed_seconds": step * 10.0})


def test_records_after_the_resumed_step_go_and_their_time_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path, range(1, 8))
    append_line(path, {"kind": "eval", "step": 6, "bits_per_byte": {"law": 1.0}})
    assert rewind(path, step=4) == 70.0
    records = read_lines(path)
    assert [record["step"] for record in records if record["kind"] == "step"] == [1, 2, 3, 4]
    assert not [record for record in records if record["kind"] == "eval"]
    assert records[-1] == {"kind": "resume", "step": 4, "lost_steps": 3, "elapsed_seconds": 70.0}
    assert rewind(path, step=4) == 70.0  # killed again at once: the lost time still counts


def test_a_later_round_goes_on_in_the_same_file_and_drops_only_steps_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"kind": "step", "step": step, "elapsed_seconds": float(step)})
    append_line(path, {"kind": "event", "event": "rollback", "branch": "b"})
    for step in (2, 3):
        append_line(path, {"kind": "step", "step": step, "round": 2, "elapsed_seconds": 3.0 + step})
    assert rewind(path, step=2, round_number=2) == 6.0  # all rounds together
    kept = [(record["kind"], record.get("round", 1), record.get("step")) for record in read_lines(path)]
    assert kept == [("step", 1, 1), ("step", 1, 2), ("step", 1, 3), ("event", 1, None), ("step", 2, 2), ("resume", 2, 2)]
    assert read_lines(path)[-1]["lost_steps"] == 1


def test_events_that_were_shown_at_once_are_not_shown_again() -> None:
    attempt, event = {"kind": "attempt"}, {"kind": "event", "event": "rollback"}
    later = {"kind": "event", "event": "new round"}
    assert unseen_events([event, attempt, event, later]) == [event, later]
    assert unseen_events([attempt, event, {"kind": SHOWN, "events": 1}, later]) == [later]
    assert unseen_events([event, {"kind": SHOWN}, attempt]) == []


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path, range(1, 4))
    with path.open("a") as file:
        file.write('{"kind":"step","step":4,"ela')
    rewind(path, step=3)
    assert [record["step"] for record in read_lines(path) if record["kind"] == "step"] == [1, 2, 3]


def test_a_fresh_run_has_used_no_time(tmp_path: Path) -> None:
    assert rewind(tmp_path / "metrics.jsonl", step=0) == 0.0
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_step_is_recorded_with_counts_of_the_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    hook = MetricsFile(path, sources=["law", "talk"], licences=["CC0-1.0", "CC0-1.0"], clock=TrainingClock())
    state = TrainState(step=9, samples_seen=72, source_samples=(50, 22), source_tokens=(500, 220))
    hook.on_start(state)
    hook.after_step(state.after(StepResult(2.5, 1.5, 1e-4, 0.5, (6, 2), (60, 20), (90.0, 40.0), (60, 10))))
    (record,) = read_lines(path)
    assert record["elapsed_seconds"] >= 0
    del record["elapsed_seconds"]
    assert record == {
        "kind": "step", "step": 10, "samples": 80, "tokens": 800, "loss": 2.5, "lr": 1e-4, "grad_norm": 1.5, "seconds": 0.5,
        "tokens_per_second": 160.0, "source_samples": {"law": 56, "talk": 24}, "source_tokens": {"law": 560, "talk": 240},
        "source_loss": {"law": 1.5, "talk": 4.0}, "licence_tokens": {"CC0-1.0": 800}, "is_skipped": False, "skipped_steps": 0,
    }  # fmt: skip


def test_a_rate_of_the_embeddings_own_is_recorded_where_there_is_one(tmp_path: Path) -> None:
    hook = MetricsFile(tmp_path / "metrics.jsonl", sources=["law"], licences=["CC0-1.0"], clock=TrainingClock())
    state = TrainState(step=9, samples_seen=72, source_samples=(72,), source_tokens=(720,))
    hook.on_start(state)
    result = StepResult(2.5, 1.5, 1e-4, 0.5, (8,), (80,))
    hook.after_step(state.after(result))
    hook.after_step(state.after(replace(result, embedding_learning_rate=5e-5)))
    plain, apart = read_lines(tmp_path / "metrics.jsonl")
    assert (plain["lr"], "lr_embedding" in plain) == (1e-4, False)
    assert (apart["lr"], apart["lr_embedding"]) == (1e-4, 5e-5)


def test_a_cut_last_line_is_closed_and_the_steps_that_are_done_anew_stand_there_once(tmp_path: Path) -> None:
    """A crash in the middle of the line of step 7; the checkpoint is of step 4."""
    path = tmp_path / "metrics.jsonl"
    fill(path, range(1, 7))
    with path.open("ab") as file:
        file.write(b'{"kind":"step","step":7,"loss":2.\xc3')
    hook = MetricsFile(path, sources=["law"], licences=["CC0-1.0"], clock=TrainingClock())
    state = TrainState(step=4, samples_seen=32, source_samples=(32,), source_tokens=(320,))
    hook.on_start(state)
    for _ in range(3):
        state = state.after(StepResult(2.5, 1.5, 1e-4, 0.5, (8,), (80,)))
        hook.after_step(state)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]  # every line is whole again
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6, 7]
    assert [(line["step"], line["lost_steps"]) for line in lines if line["kind"] == "resume"] == [(4, 2)]
    assert lines[-1]["elapsed_seconds"] >= 60.0  # the time of the two lost steps is not forgotten


def test_durations_are_short() -> None:
    assert [short_duration(seconds) for seconds in (0, 59.6, 61, 3600, 90000)] == ["0m00s", "1m00s", "1m01s", "1h00m", "25h00m"]
