"""Energy counters of CPU packages and their memory, through the kernel's powercap files (RAPL)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.meter.energy import NoMeter, Part, joules_of
from megatron_cpt.record.unknown import Figure, Unavailable

POWERCAP = Path("/sys/class/powercap")
# A RAPL counter wraps at max_energy_range_uj, 262 kJ on many machines. A node's package draws less than this, so that two readings
# which are closer than range / this cannot hide a whole turn.
MAX_PACKAGE_WATTS = 1000.0
METHOD = "RAPL energy counters"


@dataclass
class _Zone:
    path: Path
    range_uj: int
    last_uj: int
    joules: float = 0.0


class RaplMeter:
    """Counts CPU packages and their DRAM. Read it every few minutes: the counters wrap."""

    def __init__(self, zones: list[_Zone], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.scope = f"{len(zones)} RAPL zones of this node (CPU packages and DRAM; no GPU, disk, network or cooling)"
        self._zones = zones
        self._clock = clock
        self._last_read = clock()
        self._lost: Unavailable | None = None
        self._lock = threading.Lock()  # a heartbeat and the work itself may read at once

    def read(self) -> Figure:
        return joules_of(self.parts(), kind="cpu")

    def parts(self) -> tuple[Part, ...]:
        with self._lock:
            joules = self._read()
        if isinstance(joules, Unavailable):
            return (Part("cpu", 0.0, 0, 1, METHOD, reasons=(joules.reason,)),)
        return (Part("cpu", joules, 1, 1, METHOD),)

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
