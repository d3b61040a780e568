"""Run every benchmark of this folder and write RESULTS.md: `make bench`, or `python benchmarks/run_all.py [--only train_step ...]`.

Rounds are few, and what would take longer than minutes is shortened; `--full` takes each benchmark's own defaults, which
are those behind docs/measured/benchmarks.md, and hours. Each runs as a process of its own, one after the other, with a time limit.
What could not run stays in the table with its reason, and the exit code is then 1. Missed goals do not fail: a shared machine drifts,
and one round is no median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench_figures import FILE_VARIABLE  # beside this script

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("outputs/bench/run")
ROWS = Path("outputs/bench/row_rules.json")
WHEEL = "data/downloads/scancode_toolkit_mini-32.5.0-cp311-none-any.whl"
BYTE_LEVEL, SENTENCEPIECE = "data/models/llama3-tokenizer/tokenizer.json", "data/models/mistral-tokenizer/tokenizer.model"
SAMPLES = ("smollm2-135m", "china_law", "war_and_peace", "us_history", "surgery")
TOKENIZERS = ("llama3", "mistral")
PACKAGES = ("megatron-core", "torch", "transformers", "tokenizers", "sentencepiece", "gigatoken", "datatrove", "rensa", "numpy")
SHORT_LIMIT, FULL_LIMIT = 400, 4 * 3600


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder.

    Attributes:
        short: arguments that shorten it.
        full: arguments beside its defaults when it runs at full length.
        needs_run: whether it starts from a run of the quickstart that has its plan.
    """

    name: str
    short: Sequence[str] = ()
    full: Sequence[str] = ()
    needs_run: bool = False


@dataclass
class Outcome:
    """What a benchmark came to; `failure` says why it has no figures."""

    benchmark: Benchmark
    command: str
    seconds: float = 0.0
    figures: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""


PAIRS = ("--again", "--output", "outputs/bench/pairs")
INDEX = ("--tokenizer", BYTE_LEVEL, "--sentencepiece", SENTENCEPIECE)
BENCHMARKS = (
    Benchmark("train_step", ("--rounds", "2")),
    Benchmark("train_loop", (str(RUN), "--rounds", "1", "--steps", "4", "--samples", "1"), (str(RUN),), needs_run=True),
    Benchmark("async_save", ("--rounds", "1")),
    Benchmark("convert", ("--rounds", "2")),
    Benchmark("vocab_train", ("--kinds", "bpe", "byte_level", "--megabytes", "60", "--rounds", "1"), ("--kinds", "bpe", "byte_level")),
    Benchmark("vocab_train", ("--kinds", "unigram", "--megabytes", "12", "--pieces", "4000", "--rounds", "1"), ("--kinds", "unigram")),
    Benchmark("vocab_pairs", (*PAIRS, "--bases", "smollm2", "--domains", "china_law"), PAIRS),
    Benchmark(
        "row_rules",
        (str(RUN), "--rule", "mean", "--steps", "6", "--output", str(ROWS)),
        (str(RUN), "--rule", "mean", "--rule", "fitted", "--output", str(ROWS)),
        needs_run=True,
    ),
    Benchmark("index_speed", (*INDEX, "--repeats", "1"), INDEX),
    Benchmark("corpus_filter", ("--licences", WHEEL, "--rounds", "1"), ("--licences", WHEEL)),
    Benchmark("corpus_dedup", ("--runs", "1")),
    Benchmark("corpus_scale", ("--rounds", "1"), ("--rounds", "2")),
    Benchmark("select_domain"),
    Benchmark("requeue_goodput", ("--days", "10", "--intervals", "10", "27", "80")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in BENCHMARKS], help="these alone; the table then holds only them")
    parser.add_argument("--full", action="store_true", help="full inputs: hours")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "RESULTS.md")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    benchmarks = [each for each in BENCHMARKS if not chosen.only or each.name in chosen.only]
    before = load()
    prepare(benchmarks)
    started = time.perf_counter()
    outcomes = []
    for benchmark in benchmarks:
        outcomes.append(run(benchmark, full=chosen.full))
        last = outcomes[-1]
        print(f"{benchmark.name:<16}{last.seconds:6.0f} s  {last.failure or f'{len(last.figures)} figures'}", flush=True)
    text = page(outcomes, seconds=time.perf_counter() - started, full=chosen.full, before=before)
    chosen.output.write_text(text, encoding="utf-8")
    print(f"written: {chosen.output}")
    return int(any(outcome.failure for outcome in outcomes))


