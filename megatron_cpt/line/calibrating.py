"""`megatron-cpt calibrate`: this machine measured as a device, and a finished run's time over its plan's estimate."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from megatron_cpt.config.schema import ExperimentConfig, GpuConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.run import Run
from megatron_cpt.plan.calibrate import measure_matrix_tflops, measure_memory_tb_per_second
from megatron_cpt.plan.machine import MEMORY_SHARE, machine_of
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.plan.step_time import step_time
from megatron_cpt.record.store import write_text
from megatron_cpt.record.unknown import Figure, Unavailable, combine, show

_METRICS_NAME = "metrics.jsonl"
_FIRST_STEPS = 2  # of an attempt: allocation and first use of kernels are not what a step takes


@dataclass(frozen=True)
class Measured:
    """A finished run's seconds per step, its plan's, and the step model's on the measured device."""

    seconds: float
    num_steps: int
    planned_low: Figure
    planned: Figure
    planned_high: Figure
    predicted: Figure


def calibrate(config: ExperimentConfig, *, out: Path | None) -> str:
    """Measure, write the device where `out` says, and return the text. Nothing else is changed.

    Raises:
        ConfigError: `out` exists, or its folder does not.
    """
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise ConfigError(
            "The measured device cannot be written there.",
            where=out,
            rule="a new file in a folder that exists, so that nothing is overwritten",
            next_step="Name another file, e.g. mine/gpu/this_host.yaml, and use it with --config-dir mine gpu=this_host.",
        )
    device, notes = measure_device(config)
    lines = [f"{device.name}, {date.today().isoformat()}:"]
    lines += [
        f"  {label:<18}{show(figure, pattern)}"
        for label, figure, pattern in (
            ("matrix products", _figure(device.matmul_tflops, notes), "{:.4g} TFLOP/s"),
            ("memory", _figure(device.memory_tb_per_second, notes), "{:.4g} TB/s"),
            ("link", _figure(device.link_gb_per_second, notes), "{:.4g} GB/s each way between two ranks"),
        )
    ]
    lines += [f"  {note}" for note in notes]
    if out is not None:
        kept = {key: value for key, value in vars(device).items() if value is not None}
        write_text(out, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
        lines.append(f"written to {out}")
    lines += _compared(config, device)
    return "\n".join(lines) + "\n"


def _figure(value: float | None, notes: list[str]) -> Figure:
    return value if value is not None else Unavailable("not measured" if notes else "see above")


def measure_device(config: ExperimentConfig) -> tuple[GpuConfig, list[str]]:
    """Return the device that a rank of this configuration has here, and what could not be measured."""
    cluster, notes = config.cluster, []
    if cluster.backend == "cpu":
        matrix = measure_matrix_tflops(cluster.threads_per_rank, num_processes=cluster.ranks_per_node)
        memory = measure_memory_tb_per_second(cluster.threads_per_rank, num_processes=cluster.ranks_per_node)
        link = measure_link_gb_per_second()
        for figure in (matrix, memory, link):
            notes += [str(figure)] if isinstance(figure, Unavailable) else []
        memory = combine(lambda rate: rate / MEMORY_SHARE, memory)  # the step model takes a share of what a data sheet would say
        return (
            GpuConfig(
                name="CPU of this host, measured",
                source=f"measured on this host with {cluster.ranks_per_node} ranks of {cluster.threads_per_rank} threads side by side",
                dense_tflops=_number(matrix),
                matmul_tflops=_number(matrix),
                memory_tb_per_second=_number(memory),
                link_gb_per_second=_number(link),
            ),
            notes,
        )
    answer = _ask("cuda")
    if isinstance(answer, Unavailable):
        return GpuConfig(name=config.gpu.name, source="nothing could be measured"), [str(answer)]
    return (
        GpuConfig(
            name=str(answer["name"]),
            source="measured on this host's first GPU; dense_tflops and the links are those of " + config.gpu.name,
            dense_tflops=config.gpu.dense_tflops,
            matmul_tflops=float(answer["matmul_tflops"]),
            memory_tb_per_second=float(answer["memory_tb_per_second"]) / MEMORY_SHARE,
            link_gb_per_second=config.gpu.link_gb_per_second,
            network_gb_per_second=config.gpu.network_gb_per_second,
            num_multiprocessors=int(answer["num_multiprocessors"]),
            memory_gb=config.gpu.memory_gb,
        ),
        ["the link between GPUs is not measured: nccl-tests does that"],
    )


def _number(figure: Figure) -> float | None:
    return None if isinstance(figure, Unavailable) else float(f"{figure:.4g}")


def measure_link_gb_per_second() -> Figure:
    """Measure the all-reduce of two gloo ranks on this machine, in GB/s each way."""
    with tempfile.TemporaryDirectory() as folder:
        answer = _ask("link", f"{folder}/store")
    return float(answer) if isinstance(answer, float | int) else answer if isinstance(answer, Unavailable) else math.nan


def _ask(kind: str, *rest: str) -> Any:
    """Run the measuring process, or two of them for a link, and return what it says, or why there is nothing."""
    ranks = ["0", "1"] if kind == "link" else [""]
    commands = [[sys.executable, "-m", "megatron_cpt.line.link_rate", kind, *rest, *([rank] if rank else [])] for rank in ranks]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    except subprocess.TimeoutExpired:
        return Unavailable(f"{kind} could not be measured in time")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    if any(process.returncode for process in running):
        complaint = next(stderr for (_, stderr), process in zip(outputs, running, strict=True) if process.returncode)
        return Unavailable(f"{kind} could not be measured: {(complaint.strip().splitlines() or ['no reason given'])[-1][:200]}")
    return json.loads(outputs[0][0])


def _compared(config: ExperimentConfig, device: GpuConfig) -> list[str]:
    folder = Run(config).folder
    plan_path, metrics_path = folder / "plan" / PLAN_NAME, folder / "train" / _METRICS_NAME
    if not plan_path.is_file() or not metrics_path.is_file():
        return [f"no run to compare with in {folder}: megatron-cpt run --until train ..., then calibrate again"]
    plan = RunPlan.load(plan_path)
    found = measured_run(plan, metrics_path, config, device)
    if found is None:
        return [f"the run in {folder} has no more than {_FIRST_STEPS} recorded steps: too few to compare"]
    lines = [f"run {plan.run_name}: {found.seconds:.4g} s a step, the median of {found.num_steps} (the first {_FIRST_STEPS} left out)"]
    for label, figure in (
        ("planned, likely", found.planned), ("planned, low", found.planned_low), ("planned, high", found.planned_high),
        ("from first principles on the device above", found.predicted),
    ):  # fmt: skip
        ratio = combine(lambda seconds: found.seconds / seconds, figure)
        lines.append(f"  {label}: {show(figure, '{:.4g} s')}; measured / estimated = {show(ratio, '{:.3f}')}")
    return [*lines, "  no estimate is corrected by this ratio: set gpu.mfu_* if you want plans to follow it"]


def measured_run(plan: RunPlan, metrics_path: Path, config: ExperimentConfig, device: GpuConfig) -> Measured | None:
    """Return what a run took and what was expected of it, None where too few steps are recorded. A torn last line is left out."""
    seconds = []
    for line in metrics_path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("kind") == "step":
            seconds.append(float(record["seconds"]))
    taken = seconds[_FIRST_STEPS:]
    if not taken:
        return None
    machine = machine_of(device, config.cluster, dtype=plan.layout.dtype)
    predicted: Figure = machine if isinstance(machine, Unavailable) else math.nan
    if not isinstance(machine, Unavailable):
        predicted = step_time(plan.shape, plan.layout, machine, num_rows=plan.vocab.num_padded_rows).total
    estimate, steps = plan.estimate, plan.estimate.tokens / plan.layout.tokens_per_step
    return Measured(
        seconds=statistics.median(taken),
        num_steps=len(taken),
        planned_low=combine(lambda value: value / steps, estimate.seconds_low),
        planned=combine(lambda value: value / steps, estimate.seconds),
        planned_high=combine(lambda value: value / steps, estimate.seconds_high),
        predicted=predicted,
    )
