"""Energy of the nodes on which the command that keeps the bill does not run: each writes its readings into the run's folder.

The command meters its own node. On every other one the first local rank does, once a node and not once a rank, and replaces one small
file every few seconds; the command adds the files up when the attempt ends, and whoever settles the bill when it was killed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from megatron_cpt.errors import DataError
from megatron_cpt.meter.energy import Meter, Part, open_meter, part_from
from megatron_cpt.meter.here import boot_id
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import to_plain

logger = logging.getLogger(__name__)

FOLDER = "energy"  # in the run folder, while attempts on several nodes run
WRITE_SECONDS = 10.0


@contextlib.contextmanager
def metered_node(
    run_dir: Path,
    *,
    backend: str,
    attempt_id: str | None,
    command_boot: str | None,
    local_rank: int,
    meter: Meter | None = None,
    this_boot: str | None = None,
    every_seconds: float = WRITE_SECONDS,
) -> Iterator[None]:
    """Meter this node while a block runs, if this is its first rank and the command that keeps the bill is on another node.

    Args:
        attempt_id: the attempt's name on the ledger; None when nobody keeps one.
        command_boot: the boot id of the node of the command; equal ids are one machine, which the command meters itself.
        meter, this_boot: of this node; opened and read here when None.
    """
    boot = this_boot or boot_id()
    if local_rank != 0 or attempt_id is None or command_boot is None or boot is None or boot == command_boot:
        yield
        return
    meter = meter or open_meter(backend)
    path = run_dir / FOLDER / attempt_id / f"{boot}.json"
    done = threading.Event()

    def write() -> None:
        try:
            write_json(path, to_plain(list(meter.parts())))
        except OSError as error:  # a full disk must not end training; the bill says how many devices had no word
            logger.warning("The energy of this node was not written: %s", error)

    def keep_writing() -> None:
        write()
        while not done.wait(every_seconds):
            write()

    thread = threading.Thread(target=keep_writing, name="node-energy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        write()


def readings_of(run_dir: Path, attempt_id: str) -> list[Part]:
    """Return the newest readings of the other nodes of an attempt; a file that cannot be read is left out, so its devices are silent."""
    parts = []
    for path in sorted((run_dir / FOLDER / attempt_id).glob("*.json")):
        with contextlib.suppress(DataError, OSError):
            data = read_json(path)
            parts += [part for each in data if (part := part_from(each)) is not None] if isinstance(data, list) else []
    return parts


def remove_readings(run_dir: Path, attempt_id: str) -> None:
    """Remove the readings of an attempt that are on its bill."""
    folder = run_dir / FOLDER / attempt_id
    with contextlib.suppress(OSError):  # one that stays behind counts for no other attempt
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.parent.rmdir()  # the last one; another attempt's readings keep it
