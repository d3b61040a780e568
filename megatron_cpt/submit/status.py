"""The line as a table: each stage with the state of its job, and in plain words how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_cpt.errors import EXIT_BUDGET, EXIT_ROLLED_BACK, EXIT_STOPPED
from megatron_cpt.submit.array import array_spec
from megatron_cpt.submit.queue import AT_WORK, JobState
from megatron_cpt.submit.record import SubmittedJob

ENDS = {EXIT_ROLLED_BACK: "rolled back", EXIT_BUDGET: "a stop condition was reached", EXIT_STOPPED: "stopped with a checkpoint"}
SLURM_ENDS = {
    "COMPLETED": "ended well, but left no complete record",
    "CANCELLED": "cancelled while it ran",
    "TIMEOUT": "ended by its time limit",
    "NODE_FAIL": "ended by a failed node",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "killed for memory: ask for more with cluster.memory_gb, or for whole nodes with cluster.exclusive=true",
    "DEADLINE": "ended by its deadline",
    "BOOT_FAIL": "ended by a node that did not boot",
}


@dataclass(frozen=True)
class Row:
    """One stage of the table, or its array. `how` is finished, running, waiting, not run, stopped, failed and so on, with its reason."""

    name: str
    job_id: str
    state: str
    elapsed: str
    where: str
    how: str


def rows_of(jobs: Sequence[SubmittedJob], states: Mapping[str, JobState], *, finished: Sequence[str]) -> list[Row]:
    """Return the table of a line.

    Args:
        finished: the stages whose record is complete, whatever Slurm says of their jobs.
    """
    rows: list[Row] = []
    stage_of = {job.job_id: job.stage for job in jobs if not job.elements}
    bad: dict[str, str] = {}
    for job in jobs:
        state = states[job.job_id]
        before = next((bad[stage_of[job_id]] for job_id in job.after if stage_of.get(job_id) in bad), None)
        because = before if job.condition == "afterok" else None
        if job.elements:
            rows.append(Row(job.name, job.job_id, state.state, state.elapsed, state.nodes, _elements_in_words(job, state, because)))
            continue
        how = _how(job, state, is_finished=job.stage in finished, because=because)
        if not state.is_queued and job.stage not in finished and state.state != "UNKNOWN":
            bad[job.stage] = before if before is not None and not state.num_starts else job.stage
        rows.append(Row(job.name, job.job_id, state.state, state.elapsed, state.nodes, how))
    return rows


def _how(job: SubmittedJob, state: JobState, *, is_finished: bool, because: str | None) -> str:
    if state.is_queued:
        return _in_queue(state)
    if is_finished:
        return "finished"
    if state.state == "CANCELLED" and not state.num_starts:
        return "cancelled before it began" if because is None else f"not run, since {because} did not finish"
    if state.state == "FAILED":
        return ENDS.get(state.exit_code or 0, f"{_failure(state)}: see {job.stage}-{job.job_id}.out")
    if state.state == "UNKNOWN":
        return f"unknown: {state.reason or 'Slurm has forgotten this job'}, and the stage has left no complete record"
    return SLURM_ENDS.get(state.state, state.state.lower())


def _failure(state: JobState) -> str:
    return f"killed by signal {state.signal}" if state.signal and not state.exit_code else f"failed with exit {state.exit_code}"


def _elements_in_words(job: SubmittedJob, state: JobState, because: str | None) -> str:
    """Say how many elements of an array are done, and name the others by number; a stage's own job does what they leave."""
    by_words: dict[str, list[int]] = {}
    for number in job.elements:
        each = state.elements.get(number) or JobState("UNKNOWN", reason=state.reason)
        if each.state == "COMPLETED":
            words = "done"
        elif each.is_queued:
            words = "at work" if each.state in AT_WORK else "waiting"
        elif each.state == "CANCELLED" and not each.num_starts:
            words = "cancelled before they began" if because is None else f"not run, since {because} did not finish"
        elif each.state == "FAILED":
            words = _failure(each)
        else:
            words = "unknown" if each.state == "UNKNOWN" else SLURM_ENDS.get(each.state, each.state.lower())
        by_words.setdefault(words, []).append(number)
    num_done = len(by_words.pop("done", ()))
    others = "".join(f"; {words}: {array_spec(numbers)}" for words, numbers in by_words.items())
    return f"{num_done} of {len(job.elements)} elements done{others}"


def _in_queue(state: JobState) -> str:
    restarts = f", started {state.num_starts} times" if state.num_starts > 1 else ""
    if state.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        again = "waits to start again" if state.num_starts else "waits"
        if state.reason == "DependencyNeverSatisfied":
            return "will not run: a stage before it did not finish"
        return f"{again}{f' ({state.reason})' if state.reason else ''}{restarts}"
    return f"runs{restarts}" if state.state == "RUNNING" else f"{state.state.lower()}{restarts}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, in columns as wide as they need."""
    head = Row("stage", "job", "state", "elapsed", "nodes", "")
    cells = [(row.name, row.job_id, row.state, row.elapsed, row.where, row.how) for row in (head, *rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(line[:5], widths, strict=True)), line[5]]).rstrip() for line in cells
    )
