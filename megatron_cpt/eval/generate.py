"""Generation in the run's layout, by running each prefix anew for every token. B windows, S tokens, N prompts, V columns of this rank.

There is no cache of keys and values: any layout, any attention and any family that can be scored can generate, at a cost that grows
with the length of the prompt times the number of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.eval.forward import Batch, Measure, Progress, measure_windows
from megatron_cpt.eval.shards import best_ids, first_id_of_rank
from megatron_cpt.eval.windows import Window
from megatron_cpt.model.build import inner_model


def generate_greedy(
    chunks: list[Any],
    prompts_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    prefix_id: int | None,
    window_tokens: int,
    micro_batch_size: int,
    device: torch.device,
    progress: Progress,
    temperature: float = 0.0,
    seed: int = 0,
    is_finished: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Return each prompt's new ids, without the stop id that ended them, the same on every rank. Collective.

    The likeliest id is taken (the lowest of equals), or above temperature 0 one is drawn from softmax(logits / temperature). A draw
    depends on the seed, the prompt's place and the token's place alone, so that it is the same in every layout and batch; a prompt that
    is given several times is drawn for independently. Generation ends early when every prompt has met a stop.

    A prompt that does not fit into the window beside `max_new_tokens` loses its beginning, which `progress` is told of; the prefix stays.

    Args:
        prefix_id: what every prompt starts with; None starts it with its own first id.
        is_finished: called with a prompt's new ids after each; True ends it, and they are kept. It must decide alike on every rank.

    Raises:
        ConfigError: the window leaves no token of a prompt beside the new ones.
        DataError: a prompt is empty and there is no prefix.
    """
    room = window_tokens - max_new_tokens - (prefix_id is not None)
    if room < 1 or max_new_tokens < 1:
        raise ConfigError(
            "The window has no room for a prompt beside the new tokens.",
            where="max_new_tokens",
            value=max_new_tokens,
            rule=f"1 to {window_tokens - 1 - (prefix_id is not None)} with windows of {window_tokens} tokens",
        )
    prefix = () if prefix_id is None else (prefix_id,)
    starts = [(*prefix, *tuple(ids)[-room:]) for ids in prompts_ids]
    empty = next((number for number, ids in enumerate(starts) if not ids), None)
    if empty is not None:
        raise DataError("A prompt is empty.", where=f"prompt {empty}", rule="a prefix, or one token")
    num_cut = sum(len(ids) > room for ids in prompts_ids)
    if num_cut:
        progress(
            f"{num_cut} of {len(prompts_ids)} prompts do not fit into a window of {window_tokens} tokens: their beginnings are left out"
        )
    stops, new_ids = frozenset(stop_ids), [list[int]() for _ in starts]
    active = list(range(len(starts)))
    for place in range(max_new_tokens):
        if not active:
            break
        windows = [_window(number, (*starts[number], *new_ids[number])) for number in active]
        figures = measure_windows(
            chunks,
            windows,
            Measure(1, from_logits=True, of=partial(_next_ids, chunks[-1], temperature=temperature, seed=seed, place=place)),
            window_tokens=window_tokens,
            micro_batch_size=micro_batch_size,
            device=device,
            progress=lambda line, place=place: progress(f"token {place + 1} of at most {max_new_tokens}: {line}"),  # type: ignore[misc]
        )
        going_on = []
        for number, next_id in zip(active, figures[:, 0].to(torch.int64).tolist(), strict=True):
            if next_id in stops:
                continue
            new_ids[number].append(next_id)
            if is_finished is None or not is_finished(new_ids[number]):
                going_on.append(number)
        active = going_on
    return new_ids


def _window(number: int, ids: tuple[int, ...]) -> Window:
    """Return a window whose only scored token is the one after `ids`; its label is not read."""
    return Window(number, (*ids[1:], 0), ids[0], num_context=len(ids) - 1)


def _next_ids(chunk: Any, logits_BSV: torch.Tensor, batch: Batch, *, temperature: float, seed: int, place: int) -> torch.Tensor:
    """Return the id after each window, shape (B, 1), 0 where another context-parallel rank holds the window's end."""
    rows_N = batch.is_scored_BS.nonzero()[:, 0]
    logits_NV = logits_BSV[batch.is_scored_BS]
    if temperature > 0.0:
        num_ids = inner_model(chunk).vocab.num_ids
        prompts = [batch.windows[row].document for row in rows_N.tolist()]
        logits_NV = logits_NV.double() / temperature + _noise(prompts, place, like=logits_NV, num_ids=num_ids, seed=seed)
    figures_BF = torch.zeros(len(batch.windows), 1, dtype=torch.float64, device=logits_BSV.device)
    return figures_BF.index_add(0, rows_N, best_ids(logits_NV)[:, None].double())


def _noise(prompts: Sequence[int], place: int, *, like: torch.Tensor, num_ids: int, seed: int) -> torch.Tensor:
    """Return this rank's columns of Gumbel noise: the argmax of logits plus it is a draw from their softmax (Gumbel 1954).

    It is drawn for the whole vocabulary in host memory, because generators of devices differ.
    """
    first, num_columns = first_id_of_rank(like.shape[-1]), like.shape[-1]
    noise_NV = torch.zeros(like.shape, dtype=torch.float64)
    for row, prompt in enumerate(prompts):
        digest = hashlib.sha256(f"{seed}/{prompt}/{place}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        uniform_V = torch.rand(num_ids, dtype=torch.float64, generator=generator)[first : first + num_columns]
        noise_NV[row, : len(uniform_V)] = -torch.log(-torch.log(uniform_V))
    return noise_NV.to(like.device)
