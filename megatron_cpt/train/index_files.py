"""Checks of the training sources before megatron-core opens them: it loops for ever on an empty source, and an id above the
embedding's rows is an out-of-bounds read far from its cause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.errors import DataError, raise_all
from megatron_cpt.record.index_pair import id_range, open_pair


def check_sources(prefixes: Sequence[Path], *, num_ids: int) -> None:
    """Refuse sources that training cannot read.

    Raises:
        DataError: naming every source that is empty or holds an id outside `0 .. num_ids - 1`.
    """
    problems = []
    for prefix in prefixes:
        pair = open_pair(prefix)
        if pair.num_tokens < 2:
            problems.append(f"{prefix.name} holds {pair.num_tokens} tokens; a source needs at least 2 (one to read, one to predict)")
            continue
        low, high = id_range(pair)
        if low < 0 or high >= num_ids:
            problems.append(f"{prefix.name} holds token id {high if high >= num_ids else low}; the vocabulary has ids 0 to {num_ids - 1}")
    raise_all(
        DataError,
        problems,
        where=prefixes[0].parent,
        next_step="Leave an empty source out of blend.shares; after a change of tokenizer, index again under a new run_name.",
    )
