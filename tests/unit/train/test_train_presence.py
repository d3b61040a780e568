"""Which ranks count as dead: those of this attempt whose process is gone and that did not say so themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_cpt.errors import CheckpointError, FollowsAnotherRank
from megatron_cpt.train import runtime
from megatron_cpt.train.outcome import read_outcome
from megatron_cpt.train.presence import FOLDER, attempt_id, dead_ranks, present, watch

RANK = """
import sys, time
from pathlib import Path
from megatron_cpt.train.presence import present
with present(Path(sys.argv[1]), rank=1):
    print("here", flush=True)
    sys.stdin.readline()
"""


def start_rank(folder: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", RANK, str(folder)]
    # a rank's attempt is told by its launcher's process: here both ranks must have one
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    record = folder / FOLDER / "1.json"
    plain = json.loads(record.read_text())
    plain["attempt"] = attempt_id()
    record.write_text(json.dumps(plain))
    return process


def test_a_killed_rank_is_dead_and_a_living_one_is_not(tmp_path: Path) -> None:
    with present(tmp_path, rank=0), start_rank(tmp_path) as process:
        assert dead_ranks(tmp_path) == []
        process.kill()
        deadline = time.monotonic() + 10
        while dead_ranks(tmp_path) != [1]:  # found although nobody has waited for the process: it is a zombie
            assert time.monotonic() < deadline


def test_a_rank_that_ends_by_itself_is_not_dead(tmp_path: Path) -> None:
    with start_rank(tmp_path) as process:
        process.communicate("\n", timeout=30)
    assert dead_ranks(tmp_path) == []
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_file_of_an_earlier_attempt_and_one_in_the_making_tell_nothing(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "3.json").write_text(json.dumps({"attempt": "yesterday", "process": 2**22, "started": 1.0}))
    (folder / ".4.json.77.tmp").write_text("{")
    assert dead_ranks(tmp_path) == []


def test_a_process_number_that_was_given_to_another_process_is_a_dead_rank(tmp_path: Path) -> None:
    with present(tmp_path, rank=2):
        record = tmp_path / FOLDER / "2.json"
        plain = json.loads(record.read_text())
        record.write_text(json.dumps({**plain, "started": plain["started"] - 100}))
        assert dead_ranks(tmp_path) == [2]


def test_the_watch_tells_of_a_death_while_the_main_thread_waits(tmp_path: Path) -> None:
    told: list[list[int]] = []
    heard = threading.Event()
    with start_rank(tmp_path) as process:
        end = watch(tmp_path, on_death=lambda dead: (told.append(dead), heard.set()))  # type: ignore[func-returns-value]
        process.kill()
        assert heard.wait(20)
        end()
    assert told == [[1]]


@pytest.mark.parametrize("lost", [RuntimeError("[pair.cc:537] Connection closed by peer [127.0.0.1]:1"), FollowsAnotherRank("x")])
def test_a_rank_that_lost_the_connection_names_the_dead_one(lost: Exception, tmp_path: Path) -> None:
    with start_rank(tmp_path) as process:
        process.kill()
        process.wait()
        assert runtime.fail(lost, tmp_path, started=time.time(), step=7, checkpoint=None) == 1
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert outcome.reason.startswith("Rank 1 died without a word after step 7 was done.")


def test_a_rank_that_only_follows_leaves_the_word_to_the_one_that_knows_why(tmp_path: Path) -> None:
    cause = CheckpointError("The disk is full.")
    speak = threading.Timer(0.5, lambda: runtime.fail(cause, tmp_path, started=time.time(), step=7, checkpoint=None))
    speak.start()
    runtime.fail(FollowsAnotherRank("Another rank could not write."), tmp_path, started=time.time(), step=7, checkpoint=None)
    speak.join()
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert (outcome.reason, outcome.exit_code) == ("The disk is full.", 4)


def test_without_anybody_who_knows_the_follower_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "FOLLOW_PATIENCE_S", 0.2)
    runtime.fail(FollowsAnotherRank("Another rank could not write."), tmp_path, started=time.time(), step=7, checkpoint=None)
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert outcome.reason == "Another rank could not write."
