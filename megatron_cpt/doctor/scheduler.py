"""Slurm, as far as one can ask from here without sending a job."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

from megatron_cpt.config.files import shipped_launch
from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.doctor.finding import Finding

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")
ANSWER_SECONDS = 20


def ask(argv: Sequence[str]) -> str | OSError:
    """Return what a command printed, or an OSError with its complaint."""
    try:
        answer = subprocess.run(list(argv), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return OSError(f"{argv[0]} did not answer in {ANSWER_SECONDS} s")
    except OSError as error:
        return error
    if answer.returncode != 0:
        return OSError(answer.stderr.strip().partition("\n")[0] or f"{argv[0]} ended with {answer.returncode}")
    return answer.stdout.strip()


def scheduler_findings(
    cluster: ClusterConfig | None,
    *,
    which: Callable[[str], str | None] = shutil.which,
    call: Callable[[Sequence[str]], str | OSError] = ask,
) -> Iterator[Finding]:
    """Look for Slurm; only a cluster with a partition, or with several nodes, needs it."""
    needed = cluster is not None and (cluster.num_nodes > 1 or cluster.partition is not None)
    missing = [command for command in COMMANDS if which(command) is None]
    if missing:
        if not needed and len(missing) == len(COMMANDS):
            yield Finding("Slurm", "note", "not here; runs on one machine need none")
            return
        yield Finding(
            "Slurm", "warning" if needed else "note", f"missing: {', '.join(missing)}",
            "`submit` works on a login node alone; several nodes can also be started by hand",
            f"{shipped_launch() / 'multi_node.sh'}, or log in to the cluster",
        )  # fmt: skip
        return
    version = call(["sinfo", "--version"])
    partitions = call(["sinfo", "--noheader", "--format=%R|%a|%D|%l"])
    if isinstance(partitions, OSError) or isinstance(version, OSError):
        complaint = partitions if isinstance(partitions, OSError) else version
        yield Finding(
            "Slurm", "bad" if needed else "note", f"installed, but its controller does not answer: {complaint}",
            "nothing can be submitted from here" + ("" if needed else "; runs on one machine need no Slurm"), "scontrol ping",
        )  # fmt: skip
        return
    rows = [line.split("|") for line in partitions.splitlines() if line.count("|") == 3]
    shown = ", ".join(f"{name} ({state}, {nodes} nodes, {limit})" for name, state, nodes, limit in rows)
    yield Finding("Slurm", "good", f"{version}; partitions {shown or 'none'}")
    if cluster is not None and cluster.partition is not None:
        yield partition_finding(cluster.partition, cluster.num_nodes, rows)


def partition_finding(partition: str, num_nodes: int, rows: list[list[str]]) -> Finding:
    """Judge the run's partition by rows of name, state, number of nodes and time limit."""
    own = [row for row in rows if row[0] == partition]
    if not own:
        names = ", ".join(row[0] for row in rows) or "none"
        mend = f"cluster.partition={rows[0][0]}" if rows else ""
        return Finding("partition", "bad", f"{partition} does not exist", f"there are: {names}", mend)
    _, state, nodes, limit = own[0]
    found = f"{partition} is {state} with {nodes} nodes, time limit {limit}"
    if state != "up":
        return Finding("partition", "warning", found, "jobs wait until it is up")
    if int(nodes) < num_nodes:
        return Finding("partition", "bad", found, f"cluster.num_nodes={num_nodes} are more than it has", f"cluster.num_nodes={nodes}")
    return Finding("partition", "good", found)
