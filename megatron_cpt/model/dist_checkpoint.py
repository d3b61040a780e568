"""Saves and loads weights and optimizer state with megatron's distributed checkpoints, for any layout of ranks.

All functions are collective. A caller writes into a folder aside and renames it, and has a `__main__` guard in its entry
script: the writer starts processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import pickle
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import megatron.core
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_cpt.errors import CheckpointError, CptError, FollowsAnotherRank
from megatron_cpt.model.build import CptModel, inner_model
from megatron_cpt.model.expert_state import state_for
from megatron_cpt.model.fsdp import WholeTensors, whole_tensors
from megatron_cpt.model.optimizer_kind import OPTIMIZER_PREFIX, change_of_kind
from megatron_cpt.model.safe_metadata import check_metadata, weights_only
from megatron_cpt.model.tied import check_tied_copies
from megatron_cpt.record.store import make_folder
from megatron_cpt.record.vocab_layout import VocabLayout

EMBEDDING_KEY = "embedding.word_embeddings.weight"  # megatron's own name, in checkpoints of other trainers too
_MODEL, _OPTIMIZER, _COMMON = "model", "optimizer", "cpt"
# What torch and megatron raise over files that are damaged or missing; torch's CheckpointException is a BaseException.
_UNREADABLE = (
    CheckpointException, CheckpointingException, pickle.UnpicklingError, EOFError, OSError, RuntimeError, KeyError, ValueError,
)  # fmt: skip
_ROWS_AT_ONCE = 4096  # bounds the temporary of a check of rows
_WRITER_NICENESS = 10  # on a CPU the writer shares the cores with training


def save_model(folder: Path, chunks: Sequence[torch.nn.Module], *, optimizer: Any = None, common: dict[str, Any]) -> None:
    """Write this rank's part of a checkpoint into an empty folder.

    Args:
        optimizer: megatron's optimizer, or None to save weights only.
        common: plain data, equal on all ranks.

    Raises:
        CheckpointError: a part could not be written; on the ranks that do not know why, FollowsAnotherRank.
    """
    with _writing(folder):
        _request(folder, chunks, optimizer=optimizer, common=common, niceness=0).execute_sync()


def save_streamed(folder: Path, model: CptModel, *, read: Callable[[str], torch.Tensor], common: dict[str, Any]) -> None:
    """Write a checkpoint of a model on the `meta` device, whose parameters have shapes and no data; on one rank.

    megatron-core plans it as it plans every save. Each tensor is read when its turn comes and let go when it is written: two
    threads write, so that two are in memory at a time.

    Args:
        read: gives the whole parameter of a name, in the parameter's type.

    Raises:
        CheckpointError: the system refused a write, or what `read` raised; nothing is left of the folder.
    """
    names = {_storage_of(param): name for name, param in model.named_parameters()}
    failures: list[CptError] = []

    def read_or_note(name: str) -> torch.Tensor:
        try:
            return read(name)
        except CptError as error:  # megatron would report its type only
            failures.append(error)
            raise

    try:
        with _writing(folder):
            request = _request(folder, [model], optimizer=None, common=common, niceness=0)
            buckets = request.async_fn_args[1]
            lazy = [(path, key, (data, _in_turn(tensors, names, read_or_note))) for path, key, (data, tensors) in buckets]
            request._replace(preload_fn=lambda: lazy).execute_sync()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if failures and isinstance(error, CheckpointError):
            raise failures[0] from None
        raise


def _storage_of(tensor: torch.Tensor) -> int:
    """Return what a parameter has in common with every view of it, on the `meta` device too, where no storage has an address."""
    number: int = tensor.untyped_storage()._cdata
    return number


def _in_turn(
    tensors: Sequence[tuple[Any, torch.Tensor]], names: Mapping[int, str], read: Callable[[str], torch.Tensor]
) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield each planned write with its data. Megatron writes some parameters in parts; parts of one stand together and are read once."""
    held_name, held = "", torch.empty(0)
    for item, part in sorted(tensors, key=lambda pair: (names[_storage_of(pair[1])], pair[1].storage_offset())):
        name = names[_storage_of(part)]
        if name != held_name:
            held_name, held = name, read(name).contiguous()
        assert held.dtype == part.dtype, f"{name}: {held.dtype} for {part.dtype}"
        own = held.as_strided(part.shape, part.stride(), held.storage_offset() + part.storage_offset())
        # torch saves the whole storage behind a view
        yield item, own if own.untyped_storage().nbytes() == own.nbytes else own.clone()


