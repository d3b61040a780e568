"""Compares the step records of two runs' `metrics.jsonl`, exactly or within a tolerance. Needs neither torch nor megatron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import ConfigError, DataError, raise_all
from megatron_cpt.record.store import read_lines
from megatron_cpt.train.metrics import METRICS_NAME

FIGURES = ("loss", "grad_norm", "lr")  # may differ within the tolerance
COUNTS = ("samples", "tokens", "source_samples", "source_tokens")  # never
SHOWN_STEPS = 5


@dataclass(frozen=True)
class Difference:
    """How one value of the step records differs between two runs.

    Attributes:
        num_different: steps at which it differs by more than was allowed.
        largest: the largest |a - b| / max(|a|, |b|) of all steps; None for counts, which are equal or not.
        at_step: the step of the largest difference, or the first one at which a count differs; None when nothing differs.
        left, right: both values at that step.
    """

    name: str
    num_steps: int
    num_different: int
    largest: float | None
    at_step: int | None
    left: Any
    right: Any


def compare_runs(
    left: Path, right: Path, *, tolerance: float = 0.0, first_step: int | None = None, last_step: int | None = None
) -> list[Difference]:
    """Compare two runs step by step: losses, gradient norms and rates within a relative tolerance, counts exactly.

    Args:
        left, right: a run folder, or the metrics file itself.
        tolerance: largest allowed |a - b| / max(|a|, |b|); 0 asks for the same bits.
        first_step, last_step: leave out steps before and after; None is no limit.

    Raises:
        ConfigError: the tolerance or the range of steps is none.
        DataError: a file or a value is missing, or a step is in one run and not in the other.
    """
    if not 0 <= tolerance < 1:
        raise ConfigError("The tolerance is not a relative difference.", where="tolerance", value=tolerance, rule="0 or more, below 1")
    runs = [_steps(path, first_step=first_step, last_step=last_step) for path in (left, right)]
    _require_same_steps(runs, (left, right))
    steps = sorted(runs[0])
    return [_difference(name, steps, runs[0], runs[1], tolerance=tolerance if name in FIGURES else None) for name in (*FIGURES, *COUNTS)]


def table(differences: Sequence[Difference]) -> str:
    """Return the differences as lines of text."""
    lines = [f"{'value':<15} {'steps':>6} {'differ':>6} {'largest':>10} {'at step':>8}  left / right"]
    for each in differences:
        largest = "" if each.largest is None else f"{each.largest:.2e}"
        where = "" if each.at_step is None else f"{each.at_step}"
        values = "" if each.at_step is None else f"{each.left!r} / {each.right!r}"
        lines.append(f"{each.name:<15} {each.num_steps:>6} {each.num_different:>6} {largest:>10} {where:>8}  {values}".rstrip())
    return "\n".join(lines)


def metrics_file(path: Path) -> Path:
    """Return the metrics file of a run folder, or the path itself when it names a file."""
    return path / "train" / METRICS_NAME if path.is_dir() else path


def _steps(path: Path, *, first_step: int | None, last_step: int | None) -> dict[int, dict[str, Any]]:
    file = metrics_file(path)
    if not file.is_file():
        raise DataError("The run has no step records.", where=file, next_step="Name a run folder that was trained, or a metrics.jsonl.")
    steps: dict[int, dict[str, Any]] = {}
    problems = []
    for record in read_lines(file):
        if record.get("kind") != "step":
            continue
        step = record.get("step")
        if not isinstance(step, int):
            problems.append(f"a step record has the number {step!r}")
            continue
        if (first_step is not None and step < first_step) or (last_step is not None and step > last_step):
            continue
        if step in steps:
            problems.append(f"step {step} is there twice")
        problems += [f"step {step} has no number for {name}: {record.get(name)!r}" for name in FIGURES if not _is_number(record.get(name))]
        problems += [f"step {step} has no {name}" for name in COUNTS if name not in record]
        steps[step] = record
    raise_all(DataError, problems, where=file)
    if not steps:
        wanted = f"{'the first' if first_step is None else first_step} to {'the last' if last_step is None else last_step}"
        raise DataError("The run has no step in the range.", where=file, value=f"steps {wanted}")
    return steps


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_same_steps(runs: Sequence[dict[int, Any]], paths: Sequence[Path]) -> None:
    left, right = map(set, runs)
    problems = [
        f"{metrics_file(path)} lacks {len(missing)} of the other's steps: "
        + ", ".join(map(str, missing[:SHOWN_STEPS]))
        + (", ..." if len(missing) > SHOWN_STEPS else "")
        for path, missing in zip(paths, (sorted(right - left), sorted(left - right)), strict=True)
        if missing
    ]
    raise_all(DataError, problems, next_step="Limit the comparison to steps that both runs have (--first-step, --last-step).")


def _difference(name: str, steps: Sequence[int], left: dict[int, Any], right: dict[int, Any], *, tolerance: float | None) -> Difference:
    sizes = {step: _relative(left[step][name], right[step][name]) for step in steps}
    worst = max(steps, key=lambda step: sizes[step])
    differs = sizes[worst] > 0
    return Difference(
        name=name,
        num_steps=len(steps),
        num_different=sum(size > (tolerance or 0.0) for size in sizes.values()),
        largest=sizes[worst] if tolerance is not None else None,
        at_step=worst if differs else None,
        left=left[worst][name] if differs else None,
        right=right[worst][name] if differs else None,
    )


def _relative(a: Any, b: Any) -> float:
    """Return |a - b| / max(|a|, |b|) of numbers; for anything else 0 when equal and 1 when not."""
    if a == b:
        return 0.0
    if not (_is_number(a) and _is_number(b)):
        return 1.0
    return float(abs(a - b) / max(abs(a), abs(b)))
