"""Runs the tasks of the first pass: in this process, in local worker processes, as a Slurm array, or on Ray. Finished ones are left alone.

What an array's elements did, in a submitted line before the stage, is finished work like any other.

A damaged file costs its own task; the others are done, and then all damaged files are named at once. A worker that dies, or a full
disk, stops the pass at once. In every case a rerun goes on with the tasks that are not done.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import megatron_cpt
from megatron_cpt.config.schema import EngineConfig
from megatron_cpt.corpus.scratch import drop_incomplete, task_folder
from megatron_cpt.corpus.tasks import MB, TaskPlan
from megatron_cpt.corpus.worker import FirstPass, answer, error_file
from megatron_cpt.errors import CptError, DataError, raise_all

KINDS = ("auto", "local", "slurm", "ray")
WORKER = "megatron_cpt.corpus.worker"
SMALLEST_SHARE_MB = 16  # a worker takes half a second to start, in which one reads about so much
SAY_EVERY_SECONDS = 10.0
ARRAY_ELEMENTS = 16
# (number of shares, those to do): submits an element for each and waits for their end
LaunchArray = Callable[[int, Sequence[int]], None]


def engine_problems(engine: EngineConfig) -> list[str]:
    """Return one sentence for each setting of the engine that is not allowed."""
    problems = []
    if engine.kind not in KINDS:
        problems.append(f"corpus.engine.kind is {engine.kind!r}: use {', '.join(KINDS)}")
    if engine.workers is not None and engine.workers < 1:
        problems.append(f"corpus.engine.workers is {engine.workers}: use 1 or more, or null for all cores")
    if not engine.task_mb > 0:
        problems.append(f"corpus.engine.task_mb is {engine.task_mb}: use a number above 0")
    return problems


def num_shares(plan: TaskPlan) -> int:
    """Return in how many shares an array does the tasks: as many as were asked for, else up to 16 of at least one task's MB."""
    engine = plan.settings.engine
    wanted = engine.workers or min(ARRAY_ELEMENTS, max(1, math.ceil(plan.num_bytes / (engine.task_mb * MB))))
    return min(wanted, len(plan.tasks))


def pending_shares(scratch: Path, plan: TaskPlan, count: int) -> tuple[int, ...]:
    """Return the numbers of the shares that have a task which is not done; share I of N has the tasks I, I + N, I + 2N ..."""
    return tuple(sorted({rank % count for rank, task in enumerate(plan.tasks) if not task_folder(scratch, task).exists()}))


