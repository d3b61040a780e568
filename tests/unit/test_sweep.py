"""Jobs of a sweep have names of their own, do equal work once, and do not stop each other; the exit code is that of the gravest end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_cpt.cli import main
from megatron_cpt.config.compose import RUN_NAME
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_lines
from megatron_cpt.sweep import Job, gravest, names, run_jobs


def test_names_tell_runs_apart_by_the_values_that_vary() -> None:
    assert names(["t"] * 2, [["schedule.peak_lr=0.001"], ["schedule.peak_lr=0.0001"]]) == ["t-peak_lr_0.001", "t-peak_lr_0.0001"]
    both = [["blend.shares.law=0.7", "seed=1"], ["blend.shares.law=0.9", "seed=1"]]
    assert names(["t"] * 2, both) == ["t-law_0.7-seed_1", "t-law_0.9-seed_1"]
    twice = [["schedule.new_rows_lr=1", "optim.new_rows_lr=2"], ["schedule.new_rows_lr=2", "optim.new_rows_lr=2"]]
    assert names(["t"] * 2, twice)[0] == "t-schedule.new_rows_lr_1-optim.new_rows_lr_2"
    assert names(["a", "b"], [["run_name=a"], ["run_name=b"]]) == ["a", "b"]  # they are apart already
    assert names(["a", "a"], [["run_name=a", "seed=1"], ["run_name=a", "seed=2"]]) == ["a-seed_1", "a-seed_2"]


def test_names_are_plain_unique_and_short_whatever_the_values_are() -> None:
    values = ["{law: 0.7, web: 0.3}", "{law:0.7,web:0.3}", "'../x'", "x" * 300, "x" * 299 + "y", "法律"]
    found = names(["t"] * len(values), [[f"blend.shares={value}"] for value in values])
    assert len(set(found)) == len(values)
    assert all(RUN_NAME.fullmatch(name) and len(name) <= 100 for name in found)


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0, 0], 0), ([0, 5, 0], 5), ([5, 6], 6), ([0, 75], 75), ([5, 3, 2, 0], 3), ([0, 1, 75], 1), ([5, 130], 130)],
)
def test_the_gravest_end_is_the_sweeps(codes: list[int], code: int) -> None:
    assert gravest(codes) == code


@pytest.mark.parametrize(
    ("codes", "is_fail_fast", "done"),
    [([0, 3, 5, 0], False, 4), ([0, 3, 5, 0], True, 2), ([5, 6, 0, 0], True, 4), ([0, 75, 0, 0], False, 2), ([130, 0, 0, 0], False, 1)],
)
def test_a_failure_stops_no_other_job_unless_asked_and_a_stop_ends_the_sweep(codes: list[int], is_fail_fast: bool, done: int) -> None:
    class Config:
        def __init__(self, name: str) -> None:
            self.run_name = name

    jobs = [Job((), (f"seed={number}",), Config(f"t-seed_{number}")) for number in range(4)]  # type: ignore[arg-type]
    ran: list[str] = []

    def do(job: Job) -> int:
        ran.append(job.config.run_name)
        return codes[len(ran) - 1]

    said: list[str] = []
    run_jobs(jobs, do, say=said.append, is_fail_fast=is_fail_fast)
    assert len(ran) == done
    assert sum(line.endswith("not begun") for line in said) == 4 - done


def test_a_sweep_does_equal_work_once_and_goes_on_after_a_failed_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds by a source that is there and one that is not: the corpus of the first is the third's, at the cost of one."""
    for name in ("china_law", "mmlu_questions", "nist_controls"):
        lines = [json.dumps({"text": f"{name} document {number} " + "words and more words " * 9}) + "\n" for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sources = [f"source.{name}.path={tmp_path}/{name}.jsonl" for name in ("mmlu_questions", "nist_controls")]
    paths = f"source.china_law.path={tmp_path}/china_law.jsonl,{tmp_path}/missing.jsonl"
    runs = tmp_path / "runs"
    argv = ["run", "-m", "experiment=tiny", "seed=1,2", paths, *sources, f"runs_dir={runs}", "--only", "corpus"]
    assert main(argv) == 3
    captured = capsys.readouterr()
    first, second = [path for path in sorted(runs.iterdir()) if (path / "corpus").is_dir()]
    assert captured.out.count("finished\n") == 2
    assert captured.out.count("a verdict that is unknown: exit code 3") == 2
    assert "missing.jsonl" in captured.err
    assert Manifest.load(second / "corpus").taken_from == first.name
    assert f"taken over from {first.name}" in captured.out
    (event,) = [line for line in read_lines(second / "ledger.jsonl") if line.get("event") == "taken_over"]
    assert (event["stage"], event["from"], event["fingerprint"]) == ("corpus", first.name, Manifest.load(first / "corpus").fingerprint)
    billed = [line["run"] for line in read_lines(runs / "ledger.jsonl") if line["kind"] == "end" and line["status"] == "finished"]
    assert billed == [first.name]  # once
    assert main(argv) == 3  # again: nothing is done anew
    assert capsys.readouterr().out.count("finished before with equal inputs") == 2


def test_every_configuration_is_composed_before_the_first_job_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "-m", "experiment=tiny", "seed=1,two", f"runs_dir={tmp_path / 'runs'}", "--only", "corpus"]
    assert main(argv) == 2
    assert "two" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
