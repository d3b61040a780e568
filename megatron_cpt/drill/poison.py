"""Training data that no model should see, made from a run's own index: what an index of another tokenizer would be, in disorder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_cpt.index.format import IndexWriter, open_index

SEED = 20261128


def poison_index(source: Path, target: Path, *, num_ids: int, end_id: int, num_tokens: int) -> tuple[int, int]:
    """Write a poisoned copy of an index's beginning; the same index always gives the same one.

    Every id is put through one fixed permutation of all ids, and the tokens of each document are shuffled. The end mark keeps its id
    and its place, so that documents stay documents: no check of form can tell this index from a sound one.

    Args:
        source: prefix of the `.bin/.idx` to read; it is left alone.
        num_tokens: documents are taken until they hold so many tokens, or all of them are taken.

    Returns:
        Documents and tokens that were written.

    Raises:
        DataError: the source is damaged.
    """
    index, random = open_index(source), np.random.default_rng(SEED)
    others = np.delete(np.arange(num_ids), end_id)
    other_id = np.arange(num_ids)
    other_id[others] = random.permutation(others)
    written = 0
    with IndexWriter(target, num_ids=num_ids) as writer:
        for number in range(index.num_documents):
            ids = other_id[np.asarray(index.document(number), dtype=np.int64)]
            body = ids[:-1] if ids[-1] == end_id else ids
            random.shuffle(body)  # a view: in place
            writer.add(ids)
            written += ids.size
            if written >= num_tokens:
                break
        writer.finish()
        return len(writer.lengths), written
