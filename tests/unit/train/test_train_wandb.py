"""What wandb is given, read back from the files that wandb itself wrote: figures, axes, alerts, one id, and no key."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.gate.verdict import RuleResult, Verdict
from megatron_cpt.plan.run_plan import EvalPlan, EvalText
from megatron_cpt.record.store import append_line, read_lines
from megatron_cpt.train.alerts import end_event, failure_event
from megatron_cpt.train.divergence import diverged
from megatron_cpt.train.metrics import METRICS_NAME
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.tracking import WandbRun, show_events
from tests.wandb_file import WandbFile, attempts_in_wandb
from tests.wandb_server import KEY, wandb_server

wandb = pytest.importorskip("wandb", reason="the extra `wandb`")

TEXTS = (EvalText("law", "domain", "law.jsonl", 1), EvalText("web", "general", "web.jsonl", 1))
RULE = RuleResult("law", "bits_per_byte", "must_improve", "domain", 0.0, True, "passed", "better", difference=-0.5, low=-0.625, high=-0.375)
SCORED = EvalPlan(TEXTS, 48, 2)
PROMOTE = Verdict("promote", (RULE,), ("all rules passed",), 0.95, 100, 0, "b", "c", step=4)


@dataclass
class Plan:
    """What wandb is told of a plan."""

    wandb_mode: str = "offline"
    wandb_project: str = "a-project"
    run_name: str = "a-run"
    eval: EvalPlan = SCORED


def at(step: int) -> TrainState:
    return TrainState(step=step, samples_seen=8 * step, source_samples=(8 * step,), source_tokens=(256 * step,))


def step_record(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "step", "step": step, "tokens": 256 * step, "elapsed_seconds": 2.0 * step, "loss": 4.0 - step / 4, **more}


@pytest.fixture(scope="module")
def three_starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WandbFile]]:
    """Return `train/` of a run that diverged, was begun again, reached its budget and was promoted, and what wandb kept of it."""
    train_dir = tmp_path_factory.mktemp("run") / "train"
    train_dir.mkdir()
    plan: Any = Plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        first = WandbRun(train_dir, plan=plan)
        first.on_start(at(0))
        first.record(step_record(1, grad_norm=1.5, is_skipped=False))
        first.record(step_record(2, grad_norm=40.0, is_skipped=True, resident_bytes=10, device_peak_bytes=20))
        first.record({"kind": "eval", "step": 2, "bits_per_byte": {"law": 1.25, "web": 0.75}, "loss": {"law": 3.0}, "seconds": 1.0})
        found = {"law": {"base": 1.5, "difference": -0.25, "low": -0.5, "high": -0.125}, "web": {"unknown": "no document is in both"}}
        first.record({"kind": "forgetting", "step": 2, "texts": found})
        first.record(step_record(3, loss=None, grad_norm=None, is_skipped=True))
        first.record(failure_event(diverged("The update is bad.", step=4, value="nan"), step=3))
        first.close()
        time.sleep(1.1)  # wandb orders what it sends by whole seconds
        second = WandbRun(train_dir, plan=plan)
        second.on_start(at(2))
        second.record({"kind": "resume", "step": 2, "lost_steps": 1})
        for step in (3, 4):
            append_line(train_dir / METRICS_NAME, step_record(step))
            second.record(step_record(step))
        second.record(end_event("budget", "the plan's stop.max_usd was reached", step=4))
        second.close()
        time.sleep(1.1)
        for _ in range(2):
            show_events(train_dir, plan, verdict=PROMOTE)
    return train_dir, attempts_in_wandb(train_dir)


def test_all_attempts_and_the_verdict_are_one_wandb_run(three_starts: tuple[Path, list[WandbFile]]) -> None:
    train_dir, found = three_starts
    assert len(found) == 3  # the verdict was shown once, though it was asked for twice
    assert {each.run_id for each in found} == {(train_dir / "wandb-run-id").read_text(encoding="utf-8")}
    assert [each.exit_code for each in found] == [1, 0, 0]  # wandb shows the first as failed
    assert [record["verdict"] for record in read_lines(train_dir / METRICS_NAME) if record["kind"] == "shown"] == [PROMOTE.fingerprint]


def test_rows_have_the_documented_names_and_both_axes(three_starts: tuple[Path, list[WandbFile]]) -> None:
    _, (first, second, verdict) = three_starts
    assert all({"train/step", "train/tokens"} <= set(row) for each in (first, second, verdict) for row in each.rows)
    assert first.rows[1] == {
        "train/step": 2, "train/tokens": 512, "train/loss": 3.5, "train/grad_norm": 40.0, "train/is_skipped": 1,
        "system/device_peak_bytes": 20,
    }  # fmt: skip
    assert first.rows[2] == {
        "train/step": 2, "train/tokens": 512, "eval/domain/law/bits_per_byte": 1.25, "eval/general/web/bits_per_byte": 0.75,
        "eval/domain/law/loss": 3.0, "eval/seconds": 1.0,
    }  # fmt: skip
    assert first.rows[3] == {
        "train/step": 2, "train/tokens": 512, "eval/domain/law/base": 1.5, "eval/domain/law/difference": -0.25,
        "eval/domain/law/low": -0.5, "eval/domain/law/high": -0.125,
    }  # fmt: skip
    assert second.column("train/loss") == [3.25, 3.0]
    assert second.rows[0] == {"train/step": 2, "train/tokens": 512, "train/lost_steps": 1, "train/event/resume": 1}
    assert verdict.rows == [
        {
            "train/step": 4, "train/tokens": 1024, "train/event/promote": 1, "eval/domain/law/gate_bits_per_byte_difference": -0.5,
            "eval/domain/law/gate_bits_per_byte_low": -0.625, "eval/domain/law/gate_bits_per_byte_high": -0.375,
        }
    ]  # fmt: skip


def test_scores_stand_over_tokens_and_everything_else_over_steps(three_starts: tuple[Path, list[WandbFile]]) -> None:
    for each in three_starts[1]:
        assert each.x_axis == {
            "train/step": "", "train/tokens": "", "eval/*": "train/tokens",
            "train/*": "train/step", "cost/*": "train/step", "energy/*": "train/step", "system/*": "train/step",
        }  # fmt: skip


def test_a_spike_a_nan_a_divergence_a_budget_and_a_verdict_call_for_somebody(three_starts: tuple[Path, list[WandbFile]]) -> None:
    _, (first, second, verdict) = three_starts
    assert [(title, level) for title, level, _ in first.alerts] == [
        ("Gradient spike", "WARN"),
        ("Not a finite number", "WARN"),
        ("Training diverged", "ERROR"),
    ]
    assert first.alerts[0][2] == "step 2: norm 40; the update was left out."
    assert "step 4" in first.alerts[2][2]
    assert second.alerts == [("Budget reached", "WARN", "the plan's stop.max_usd was reached")]
    assert verdict.alerts == [("Verdict: promoted", "INFO", "all rules passed")]


def test_the_configuration_is_the_plan_and_no_file_holds_the_key(three_starts: tuple[Path, list[WandbFile]]) -> None:
    train_dir, found = three_starts
    assert found[0].config["run_name"] == "a-run"
    assert found[0].config["eval"]["window_tokens"] == 48
    files = [path for path in train_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_what_was_written_offline_is_sent_later_as_one_run(three_starts: tuple[Path, list[WandbFile]], tmp_path: Path) -> None:
    if tuple(map(int, wandb.__version__.split(".")[:2])) < (0, 28):
        pytest.skip("`wandb sync` took one folder at a time then")
    train_dir, found = three_starts
    folders = sorted(path for path in (train_dir / "wandb").glob("offline-run-*") if path.is_dir())
    with wandb_server() as server:
        # a shell of its own: what wandb set in this process names the service of this process
        own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment = {**own, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert list(server.history) == [found[0].run_id]
    sent = [json.loads(line) for line in server.history[found[0].run_id]]
    assert [{key: value for key, value in row.items() if not key.startswith("_")} for row in sent] == [
        row for each in found for row in each.rows
    ]
    steps = [row["_step"] for row in sent]
    assert steps == sorted(set(steps))  # no two rows share wandb's own step, whichever attempt logged them
    assert [(title, severity) for _, title, severity in server.alerts] == [
        (title, level) for each in found for title, level, _ in each.alerts
    ]


def test_what_training_did_not_open_is_not_opened_for_a_verdict(tmp_path: Path) -> None:
    show_events(tmp_path, Plan(), verdict=PROMOTE)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_online_becomes_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = WandbRun(tmp_path, plan=Plan(wandb_mode="online"))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        run.on_start(at(0))
        run.record(step_record(1))
        run.close()
    assert "wandb has no key here" in caplog.text
    (kept,) = attempts_in_wandb(tmp_path)
    assert kept.column("train/loss") == [3.75]
