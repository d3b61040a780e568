"""Moves weights between a Hugging Face folder and GPTModel chunks; every tensor on either side is used exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from megatron.core import parallel_state

from megatron_cpt.errors import CheckpointError, raise_all
from megatron_cpt.model.build import CptModel, inner_model
from megatron_cpt.model.hf_folder import HfFolder
from megatron_cpt.model.names import DERIVED_SUFFIXES, OUTPUT, TABLES, Rule, embedding_name, expected_shapes, rules_for_chunk
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout

# Tensors with one row an id, of any family.
ROW_TENSORS = (*{table.embedding[0].hf[0].name: None for table in TABLES.values()}, OUTPUT)


ROWS_AT_ONCE = 8192  # bounds what is mapped of the file beside the rows themselves


def check_folder(base: HfFolder, shape: ModelShape) -> None:
    """Refuse a folder whose tensors are not exactly those of the shape.

    Raises:
        CheckpointError: listing every tensor that is missing, unknown or of another shape.
    """
    wanted = expected_shapes(shape, num_rows=shape.num_base_ids)
    found = {name: entry.shape for name, entry in base.entries.items() if not name.endswith(DERIVED_SUFFIXES)}
    problems = []
    embedding = embedding_name(shape)
    if shape.tied_embeddings and OUTPUT in found:
        # Some tools write the tied rows twice. Then both must be the same rows.
        found.pop(OUTPUT)
        if embedding in found and not torch.equal(base.read(OUTPUT), base.read(embedding)):
            problems.append(f"{OUTPUT} differs from {embedding}, and config.json says that they are tied")
    problems += [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name!r} is not known" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(size)}" for name, size in wanted.items() if found.get(name, size) != size
    ]
    next_step = "Check that config.json belongs to these weights."
    if embedding.partition(".")[2] in found:  # GPT-2's first files, which are still about
        next_step = f"The names lack their prefix {embedding.partition('.')[0]!r}: load and save the model once with transformers."
    raise_all(CheckpointError, problems, where=base.folder, next_step=next_step)


def load_hf_into(
    chunks: Sequence[torch.nn.Module],
    base: HfFolder,
    shape: ModelShape,
    vocab: VocabLayout,
    new_rows: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Fill this rank's chunks from a base folder; tensor- and pipeline-parallel ranks read only their slices.

    Args:
        new_rows: for each of `row_names(shape)` the rows from `vocab.num_base_ids` to `vocab.num_padded_rows`: first the new
            ids', then the padding's, whatever the base's file holds there. Not needed for a vocabulary without new ids of which
            the base has all the rows already. They are converted to the parameter's type.

    Raises:
        CheckpointError: the folder's tensors are not those of the shape, or rows are missing.
    """
    check_folder(base, shape)
    rank, size = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    for chunk in chunks:
        model = inner_model(chunk)
        params = dict(model.named_parameters())
        for rule, core_names, hf_names in rules_of(model, shape):
            param = params.pop(name_in(params, core_names))
            local = read_parameter(
                base, rule, hf_names, shape=shape, vocab=vocab, new_rows=new_rows or {}, like=param, rank=rank, size=size
            )
            assert local.shape == param.shape, f"{core_names[0]}: {tuple(local.shape)} for {tuple(param.shape)}"
            with torch.no_grad():
                param.copy_(local)  # converts to the parameter's type and device
        assert not params, f"parameters without a rule: {sorted(params)}"


def read_parameter(
    base: HfFolder,
    rule: Rule,
    hf_names: tuple[str, ...],
    *,
    shape: ModelShape,
    vocab: VocabLayout,
    new_rows: Mapping[str, torch.Tensor],
    like: torch.Tensor,
    rank: int = 0,
    size: int = 1,
) -> torch.Tensor:
    """Return one parameter as tensor-parallel rank `rank` of `size` holds it, read from the folder; `like` has its shape and type."""
    if hf_names[0] in ROW_TENSORS:
        start, stop = rank * like.shape[0], (rank + 1) * like.shape[0]
        return _rows(base, hf_names[0], vocab, new_rows, start=start, stop=stop, dtype=like.dtype)
    return rule.fuse([_block(base, name, rule, rank, size) for name in hf_names], shape)


