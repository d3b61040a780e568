"""The interval of the share of the peak, from published runs, and what interruptions leave of the time."""

from __future__ import annotations

import pytest

from megatron_cpt.plan.utilization import (
    checkpoint_interval_seconds,
    comparable_runs,
    coverage,
    goodput,
    published_runs,
    published_utilization,
)
from megatron_cpt.record.unknown import Interval, Unavailable


def test_a_device_without_published_runs_has_no_share_never_a_default_one() -> None:
    for name, peak in (("Unknown", 500.0), ("H100 80GB PCIe", 756.0), ("", 989.0)):
        runs = comparable_runs(gpu_name=name, peak_tflops=peak, fp8=False, has_experts=False, num_params=8e9)
        assert isinstance(published_utilization(runs), Unavailable)


def test_precision_and_kind_of_model_are_kept_apart_and_h200_is_an_h100() -> None:
    def runs(**other: object):  # type: ignore[no-untyped-def]
        given = {"gpu_name": "H100 80GB SXM5", "peak_tflops": 989.0, "fp8": False, "has_experts": False, "num_params": 8e9}
        return comparable_runs(**(given | other))  # type: ignore[arg-type]

    assert {run.precision for run in runs()} == {"bf16"}
    assert {run.precision for run in runs(fp8=True, peak_tflops=1979.0)} == {"fp8"}
    assert {run.kind for run in runs(has_experts=True)} == {"moe"}
    assert runs(gpu_name="H200 141GB SXM") == runs()


def test_shares_are_below_one_and_korthikantis_22b_is_worked_by_hand() -> None:
    assert all(0 < run.share < 1 for run in published_runs())
    # 41.5 % with attention in full: 72 h^2 (1 + s/6h + V/12hL) against s/12h with half of it; one stage, so no bubble
    full, causal = (1 + 2048 / (part * 6144) + 51200 / (12 * 6144 * 48) for part in (6, 12))
    run = next(run for run in published_runs() if run.id == "K22-22B")
    assert run.share == pytest.approx(0.415 * causal / full, rel=2e-3)


def test_left_out_runs_fall_into_the_interval_of_the_others_as_often_as_promised() -> None:
    inside, judged, _ = coverage()
    assert judged > 50
    assert inside / judged >= 0.9


def test_more_runs_make_the_interval_narrower_and_it_never_passes_the_peak() -> None:
    runs = published_runs()[:9]
    one, nine = published_utilization(runs[:1]), published_utilization(runs)
    assert isinstance(one, Interval)
    assert isinstance(nine, Interval)
    assert one.high / one.low > nine.high / nine.low
    assert nine.low < nine.likely < nine.high <= 1


def test_youngs_interval_and_the_loss_at_it_by_hand() -> None:
    # 16,384 devices of 45,566 h: one interruption in 2.78 h = 10,012 s; 60 s a checkpoint: sqrt(2 x 60 x 10012) = 1096 s
    mtbf = 45566 * 3600 / 16384
    assert checkpoint_interval_seconds(mtbf_seconds=mtbf, checkpoint_seconds=60) == pytest.approx(1096, abs=1)
    found = goodput(num_devices=16384, device_mtbf_hours=45566, checkpoint_seconds=60, restart_seconds=600)
    assert found == pytest.approx(1 - 60 / 1156 - (548 + 600) / 10012, abs=1e-3)


def test_a_machine_that_never_trains_or_is_not_known_has_no_goodput() -> None:
    found = goodput(num_devices=10_000, device_mtbf_hours=100, checkpoint_seconds=600, restart_seconds=900)
    assert isinstance(found, Unavailable)
    unknown = Unavailable("set gpu.mtbf_hours")
    assert goodput(num_devices=8, device_mtbf_hours=unknown, checkpoint_seconds=60, restart_seconds=900) == unknown
