"""Reads the shards that the corpus stage wrote: JSON lines of `{"id", "text", "source", ...}`, whole or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_cpt.errors import DataError
from megatron_cpt.index.batches import Batch, read_batches

NUM_SAMPLES = 32
SAMPLE_BYTES = 65_536  # read at each place; longer lines there give no sample
SAMPLE_CHARS = 4_096


def shard_batches(shard: Path) -> Iterator[Batch]:
    """Yield a shard's documents.

    Raises:
        DataError: a line is not what the corpus stage writes.
    """

    with shard.open("rb") as stream:
        for batch in read_batches(stream, key="text"):
            for number, reason in batch.left_out:
                raise DataError(
                    "A shard holds a line that is no document.", where=f"{shard}:{number}", value=reason,
                    next_step="Run the corpus stage again.",
                )  # fmt: skip
            yield batch


def spread_samples(path: Path, *, key: str) -> list[str]:
    """Return pieces of texts from places spread over an uncompressed file of JSON lines, at most 4,096 characters of each."""
    size = path.stat().st_size
    found = []
    with path.open("rb") as file:
        for place in range(NUM_SAMPLES):
            file.seek(size * place // NUM_SAMPLES)
            lines = file.read(SAMPLE_BYTES).split(b"\n")
            whole = lines[:-1] if place == 0 else lines[1:-1]
            for line in whole[:1]:
                try:
                    text = json.loads(line)[key]
                    text.encode("utf-8")
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                middle = max(0, len(text) // 2 - SAMPLE_CHARS // 2)
                found.append(text[middle : middle + SAMPLE_CHARS])
    return found
