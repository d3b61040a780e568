"""The share of a device's peak that a run will use, as an interval from published runs; and what of the time interruptions leave.

`published_runs.csv` holds one published run a line, with the FLOPs per second that its authors count and the convention they count in.
Every line is turned into this project's own share: model FLOPs with causal attention and what is recomputed, over the peak, with the
pipeline's bubble taken out. What is left is what kernels and communication reach, which carries over to other layouts.
"""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.throughput import flops_per_token, recomputed_flops_per_token
from megatron_cpt.record.unknown import Figure, Interval, Unavailable

_TABLE = Path(__file__).with_name("published_runs.csv")
_SAME_CHIP = {"H200": "H100"}  # the same processor with more memory
_NEAR = 4.0  # published runs of a size within this factor are preferred
_ENOUGH = 4  # fewer near ones, and every size counts


@dataclass(frozen=True)
class PublishedRun:
    """A line of the table; `share` is of the dense peak of its precision, before bubble."""

    id: str
    gpu: str
    peak_tflops: float
    precision: str
    kind: str
    params_b: float
    num_gpus: int
    share: float
    source: str


@lru_cache(maxsize=1)
def published_runs() -> tuple[PublishedRun, ...]:
    """Read the table, in its order."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(_run_of(row) for row in csv.DictReader(file))


def _run_of(row: dict[str, str]) -> PublishedRun:
    bubble = (int(row["pipeline"]) - 1) / (int(row["virtual_pipeline"]) * int(row["micro_batches"]))
    return PublishedRun(
        id=row["id"],
        gpu=row["gpu"],
        peak_tflops=float(row["peak_tflops"]),
        precision=row["precision"],
        kind=row["kind"],
        params_b=float(row["params_b"]),
        num_gpus=int(row["gpus"]),
        share=float(row["tflops"]) * _own_count(row) * (1 + bubble) / float(row["peak_tflops"]),
        source=row["source"],
    )


def _own_count(row: dict[str, str]) -> float:
    """Return this project's count of FLOPs, recomputation with it, over the published count."""
    if row["convention"] == "causal" and row["recompute"] == "none":
        return 1.0
    shape = ModelShape(
        hidden_size=int(row["hidden"]),
        num_layers=int(row["layers"]),
        num_attention_heads=int(row["heads"]),
        num_query_groups=int(row["groups"]),
        head_dim=int(row["hidden"]) // int(row["heads"]),
        ffn_hidden_size=int(row["ffn"]),
        num_base_ids=int(row["vocabulary"]),
        max_position=int(row["sequence"]),
        norm_epsilon=1e-5,
        rotary_base=0.0,
        tied_embeddings=True,
        family=row["family"],
    )
    rows, length = shape.num_base_ids, int(row["sequence"])
    published = flops_per_token(shape, num_rows=rows, sequence_length=length, causal=row["convention"] == "causal")
    if row["convention"] == "full, recompute counted":
        published += flops_per_token(shape, num_rows=0, sequence_length=length, causal=False) / 3
    own = flops_per_token(shape, num_rows=rows, sequence_length=length)
    return (own + recomputed_flops_per_token(shape, sequence_length=length, recompute=row["recompute"])) / published


def comparable_runs(
    *, gpu_name: str, peak_tflops: float, fp8: bool, has_experts: bool, num_params: float, runs: tuple[PublishedRun, ...] | None = None
) -> tuple[PublishedRun, ...]:
    """Return the published runs that speak for a run: same device, precision and kind of model, of a near size where there are enough.

    The device must have the same dense peak, so that a PCIe part is not taken for its SXM namesake.
    """
    device = gpu_name.split(maxsplit=1)[0] if gpu_name.split() else ""
    known = [
        run
        for run in (published_runs() if runs is None else runs)
        if run.precision == ("fp8" if fp8 else "bf16") and run.kind == ("moe" if has_experts else "dense")
        and math.isclose(run.peak_tflops, peak_tflops, rel_tol=0.01)
    ]  # fmt: skip
    same = [run for run in known if run.gpu == device] or [run for run in known if run.gpu == _SAME_CHIP.get(device)]
    near = [run for run in same if 1 / _NEAR <= run.params_b * 1e9 / num_params <= _NEAR]
    return tuple(near if len(near) >= _ENOUGH else same)


