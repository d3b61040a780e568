"""Tensors of a Hugging Face folder: read lazily with bounds, written in shards that are whole or absent.

A folder comes from a stranger: headers are checked before anything is allocated, and nothing in it is executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_cpt.errors import CheckpointError
from megatron_cpt.record.store import sync_folder, write_json

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_INDEX_BYTES = 100_000_000
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DEFAULT_SHARD_BYTES = 2 * 1024**3
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Declared = tuple[torch.dtype, tuple[int, ...]]  # type and shape of a tensor that is written later


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies and what its header says."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


class HfFolder:
    """The tensors of a folder by name; each is read when it is asked for."""

    def __init__(self, folder: Path, entries: dict[str, TensorEntry]) -> None:
        self.folder = folder
        self.entries = entries

    @classmethod
    def open(cls, folder: Path) -> HfFolder:
        """Check every header of `model.safetensors`, or of the shards that the index names.

        Raises:
            CheckpointError: no weights, a missing or truncated shard, or an index that does not agree with its shards.
        """
        if (folder / SINGLE_NAME).is_file():
            return cls(folder, read_header(folder / SINGLE_NAME))
        index = folder / INDEX_NAME
        if not index.is_file():
            raise _no_weights(folder)
        return cls(folder, _read_sharded(folder, index))

    @property
    def dtype(self) -> torch.dtype:
        """The one floating type of all tensors.

        Raises:
            CheckpointError: the tensors have several.
        """
        found = {entry.dtype for entry in self.entries.values()}
        if len(found) != 1:
            raise CheckpointError("The weights have several types.", where=self.folder, value=sorted(map(str, found)), rule="one type")
        return next(iter(found))

    def read(self, name: str, *, dim: int = 0, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return a tensor, or its slice `start:stop` along `dim` (0 or 1), in the file's type.

        Raises:
            CheckpointError: the tensor is not in the folder, or its file cannot be read.
        """
        if name not in self.entries:
            raise CheckpointError("A tensor is missing.", where=self.folder, value=name)
        file = self.entries[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                part = opened.get_slice(name)
                tensor: torch.Tensor = part[:, start:stop] if dim == 1 else part[start:stop]
                return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError("A tensor cannot be read.", where=file, value=f"{name}: {error}") from None


def _no_weights(folder: Path) -> CheckpointError:
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return CheckpointError(
            "The folder holds pickled weights only, and a pickle can run any code when it is read.",
            where=folder,
            value=", ".join(pickled[:5]) + (f" and {len(pickled) - 5} more" if len(pickled) > 5 else ""),
            rule=f"{SINGLE_NAME}, or {INDEX_NAME} and its shards",
            next_step="Where you trust their origin, load them once with transformers (AutoModelForCausalLM.from_pretrained) and "
            "save_pretrained to a new folder, which writes safetensors.",
        )
    return CheckpointError(
        "The folder holds no weights that can be read.",
        where=folder,
        rule=f"{SINGLE_NAME}, or {INDEX_NAME} and its shards",
        next_step="A GGUF file becomes such a folder with `python tools/convert_checkpoint.py gguf-to-hf`.",
    )


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return the tensors that a safetensors file declares, after comparing the declaration with the file's size.

    Raises:
        CheckpointError: the header is not one, or the file is shorter or longer than it says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        if size < 8 or not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(file, f"a header of {header_bytes} bytes in a file of {size} bytes")
        text = opened.read(header_bytes)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _damaged(file, f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(file, "the header is not a JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(file, name, fields) for name, fields in header.items()}
    end = max((fields["data_offsets"][1] for fields in header.values()), default=0)
    if size != 8 + header_bytes + end:
        raise _damaged(file, f"{size} bytes, where the header declares {8 + header_bytes + end}")
    return entries


def _entry(file: Path, name: str, fields: Any) -> TensorEntry:
    try:
        dtype, shape, (start, stop) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        whole = all(type(size) is int and size >= 0 for size in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise _damaged(file, f"{name}: {fields}")
    if dtype not in DTYPES:
        raise CheckpointError("A tensor has a type that is not read.", where=file, value=f"{name}: {dtype}", rule=", ".join(DTYPES))
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(file, f"{name}: {stop - start} bytes for shape {list(shape)} of {dtype}")
    return TensorEntry(file, DTYPES[dtype], shape)


def _damaged(file: Path, value: str) -> CheckpointError:
    return CheckpointError(
        "A weights file is damaged or not whole.",
        where=file,
        value=value,
        rule="the size follows from the header",
        next_step="Fetch the file again.",
    )


def _read_sharded(folder: Path, index: Path) -> dict[str, TensorEntry]:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError("The index of the weights is too large.", where=index, rule=f"at most {MAX_INDEX_BYTES} bytes")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        plain = all(isinstance(name, str) and isinstance(shard, str) for name, shard in weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        plain = False
    if not plain:
        raise CheckpointError("The index of the weights is not readable.", where=index, rule='{"weight_map": {tensor: file}}')
    entries: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        file = folder / shard
        if Path(shard).name != shard or not file.is_file():
            raise CheckpointError(
                "A shard that the index names is missing.", where=index, value=shard, next_step=f"Fetch {shard} into {folder}."
            )
        found = read_header(file)
        wanted = {name for name, holder in weight_map.items() if holder == shard}
        if set(found) != wanted:
            differing = sorted(set(found) ^ wanted)
            raise CheckpointError(
                "The index and a shard do not agree.",
                where=file,
                value=", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else ""),
                rule="the shard holds exactly the tensors that the index places in it",
            )
        entries |= found
    return entries


def write_tensors(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    declared: Mapping[str, Declared] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[str]:
    """Write tensors as safetensors and return the names of the files, in order; each tensor is written when it comes, and let go.

    One shard is named `model.safetensors`; several get numbers and an index. Files appear under their final names only
    when all are written, the index last.

    Args:
        declared: type and shape of every tensor, in the order in which `tensors` yields them: a file's header stands before its
            data. Without it all tensors are held in memory first, which is right for small models only.

    Raises:
        CheckpointError: the system refused a write; nothing is left in the folder.
    """
    if declared is None:
        tensors = list(tensors)
        declared = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}
        assert len(declared) == len(tensors), "a name twice"
    assert declared, "no tensor to write"
    folder.mkdir(parents=True, exist_ok=True)
    groups = _shards(declared, max_shard_bytes)
    names = [SINGLE_NAME] if len(groups) == 1 else [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
    aside = [folder / f".{name}.{os.getpid()}.tmp" for name in names]
    source = iter(tensors)
    try:
        for path, group in zip(aside, groups, strict=True):
            _write_shard(path, group, source)
        surplus = next(source, None)
        assert surplus is None, f"{surplus and surplus[0]} was not declared"
        for path, name in zip(aside, names, strict=True):
            os.replace(path, folder / name)
        if len(names) > 1:
            weight_map = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
            total_bytes = sum(_num_bytes(entry) for entry in declared.values())
            write_json(folder / INDEX_NAME, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
            names.append(INDEX_NAME)
        sync_folder(folder)
    except OSError as error:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        raise write_refused(folder, error) from error
    finally:
        for path in aside:
            path.unlink(missing_ok=True)
    return names


def write_refused(folder: Path, error: OSError) -> CheckpointError:
    """Return what to say when the system refuses to write weights: a full disk, a quota, a limit on file sizes."""
    return CheckpointError(
        "The weights could not be written.",
        where=folder,
        value=f"{error.strerror or error}",
        next_step="Check the disk's space, the quota and `ulimit -f`, then run again. Nothing half-written was left.",
    )


def _num_bytes(entry: Declared) -> int:
    dtype, shape = entry
    return math.prod(shape) * dtype.itemsize


def _shards(declared: Mapping[str, Declared], max_shard_bytes: int) -> list[dict[str, Declared]]:
    """Cut the tensors into files in their order; a file passes the limit only where a single tensor does."""
    shards: list[dict[str, Declared]] = [{}]
    num_bytes = 0
    for name, entry in declared.items():
        if shards[-1] and num_bytes + _num_bytes(entry) > max_shard_bytes:
            shards.append({})
            num_bytes = 0
        shards[-1][name] = entry
        num_bytes += _num_bytes(entry)
    return shards


def _write_shard(path: Path, group: Mapping[str, Declared], source: Iterator[tuple[str, torch.Tensor]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what transformers looks for
    start = 0
    for name, (dtype, shape) in group.items():
        stop = start + _num_bytes((dtype, shape))
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for wanted, entry in group.items():
            name, tensor = next(source, ("nothing", torch.empty(0)))
            assert name == wanted, f"{name} came, {wanted} was declared"
            assert (tensor.dtype, tuple(tensor.shape)) == entry, f"{name}: {tensor.dtype} {tuple(tensor.shape)}, declared {entry}"
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor
        file.flush()
        os.fsync(file.fileno())
