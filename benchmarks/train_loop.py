"""What the training loop adds to a step, start-up, and weak scaling: `python benchmarks/train_loop.py runs/quickstart`.

Takes a run that has a plan, an index and an initial checkpoint, and trains a few of its steps through the product's own entry under
torchrun, in a folder of their own. Three settings take turns, because one machine's speed drifts within minutes:

- whole: one rank with every core, for the loop's overhead: all of a step's time outside forward, backward and optimizer (data, the
  ranks' agreement, metrics, wandb, progress), and for start-up: from the command's start to the first step's.
- one, two: one rank and two ranks of one core each, the same samples a rank, for weak scaling.

Figures are medians over the steps after the first two of all rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULT = "timings.json"
WARM_UP_STEPS = 2
NEVER = 1_000_000
STARTED_VARIABLE = "BENCHMARK_STARTED"


def train_timed(plan_path: Path) -> int:
    """Run one rank with clocks around the parts of a step; the first rank writes them beside the plan."""
    from megatron_cpt.backend import choose  # noqa: PLC0415
    from megatron_cpt.plan.run_plan import RunPlan  # noqa: PLC0415

    choose(RunPlan.load(plan_path).backend)
    from megatron_cpt.train import loop, step  # noqa: PLC0415
    from megatron_cpt.train.run import run  # noqa: PLC0415

    clock: dict[str, list[float]] = {"begins": [], "compute": [], "waited": []}
    plain_step, plain_forward, plain_ahead = loop.optimizer_step, step.forward_backward, loop.one_ahead

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            clock["compute"][-1] += time.perf_counter() - started
            return result

        return call

    def timed_step(chunks: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not clock["begins"]:
            clock["start_up"] = [time.time() - float(os.environ[STARTED_VARIABLE])]
            optimizer.step = timed(optimizer.step)
        clock["begins"].append(time.perf_counter())
        clock["compute"].append(0.0)
        return plain_step(chunks, optimizer, *args, **kwargs)

    def timed_ahead(items: Any) -> Any:
        batches = plain_ahead(items)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            clock["waited"].append(time.perf_counter() - started)
            if batch is None:
                return
            yield batch

    loop.optimizer_step, step.forward_backward, loop.one_ahead = timed_step, timed(plain_forward), timed_ahead
    code = run(plan_path, evaluate=None)
    if os.environ.get("RANK", "0") == "0":
        (plan_path.parent.parent / RESULT).write_text(json.dumps(clock), encoding="utf-8")
    return code


def set_up(run: Path, folder: Path, *, ranks: int, threads: int, samples: int, steps: int) -> Path:
    """Write a plan for a few steps of a run beside links to its inputs, and return the plan's path."""
    from megatron_cpt.plan.run_plan import RunPlan  # noqa: PLC0415

    plan = RunPlan.load(run / "plan" / "plan.yaml")
    layout = dataclasses.replace(
        plan.layout, tensor=1, pipeline=1, virtual_pipeline=1, data=ranks, micro_batch_size=1, global_batch_size=ranks * samples,
        threads_per_rank=threads,
    )  # fmt: skip
    checkpoint = dataclasses.replace(plan.checkpoint, every_steps=NEVER)
    plan = dataclasses.replace(plan, layout=layout, num_steps=steps, checkpoint=checkpoint, eval_every_steps=0)
    (folder / "plan").mkdir(parents=True)
    for name in ("corpus", "index", "init", "vocab"):
        (folder / name).symlink_to((run / name).resolve())
    return plan.save(folder / "plan")


def measure(run: Path, *, ranks: int, threads: int, samples: int, steps: int) -> dict[str, list[float]]:
    """Train a few steps and return the clocks of the first rank."""
    from megatron_cpt.launch_ranks import run_ranks  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp())
    try:
        plan = set_up(run, folder, ranks=ranks, threads=threads, samples=samples, steps=steps)
        os.environ[STARTED_VARIABLE] = str(time.time())
        code = run_ranks("benchmarks.train_loop", ["--child", str(plan)], ranks_per_node=ranks, threads_per_rank=threads)
        if code:
            sys.exit(f"a rank ended with code {code}")
        clock: dict[str, list[float]] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return clock
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2, help="sequences a rank and step")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        sys.exit(train_timed(arguments.child))
    # beside this script; its ranks import it as a module of the folder, where this one is not found
    from bench_figures import note  # noqa: PLC0415

    from megatron_cpt.plan.run_plan import RunPlan  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0))
    settings = {"whole": (1, cores), "one": (1, 1), "two": (2, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    overheads, waits, start_ups = [], [], []
    for _ in range(arguments.rounds):
        for name, (ranks, threads) in settings.items():
            clock = measure(arguments.run, ranks=ranks, threads=threads, samples=arguments.samples, steps=arguments.steps)
            begins = clock["begins"]
            whole = [after - before for before, after in itertools.pairwise(begins)][WARM_UP_STEPS:]
            seconds[name] += whole
            if name == "whole":
                compute = clock["compute"][WARM_UP_STEPS:]
                overheads += [1 - spent / step for spent, step in zip(compute, whole, strict=False)]
                waits += clock["waited"][WARM_UP_STEPS + 1 : len(begins)]
                start_ups += clock["start_up"]
    tokens = arguments.samples * RunPlan.load(arguments.run / "plan" / "plan.yaml").layout.sequence_length
    speed = {name: settings[name][0] * tokens / statistics.median(times) for name, times in seconds.items()}
    overhead, scaling = 100 * statistics.median(overheads), speed["two"] / speed["one"]
    note("the loop's own share of a step", overhead, "%", at_most=2, detail=f"of {statistics.median(seconds['whole']):.2f} s")
    note("waiting for data, a step", 1000 * statistics.median(waits), "ms", detail=f"longest {1000 * max(waits):.2f} ms")
    note("start-up, from the command to the first step", statistics.median(start_ups), "s")
    note("tokens/s of two ranks against one, one core each", scaling, "times", detail=f"{speed['two']:.0f} against {speed['one']:.0f}")
    print(f"step                 {statistics.median(seconds['whole']):8.3f} s    {speed['whole']:.0f} tokens/s on {cores} cores")
    print(f"loop's overhead      {overhead:8.2f} %    of a step, outside forward, backward and optimizer")
    print(f"waited for data      {1000 * statistics.median(waits):8.2f} ms   a step (longest {1000 * max(waits):.2f} ms)")
    print(f"start-up             {statistics.median(start_ups):8.1f} s    from the command to the first step")
    print(f"weak scaling         {scaling:8.2f}      times the tokens/s of one rank ({speed['one']:.0f}) on two ranks")
    print(f"medians of {len(seconds['whole'])} steps in {arguments.rounds} rounds")


if __name__ == "__main__":
    main()
