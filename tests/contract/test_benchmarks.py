"""`make bench` runs every script of benchmarks/, and tells what could not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
BESIDE = {"run_all", "bench_figures", "smollm2_shape"}  # no benchmarks themselves


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import run_all  # noqa: PLC0415

    return run_all


def test_every_script_of_the_folder_is_run(run_all: ModuleType) -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - BESIDE
    assert {each.name for each in run_all.BENCHMARKS} == scripts
    for name in scripts:
        assert "note(" in (FOLDER / f"{name}.py").read_text(encoding="utf-8"), f"{name} hands over no figure"


def test_the_page_says_which_goal_was_met_and_what_could_not_run(run_all: ModuleType) -> None:
    figures = [
        {"what": "speed", "value": 1.234, "unit": "times", "at_least": 1.0, "at_most": None, "detail": "2 s against 3 s"},
        {"what": "stall", "value": 0.5, "unit": "times", "at_least": None, "at_most": 0.3, "detail": ""},
    ]
    ran = run_all.Outcome(run_all.Benchmark("one"), "python benchmarks/one.py", 7.2, figures)
    failed = run_all.Outcome(run_all.Benchmark("two"), "python benchmarks/two.py", 1.0, [], "no such wheel")
    page = run_all.page([ran, failed], seconds=60.0, full=False, before="0.1")
    assert "| speed | 1.23 times | at least 1, met | 2 s against 3 s |" in page
    assert "| stall | 0.5 times | at most 0.3, not met here |" in page
    assert "- two: no such wheel" in page
    assert "| one | 7 | `python benchmarks/one.py` |" in page


def test_a_script_hands_its_figures_over(run_all: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    code = "from bench_figures import note; note('a', 1.5, 's'); note('b', 2.0, '%', at_most=3)"
    environment = {run_all.FILE_VARIABLE: str(path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER, env=environment, check=True)
    assert [json.loads(line)["what"] for line in path.read_text(encoding="utf-8").splitlines()] == ["a", "b"]


def test_a_benchmark_that_fails_or_finds_nothing_has_its_reason(run_all: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = run_all.run(run_all.Benchmark("select_domain", ("--samples", "nowhere")), full=False)
    assert "nowhere" in outcome.failure
    assert run_all.run(run_all.Benchmark("smollm2_shape"), full=False).failure == "ended well without a figure"


def test_ranks_can_import_the_benchmark_whose_module_they_run() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.train_loop", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
