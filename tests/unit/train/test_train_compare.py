"""Two runs agree or differ by name, step and size; nothing that is missing counts as equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.train.compare import compare_runs

ROOT = Path(__file__).parents[3]
STEPS = [(1, 6.0, 2.0), (2, 5.5, 1.5), (3, 5.0, 1.25)]


def run(folder: Path, name: str, *, steps: list[tuple[int, float, float]] | None = None, **changes: Any) -> Path:
    """Write a run's metrics, with an evaluation and a resume between the steps, and a last line that a kill left torn."""
    records: list[dict[str, Any]] = []
    for step, loss, norm in STEPS if steps is None else steps:
        counts = {"samples": 8 * step, "tokens": 256 * step, "source_samples": {"law": 8 * step}, "source_tokens": {"law": 256 * step}}
        records.append(
            {"kind": "step", "step": step, "loss": loss, "grad_norm": norm, "lr": 1e-3, "seconds": 0.1 * step, **counts, **changes}
        )
        records.append({"kind": "eval", "step": step, "bits_per_byte": {"law": 1.0}})
    path = folder / name / "train" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "step", "st', encoding="utf-8")
    return folder / name


def different(left: Path, right: Path, **options: Any) -> list[str]:
    return [each.name for each in compare_runs(left, right, **options) if each.num_different]


def test_equal_runs_agree_exactly_whatever_their_times(tmp_path: Path) -> None:
    assert different(run(tmp_path, "a"), run(tmp_path, "b", seconds=9.0)) == []


def test_a_difference_is_relative_to_the_larger_value_and_the_worst_step_is_named(tmp_path: Path) -> None:
    left, right = run(tmp_path, "a"), run(tmp_path, "b", steps=[(1, 6.0, 2.0), (2, 5.5, 1.6), (3, 5.0, 1.26)])
    (norm,) = [each for each in compare_runs(left, right) if each.name == "grad_norm"]
    assert (norm.num_different, norm.at_step, norm.left, norm.right) == (2, 2, 1.5, 1.6)
    assert norm.largest == pytest.approx(0.1 / 1.6)
    assert different(left, right) == ["grad_norm"]
    assert different(left, right, tolerance=0.0624) == ["grad_norm"]  # 0.1 / 1.6 = 0.0625
    assert different(left, right, tolerance=0.0626) == []
    assert different(left, right, last_step=1) == []


def test_counts_are_compared_exactly_under_any_tolerance(tmp_path: Path) -> None:
    left, right = run(tmp_path, "a"), run(tmp_path, "b", source_samples={"law": 7})
    assert different(left, right, tolerance=0.5) == ["source_samples"]


def test_a_last_bit_is_a_difference_without_a_tolerance(tmp_path: Path) -> None:
    left, right = run(tmp_path, "a"), run(tmp_path, "b", steps=[*STEPS[:2], (3, 5.000000000000001, 1.25)])
    assert different(left, right) == ["loss"]
    assert different(left, right, tolerance=1e-12) == []


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"steps": STEPS[:2]}, {}, r"b/train/metrics.jsonl lacks 1 of the other's steps: 3"),
        ({"steps": [*STEPS, (4, 4.9, 1.2)]}, {}, r"a/train/metrics.jsonl lacks 1 of the other's steps: 4"),
        ({"steps": [*STEPS, STEPS[0]]}, {}, r"step 1 is there twice"),
        ({"steps": []}, {}, r"no step in the range"),
        ({}, {"first_step": 7}, r"no step in the range"),
        ({"loss": None}, {}, r"step 3 has no number for loss: None"),
        ({"lr": "1e-3"}, {}, r"step 1 has no number for lr: '1e-3'"),
        ({"step": "first"}, {}, r"the number 'first'"),
    ],
)
def test_what_is_missing_or_twice_is_an_error_and_no_agreement(changes: dict, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        compare_runs(run(tmp_path, "a"), run(tmp_path, "b", **changes), **options)


def test_a_folder_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no step records"):
        compare_runs(run(tmp_path, "a"), tmp_path)


@pytest.mark.parametrize("tolerance", [-1e-5, 1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        compare_runs(run(tmp_path, "a"), run(tmp_path, "b"), tolerance=tolerance)


def test_the_command_says_it_with_a_table_and_an_exit_code(tmp_path: Path) -> None:
    left, right = run(tmp_path, "a"), run(tmp_path, "b", steps=[*STEPS[:2], (3, 5.05, 1.25)])

    def command(*arguments: object) -> tuple[int, str]:
        line = [sys.executable, str(ROOT / "tools/compare_loss.py"), *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert command(left, left / "train" / "metrics.jsonl")[0] == 0
    code, said = command(left, right, "--tolerance", "1e-5")
    assert code == 1
    assert "9.90e-03        3  5.0 / 5.05" in said  # 0.05 / 5.05
    assert "different: loss" in said
    assert command(left, right, "--tolerance", "0.01")[0] == 0
    assert command(left, tmp_path / "nowhere")[0] == 3
    assert command(left, right, "--tolerance", "2")[0] == 2
