"""How the corpus stage scales with its input: `python benchmarks/corpus_scale.py`. Prints one line a size and the fitted exponent.

The input is the Python source of this machine (the standard library and the installed packages), one record a file, at 1, 4 and 16 times
`--mb`. Each size runs in a process of its own, in turn, `--rounds` times; the figures are medians. CPU seconds are those of the run
and its workers, start-up included. The exponent is the slope of log seconds over log bytes: 1 is linear.
Peak memory is the largest of the parent and of any worker (`ru_maxrss`), which all engines share.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_figures import note  # beside this script

SIZES = (1, 4, 16)


def python_sources() -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of the Python files of this interpreter, over and over with a mark, so that no text stands twice."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py") if path.is_file())
    for turn in range(1000):
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            yield f"{turn}:{path}", text if turn == 0 else f"# turn {turn}\n{text}"


def write_inputs(folder: Path, smallest_mb: float) -> dict[int, Path]:
    """Write one jsonl file for each size; return their paths."""
    paths = {}
    for size in SIZES:
        paths[size] = folder / f"{size}.jsonl"
        left = smallest_mb * size * 1e6
        with paths[size].open("w", encoding="utf-8") as file:
            for name, text in python_sources():
                line = json.dumps({"id": name[-100:], "text": text}, ensure_ascii=False) + "\n"
                file.write(line)
                left -= len(line)
                if left <= 0:
                    break
    return paths


def run_once(path: Path, folder: Path, workers: int | None) -> dict[str, Any]:
    """Build a corpus of one file, in this process; return seconds, CPU seconds and peak memory."""
    from megatron_cpt.config.schema import CorpusConfig, EngineConfig, ProvenanceConfig, SourceConfig  # noqa: PLC0415
    from megatron_cpt.corpus.build import build_corpus  # noqa: PLC0415
    from megatron_cpt.record.manifest import StageResult  # noqa: PLC0415

    made = ProvenanceConfig("Python files of this machine", "2026", "read by this benchmark")
    source = SourceConfig(str(path), "text", "domain", "LicenseRef-mixed", made, "en")
    result = StageResult(folder)
    started = time.perf_counter()
    build_corpus(result, sources={"python": source}, say=lambda _: None, settings=CorpusConfig(EngineConfig(workers=workers)))
    seconds = time.perf_counter() - started
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    facts = result.facts["sources"]["python"]
    return {
        "seconds": seconds,
        "cpu_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "peak_mb": max(own.ru_maxrss, children.ru_maxrss) / 1000,
        "documents": facts["kept"],
    }


def exponent(megabytes: list[float], seconds: list[float]) -> float:
    """Return the slope of the least-squares line through (log MB, log s)."""
    x, y = [math.log(each) for each in megabytes], [math.log(each) for each in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=32.0, help="the smallest input")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="of the engine (default: every core)")
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(run_once(*chosen.once, chosen.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_inputs(Path(scratch), chosen.mb)
        found: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}
        for number in range(chosen.rounds):
            for size, path in paths.items():
                folder = Path(scratch) / f"out-{number}-{size}"
                folder.mkdir()
                workers = ["--workers", str(chosen.workers)] if chosen.workers else []
                argv = [sys.executable, __file__, *workers, "--once", str(path), str(folder)]
                found[size].append(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))
                shutil.rmtree(folder)
        megabytes = [path.stat().st_size / 1e6 for path in paths.values()]
    medians = {key: [statistics.median(run[key] for run in found[size]) for size in SIZES] for key in ("seconds", "cpu_seconds", "peak_mb")}
    for place, size in enumerate(SIZES):
        seconds, cpu, peak = (medians[key][place] for key in ("seconds", "cpu_seconds", "peak_mb"))
        print(
            f"{size:>2}x {megabytes[place]:7.1f} MB  {seconds:6.2f} s  {cpu:6.2f} CPU s  {megabytes[place] / cpu:5.1f} MB per CPU second"
            f"  peak {peak:.0f} MB  {found[size][0]['documents']:,} documents"
        )
    of_clock, of_cpu = exponent(megabytes, medians["seconds"]), exponent(megabytes, medians["cpu_seconds"])
    peak = f"{medians['peak_mb'][0]:.0f} MB at 1x, {medians['peak_mb'][-1]:.0f} MB at 16x"
    note("corpus stage: exponent of time over input size, 1 to 16 times", of_clock, "", detail=f"{megabytes[-1]:.0f} MB at 16x")
    growth = medians["peak_mb"][-1] / medians["peak_mb"][0]
    note("corpus stage: peak memory at 16 times the input against 1", growth, "times", detail=peak)
    print(f"result: exponent {of_clock:.3f} of seconds, {of_cpu:.3f} of CPU seconds; peak memory {peak}")


if __name__ == "__main__":
    main()
