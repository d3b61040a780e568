"""Stop requests, outcomes and arguments on one rank, without torch."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_cpt.errors import CheckpointError, ConfigError
from megatron_cpt.train.__main__ import main, plan_argument
from megatron_cpt.train.outcome import read_outcome
from megatron_cpt.train.runtime import STOP_SIGNALS, StopRequest, fail, only_attempt, record_end, status_of
from megatron_cpt.train.tracking import run_id


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def request(folder: Path, *, max_hours: float | None = None, seconds: float = 0.0, others: int = 0) -> StopRequest:
    limits = {} if max_hours is None else {"stop.max_hours": 3600 * max_hours}
    return StopRequest(folder, limits=limits, agree=lambda code: max(code, others), seconds_used=lambda: seconds)


def test_nothing_asks_for_a_stop(tmp_path: Path) -> None:
    stop = request(tmp_path, max_hours=1.0, seconds=3599)
    assert not stop.requested()
    assert status_of(stop) == "finished"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_until_the_next_step(tmp_path: Path, number: signal.Signals) -> None:
    stop = request(tmp_path)
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert status_of(stop) == "stopped"
    assert number.name in stop.reason


def test_a_stop_file_is_honoured_once(tmp_path: Path) -> None:
    stop = request(tmp_path)
    (tmp_path / "stop-requested").touch()
    assert stop.requested()
    assert not (tmp_path / "stop-requested").exists()


def test_a_stop_file_from_before_the_launcher_is_not_for_this_attempt(tmp_path: Path) -> None:
    path = tmp_path / "stop-requested"
    path.touch()
    long_ago = time.time() - 10 * 365 * 86400
    os.utime(path, (long_ago, long_ago))
    assert not request(tmp_path).requested()
    assert not path.exists()


def test_another_ranks_request_stops_this_one_too(tmp_path: Path) -> None:
    stop = request(tmp_path, others=StopRequest.STOP)
    assert stop.requested()
    assert status_of(stop) == "stopped"


def test_the_budget_stops_at_its_hour(tmp_path: Path) -> None:
    stop = request(tmp_path, max_hours=1.0, seconds=3600)
    assert stop.requested()
    assert status_of(stop) == "budget"


def test_the_limit_that_was_reached_is_named(tmp_path: Path) -> None:
    limits = {"stop.max_hours": 7200.0, "stop.max_usd": 1800.0, "stop.max_kwh": 5400.0}
    stop = StopRequest(tmp_path, limits=limits, agree=lambda code: code, seconds_used=lambda: 1800.0)
    assert stop.requested()
    assert (status_of(stop), stop.reason) == ("budget", "the plan's stop.max_usd was reached")


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("stopped", 75), ("budget", 6)])
def test_each_end_has_its_own_exit_code(tmp_path: Path, status: str, code: int) -> None:
    assert record_end(tmp_path, status=status, step=7, seconds=1.5, reason="", checkpoint="train/checkpoints/step_00000007") == code  # type: ignore[arg-type]
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert (outcome.status, outcome.exit_code, outcome.step) == (status, code, 7)


def test_a_failure_is_said_and_written_once_with_its_own_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = CheckpointError("The disk is gone.", where="here")
    for _ in range(2):  # two ranks of one launcher
        assert fail(error, tmp_path, started=time.time(), step=3, checkpoint="train/checkpoints/step_00000002") == 4
    said = capfd.readouterr().err
    assert said.count("The disk is gone.") == 1
    assert "train/checkpoints/step_00000002" in said
    assert "Traceback" not in said
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert (outcome.status, outcome.exit_code, outcome.step) == ("failed", 4, 3)


def test_our_own_bugs_keep_their_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fail(ZeroDivisionError("x"), tmp_path, started=time.time(), step=None, checkpoint=None) == 1
    assert "ZeroDivisionError: x" in capfd.readouterr().err


def test_a_full_disk_is_said_in_words_even_when_the_outcome_does_not_fit_either(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "train/metrics.jsonl")
    (tmp_path / "outcome.json").mkdir()  # nothing can be put in its place
    assert fail(full, tmp_path, started=time.time(), step=3, checkpoint="train/checkpoints/step_00000002") == 1
    said = capfd.readouterr().err
    assert "The disk is full." in said
    assert "train/metrics.jsonl" in said
    assert "could not be recorded" in said
    assert "Traceback" not in said


def test_a_second_trainer_of_a_run_is_refused_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_cpt.train.runtime.LOCK_PATIENCE_S", 0.5)
    with only_attempt(tmp_path):
        record_end(tmp_path, status="stopped", step=1, seconds=1.0, reason="", checkpoint=None)
        with pytest.raises(ConfigError, match="training this run"), only_attempt(tmp_path):
            pass
        assert read_outcome(tmp_path) is not None


@pytest.mark.parametrize("arguments", [[], ["plan="], ["plan=a", "plan=b"], ["--plan", "a"], ["steps=3"]])
def test_bad_arguments_are_a_config_error(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="exactly one argument"):
        plan_argument(arguments)


def test_a_missing_plan_is_said_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_wandb_id_is_made_once(tmp_path: Path) -> None:
    names = iter(["first", "second"])
    assert [run_id(tmp_path, new=lambda: next(names)) for _ in range(2)] == ["first", "first"]