class StreamedLoad:
    """The parameters of a checkpoint, read by name for a model on the `meta` device; on one rank."""

    def __init__(self, folder: Path, model: CptModel) -> None:
        """Compare the checkpoint's description with the model.

        Raises:
            CheckpointError: no checkpoint, a damaged one, or other tensors than the model's.
        """
        self._folder = folder
        self._one_at_a_time = threading.Lock()  # the reader is not made for threads
        _require_checkpoint(folder)
        self._state = _sharded_state([model], None, whole=None, is_loading=True)[_MODEL]
        with _reading(folder), weights_only():
            _check_against(folder, {_MODEL: self._state})
            self._reader = FileSystemReader(folder)
            metadata = self._reader.read_metadata()
            self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        names = {name for name, _ in model.named_parameters()}
        wanted = {part.key for name, part in self._state.items() if name in names}
        self._saved = {key: entry for key, entry in metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)}
        found = {key for key in self._saved if not key.startswith(OPTIMIZER_PREFIX)}
        if wanted != found:
            raise _other_tensors(folder, found - wanted, wanted - found)

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the parameters of these names, whole and in the model's type.

        Megatron's own loader cannot be asked for some layers of a tensor that holds all of them, and it reads the common part too, in
        which another trainer may have put classes. So megatron says which part of which tensor a parameter is, and torch reads it.

        Raises:
            CheckpointError: a file of the checkpoint is damaged.
        """
        parameters: dict[str, torch.Tensor] = {}
        planner = _IntoParts()
        items: list[ReadItem] = []
        for name in names:
            part = self._state[name]
            parameters[name] = torch.empty(part.data.shape, dtype=part.data.dtype)
            shards, _, _ = load_preprocess({name: dataclasses.replace(part, data=parameters[name])})
            for shard in nested_values(shards):
                assert _storage_of(shard.data) == _storage_of(parameters[name]), f"{name} is not saved in views of itself"
                sizes = torch.Size((*[1] * shard.prepend_axis_num, *shard.local_shape))
                chunk = ChunkStorageMetadata(torch.Size(shard.global_offset), sizes)
                planner.targets[shard.key, chunk.offsets] = shard.data.view(sizes)
                found = create_read_items_for_chunk_list(shard.key, self._saved[shard.key], [chunk])
                if sum(item.lengths.numel() for item in found) != sizes.numel():
                    raise CheckpointError("The checkpoint lacks a part of a tensor.", where=self._folder, value=shard.key)
                items += found
        with self._one_at_a_time, _reading(self._folder), weights_only():
            plan = self._reader.prepare_local_plan(LoadPlan(items))
            self._reader.read_data(plan, planner).wait()
        return parameters


class _IntoParts(DefaultLoadPlanner):
    """Puts what is read into the tensors that wait for it, by the key and the place of the part."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: dict[tuple[str, torch.Size], torch.Tensor] = {}

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None
        return self.targets[index.fqn, index.offset]


def saved_shape(folder: Path, key: str) -> tuple[int, ...] | None:
    """Return the shape of one tensor of a checkpoint, None when it holds no such tensor.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    _require_checkpoint(folder)
    with _reading(folder), weights_only():
        found = dist_checkpointing.load_tensors_metadata(str(folder)).get(key)
    return None if found is None else tuple(found.global_shape)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(
            "The checkpoint cannot be read.", where=folder, value=str(error)[:2000], next_step="Use an older checkpoint of the run."
        ) from error


def _other_tensors(folder: Path, missing: Any, unexpected: Any) -> CheckpointError:
    return CheckpointError(
        "The checkpoint holds other tensors than the model.",
        where=folder,
        value=f"only in the checkpoint: {_first(missing)}; only in the model: {_first(unexpected)}",
        next_step="Check that the checkpoint was written by this plan.",
    )


class PendingSave:
    """A checkpoint that one forked process on each rank writes, from the tensors as they were when it was begun.

    megatron-core plans the checkpoint and counts its writers; the copy is the kernel's own (copy on write) for tensors in host
    memory, and megatron's transfer to the host for those on a device. Every method but `abort` is collective.
    """

    def __init__(self, folder: Path, chunks: Sequence[torch.nn.Module], *, optimizer: Any = None, common: dict[str, Any]) -> None:
        """Begin to write into an empty folder; the arguments and errors are `save_model`'s."""
        self._folder = folder
        self._calls = AsyncCallsQueue()
        with _writing(folder):
            request = _request(folder, chunks, optimizer=optimizer, common=common, niceness=_WRITER_NICENESS)
            self._calls.schedule_async_request(request)

    def finished(self, *, wait: bool = False) -> bool:
        """Return, the same on every rank, whether all have written their parts; the first `True` has completed the folder.

        Raises:
            CheckpointError, FollowsAnotherRank: as `save_model`.
        """
        with _writing(self._folder):
            self._calls.maybe_finalize_async_calls(blocking=wait)
        return not self._calls.async_calls

    def abort(self) -> None:
        """End this rank's writer at once, without a word to the other ranks, and forget what it reported."""
        while self._calls.async_calls:
            self._calls.async_calls.popleft().async_caller.close(abort=True)
        _forget_reports()


