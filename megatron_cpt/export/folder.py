"""Writes the Hugging Face folder of a checkpoint and proves it: reloaded in transformers, its logits equal Megatron's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_cpt.backend import Backend
from megatron_cpt.errors import CheckpointError
from megatron_cpt.model.build import build_chunks
from megatron_cpt.model.convert import hf_tensors
from megatron_cpt.model.dist_checkpoint import load_model
from megatron_cpt.model.hf_folder import write_tensors
from megatron_cpt.model.parallel import ranks, single_rank_layout
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.vocab_layout import VocabLayout

PROBE_TOKENS = 96
# fp32 sums of some thousand terms in another order; bf16 keeps 8 bits of mantissa
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16"}


def export_folder(
    folder: Path,
    *,
    checkpoint: Path,
    base_folder: Path,
    tokenizer_folder: Path,
    shape: ModelShape,
    vocab: VocabLayout,
    backend: Backend,
) -> dict[str, Any]:
    """Write weights, config, generation config and tokenizer to `folder`; return the figures of the proof.

    The padding rows are cut: the folder has exactly `vocab.num_ids` rows.

    Raises:
        CheckpointError: the reloaded model's logits or the tokenizer's length do not agree with the checkpoint's.
    """
    folder.mkdir(parents=True)
    dtype: Literal["fp32", "bf16"] = "bf16" if read_json(base_folder / "config.json").get("dtype") == "bfloat16" else "fp32"
    layout = single_rank_layout(PROBE_TOKENS, dtype=dtype, threads=torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, vocab.num_ids, (1, PROBE_TOKENS), generator=generator)
    with ranks(layout, backend=backend, seed=0):
        chunks = build_chunks(shape, vocab, layout, backend=backend, initialise_weights=False)
        load_model(checkpoint, chunks)
        shards = write_tensors(folder, hf_tensors(chunks, shape, vocab))
        expected_BSV = _core_logits(chunks[0], tokens_BS, backend)[..., : vocab.num_ids]
    _write_config(folder, base_folder, vocab, dtype=dtype)
    for source in sorted(tokenizer_folder.iterdir()):
        shutil.copyfile(source, folder / source.name)
    difference = _check_reload(folder, tokens_BS, expected_BSV, vocab, dtype=dtype)
    return {"shards": shards, "num_rows": vocab.num_ids, "dtype": dtype, "max_relative_difference": difference}


def _core_logits(chunk: torch.nn.Module, tokens_BS: torch.Tensor, backend: Backend) -> torch.Tensor:
    chunk.eval()
    tokens = tokens_BS.to(backend.device)
    positions = torch.arange(tokens.shape[1], device=backend.device).unsqueeze(0)
    with torch.no_grad():
        logits: torch.Tensor = chunk(tokens, positions, None)
    return logits.float().cpu()


def _write_config(folder: Path, base_folder: Path, vocab: VocabLayout, *, dtype: str) -> None:
    """Copy the base's config with the new number of rows; every other field is the base's."""
    config = read_json(base_folder / "config.json")
    config["vocab_size"] = vocab.num_ids
    config["dtype"] = TORCH_NAMES[dtype]
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", config)
    generation = base_folder / "generation_config.json"
    if generation.is_file():
        write_json(folder / generation.name, json.loads(generation.read_text(encoding="utf-8")))


def _check_reload(folder: Path, tokens_BS: torch.Tensor, expected_BSV: torch.Tensor, vocab: VocabLayout, *, dtype: str) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415  # slow to load, needed here only
    from transformers.utils import logging as transformers_log  # noqa: PLC0415

    transformers_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=getattr(torch, TORCH_NAMES[dtype]))
    model.train(False)
    with torch.no_grad():
        logits_BSV = model(tokens_BS).logits.float()
    if len(tokenizer) != vocab.num_ids or logits_BSV.shape[-1] != vocab.num_ids:
        raise CheckpointError(
            "The exported folder's sizes do not agree.",
            where=folder,
            value=f"{len(tokenizer)} tokens, {logits_BSV.shape[-1]} rows",
            rule=f"{vocab.num_ids} of each",
        )
    difference = float((logits_BSV - expected_BSV).abs().max() / expected_BSV.abs().max())
    if not difference <= TOLERANCE[dtype]:  # also refuses NaN
        raise CheckpointError(
            "The exported model does not compute what the checkpoint computes.",
            where=folder,
            value=f"largest logit difference {difference:.2e} of the largest logit",
            rule=f"at most {TOLERANCE[dtype]:.0e}",
        )
    return difference
