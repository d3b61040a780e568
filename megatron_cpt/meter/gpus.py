"""Energy of single GPUs, whoever makes them: by an energy counter, or by sampled power where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_cpt.meter.energy import Part, joules_of
from megatron_cpt.record.unknown import Figure, Unavailable

SAMPLE_SECONDS = 1.0  # what a GPU says of its power is the mean of about the last second on most models
MAX_GAP_SECONDS = 10.0  # between two samples; what was drawn in a longer silence is not guessed
# Counters are renewed several times a second and an idle board draws watts: one that stands still so long is stuck (ROCm/amdsmi issue 22).
STUCK_SECONDS = 30.0


class CounterGpu:
    """A GPU whose energy counter runs since its driver was loaded."""

    def __init__(self, joules: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        """Take what reads the counter in joules and raises OSError, with the driver's words, where it cannot."""
        self._joules, self._start = joules, joules()
        self._clock, self._opened = clock, clock()

    def read(self) -> Figure:
        try:
            used = self._joules() - self._start
        except OSError as error:
            return Unavailable(str(error))
        if used < 0:
            return Unavailable("a GPU's energy counter went back, so its driver was loaded again")
        stood = self._clock() - self._opened
        if used == 0 and stood > STUCK_SECONDS:
            return Unavailable(f"a GPU's energy counter has stood still for {stood:.0f} s")
        return used


@dataclass
class PowerGpu:
    """A GPU without an energy counter: its power is sampled and the samples joined by straight lines (trapezoids)."""

    watts: Callable[[], float]
    clock: Callable[[], float] = time.monotonic
    _joules: float = 0.0
    _last: tuple[float, float] | None = None
    _lost: Unavailable | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> Figure:
        """Take a sample, and return the joules since the first one."""
        with self._lock:
            try:
                now, watts = self.clock(), self.watts()
            except OSError as error:
                self._lost = self._lost or Unavailable(str(error))
                return self._lost
            if self._last is not None:
                apart = now - self._last[0]
                if apart > MAX_GAP_SECONDS:
                    self._lost = self._lost or Unavailable(f"the power of a GPU was not sampled for {apart:.0f} s")
                self._joules += apart * (watts + self._last[1]) / 2
            self._last = (now, watts)
            return self._lost or self._joules


class GpuMeter:
    """The GPUs of one node that this job sees. Some may be unmeasured; their reasons stay beside the joules of the others."""

    def __init__(
        self,
        library: str,
        gpus: Sequence[CounterGpu | PowerGpu],
        unmeasured: Sequence[str],
        *,
        sample_seconds: float | None = SAMPLE_SECONDS,
    ) -> None:
        """Take the open GPUs and, for each other one, why it is not measured; `sample_seconds: None` leaves sampling to the caller."""
        self._library, self._gpus, self._unmeasured = library, tuple(gpus), tuple(unmeasured)
        self._sampled = [gpu for gpu in gpus if isinstance(gpu, PowerGpu)]
        self.scope = f"{len(gpus)} GPUs of this node by {library} (no memory, network or cooling outside the boards)"
        if self._sampled and sample_seconds is not None:
            threading.Thread(target=self._sample, args=(sample_seconds,), name="gpu-power", daemon=True).start()

    def _sample(self, every_seconds: float) -> None:
        while True:
            for gpu in self._sampled:
                gpu.read()
            time.sleep(every_seconds)

    def read(self) -> Figure:
        return joules_of(self.parts(), kind="gpu")

    def parts(self) -> tuple[Part, ...]:
        figures = [gpu.read() for gpu in self._gpus]
        known = [figure for figure in figures if not isinstance(figure, Unavailable)]
        reasons = dict.fromkeys([*self._unmeasured, *(figure.reason for figure in figures if isinstance(figure, Unavailable))])
        methods = [f"{self._library} energy counter"] if len(self._sampled) < len(self._gpus) else []
        methods += [f"{self._library} power sampled each second, an estimate"] if self._sampled else []
        return (
            Part(
                kind="gpu", joules=sum(known), measured=len(known), of=len(self._gpus) + len(self._unmeasured),
                method=" and ".join(methods), is_estimate=bool(self._sampled), reasons=tuple(reasons),
            ),
        )  # fmt: skip
