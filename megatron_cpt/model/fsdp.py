"""Megatron-FSDP (ZeRO-3): its shards, and their whole tensors for a checkpoint and back.

Rajbhandari et al. 2020 (arXiv 1910.02054): weights, gradients and optimizer state are each held by one data-parallel rank alone. Of every
parameter a rank has some whole rows (dimension 0), which megatron-core keeps as the local part of a DTensor; the module's own parameter
is empty but while it is used.

A checkpoint of such a run is megatron-core's `fully_reshardable` one, under the names of the distributed optimizer, so that every other
layout, the rollback and the export read it. Its whole tensors are gathered one after the other, each to the one rank that writes it, and
kept in host memory until they are written. A load reads whole tensors into host memory, and each rank takes its rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.optimizer import param_group_identifier_keys
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")
_MAIN = "param"  # the distributed optimizer's name for fp32 weights
_SHARDING = "fully_reshardable"


class Called(torch.nn.Module):
    """Calls the model inside, as Float16Module does for bf16.

    Megatron-FSDP runs its root module's `forward` past its hooks, and so never learns when a backward pass ends, unless another module
    with the same parameters is called within. Without it gradients of several micro-batches were summed many times over, without a word.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.module(*inputs, **kwargs)


def is_fully_sharded(chunks: Sequence[Any]) -> bool:
    """Say whether these chunks hold their weights in shards."""
    config = getattr(chunks[0], "ddp_config", None)
    return bool(getattr(config, "use_megatron_fsdp", False))


def params_by_layer(chunk: torch.nn.Module) -> int:
    """Return how many parameters the largest transformer layer has on this rank."""
    sizes: list[int] = [sum(p.numel() for p in part.parameters()) for part in chunk.modules() if isinstance(part, TransformerLayer)]
    return max(sizes)


