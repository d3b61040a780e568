"""Adds what an instruct model learned on top of a base to the continued base: continued + (instruct - base), tensor by tensor.

After Huang et al. 2023 (Chat Vector, arXiv 2310.04799) and Jindal et al. 2024 (arXiv 2410.10739). It is arithmetic on weights and no
training: docs/reference/export.md says when it fails.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import CheckpointError, raise_all
from megatron_cpt.export.folder import copy_tokenizer
from megatron_cpt.model.convert import ROW_TENSORS
from megatron_cpt.model.hf_folder import DEFAULT_SHARD_BYTES, HfFolder, write_tensors
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.store import read_json, write_json

# Fields of a config that may differ between a base and the instruct model that was made from it.
CHAT_FILES = ("chat_template.jinja", "chat_template.json", "generation_config.json")


def add_chat(
    folder: Path, *, continued_folder: Path, base_folder: Path, instruct_folder: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> dict[str, Any]:
    """Write a Hugging Face folder of the continued model with the difference of instruct and base added, and return its figures.

    Every tensor is computed in fp32 and written in the continued model's type. Of the embedding and output matrices only the
    rows that base and instruct both have are changed; rows of new pieces stay the continued model's. Tokenizer and config are
    the continued model's, chat template and generation config the instruct model's.

    Raises:
        CheckpointError: the three are not one architecture, instruct gives an id another piece than base, or a result is not finite.
    """
    continued, base, instruct = (HfFolder.open(each) for each in (continued_folder, base_folder, instruct_folder))
    num_rows = check_relatives(continued, base, instruct)
    squares = {"delta": 0.0, "continued": 0.0}

    def merged() -> Iterator[tuple[str, torch.Tensor]]:
        for name, entry in continued.entries.items():
            result = continued.read(name).float()
            squares["continued"] += float(result.double().square().sum())
            shared = slice(0, num_rows) if name in ROW_TENSORS else slice(None)
            delta = instruct.read(name)[shared].float() - base.read(name)[shared].float()
            squares["delta"] += float(delta.double().square().sum())
            result[shared] += delta
            del delta
            kept = result.to(entry.dtype)
            if not torch.isfinite(kept).all():
                raise CheckpointError("A merged weight is not finite.", where=instruct_folder, value=name)
            yield name, kept

    declared = {name: (entry.dtype, entry.shape) for name, entry in continued.entries.items()}
    shards = write_tensors(folder, merged(), declared=declared, max_shard_bytes=max_shard_bytes)
    copy_tokenizer(continued_folder, folder)
    write_json(folder / "config.json", read_json(continued_folder / "config.json"))
    for name in CHAT_FILES:
        source = instruct_folder if (instruct_folder / name).is_file() else continued_folder
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    copy_chat_template(instruct_folder, folder)
    return {
        "shards": shards,
        "num_shared_rows": num_rows,
        "delta_over_weights": (squares["delta"] / squares["continued"]) ** 0.5,
    }


def check_relatives(continued: HfFolder, base: HfFolder, instruct: HfFolder) -> int:
    """Return the number of embedding rows that all three have in common.

    Raises:
        CheckpointError: listing everything in which they are not one architecture and one base vocabulary.
    """
    shapes = {name: ModelShape.from_hf_folder(each.folder) for name, each in _named(continued, base, instruct)}
    problems = []
    for name in ("base", "instruct"):
        for field in dataclasses.fields(ModelShape):
            ours, theirs = getattr(shapes["continued"], field.name), getattr(shapes[name], field.name)
            if field.name != "num_base_ids" and ours != theirs:
                problems.append(f"{field.name} is {theirs!r} in the {name} model and {ours!r} in the continued one")
    for name, other in _named(continued, base, instruct):
        differing = sorted(set(other.entries) ^ set(continued.entries))
        if differing:
            problems.append(f"the {name} model differs in having or lacking {', '.join(differing[:3])}")
        problems += [
            f"{tensor} is {list(entry.shape)} in the {name} model and {list(continued.entries[tensor].shape)} in the continued one"
            for tensor, entry in other.entries.items()
            if tensor in continued.entries and tensor not in ROW_TENSORS and entry.shape != continued.entries[tensor].shape
        ]
    problems += _vocabulary_problems(base.folder, instruct.folder)
    raise_all(
        CheckpointError,
        problems,
        where=instruct.folder,
        next_step="Set export.instruct_model to the instruct model that was trained from exactly this base.",
    )
    return min(shape.num_base_ids for shape in shapes.values())


def _named(continued: HfFolder, base: HfFolder, instruct: HfFolder) -> list[tuple[str, HfFolder]]:
    return [("continued", continued), ("base", base), ("instruct", instruct)]


def _vocabulary_problems(base_folder: Path, instruct_folder: Path) -> list[str]:
    """Say where instruct gives an id another piece: an id that only instruct has belongs to a new piece of the continued model."""
    base, instruct = _pieces(base_folder), _pieces(instruct_folder)
    moved = [number for number, piece in instruct.items() if base.get(number) != piece]
    if not moved:
        return []
    first = min(moved)
    return [
        f"{len(moved)} ids have another piece in the instruct model than in the base, the first is {first}: "
        f"{instruct[first]!r} and {base.get(first)!r}"
    ]


def _pieces(folder: Path) -> dict[int, str]:
    path = folder / "tokenizer.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        vocab = data["model"]["vocab"]
        pieces = {number: piece for piece, number in vocab.items()} if isinstance(vocab, dict) else {i: v[0] for i, v in enumerate(vocab)}
        return pieces | {token["id"]: token["content"] for token in data.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError("A tokenizer.json cannot be read.", where=path, value=str(error)) from None


def copy_chat_template(source: Path, folder: Path) -> None:
    """Take over a chat template that lies inside the tokenizer's config, and the end mark that goes with it."""
    theirs, path = source / "tokenizer_config.json", folder / "tokenizer_config.json"
    if not theirs.is_file() or not path.is_file():
        return
    config, chat = read_json(path), read_json(theirs)
    write_json(path, {**config, **{key: chat[key] for key in ("chat_template", "eos_token") if key in chat}})
