"""The body of the `init` stage: base weights and new rows into the checkpoint that training starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from megatron_cpt.backend import Backend
from megatron_cpt.errors import CheckpointError
from megatron_cpt.model.added_rows import make_rows, read_parts
from megatron_cpt.model.build import build_chunks, inner_model
from megatron_cpt.model.convert import load_hf_into
from megatron_cpt.model.dist_checkpoint import load_model
from megatron_cpt.model.hf_folder import HfFolder
from megatron_cpt.model.names import row_names
from megatron_cpt.model.parallel import ranks, single_rank_layout
from megatron_cpt.model.stream import skeleton, write_checkpoint
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.row_rules import row_pair
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import read_json
from megatron_cpt.record.typed import from_plain
from megatron_cpt.record.vocab_layout import VocabLayout

CHECKPOINT_FOLDER = "checkpoint"
NUM_PROBES = 4
PROBE_TOKENS = 64
# The old rows alone give old ids' logits bit for bit. The whole output layer is a larger product, which may sum in another order: a
# few units in the last place of fp32 (1.2e-7) over a hidden size of some thousands, or of bf16 (7.8e-3).
PROBE_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


def initialise(
    result: StageResult,
    *,
    base_folder: Path,
    vocab_folder: Path,
    row_init: str,
    backend: Backend,
    seed: int = 0,
    domain_windows: Sequence[Sequence[int]] = (),
) -> None:
    """Write `<result.folder>/checkpoint/`, the extended model that computes what the base computes on old text.

    Fills `result.facts`: num_params, dtype, num_new_rows, num_padding_rows, row_init (the pair of rules), probe_max_difference (largest
    difference of old-id logits between base and extended model, relative to the largest logit, in the product with all rows; with
    the old rows alone there is none), row_fit (of the rule `fitted`: what the fit read and gained, else None).

    Args:
        base_folder: Hugging Face folder of the base model.
        vocab_folder: holds vocab_layout.json and new_pieces.jsonl.
        row_init: the rule of new rows, or `input/output` (plan/row_rules.py).
        seed: of the rules that draw; what they draw also depends on the vocabulary.
        domain_windows: ids of the extended vocabulary, domain text for the rules that read it.

    Raises:
        CheckpointError: the base cannot be read, a new row is zero or not finite, or old-id logits moved.
        DataError: the vocabulary's files do not agree with each other, or the rule needs domain text and there is none.
        ConfigError: the rule is not known, or a tied model is asked for two.
    """
    shape = ModelShape.from_hf_folder(base_folder)
    pair = row_pair(row_init, tied=shape.tied_embeddings)
    vocab = from_plain(VocabLayout, read_json(vocab_folder / "vocab_layout.json"), where=vocab_folder / "vocab_layout.json")
    parts = read_parts(vocab_folder / "new_pieces.jsonl", vocab)
    base = HfFolder.open(base_folder)
    dtype = dtype_of(base)
    layout = single_rank_layout(PROBE_TOKENS, dtype=dtype, threads=torch.get_num_threads())
    with ranks(layout, backend=backend, seed=0):
        base_chunks = base_model(shape, base, layout, backend)
        before = _probe(base_chunks, vocab, backend)
        added = make_rows(
            pair,
            base=base,
            base_model=base_chunks[0],
            shape=shape,
            vocab=vocab,
            parts=parts,
            seed=seed,
            domain_windows=domain_windows,
            device=backend.device,
        )
        del base_chunks
        extended = skeleton(shape, vocab, dtype=dtype, backend=backend)
        checkpoint = result.folder / CHECKPOINT_FOLDER
        common = {"stage": "init", "vocab_fingerprint": vocab.fingerprint}
        write_checkpoint(checkpoint, base, extended, new_rows=added.by_tensor, common=common)
        # What is judged is what was written: one model in memory at a time, the base's before and the checkpoint's now.
        chunks = build_chunks(shape, vocab, layout, backend=backend, initialise_weights=False)
        load_model(checkpoint, chunks)
        _check_old_rows(chunks[0], base, shape, vocab)
        moved = _check_logits(before, _probe(chunks, vocab, backend), dtype=dtype)
    result.facts |= {
        "num_params": extended.num_params,
        "dtype": dtype,
        "num_new_rows": vocab.num_ids - vocab.num_base_ids,
        "num_padding_rows": vocab.num_padded_rows - vocab.num_ids,
        "row_init": pair.name,
        "probe_max_difference": moved,
        "row_fit": added.fit,
    }


def dtype_of(base: HfFolder) -> Literal["fp32", "bf16"]:
    """Return the type that a base's weights are kept in: fp16's range does not fit bf16's, fp32's does."""
    return "bf16" if base.dtype == torch.bfloat16 else "fp32"


def base_model(shape: ModelShape, base: HfFolder, layout: Layout, backend: Backend) -> Sequence[torch.nn.Module]:
    """Return the base model at its own size."""
    own = VocabLayout(shape.num_base_ids, shape.num_base_ids, shape.num_base_ids, end_of_document_id=0, tokenizer_sha256="")
    chunks = build_chunks(shape, own, layout, backend=backend, initialise_weights=False)
    load_hf_into(chunks, base, shape, own)
    return chunks


@dataclass(frozen=True)
class _Probe:
    """Logits over the base ids: `whole` as the model gives them, `old` from the rows of the base ids alone."""

    whole: torch.Tensor
    old: torch.Tensor


@torch.no_grad()
def _probe(chunks: Sequence[torch.nn.Module], vocab: VocabLayout, backend: Backend) -> _Probe:
    """Return what the model says after a few fixed prompts of base ids."""
    generator = torch.Generator().manual_seed(20260101)
    tokens = torch.randint(0, vocab.num_base_ids, (NUM_PROBES, PROBE_TOKENS), generator=generator).to(backend.device)
    positions = torch.arange(PROBE_TOKENS, device=backend.device).expand(NUM_PROBES, -1)
    model = inner_model(chunks[0])
    hidden: list[torch.Tensor] = []
    hook = model.output_layer.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0]))
    try:
        logits: torch.Tensor = chunks[0](tokens, positions, None)
    finally:
        hook.remove()
    padding = logits[..., model.vocab.num_ids :]
    assert padding.eq(float("-inf")).all(), "padding rows take part in the softmax"
    rows = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else model.output_layer.weight
    old = functional.linear(hidden[0], rows[: vocab.num_base_ids])
    return _Probe(logits[..., : vocab.num_base_ids].float().cpu(), old.cpu())


def _check_logits(before: _Probe, after: _Probe, *, dtype: str) -> float:
    """Return how far the whole product moved; refuse any bit that the old rows give otherwise than before."""
    moved = float((after.whole - before.whole).abs().max() / before.whole.abs().max())
    exact = torch.equal(before.old, after.old)
    if not exact or not moved <= PROBE_TOLERANCE[dtype]:
        raise CheckpointError(
            "The extension moved logits of old ids.",
            value=f"{moved:.3g} of the largest logit; with the old rows alone they are {'equal' if exact else 'not equal'}",
            rule=f"equal bit for bit with the old rows alone, and at most {PROBE_TOLERANCE[dtype]:g} in the whole product ({dtype})",
            next_step="Report this: the extended model does not compute what the base computes.",
        )
    return moved


def _check_old_rows(chunk: Any, base: HfFolder, shape: ModelShape, vocab: VocabLayout) -> None:
    weights = [chunk.embedding.word_embeddings.weight, chunk.output_layer.weight]
    for name, weight in zip(row_names(shape), weights, strict=False):  # a tied model has the first only
        old = base.read(name, dim=0, start=0, stop=vocab.num_base_ids).to(weight.dtype)
        if not torch.equal(weight.detach()[: vocab.num_base_ids].cpu(), old):
            raise CheckpointError("Rows of old ids changed.", where=base.folder, value=name, rule="bit-identical")