def shards_of(chunk: Any) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Yield each parameter's name, its DTensor in the optimizer, and this rank's rows of it (fp32 where the optimizer's are)."""
    for name, parameter in chunk.param_and_grad_buffer.optimizer_named_parameters:
        yield name, parameter, parameter._local_tensor


@contextlib.contextmanager
def whole_tensors(chunks: Sequence[Any], *, gathered: bool) -> Iterator[WholeTensors | None]:
    """Run a block with whole parameters in the place of sharded ones, as `WholeTensors.in_place`; None when nothing is sharded."""
    if not is_fully_sharded(chunks):
        yield None
        return
    with WholeTensors(chunks).in_place(gathered=gathered) as whole:
        yield whole


def first_row(parameter: Any) -> int:
    """Return which row of the parameter is this rank's first; 0 when it has none."""
    per_row = max(1, parameter.orig_param.shape[1:].numel())
    start: int = parameter.megatron_fsdp_slice.start
    assert start % per_row == 0, "megatron-core splits parameters between rows"
    return int(start // per_row)


class WholeTensors:
    """The parameters of sharded chunks as whole tensors in host memory, in the place of the modules' own."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._chunks = chunks
        self._group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self._parts = [(chunk, name, parameter) for chunk in chunks for name, parameter, _ in shards_of(chunk)]
        self._whole: list[torch.nn.Parameter] = []

    @contextlib.contextmanager
    def in_place(self, *, gathered: bool) -> Iterator[WholeTensors]:
        """Put whole parameters into the modules for the time of a block: with their values, or empty ones to load into.

        With values, a parameter is real on the rank that writes it and on the meta device on the others.
        """
        for chunk in self._chunks:
            chunk.module._replace_param_with_distributed_if_needed()  # megatron does it for a state dict, in the middle of this block
        for number, (_, _, parameter) in enumerate(self._parts):
            original = parameter.orig_param
            if gathered:
                tensor = self._gather(number, parameter._local_tensor)
                tensor = torch.empty(original.shape, dtype=original.dtype, device="meta") if tensor is None else tensor.to(original.dtype)
            else:
                tensor = torch.empty(original.shape, dtype=original.dtype, device="cpu")
            self._whole.append(torch.nn.Parameter(tensor, requires_grad=original.requires_grad))
        self._put(self._whole)
        try:
            yield self
        finally:
            self._put([parameter for _, _, parameter in self._parts])

    def optimizer_state(self, model_state: dict[str, Any], optimizer: Any, *, is_loading: bool) -> dict[str, Any]:
        """Return the state of the optimizer as the distributed optimizer would, by megatron-core's sharded tensors of whole parameters."""
        metadata = {id(part.data): part for part in nested_values(model_state) if isinstance(part, ShardedTensor | ShardedTensorFactory)}
        by_parameter: dict[int, dict[str, Any]] = {}
        for number, ((_, _, parameter), whole) in enumerate(zip(self._parts, self._whole, strict=True)):
            like = metadata[id(whole)]
            tensors = {}
            for name in (_MAIN, *MOMENTS):
                if is_loading:
                    tensor: torch.Tensor | None = torch.empty(whole.shape, dtype=torch.float32, device="cpu")
                else:
                    tensor = self._gather(number, self._local(optimizer, parameter, name))
                if tensor is not None:
                    tensors[name] = _sharded(like, tensor, key=f"optimizer.state.{name}.{like.key}", is_writer=not is_loading)
            if tensors:
                by_parameter[number] = tensors
        return {**optimizer.state_dict(), "param_state": by_parameter, "param_state_sharding_type": _SHARDING}

    def only_own(self, state: dict[str, Any]) -> dict[str, Any]:
        """Drop the model's parameters that another rank writes, and mark this rank's as the ones to write."""
        mine = {id(whole): not whole.is_meta for whole in self._whole}
        kept = {}
        for key, part in state.items():
            is_parameter = isinstance(part, ShardedTensor | ShardedTensorFactory) and id(part.data) in mine
            if not is_parameter:
                kept[key] = part
            elif mine[id(part.data)]:
                kept[key] = _sharded(part, part.data.detach(), key=part.key, is_writer=True)
        return kept

    @torch.no_grad()
    def take_weights(self) -> None:
        """Copy this rank's rows out of the whole parameters, into the weights of the optimizer and of the model."""
        for (_, _, parameter), whole in zip(self._parts, self._whole, strict=True):
            _copy_rows(parameter, parameter._local_tensor, whole)
        self._install()

    @torch.no_grad()
    def take_optimizer(self, optimizer: Any, loaded: dict[str, Any]) -> None:
        """Copy this rank's rows out of a loaded state of `optimizer_state`'s form.

        Raises:
            KeyError: a parameter group of this run is not among the loaded ones.
        """
        groups = {_identity(group): group for group in loaded["optimizer"]["param_groups"]}
        for group in optimizer.optimizer.param_groups:
            group.update({key: value for key, value in groups[_identity(group)].items() if key != "params"})
        for number, (_, _, parameter) in enumerate(self._parts):
            tensors = loaded["param_state"][number]
            if parameter._local_tensor.numel() == 0:
                continue
            state = optimizer.optimizer.state[parameter]
            _copy_rows(parameter, parameter._local_tensor, tensors[_MAIN])
            for name in MOMENTS:
                if name not in state:
                    state[name] = torch.zeros_like(parameter)
                _copy_rows(parameter, state[name]._local_tensor, tensors[name])
        self._install()

    def _install(self) -> None:
        for chunk in self._chunks:
            chunk.module.install_optimized_model_weights()
            chunk.module.synchronize_param_gather()  # what was gathered is of the weights before

    def _put(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for (chunk, name, _), parameter in zip(self._parts, parameters, strict=True):
            path, _, last = name.rpartition(".")
            setattr(chunk.module.module.get_submodule(path), last, parameter)

    def _local(self, optimizer: Any, parameter: Any, name: str) -> torch.Tensor:
        mine: torch.Tensor = parameter._local_tensor
        if name == _MAIN:
            return mine
        state = optimizer.optimizer.state.get(parameter, {})
        moments: torch.Tensor = state[name]._local_tensor if name in state else torch.zeros_like(mine)
        return moments

    def _gather(self, number: int, local: torch.Tensor) -> torch.Tensor | None:
        """Return the whole of a parameter's tensor, in host memory, on the rank that writes it; None on the others. Collective."""
        original = self._parts[number][2].orig_param
        size = torch.tensor([local.numel()], device=local.device)
        sizes = [torch.empty_like(size) for _ in range(self._group.size())]
        distributed.all_gather(sizes, size, group=self._group)
        lengths = [int(each) for each in sizes]
        padded = local.new_zeros(max(lengths))  # ranks have unequal numbers of rows, and a gather wants equal ones
        padded[: local.numel()].copy_(local.reshape(-1))
        owner = number % self._group.size()
        is_owner = self._group.rank() == owner
        received = [torch.empty_like(padded) for _ in lengths] if is_owner else None
        distributed.gather(padded, received, dst=distributed.get_global_rank(self._group, owner), group=self._group)
        if received is None:
            return None
        flat = torch.cat([piece[:length] for piece, length in zip(received, lengths, strict=True)])
        return flat.reshape(original.shape).cpu()


def _sharded(like: Any, tensor: torch.Tensor, *, key: str, is_writer: bool) -> Any:
    """Return a sharded tensor of a parameter's form; among the data-parallel ranks this one is its writer, or as the form says."""
    changes: dict[str, Any] = {"key": key, "data": tensor}
    if is_writer:
        changes["replica_id"] = (*like.replica_id[:-1], 0)
    if isinstance(like, ShardedTensor):
        changes["dtype"] = tensor.dtype
    return dataclasses.replace(like, **changes)


def _copy_rows(parameter: Any, target: torch.Tensor, whole: torch.Tensor) -> None:
    start = first_row(parameter)
    target.copy_(whole.detach()[start : start + target.shape[0]])


def _identity(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(key) for key in param_group_identifier_keys)
