"""Log-likelihoods of continuations after a context, in the run's layout. B windows, S tokens, N scored tokens, V columns of this rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from megatron_cpt.errors import DataError
from megatron_cpt.eval.forward import Batch, Measure, Progress, measure_windows
from megatron_cpt.eval.shards import best_ids
from megatron_cpt.eval.windows import Window


@dataclass(frozen=True)
class Continuation:
    """Ids to score after ids that are given."""

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]


@dataclass(frozen=True)
class ContinuationScore:
    """The negative log-likelihood of a continuation in nats, and whether each of its tokens is the likeliest one at its place."""

    nats: float
    is_greedy: bool


def score_continuations(
    chunks: list[Any],
    items: Sequence[Continuation],
    *,
    prefix_id: int | None,
    window_tokens: int,
    micro_batch_size: int,
    device: torch.device,
    progress: Progress,
) -> list[ContinuationScore]:
    """Return the score of each continuation, the same on every rank. Collective.

    A context that does not fit into the window beside its continuation loses its beginning, which `progress` is told of once; the
    prefix stays. A continuation is never cut.

    Args:
        prefix_id: what every item starts with, before its context; None starts it with the context's own first id.

    Raises:
        DataError: a continuation is empty or longer than the window, or there is nothing before it.
    """
    windows = [_window(number, item, prefix_id=prefix_id, window_tokens=window_tokens) for number, item in enumerate(items)]
    num_given = [len(item.context_ids) + (prefix_id is not None) for item in items]
    num_cut = sum(window.num_context + 1 < given for window, given in zip(windows, num_given, strict=True))
    if num_cut:
        progress(f"{num_cut} of {len(items)} contexts do not fit into a window of {window_tokens} tokens: their beginnings are left out")
    figures = measure_windows(
        chunks,
        windows,
        Measure(num_figures=2, from_logits=True, of=_nats_and_misses),
        window_tokens=window_tokens,
        micro_batch_size=micro_batch_size,
        device=device,
        progress=progress,
    )
    return [ContinuationScore(nats, is_greedy=misses == 0 and math.isfinite(nats)) for nats, misses in figures.tolist()]


def _window(number: int, item: Continuation, *, prefix_id: int | None, window_tokens: int) -> Window:
    """Return an item as a window of the prefix and the last ids, or of the last ids alone."""
    wanted = len(item.continuation_ids)
    if wanted == 0:
        raise DataError("A continuation is empty: it has no likelihood to compare.", where=f"item {number}", rule="one token at least")
    if wanted > window_tokens:
        raise DataError(
            "A continuation is longer than the window.",
            where=f"item {number}",
            value=f"{wanted} tokens",
            rule=f"at most {window_tokens}",
            next_step="Raise eval.window_tokens, or take the item out.",
        )
    ids = (*item.context_ids, *item.continuation_ids)
    if prefix_id is not None:
        kept = ids[-window_tokens:]
        return Window(number, kept, prefix_id, len(kept) - wanted)
    if not item.context_ids:
        raise DataError("A continuation has nothing before it.", where=f"item {number}", rule="a prefix, or one token of context")
    start_id, *rest = ids[-(window_tokens + 1) :]
    return Window(number, tuple(rest), start_id, len(rest) - wanted)


def _nats_and_misses(logits_BSV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return each window's nats, and how many of its scored tokens are not the likeliest, shape (B, 2)."""
    rows_N = batch.is_scored_BS.nonzero()[:, 0]
    labels_N, logits_NV = batch.labels_BS[batch.is_scored_BS], logits_BSV[batch.is_scored_BS]
    misses_N = best_ids(logits_NV) != labels_N
    losses_N = vocab_parallel_cross_entropy(logits_NV, labels_N)  # changes the logits
    figures_BF = torch.zeros(len(batch.windows), 2, dtype=torch.float64, device=logits_BSV.device)
    return figures_BF.index_add(0, rows_N, torch.stack([losses_N.double(), misses_N.double()], dim=1))