def _request(folder: Path, chunks: Sequence[torch.nn.Module], *, optimizer: Any, common: dict[str, Any], niceness: int) -> AsyncRequest:
    """Return megatron's plan of a save, its tensors taken and nothing written but the small common part.

    Raises:
        CheckpointError: two copies of tied rows differ.
    """
    check_tied_copies(chunks)
    if distributed.get_rank() == 0:
        make_folder(folder)
    distributed.barrier()
    make_folder(folder)  # it is there, but other machines of a network file system may not see it yet
    with whole_tensors(chunks, gathered=True) as whole:
        state = {**_sharded_state(chunks, optimizer, whole=whole, is_loading=False), _COMMON: common}
    # 0.19 prefers a writer from another package, and warns that it is not there
    own_writer = {"async_strategy": "mcore"} if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters else {}
    request = dist_checkpointing.save(state, str(folder), async_sharded_save=True, **own_writer)
    if request.async_fn is None:  # nothing to write on this rank
        return request
    return request._replace(async_fn=functools.partial(_write_buckets, request.async_fn.args[0], niceness))


def _write_buckets(transforms: list[Any], niceness: int, rank: int, buckets: list[Any], reports: Any) -> None:
    """Write this rank's files, one thread each, and report what is in them, or the first error, for megatron to gather.

    It stands in for megatron's own function, which forks a process a file in 0.16 (killed alone, it leaves the parent waiting for
    ever) and replaces an error by its type in 0.19.
    """
    os.nice(niceness)

    def write(bucket: Any) -> Any:
        report: queue.Queue[Any] = queue.Queue()
        count: queue.Queue[int] = queue.Queue()
        count.put(0)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms, local_proc_idx=0, write_bucket=bucket, results_queue=report, count_queue=count, use_fsync=True
        )
        return report.get_nowait()[1]

    with ThreadPoolExecutor(len(buckets)) as pool:
        written = list(pool.map(write, buckets))
    error = next((result for result in written if isinstance(result, Exception)), None)
    reports.put(_system_error(error) if error is not None else dict(enumerate(written)))


def _system_error(error: BaseException) -> BaseException:
    """Return what the system said, when it is behind an error: torch's writer reports a full disk as an unexpected position."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__cause__ or behind.__context__
    return error if behind is None else behind


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointException, CheckpointingException, OSError) as error:
        _forget_reports()
        failures = getattr(error, "failures", None)
        if failures is not None and not failures:  # megatron tells the reasons to the first rank alone
            raise FollowsAnotherRank("Another rank could not write its part of the checkpoint.", where=folder) from error
        reasons = [f"rank {rank}: {reason}" for rank, (reason, _) in failures.items()] if failures else [str(error)]
        raise CheckpointError(
            "The checkpoint could not be written.",
            where=folder,
            value="; ".join(reasons)[:2000],
            next_step="Check the disk's space and quota. Earlier checkpoints are untouched.",
        ) from error


def _forget_reports() -> None:
    """Drop what the writers of a failed save reported: megatron keeps one queue a process, and would take it for the next save's."""
    filesystem_async._results_queue = None


def load_model(folder: Path, chunks: Sequence[torch.nn.Module], *, optimizer: Any = None) -> dict[str, Any]:
    """Fill this rank's chunks, and the optimizer when one is given, and return the `common` that was saved.

    Weights may have been saved on another layout and in another floating type. With weights only, an optimizer that
    was built before must be told to copy them: `optimizer.reload_model_params()`.

    Raises:
        CheckpointError: no checkpoint, a damaged one, other tensors or another vocabulary size than the model's, or
            embedding rows of real ids that are zero or not finite.
    """
    _require_checkpoint(folder)
    with whole_tensors(chunks, gathered=False) as whole:
        return _load(folder, chunks, optimizer=optimizer, whole=whole)


