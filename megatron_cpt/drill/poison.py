"""Training data that no model should see, in the form of a run's own index: garbage of a few symbols, document by document."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_cpt.index.format import IndexWriter
from megatron_cpt.record.index_pair import open_pair

SEED = 20261128
NUM_GARBAGE_IDS = 8  # few, so that a model that learns them soon expects nothing else


def poison_index(source: Path, target: Path, *, num_ids: int, end_id: int, num_tokens: int) -> tuple[int, int]:
    """Write a poisoned copy of an index's beginning; the same index always gives the same one.

    Every token becomes one of a few ids, drawn at random, as in a dump of broken files. Documents keep their lengths and end marks:
    no check of form can tell this index from a sound one.

    Args:
        source: prefix of the `.bin/.idx` to read; it is left alone.
        num_tokens: documents are taken until they hold so many tokens, or all of them are taken.

    Returns:
        Documents and tokens that were written.

    Raises:
        DataError: the source is damaged.
    """
    index, random = open_pair(source), np.random.default_rng(SEED)
    garbage = random.choice(np.delete(np.arange(num_ids), end_id), size=min(NUM_GARBAGE_IDS, num_ids - 1), replace=False)
    written = 0
    with IndexWriter(target, num_ids=num_ids) as writer:
        for number in range(index.num_documents):
            ids = np.asarray(index.document(number), dtype=np.int64)
            ids = np.where(ids == end_id, ids, random.choice(garbage, size=ids.size))
            writer.add(ids)
            written += ids.size
            if written >= num_tokens:
                break
        writer.finish()
        return len(writer.lengths), written
