"""What a terminal of 80 columns shows of a run, and what a log file does."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from megatron_cpt.train.hooks import InLoopEvaluation, ProgressBar
from megatron_cpt.train.state import StepResult, TrainState

EVALUATION = {"kind": "eval", "step": 1200, "bits_per_byte": {"law": 1.23456, "web": 0.98765}, "seconds": 3.0}
FORGETTING: dict[str, Any] = {
    "kind": "forgetting", "step": 1200, "confidence": 0.95, "in_grace": False,
    "texts": {
        "law": {"role": "domain", "base": 1.4, "now": 1.23456, "difference": -0.16544},
        "web": {"role": "general", "base": 0.9, "now": 0.98765, "difference": 0.08765, "low": 0.0712, "high": 0.1034},
    },
}  # fmt: skip


def lines_of(*, num_steps: int, step: int, result: StepResult, records: tuple[dict[str, Any], ...]) -> list[str]:
    """Return what stands on a terminal of 80 columns at the end of a step."""
    console = Console(width=80, height=20, file=io.StringIO(), force_terminal=True)
    bar = ProgressBar(num_steps=num_steps, console=console)
    before = TrainState(step=step - 1, samples_seen=0, source_samples=(0,), source_tokens=(0,))
    bar.on_start(before)
    bar.after_step(before.after(result))
    for record in records:
        bar.record(record)
    bar.close()
    with console.capture() as captured:
        console.print(bar._progress.get_renderable())
    return Text.from_ansi(captured.get()).plain.splitlines()


def test_the_bar_fits_80_columns_and_leaves_nothing_out() -> None:
    result = StepResult(11.12345, 1.5, 1.25e-4, 2.0, (512,), (1048576,))
    (line,) = lines_of(num_steps=120000, step=1200, result=result, records=())
    assert len(line) <= 80
    assert line.count("━") >= 5
    for part in ("1200/120000", "loss 11.1235", "rate 1.25e-04", "524,288 tok/s", "left"):
        assert part in line


def test_the_last_evaluation_and_the_distance_from_the_base_stand_below_the_bar() -> None:
    result = StepResult(2.5, 1.5, 1e-4, 2.0, (8,), (2048,))
    older = {**EVALUATION, "step": 600, "bits_per_byte": {"law": 9.0, "web": 9.0}}
    lines = lines_of(num_steps=2000, step=1200, result=result, records=(older, EVALUATION, FORGETTING))
    assert [line.rstrip() for line in lines[1:]] == [
        "step 1200: bits per byte law 1.2346  web 0.9877",
        "against the frozen base law -0.1654  web +0.0877 [+0.0712, +0.1034]",
    ]


def test_a_log_says_how_far_each_text_is_from_the_base(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {name: {"bits_per_byte": value, "nats": 1.0, "tokens": 2} for name, value in EVALUATION["bits_per_byte"].items()}  # type: ignore[attr-defined]
    hook = InLoopEvaluation(lambda: scores, every_steps=1, record=lambda _: None, compare=lambda _scores, _step: FORGETTING)
    monkeypatch.setattr(logging.getLogger("megatron_cpt"), "propagate", True)  # a rank's own log setup ends it
    with caplog.at_level(logging.INFO, logger="megatron_cpt"):
        hook.after_step(TrainState(step=1200, samples_seen=0, source_samples=(0,), source_tokens=(0,)))
    assert "step 1200: bits per byte law 1.2346, web 0.9877" in caplog.messages
    assert "step 1200: against the frozen base law -0.1654, web +0.0877 [+0.0712, +0.1034]" in caplog.messages
