"""Runs the tool in forked children that are killed with signal 9, and says after each what stands at the prefix. Run by a test.

Arguments: mode (`calls` or `times`), the known whole state's digest, then the tool's own arguments. Prints one word a child:
`whole` (the wanted bytes), `refused` (open_pair refuses), `absent` (neither file), or `PARTIAL` (anything else).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from megatron_cpt.errors import DataError
from megatron_cpt.record.hashing import sha256_bytes
from megatron_cpt.record.index_pair import bin_path, idx_path, open_pair
from tools import preprocess_data

CALLS = ("replace", "fsync", "unlink", "open", "rename")


def state(prefix: Path, known: set[str]) -> str:
    if not bin_path(prefix).exists() and not idx_path(prefix).exists():
        return "absent"
    try:
        open_pair(prefix)
    except DataError:
        return "refused"
    return "whole" if sha256_bytes(bin_path(prefix).read_bytes() + idx_path(prefix).read_bytes()) in known else "PARTIAL"


def die_at_call(number: int) -> None:
    """Kill this process just before its `number`th call into the file system."""
    left = [number]

    def counted(original):
        def call(*arguments, **settings):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **settings)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def run_child(arguments: list[str], *, at_call: int | None = None, after: float | None = None) -> int:
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if at_call is not None:
            die_at_call(at_call)
        os._exit(preprocess_data.main(arguments))
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> None:
    mode, known, *arguments = sys.argv[1:]
    prefix = Path(arguments[arguments.index("--output-prefix") + 1] + "_text_document")
    if mode == "calls":
        for number in range(200):
            status = run_child(arguments, at_call=number)
            print(state(prefix, set(known.split(","))))
            if status == 0:
                return
        raise SystemExit("the tool made more calls than expected")
    begun = time.monotonic()
    assert run_child([*arguments[:-1], arguments[-1] + "_timing"]) == 0
    whole_run = time.monotonic() - begun
    generator = random.Random(20261129)
    for _ in range(12):
        run_child(arguments, after=generator.uniform(0.0, whole_run))
        print(state(prefix, set(known.split(","))))


if __name__ == "__main__":
    main()
