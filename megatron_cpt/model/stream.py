"""Converts between a Hugging Face folder and a distributed checkpoint one tensor at a time: the model is never whole in memory.

A skeleton, the model on the `meta` device, says which parameters there are; megatron-core plans and describes the checkpoint as
it does for every model, and the table in names.py says what each parameter is made of. All functions run on one rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.backend import Backend
from megatron_cpt.errors import CheckpointError
from megatron_cpt.model.build import PARAMS_DTYPE, CptModel, build_chunks
from megatron_cpt.model.convert import ROW_TENSORS, check_folder, name_in, read_parameter, rules_of
from megatron_cpt.model.dist_checkpoint import StreamedLoad, check_row_values, check_rows, save_streamed
from megatron_cpt.model.hf_folder import Declared, HfFolder
from megatron_cpt.model.names import Rule, expected_shapes
from megatron_cpt.model.parallel import single_rank_layout
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout

META = torch.device("meta")


@dataclass(frozen=True)
class Source:
    """What one core parameter is made of on the Hugging Face side."""

    rule: Rule
    hf: tuple[str, ...]


@dataclass(frozen=True)
class Skeleton:
    """A model without data, and the sources of its parameters by name, in the order of the model."""

    model: CptModel
    sources: Mapping[str, Source]
    shape: ModelShape
    vocab: VocabLayout

    @property
    def num_params(self) -> int:
        return sum(param.numel() for param in self.model.parameters())


def skeleton(shape: ModelShape, vocab: VocabLayout, *, dtype: str, backend: Backend) -> Skeleton:
    """Build the model on the `meta` device; its parameters have the type `fp32` or `bf16`."""
    assert dtype in PARAMS_DTYPE
    layout = single_rank_layout(1, dtype=dtype)  # type: ignore[arg-type]
    (model,) = build_chunks(shape, vocab, layout, backend=backend, initialise_weights=False)
    model.to(META)  # what was reserved for the parameters was never touched, so that it took no memory
    names = dict(model.named_parameters())
    sources = {name_in(names, core): Source(rule, hf) for rule, core, hf in rules_of(model, shape)}
    assert sources.keys() == names.keys(), sorted(sources.keys() ^ names.keys())
    return Skeleton(model, sources, shape, vocab)


def write_checkpoint(
    folder: Path,
    base: HfFolder,
    this: Skeleton,
    *,
    new_rows: Mapping[str, torch.Tensor] | None = None,
    common: dict[str, Any],
) -> None:
    """Write the checkpoint that `save_model` would write of the model filled with the folder's weights, bit for bit.

    Args:
        new_rows: as for `convert.load_hf_into`.
        common: plain data that `load_model` returns.

    Raises:
        CheckpointError: the folder is not of this shape, a row of a real id is zero or not finite, or the disk is full.
    """
    check_folder(base, this.shape)
    params = dict(this.model.named_parameters())

    def read(name: str) -> torch.Tensor:
        source = this.sources[name]
        whole = read_parameter(
            base,
            source.rule,
            source.hf,
            shape=this.shape,
            vocab=this.vocab,
            new_rows=new_rows or {},
            like=params[name],
        ).to(params[name].dtype)
        if source.hf[0] in ROW_TENSORS:
            check_row_values(whole, this.vocab, where=base.folder)
        return whole

    save_streamed(folder, this.model, read=read, common=common)


def declared_tensors(this: Skeleton, *, dtype: torch.dtype) -> dict[str, Declared]:
    """Return type and shape of every Hugging Face tensor, in the order of `read_checkpoint`; padding rows are cut off."""
    shapes = expected_shapes(this.shape, num_rows=this.vocab.num_ids)
    declared = {name: (dtype, shapes.pop(name)) for source in this.sources.values() for name in source.hf}
    assert not shapes, f"tensors that no parameter gives: {sorted(shapes)}"
    return declared


def read_checkpoint(folder: Path, this: Skeleton, *, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of the Hugging Face model that a checkpoint holds, one layer of it in memory at a time.

    Raises:
        CheckpointError: no checkpoint, a damaged one, another model's, rows of real ids that are zero or not finite, or values
            that `dtype` cannot hold.
    """
    load = StreamedLoad(folder, this.model)
    for _, group in itertools.groupby(this.sources, key=_layer_of):
        names = list(group)
        loaded = load.read(names)
        for name in names:
            whole = loaded.pop(name)
            source = this.sources[name]
            if source.hf[0] in ROW_TENSORS:
                check_row_values(whole, this.vocab, where=folder)
                parts = [whole[: this.vocab.num_ids]]
            else:
                parts = source.rule.split(whole, this.shape)
            del whole
            for hf_name, part in zip(source.hf, parts, strict=True):
                yield hf_name, _converted(part, dtype, where=folder, name=hf_name)


def fill_from(folder: Path, model: CptModel) -> None:
    """Fill a model on one rank with a checkpoint's weights alone: whatever else another trainer has put into it is not looked at.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    load = StreamedLoad(folder, model)
    for name, param in model.named_parameters():
        with torch.no_grad():
            param.copy_(load.read([name])[name])
    check_rows(model, where=folder)


def _layer_of(name: str) -> str:
    """Return what the parameters of one layer have in common: the name up to its number."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return name if number is None else ".".join(parts[: number + 1])


def _converted(part: torch.Tensor, dtype: torch.dtype, *, where: Path, name: str) -> torch.Tensor:
    converted = part.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(converted).all():  # the one type whose range is smaller than the others'
        raise CheckpointError(
            "A weight is too large for fp16.",
            where=where,
            value=name,
            rule=f"at most {torch.finfo(torch.float16).max:g}",
            next_step="Export with export.dtype=bf16 or fp32.",
        )
    return converted


def recast_checkpoint(source: Path, target: Path, old: Skeleton, new: Skeleton, *, common: dict[str, Any]) -> None:
    """Write a checkpoint's weights anew with another number of padding rows or another type; optimizer state is left out.

    Rows of ids are kept; padding rows are those of the old one, or the mean of its ids' rows where it has too few.

    Raises:
        CheckpointError: as `read_checkpoint` and `write_checkpoint`.
    """
    load = StreamedLoad(source, old.model)
    params = dict(new.model.named_parameters())

    def read(name: str) -> torch.Tensor:
        whole = load.read([name])[name]
        if old.sources[name].hf[0] in ROW_TENSORS:
            check_row_values(whole, old.vocab, where=source)
            num_rows = params[name].shape[0]
            if num_rows > whole.shape[0]:
                mean = whole[: old.vocab.num_ids].float().mean(dim=0).to(whole.dtype)
                whole = torch.cat([whole, mean.expand(num_rows - whole.shape[0], -1)])
            whole = whole[:num_rows]
        return whole.to(params[name].dtype)

    save_streamed(target, new.model, read=read, common=common)
