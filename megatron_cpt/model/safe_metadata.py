"""Reads a distributed checkpoint's `.metadata` with only the classes that describe tensors: torch itself would execute any pickle."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import CheckpointError

_ALLOWED = {
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
}  # fmt: skip


class _DescriptionsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} describes no tensor")
        return super().find_class(module, name)


def check_metadata(folder: Path) -> None:
    """Refuse a checkpoint whose `.metadata` is damaged or would run code when torch reads it.

    Raises:
        CheckpointError: the file cannot be read, or names anything but descriptions of tensors.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            _DescriptionsOnly(file).load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            "The checkpoint's description is damaged or not one that this program wrote.",
            where=path,
            value=str(error),
            next_step="Use an older checkpoint of the run.",
        ) from None


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make every `torch.load` below refuse code, also those that megatron and torch call with another setting."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
