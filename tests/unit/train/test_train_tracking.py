"""Trackers are guests: what they are shown, and that nothing that they do ends or holds up a run."""

from __future__ import annotations

import logging
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.plan.run_plan import EvalText
from megatron_cpt.record.store import append_line
from megatron_cpt.train import guests
from megatron_cpt.train.alerts import Alert
from megatron_cpt.train.guests import Guest, within
from megatron_cpt.train.hooks import MetricsFile, TrainingClock
from megatron_cpt.train.metric_names import MetricNames
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.tracking import TensorBoardRun, WandbRun, has_key

STATE = TrainState(step=4, samples_seen=32, source_samples=(32,), source_tokens=(320,))


class Notes(Guest):
    """A tracker that remembers, and can be held up at its start, at its first record or at its end."""

    name = extra = "the notebook"

    def __init__(self, *, hold: str = "", fail: str = "") -> None:
        super().__init__(MetricNames({}))
        self.rows: list[dict[str, Any]] = []
        self.alerts: list[Alert] = []
        self.asked = 0
        self.release = threading.Event()
        self._hold, self._fail = hold, fail

    def _at(self, doing: str) -> None:
        if self._hold == doing:
            self.release.wait(60)
        if self._fail == doing:
            raise OSError("no space")

    def _load(self) -> None:
        self._at("load")

    def _start(self) -> Any:
        self._at("start")

    def _show(self, row: Any, alert: Any) -> None:
        self.asked += 1
        self._at("show")
        self.rows.append(dict(row))
        self.alerts += [] if alert is None else [alert]

    def _finish(self) -> None:
        self._at("finish")


def plan(mode: str) -> Any:
    """Return what WandbRun reads of a plan."""
    texts = [EvalText("law", "domain", "", 1), EvalText("web", "general", "", 1)]
    return types.SimpleNamespace(wandb_mode=mode, wandb_project="p", run_name="r", eval=types.SimpleNamespace(texts=texts, tasks=()))


def metrics_file(path: Path, *trackers: Guest) -> MetricsFile:
    return MetricsFile(path, sources=["law"], licences=["CC0-1.0"], clock=TrainingClock(), trackers=trackers)


def test_a_restart_and_a_rollback_are_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"kind": "event", "event": "rollback", "branch": "older"})
    append_line(path, {"kind": "attempt", "step": 0})
    for step in range(1, 8):
        append_line(path, {"kind": "step", "step": step, "elapsed_seconds": float(step)})
    append_line(path, {"kind": "event", "event": "rollback", "branch": "newer", "reasons": ["worse"]})
    notes = Notes()
    notes.on_start(STATE)
    metrics_file(path, notes).on_start(STATE)
    notes.close()
    assert notes.rows == [
        {"train/step": 4, "train/tokens": 320, "train/event/rollback": 1},
        {"train/step": 4, "train/tokens": 320, "train/lost_steps": 3, "train/event/resume": 1},
    ]
    assert notes.alerts == [Alert("Verdict: rolled back", "worse", "ERROR")]


@pytest.mark.parametrize("doing", ["load", "start", "show", "finish"])
def test_a_tracker_that_fails_is_dropped_and_the_record_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, doing: str) -> None:
    path, broken, notes = tmp_path / "metrics.jsonl", Notes(fail=doing), Notes()
    metrics = metrics_file(path, broken, notes)
    with caplog.at_level(logging.WARNING):
        for guest in (broken, notes):
            guest.on_start(STATE)
        for step in (1, 2):
            metrics.write({"kind": "eval", "step": step})
        for guest in (broken, notes):
            guest.close()
    assert broken.asked == {"load": 0, "start": 0, "show": 1, "finish": 2}[doing]
    verb = "log" if doing == "show" else doing
    assert caplog.text.count(f"the notebook could not {verb} (OSError: no space); training goes on without it.") == 1
    assert len(notes.rows) == 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("doing", ["start", "show", "finish"])
def test_a_tracker_that_hangs_holds_up_no_step_and_its_end_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    monkeypatch.setattr(guests, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(guests, "QUEUE_LENGTH", 100)
    hung = Notes(hold=doing)
    metrics = metrics_file(tmp_path / "metrics.jsonl", hung)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        hung.on_start(STATE)
        for step in range(150):
            metrics.write({"kind": "eval", "step": step})
            if doing == "finish":
                time.sleep(0.001)  # so that this one keeps up
        hung.close()
    assert time.monotonic() - began < 5
    assert ("left behind" if doing == "finish" else "100 records behind") in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 150
    hung.release.set()


def test_what_takes_too_long_is_left_behind() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not done within 0\.1 s"):
        within(0.1, release.wait)
    assert time.monotonic() - started < 5
    release.set()
    with pytest.raises(SystemExit):
        within(5, sys.exit)  # whatever is raised comes back to the caller


def test_a_key_is_looked_for_without_a_question(tmp_path: Path) -> None:
    assert not has_key({"HOME": str(tmp_path)})
    assert has_key({"HOME": str(tmp_path), "WANDB_API_KEY": "k"})
    (tmp_path / ".netrc").write_text("machine wandb.example.com login user password k\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_key({"HOME": str(tmp_path), "WANDB_BASE_URL": "https://wandb.example.com"})
    assert not has_key({"HOME": str(tmp_path)})


def test_a_missing_package_is_said_once_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of an absent package finds
    run = WandbRun(tmp_path, plan=plan("online"))
    with caplog.at_level(logging.WARNING):
        run.on_start(STATE)
        run.record({"kind": "eval", "step": 5})
        run.close()
    assert caplog.text.count("wandb is not installed (wandb), so the run is not shown there: pip install 'megatron-cpt[wandb]'.") == 1
    assert len(caplog.records) == 1
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_the_figures_of_each_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the extra `tensorboard`")
    run = TensorBoardRun(tmp_path, names=MetricNames({}))
    run.on_start(TrainState(0, 0, (0,), (0,)))
    run.record({"kind": "step", "step": 1, "tokens": 64, "elapsed_seconds": 1.0, "loss": 2.5, "source_loss": {"law": 2.25}})
    run.record({"kind": "event", "event": "rollback", "reasons": ["worse"]})
    run.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/source/law/loss")] == [(1, 2.25)]
    assert [(event.step, event.value) for event in events.Scalars("train/event/rollback")] == [(1, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("train/tokens")] == [(1, 64.0), (1, 64.0)]


def test_without_the_package_tensorboard_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = TensorBoardRun(tmp_path, names=MetricNames({}))
    with caplog.at_level(logging.WARNING):
        run.on_start(STATE)
        run.record({"kind": "step", "step": 5, "tokens": 1, "elapsed_seconds": 1.0, "loss": 1.0})
        run.close()
    assert "pip install 'megatron-cpt[tensorboard]'" in caplog.text
