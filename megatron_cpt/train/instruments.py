"""What a step cost: utilization, memory and energy, as the first rank sees them. What cannot be measured stays unknown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from megatron_cpt.meter.energy import Meter
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.train.state import StepResult

logger = logging.getLogger(__name__)


class Instruments:
    """Reads the instruments once a step. `joules` are those since the last reading, evaluations and saves between included."""

    def __init__(self, plan: RunPlan, *, meter: Meter, memory: Callable[[], dict[str, int]]) -> None:
        """Take the meter of this node and what tells this process's memory in bytes by kind."""
        self._plan, self._meter, self._memory = plan, meter, memory
        self._joules = meter.read()
        self._told_of_peak = False

    def describe(self) -> dict[str, Any]:
        """Return what the readings mean, for the head of a record of them."""
        estimate = self._plan.estimate
        peak = estimate.dense_tflops
        return {
            "mfu_convention": estimate.flops_convention,
            "mfu_peak_tflops_per_device": f"{peak}" if isinstance(peak, Unavailable) else peak,
            "num_devices": self._plan.layout.num_ranks,
            "memory_scope": "the first rank's process",
            "energy_scope": f"{self._joules}" if isinstance(self._joules, Unavailable) else self._meter.scope,
        }

    def read(self, step: StepResult) -> dict[str, Any]:
        """Return the readings of a step."""
        return {"mfu": self._utilization(step), "joules": self._energy(), **self._memory()}

    def _utilization(self, step: StepResult) -> float | None:
        peak = self._plan.estimate.dense_tflops
        if isinstance(peak, Unavailable):
            return None
        flops = self._plan.estimate.flops_per_token * sum(step.source_tokens)
        utilization = flops / (step.seconds * self._plan.layout.num_ranks * peak * 1e12)
        if utilization > 1 and not self._told_of_peak:
            key = "gpu.dense_tflops" if self._plan.layout.fp8 == "none" else "gpu.dense_fp8_tflops"
            logger.warning("MFU is %.0f %%: %s=%g is not the dense peak of this device.", 100 * utilization, key, peak)
            self._told_of_peak = True
        return utilization

    def _energy(self) -> float | None:
        before, self._joules = self._joules, self._meter.read()
        return None if isinstance(before, Unavailable) or isinstance(self._joules, Unavailable) else self._joules - before


def process_memory(*, on_cuda: bool) -> Callable[[], dict[str, int]]:
    """Return a reader of this process's resident memory and, on CUDA, of the most device memory that it has held."""
    import psutil  # noqa: PLC0415  -- megatron-core's own need

    process = psutil.Process()

    def read() -> dict[str, int]:
        memory = {"resident_bytes": int(process.memory_info().rss)}
        if on_cuda:
            import torch  # noqa: PLC0415

            memory["device_peak_bytes"] = int(torch.cuda.max_memory_allocated())
        return memory

    return read
