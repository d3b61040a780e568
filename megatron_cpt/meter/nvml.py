"""Opens the NVIDIA GPUs that a job sees, through NVML (package nvidia-ml-py)."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from megatron_cpt.meter.energy import NoMeter
from megatron_cpt.meter.gpus import SAMPLE_SECONDS, CounterGpu, GpuMeter, PowerGpu

logger = logging.getLogger(__name__)

MIG_REASON = "a MIG slice: the counter of its GPU counts all slices, and nobody can tell whose the joules are"


def open_nvml(
    *,
    nvml: Any = None,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
    sample_seconds: float | None = SAMPLE_SECONDS,
) -> GpuMeter | NoMeter:
    """Open the energy counters of the GPUs that CUDA_VISIBLE_DEVICES shows, all of them when it is not set.

    A GPU that has no energy counter (before Volta, and some virtual ones) is measured by its sampled power, with one warning.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return NoMeter("GPU energy needs the package nvidia-ml-py", kind="gpu", of=0)
    try:
        nvml.nvmlInit()
        handles = _visible(nvml, environment)
    except nvml.NVMLError as error:
        return NoMeter(f"NVML: {error}", kind="gpu", of=0)
    if isinstance(handles, str):
        return NoMeter(handles, kind="gpu", of=0)
    gpus: list[CounterGpu | PowerGpu] = []
    unmeasured: list[str] = []
    for handle in handles:
        gpu = handle if isinstance(handle, str) else MIG_REASON if _is_cut(nvml, handle) else _open(nvml, handle, clock)
        if isinstance(gpu, str):
            unmeasured.append(gpu)
        else:
            gpus.append(gpu)
    if not gpus:
        return NoMeter("; ".join(dict.fromkeys(unmeasured)), kind="gpu", of=len(unmeasured))
    if any(isinstance(gpu, PowerGpu) for gpu in gpus):
        logger.warning("A GPU has no energy counter: its energy is an estimate from its power, sampled each second.")
    return GpuMeter("NVML", gpus, unmeasured, sample_seconds=sample_seconds)


def _open(nvml: Any, handle: Any, clock: Callable[[], float]) -> CounterGpu | PowerGpu | str:
    try:
        return CounterGpu(lambda: _ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle) / 1000, clock)  # millijoules
    except OSError as missing:
        try:
            gpu = PowerGpu(lambda: _ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle) / 1000, clock)  # milliwatts
            gpu.watts()
        except OSError as error:
            return f"{missing} (energy), {error} (power)"
    return gpu


def _ask(nvml: Any, question: Callable[[Any], int], handle: Any) -> int:
    try:
        return question(handle)
    except nvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from None


def _is_cut(nvml: Any, handle: Any) -> bool:
    """Say whether a GPU is cut into MIG slices: then even its plain index names one slice to CUDA."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == 1)
    except nvml.NVMLError:
        return False  # a model that cannot be cut


def _visible(nvml: Any, environment: Mapping[str, str]) -> list[Any] | str:
    """Return the handles that CUDA would show, with the reason in the place of one that cannot be read; or why nobody can tell."""
    everything = [_handle(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    known = [handle for handle in everything if not isinstance(handle, str)]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return everything or "no GPU is visible"
    chosen: list[Any] = []
    for part in (part.strip() for part in visible.split(",")):
        if part.startswith("MIG-"):  # MIG-<uuid>, or MIG-GPU-<uuid>/<gpu instance>/<compute instance> of older drivers
            chosen.append(MIG_REASON)
        elif part.startswith("GPU-"):
            found = [handle for handle in known if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(part)]
            if len(found) != 1:  # CUDA takes the first digits of an id where they name one GPU
                return f"CUDA_VISIBLE_DEVICES names {part}, and {len(found)} GPUs of this node have that id"
            chosen += [handle for handle in found if handle not in chosen]
        elif part.isdigit() and int(part) < len(everything):
            if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({nvml.nvmlDeviceGetName(card) for card in known}) > 1:
                return "CUDA numbers unlike GPUs by speed and NVML by slot; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
            chosen += [handle for handle in (everything[int(part)],) if handle not in chosen]  # named twice it is one board
        else:
            break  # CUDA, too, stops at the first entry that names no device
    return chosen or "no GPU is visible"


def _handle(nvml: Any, index: int) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:  # one card that fell off the bus must not hide the others
        return f"NVML: GPU {index}: {error}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes from nvidia-ml-py before 11.515