def hf_tensors(chunks: Sequence[torch.nn.Module], shape: ModelShape, vocab: VocabLayout) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of the Hugging Face model, on one rank that holds the whole model; padding rows are cut off.

    Tensors are views where possible, in the parameters' type. A tied model has no `lm_head.weight`.
    """
    assert parallel_state.get_tensor_model_parallel_world_size() == 1, "one tensor-parallel rank"
    assert parallel_state.get_pipeline_model_parallel_world_size() == 1, "one pipeline rank"
    assert parallel_state.get_expert_model_parallel_world_size() == 1, "one expert-parallel rank"
    (chunk,) = chunks
    model = inner_model(chunk)
    params = {name: param.detach() for name, param in model.named_parameters()}
    missing = expected_shapes(shape, num_rows=vocab.num_ids)
    for rule, core_names, hf_names in rules_of(model, shape):
        core = params.pop(name_in(params, core_names))
        parts = [core[: vocab.num_ids]] if hf_names[0] in ROW_TENSORS else rule.split(core, shape)
        for name, part in zip(hf_names, parts, strict=True):
            assert part.shape == missing.pop(name), f"{name}: {tuple(part.shape)}"
            yield name, part
    assert not params, f"parameters without a rule: {sorted(params)}"
    assert not missing, f"tensors that no parameter gave: {sorted(missing)}"


def rules_of(model: CptModel, shape: ModelShape) -> Iterator[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
    """Yield (rule, possible core names, Hugging Face names) for every parameter of a chunk."""
    num_experts = shape.num_experts // parallel_state.get_expert_model_parallel_world_size()
    first_expert = parallel_state.get_expert_model_parallel_rank() * num_experts
    return rules_for_chunk(
        shape,
        layer_ids=[layer.layer_number - 1 for layer in model.decoder.layers],
        expert_ids=range(first_expert, first_expert + num_experts),
        has_embedding=model.pre_process,
        has_output=model.post_process,
    )


def name_in(params: Mapping[str, torch.Tensor], candidates: tuple[str, ...]) -> str:
    present = [name for name in candidates if name in params]
    assert len(present) == 1, f"one of {candidates} expected, found {present}"
    return present[0]


def _block(base: HfFolder, name: str, rule: Rule, rank: int, size: int) -> torch.Tensor:
    """Return the part of a tensor that tensor-parallel rank `rank` of `size` holds."""
    if rule.cut_dim is None or size == 1:
        return base.read(name)
    length = base.entries[name].shape[rule.cut_dim] // rule.stacked
    assert length % size == 0, f"{name} does not divide by {size}"
    step = length // size
    starts = [part * length + rank * step for part in range(rule.stacked)]
    blocks = [base.read(name, dim=rule.cut_dim, start=start, stop=start + step) for start in starts]
    return torch.cat(blocks, dim=rule.cut_dim) if rule.stacked > 1 else blocks[0]


def _rows(
    base: HfFolder, name: str, vocab: VocabLayout, new_rows: Mapping[str, torch.Tensor], *, start: int, stop: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return rows `start:stop` of the extended embedding: base ids from the folder, the others from `new_rows`."""
    num_in_file = base.entries[name].shape[0]
    if name not in new_rows and num_in_file >= vocab.num_padded_rows and vocab.num_ids == vocab.num_base_ids:
        return base.read(name, dim=0, start=start, stop=stop)
    if num_in_file < vocab.num_base_ids:
        raise CheckpointError(
            "The base model has fewer embedding rows than its tokenizer has ids.",
            where=base.folder,
            value=f"{num_in_file} rows in {name}",
            rule=f"at least {vocab.num_base_ids}",
            next_step="Use the tokenizer that belongs to these weights.",
        )
    if name not in new_rows:
        raise CheckpointError(
            "The base model lacks rows of the vocabulary.",
            where=base.folder,
            value=f"{num_in_file} rows in {name}, of which {vocab.num_base_ids} belong to base ids",
            rule=f"{vocab.num_padded_rows} rows, those of new ids initialised",
            next_step="Start from the checkpoint of the init stage, which adds them.",
        )
    added = new_rows[name]
    num_added = vocab.num_padded_rows - vocab.num_base_ids
    assert added.shape[0] == num_added, f"{name}: {added.shape[0]} new rows for {num_added}"
    rows = torch.empty((stop - start, added.shape[1]), dtype=dtype)  # the largest tensor of a model: not a copy of it more than this
    num_old = max(min(stop, vocab.num_base_ids) - start, 0)
    for first in range(0, num_old, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, num_old)
        rows[first:last] = base.read(name, dim=0, start=start + first, stop=start + last)
    if stop > vocab.num_base_ids:
        rows[num_old:] = added[max(start - vocab.num_base_ids, 0) : stop - vocab.num_base_ids]
    return rows
