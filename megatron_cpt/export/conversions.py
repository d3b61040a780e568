"""The conversions of tools/convert_checkpoint.py, each with its proof. A result is built aside and renamed when it is whole.

All run on one rank of the CPU backend, inside `parallel.ranks`, and hold one tensor at a time; a proof loads the model.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_cpt.backend import Backend
from megatron_cpt.errors import CheckpointError, ConfigError
from megatron_cpt.export.folder import TOLERANCE, TYPES, copy_tokenizer, folder_dtype, load_alone, write_config
from megatron_cpt.model import rows
from megatron_cpt.model.build import build_chunks
from megatron_cpt.model.convert import ROW_TENSORS
from megatron_cpt.model.dist_checkpoint import EMBEDDING_KEY, saved_shape
from megatron_cpt.model.gguf import gguf_to_folder, load_gguf
from megatron_cpt.model.hf_folder import HfFolder, write_refused, write_tensors
from megatron_cpt.model.parallel import single_rank_layout
from megatron_cpt.model.stream import Skeleton, declared_tensors, fill_from, read_checkpoint, recast_checkpoint, skeleton, write_checkpoint
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.store import publish_folder, read_json
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows

PROBE_TOKENS = 64
EDGE = 4  # positions at either end whose logits are reported


@contextlib.contextmanager
def built_aside(out: Path) -> Iterator[Path]:
    """Give a folder to build in; it becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        ConfigError: `out` exists.
        CheckpointError: the system refused a write.
    """
    if out.exists():
        raise ConfigError("The output exists.", where=out, next_step="Name a folder that does not exist yet, or remove this one.")
    aside = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}.partial"
    try:
        aside.mkdir(parents=True)
        yield aside
        publish_folder(aside, out)
    except OSError as error:
        raise write_refused(out, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def hf_to_megatron(source: Path, out: Path, *, rows_multiple: int, dtype: str | None, check: bool, backend: Backend) -> dict[str, Any]:
    """Write the checkpoint of a Hugging Face folder; padding rows, if any, are the mean of its rows.

    Args:
        dtype: fp32 or bf16; None takes the folder's (fp32 for fp16, which fits into no other type).
    """
    shape, base = ModelShape.from_hf_folder(source), HfFolder.open(source)
    check_tokenizer(source, num_rows=shape.num_base_ids)
    kind = _parameter_type(dtype or folder_dtype(source))
    num_ids = shape.num_base_ids
    vocab = VocabLayout(num_ids, num_ids, padded_rows(num_ids, multiple=rows_multiple), end_of_document_id=0, tokenizer_sha256="")
    bones = skeleton(shape, vocab, dtype=kind, backend=backend)
    num_padding = vocab.num_padded_rows - num_ids
    added = {
        name: rows.new_rows(rows.RowInputs(base.read(name)[:num_ids], []), rule="mean", num_padding=num_padding)
        for name in ROW_TENSORS
        if num_padding and name in base.entries
    }
    facts = {"num_params": bones.num_params, "dtype": kind, "num_ids": num_ids, "num_rows": vocab.num_padded_rows}
    with built_aside(out) as folder:
        checkpoint = folder / "model"
        write_checkpoint(checkpoint, base, bones, new_rows=added, common={"stage": "convert"})
        if check:
            facts |= _compare_weights(checkpoint, bones, base, dtype=TYPES[kind])
            facts |= _compare_logits(checkpoint, bones, source, dtype=kind, backend=backend)
    return facts


def megatron_to_hf(
    checkpoint: Path,
    out: Path,
    *,
    like: Path,
    tokenizer: Path | None,
    num_ids: int | None,
    dtype: str | None,
    max_shard_bytes: int,
    check: bool,
    backend: Backend,
) -> dict[str, Any]:
    """Write the Hugging Face folder of a checkpoint.

    Args:
        like: Hugging Face folder of the same architecture, whose config is copied.
        tokenizer: folder with the tokenizer (default: `like`).
        num_ids: rows that belong to ids; the others are padding and are cut off. By default those of the tokenizer where one is
            named, else the config's `vocab_size`.
        dtype: fp32, bf16 or fp16; None takes that of `like`'s weights, where it has any, else its config's.
    """
    bones = _bones_of(checkpoint, like=like, tokenizer=tokenizer, num_ids=num_ids, dtype="fp32", backend=backend)
    kind = dtype or _type_of(like)
    if kind not in TYPES:
        raise ConfigError("The type is not known.", where="--dtype", value=kind, rule=", ".join(TYPES))
    if kind == "bf16":
        bones = skeleton(bones.shape, bones.vocab, dtype="bf16", backend=backend)
    with built_aside(out) as folder:
        shards = write_tensors(
            folder,
            read_checkpoint(checkpoint, bones, dtype=TYPES[kind]),
            declared=declared_tensors(bones, dtype=TYPES[kind]),
            max_shard_bytes=max_shard_bytes,
        )
        write_config(folder, like, bones.vocab, dtype=kind)
        copy_tokenizer(tokenizer or like, folder)
        facts: dict[str, Any] = {"shards": shards, "num_rows": bones.vocab.num_ids, "dtype": kind}
        if check:
            facts |= _compare_weights(checkpoint, bones, HfFolder.open(folder), dtype=TYPES[kind])
            facts |= _compare_logits(checkpoint, bones, folder, dtype=kind, backend=backend)
    return facts


def megatron_to_megatron(
    checkpoint: Path,
    out: Path,
    *,
    like: Path,
    tokenizer: Path | None,
    num_ids: int | None,
    rows_multiple: int,
    dtype: str,
    check: bool,
    backend: Backend,
) -> dict[str, Any]:
    """Write a checkpoint's weights anew: without optimizer state, with other padding, in another type, by this megatron-core.

    A distributed checkpoint has no tensor- or pipeline-parallel size; any layout loads it as it is, where its rows divide.
    """
    old = _bones_of(checkpoint, like=like, tokenizer=tokenizer, num_ids=num_ids, dtype=dtype, backend=backend)
    vocab = replace(old.vocab, num_padded_rows=padded_rows(old.vocab.num_ids, multiple=rows_multiple))
    new = skeleton(old.shape, vocab, dtype=dtype, backend=backend)
    facts: dict[str, Any] = {"num_params": new.num_params, "dtype": dtype, "num_rows": vocab.num_padded_rows}
    with built_aside(out) as folder:
        recast_checkpoint(checkpoint, folder / "model", old, new, common={"stage": "convert"})
        if check:
            pairs = zip(
                read_checkpoint(checkpoint, old, dtype=TYPES[dtype]),
                read_checkpoint(folder / "model", new, dtype=TYPES[dtype]),
                strict=True,
            )
            facts["num_equal_tensors"] = _count_equal(((name, one, other) for (name, one), (_, other) in pairs), where=folder)
    return facts


def gguf_to_hf(file: Path, out: Path, *, tokenizer: Path | None, dtype: str, max_shard_bytes: int, check: bool) -> dict[str, Any]:
    """Write the Hugging Face folder of a GGUF file; `tokenizer` is a folder whose tokenizer is taken instead of the file's."""
    with built_aside(out) as folder:
        facts = gguf_to_folder(file, folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)
            facts["tokenizer_proven"] = True
        check_tokenizer(folder, num_rows=facts["num_rows"])
        if check:
            theirs = load_gguf(file, dtype=dtype)
            ours, _ = load_alone(folder, dtype=dtype)
            state = ours.state_dict()
            facts["num_equal_tensors"] = _count_equal(
                ((name, state[name], tensor) for name, tensor in theirs.state_dict().items()), where=folder
            )
            tokens_BS = _probe(facts["num_rows"])
            with torch.no_grad():
                facts |= _difference(ours(tokens_BS).logits.float(), theirs(tokens_BS).logits.float(), dtype=dtype, where=folder)
    return facts


