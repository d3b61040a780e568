"""Looks at every node of a job before the first training step, and names the ones that are not fit for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from megatron_cpt.errors import CptError
from megatron_cpt.record.store import read_json, write_text
from megatron_cpt.record.typed import from_plain
from megatron_cpt.submit.node_check import TOKEN_NAME, NodeAnswer

CLOCK_SECONDS = 2.0  # beyond the time that the question itself took
NODE_SECONDS = 120.0  # for a step to start on every node, and Python on a cold shared disk
LINK_SECONDS = 300.0  # with torch to import as well
T = TypeVar("T")
ARRIVED, LINK_NAME, BAD_NODES_NAME = "arrived", "link.json", "bad-nodes"


class PreflightFailed(CptError):
    """A node is not fit for the job; `bad-nodes` names those to leave out of the next start."""


@dataclass(frozen=True)
class Asked:
    """What the nodes of a job were asked: between `began` and `ended` by the first node's clock, in seconds since the epoch."""

    nodes: tuple[str, ...]
    began: float
    ended: float
    gpus_per_node: int
    min_free_bytes: int
    answers: Mapping[str, NodeAnswer] = field(default_factory=dict)


def problems_of(asked: Asked) -> dict[str, list[str]]:
    """Return what is wrong with each node, by name; of what must agree, the majority is taken to be right, at a tie the first node."""
    answers = [asked.answers[node] for node in asked.nodes if node in asked.answers]
    gpus, software = _most([answer.gpus for answer in answers]), _most([answer.software for answer in answers])
    found: dict[str, list[str]] = {}
    for node in asked.nodes:
        answer = asked.answers.get(node)
        if answer is None:
            found[node] = ["gave no answer: its step did not start or ended badly, or it does not see the run's folder"]
            continue
        problems = []
        early, late = answer.time - (asked.began - CLOCK_SECONDS), answer.time - (asked.ended + CLOCK_SECONDS)
        if early < 0 or late > 0:
            problems.append(f"its clock is {max(-early, late):.0f} s or more {'behind' if early < 0 else 'ahead'}")
        if not answer.sees_token:
            problems.append("another folder than the first node's stands at the run's path")
        if answer.free_bytes < asked.min_free_bytes:
            problems.append(f"{answer.free_bytes / 1e9:.2f} GB are free on the run's disk, {asked.min_free_bytes / 1e9:.2f} GB are needed")
        if len(answer.gpus) < asked.gpus_per_node:
            problems.append(f"{len(answer.gpus)} GPUs answer there, {asked.gpus_per_node} are needed")
        elif answer.gpus != gpus:
            problems.append(f"its GPUs or driver differ: {_short(answer.gpus)} where others have {_short(gpus)}")
        if answer.software != software:
            problems.append(f"its software differs: {answer.software} where others have {software}")
        if problems:
            found[node] = problems
    return found


def _most(values: Sequence[T]) -> T | None:
    return Counter(values).most_common(1)[0][0] if values else None


def _short(gpus: Sequence[str] | None) -> str:
    return ", ".join(f"{count} x {name}" for name, count in Counter(gpus or ()).items()) or "none"


def preflight(
    folder: Path,
    *,
    nodes: Sequence[str],
    ranks_per_node: int,
    gpus_per_node: int,
    min_free_bytes: int,
    bodies: Path,
) -> str:
    """Ask every node, then let all ranks add up numbers over the network; return one line on what was found.

    Args:
        folder: made for this start of the job on the shared disk, and emptied first.
        bodies: the folder of nodes.sh and ranks.sh.

    Raises:
        PreflightFailed: naming each bad node and what is wrong with it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / ARRIVED).mkdir(parents=True)
    token = uuid.uuid4().hex
    write_text(folder / TOKEN_NAME, token)
    began = time.time()
    _run([str(bodies / "nodes.sh"), "megatron_cpt.submit.node_check", str(folder), token], seconds=NODE_SECONDS)
    ended = time.time()
    paths = [folder / f"{node}.json" for node in nodes]
    answers = {path.stem: from_plain(NodeAnswer, read_json(path), where=path) for path in paths if path.is_file()}
    asked = Asked(tuple(nodes), began, ended, gpus_per_node, min_free_bytes, answers)
    _refuse(folder, problems_of(asked), num_nodes=len(nodes))
    backend = "cuda" if gpus_per_node else "cpu"
    link = [str(bodies / "ranks.sh"), str(ranks_per_node), "megatron_cpt.train.link_check", str(folder), backend]
    code = _run(link, seconds=LINK_SECONDS)
    if not (folder / LINK_NAME).is_file():
        silent = [node for node in nodes if not (folder / ARRIVED / node).exists()]
        why = "did not come to the all-reduce" if silent else f"the all-reduce between the nodes {'hung' if code is None else 'failed'}"
        _refuse(folder, {node: [why] for node in silent or nodes}, num_nodes=len(nodes))
    rate = read_json(folder / LINK_NAME)
    gpus = f", {_short(answers[nodes[0]].gpus)} each" if gpus_per_node else ""
    return (
        f"preflight: {', '.join(nodes)} answer and agree{gpus}; all-reduce of {rate['bytes'] / 1e6:.0f} MB over {rate['ranks']} ranks: "
        f"{rate['gb_per_second']:.2f} GB/s bus bandwidth"
    )


def _refuse(folder: Path, problems: Mapping[str, Sequence[str]], *, num_nodes: int) -> None:
    """Write which nodes to leave out, and raise. What is wrong with all of them, such as a full disk, is mended on no other node."""
    if not problems:
        return
    is_worth_another_start = len(problems) < num_nodes
    if is_worth_another_start:
        write_text(folder / BAD_NODES_NAME, ",".join(problems))
    listed = "\n".join(f"    {node}: {'; '.join(reasons)}" for node, reasons in problems.items())
    next_step = "The job starts again without them." if is_worth_another_start else "All nodes have it: mend it, then submit again."
    raise PreflightFailed(f"Nodes of this job are not fit for training:\n{listed}", next_step=next_step)


def _run(argv: Sequence[str], *, seconds: float) -> int | None:
    """Run a launcher and return its exit code; one that takes longer is ended, with all that it started, and gives None."""
    process = subprocess.Popen(list(argv), start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        return None
