"""Two ledgers, several writers, kills at random instants, clocks that jump: no second is lost beyond the last interval, none doubled."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.launch_ranks import ATTEMPT_VARIABLE, METERED_VARIABLE, metered, run_ranks
from megatron_cpt.meter import ledger as ledger_module
from megatron_cpt.meter.attempts import attempts_in, attempts_of, attempts_of_project, week_of
from megatron_cpt.meter.energy import Part, joules_of
from megatron_cpt.meter.here import boot_id
from megatron_cpt.meter.killed import seconds_between, settle
from megatron_cpt.meter.ledger import Planned, Site, attempt
from megatron_cpt.meter.nodes import metered_node, readings_of
from megatron_cpt.meter.totals import totals, totals_by
from megatron_cpt.record.store import append_line, read_lines, read_lines_and_torn
from megatron_cpt.record.unknown import Figure, Unavailable

ROOT = Path(__file__).parents[3]
BEAT = 0.05
WRITER = f"""
import pathlib, sys, time
from megatron_cpt.meter.ledger import attempt
run = pathlib.Path(sys.argv[1])
while True:
    with attempt(run, "train", num_ranks=2, usd_per_device_hour=3600.0, beat_seconds={BEAT}, project_dir=run.parent) as entry:
        begin = time.monotonic()
        print("start", entry.attempt_id, 0, flush=True)
        while time.monotonic() - begin < 0.3:
            time.sleep(0.01)
            entry.tokens += 1
            print("alive", entry.attempt_id, entry.seconds, flush=True)
    print("end", entry.attempt_id, entry.seconds, flush=True)