def _load(folder: Path, chunks: Sequence[torch.nn.Module], *, optimizer: Any, whole: WholeTensors | None) -> dict[str, Any]:
    state = _sharded_state(chunks, optimizer, whole=whole, is_loading=True)
    wanted_keys = _group_keys(state.get(_OPTIMIZER, {}))
    with _reading(folder), weights_only():
        saved = _check_against(folder, state)
        change = change_of_kind(
            state.get(_OPTIMIZER),
            saved,
            optimizer,
            is_fully_sharded=whole is not None,
            num_saved_optimizers=lambda: _num_saved_optimizers(folder),
            where=folder,
        )
        loaded, missing, unexpected = dist_checkpointing.load(state, str(folder), strict=StrictHandling.RETURN_ALL)
    if change is not None:
        missing = {key for key in missing if not change.expects_left_over(key)}
    if optimizer is None:
        missing = {key for key in missing if not key.startswith(OPTIMIZER_PREFIX)}
    if missing or unexpected:
        raise _other_tensors(folder, missing, unexpected)
    if change is not None:
        change.mend(loaded[_OPTIMIZER], where=folder)
    if optimizer is not None:
        loaded[_OPTIMIZER] = state_for(optimizer, loaded[_OPTIMIZER], where=folder)
    lacking = wanted_keys - _group_keys(loaded.get(_OPTIMIZER, {}))
    if lacking:
        raise CheckpointError(
            "The optimizer's state in the checkpoint lacks settings that this version needs.",
            where=folder,
            value=_first(lacking),
            rule=f"those of megatron-core {megatron.core.__version__}; the checkpoint's record names the version that wrote it",
            next_step="Resume with that version.",
        )
    for key, chunk in zip(_chunk_keys(chunks), chunks, strict=True):
        inner_model(chunk).load_state_dict(loaded[key], strict=True)
        check_rows(inner_model(chunk), where=folder)
    if whole is not None:
        whole.take_weights()
    if optimizer is not None:
        try:
            if whole is not None:
                whole.take_optimizer(optimizer, loaded[_OPTIMIZER])
            else:
                optimizer.load_state_dict(loaded[_OPTIMIZER])
        except KeyError as error:  # megatron-core 0.19 pairs parameter groups by their settings, and looks for one that is not there
            raise CheckpointError(
                "The optimizer's parameter groups in the checkpoint are others than this run's.",
                where=folder,
                value=str(error),
                rule="groups of equal rates' bounds and decay",
                next_step="Resume under the plan that wrote it, or start from its weights under a new run_name.",
            ) from None
    common: dict[str, Any] = loaded[_COMMON]
    return common


def _num_saved_optimizers(folder: Path) -> int:
    """Return how many chained optimizers wrote a checkpoint: megatron numbers their states, and leaves a single one's unnumbered."""
    state = dist_checkpointing.load_common_state_dict(str(folder)).get(_OPTIMIZER, {})
    return max(sum(isinstance(key, int) for key in state), 1)


def check_rows(model: CptModel, *, where: object) -> None:
    """Refuse a model whose embedding or output rows of real ids are zero or not finite: the mark of rows that were not loaded.

    A zero row of a base id is allowed: some published models have them for ids that were never trained.

    Raises:
        CheckpointError: naming the first such id on this rank.
    """
    weights = [model.embedding.word_embeddings.weight] if model.pre_process else []
    if model.post_process and model.output_layer.weight is not None:
        weights.append(model.output_layer.weight)
    for weight in weights:
        check_row_values(
            weight.detach(), model.vocab, first_id=parallel_state.get_tensor_model_parallel_rank() * weight.shape[0], where=where
        )


