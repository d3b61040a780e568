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

from megatron_cpt.record.store import append_line
from megatron_cpt.train.hooks import MetricsFile, TrainingClock
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.tracking import Guest, TensorBoardRun, WandbRun, has_key, numbers_of, within

STATE = TrainState(step=4, samples_seen=32, source_samples=(32,), source_tokens=(320,))


class Notes(Guest):
    """A tracker that only remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self._run = True

    def _show(self, record: Any) -> None:
        self.seen.append(dict(record))


class Broken(Guest):
    """A tracker that fails at its first record."""

    name = "the broken one"

    def __init__(self) -> None:
        super().__init__()
        self._run, self.asked = True, 0

    def _show(self, record: Any) -> None:
        self.asked += 1
        raise OSError("no space")


def plan(mode: str) -> Any:
    """Return what WandbRun reads of a plan."""
    return types.SimpleNamespace(wandb_mode=mode, wandb_project="p", run_name="r")


def test_numbers_get_a_path_and_words_get_none() -> None:
    step = {"kind": "step", "step": 4, "loss": 2.5, "joules": None, "is_skipped": True, "source_loss": {"law": 2.0, "talk": None}}
    assert numbers_of(step) == {"step": 4, "loss": 2.5, "is_skipped": 1, "source_loss/law": 2.0}
    forgetting = {"kind": "forgetting", "step": 8, "texts": {"web": {"role": "general", "difference": 0.25}}}
    assert numbers_of(forgetting) == {"step": 8, "forgetting/texts/web/difference": 0.25}
    assert numbers_of({"kind": "resume", "step": 4, "lost_steps": 3}) == {"step": 4, "resume/lost_steps": 3, "event/resume": 1}
    assert numbers_of({"kind": "event", "event": "rollback", "branch": "b"}) == {"event/rollback": 1}


def test_a_restart_and_a_rollback_are_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"kind": "event", "event": "rollback", "branch": "older"})
    append_line(path, {"kind": "attempt", "step": 0})
    for step in range(1, 8):
        append_line(path, {"kind": "step", "step": step, "elapsed_seconds": float(step)})
    append_line(path, {"kind": "event", "event": "rollback", "branch": "newer"})
    notes = Notes()
    MetricsFile(path, sources=["law"], licences=["CC0-1.0"], clock=TrainingClock(), trackers=[notes]).on_start(STATE)
    assert [(record["kind"], record.get("branch"), record.get("lost_steps")) for record in notes.seen] == [
        ("event", "newer", None),
        ("resume", None, 3),
    ]


def test_a_tracker_that_fails_is_dropped_and_the_record_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, broken, notes = tmp_path / "metrics.jsonl", Broken(), Notes()
    metrics = MetricsFile(path, sources=["law"], licences=["CC0-1.0"], clock=TrainingClock(), trackers=[broken, notes])
    with caplog.at_level(logging.WARNING):
        metrics.write({"kind": "eval", "step": 1})
        metrics.write({"kind": "eval", "step": 2})
    assert broken.asked == 1
    assert caplog.text.count("the broken one could not log (OSError: no space); training goes on without it.") == 1
    assert [record["step"] for record in notes.seen] == [1, 2]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


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


def test_without_a_key_online_becomes_offline_and_a_missing_package_is_a_warning(
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
    assert "wandb has no key here" in caplog.text
    assert caplog.text.count("wandb could not start (ModuleNotFoundError") == 1


def test_tensorboard_holds_the_numbers_of_each_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the extra `tensorboard`")
    run = TensorBoardRun(tmp_path)
    run.on_start(TrainState(0, 0, (0,), (0,)))
    run.record({"kind": "step", "step": 1, "loss": 2.5, "source_loss": {"law": 2.25}})
    run.record({"kind": "event", "event": "rollback", "reasons": ["worse"]})
    run.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("source_loss/law")] == [(1, 2.25)]
    assert [(event.step, event.value) for event in events.Scalars("event/rollback")] == [(1, 1.0)]


def test_without_the_package_tensorboard_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = TensorBoardRun(tmp_path)
    with caplog.at_level(logging.WARNING):
        run.on_start(STATE)
        run.record({"kind": "step", "step": 5, "loss": 1.0})
        run.close()
    assert "tensorboard could not start" in caplog.text