def check_tokenizer(folder: Path, *, num_rows: int) -> None:
    """Refuse a folder whose tokenizer has ids that the model has no rows for; a folder without tokenizer.json is let be.

    Raises:
        CheckpointError: with the largest id.
    """
    if (folder / "tokenizer.json").is_file() and num_rows < (needed := tokenizer_ids(folder)):
        raise CheckpointError(
            "The tokenizer has ids that the model has no row for.",
            where=folder,
            value=f"largest id {needed - 1}",
            rule=f"ids below vocab_size {num_rows} of config.json",
            next_step="Use the tokenizer that belongs to this model.",
        )


def tokenizer_ids(folder: Path) -> int:
    """Return one more than the largest id of a folder's tokenizer.json.

    Raises:
        CheckpointError: it cannot be read.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        return 1 + max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
    except Exception as error:  # the Rust library raises bare Exception for any damaged content
        raise CheckpointError("A tokenizer.json cannot be read.", where=folder, value=str(error)[:300]) from None


def _bones_of(checkpoint: Path, *, like: Path, tokenizer: Path | None, num_ids: int | None, dtype: str, backend: Backend) -> Skeleton:
    """Return the model of a checkpoint: its shape as `like` says, its rows as the checkpoint says."""
    shape = ModelShape.from_hf_folder(like)
    saved = saved_shape(checkpoint, EMBEDDING_KEY)
    if saved is None:
        raise CheckpointError("The checkpoint holds no model.", where=checkpoint, rule=f"a tensor {EMBEDDING_KEY}")
    ids = num_ids or (shape.num_base_ids if tokenizer is None else tokenizer_ids(tokenizer))
    if ids > saved[0]:
        raise CheckpointError(
            "The checkpoint has fewer rows than there are ids.",
            where=checkpoint,
            value=f"{saved[0]} rows",
            rule=f"{ids} ids",
            next_step="Name the tokenizer of this checkpoint with --tokenizer, or the number of its ids with --num-ids.",
        )
    vocab = VocabLayout(min(shape.num_base_ids, ids), ids, saved[0], end_of_document_id=0, tokenizer_sha256="")
    return skeleton(shape, vocab, dtype=dtype, backend=backend)


def _parameter_type(kind: str) -> Literal["fp32", "bf16"]:
    return "bf16" if kind == "bf16" else "fp32"


def _type_of(like: Path) -> str:
    with contextlib.suppress(CheckpointError):
        return folder_dtype(like)
    config = read_json(like / "config.json")
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(named, named)


def _compare_weights(checkpoint: Path, bones: Skeleton, folder: HfFolder, *, dtype: torch.dtype) -> dict[str, Any]:
    triples = ((name, tensor, folder.read(name).to(dtype)) for name, tensor in read_checkpoint(checkpoint, bones, dtype=dtype))
    return {"num_equal_tensors": _count_equal(triples, where=folder.folder)}


def _count_equal(triples: Iterable[tuple[str, torch.Tensor, torch.Tensor]], *, where: object) -> int:
    count = 0
    for name, one, other in triples:
        if not torch.equal(one, other):
            raise CheckpointError("A tensor is not bit for bit what it was.", where=where, value=name)
        count += 1
    return count


def _probe(num_ids: int) -> torch.Tensor:
    return torch.randint(0, num_ids, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))


def _compare_logits(checkpoint: Path, bones: Skeleton, folder: Path, *, dtype: str, backend: Backend) -> dict[str, Any]:
    """Compare Megatron's model of the checkpoint with transformers' model of the folder."""
    layout = single_rank_layout(PROBE_TOKENS, dtype=_parameter_type(dtype), threads=torch.get_num_threads())
    tokens_BS = _probe(bones.vocab.num_ids)
    chunks = build_chunks(bones.shape, bones.vocab, layout, backend=backend, initialise_weights=False)
    fill_from(checkpoint, chunks[0])
    with torch.no_grad():
        ours_BSV = chunks[0](tokens_BS, torch.arange(PROBE_TOKENS)[None], None)[..., : bones.vocab.num_ids].float()
        del chunks
        theirs_BSV = load_alone(folder, dtype=dtype)[0](tokens_BS).logits.float()
    return _difference(ours_BSV, theirs_BSV, dtype=dtype, where=folder)


def _difference(ours_BSV: torch.Tensor, theirs_BSV: torch.Tensor, *, dtype: str, where: object) -> dict[str, Any]:
    largest = theirs_BSV.abs().max()
    parts = {"early": slice(0, EDGE), "late": slice(-EDGE, None), "all": slice(None)}
    found = {name: float((ours_BSV[:, part] - theirs_BSV[:, part]).abs().max() / largest) for name, part in parts.items()}
    if not found["all"] <= TOLERANCE[dtype]:  # also refuses NaN
        raise CheckpointError(
            "The converted model does not compute what its source computes.",
            where=where,
            value=f"largest logit difference {found['all']:.2e} of the largest logit",
            rule=f"at most {TOLERANCE[dtype]:.0e} ({dtype})",
        )
    return {f"logit_difference_{name}": value for name, value in found.items()}