def num_workers(plan: TaskPlan, num_pending: int) -> int:
    """Return the number of local workers: never more than tasks, and by default none that has less than 16 MB to read."""
    wanted = plan.settings.engine.workers
    if wanted is None:
        wanted = min(len(os.sched_getaffinity(0)), plan.num_bytes // (SMALLEST_SHARE_MB * MB))
    return max(1, min(wanted, num_pending))


@dataclass
class Progress:
    """What the terminal shows while tasks are done."""

    plan: TaskPlan
    say: Callable[[str], None]
    done: set[int]
    last: float = 0.0

    def finished(self, rank: int) -> None:
        self.done.add(rank)
        if time.monotonic() - self.last >= SAY_EVERY_SECONDS:
            self.last = time.monotonic()
            tasks, done_mb = self.plan.tasks, sum(self.plan.tasks[each].num_bytes for each in self.done) / MB
            self.say(f"corpus: {len(self.done)} of {len(tasks)} tasks done, {done_mb:,.0f} of {self.plan.num_bytes / MB:,.0f} MB")


def run_first_pass(scratch: Path, plan: TaskPlan, *, say: Callable[[str], None], launch_array: LaunchArray | None = None) -> None:
    """Do every task that is not done.

    Raises:
        DataError: files are damaged; each is named.
        CptError: a worker died, or the disk is full; names the files at hand.
    """
    for task in plan.tasks:
        if problem := drop_incomplete(scratch, task):
            say(f"corpus: {problem} It is done anew.")
    done = {rank for rank, task in enumerate(plan.tasks) if task_folder(scratch, task).exists()}
    pending = [rank for rank in range(len(plan.tasks)) if rank not in done]
    if done:
        say(f"corpus: {len(done)} of {len(plan.tasks)} tasks were done before")
    if not pending:
        return
    kind = plan.settings.engine.kind
    progress = Progress(plan, say, done, time.monotonic())
    if kind == "slurm" and launch_array is not None:
        failures = by_array(scratch, plan, pending, launch_array=launch_array)
    elif kind == "ray":
        from megatron_cpt.corpus.on_ray import by_ray  # noqa: PLC0415 - optional: extra [ray]

        failures = by_ray(scratch, plan, pending, progress)
    elif (count := num_workers(plan, len(pending))) == 1:
        failures = in_process(scratch, plan, pending, progress)
    else:
        failures = by_processes(scratch, plan, pending, count, progress)
    raise_all(DataError, [text for rank in sorted(failures) for text in failures[rank]])


def note(failures: dict[int, list[str]], done: dict[str, Any], progress: Progress) -> None:
    """Take a worker's answer: count a task as done or its data as damaged.

    Raises:
        CptError: what went wrong concerns every task.
    """
    if done.get("error") == "data":
        failures[done["rank"]] = done["texts"]
    elif "error" in done:
        raise CptError(done["texts"][0])
    else:
        progress.finished(done["rank"])


def in_process(scratch: Path, plan: TaskPlan, pending: Sequence[int], progress: Progress) -> dict[int, list[str]]:
    failures: dict[int, list[str]] = {}
    runner = FirstPass(scratch, plan)
    for rank in pending:
        note(failures, answer(runner, rank), progress)
    return failures


class Worker:
    """A worker process and the task that it is at."""

    def __init__(self, scratch: Path, number: int) -> None:
        self.log = scratch / "logs" / f"worker_{number:03d}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(scratch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment()
            )
        self.rank: int | None = None

    @property
    def answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def give(self, rank: int) -> None:
        assert self.process.stdin is not None
        self.rank = rank
        try:
            self.process.stdin.write(b"%d\n" % rank)
            self.process.stdin.flush()
        except BrokenPipeError:  # it died; its answers end, where that is said
            return

    def death(self, plan: TaskPlan) -> CptError:
        """Say how this worker ended and what it was reading."""
        code = self.process.wait()
        last = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        return CptError(
            "A worker of the corpus died.",
            where=plan.tasks[self.rank].shown if self.rank is not None else self.log,
            value=f"{how}{': ' + last[0][:300] if last else ''}",
            next_step="Signal 9 is mostly a lack of memory: lower corpus.engine.workers. Run again: finished tasks stay."
            if code == -9
            else f"See {self.log}. Run again: finished tasks stay.",
        )

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue


def environment() -> dict[str, str]:
    """Return the environment of a worker: this package importable, and one thread, as there is a worker for every core."""
    paths = [str(Path(megatron_cpt.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}


def by_processes(scratch: Path, plan: TaskPlan, pending: Sequence[int], count: int, progress: Progress) -> dict[int, list[str]]:
    """Do tasks in `count` worker processes; the end of a worker is seen when its answers end, at once.

    Raises:
        CptError: a worker died, or cannot write.
    """
    failures: dict[int, list[str]] = {}
    waiting = deque(pending)
    workers: list[Worker] = []
    with selectors.DefaultSelector() as selector:
        try:
            for number in range(count):
                workers.append(Worker(scratch, number))
                selector.register(workers[-1].answers, selectors.EVENT_READ, workers[-1])
                workers[-1].give(waiting.popleft())
            while selector.get_map():
                for key, _ in selector.select():
                    worker: Worker = key.data
                    line = worker.answers.readline()
                    if not line:
                        raise worker.death(plan)
                    note(failures, json.loads(line), progress)
                    worker.rank = None
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        selector.unregister(worker.answers)
        finally:
            for worker in workers:
                worker.end()
    return failures


def by_array(scratch: Path, plan: TaskPlan, pending: Sequence[int], *, launch_array: LaunchArray) -> dict[int, list[str]]:
    """Do tasks as an array of jobs and wait for its end; what did not succeed is told from the files that the elements left.

    Raises:
        CptError: an element ended without a word, or could not write.
    """
    for rank in pending:
        error_file(scratch, rank).unlink(missing_ok=True)
    count = num_shares(plan)
    launch_array(count, pending_shares(scratch, plan, count))
    failures: dict[int, list[str]] = {}
    for rank in pending:
        if task_folder(scratch, plan.tasks[rank]).exists():
            continue
        path = error_file(scratch, rank)
        if not path.is_file():
            raise CptError(
                f"An element of the array ended before task {rank} was done.",
                where=plan.tasks[rank].shown,
                next_step="See its log in the run's folder slurm/. Run again: finished tasks stay.",
            )
        done = json.loads(path.read_text(encoding="utf-8"))
        if done["error"] != "data":
            raise CptError(done["texts"][0])
        failures[rank] = done["texts"]
    return failures
