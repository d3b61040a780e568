"""Recomputation frees what the plan says: bytes that autograd keeps for one layer, counted by torch's own hooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.vocab_layout import VocabLayout

BACKEND = choose("cpu")

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402

NUM_TOKENS, BATCH, HIDDEN, FFN = 64, 2, 32, 80
LAYOUT = replace(single_rank_layout(NUM_TOKENS, dtype="fp32"), micro_batch_size=BATCH, global_batch_size=BATCH)
VOCAB = VocabLayout(100, 100, 128, 0, "")


def shape(num_layers: int) -> ModelShape:
    return ModelShape(
        hidden_size=HIDDEN, num_layers=num_layers, num_attention_heads=4, num_query_groups=2, head_dim=8, ffn_hidden_size=FFN,
        num_base_ids=100, max_position=NUM_TOKENS, norm_epsilon=1e-5, rotary_base=1e4, tied_embeddings=True,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with ranks(LAYOUT, backend=BACKEND, seed=9):
        yield


def kept_bytes(num_layers: int, layout: Layout) -> int:
    """Return the bytes of all tensors that the forward pass keeps for the backward pass, parameters left out."""
    (chunk,) = build_chunks(shape(num_layers), VOCAB, layout, backend=BACKEND)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, 100, (BATCH, NUM_TOKENS + 1))
    positions = torch.arange(NUM_TOKENS).expand(BATCH, NUM_TOKENS).contiguous()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunk(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())
    return sum(storage.nbytes() for storage in kept.values())


def kept_of_one_layer(recompute: str) -> int:
    layout = replace(LAYOUT, recompute=recompute)  # type: ignore[arg-type]
    return kept_bytes(3, layout) - kept_bytes(2, layout)


def test_full_recompute_keeps_a_layers_input_alone_and_selective_all_but_the_mlps_middle() -> None:
    hidden = 4 * NUM_TOKENS * BATCH * HIDDEN
    middle = 4 * NUM_TOKENS * BATCH * 4 * FFN  # gate, up, activated gate and their product, in fp32: what an unfused SwiGLU needs at least
    nothing, selective, full = map(kept_of_one_layer, ("none", "selective", "full"))
    assert full == hidden  # Korthikanti et al. 2022, table 2: 2sbh with 2 bytes a number
    assert nothing - selective >= middle
    assert selective >= 4 * hidden  # inputs of both norms, of the query/key/value matrix and of the MLP


def test_a_sequence_longer_than_the_models_positions_is_refused_where_the_model_is_built() -> None:
    build_chunks(shape(2), VOCAB, replace(LAYOUT, sequence_length=NUM_TOKENS), backend=BACKEND)
    with pytest.raises(ConfigError, match=rf"sequence_length={NUM_TOKENS + 1} is longer than the model's {NUM_TOKENS} positions"):
        build_chunks(shape(2), VOCAB, replace(LAYOUT, sequence_length=NUM_TOKENS + 1), backend=BACKEND)


def test_a_batch_of_another_number_of_ranks_is_refused_where_the_model_is_built() -> None:
    layout = replace(LAYOUT, global_batch_size=10, micro_batch_size=4, data=2)
    with pytest.raises(ConfigError, match=r"10 does not divide .* = 4 x 2 = 8. Nearest legal: 8 or 16"):
        build_chunks(shape(2), VOCAB, layout, backend=BACKEND)
