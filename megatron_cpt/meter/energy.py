"""What an energy meter is, and which meters a machine has. What cannot be read is `Unavailable`, never zero.

Open one meter a node, not one a rank: its counters belong to the machine, and four ranks that each add the node's joules would
count them four times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from megatron_cpt.record.unknown import Figure, Unavailable

Kind = Literal["gpu", "cpu"]
UNITS: dict[str, str] = {"gpu": "GPUs", "cpu": "nodes' CPUs"}


@dataclass(frozen=True)
class Part:
    """The energy of one kind of device.

    Attributes:
        joules: of those devices that were measured.
        measured: how many these are, of `of` that there are. GPUs are counted singly, CPUs by node.
        method: the counter and how it is read.
        is_estimate: the joules come from sampled power and not from an energy counter.
        reasons: why the others were not measured.
    """

    kind: Kind
    joules: float
    measured: int
    of: int
    method: str
    is_estimate: bool = False
    reasons: tuple[str, ...] = ()


class Meter(Protocol):
    """An open energy meter."""

    @property
    def scope(self) -> str:
        """Which parts of the machine it counts."""
        ...

    def parts(self) -> tuple[Part, ...]:
        """Return the energy since the meter was opened, by kind of device."""
        ...

    def read(self) -> Figure:
        """Return the joules since the meter was opened, or why there are none."""
        ...


@dataclass(frozen=True)
class NoMeter:
    """A meter that cannot measure `of` devices, and why."""

    reason: str
    scope: str = "nothing"
    kind: Kind = "cpu"
    of: int = 1

    def parts(self) -> tuple[Part, ...]:
        return (Part(self.kind, 0.0, 0, self.of, "none", reasons=(self.reason,)),)

    def read(self) -> Figure:
        return Unavailable(self.reason)


class NodeMeter:
    """The meters of one node together. Its joules are known when those of the first one, the devices that do the work, are."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = tuple(meters)

    @property
    def scope(self) -> str:
        said = [meter.scope if not isinstance(meter, NoMeter) else f"no {meter.kind.upper()} ({meter.reason})" for meter in self._meters]
        return "; ".join(said)

    def parts(self) -> tuple[Part, ...]:
        return tuple(part for meter in self._meters for part in meter.parts())

    def read(self) -> Figure:
        parts = self.parts()
        return joules_of(parts, kind=parts[0].kind)


def joules_of(parts: Sequence[Part], *, kind: Kind) -> Figure:
    """Return the joules of everything that was measured; `Unavailable` where no device of the kind that does the work was."""
    if not any(part.measured for part in parts if part.kind == kind):
        reasons = dict.fromkeys(reason for part in parts if part.kind == kind for reason in part.reasons)
        return Unavailable("; ".join(reasons) or "no meter was read")
    return math.fsum(part.joules for part in parts if part.measured)


def merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Add up the parts of several nodes, one of each kind."""
    together = []
    for kind in dict.fromkeys(part.kind for part in parts):
        same = [part for part in parts if part.kind == kind]
        methods = dict.fromkeys(part.method for part in same if part.measured) or dict.fromkeys(part.method for part in same)
        together.append(
            Part(
                kind=kind,
                joules=math.fsum(part.joules for part in same),
                measured=sum(part.measured for part in same),
                of=sum(part.of for part in same),
                method="; ".join(methods),
                is_estimate=any(part.is_estimate for part in same),
                reasons=tuple(dict.fromkeys(reason for part in same for reason in part.reasons)),
            )
        )
    return tuple(together)


def expecting(parts: Sequence[Part], *, kind: Kind, num_devices: int) -> tuple[Part, ...]:
    """Return the parts with the devices of a kind of which no meter said anything counted as not measured."""
    found = sum(part.of for part in parts if part.kind == kind)
    if found >= num_devices:
        return tuple(parts)
    missing = num_devices - found
    unit = UNITS[kind] if missing > 1 else {"gpu": "GPU", "cpu": "node's CPU"}[kind]
    silent = Part(kind, 0.0, 0, missing, "none", reasons=(f"no meter spoke for {missing} {unit}",))
    return merged([*parts, silent])


def part_from(data: Any) -> Part | None:
    """Read a part from a record; None where it is none."""
    if not isinstance(data, Mapping):
        return None
    try:
        kind: Kind = "gpu" if data["kind"] == "gpu" else "cpu"
        reasons = tuple(str(reason) for reason in data.get("reasons", ()))
        joules = float(data["joules"])
        known = math.isfinite(joules) and joules >= 0
        return Part(
            kind, joules if known else 0.0, int(data["measured"]) if known else 0, int(data["of"]), str(data.get("method", "")),
            bool(data.get("is_estimate", False)), reasons,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def open_meter(backend: str) -> Meter:
    """Open the meter of this node that fits a backend: GPUs and CPU packages for `cuda`, CPU packages for `cpu`."""
    from megatron_cpt.meter.amd import open_amd  # noqa: PLC0415  # these modules take their types from here
    from megatron_cpt.meter.nvml import open_nvml  # noqa: PLC0415
    from megatron_cpt.meter.rapl import open_rapl  # noqa: PLC0415

    rapl = open_rapl()
    if backend != "cuda":
        return rapl
    gpus: Meter = open_nvml()
    if isinstance(gpus, NoMeter):
        amd = open_amd()
        gpus = NoMeter(f"{gpus.reason}; {amd.reason}", kind="gpu", of=0) if isinstance(amd, NoMeter) else amd
    return NodeMeter([gpus, rapl])
