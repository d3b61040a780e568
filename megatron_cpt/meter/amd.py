"""Opens the AMD GPUs that a job sees, through AMD SMI (the Python package `amdsmi`, which comes with ROCm)."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from megatron_cpt.meter.energy import NoMeter
from megatron_cpt.meter.gpus import SAMPLE_SECONDS, CounterGpu, GpuMeter, PowerGpu

POWER_KEYS = ("socket_power", "current_socket_power", "average_socket_power")  # newest name first; a model fills in one of them
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def open_amd(
    *,
    smi: Any = None,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
    sample_seconds: float | None = SAMPLE_SECONDS,
) -> GpuMeter | NoMeter:
    """Open the energy counters of the AMD GPUs that are visible."""
    try:
        smi = smi or importlib.import_module("amdsmi")
    except (ImportError, OSError, KeyError) as error:  # it loads its library on import, and looks for ROCm in the environment
        missing = isinstance(error, ModuleNotFoundError)
        return NoMeter("no AMD SMI (package amdsmi)" if missing else f"AMD SMI: {error}", kind="gpu", of=0)
    try:
        smi.amdsmi_init()
        handles = _visible(list(smi.amdsmi_get_processor_handles()), environment)
    except smi.AmdSmiException as error:
        return NoMeter(f"AMD SMI: {error}", kind="gpu", of=0)
    if isinstance(handles, str):
        return NoMeter(handles, kind="gpu", of=0)
    gpus: list[CounterGpu | PowerGpu] = []
    unmeasured: list[str] = []
    for handle in handles:
        gpu = _open(smi, handle, clock)
        if isinstance(gpu, str):
            unmeasured.append(gpu)
        else:
            gpus.append(gpu)
    if not gpus:
        return NoMeter("; ".join(dict.fromkeys(unmeasured)), kind="gpu", of=len(unmeasured))
    return GpuMeter("AMD SMI", gpus, unmeasured, sample_seconds=sample_seconds)


def _visible(handles: list[Any], environment: Mapping[str, str]) -> list[Any] | str:
    """Return the handles that are visible: each variable picks from what the one before it left."""
    for name in VISIBLE:
        value = environment.get(name)
        if value is None or (name == "CUDA_VISIBLE_DEVICES" and value == environment.get("HIP_VISIBLE_DEVICES")):
            continue  # HIP reads either of the last two, and Slurm sets both to the same
        chosen = []
        for part in (part.strip() for part in value.split(",")):
            if not part.isdigit():
                if part.upper().startswith("GPU-"):
                    return f"{name} names GPUs by id, which AMD SMI does not tell in the same form; name them by number"
                break
            if int(part) < len(handles):
                chosen.append(handles[int(part)])
        handles = chosen
    return handles or "no AMD GPU is visible"


def _open(smi: Any, handle: Any, clock: Callable[[], float]) -> CounterGpu | PowerGpu | str:
    try:
        return CounterGpu(lambda: _joules(smi, handle), clock)
    except OSError as missing:
        try:
            gpu = PowerGpu(lambda: _watts(smi, handle), clock)
            gpu.watts()
        except OSError as error:
            return f"{missing} (energy), {error} (power)"
    return gpu


def _joules(smi: Any, handle: Any) -> float:
    try:
        count = smi.amdsmi_get_energy_count(handle)
        ticks = count["energy_accumulator"] if "energy_accumulator" in count else count["power"]  # its name before amdsmi 6.2.1
        return float(ticks) * float(count["counter_resolution"]) / 1e6  # microjoules a tick
    except (smi.AmdSmiException, KeyError, TypeError, ValueError) as error:
        raise OSError(f"AMD SMI: {error}") from None


def _watts(smi: Any, handle: Any) -> float:
    try:
        power = smi.amdsmi_get_power_info(handle)
    except smi.AmdSmiException as error:
        raise OSError(f"AMD SMI: {error}") from None
    for key in POWER_KEYS:
        if isinstance(power.get(key), int | float) and power[key] > 0:  # the others say "N/A"
            return float(power[key])
    raise OSError("AMD SMI: no power reading")
