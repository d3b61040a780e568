"""The table of a line: Slurm's states read once each, and every end told in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_cpt.errors import ConfigError
from megatron_cpt.submit import cancel
from megatron_cpt.submit.cancel import cancel_line
from megatron_cpt.submit.queue import states_of
from megatron_cpt.submit.record import SubmittedJob
from megatron_cpt.submit.status import rows_of, table

JOBS = (
    SubmittedJob("init", "1", (), "afterok"),
    SubmittedJob("train", "2", ("1",), "afterok"),
    SubmittedJob("eval", "3", ("2",), "afterok"),
    SubmittedJob("gate", "4", ("3",), "afterok"),
    SubmittedJob("report", "5", ("4",), "afterany"),
)
# As Slurm 22.05 prints them: a job that was requeued and failed with 75, what waited for it, and the report that ran all the same.
SACCT = """\
1|COMPLETED|00:00:05|n1|None|0:0|2026-11-25T02:22:00
2|REQUEUED|00:01:00|n[1-2]|None|0:0|2026-11-25T02:23:00
2|FAILED|00:00:30|n[1-2]|NonZeroExitCode|75:0|2026-11-25T02:24:30
3|CANCELLED by 0|00:00:00|None assigned|Dependency|0:0|None
4|CANCELLED|00:00:00|None assigned|Dependency|0:0|2026-11-28T10:00:09
5|COMPLETED|00:00:04|spare|None|0:0|2026-11-25T02:25:20
"""


def slurm(sacct: str, squeue: str = "") -> object:
    def call(argv: Sequence[str]) -> str:
        return {"sacct": sacct, "squeue": squeue}[argv[0]]

    return call


def how(sacct: str, squeue: str = "", finished: Sequence[str] = ("init", "report")) -> list[str]:
    states = states_of([job.job_id for job in JOBS], call=slurm(sacct, squeue))  # type: ignore[arg-type]
    return [row.how for row in rows_of(JOBS, states, finished=finished)]


def test_a_stopped_stage_keeps_its_dependants_from_running_and_the_table_says_why() -> None:
    reason = "not run, since train did not finish"
    assert how(SACCT) == ["finished", "stopped with a checkpoint", reason, reason, "finished"]


@pytest.mark.parametrize(
    ("code", "words"), [("1:0", "failed with exit 1: see train-2.out"), ("5:0", "rolled back"), ("6:0", "a stop condition was reached")]
)
def test_finished_stopped_rolled_back_and_failed_are_different_ends(code: str, words: str) -> None:
    assert how(SACCT.replace("75:0", code))[1] == words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("OUT_OF_MEMORY", "killed for memory: ask for more with cluster.memory_gb"),
        ("TIMEOUT", "ended by its time limit"),
        ("NODE_FAIL", "ended by a failed node"),
        ("PREEMPTED", "preempted"),
    ],
)
def test_an_end_that_slurm_made_is_told_in_words_and_stops_what_waits_for_it(state: str, words: str) -> None:
    said = how(SACCT.replace("2|FAILED|00:00:30|n[1-2]|NonZeroExitCode|75:0", f"2|{state}|00:00:30|n[1-2]|None|0:125"))
    assert said[1].startswith(words)
    assert said[2] == "not run, since train did not finish"


def test_a_requeued_job_waits_to_start_again() -> None:
    squeue = "2|PENDING|0:00||BeginTime\n3|PENDING|0:00||Dependency\n99|RUNNING|1:00|n7|None\n"
    assert how(SACCT, squeue)[1:3] == ["waits to start again (BeginTime), started 2 times", "waits (Dependency)"]


def test_a_job_that_runs_again_is_not_taken_for_the_one_that_ended() -> None:
    assert how(SACCT, "2|RUNNING|0:42|n[1-2]|None\n")[1] == "runs, started 2 times"


def test_what_slurm_has_forgotten_is_told_by_the_records_of_the_run() -> None:
    words = how("", finished=("init", "train"))
    assert words[:2] == ["finished", "finished"]
    assert words[2].startswith("unknown: Slurm has forgotten this job")


def test_a_cluster_without_accounting_says_so_where_it_matters() -> None:
    def call(argv: Sequence[str]) -> str:
        if argv[0] == "sacct":
            raise ConfigError("Slurm accounting storage is disabled.")
        return ""

    (row,) = rows_of(JOBS[:1], states_of(["1"], call=call), finished=())
    assert row.how.startswith("unknown: Slurm accounting storage is disabled.")


def test_the_table_is_in_columns() -> None:
    states = states_of([job.job_id for job in JOBS], call=slurm(SACCT))  # type: ignore[arg-type]
    lines = table(rows_of(JOBS, states, finished=("init",))).splitlines()
    assert len({line.index(word) for line, word in zip(lines[1:3], ("COMPLETED", "FAILED"), strict=True)}) == 1


WITH_ARRAY = (
    SubmittedJob("vocab", "1", (), "afterok"),
    SubmittedJob("index", "2", ("1",), "afterok", elements=(0, 1, 2, 3)),
    SubmittedJob("index", "6", ("1",), "afterok", after_any=("2",)),
    SubmittedJob("init", "7", ("6",), "afterok"),
)
# As Slurm 22.05 prints an array: one element done, one requeued and at work, one killed, one waiting.
SACCT_ARRAY = """\
1|COMPLETED|00:00:05|n1|None|0:0|2026-11-25T02:22:00
2_0|COMPLETED|00:00:09|n1|None|0:0|2026-11-25T02:23:00
2_1|NODE_FAIL|00:00:04|n2|None|1:0|2026-11-25T02:23:00
2_1|RUNNING|00:00:04|n1|None|0:0|2026-11-25T02:24:00
2_2|FAILED|00:00:05|n1|RaisedSignal:9(Killed)|0:9|2026-11-25T02:23:00
2_[3]|PENDING|00:00:00|None assigned|Resources|0:0|Unknown
"""
SQUEUE_ARRAY = "2_1|RUNNING|0:04|n1|None\n2_3|PENDING|0:00||Resources\n6|PENDING|0:00||Dependency\n7|PENDING|0:00||Dependency\n"


def array_rows(sacct: str, squeue: str, finished: Sequence[str]) -> list[tuple[str, str, str]]:
    states = states_of([job.job_id for job in WITH_ARRAY], call=slurm(sacct, squeue))  # type: ignore[arg-type]
    return [(row.name, row.state, row.how) for row in rows_of(WITH_ARRAY, states, finished=finished)]


def test_an_array_is_a_row_of_its_own_that_counts_its_elements_and_names_the_others_by_number() -> None:
    rows = array_rows(SACCT_ARRAY, SQUEUE_ARRAY, ["vocab"])
    assert rows[1] == ("index-tasks", "RUNNING", "1 of 4 elements done; at work: 1; killed by signal 9: 2; waiting: 3")
    assert rows[2] == ("index", "PENDING", "waits (Dependency)")


def test_an_array_that_has_ended_tells_what_it_left_and_keeps_nothing_from_running() -> None:
    ended = SACCT_ARRAY.replace("2_1|RUNNING", "2_1|COMPLETED").replace("2_[3]|PENDING", "2_[3]|CANCELLED by 0")
    ended += "6|COMPLETED|00:00:05|n1|None|0:0|2026-11-25T02:22:00\n7|COMPLETED|00:00:05|n1|None|0:0|2026-11-25T02:22:00\n"
    rows = array_rows(ended, "", ["vocab", "index", "init"])
    assert rows[1][2] == "2 of 4 elements done; killed by signal 9: 2; cancelled before they began: 3"
    assert [row[2] for row in rows[2:]] == ["finished", "finished"]


def test_elements_that_never_ran_since_an_earlier_stage_failed_say_so() -> None:
    sacct = "1|FAILED|00:00:05|n1|NonZeroExitCode|3:0|2026-11-25T02:22:00\n2_[0-3]|CANCELLED|00:00:00|None assigned|Dependency|0:0|None\n"
    sacct += "6|CANCELLED|00:00:00|None assigned|Dependency|0:0|None\n"
    rows = array_rows(sacct, "", [])
    assert rows[1][2] == "0 of 4 elements done; not run, since vocab did not finish: 0-3"
    assert rows[2][2] == "not run, since vocab did not finish"
    assert "0 of 4 elements done; unknown: 0-3" in [row[2] for row in array_rows("", "", [])]


def test_an_array_in_the_queue_is_cancelled_with_its_elements(tmp_path: Path) -> None:
    calls, said = [], []

    def call(argv: Sequence[str]) -> str:
        calls.append(list(argv))
        return SQUEUE_ARRAY if argv[0] == "squeue" else ""

    assert cancel_line(WITH_ARRAY, stop_file=tmp_path / "stop", patience_seconds=60, say=said.append, call=call)
    assert calls[-1] == ["scancel", "2", "6", "7"]
    assert said == ["cancelled: index-tasks, index, init"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "POLL_SECONDS", 0.01)


def test_a_cancel_takes_waiting_jobs_out_and_asks_training_for_its_checkpoint(tmp_path: Path) -> None:
    stop, calls, said, asked = tmp_path / "train" / "stop-requested", [], [], []
    running = "2|RUNNING|5:00|n1|None\n"
    answers = iter([f"{running}3|PENDING|0:00||Dependency\n9|RUNNING|1|n2|\n", running, "2|COMPLETING|5:01|n1|None\n", ""])

    def call(argv: Sequence[str]) -> str:
        calls.append(list(argv))
        asked.append(stop.exists())
        return next(answers) if argv[0] == "squeue" else ""

    assert cancel_line(JOBS, stop_file=stop, patience_seconds=60, say=said.append, call=call)
    assert asked == [False, False, False, True, True]
    assert [argv for argv in calls if argv[0] == "scancel"] == [["scancel", "3"]]
    assert not stop.exists()
    assert said[0] == "cancelled: eval"


def test_training_that_has_lost_its_node_is_cancelled_in_the_queue(tmp_path: Path) -> None:
    calls = []
    answers = iter(["2|RUNNING|5:00|n1|None\n", "2|PENDING|0:00||BeginTime\n", ""])

    def call(argv: Sequence[str]) -> str:
        calls.append(list(argv))
        return next(answers) if argv[0] == "squeue" else ""

    assert cancel_line(JOBS, stop_file=tmp_path / "stop", patience_seconds=60, say=print, call=call)
    assert ["scancel", "2"] in calls