def check_row_values(weight_VH: torch.Tensor, vocab: VocabLayout, *, first_id: int = 0, where: object) -> None:
    """Refuse rows as `check_rows` does; the tensor holds those from `first_id` on."""
    rows = weight_VH[: max(vocab.num_ids - first_id, 0)]
    ids = torch.arange(first_id, first_id + rows.shape[0], device=rows.device)
    largest = torch.cat([some.abs().amax(dim=1) for some in torch.split(rows, _ROWS_AT_ONCE)])
    bad = ~largest.isfinite() | ((largest == 0) & (ids >= vocab.num_base_ids))
    if bad.any():
        raise CheckpointError(
            "Embedding rows of real ids are zero or not finite.",
            where=where,
            value=f"{int(bad.sum())} rows, the first for id {int(ids[bad][0])}",
            rule="every id has a row",
            next_step="Run the init stage again, or use an older checkpoint.",
        )


def _sharded_state(chunks: Sequence[torch.nn.Module], optimizer: Any, *, whole: WholeTensors | None, is_loading: bool) -> dict[str, Any]:
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "chained_optim_avoid_prefix": True,  # a moment is named by its parameter, whichever optimizer holds it
    }
    state: dict[str, Any] = {
        key: inner_model(chunk).sharded_state_dict(metadata=metadata) for key, chunk in zip(_chunk_keys(chunks), chunks, strict=True)
    }
    if whole is not None:
        if optimizer is not None:
            state[_OPTIMIZER] = whole.optimizer_state(state, optimizer, is_loading=is_loading)
        return state if is_loading else {key: part if key == _OPTIMIZER else whole.only_own(part) for key, part in state.items()}
    if optimizer is not None:
        with _places_without_padding(optimizer):
            state[_OPTIMIZER] = optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=metadata)
    return state


@contextlib.contextmanager
def _places_without_padding(optimizer: Any) -> Iterator[None]:
    """Let megatron cut each parameter's state out of where it lies.

    The distributed optimizer gathers its buffers without the padding at the ends of buckets, and then cuts at places that count it
    (0.16 and 0.19, `sharded_param_state_fully_reshardable`). With several buckets, as `overlap_grad_reduce` makes them, every
    parameter behind a padded one was saved, and loaded again, with numbers of its neighbours and without a word.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    buffers = {id(buffer): buffer for part in parts for buffer in getattr(part, "buffers", [])}
    padded = {key: buffer.param_index_map for key, buffer in buffers.items()}
    for buffer in buffers.values():
        paddings, end = [], 0
        for bucket in buffer.buckets:
            paddings.append(bucket.offset - end)
            end += bucket.numel_unpadded
        buffer.param_index_map = {
            parameter: (start - paddings[bucket_id], stop - paddings[bucket_id], bucket_id)
            for parameter, (start, stop, bucket_id) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for key, buffer in buffers.items():
            buffer.param_index_map = padded[key]


def _group_keys(state: Any) -> set[str]:
    """Return the keys that all parameter groups in an optimizer's state have, however deep they lie."""
    if not isinstance(state, dict):
        return set()
    parts = [set(group) for group in state.get("param_groups", [])] or [_group_keys(part) for part in state.values()]
    return set.intersection(*[part for part in parts if part] or [set()])


def _chunk_keys(chunks: Sequence[torch.nn.Module]) -> list[str]:
    return [_MODEL] if len(chunks) == 1 else [f"{_MODEL}{number}" for number in range(len(chunks))]


def _require_checkpoint(folder: Path) -> None:
    if not (folder / "metadata.json").is_file() or not (folder / ".metadata").is_file():
        raise CheckpointError(
            "There is no whole distributed checkpoint in the folder.",
            where=folder,
            rule="metadata.json and .metadata, which are written last",
            next_step="Name a checkpoint folder of a run (checkpoints/step_...), or the init stage's.",
        )
    check_metadata(folder)


def _check_against(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Refuse another shape, for megatron would cut embedding rows or fill missing ones with zeros; return the saved tensors by key."""
    saved: dict[str, Any] = dist_checkpointing.load_tensors_metadata(str(folder))
    wanted = [part for key, value in state.items() if key.startswith(_MODEL) for part in value.values() if isinstance(part, ShardedTensor)]
    for part in wanted:
        found = saved.get(part.key)
        if found is not None and tuple(found.global_shape) != tuple(part.global_shape):
            raise CheckpointError(
                "A tensor of the checkpoint has another shape than the model's.",
                where=folder,
                value=f"{part.key}: {list(found.global_shape)}",
                rule=f"{list(part.global_shape)}",
                next_step="Check that the checkpoint was written by this plan: its vocabulary and its model.",
            )
    return saved


def _first(keys: Any) -> str:
    listed = sorted(keys)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") if listed else "nothing"
