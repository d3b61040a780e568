"""Slurm's accounting beside the ledger: jobs that died before writing are on the bill once, steps and requeues never double."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.errors import DataError
from megatron_cpt.meter.attempts import attempts_of, attempts_of_project
from megatron_cpt.meter.ledger import attempt
from megatron_cpt.meter.slurm import ask_sacct, import_jobs, note_jobs, parse_sacct
from megatron_cpt.meter.totals import totals
from megatron_cpt.record.store import append_line, read_lines
from megatron_cpt.record.unknown import Unavailable

# As Slurm 22.05 prints it (--parsable2): a job that was requeued and then completed, its steps, a job that ran out of time, one whose
# node died, one that never began, and an element of an array. Energy by the ibmaem plugin in joules.
HEAD = "JobIDRaw|JobID|User|State|ExitCode|Start|ElapsedRaw|NNodes|AllocTRES|ConsumedEnergyRaw"
TEXT = f"""{HEAD}
1|1|root|REQUEUED|0:0|2026-11-25T02:22:00|60|2|billing=4,cpu=4,energy=23686,gres/gpu=4,mem=2000M,node=2|23686
1|1|root|COMPLETED|0:0|2026-11-25T02:23:09|37|2|billing=4,cpu=4,energy=14754,gres/gpu=4,mem=2000M,node=2|14754
1.batch|1.batch||COMPLETED|0:0|2026-11-25T02:23:09|37|1|cpu=2,mem=1000M,node=1|7400
1.0|1.0||COMPLETED|0:0|2026-11-25T02:23:11|35|2|cpu=4,gres/gpu=4,mem=2000M,node=2|14754
2|2|root|TIMEOUT|0:0|2026-11-25T03:00:00|83|1|billing=2,cpu=2,gres/gpu:h100=4,mem=1000M,node=1|4294967294
3|3|root|NODE_FAIL|1:0|2026-11-25T04:00:00|31|2|cpu=4,gres/gpu=4,gres/gpu:h100=4,node=2|
4|4|root|PENDING|0:0|Unknown|0|1||
5|14_2|nobody|CANCELLED by 1000|0:15|2026-11-25T05:00:00|12|1|cpu=1,node=1|18446744073709551614
"""


def test_every_run_of_a_job_is_read_once_and_steps_are_inside_it() -> None:
    jobs = parse_sacct(TEXT, where="test")
    assert [(job.job_id, job.restart, job.state, job.seconds, job.num_gpus) for job in jobs] == [
        ("1", 0, "REQUEUED", 60.0, 4),
        ("1", 1, "COMPLETED", 37.0, 4),
        ("2", 0, "TIMEOUT", 83.0, 4),
        ("3", 0, "NODE_FAIL", 31.0, 4),  # the plain count and the one by type are the same GPUs
        ("5", 0, "CANCELLED", 12.0, 0),
    ]
    assert [job.joules for job in jobs[:2]] == [23686.0, 14754.0]  # 38,440 J together: no batch step, no numbered step beside it
    assert [isinstance(job.joules, Unavailable) for job in jobs[2:]] == [True, True, True]  # NO_VAL, empty, its 64-bit form


def test_energy_of_the_numbered_steps_stands_in_for_a_job_without_one() -> None:
    """200 W on two nodes for 15 s: steps of 4040 and 2020 J; the batch step's 3030 J are one node's share of the same."""
    rows = ("7|COMPLETED|15|", "7.batch|COMPLETED|15|3030", "7.0|COMPLETED|10|4040", "7.1|COMPLETED|5|2020")
    text = "\n".join(("JobIDRaw|State|ElapsedRaw|ConsumedEnergyRaw", *rows))
    assert parse_sacct(text, where="test")[0].joules == 6060.0


def test_a_counter_that_wrapped_is_unknown_and_no_energy_of_a_city() -> None:
    """What Slurm 22.05 printed of a job of 76 s on two nodes whose meter was read while it showed 0: three times 2^64 microjoules."""
    text = "JobIDRaw|State|ElapsedRaw|NNodes|ConsumedEnergyRaw\n8|COMPLETED|76|2|55340232178328\n9|COMPLETED|76|2|1500000\n"
    wrapped, high = parse_sacct(text, where="test")
    assert isinstance(wrapped.joules, Unavailable)
    assert "reset or wrapped" in wrapped.joules.reason
    assert high.joules == 1_500_000.0  # 9.9 kW a node: eight hot GPUs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column JobIDRaw, State, ElapsedRaw"),
        ("JobID State\n1 COMPLETED\n", "no column"),
        ("JobIDRaw|State|ElapsedRaw\n1|COMPLETED\n", "number of fields"),
        ('{"jobs": []}', "no column"),
    ],
)
def test_other_text_than_sacct_is_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_sacct(text, where="test")


def test_a_machine_without_sacct_says_what_to_do() -> None:
    with pytest.raises(DataError, match="--sacct FILE"):
        ask_sacct(["1"], command="no-such-sacct")


def write_start(run: Path, name: str, job_id: str, restart: int, *, began: float, **more: Any) -> None:
    append_line(
        run / "ledger.jsonl",
        {
            "kind": "start", "attempt": name, "run": run.name, "stage": "train", "time": began, "user": "root", "num_ranks": 4,
            "device": "gpu", "usd_per_device_hour": 3600.0, "slurm": {"job_id": job_id, "restart": restart}, **more,
        },
    )  # fmt: skip


def began(text: str) -> float:
    (job,) = parse_sacct(f"JobIDRaw|State|ElapsedRaw|Start\n1|FAILED|1|{text}\n", where="test")
    assert job.began is not None
    return job.began


def test_a_job_that_died_before_it_wrote_is_on_the_bill_once(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    note_jobs(run, {"train": "2", "eval": "3;cluster"})
    jobs = parse_sacct(TEXT, where="test")
    assert import_jobs(run, jobs, project_dir=tmp_path) == 2  # jobs 1 and 5 are nobody's here
    assert import_jobs(run, jobs, project_dir=tmp_path) == 0
    records = attempts_of(run)
    assert [(record.stage, record.status, record.seconds, record.device_seconds) for record in records] == [
        ("train", "failed", 83.0, 332.0),
        ("eval", "failed", 31.0, 124.0),
    ]
    assert attempts_of_project(tmp_path) == records
    assert all(isinstance(record.usd, Unavailable) and isinstance(record.joules, Unavailable) for record in records)
    assert totals(records, stage="all").seconds.value == 114.0


def test_a_killed_attempt_lasted_to_the_end_of_its_job_and_has_its_energy(tmp_path: Path) -> None:
    """The job began 10 s before the command; the command died with it after 60 s. The requeued run wrote an end of its own."""
    at = began("2026-11-25T02:22:00")
    write_start(tmp_path, "first", "1", 0, began=at + 10)
    append_line(tmp_path / "ledger.jsonl", {"kind": "beat", "attempt": "first", "stage": "train", "seconds": 30.0, "tokens": 9})
    write_start(tmp_path, "second", "1", 1, began=at + 70)
    end = {
        "kind": "end",
        "attempt": "second",
        "stage": "train",
        "status": "finished",
        "num_ranks": 4,
        "seconds": 30.0,
        "device_seconds": 120.0,
    }
    append_line(tmp_path / "ledger.jsonl", {**end, "tokens": 9, "joules": 5000.0, "usd": 120.0, "exit_code": 0, "planned": None})
    jobs = parse_sacct(TEXT, where="test")
    before = attempts_of(tmp_path)[0]
    assert (before.seconds, before.is_lower_bound, before.status) == (30.0, True, "killed")
    assert import_jobs(tmp_path, jobs, project_dir=None) == 1  # the second one wrote all itself
    first, second = attempts_of(tmp_path)
    assert (first.status, first.seconds, first.device_seconds, first.usd) == ("stopped", 50.0, 200.0, 200.0)
    assert (first.joules, first.tokens, first.is_lower_bound) == (23686.0, 9, False)
    assert (second.status, second.seconds, second.joules) == ("finished", 30.0, 5000.0)
    assert import_jobs(tmp_path, jobs, project_dir=None) == 0


def test_of_several_attempts_in_one_job_only_the_last_lived_to_its_end(tmp_path: Path) -> None:
    at = began("2026-11-25T03:00:00")
    write_start(tmp_path, "a", "2", 0, began=at + 3)
    append_line(tmp_path / "ledger.jsonl", {"kind": "beat", "attempt": "a", "stage": "train", "seconds": 20.0, "tokens": 0})
    write_start(tmp_path, "b", "2", 0, began=at + 43)
    assert import_jobs(tmp_path, parse_sacct(TEXT, where="test"), project_dir=None) == 1
    assert [record.seconds for record in attempts_of(tmp_path)] == [20.0, 40.0]  # 83 - 43; 60 of 83 seconds, none twice


def test_slurms_energy_fills_in_for_a_machine_without_a_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with attempt(tmp_path, "train", num_ranks=4, usd_per_device_hour=1.0, device="gpu", beat_seconds=None):
        pass
    assert isinstance(attempts_of(tmp_path)[0].joules, Unavailable)
    assert import_jobs(tmp_path, parse_sacct(TEXT, where="test"), project_dir=None) == 2  # and job 1's first run, in which no attempt began
    first, second = sorted(attempts_of(tmp_path), key=lambda record: record.job_restart)
    assert (first.status, first.seconds, first.num_ranks) == ("stopped", 60.0, 4)
    assert (second.status, second.joules, second.share_measured) == ("finished", 14754.0, 1.0)
    assert "Slurm" in second.parts[0].method
    assert isinstance(second.seconds, float)
    assert second.seconds < 5  # its own figures stand
    assert first.usd == pytest.approx(60 * 4 / 3600)  # at the price of the run


def test_a_job_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    note_jobs(tmp_path, {"train": "9"})
    text = "JobIDRaw|State|ElapsedRaw\n9|RUNNING|50\n"
    assert import_jobs(tmp_path, parse_sacct(text, where="test"), project_dir=None) == 0
    assert [line["kind"] for line in read_lines(tmp_path / "ledger.jsonl")] == ["submitted"]


def test_sacct_is_asked_for_the_jobs_alone_with_duplicates_and_times_in_seconds(tmp_path: Path) -> None:
    command = tmp_path / "sacct"
    said = 'echo "JobIDRaw|State|ElapsedRaw|Start"\necho "7|FAILED|9|1795936000"\n'
    command.write_text(f'#!/bin/sh\necho "$SLURM_TIME_FORMAT $*" > {tmp_path}/asked\n{said}')
    command.chmod(0o755)
    (job,) = parse_sacct(ask_sacct(["7", "8"], command=str(command)), where="sacct")
    assert (job.began, job.seconds) == (1795936000.0, 9.0)
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("%s --duplicates --parsable2 --format=JobIDRaw,")
    assert "--jobs=7,8" in asked
    command.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurmdbd' >&2\nexit 1\n")
    with pytest.raises(DataError, match="Unable to contact slurmdbd"):
        ask_sacct(["7"], command=str(command))


def test_a_run_that_was_put_back_within_its_first_second_counts_as_a_start_and_costs_nothing(tmp_path: Path) -> None:
    """The second start wrote its own end: taken for the first one, it would be on the bill twice."""
    rows = ("7|REQUEUED|0|2026-11-25T05:00:00", "7|COMPLETED|9|2026-11-25T05:00:20", "8|CANCELLED by 0|0|2026-11-25T05:00:00")
    (job,) = parse_sacct("\n".join(("JobIDRaw|State|ElapsedRaw|Start", *rows)), where="test")
    assert (job.job_id, job.restart, job.seconds) == ("7", 1, 9.0)


ARRAY = f"""{HEAD}
31|30_0|root|COMPLETED|0:0|2026-11-25T05:00:00|12|1|cpu=1,node=1|2400
32|30_1|root|NODE_FAIL|1:0|2026-11-25T05:00:00|7|1|cpu=1,node=1|1400
32|30_1|root|COMPLETED|0:0|2026-11-25T05:01:00|11|1|cpu=1,node=1|2200
30|30_2|root|FAILED|0:9|2026-11-25T05:00:00|3|1|cpu=1,node=1|600
30.batch|30_2.batch||FAILED|0:9|2026-11-25T05:00:00|3|1|cpu=1,node=1|600
33|33|root|COMPLETED|0:0|2026-11-25T05:02:00|5|1|cpu=8,node=1|1000
"""


def test_elements_of_an_array_are_on_the_bill_of_its_stage_once_each_beside_the_stages_own_job(tmp_path: Path) -> None:
    """Element 0 wrote its own end, element 1 lost a node before it wrote a word and wrote its end in its second start, element 2 was
    killed before it wrote; job 33 is the stage's own. The last element bears the array's id as its raw one."""
    note_jobs(tmp_path, {"index": "30"})
    note_jobs(tmp_path, {"index": "33"})
    at = began("2026-11-25T05:00:00")
    for name, job_id, restart, seconds in (("a", "31", 0, 11.0), ("b", "32", 1, 10.0), ("own", "33", 0, 4.0)):
        write_start(tmp_path, name, job_id, restart, began=at + 1, stage="index", device="cpu", num_ranks=1)
        end = {"kind": "end", "attempt": name, "stage": "index", "status": "finished", "num_ranks": 1, "seconds": seconds}
        more = {"device_seconds": seconds, "tokens": 5, "joules": {"unavailable": "no meter"}, "usd": 1.0, "exit_code": 0, "planned": None}
        append_line(tmp_path / "ledger.jsonl", {**end, **more})
    jobs = parse_sacct(ARRAY, where="test")
    assert import_jobs(tmp_path, jobs, project_dir=None) == 3  # two that wrote nothing, and the energy of the stage's own job
    assert import_jobs(tmp_path, jobs, project_dir=None) == 0
    found = {record.attempt_id: (record.stage, record.status, record.seconds) for record in attempts_of(tmp_path)}
    assert found == {
        "a": ("index", "finished", 11.0), "b": ("index", "finished", 10.0), "own": ("index", "finished", 4.0),
        "slurm-32-0": ("index", "failed", 7.0), "slurm-30-0": ("index", "failed", 3.0),
    }  # fmt: skip
    joules = {record.attempt_id: record.joules for record in attempts_of(tmp_path)}
    assert joules["own"] == 1000.0
    assert all(isinstance(joules[name], Unavailable) for name in ("a", "b", "slurm-32-0", "slurm-30-0"))  # they shared nodes
