"""Energy counters of one node: RAPL for CPU packages, NVML for GPUs. What cannot be read is `Unavailable`, never zero.

Open one meter a node, not one a rank: both counters belong to the machine, and four ranks that each add the node's joules would
count them four times.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_cpt.record.unknown import Figure, Unavailable

POWERCAP = Path("/sys/class/powercap")
# A RAPL counter wraps at max_energy_range_uj, 262 kJ on many machines. A node's package draws less than this, so that two readings
# which are closer than range / this cannot hide a whole turn.
MAX_PACKAGE_WATTS = 1000.0


class Meter(Protocol):
    """An open energy meter."""

    @property
    def scope(self) -> str:
        """Which parts of the machine it counts."""
        ...

    def read(self) -> Figure:
        """Return the joules since the meter was opened."""
        ...


@dataclass(frozen=True)
class NoMeter:
    """A meter that cannot measure, and why."""

    reason: str
    scope: str = "nothing"

    def read(self) -> Figure:
        return Unavailable(self.reason)


@dataclass
class _Zone:
    path: Path
    range_uj: int
    last_uj: int
    joules: float = 0.0


class RaplMeter:
    """Counts CPU packages and their DRAM through the kernel's powercap files. Read it every few minutes: the counters wrap."""

    def __init__(self, zones: list[_Zone], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.scope = f"{len(zones)} RAPL zones of this node (CPU packages and DRAM; no GPU, disk, network or cooling)"
        self._zones = zones
        self._clock = clock
        self._last_read = clock()
        self._lost: Unavailable | None = None
        self._lock = threading.Lock()  # a heartbeat and the work itself may read at once

    def read(self) -> Figure:
        with self._lock:
            return self._read()

    def _read(self) -> Figure:
        now = self._clock()
        apart = now - self._last_read
        self._last_read = now
        for zone in self._zones:
            if apart * MAX_PACKAGE_WATTS > zone.range_uj / 1e6:
                self._lost = Unavailable(f"the RAPL counter was not read for {apart:.0f} s and may have wrapped more than once")
            try:
                value = _counter(zone.path / "energy_uj")
            except (OSError, ValueError) as error:
                self._lost = Unavailable(f"RAPL: {error}")
                break
            step = value - zone.last_uj
            zone.joules += (step if step >= 0 else step + zone.range_uj + 1) / 1e6
            zone.last_uj = value
        return self._lost or sum(zone.joules for zone in self._zones)


def open_rapl(root: Path = POWERCAP, *, clock: Callable[[], float] = time.monotonic) -> RaplMeter | NoMeter:
    """Open the CPU's counters: each package, and the DRAM zone inside it where there is one; parts of a package are not added again."""
    zones = []
    try:
        for path in sorted(root.glob("intel-rapl:*")):  # the kernel names AMD's zones so too
            name = (path / "name").read_text(encoding="ascii").strip()
            if name.startswith("package") or name == "dram":
                zones.append(_Zone(path, _counter(path / "max_energy_range_uj"), _counter(path / "energy_uj")))
    except PermissionError:
        return NoMeter(f"RAPL under {root} may be read by root only on this machine")
    except (OSError, ValueError) as error:
        return NoMeter(f"RAPL: {error}")
    if not zones:
        return NoMeter(f"this machine has no RAPL counter under {root}")
    return RaplMeter(zones, clock=clock)


def _counter(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


class NvmlMeter:
    """Counts the visible GPUs by their energy counters, which run in millijoules since the driver was loaded."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self.scope = f"{len(handles)} GPUs of this node by NVML (no CPU, memory, network or cooling)"
        self._nvml = nvml
        self._handles = handles
        self._start_mj = [self._counter(handle) for handle in handles]

    def read(self) -> Figure:
        try:
            now_mj = [self._counter(handle) for handle in self._handles]
        except self._nvml.NVMLError as error:
            return Unavailable(f"NVML: {error}")
        steps = [now - start for now, start in zip(now_mj, self._start_mj, strict=True)]
        if min(steps) < 0:
            return Unavailable("NVML: a GPU's energy counter went back, so its driver was loaded again")
        return sum(steps) / 1000

    def _counter(self, handle: Any) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def open_nvml(*, nvml: Any = None, environment: Mapping[str, str] = os.environ) -> NvmlMeter | NoMeter:
    """Open the energy counters of the GPUs that CUDA_VISIBLE_DEVICES shows, all of them when it is not set."""
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return NoMeter("GPU energy needs the package nvidia-ml-py")
    try:
        nvml.nvmlInit()
        handles = _visible_handles(nvml, environment)
        return NoMeter(handles) if isinstance(handles, str) else NvmlMeter(nvml, handles)
    except nvml.NVMLError as error:
        return NoMeter(f"NVML: {error}")


def _visible_handles(nvml: Any, environment: Mapping[str, str]) -> list[Any] | str:
    everything = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    chosen = everything
    if visible is not None:
        chosen = []
        for part in filter(None, (part.strip() for part in visible.split(","))):
            if part.startswith("MIG-"):
                return "NVML has no energy counter for a MIG slice"
            if part.startswith("GPU-"):
                chosen.append(nvml.nvmlDeviceGetHandleByUUID(part))
            elif part.isdigit() and int(part) < len(everything):
                if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({nvml.nvmlDeviceGetName(card) for card in everything}) > 1:
                    return "CUDA numbers unlike GPUs by speed and NVML by slot; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
                chosen.append(everything[int(part)])
            else:
                break  # CUDA, too, stops at the first entry that names no device
    return chosen or "no GPU is visible"


def open_meter(backend: str) -> Meter:
    """Open the meter of this node that fits a backend: GPUs for `cuda`, CPU packages for `cpu`."""
    return open_nvml() if backend == "cuda" else open_rapl()