"""


def test_writers_that_are_killed_at_random_instants_lose_their_last_interval_at_most(tmp_path: Path) -> None:
    """Two writers on one run and one on another, all on one project's ledger; each is killed and started again several times."""
    chance = random.Random(20261129)
    runs = [tmp_path / "one", tmp_path / "one", tmp_path / "two"]
    said: list[str] = []
    for _ in range(4):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        commands = [[sys.executable, "-c", WRITER, str(run)] for run in runs]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for command in commands]
        begun = [process.stdout.readline() for process in processes if process.stdout is not None]  # python itself takes its time to start
        said += begun
        for process in sorted(processes, key=lambda _: chance.random()):
            time.sleep(chance.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
        for process in processes:
            said += process.communicate()[0].splitlines()
    alive: dict[str, float] = {}
    ended: dict[str, float] = {}
    for words in (line.split() for line in said):
        if len(words) == 3:  # the last line may be torn
            (ended if words[0] == "end" else alive)[words[1]] = float(words[2])
    for run in set(runs):
        settle(run, project_dir=tmp_path)
    project = {record.attempt_id: record for record in attempts_of_project(tmp_path)}
    by_run = [record for run in sorted(set(runs)) for record in attempts_of(run)]
    assert {record.attempt_id for record in by_run} == project.keys() >= alive.keys()  # every attempt, each once
    assert len(by_run) == len(project)
    durable = {record.attempt_id: record for record in attempts_in(read_lines(tmp_path / "ledger.jsonl"))}
    assert durable.keys() == project.keys()  # the project's ledger alone has them all, and would without the runs' folders
    for attempt_id, seconds in alive.items():
        record = project[attempt_id]
        if attempt_id in ended:
            assert record.status == "finished"
            assert record.seconds == pytest.approx(ended[attempt_id], abs=0.5)
        elif record.status == "killed":
            proven = 0.0 if isinstance(record.seconds, Unavailable) else record.seconds
            assert seconds - proven < BEAT + 0.5  # the interval, and what a busy machine needs to sync a line
            assert proven <= seconds + BEAT + 0.5
    statuses = {record.status for record in project.values()}
    assert {"killed", "finished"} >= statuses
    assert "killed" in statuses
    for path in (*(run / "ledger.jsonl" for run in set(runs)), tmp_path / "ledger.jsonl"):
        lines, torn = read_lines_and_torn(path)
        assert not torn or max(torn) <= len(lines) + len(torn)
        assert len(lines) > 4


def test_a_deleted_run_stays_on_the_projects_bill_and_is_not_doubled_while_it_is_there(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with attempt(run, "corpus", num_ranks=3, usd_per_device_hour=1.0, project_dir=run.parent):
        time.sleep(0.02)
    (there,) = attempts_of_project(run.parent)
    (run / "ledger.jsonl").unlink()
    assert attempts_of_project(run.parent) == [there]
    assert (there.run, there.status, there.num_ranks) == ("one", "finished", 3)


def test_settling_brings_an_older_run_onto_the_projects_bill_once(tmp_path: Path) -> None:
    run = tmp_path / "old"
    with attempt(run, "vocab", num_ranks=1, usd_per_device_hour=1.0, beat_seconds=None):
        pass
    for _ in range(2):
        settle(run, project_dir=tmp_path)
    assert [line["kind"] for line in read_lines(tmp_path / "ledger.jsonl")] == ["start", "end"]
    assert {line["run"] for line in read_lines(tmp_path / "ledger.jsonl")} == {"old"}


def test_a_torn_last_line_is_closed_told_and_no_later_line_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, {"kind": "event"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind":"end","attempt":"x","sec')
    append_line(path, {"kind": "event", "number": 2})
    lines, torn = read_lines_and_torn(path)
    assert ([line.get("number") for line in lines], torn) == ([None, 2], [2])
    settle(tmp_path)
    assert "line 2 was torn" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_still_takes_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for count in range(3):
        append_line(tmp_path / "ledger.jsonl", {"count": count})
    assert [line["count"] for line in read_lines(tmp_path / "ledger.jsonl")] == [0, 1, 2]


def test_lines_of_processes_without_locks_never_mix(tmp_path: Path) -> None:
    code = (
        "import errno, fcntl, pathlib, sys\n"
        "def refuse(*_): raise OSError(errno.ENOLCK, 'no locks')\n"
        "fcntl.flock = refuse\n"
        "from megatron_cpt.record.store import append_line\n"
        "for n in range(100): append_line(pathlib.Path(sys.argv[1]), {'by': sys.argv[2], 'n': n, 'pad': 'x' * 3000})\n"
    )
    path = tmp_path / "ledger.jsonl"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], env=os.environ | {"PYTHONPATH": str(ROOT)}) for name in ("a", "b")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    lines, torn = read_lines_and_torn(path)
    assert torn == []
    assert {name: [line["n"] for line in lines if line["by"] == name] for name in ("a", "b")} == {
        "a": list(range(100)),
        "b": list(range(100)),
    }


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, {"kind": "event"})
    before, real, calls = path.read_bytes(), os.write, []

    def write(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, {"kind": "end"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("jump", [-7200.0, 86400.0])
def test_a_clock_that_jumps_changes_no_second_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(ledger_module.time, "time", lambda: real() + ahead[0])
    with attempt(tmp_path, "train", num_ranks=1, usd_per_device_hour=3600.0, beat_seconds=None):
        ahead[0] = jump
    (record,) = attempts_of(tmp_path)
    assert isinstance(record.seconds, float)
    assert 0 <= record.seconds < 5
    assert record.usd == pytest.approx(record.seconds)
    assert record.clock_jump_seconds == pytest.approx(jump, abs=1)


def test_a_steady_clock_is_not_called_a_jump(tmp_path: Path) -> None:
    with attempt(tmp_path, "train", num_ranks=1, usd_per_device_hour=1.0, beat_seconds=None):
        pass
    assert attempts_of(tmp_path)[0].clock_jump_seconds == 0.0
    assert "clock_jump_seconds" not in read_lines(tmp_path / "ledger.jsonl")[-1]


def test_the_start_of_ranks_is_timed_by_the_steady_clock_where_both_sides_have_it() -> None:
    start = {"time": 1000.0, "monotonic": 50.0, "boot_id": "b"}
    assert seconds_between(start, {"time": 9000.0, "monotonic": 57.0, "boot_id": "b"}) == 7.0  # the wall clock was set
    assert seconds_between(start, {"time": 1007.0, "monotonic": 3.0, "boot_id": "other"}) == 7.0  # another machine
    assert seconds_between(start, {"time": 900.0, "monotonic": None, "boot_id": "other"}) == 0.0


class Meter:
    """A meter of some GPUs that says what the test says."""

    scope = "a test"

    def __init__(self, joules: float, measured: int, of: int, *, reasons: tuple[str, ...] = ()) -> None:
        self.part = Part("gpu", joules, measured, of, "counter", reasons=reasons)

    def parts(self) -> tuple[Part, ...]:
        return (self.part,)

    def read(self) -> Figure:
        return joules_of(self.parts(), kind="gpu")


def test_the_bill_has_energy_carbon_and_plan_of_an_attempt_by_hand(tmp_path: Path) -> None:
    """7.2 MJ are 2 kWh; with a PUE of 1.5 these are 3 kWh at the site, and 900 g at 300 g a kWh."""
    site = Site(tariff="mine", pue=1.5, grid_g_co2e_per_kwh=300.0)
    planned = Planned(10.0, 100, 5.0, 2.0, 600.0)
    with attempt(
        tmp_path, "train", num_ranks=8, usd_per_device_hour=2.0, meter=Meter(7.2e6, 8, 8), device="gpu", site=site, planned=planned
    ):
        pass
    end = read_lines(tmp_path / "ledger.jsonl")[-1]
    assert (end["joules"], end["kwh"], end["site_kwh"], end["g_co2e"]) == (7.2e6, 2.0, 3.0, 900.0)
    (record,) = attempts_of(tmp_path)
    assert (record.site_kwh, record.g_co2e, record.tariff, record.share_measured) == (3.0, 900.0, "mine", 1.0)
    assert record.planned == {"seconds": 10.0, "tokens": 100, "usd": 5.0, "kwh": 2.0, "g_co2e": 600.0}
    assert record.user
    assert "estimated_joules" not in end


def test_a_node_is_metered_once_and_several_nodes_add_up_with_the_silent_one_told(tmp_path: Path) -> None:
    """Three nodes of eight GPUs: the command's own, one that writes its readings (8 ranks on it), and one that is silent."""
    options: dict[str, Any] = {"num_ranks": 24, "num_nodes": 3, "device": "gpu", "usd_per_device_hour": 1.0, "beat_seconds": None}
    with attempt(tmp_path, "train", meter=Meter(3.6e6, 8, 8), **options) as entry:
        for local_rank in range(8):
            where = {"backend": "cuda", "attempt_id": entry.attempt_id, "command_boot": "first", "local_rank": local_rank}
            with metered_node(tmp_path, **where, meter=Meter(3.6e6, 6, 8, reasons=("GPU is lost",)), this_boot="second"):
                pass
            with metered_node(tmp_path, **where, meter=Meter(3.6e6, 8, 8), this_boot="first"):  # the command's own node
                pass
    (record,) = attempts_of(tmp_path)
    assert record.joules == 7.2e6
    total = totals([record], stage="train").joules
    assert total.show("{:.1f} kWh", 1 / 3.6e6) == "2.0 kWh of 14 of 24 GPUs (the rest unknown: GPU is lost; no meter spoke for 8 GPUs)"
    assert not (tmp_path / "energy").exists()


def test_a_killed_attempt_keeps_the_energy_of_its_last_heartbeat_and_of_its_other_nodes(tmp_path: Path) -> None:
    start = {"kind": "start", "attempt": "a", "stage": "train", "time": 1.0, "num_ranks": 16, "num_nodes": 2, "device": "gpu"}
    part = {"kind": "gpu", "joules": 1000.0, "measured": 8, "of": 8, "method": "counter"}
    append_line(tmp_path / "ledger.jsonl", start)
    append_line(tmp_path / "ledger.jsonl", {"kind": "beat", "attempt": "a", "seconds": 60.0, "tokens": 5, "energy": [part]})
    node = tmp_path / "energy" / "a" / "second.json"
    node.parent.mkdir(parents=True)
    node.write_text(json.dumps([{**part, "joules": 500.0}]), encoding="utf-8")
    (seen,) = attempts_of(tmp_path)
    settle(tmp_path)
    (settled,) = attempts_of(tmp_path)
    assert seen == settled
    assert (settled.status, settled.seconds, settled.joules, settled.is_lower_bound) == ("killed", 60.0, 1500.0, True)
    assert not node.exists()


def test_a_machine_without_a_meter_says_so_and_its_estimate_is_in_no_sum(tmp_path: Path) -> None:
    with attempt(tmp_path, "corpus", num_ranks=1, usd_per_device_hour=1.0, beat_seconds=None):
        sum(range(10**6))
    (record,) = attempts_of(tmp_path)
    assert isinstance(record.joules, Unavailable)
    assert record.estimated_joules is not None
    assert record.estimated_joules > 0
    assert "estimate" in record.estimate_method
    total = totals([record], stage="corpus")
    assert (total.joules.num_known, total.joules.value, total.num_estimated) == (0, 0.0, 1)


def test_groups_hold_every_attempt_once() -> None:
    lines: list[dict[str, Any]] = [
        {
            "kind": "start", "attempt": str(number), "run": run, "stage": stage, "user": user, "time": began, "num_ranks": 1,
            "tariff": tariff,
        }
        for number, (run, stage, user, began, tariff) in enumerate([
            ("r", "train", "ann", 1795936000.0, "cheap"),  # Sunday 2026-11-29 07:06 UTC
            ("r", "eval", "ann", 1796000000.0, "dear"),  # Monday 2026-11-30 00:53 UTC, the next week
            ("q", "train", "bob", 1796000000.0, "dear"),
        ])
    ]  # fmt: skip
    lines += [{"kind": "beat", "attempt": str(number), "seconds": 10.0 * (number + 1)} for number in range(3)]
    records = attempts_in(lines)
    assert [week_of(record) for record in records] == ["2026-W48", "2026-W49", "2026-W49"]
    for key, expected in {
        "run": {("r",): 30.0, ("q",): 30.0},
        "stage": {("train",): 40.0, ("eval",): 20.0},
        "user": {("ann",): 30.0, ("bob",): 30.0},
        "week": {("2026-W48",): 10.0, ("2026-W49",): 50.0},
        "tariff": {("cheap",): 10.0, ("dear",): 50.0},
    }.items():
        assert {name: total.seconds.value for name, total in totals_by(records, [key])} == expected
    assert len(totals_by(records, ["user", "week"])) == 3


def test_the_first_rank_of_another_machine_writes_what_the_command_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real launcher's variables reach the ranks; on the command's own machine they write nothing."""
    launcher = tmp_path / "launcher.sh"
    launcher.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\n", encoding="utf-8")
    launcher.chmod(0o755)
    assert run_ranks("a.module", [], ranks_per_node=1, threads_per_rank=1, launcher=str(launcher), attempt_id="abc") == 0
    lines = (tmp_path / "environment").read_text(encoding="utf-8").splitlines()
    asked = {name: line.partition("=")[2] for name in (ATTEMPT_VARIABLE, METERED_VARIABLE) for line in lines if line.startswith(f"{name}=")}
    assert asked == {ATTEMPT_VARIABLE: "abc", METERED_VARIABLE: boot_id()}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with metered(tmp_path, backend="cpu"):
        pass
    assert not (tmp_path / "energy").exists()
    monkeypatch.setenv(METERED_VARIABLE, "another machine's")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with metered(tmp_path, backend="cpu"):
        pass
    assert not (tmp_path / "energy").exists()
    monkeypatch.setenv("LOCAL_RANK", "0")
    with metered(tmp_path, backend="cpu"):
        pass
    (part,) = readings_of(tmp_path, "abc")
    assert (part.kind, part.of) == ("cpu", 1)


def test_an_attempt_that_still_runs_is_not_called_killed(tmp_path: Path) -> None:
    with attempt(tmp_path, "train", num_ranks=1, usd_per_device_hour=1.0, beat_seconds=None):
        (record,) = attempts_of(tmp_path)
    assert record.status == "running"
    assert record.seconds == Unavailable("still running, and before its first heartbeat")
    assert record.joules == Unavailable("still running, and not read yet")


@pytest.mark.parametrize(("since", "status"), [(10.0, "running"), (80.0, "running"), (200.0, "killed")])
def test_an_attempt_on_another_machine_runs_as_long_as_its_heart_beats(since: float, status: str) -> None:
    """A login node sees no process of a compute node; a beat is due every 30 s."""
    began = time.time() - 500
    start = {"kind": "start", "attempt": "a", "run": "r", "stage": "train", "time": began, "host": "n1", "pid": os.getpid(), "num_ranks": 4}
    beat = {"kind": "beat", "attempt": "a", "time": time.time() - since, "seconds": 500 - since, "tokens": 7}
    (record,) = attempts_in([start, beat])
    assert (record.status, record.seconds, record.tokens) == (status, 500 - since, 7)
