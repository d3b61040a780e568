"""Fits new output rows to hidden states of the base, so that the extended model gives a new piece about the probability with
which the base spelt it.

The base reads domain text in its own pieces. Where the extended tokenizer begins a token, the base's last hidden state is what
the new row will be multiplied with, so the rows are those of a softmax regression on these states: the base's logits stand
still, the new rows are free, and a ridge holds them near the mean of their parts. A forward pass over a few thousand tokens is all it
reads; no weight of the base moves.

Shapes: P positions, N new ids, H hidden columns, V base ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_cpt.errors import DataError
from megatron_cpt.record.vocab_layout import VocabLayout

# Positions for each new row, and their bounds: with fewer a row is seen too seldom to be fitted, with more only the time grows.
POSITIONS_PER_ROW = 32
MIN_POSITIONS, MAX_POSITIONS = 8192, 32_768
WINDOW_TOKENS = 256
HELD_OUT = 0.2
# Strength of the ridge, strongest first, in units of the mean square of a hidden state's element; the held-out loss chooses.
RIDGES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
ITERATIONS = 40


@dataclass(frozen=True)
class Contexts:
    """What the base says where a token of the extended tokenizer begins.

    `target_P` is that token's id less V, negative for base ids; `log_total_P` the log of the sum of the exponentials of all base
    logits; `old_logit_P` the logit of the target where it is a base id.
    """

    hidden_PH: torch.Tensor
    log_total_P: torch.Tensor
    old_logit_P: torch.Tensor
    target_P: torch.Tensor

    def part(self, begin: int, end: int) -> Contexts:
        return Contexts(self.hidden_PH[begin:end], self.log_total_P[begin:end], self.old_logit_P[begin:end], self.target_P[begin:end])

    def __len__(self) -> int:
        return len(self.target_P)


@dataclass(frozen=True)
class Fit:
    """Fitted rows (N, H) in fp32 and what was seen: nats per token on held-out positions with the mean rows and with the fitted ones."""

    rows_NH: torch.Tensor
    num_positions: int
    ridge: float
    held_out_nats_of_mean: float
    held_out_nats: float


def num_windows(num_new_rows: int) -> int:
    """Return how many windows of `WINDOW_TOKENS` the fit of so many rows reads."""
    return -(-min(MAX_POSITIONS, max(MIN_POSITIONS, POSITIONS_PER_ROW * num_new_rows)) // WINDOW_TOKENS)


@torch.no_grad()
def read_contexts(
    base: Any, windows: Sequence[Sequence[int]], parts: Sequence[Sequence[int]], vocab: VocabLayout, *, max_tokens: int, device: Any
) -> Contexts:
    """Run the base over windows of extended ids, spelt in base ids.

    Args:
        base: the base's GPTModel, whole on this rank.
        windows: ids of the extended vocabulary.
        parts: base ids of each new id.
        max_tokens: how many base ids the base can read at once; a window that is longer is cut.

    Raises:
        DataError: there is no window.
    """
    if not windows:
        raise DataError("There is no domain text to fit new rows to.", rule="the rule fitted reads the indexed domain sources")
    num_base = vocab.num_base_ids
    seen: list[Contexts] = []
    hidden: list[torch.Tensor] = []
    hook = base.output_layer.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0]))
    try:
        for window in windows:
            spelt, begins = [vocab.end_of_document_id], []
            for token in window:
                if len(spelt) + (len(parts[token - num_base]) if token >= num_base else 1) > max_tokens:
                    break
                begins.append(len(spelt) - 1)  # the position that predicts the token's first base id
                spelt += parts[token - num_base] if token >= num_base else [token]
            tokens = torch.tensor([spelt[:-1]], device=device)
            logits = base(tokens, torch.arange(tokens.shape[1], device=device)[None], None)[0, begins, :num_base].float()
            target = torch.tensor(window[: len(begins)], device=device)
            old = target.clamp(max=num_base - 1)
            seen.append(
                Contexts(hidden.pop()[begins, 0].float(), logits.logsumexp(dim=1), logits.gather(1, old[:, None])[:, 0], target - num_base)
            )
    finally:
        hook.remove()
    return Contexts(
        hidden_PH=torch.cat([each.hidden_PH for each in seen]),
        log_total_P=torch.cat([each.log_total_P for each in seen]),
        old_logit_P=torch.cat([each.old_logit_P for each in seen]),
        target_P=torch.cat([each.target_P for each in seen]),
    )


def nats_per_token(rows_NH: torch.Tensor, contexts: Contexts) -> torch.Tensor:
    """Return the mean loss of the extended softmax on the contexts; differentiable in the rows."""
    logits_PN = contexts.hidden_PH @ rows_NH.T
    is_new_P = contexts.target_P >= 0
    new_P = logits_PN.gather(1, contexts.target_P.clamp(min=0)[:, None])[:, 0]
    total_P = torch.logaddexp(contexts.log_total_P, logits_PN.logsumexp(dim=1))
    return (total_P - torch.where(is_new_P, new_P, contexts.old_logit_P)).mean()


def fit(mean_NH: torch.Tensor, contexts: Contexts) -> Fit:
    """Return the rows with the lowest loss under a ridge towards the mean rows; the ridge is chosen on held-out positions.

    The mean rows are returned where no ridge of `RIDGES` improves on them.
    """
    mean_NH = mean_NH.to(contexts.hidden_PH)
    split = int(len(contexts) * (1 - HELD_OUT))
    seen, held_out = contexts.part(0, split), contexts.part(split, len(contexts))
    of_mean = float(nats_per_token(mean_NH, held_out))
    best_ridge, best_nats = float("inf"), of_mean
    rows_NH = best_NH = mean_NH
    for ridge in RIDGES:
        rows_NH = _minimise(rows_NH, mean_NH, seen, ridge)
        nats = float(nats_per_token(rows_NH, held_out))
        if nats >= best_nats:
            break
        best_ridge, best_nats, best_NH = ridge, nats, rows_NH
    if best_ridge < float("inf"):
        best_NH = _minimise(best_NH, mean_NH, contexts, best_ridge)  # now with the held-out positions too
    return Fit(best_NH.cpu(), len(contexts), best_ridge, of_mean, best_nats)


def _minimise(start_NH: torch.Tensor, mean_NH: torch.Tensor, contexts: Contexts, ridge: float) -> torch.Tensor:
    rows_NH = start_NH.clone().requires_grad_(True)
    strength = ridge * float(contexts.hidden_PH.square().mean()) / len(contexts)
    optimizer = torch.optim.LBFGS([rows_NH], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nats_per_token(rows_NH, contexts) + strength * (rows_NH - mean_NH).square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return rows_NH.detach()
