"""Ranks that share a sequence: what each holds, what its attention gives, and what they agree on.

Each is looked at alone here; that the whole agrees with one rank is what `test_train_layouts.py` and `test_eval_bits_per_byte.py` show.
"""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout

SEQUENCES, TOKENS, HEADS, GROUPS, COLUMNS = 3, 16, 4, 2, 8
SOURCES = [0, 1, 1]
CONTEXTS = [2, 4]
pytestmark = pytest.mark.long


class Ranks:
    """What each rank found, by the number of ranks that share a sequence; started on demand."""

    def __init__(self) -> None:
        self._found: dict[int, list[dict[str, Any]]] = {}

    def __getitem__(self, context: int) -> list[dict[str, Any]]:
        if context not in self._found:
            self._found[context] = launch_ranks(_look, context, context)
        return self._found[context]


@pytest.fixture(scope="module")
def ranks_of() -> Ranks:
    return Ranks()


def _look(context: int) -> dict[str, Any]:
    from megatron_cpt.backend import choose
    from megatron_cpt.model.parallel import ranks

    with ranks(make_layout(context=context), backend=choose("cpu"), seed=3):
        return {"cut": _cut(context), "attention": _attention(context), "agreed": _agreed(context)}


def _batch() -> dict[str, Any]:
    import torch

    numbers = torch.arange(SEQUENCES * TOKENS).view(SEQUENCES, TOKENS)
    later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(diagonal=1).expand(SEQUENCES, 1, TOKENS, TOKENS)
    return {"tokens": numbers, "labels": numbers + 1, "loss_mask": numbers.remainder(5).float(), "attention_mask": later.contiguous()}


def _cut(context: int) -> dict[str, Any]:
    """Return this rank's tokens, and whether every part is the one that megatron-core's own function cuts."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    from megatron_cpt.train.data import Microbatch

    batch = _batch()
    extra = {"is_hybrid_cp": False} if "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters else {}
    wanted = get_batch_on_this_cp_rank(dict(batch), cp_group=parallel_state.get_context_parallel_group(), **extra)
    whole = Microbatch(
        batch["tokens"], batch["labels"], batch["loss_mask"], batch["tokens"] % TOKENS, torch.tensor(SOURCES), batch["attention_mask"]
    )
    part = whole.part(rank=parallel_state.get_context_parallel_rank(), num_ranks=context)
    ours = {"tokens": part.tokens_BS, "labels": part.labels_BS, "loss_mask": part.loss_mask_BS, "attention_mask": part.attention_mask_B1SS}
    return {
        "tokens": part.tokens_BS.tolist(),
        "positions": part.position_ids_BS.tolist(),
        "as_megatron": {name: torch.equal(wanted[name], tensor) for name, tensor in ours.items()},
        "rank": parallel_state.get_context_parallel_rank(),
    }


def _attention(context: int) -> dict[str, float]:
    """Return the largest differences of this rank's outputs and gradients from a softmax over the whole sequence in double precision."""
    import torch
    from megatron.core import parallel_state

    from megatron_cpt.backend.attention import CausalAttention
    from megatron_cpt.model.context import part_of_rank

    config = SimpleNamespace(attention_dropout=0.0, context_parallel_size=context, apply_query_key_layer_scaling=False)
    rank = parallel_state.get_context_parallel_rank()
    generator = torch.Generator().manual_seed(1)
    worst = {}
    for name in ("causal", "masked"):
        whole = [torch.randn(TOKENS, SEQUENCES, heads, COLUMNS, generator=generator) for heads in (HEADS, GROUPS, GROUPS)]
        upstream = torch.randn(TOKENS, SEQUENCES, HEADS * COLUMNS, generator=generator)
        hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(diagonal=1).expand(SEQUENCES, 1, TOKENS, TOKENS).clone()
        if name == "masked":  # tokens from the sixth on do not see those before it
            hidden[:, :, 6:, :6] = True
        leaves = [part_of_rank(tensor, dim=0, rank=rank, num_ranks=context).clone().requires_grad_() for tensor in whole]
        mask = part_of_rank(hidden, dim=2, rank=rank, num_ranks=context) if name == "masked" else None
        out = CausalAttention(config, 1)(*leaves, mask)
        (out * part_of_rank(upstream, dim=0, rank=rank, num_ranks=context)).sum().backward()
        wanted_out, wanted_grads = _by_softmax(whole, upstream, hidden)
        pairs = [(out, wanted_out), *zip([leaf.grad for leaf in leaves], wanted_grads, strict=True)]
        worst[name] = max(
            float((mine.double() - part_of_rank(wanted, dim=0, rank=rank, num_ranks=context)).abs().max()) for mine, wanted in pairs
        )
    return worst


