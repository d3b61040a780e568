"""One worker of the first pass: rebuilds each task from the frozen plan and runs it under datatrove's executor.

    python -m megatron_cpt.corpus.worker SCRATCH    ranks on standard input, an answer in JSON for each on standard output

Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from datatrove.executor.local import LocalPipelineExecutor

from megatron_cpt.corpus.blocks import DamagedFiles, blocks_of
from megatron_cpt.corpus.scratch import TaskWriter, task_folder
from megatron_cpt.corpus.tasks import TaskPlan
from megatron_cpt.errors import CptError, DataError, raise_all
from megatron_cpt.record.store import write_json

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FirstPass(LocalPipelineExecutor):  # type: ignore[misc] # datatrove has no types
    """datatrove's executor over the tasks of a plan. A task is done when its folder stands: there is no second mark beside it."""

    def __init__(self, scratch: Path, plan: TaskPlan) -> None:
        super().__init__(pipeline=[], tasks=len(plan.tasks), workers=1, logging_dir=str(scratch / "logs"))
        self.scratch, self.plan = scratch, plan

    def is_rank_completed(self, rank: int) -> bool:
        return task_folder(self.scratch, self.plan.tasks[rank]).exists()

    def mark_rank_as_completed(self, rank: int) -> None:
        assert self.is_rank_completed(rank), f"task {rank} left no folder"

    def run_rank(self, rank: int) -> None:
        """Do one task; nothing when it is done already.

        Raises:
            DamagedFiles: files of the task are damaged or cannot be read.
            CptError: the disk is full.
        """
        if self.is_rank_completed(rank):
            return
        task = self.plan.tasks[rank]
        writer = TaskWriter(self.scratch, task)
        self.pipeline = blocks_of(self.plan, task, writer)
        try:
            # datatrove logs to standard error as well as to scratch/logs/logs; the terminal is for our own lines
            with contextlib.redirect_stderr(io.StringIO()):
                self._run_for_rank(rank, local_rank=1)
        except OSError as error:
            raise disk_error(error, self.scratch) from None
        finally:
            writer.discard()


class DiskFull(CptError):
    """The scratch files do not fit."""


def disk_error(error: OSError, scratch: Path) -> CptError:
    if error.errno in DISK_FULL:
        return DiskFull(
            "The disk is full.",
            where=error.filename or scratch,
            value=error.strerror,
            next_step="Free space, or set runs_dir to a larger disk, and run again: finished tasks stay.",
        )
    return CptError("The corpus cannot be written.", where=error.filename or scratch, value=error.strerror or str(error))


def answer(runner: FirstPass, rank: int) -> dict[str, Any]:
    """Do one task; return `{"rank"}`, with `error` and its texts when it could not be done. `data` errors concern this task alone."""
    try:
        runner.run_rank(rank)
    except DamagedFiles as error:
        return {"rank": rank, "error": "data", "texts": error.problems}
    except CptError as error:
        return {"rank": rank, "error": "other", "texts": [str(error)]}
    return {"rank": rank}


def serve(runner: FirstPass, ranks: TextIO, answers: TextIO) -> None:
    """Do each task whose rank comes in, until the input ends: so a worker does not outlive its parent by more than one task."""
    for line in ranks:
        answers.write(json.dumps(answer(runner, int(line))) + "\n")
        answers.flush()


def do_share(scratch: Path, share: int, num_shares: int) -> int:
    """Do the unfinished ones of the tasks I, I + N, I + 2N ..., as an element of an array does; return how many tasks the share has.

    Raises:
        CptError: naming what went wrong with which tasks; the stage reads the same from `errors/`.
    """
    runner = FirstPass(scratch, TaskPlan.load(scratch))
    ranks = range(share, len(runner.plan.tasks), num_shares)
    problems: list[str] = []
    for rank in ranks:
        done = answer(runner, rank)
        path = error_file(scratch, rank)
        if "error" in done:
            problems += done["texts"]
            write_json(path, done)
        else:
            path.unlink(missing_ok=True)
    raise_all(DataError, problems, where="corpus")
    return len(ranks)


def error_file(scratch: Path, rank: int) -> Path:
    return scratch / "errors" / f"{rank:05d}.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    chosen = parser.parse_args(argv)
    runner = FirstPass(chosen.scratch, TaskPlan.load(chosen.scratch))
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(runner, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
