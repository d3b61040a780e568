"""The state of jobs as Slurm tells it: of those in the queue from squeue, of those that ended from sacct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from megatron_cpt.errors import CptError
from megatron_cpt.submit.array import numbers_in
from megatron_cpt.submit.submit import Call, call_slurm

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
AT_WORK = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT")
QUEUE_FORMAT = "%i|%T|%M|%N|%r"
ACCOUNTING_FIELDS = "JobID,State,Elapsed,NodeList,Reason,ExitCode,Start"


@dataclass(frozen=True)
class JobState:
    """One job now, or how it ended.

    Attributes:
        state: Slurm's word, such as PENDING or NODE_FAIL; `UNKNOWN` where Slurm has forgotten the job.
        elapsed: of its present or last run, in Slurm's form `[d-]hh:mm:ss`.
        exit_code: of the batch shell; None before its end. `signal` is the one that ended it, 0 for none.
        num_starts: how often it has begun to run; 0 for one that never did.
        elements: of an array, each element by its number; `state` is then that of one at work, else waiting, else not well ended.
    """

    state: str
    elapsed: str = ""
    nodes: str = ""
    reason: str = ""
    exit_code: int | None = None
    num_starts: int = 0
    elements: Mapping[int, JobState] = field(default_factory=dict)
    signal: int = 0

    @property
    def is_queued(self) -> bool:
        return self.state in WAITING or self.state in AT_WORK


def queued(job_ids: Sequence[str], *, call: Call = call_slurm) -> dict[str, JobState]:
    """Return those of the jobs that wait or run, by id; of an array those of its elements."""
    # with --jobs it fails when it has forgotten a single one of them
    text = call(["squeue", "--noheader", "--array", f"--format={QUEUE_FORMAT}"])
    found: dict[str, JobState] = {}
    elements: dict[str, dict[int, JobState]] = {}
    for line in text.splitlines():
        shown, state, elapsed, nodes, reason = [*line.strip().split("|", 4), "", "", "", ""][:5]
        job_id, _, spec = shown.partition("_")
        if job_id not in job_ids or not (state in WAITING or state in AT_WORK):
            continue
        now = JobState(state, elapsed, nodes, "" if reason == "None" else reason)
        if spec:
            elements.setdefault(job_id, {}).update(dict.fromkeys(numbers_in(spec), now))
        else:
            found[job_id] = now
    return found | {job_id: of_array(each) for job_id, each in elements.items()}


def of_array(elements: Mapping[int, JobState]) -> JobState:
    """Return an array's state from those of its elements."""
    for wanted in (AT_WORK, WAITING):
        for each in elements.values():
            if each.state in wanted:
                return JobState(each.state, each.elapsed, each.nodes, each.reason, None, each.num_starts, elements)
    unwell = [each for each in elements.values() if each.state != "COMPLETED"]
    last = max(unwell or elements.values(), key=lambda each: each.elapsed)
    return JobState(last.state, last.elapsed, last.nodes, last.reason, last.exit_code, last.num_starts, elements)


def states_of(job_ids: Sequence[str], *, call: Call = call_slurm) -> dict[str, JobState]:
    """Return the state of every job, by id. Without accounting an ended job is UNKNOWN: the run's own records say how it went."""
    found = dict.fromkeys(job_ids, JobState("UNKNOWN"))
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
    try:
        text = call([*argv, f"--jobs={','.join(job_ids)}", f"--format={ACCOUNTING_FIELDS}"])
    except CptError as error:
        found = dict.fromkeys(job_ids, JobState("UNKNOWN", reason=str(error).splitlines()[0]))
        text = ""
    starts: dict[str, int] = {}
    elements: dict[str, dict[int, JobState]] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != len(ACCOUNTING_FIELDS.split(",")):
            continue
        shown, state, elapsed, nodes, reason, code, start = cells
        job_id, _, spec = shown.partition("_")
        if job_id not in found:
            continue
        # one that was cancelled in the queue can bear a start, but no node
        has_run = start not in ("Unknown", "None", "") and nodes not in ("None assigned", "")
        starts[shown] = starts.get(shown, 0) + has_run
        exit_code, _, signal = code.partition(":")
        ended = JobState(
            state=state.split()[0],  # "CANCELLED by 1000"
            elapsed=elapsed,
            nodes="" if nodes == "None assigned" else nodes,
            reason="" if reason == "None" else reason,
            exit_code=int(exit_code) if exit_code.isdigit() else None,
            num_starts=starts[shown],
            signal=int(signal) if signal.isdigit() else 0,
        )
        if spec:
            elements.setdefault(job_id, {}).update(dict.fromkeys(numbers_in(spec), ended))
        else:
            found[job_id] = ended
    for job_id, now in queued(job_ids, call=call).items():
        if now.elements:
            begun = {number: starts.get(f"{job_id}_{number}", 0) for number in now.elements}
            elements.setdefault(job_id, {}).update(
                {number: replace(each, num_starts=begun[number]) for number, each in now.elements.items()}
            )
        else:
            found[job_id] = replace(now, num_starts=starts.get(job_id, 0))
    return found | {job_id: of_array(each) for job_id, each in elements.items()}