def _by_softmax(whole: list[Any], upstream: Any, hidden: Any) -> tuple[Any, list[Any]]:
    import torch

    leaves = [tensor.double().requires_grad_() for tensor in whole]
    query, key, value = leaves
    key, value = (tensor.repeat_interleave(HEADS // GROUPS, dim=2) for tensor in (key, value))
    scores = torch.einsum("sbnd,tbnd->bnst", query, key) / COLUMNS**0.5
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    out = torch.einsum("bnst,tbnd->sbnd", weights, value).reshape(TOKENS, SEQUENCES, -1)
    (out * upstream.double()).sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves]


def _agreed(context: int) -> dict[str, Any]:
    """Return what all ranks agree on of a batch in which token t of sequence b has a loss of t + 100 b nats, where it has one."""
    import torch
    from megatron.core import parallel_state

    from megatron_cpt.train.data import Microbatch, StepBatch
    from megatron_cpt.train.step import _agree, _summed_loss

    batch = _batch()
    losses_BS = torch.arange(TOKENS) + 100.0 * torch.arange(SEQUENCES)[:, None]
    mask_BS = (batch["loss_mask"] > 0).float()
    whole = Microbatch(batch["tokens"], losses_BS, mask_BS, batch["tokens"], torch.tensor(SOURCES))
    part = whole.part(rank=parallel_state.get_context_parallel_rank(), num_ranks=context)
    _, num_tokens, report = _summed_loss(part, part.labels_BS)
    sums = _agree([report["nats_B"].tolist()], StepBatch(0, (part,)), SimpleNamespace(blend=(None, None)), suspect=False)  # type: ignore[arg-type]
    return {**vars(sums), "num_tokens_here": int(num_tokens)}


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_token_is_on_one_rank_of_its_context_and_the_parts_are_megatron_cores(context: int, ranks_of: Ranks) -> None:
    sharing = ranks_of[context]
    assert [rank["cut"]["rank"] for rank in sharing] == list(range(context))
    for sequence in range(SEQUENCES):
        held = [token for rank in sharing for token in rank["cut"]["tokens"][sequence]]
        assert sorted(held) == list(range(sequence * TOKENS, (sequence + 1) * TOKENS))
    pairs = [sum(position + 1 for position in rank["cut"]["positions"][0]) for rank in sharing]
    assert len(set(pairs)) == 1  # every rank's queries see the same number of keys
    for rank in ranks_of[context]:
        assert rank["cut"]["as_megatron"] == dict.fromkeys(("tokens", "labels", "loss_mask", "attention_mask"), True)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("mask", ["causal", "masked"])
def test_attention_across_ranks_and_its_gradients_are_those_of_the_whole_softmax(context: int, mask: str, ranks_of: Ranks) -> None:
    worst = max(rank["attention"][mask] for rank in ranks_of[context])
    print(f"{context} ranks, {mask}: {worst:.1e}")
    assert worst < 1e-5  # fp32 sums of at most 16 terms of size 1


@pytest.mark.parametrize("context", CONTEXTS)
def test_losses_and_counts_are_summed_over_the_ranks_that_share_a_sample_and_the_sample_counts_once(context: int, ranks_of: Ranks) -> None:
    with_loss = [[t for t in range(TOKENS) if (b * TOKENS + t) % 5] for b in range(SEQUENCES)]
    nats = [sum(t + 100.0 * b for t in tokens) for b, tokens in enumerate(with_loss)]
    for rank in ranks_of[context]:
        agreed = rank["agreed"]
        assert agreed["samples"] == (1, 2)
        assert agreed["loss_tokens"] == (len(with_loss[0]), len(with_loss[1]) + len(with_loss[2]))
        assert agreed["nats"] == (nats[0], nats[1] + nats[2])
        assert agreed["loss"] == pytest.approx(sum(nats) / sum(map(len, with_loss)), rel=1e-12)
    assert sum(rank["agreed"]["num_tokens_here"] for rank in ranks_of[context]) == sum(map(len, with_loss))
