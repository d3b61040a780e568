"""The body of the `init` stage: base weights and new rows into the checkpoint that training starts from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_cpt.backend import Backend
from megatron_cpt.errors import CheckpointError, DataError
from megatron_cpt.model import fit_rows, rows
from megatron_cpt.model.build import build_chunks, inner_model
from megatron_cpt.model.convert import load_hf_into
from megatron_cpt.model.dist_checkpoint import load_model
from megatron_cpt.model.hf_folder import HfFolder
from megatron_cpt.model.names import row_names
from megatron_cpt.model.parallel import ranks, single_rank_layout
from megatron_cpt.model.stream import skeleton, write_checkpoint
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import read_json
from megatron_cpt.record.typed import from_plain
from megatron_cpt.record.vocab_layout import FITTED_ROWS, VocabLayout

CHECKPOINT_FOLDER = "checkpoint"
NUM_PROBES = 4
PROBE_TOKENS = 64
# The extended output layer is a larger matrix product, which may sum in another order: a few units in the last place of
# fp32 (1.2e-7) over a hidden size of some thousands, or of bf16 (7.8e-3).
PROBE_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


def initialise(
    result: StageResult,
    *,
    base_folder: Path,
    vocab_folder: Path,
    row_init: str,
    backend: Backend,
    domain_windows: Sequence[Sequence[int]] = (),
) -> None:
    """Write `<result.folder>/checkpoint/`, the extended model that computes what the base computes on old text.

    Fills `result.facts`: num_params, dtype, num_new_rows, num_padding_rows, row_init, probe_max_difference (largest
    difference of old-id logits between base and extended model, relative to the largest logit), row_fit (of the rule
    `fitted`: what the fit read and gained, else None).

    Args:
        base_folder: Hugging Face folder of the base model.
        vocab_folder: holds vocab_layout.json and new_pieces.jsonl.
        row_init: name of a rule of `rows.ROW_RULES`.
        domain_windows: ids of the extended vocabulary, domain text for the rule `fitted`; the others do not look at it.

    Raises:
        CheckpointError: the base cannot be read, a new row is zero or not finite, or old-id logits moved.
        DataError: the vocabulary's files do not agree with each other, or the rule needs domain text and there is none.
        ConfigError: the rule is not known.
    """
    rows.row_rule(row_init)
    shape = ModelShape.from_hf_folder(base_folder)
    vocab = from_plain(VocabLayout, read_json(vocab_folder / "vocab_layout.json"), where=vocab_folder / "vocab_layout.json")
    parts = read_parts(vocab_folder / "new_pieces.jsonl", vocab)
    base = HfFolder.open(base_folder)
    dtype: Literal["fp32", "bf16"] = "bf16" if base.dtype == torch.bfloat16 else "fp32"  # fp16's range does not fit bf16's, fp32's does
    added = {
        name: rows.new_rows(base.read(name)[: vocab.num_base_ids], parts, rule=row_init, num_padding=vocab.num_padded_rows - vocab.num_ids)
        for name in row_names(shape)
    }
    layout = single_rank_layout(PROBE_TOKENS, dtype=dtype, threads=torch.get_num_threads())
    with ranks(layout, backend=backend, seed=0):
        base_chunks = _base_model(shape, base, layout, backend)
        before = _probe_logits(base_chunks, vocab, backend)
        fitted = (
            _fit_output_rows(base_chunks[0], added, windows=domain_windows, parts=parts, shape=shape, vocab=vocab, backend=backend)
            if row_init == FITTED_ROWS
            else None
        )
        del base_chunks
        extended = skeleton(shape, vocab, dtype=dtype, backend=backend)
        checkpoint = result.folder / CHECKPOINT_FOLDER
        common = {"stage": "init", "vocab_fingerprint": vocab.fingerprint}
        write_checkpoint(checkpoint, base, extended, new_rows=added, common=common)
        # What is judged is what was written: one model in memory at a time, the base's before and the checkpoint's now.
        chunks = build_chunks(shape, vocab, layout, backend=backend, initialise_weights=False)
        load_model(checkpoint, chunks)
        _check_old_rows(chunks[0], base, shape, vocab)
        moved = _check_logits(before, _probe_logits(chunks, vocab, backend), dtype=dtype)
    result.facts |= {
        "num_params": extended.num_params,
        "dtype": dtype,
        "num_new_rows": vocab.num_ids - vocab.num_base_ids,
        "num_padding_rows": vocab.num_padded_rows - vocab.num_ids,
        "row_init": row_init,
        "probe_max_difference": moved,
        "row_fit": fitted,
    }


def _fit_output_rows(
    base: Any,
    added: dict[str, torch.Tensor],
    *,
    windows: Sequence[Sequence[int]],
    parts: Sequence[Sequence[int]],
    shape: ModelShape,
    vocab: VocabLayout,
    backend: Backend,
) -> dict[str, Any] | None:
    """Replace the new ids' rows of the output matrix by fitted ones and return what the fit saw."""
    if not parts:
        return None
    contexts = fit_rows.read_contexts(base, windows, parts, vocab, max_tokens=shape.max_position, device=backend.device)
    rows_of_output = added[row_names(shape)[-1]]
    fit = fit_rows.fit(rows_of_output[: len(parts)], contexts)
    rows_of_output[: len(parts)] = fit.rows_NH
    return {
        "positions": fit.num_positions,
        "ridge": fit.ridge if math.isfinite(fit.ridge) else None,
        "held_out_nats_per_token_of_mean_rows": fit.held_out_nats_of_mean,
        "held_out_nats_per_token": fit.held_out_nats,
    }


