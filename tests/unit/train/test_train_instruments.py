"""Utilization and energy of a step: by hand where they are known, null with a reason where they are not."""

from __future__ import annotations

import logging
import mmap
import types
from typing import Any

import pytest

from megatron_cpt.meter.energy import NoMeter
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.train.instruments import Instruments, process_memory
from megatron_cpt.train.state import StepResult

STEP = StepResult(2.5, 1.5, 1e-4, 0.5, (6, 2), (600, 200))  # 800 tokens in half a second


class Readings:
    """A meter that reads a given series."""

    scope = "a test"

    def __init__(self, *series: Figure) -> None:
        self._series = list(series)

    def read(self) -> Figure:
        return self._series.pop(0)


def plan(peak: Figure = 2.0) -> Any:
    """Return what the instruments read of a plan: 10 GFLOP a token on 4 devices."""
    estimate = types.SimpleNamespace(dense_tflops=peak, flops_per_token=1e10, flops_convention="as counted")
    return types.SimpleNamespace(estimate=estimate, layout=types.SimpleNamespace(num_ranks=4, fp8="none"))


def test_more_than_the_peak_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    instruments = Instruments(plan(), meter=NoMeter("none"), memory=dict)
    with caplog.at_level(logging.WARNING):
        instruments.read(STEP)
        instruments.read(STEP)
    assert caplog.text.count("MFU is 200 %: gpu.dense_tflops=2 is not the dense peak of this device.") == 1


def test_a_step_is_measured_against_the_peak_of_all_devices_and_by_its_own_joules() -> None:
    instruments = Instruments(plan(), meter=Readings(100.0, 130.0, 145.5), memory=lambda: {"resident_bytes": 7})
    # 800 tokens x 1e10 FLOP in 0.5 s are 16 TFLOP/s of 4 x 2
    assert instruments.read(STEP) == {"mfu": pytest.approx(2.0), "joules": 30.0, "resident_bytes": 7}
    assert instruments.read(STEP)["joules"] == 15.5
    assert instruments.describe() == {
        "mfu_convention": "as counted", "mfu_peak_tflops_per_device": 2.0, "num_devices": 4, "memory_scope": "the first rank's process",
        "energy_scope": "a test",
    }  # fmt: skip


def test_what_is_unknown_stays_unknown_and_says_why() -> None:
    instruments = Instruments(plan(Unavailable("set gpu.dense_tflops")), meter=NoMeter("no counter here"), memory=dict)
    assert instruments.read(STEP) == {"mfu": None, "joules": None}
    assert instruments.describe()["mfu_peak_tflops_per_device"] == "unknown (set gpu.dense_tflops)"
    assert instruments.describe()["energy_scope"] == "unknown (no counter here)"


def test_a_counter_that_is_lost_for_one_reading_leaves_two_steps_unknown() -> None:
    instruments = Instruments(plan(), meter=Readings(1.0, Unavailable("gone"), 9.0, 11.0), memory=dict)
    assert [instruments.read(STEP)["joules"] for _ in range(3)] == [None, None, 2.0]


def test_the_resident_memory_of_this_process_grows_with_what_it_holds() -> None:
    read = process_memory(on_cuda=False)
    before = read()["resident_bytes"]
    with mmap.mmap(-1, 50_000_000) as held:  # from the system, not from what this process freed before and kept
        held.write(b"x" * len(held))
        assert read()["resident_bytes"] - before > 0.8 * len(held)