def prepare(benchmarks: Sequence[Benchmark]) -> None:
    """Fetch what the benchmarks read, and walk the quickstart to its plan for those that start there."""
    attempt([sys.executable, "tools/fetch_samples.py", *SAMPLES], "samples")
    attempt([sys.executable, "tools/fetch_tokenizers.py", *TOKENIZERS], "tokenizers")
    if any(each.needs_run for each in benchmarks):
        overrides = [f"runs_dir={RUN.parent}", f"run_name={RUN.name}", "tokenizer.row_init=mean"]
        line = [sys.executable, "-m", "megatron_cpt", "run", "--until", "plan", "experiment=quickstart"]
        attempt([*line, *overrides], "the quickstart up to its plan")


def attempt(command: list[str], what: str) -> None:
    """Run a preparation; a benchmark that misses what it should have left says so itself."""
    print(f"preparing: {what}", flush=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"preparing {what} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)


def run(benchmark: Benchmark, *, full: bool) -> Outcome:
    """Run one benchmark to its end or its time limit."""
    arguments = [f"benchmarks/{benchmark.name}.py", *(benchmark.full if full else benchmark.short)]
    outcome = Outcome(benchmark, " ".join(["python", *arguments]))
    limit = FULL_LIMIT if full else SHORT_LIMIT
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "figures.jsonl"
        environment = os.environ | {FILE_VARIABLE: str(path)}
        command = [sys.executable, *arguments]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=limit, check=False)
            if done.returncode:
                outcome.failure = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            outcome.failure = f"took longer than {limit} s"
        if path.exists():
            outcome.figures = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    outcome.seconds = time.perf_counter() - started
    if not outcome.failure and not outcome.figures:
        outcome.failure = "ended well without a figure"
    return outcome


def page(outcomes: Sequence[Outcome], *, seconds: float, full: bool, before: str) -> str:
    """Return RESULTS.md."""
    command = "make bench BENCH_ARGS=--full" if full else "make bench"
    how = "Ratios come from interleaved runs of both sides in one go, and are of medians."
    if not full:
        how += (
            " This is the short form: one or two rounds each, and some inputs shortened. The goals were set for the full one, whose figures"
            " docs/measured/benchmarks.md has; `make bench BENCH_ARGS=--full` repeats it, in hours."
        )
    lines = [
        "# Results of all benchmarks",
        "",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.1f} min after downloads and preparation.",
        f"Machine: {machine()}; load average before it began: {before}.",
        f"Versions: {versions()}.",
        "",
        how,
        "",
        "| figure | value | goal | made of |",
        "| --- | ---: | --- | --- |",
    ]
    lines += [row(each) for outcome in outcomes for each in outcome.figures]
    lines += ["", "| benchmark | seconds | alone |", "| --- | ---: | --- |"]
    lines += [f"| {each.benchmark.name} | {each.seconds:.0f} | `{each.command}` |" for each in outcomes]
    failed = [f"- {each.benchmark.name}: {each.failure}" for each in outcomes if each.failure]
    return "\n".join([*lines, *(["", "Without figures or cut short:", "", *failed] if failed else [])]) + "\n"


def row(figure: dict[str, Any]) -> str:
    value, low, high = figure["value"], figure["at_least"], figure["at_most"]
    unit = figure["unit"]
    shown = f"{value:.3g} {unit}".strip() if abs(value) < 1000 else f"{value:,.0f} {unit}".strip()
    goal = f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else ""
    if goal:
        goal += ", met" if (low is None or value >= low) and (high is None or value <= high) else ", not met here"
    return f"| {figure['what']} | {shown} | {goal} | {figure['detail']} |".replace("  ", " ")


def machine() -> str:
    """Return processor, cores and memory in words; where the system does not tell the processor's name, its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
