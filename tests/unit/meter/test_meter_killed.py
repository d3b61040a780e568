"""What a killed attempt of training consumed is on the bill once, beside what ended up in weights."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.meter.account import account_text
from megatron_cpt.meter.attempts import attempts_in, attempts_of
from megatron_cpt.meter.here import process_start
from megatron_cpt.meter.killed import consumption_of, recovered_lines, settle
from megatron_cpt.meter.ledger import attempt
from megatron_cpt.meter.totals import totals_by_stage
from megatron_cpt.record.store import append_line, read_lines
from megatron_cpt.record.unknown import Unavailable


def start(attempt_id: str, *, stage: str = "train", at: float = 1000.0, **process: Any) -> dict[str, Any]:
    return {"kind": "start", "attempt": attempt_id, "stage": stage, "time": at, "num_ranks": 2, "usd_per_device_hour": 3600.0} | process


def head(attempt_id: str | None, *, step: int, at: float, elapsed: float = 0.0) -> dict[str, Any]:
    return {
        "kind": "attempt", "attempt_id": attempt_id, "step": step, "time": at, "elapsed_seconds": elapsed,
        "source_tokens": {"law": 60 * step, "web": 40 * step}, "licence_tokens": {"CC0-1.0": 100 * step},
    }  # fmt: skip


def step(number: int, *, elapsed: float, joules: float | None = 5.0) -> dict[str, Any]:
    return {
        "kind": "step", "step": number, "elapsed_seconds": elapsed, "joules": joules,
        "source_tokens": {"law": 60 * number, "web": 40 * number}, "licence_tokens": {"CC0-1.0": 100 * number},
    }  # fmt: skip


# Killed in its sixth step, after a checkpoint of step 4; the ranks took 7 s to be ready.
FIRST = [head("a", step=0, at=1007.0), *[step(number, elapsed=2.0 * number) for number in range(1, 6)]]


def test_a_killed_attempt_consumed_what_its_steps_say() -> None:
    taken = consumption_of([*FIRST, {"kind": "eval", "step": 5}], "a")
    assert taken is not None
    assert (taken.source_tokens, taken.licence_tokens, taken.tokens) == ({"law": 300, "web": 200}, {"CC0-1.0": 500}, 500)
    assert (taken.start_tokens, taken.training_seconds, taken.joules) == (0, 10.0, 25.0)


def test_only_the_attempts_own_steps_count() -> None:
    second = [*FIRST[:5], {"kind": "resume", "step": 4}, head("b", step=4, at=2007.0, elapsed=10.0), step(5, elapsed=13.0)]
    by_hand_after_it = [head(None, step=5, at=3007.0, elapsed=13.0), step(6, elapsed=20.0)]
    taken = consumption_of([*second, *by_hand_after_it], "b")
    assert taken is not None
    assert (taken.tokens, taken.start_tokens, taken.training_seconds) == (100, 400, 3.0)


def test_an_attempt_that_came_to_no_step_consumed_none_and_one_without_a_record_is_unknown() -> None:
    taken = consumption_of([head("a", step=3, at=1007.0)], "a")
    assert taken is not None
    assert (taken.tokens, taken.start_tokens, taken.joules) == (0, 300, None)
    assert consumption_of(FIRST, "z") is None


def test_energy_that_is_not_known_of_one_step_is_not_known_of_the_attempt() -> None:
    taken = consumption_of([*FIRST, step(6, elapsed=12.0, joules=None)], "a")
    assert taken is not None
    assert taken.joules is None


def test_the_bill_holds_a_killed_attempts_tokens_time_and_energy_as_least_figures() -> None:
    ledger = [start("a"), {"kind": "beat", "attempt": "a", "stage": "train", "seconds": 12.0, "tokens": 0}]
    (record,) = attempts_in([*ledger, *recovered_lines(ledger, FIRST)])
    assert (record.status, record.tokens, record.seconds, record.joules) == ("killed", 500, 17.0, 25.0)  # 7 s and five steps of 2
    assert (record.usd, record.is_lower_bound, record.start_tokens) == (34.0, True, 0)  # two ranks at a dollar a second
    text = account_text("run", totals_by_stage([record]))
    assert "at least 17.0 s" in text
    assert "500" in text


def test_what_was_lost_is_told_from_what_is_in_the_weights() -> None:
    """500 tokens read, 400 of them in the checkpoint that the second attempt began with; it read 600 more up to 1000."""
    end = {
        "kind": "end", "attempt": "b", "stage": "train", "status": "finished", "exit_code": 0, "num_ranks": 2, "seconds": 20.0,
        "device_seconds": 40.0, "tokens": 600, "start_tokens": 400, "joules": 1.0, "usd": 40.0, "planned": None,
    }  # fmt: skip
    ledger = [start("a"), *recovered_lines([start("a")], FIRST), start("b", at=2000.0), end]
    train, whole = totals_by_stage(attempts_in(ledger))
    assert (train.tokens, train.lost_tokens, whole.lost_tokens) == (1100, 100, 100)  # 1100 - 100 = 1000 in the weights
    assert "100 of these tokens: read, and in no weights" in account_text("run", [train, whole])
    assert totals_by_stage(attempts_in(ledger[:2]))[0].lost_tokens == 0  # nothing was done anew yet


def test_an_older_checkpoint_loses_the_steps_of_several_attempts() -> None:
    """Attempts read 500 and 300 up to 400 + 300; the third begins again at 200: 300 of the first's and none of the rest stay."""
    ends = [
        {"kind": "end", "attempt": name, "stage": "train", "tokens": tokens, "start_tokens": begun, "num_ranks": 1}
        for name, tokens, begun in (("a", 500, 0), ("b", 300, 400), ("c", 800, 200))
    ]
    assert totals_by_stage(attempts_in(ends))[0].lost_tokens == 600  # 1600 read, 1000 in the weights


def test_settling_writes_each_killed_attempt_once_and_no_living_or_ended_one(tmp_path: Path) -> None:
    ledger, metrics = tmp_path / "ledger.jsonl", tmp_path / "train" / "metrics.jsonl"
    alive = {"pid": os.getpid(), "host": socket.gethostname(), "process_start": process_start(os.getpid())}
    for line in (start("a"), start("e", stage="eval"), start("living", **alive)):
        append_line(ledger, line)
    for record in [*FIRST, head("living", step=4, at=2000.0), step(5, elapsed=12.0)]:
        append_line(metrics, record)
    assert [record.tokens for record in attempts_of(tmp_path)] == [500, 0, 0]  # seen before it is settled
    settle(tmp_path)
    settle(tmp_path)
    recovered = [line for line in read_lines(ledger) if line["kind"] == "recovered"]
    assert [(line["attempt"], line["tokens"]) for line in recovered] == [("a", 500)]
    metrics.unlink()  # the next attempt drops the steps that it does anew
    assert [record.tokens for record in attempts_of(tmp_path)] == [500, 0, 0]


def test_an_end_that_comes_after_all_counts_alone(tmp_path: Path) -> None:
    with attempt(tmp_path, "train", num_ranks=1, usd_per_device_hour=Unavailable("none"), beat_seconds=None) as entry:
        append_line(tmp_path / "ledger.jsonl", {"kind": "recovered", "attempt": entry.attempt_id, "stage": "train", "tokens": 500})
        entry.tokens, entry.start_tokens = 700, 0
    (record,) = attempts_of(tmp_path)
    assert (record.tokens, record.status) == (700, "finished")
    assert totals_by_stage([record])[0].tokens == pytest.approx(700)
