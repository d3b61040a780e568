"""Ends a submitted line: what waits is taken out of the queue, and training is asked for a checkpoint before its job ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megatron_cpt.submit.queue import AT_WORK, JobState, queued
from megatron_cpt.submit.record import SubmittedJob
from megatron_cpt.submit.submit import Call, call_slurm

POLL_SECONDS = 2.0


def cancel_line(
    jobs: Sequence[SubmittedJob],
    *,
    stop_file: Path,
    patience_seconds: float,
    say: Callable[[str], None],
    call: Call = call_slurm,
) -> bool:
    """Cancel the jobs of a line and return whether all have ended.

    Jobs that wait, and stages at work that have no checkpoint, are cancelled at once. A job in training gets a stop file, which its ranks
    see after the step under way; they save and end, and the job with them. The file is renewed, as one that came before the ranks is
    removed by them.

    Args:
        patience_seconds: how long to wait for the checkpoint; after it the job is left to itself, which is not an error.
    """
    now = queued([job.job_id for job in jobs], call=call)
    training = [job.job_id for job in jobs if job.stage == "train" and _works(now, job.job_id)]
    others = [job.job_id for job in jobs if job.job_id in now and job.job_id not in training]
    if others:
        call(["scancel", *others])
        say(f"cancelled: {', '.join(job.name for job in jobs if job.job_id in others)}")
    if not training:
        return True
    say(f"training is asked to save and end (at most {patience_seconds:.0f} s; its job is {training[0]})")
    last_look = time.monotonic() + patience_seconds
    while now := queued(training, call=call):
        if not _works(now, training[0]):  # it has lost its node meanwhile, and waits to start again
            call(["scancel", *training])
        elif now[training[0]].state == "RUNNING":
            stop_file.parent.mkdir(parents=True, exist_ok=True)
            stop_file.write_text("megatron-cpt cancel\n", encoding="utf-8")
        if time.monotonic() > last_look:
            say(f"job {training[0]} still works on its checkpoint; `scancel {training[0]}` ends it without")
            return False
        time.sleep(POLL_SECONDS)
    stop_file.unlink(missing_ok=True)
    return True


def _works(states: Mapping[str, JobState], job_id: str) -> bool:
    return job_id in states and states[job_id].state in AT_WORK
