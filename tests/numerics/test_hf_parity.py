"""Weights go to core and back bit by bit, and the model computes what transformers computes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from megatron_cpt.backend import choose
from tests.numerics.tiny_llama import layout_of_ids, load_reference, save_tiny_llama

BACKEND = choose("cpu")

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import hf_tensors, load_hf_into  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder, write_tensors  # noqa: E402
from megatron_cpt.model.names import EMBEDDING, OUTPUT  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402
from megatron_cpt.plan.model_shape import ModelShape  # noqa: E402

# fp32 over two layers: both sides sum in other orders; 1e-4 leaves room for a deep model, 1e-6 is what a run shows.
LOGIT_TOLERANCE = 1e-4
SHAPES = [
    pytest.param({"num_heads": 4, "num_groups": 4}, id="multi-head"),
    pytest.param({"num_heads": 4, "num_groups": 2}, id="grouped-query"),
    pytest.param({"num_heads": 4, "num_groups": 1}, id="multi-query"),
    pytest.param({"num_heads": 8, "num_groups": 2, "head_dim": 24}, id="heads-wider-than-hidden"),
]


def padding_rows(shape: ModelShape, num_rows: int) -> dict[str, torch.Tensor]:
    """Return rows so large that they would decide every softmax they took part in."""
    return {name: torch.full((num_rows, shape.hidden_size), 3.0) for name in (EMBEDDING, OUTPUT)}


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("heads", SHAPES)
def test_weights_return_bit_identical_and_logits_and_losses_are_those_of_transformers(tmp_path: Path, heads: dict, tied: bool) -> None:
    shape = save_tiny_llama(tmp_path / "base", tied=tied, **heads)
    vocab = layout_of_ids(shape, multiple=128)
    assert vocab.num_padded_rows == 128
    layout = single_rank_layout(256, dtype="fp32")
    reference = load_reference(tmp_path / "base")
    tokens = torch.randint(0, shape.num_base_ids, (2, 256), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = reference(tokens).logits
    labels = tokens.roll(-1, dims=1)
    their_loss = functional.cross_entropy(theirs.flatten(0, 1), labels.flatten(), reduction="none").view(2, -1)

    with ranks(layout, backend=BACKEND, seed=1), torch.no_grad():
        base = HfFolder.open(tmp_path / "base")
        chunks = build_chunks(shape, vocab, layout, backend=BACKEND)
        load_hf_into(chunks, base, shape, vocab, padding_rows(shape, 28))
        positions = torch.arange(256).expand(2, -1)
        ours = chunks[0](tokens, positions, None)
        our_loss = chunks[0](tokens, positions, None, labels=labels)
        write_tensors(tmp_path / "back", hf_tensors(chunks, shape, vocab))

    assert ours[..., vocab.num_ids :].eq(float("-inf")).all()
    for part in (slice(0, 4), slice(252, 256)):
        assert relative_difference(ours[:, part, : vocab.num_ids], theirs[:, part]) < LOGIT_TOLERANCE
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-4, atol=1e-4)
    back = HfFolder.open(tmp_path / "back")
    assert set(back.entries) == set(base.entries)
    for name in base.entries:
        assert torch.equal(back.read(name), base.read(name)), name


def test_bf16_weights_return_bit_identical_through_an_fp32_model(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path, dtype=torch.bfloat16)
    vocab = layout_of_ids(shape)
    layout = single_rank_layout(8, dtype="fp32")
    base = HfFolder.open(tmp_path)
    assert base.dtype == torch.bfloat16
    with ranks(layout, backend=BACKEND, seed=1):
        chunks = build_chunks(shape, vocab, layout, backend=BACKEND)
        load_hf_into(chunks, base, shape, vocab)
        for name, tensor in hf_tensors(chunks, shape, vocab):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor.bfloat16(), base.read(name)), name


def test_a_bf16_model_computes_what_a_bf16_llama_computes(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path, dtype=torch.bfloat16)
    vocab = layout_of_ids(shape, multiple=128)
    layout = single_rank_layout(64, dtype="bf16")
    tokens = torch.randint(0, shape.num_base_ids, (1, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = load_reference(tmp_path).float()(tokens).logits
    with ranks(layout, backend=BACKEND, seed=1), torch.no_grad():
        chunks = build_chunks(shape, vocab, layout, backend=BACKEND)
        assert {param.dtype for param in chunks[0].parameters()} == {torch.bfloat16}
        load_hf_into(chunks, HfFolder.open(tmp_path), shape, vocab, padding_rows(shape, 28))
        ours = chunks[0](tokens, torch.arange(64)[None], None)
    # bf16 keeps 8 bits: 0.4 % per rounding, some tens of roundings in two layers.
    assert relative_difference(ours[..., : vocab.num_ids].float(), theirs) < 0.05


def test_padding_rows_get_no_gradient(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path, tied=False)
    vocab = layout_of_ids(shape, multiple=128)
    layout = single_rank_layout(16, dtype="fp32")
    tokens = torch.randint(0, shape.num_base_ids, (1, 16), generator=torch.Generator().manual_seed(3))
    reference = load_reference(tmp_path)
    functional.cross_entropy(reference(tokens).logits[0], tokens[0], reduction="sum").backward()
    with ranks(layout, backend=BACKEND, seed=1):
        chunks = build_chunks(shape, vocab, layout, backend=BACKEND)
        load_hf_into(chunks, HfFolder.open(tmp_path), shape, vocab, padding_rows(shape, 28))
        chunks[0](tokens, torch.arange(16)[None], None, labels=tokens).sum().backward()
        gradient = chunks[0].output_layer.weight.grad
        assert gradient[vocab.num_ids :].abs().max() == 0
        torch.testing.assert_close(gradient[: vocab.num_ids], reference.lm_head.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.real_model
@pytest.mark.skipif("CPT_BASE_MODEL" not in os.environ, reason="set CPT_BASE_MODEL to the SmolLM2 folder that `make samples` writes")
def test_the_real_base_model_computes_what_transformers_computes() -> None:
    folder = Path(os.environ["CPT_BASE_MODEL"])
    shape = ModelShape.from_hf_folder(folder)
    vocab = layout_of_ids(shape, multiple=128)
    layout = single_rank_layout(256, dtype="fp32", threads=2)
    tokens = torch.randint(0, shape.num_base_ids, (1, 256), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = load_reference(folder)(tokens).logits
    with ranks(layout, backend=BACKEND, seed=1), torch.no_grad():
        chunks = build_chunks(shape, vocab, layout, backend=BACKEND, initialise_weights=False)
        load_hf_into(chunks, HfFolder.open(folder), shape, vocab)
        ours = chunks[0](tokens, torch.arange(256)[None], None)
    for part in (slice(0, 4), slice(252, 256)):
        difference = relative_difference(ours[:, part], theirs[:, part])
        print(f"{part}: {difference:.2e} of the largest logit")
        assert difference < LOGIT_TOLERANCE
