"""What the CPU backend's layers keep for the backward pass, by torch's own hooks, against the planner's list of tensors."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.memory import ON_CPU, kept_bytes_per_layer, layer_tensors
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.vocab_layout import VocabLayout

BACKEND = choose("cpu")

from megatron_cpt.model.build import build_chunks, check_layout  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402

TABLE = Path(__file__).resolve().parents[2] / "data" / "published" / "cpu_backend_kept.csv"
ROWS = list(csv.DictReader(TABLE.open(encoding="utf-8")))
VOCAB = VocabLayout(100, 100, 128, 0, "")
# what a family has beside its sizes
MORE = {
    "gemma3": {"window": 16, "full_every": 2, "window_rotary_base": 1e4, "query_scalar": 8.0},
    "mixtral": {"num_experts": 4, "experts_per_token": 4},  # every expert sees every token, whatever the router thinks
}


def shape_of(row: dict[str, str], num_layers: int) -> ModelShape:
    sizes = {name: int(row[name]) for name in ("hidden_size", "num_attention_heads", "num_query_groups", "head_dim", "ffn_hidden_size")}
    return ModelShape(
        **sizes, num_layers=num_layers, num_base_ids=100, max_position=int(row["sequence_length"]), norm_epsilon=1e-5, rotary_base=1e4,
        tied_embeddings=True, family=row["family"], **MORE.get(row["family"], {}),  # type: ignore[arg-type]
    )  # fmt: skip


def layout_of(row: dict[str, str]) -> Layout:
    plain = single_rank_layout(int(row["sequence_length"]), dtype=row["dtype"])  # type: ignore[arg-type]
    size = int(row["micro_batch_size"])
    return replace(plain, micro_batch_size=size, global_batch_size=size, recompute=row["recompute"])  # type: ignore[arg-type]


def kept_bytes(shape: ModelShape, layout: Layout) -> int:
    """Return the bytes of all tensors that the forward pass keeps for the backward pass, parameters left out."""
    (chunk,) = build_chunks(shape, VOCAB, layout, backend=BACKEND)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    size, length = layout.micro_batch_size, layout.sequence_length
    tokens = torch.randint(0, 100, (size, length + 1))
    positions = torch.arange(length).expand(size, length).contiguous()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunk(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())
    return sum(storage.nbytes() for storage in kept.values())


@pytest.fixture
def one_rank(request: pytest.FixtureRequest) -> Iterator[None]:
    with ranks(layout_of(request.node.callspec.params["row"]), backend=BACKEND, seed=9):
        yield


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("row", ROWS, ids=[f"{row['family']}-{row['hidden_size']}-{row['dtype']}-{row['recompute']}" for row in ROWS])
def test_the_table_of_the_cpu_backend_is_what_torch_counts_now_and_near_what_the_planner_counts(row: dict[str, str]) -> None:
    layout = layout_of(row)
    measured = kept_bytes(shape_of(row, 4), layout) - kept_bytes(shape_of(row, 2), layout)  # two layers: with Gemma both kinds
    assert measured / 2 == float(row["bytes_of_one_layer"])
    ours, _ = kept_bytes_per_layer(shape_of(row, 2), layout, build=ON_CPU)
    # left out: 4 bytes a token of each norm and each head's softmax, masks and indices of experts; at 32 hidden sizes they are up to 5 %
    assert ours == pytest.approx(measured / 2, rel=0.05 if shape_of(row, 2).hidden_size == 32 else 0.005)


def test_every_tensor_of_the_list_has_a_name_of_its_own() -> None:
    for row in ROWS:
        of_one = [entry.name for entry in layer_tensors(shape_of(row, 2), layout_of(row), operations=ON_CPU.operations)]
        assert len(set(of_one)) == len(of_one)


def test_a_shape_that_can_only_be_planned_for_is_refused_where_the_model_is_built() -> None:
    row = ROWS[0]
    shape = replace(shape_of(row, 2), num_mtp_layers=1)
    with pytest.raises(ConfigError, match="multi-token prediction can be planned for, and is not trained yet"):
        check_layout(shape, VOCAB, layout_of(row))