@lru_cache(maxsize=1)
def spread_of_runs() -> float:
    """Return the standard deviation of the logarithm of a share around its group's mean; a group is a device, precision and kind."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for run in published_runs():
        groups.setdefault((run.gpu, run.precision, run.kind), []).append(math.log(run.share))
    squares = sum(statistics.pvariance(shares) * len(shares) for shares in groups.values())
    return math.sqrt(squares / (len(published_runs()) - len(groups)))


def published_utilization(runs: tuple[PublishedRun, ...]) -> Interval | Unavailable:
    """Return an interval that a further run like these should fall in nine times of ten. No run is no interval, never a default one.

    Likely is their median. Low and high are a prediction interval of log shares, 1.645 s sqrt(1 + 1/n) to each side, with the spread s
    of all groups of the table: that of few runs of one author would be too narrow.
    """
    if not runs:
        return Unavailable("no published run on this device in this precision: set gpu.mfu_low, gpu.mfu_likely and gpu.mfu_high")
    likely = statistics.median(run.share for run in runs)
    wide = math.exp(1.645 * spread_of_runs() * math.sqrt(1 + 1 / len(runs)))
    return Interval(low=likely / wide, likely=likely, high=min(likely * wide, 1.0))


def coverage() -> tuple[int, int, tuple[PublishedRun, ...]]:
    """Leave out each published run in turn: return how many of how many fell in the interval of the others, and those that did not."""
    runs, outside, judged = published_runs(), [], 0
    for run in runs:
        others = comparable_runs(
            gpu_name=run.gpu,
            peak_tflops=run.peak_tflops,
            fp8=run.precision == "fp8",
            has_experts=run.kind == "moe",
            num_params=run.params_b * 1e9,
            runs=tuple(other for other in runs if other is not run),
        )
        interval = published_utilization(others)
        if isinstance(interval, Unavailable):
            continue
        judged += 1
        if not interval.low <= run.share <= interval.high:
            outside.append(run)
    return judged - len(outside), judged, tuple(outside)


def checkpoint_interval_seconds(*, mtbf_seconds: float, checkpoint_seconds: float) -> float:
    """Return the time between checkpoints that loses least: sqrt(2 x checkpoint x MTBF) (Young 1974, Communications of the ACM 17(9))."""
    return math.sqrt(2 * checkpoint_seconds * mtbf_seconds)


def goodput(
    *, num_devices: int, device_mtbf_hours: Figure, checkpoint_seconds: float, restart_seconds: float, interval_seconds: float | None = None
) -> Figure:
    """Return the share of elapsed time that trains.

    Lost are the writing of checkpoints, at an interruption half an interval of work and a restart. Devices fail independently, so n of
    them fail n times as often; an interval of None is Young's. First order, as Daly 2006 (FGCS 22(3)) gives it: for losses well below 1.

    Raises no error: where nothing would be left, the figure is unavailable and says so.
    """
    if isinstance(device_mtbf_hours, Unavailable):
        return device_mtbf_hours
    mtbf = device_mtbf_hours * 3600 / num_devices
    interval = interval_seconds or checkpoint_interval_seconds(mtbf_seconds=mtbf, checkpoint_seconds=checkpoint_seconds)
    lost = checkpoint_seconds / (interval + checkpoint_seconds) + (interval / 2 + restart_seconds) / mtbf
    if lost >= 1:
        return Unavailable(f"interrupted every {mtbf:.3g} s, {num_devices} devices lose more than they train: write checkpoints more often")
    return 1 - lost