def read_parts(path: Path, vocab: VocabLayout) -> list[list[int]]:
    """Return the base ids of each new id, in the order of the new ids.

    Raises:
        DataError: a line is not a record, an id is missing, twice or out of range, or a piece has no base ids.
    """
    parts: dict[int, list[int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # every line is closed; splitlines would also break at U+2028
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError("The list of new pieces cannot be read.", where=path, value=str(error)) from None
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            raise DataError("A line is not a record of a new piece.", where=f"{path}:{number}", rule='{"id": 7, "base_ids": [1, 2]}')
        new_id, base_ids = record
        if new_id in parts or not vocab.num_base_ids <= new_id < vocab.num_ids:
            raise DataError(
                "A new id is twice in the list or out of range.",
                where=f"{path}:{number}",
                value=new_id,
                rule=f"each of {vocab.num_base_ids} .. {vocab.num_ids - 1} once",
            )
        if not base_ids or not all(0 <= base_id < vocab.num_base_ids for base_id in base_ids):
            raise DataError(
                "A new piece has no base ids, or one out of range.",
                where=f"{path}:{number}",
                value=base_ids,
                rule=f"ids below {vocab.num_base_ids}",
            )
        parts[new_id] = base_ids
    wanted = range(vocab.num_base_ids, vocab.num_ids)
    if len(parts) != len(wanted):
        raise DataError("New ids are missing from the list.", where=path, value=f"{len(parts)} records", rule=f"{len(wanted)} new ids")
    return [parts[new_id] for new_id in wanted]


def _record(line: str) -> tuple[int, list[int]] | None:
    try:
        data: Any = json.loads(line)
        new_id, base_ids = data["id"], data["base_ids"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(new_id) is not int or not isinstance(base_ids, list) or not all(type(base_id) is int for base_id in base_ids):
        return None
    return new_id, base_ids


def _base_model(shape: ModelShape, base: HfFolder, layout: Layout, backend: Backend) -> Sequence[torch.nn.Module]:
    """Return the base model at its own size."""
    own = VocabLayout(shape.num_base_ids, shape.num_base_ids, shape.num_base_ids, end_of_document_id=0, tokenizer_sha256="")
    chunks = build_chunks(shape, own, layout, backend=backend, initialise_weights=False)
    load_hf_into(chunks, base, shape, own)
    return chunks


@torch.no_grad()
def _probe_logits(chunks: Sequence[torch.nn.Module], vocab: VocabLayout, backend: Backend) -> torch.Tensor:
    """Return logits over the base ids for a few fixed prompts of base ids."""
    generator = torch.Generator().manual_seed(20260101)
    tokens = torch.randint(0, vocab.num_base_ids, (NUM_PROBES, PROBE_TOKENS), generator=generator).to(backend.device)
    positions = torch.arange(PROBE_TOKENS, device=backend.device).expand(NUM_PROBES, -1)
    logits: torch.Tensor = chunks[0](tokens, positions, None)
    padding = logits[..., inner_model(chunks[0]).vocab.num_ids :]
    assert padding.eq(float("-inf")).all(), "padding rows take part in the softmax"
    return logits[..., : vocab.num_base_ids].float().cpu()


def _check_logits(before: torch.Tensor, after: torch.Tensor, *, dtype: str) -> float:
    moved = float((after - before).abs().max() / before.abs().max())
    if not moved <= PROBE_TOLERANCE[dtype]:
        raise CheckpointError(
            "The extension moved logits of old ids.",
            value=f"{moved:.3g} of the largest logit",
            rule=f"at most {PROBE_TOLERANCE[dtype]:g} ({dtype})",
            next_step="Report this: the extended model does not compute what the base computes.",
        )
    return moved


def _check_old_rows(chunk: Any, base: HfFolder, shape: ModelShape, vocab: VocabLayout) -> None:
    weights = [chunk.embedding.word_embeddings.weight, chunk.output_layer.weight]
    for name, weight in zip(row_names(shape), weights, strict=False):  # a tied model has the first only
        old = base.read(name, dim=0, start=0, stop=vocab.num_base_ids).to(weight.dtype)
        if not torch.equal(weight.detach()[: vocab.num_base_ids].cpu(), old):
            raise CheckpointError("Rows of old ids changed.", where=base.folder, value=name, rule="bit-identical")
