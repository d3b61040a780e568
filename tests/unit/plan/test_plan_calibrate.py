"""The calibration: a finished run's seconds over its estimate, by hand; nothing overwritten, and rates that are measured for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from plan_examples import experiment, facts

from megatron_cpt.config.schema import ExperimentConfig, GpuConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.calibrating import calibrate, measure_link_gb_per_second, measured_run
from megatron_cpt.plan.calibrate import measure_memory_tb_per_second
from megatron_cpt.plan.derive import derive
from megatron_cpt.record.unknown import Unavailable

NOTHING = GpuConfig(name="nothing measured", source="a test")


def with_records(path: Path, seconds: list[float]) -> Path:
    steps = [json.dumps({"kind": "step", "seconds": value}) for value in seconds]
    path.write_text("\n".join([json.dumps({"kind": "attempt"}), *steps, '{"kind":"step","sec']), encoding="utf-8")
    return path


def test_the_median_of_the_later_steps_is_compared_and_a_torn_line_left_out(tmp_path: Path) -> None:
    plan = derive(experiment(), **facts())
    found = measured_run(plan, with_records(tmp_path / "metrics.jsonl", [90.0, 80.0, 3.0, 5.0, 4.0]), experiment(), NOTHING)
    assert found is not None
    assert (found.seconds, found.num_steps) == (4.0, 3)
    assert found.planned == pytest.approx(plan.estimate.seconds / 10)  # type: ignore[operator]  # ten steps are planned
    assert isinstance(found.predicted, Unavailable)


def test_two_steps_are_too_few_to_compare(tmp_path: Path) -> None:
    plan = derive(experiment(), **facts())
    assert measured_run(plan, with_records(tmp_path / "metrics.jsonl", [1.0, 1.0]), experiment(), NOTHING) is None


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n", encoding="utf-8")
    for out in (tmp_path / "mine.yaml", tmp_path / "no" / "folder.yaml"):
        with pytest.raises(ConfigError, match="cannot be written"):
            calibrate(experiment(), out=out)
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == "name: mine\n"


def test_memory_bandwidth_of_this_machine_is_one_that_a_machine_can_have() -> None:
    found = measure_memory_tb_per_second(1, seconds=0.3)
    assert not isinstance(found, Unavailable)
    assert 1e-4 < found < 2  # TB/s


@pytest.mark.slow
def test_a_real_device_is_written_that_the_plan_reads(tmp_path: Path) -> None:
    config = experiment()
    config.runs_dir = str(tmp_path / "runs")
    config.cluster.backend, config.cluster.ranks_per_node = "cpu", 2
    text = calibrate(config, out=tmp_path / "this_host.yaml")
    device = GpuConfig(**yaml.safe_load((tmp_path / "this_host.yaml").read_text(encoding="utf-8")))
    assert device.matmul_tflops is not None
    assert device.link_gb_per_second is not None
    assert "no run to compare with" in text
    assert isinstance(ExperimentConfig(gpu=device).gpu, GpuConfig)
    assert not isinstance(measure_link_gb_per_second(), Unavailable)
