"""Sums of nats per document with the real model in the run's layout. Shapes: B windows, S tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_cpt.eval.forward import Batch, Measure, Progress, measure_windows
from megatron_cpt.eval.windows import Window


def nats_by_document(
    chunks: list[Any],
    windows: Sequence[Window],
    *,
    num_documents: int,
    window_tokens: int,
    micro_batch_size: int,
    device: torch.device,
    progress: Progress,
) -> list[float]:
    """Return each document's summed negative log-likelihood in nats, on every rank. Collective."""
    figures = measure_windows(
        chunks,
        windows,
        Measure(num_figures=1, from_logits=False, of=_nats),
        window_tokens=window_tokens,
        micro_batch_size=micro_batch_size,
        device=device,
        progress=progress,
    )
    sums = torch.zeros(num_documents, dtype=torch.float64)
    for window, nats in zip(windows, figures[:, 0], strict=True):
        sums[window.document] += nats
    return sums.tolist()


def _nats(losses_BS: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the sum of each window's scored losses, shape (B, 1); what is not scored is left out even where it is not a number."""
    return torch.where(batch.is_scored_BS, losses_BS.double(), 0.0).sum(dim=1, keepdim=True)
