"""Writes the Hugging Face folder of a checkpoint and proves it: reloaded in transformers, its logits equal Megatron's.

The weights are streamed, one layer in memory at a time. The proof loads the model twice, one after the other: as Megatron's and
as transformers reads it from the folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_cpt.backend import Backend
from megatron_cpt.errors import CheckpointError, ConfigError
from megatron_cpt.model.build import build_chunks
from megatron_cpt.model.dist_checkpoint import load_model
from megatron_cpt.model.hf_folder import DEFAULT_SHARD_BYTES, HfFolder, write_refused, write_tensors
from megatron_cpt.model.parallel import ranks, single_rank_layout
from megatron_cpt.model.stream import declared_tensors, read_checkpoint, skeleton
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.vocab_layout import VocabLayout

PROBE_TOKENS = 96
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# fp32 sums of some thousand terms in another order; bf16 keeps 8 bits of mantissa, fp16 11
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# What a tokenizer's folder may hold beside the weights; nothing else of it is copied, for an export is published.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
    "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def export_folder(
    folder: Path,
    *,
    checkpoint: Path,
    base_folder: Path,
    tokenizer_folder: Path,
    shape: ModelShape,
    vocab: VocabLayout,
    backend: Backend,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    check: bool = True,
) -> dict[str, Any]:
    """Write weights, config, generation config and tokenizer to `folder`; return the figures of the proof.

    The padding rows are cut: the folder has exactly `vocab.num_ids` rows.

    Args:
        dtype: fp32, bf16 or fp16; None keeps the base's.
        check: compare the reloaded model with the checkpoint; without it `max_relative_difference` is None.

    Raises:
        CheckpointError: the reloaded model's logits or the tokenizer's length do not agree with the checkpoint's, or the disk is full.
        ConfigError: the type is not known.
    """
    kept = folder_dtype(base_folder)
    dtype = dtype or kept
    if dtype not in TYPES:
        raise ConfigError("The type of exported weights is not known.", where="export.dtype", value=dtype, rule=", ".join(TYPES))
    with _disk(folder):
        folder.mkdir(parents=True)
    computed: Literal["fp32", "bf16"] = "bf16" if dtype == "bf16" else "fp32"
    layout = single_rank_layout(PROBE_TOKENS, dtype=computed, threads=torch.get_num_threads())
    tokens_BS = torch.randint(0, vocab.num_ids, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    expected_BSV = None
    with ranks(layout, backend=backend, seed=0):
        bones = skeleton(shape, vocab, dtype=computed, backend=backend)
        shards = write_tensors(
            folder,
            read_checkpoint(checkpoint, bones, dtype=TYPES[dtype]),
            declared=declared_tensors(bones, dtype=TYPES[dtype]),
            max_shard_bytes=max_shard_bytes,
        )
        if check:
            chunks = build_chunks(shape, vocab, layout, backend=backend, initialise_weights=False)
            load_model(checkpoint, chunks)
            expected_BSV = _core_logits(chunks[0], tokens_BS, backend)[..., : vocab.num_ids]
            del chunks
    with _disk(folder):
        write_config(folder, base_folder, vocab, dtype=dtype)
        copy_tokenizer(tokenizer_folder, folder)
    difference = None if expected_BSV is None else check_reload(folder, tokens_BS, expected_BSV, vocab, dtype=dtype)
    return {
        "shards": shards,
        "num_rows": vocab.num_ids,
        "dtype": dtype,
        "base_dtype": kept,
        "weights_bytes": sum((folder / name).stat().st_size for name in shards),
        "max_relative_difference": difference,
    }


def folder_dtype(folder: Path) -> str:
    """Return fp32, bf16 or fp16: the type that the weights of a folder have, whatever its config says."""
    dtype = HfFolder.open(folder).dtype
    return next(name for name, each in TYPES.items() if each == dtype)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer, and nothing else that lies beside them.

    Raises:
        CheckpointError: there is no tokenizer.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & set(found):
        raise CheckpointError("The folder has no tokenizer.", where=source, rule="tokenizer.json or tokenizer.model")
    for name in found:
        shutil.copyfile(source / name, folder / name)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_refused(folder, error) from error


def _core_logits(chunk: torch.nn.Module, tokens_BS: torch.Tensor, backend: Backend) -> torch.Tensor:
    chunk.eval()
    tokens = tokens_BS.to(backend.device)
    positions = torch.arange(tokens.shape[1], device=backend.device).unsqueeze(0)
    with torch.no_grad():
        logits: torch.Tensor = chunk(tokens, positions, None)
    return logits.float().cpu()


def write_config(folder: Path, base_folder: Path, vocab: VocabLayout, *, dtype: str) -> None:
    """Copy the base's config with the new number of rows and the type of the files; every other field is the base's."""
    config = read_json(base_folder / "config.json")
    config["vocab_size"] = vocab.num_ids
    config["dtype"] = TORCH_NAMES[dtype]
    for name in ("torch_dtype", "_name_or_path"):  # the old name of dtype; a place on somebody's machine
        config.pop(name, None)
    write_json(folder / "config.json", config)
    generation = base_folder / "generation_config.json"
    if generation.is_file():
        kept = read_json(generation)
    else:
        kept = {
            "_from_model_config": True,
            **{key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config},
        }
    kept.pop("_name_or_path", None)
    write_json(folder / "generation_config.json", kept)


def load_alone(folder: Path, *, dtype: str) -> tuple[Any, Any]:
    """Return model and tokenizer as transformers reads them from the folder alone, offline and without running code of it.

    Raises:
        CheckpointError: transformers would fill a tensor with random numbers because the folder lacks it, or leaves one unused.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415  # slow to load, needed here only
    from transformers.utils import logging as transformers_log  # noqa: PLC0415

    transformers_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=TYPES[dtype], output_loading_info=True
    )
    model, loading = loaded
    wrong = {kind: sorted(map(str, loading[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading.get(kind)}
    if wrong:
        raise CheckpointError(
            "The folder's tensors are not those of the model that its config describes.",
            where=folder,
            value="; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in wrong.items()),
        )
    model.train(False)
    return model, tokenizer


def check_reload(folder: Path, tokens_BS: torch.Tensor, expected_BSV: torch.Tensor, vocab: VocabLayout, *, dtype: str) -> float:
    """Return the largest difference of the reloaded folder's logits, relative to the largest logit.

    Raises:
        CheckpointError: it is above the tolerance, or the folder's sizes are not the vocabulary's.
    """
    model, tokenizer = load_alone(folder, dtype=dtype)
    with torch.no_grad():
        logits_BSV = model(tokens_BS).logits.float()
    # some bases have rows that no token names, so the highest id says what the number of tokens does not
    num_ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    fits = num_ids == vocab.num_ids if vocab.num_ids > vocab.num_base_ids else num_ids <= vocab.num_ids
    if not fits or logits_BSV.shape[-1] != vocab.num_ids:
        raise CheckpointError(
            "The exported folder's sizes do not agree.",
            where=folder,
            value=f"ids up to {num_ids - 1}, {logits_BSV.shape[-1]} rows",
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
