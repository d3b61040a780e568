"""The state of jobs as Slurm tells it: of those in the queue from squeue, of those that ended from sacct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cpt.errors import CptError
from megatron_cpt.submit.submit import Call, call_slurm

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
AT_WORK = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT")
QUEUE_FORMAT = "%i|%T|%M|%N|%r"
ACCOUNTING_FIELDS = "JobIDRaw,State,Elapsed,NodeList,Reason,ExitCode,Start"


@dataclass(frozen=True)
class JobState:
    """One job now, or how it ended.

    Attributes:
        state: Slurm's word, such as PENDING or NODE_FAIL; `UNKNOWN` where Slurm has forgotten the job.
        elapsed: of its present or last run, in Slurm's form `[d-]hh:mm:ss`.
        exit_code: of the batch shell; None before its end.
        num_starts: how often it has begun to run; 0 for one that never did.
    """

    state: str
    elapsed: str = ""
    nodes: str = ""
    reason: str = ""
    exit_code: int | None = None
    num_starts: int = 0

    @property
    def is_queued(self) -> bool:
        return self.state in WAITING or self.state in AT_WORK


def queued(job_ids: Sequence[str], *, call: Call = call_slurm) -> dict[str, JobState]:
    """Return those of the jobs that wait or run, by id."""
    text = call(["squeue", "--noheader", f"--format={QUEUE_FORMAT}"])  # with --jobs it fails when it has forgotten a single one of them
    found = {}
    for line in text.splitlines():
        job_id, state, elapsed, nodes, reason = [*line.strip().split("|", 4), "", "", "", ""][:5]
        if job_id in job_ids and (state in WAITING or state in AT_WORK):
            found[job_id] = JobState(state, elapsed, nodes, "" if reason == "None" else reason)
    return found


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
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != len(ACCOUNTING_FIELDS.split(",")) or cells[0] not in found:
            continue
        job_id, state, elapsed, nodes, reason, code, start = cells
        has_run = start not in ("Unknown", "None", "") and nodes not in (
            "None assigned",
            "",
        )  # one cancelled in the queue can bear a start, but no node
        starts[job_id] = starts.get(job_id, 0) + has_run
        exit_code = code.partition(":")[0]
        found[job_id] = JobState(
            state=state.split()[0],  # "CANCELLED by 1000"
            elapsed=elapsed,
            nodes="" if nodes == "None assigned" else nodes,
            reason="" if reason == "None" else reason,
            exit_code=int(exit_code) if exit_code.isdigit() else None,
            num_starts=starts[job_id],
        )
    for job_id, now in queued(job_ids, call=call).items():
        found[job_id] = JobState(now.state, now.elapsed, now.nodes, now.reason, None, starts.get(job_id, 0))
    return found
