"""Whether a model would rather have its windows start with something else than the plan's document separator."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.eval.forward import Progress
from megatron_cpt.eval.score import nats_by_document
from megatron_cpt.eval.windows import Window

NUM_DOCUMENTS = 8  # of all texts together: a window of each, for each start
LIMIT = 0.05  # a start that is better by more than this share of the nats is told

logger = logging.getLogger(__name__)


def nats_by_start(
    chunks: list[Any],
    documents: Sequence[Sequence[int]],
    *,
    starts: dict[str, int | None],
    window_tokens: int,
    micro_batch_size: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, float]:
    """Return nats per token after each start, over the same tokens: all of each document's first window but its first. Collective.

    Args:
        documents: ids of at least two tokens each.
        starts: ids by name; None starts with the document's own first token.
    """
    windows, scored = [], sum(len(ids[:window_tokens]) - 1 for ids in documents)
    for number, start_id in enumerate(starts.values()):
        for ids in (tuple(ids[:window_tokens]) for ids in documents):
            windows.append(Window(number, ids[1:], ids[0]) if start_id is None else Window(number, ids, start_id, num_context=1))
    sums = nats_by_document(
        chunks,
        windows,
        num_documents=len(starts),
        window_tokens=window_tokens,
        micro_batch_size=micro_batch_size,
        device=device,
        progress=progress,
    )
    return {name: nats / scored for name, nats in zip(starts, sums, strict=True)}


def declared_bos_id(folder: Path) -> int | None:
    """Return the beginning-of-sequence id that a Hugging Face folder's configuration declares, or None."""
    declared = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("bos_token_id")
    return declared if isinstance(declared, int) and not isinstance(declared, bool) else None


def warn_of_better_start(name: str, nats: dict[str, float], *, used: str) -> bool:
    """Warn, and return True, when another start than the used one is better by more than the limit; both figures are told."""
    best = min(nats, key=lambda start: nats[start])
    if not nats[best] < nats[used] * (1.0 - LIMIT):
        return False
    logger.warning(
        "%s: the first windows cost %.4f nats per token after the %s, which every subject starts with, and %.4f after %s. A model that was "
        "trained with another start scores worse here than it is; see tokenizer.document_separator.",
        name,
        nats[used],
        used,
        nats[best],
        best,
    )
    return True
