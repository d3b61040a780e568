"""Redirects the CUDA calls that megatron-core makes without asking to the CPU, in a process that chose the CPU backend.

`torch.cuda.is_available()` and `torch.cuda.device_count()` keep telling the truth. `Tensor.type()` answers with a CUDA
name only to megatron's optimizer, which compares it with fixed strings.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# The optimizer and gradient clipping refuse parameters whose type() is not one of these.
_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.float16: "torch.cuda.HalfTensor",
}
_ASKS_FOR_CUDA_NAME = "megatron.core.optimizer"
_CURRENT_DEVICE = "cuda:cpu"  # what becomes of f"cuda:{torch.cuda.current_device()}"


class NoStream:
    """Stands in for a CUDA stream: on a CPU every call has finished when it returns."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> NoStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    wait_stream = wait_event = record = wait = synchronize = _nothing

    def record_event(self, event: Any = None) -> Any:
        return NoEvent() if event is None else event

    def query(self) -> bool:
        return True


class CudaMeansCpu(TorchFunctionMode):
    """Turns `device="cuda"` (also `cuda:0` and torch.device) into `cpu` in every torch call, and pinned memory into plain memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and _names_cuda(device):
            kwargs = {**kwargs, "device": "cpu"}
        if kwargs.get("pin_memory"):  # megatron pins the positions of a context rank, for a copy to a device that is not there
            kwargs = {**kwargs, "pin_memory": False}
        if func is torch.device and args[0] == _CURRENT_DEVICE:
            args = ("cpu",)
        return func(*args, **kwargs)


def _names_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


class NoEvent(NoStream):
    """Stands in for a CUDA event."""


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


@contextlib.contextmanager
def _no_range(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _current_stream(*_: Any, **__: Any) -> NoStream:
    return NoStream()


def _use_stream(stream: Any = None) -> Any:
    return stream if isinstance(stream, NoStream) else NoStream()


def _stay(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


def _cpu(*_: Any, **__: Any) -> str:
    return "cpu"


def _replacements() -> list[tuple[Any, str, Any]]:
    """Return (module, name, what takes its place) for each entry point of torch.cuda that megatron calls unguarded."""
    cuda, random, nvtx = torch.cuda, torch.cuda.random, torch.cuda.nvtx
    return [
        (cuda, "current_device", _cpu),
        *((cuda, name, _do_nothing) for name in ("set_device", "synchronize", "empty_cache", "ipc_collect", "reset_peak_memory_stats")),
        (cuda, "Stream", NoStream),
        (cuda, "Event", NoEvent),
        (cuda, "current_stream", _current_stream),
        (cuda, "default_stream", _current_stream),
        (cuda, "stream", _use_stream),
        *((module, "get_rng_state", _get_rng_state) for module in (cuda, random)),
        *((module, "set_rng_state", _set_rng_state) for module in (cuda, random)),
        *((module, name, _seed) for module in (cuda, random) for name in ("manual_seed", "manual_seed_all")),
        (nvtx, "range", _no_range),
        *((nvtx, name, _do_nothing) for name in ("range_push", "range_pop", "mark")),
    ]


_installed: list[CudaMeansCpu] = []


def install() -> None:
    """Redirect torch's CUDA entry points for the rest of this process; a second call changes nothing."""
    if _installed:
        return
    for module, name, replacement in _replacements():
        # A function of its own for each name: torch._dynamo's table refuses one object under two names.
        setattr(
            module, name, functools.partial(replacement) if callable(replacement) and not isinstance(replacement, type) else replacement
        )
    _redirect_tensor_methods()
    mode: Any = CudaMeansCpu()
    mode.__enter__()  # never left: megatron calls torch from everywhere until the process ends
    _installed.append(mode)


def _redirect_tensor_methods() -> None:
    tensor: Any = torch.Tensor
    tensor.cuda = _stay
    tensor.record_stream = _do_nothing
    true_type = tensor.type

    def type_for_caller(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs and sys._getframe(1).f_globals.get("__name__", "").startswith(_ASKS_FOR_CUDA_NAME):
            return _CUDA_TYPE_NAMES.get(self.dtype, true_type(self))
        return true_type(self, *args, **kwargs)

    tensor.type = type_for_caller


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let what is imported here keep the functions that it hands to `torch.compile` as they are written.

    megatron does so with its fusions, which are off on a CPU, when their modules are read. That alone imports the compiler: 1.2 of the
    4.1 seconds of CPU time that a rank took to start.
    """

    def as_written(function: Any = None, **_: Any) -> Any:
        return as_written if function is None else function

    module: Any = torch
    kept = module.compile
    module.compile = as_written
    try:
        yield
    finally:
        module.compile = kept


def redirect_rng_tracker() -> None:
    """Let megatron's tracker of generator states keep the states of torch's CPU generator."""
    from megatron.core.tensor_parallel import random as tracker  # noqa: PLC0415  # only after `install`

    tracker._get_cuda_rng_state = _get_rng_state
    tracker._set_cuda_rng_state = _set_rng_state


def stand_in_for_fsdp() -> None:
    """Let Megatron-FSDP build its meshes of devices, which it calls CUDA's, of this process's CPUs, without Transformer Engine."""
    from megatron.core.distributed.fsdp import mcore_fsdp_adapter  # noqa: PLC0415  # only after `install`
    from torch.distributed.device_mesh import DeviceMesh  # noqa: PLC0415

    class MeshOfCpus(DeviceMesh):
        """A mesh whose devices are CPUs, whatever it is told."""

        @staticmethod
        def from_group(group: Any, device_type: str, *args: Any, **kwargs: Any) -> Any:
            return DeviceMesh.from_group(group, "cpu", *args, **kwargs)

    mcore_fsdp_adapter.DeviceMesh = MeshOfCpus
    # 0.16 compares modules with it under tensor parallelism; without Transformer Engine it is no type
    if not isinstance(getattr(mcore_fsdp_adapter, "TELinear", object), type):
        mcore_fsdp_adapter.TELinear = type("TELinear", (), {})
