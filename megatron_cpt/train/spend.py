"""Money, energy and carbon of a run while it trains: the ledger's ended attempts, and the clock and meter of this one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.meter.attempts import AttemptRecord, attempts_of
from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.plan.money import clock_limits
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.unknown import Figure, Unavailable, combine

UNTOLD = Unavailable("no plan was given")


class Spend:
    """Adds up what a run took so far. A figure is left out where this attempt's is unknown.

    Earlier attempts whose figure the ledger does not know are not in a sum, which then is a least figure, as `megatron-cpt account` says.
    """

    def __init__(
        self,
        *,
        earlier: Sequence[AttemptRecord] = (),
        num_ranks: int = 1,
        usd_per_device_hour: Figure = UNTOLD,
        pue: Figure = UNTOLD,
        grid_g_co2e_per_kwh: Figure = UNTOLD,
        limit_seconds: float = math.inf,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        """Take the rates.

        Args:
            earlier: the run's attempts but this one.
            limit_seconds: training time at which the nearest limit of the plan is reached.
            seconds: time of this attempt so far; None leaves cost out.
        """
        self._num_ranks, self._price, self._pue, self._grid = num_ranks, usd_per_device_hour, pue, grid_g_co2e_per_kwh
        self._limit_seconds, self._seconds = limit_seconds, seconds
        self._usd_before = _known(record.usd for record in earlier)
        self._hours_before = _known(record.device_seconds for record in earlier) / 3600
        self._joules_before = _known(record.joules for record in earlier)
        self._site_kwh_before = _known(record.site_kwh for record in earlier)
        self._grams_before = _known(record.g_co2e for record in earlier)
        self._joules, self._first_tokens, self._tokens, self._elapsed = 0.0, 0, 0, math.nan

    @classmethod
    def of_run(cls, run_dir: Path, plan: RunPlan, *, attempt_id: str | None) -> Spend:
        """Return the spend of a run whose attempt `attempt_id` is going on; None when nobody keeps its ledger."""
        attempts = attempts_of(run_dir)
        began = next((each.began for each in attempts if each.attempt_id == attempt_id), None) or time.time()
        limits = clock_limits(plan.stop, plan.tariff, num_ranks=plan.layout.num_ranks)
        return cls(
            earlier=[each for each in attempts if each.attempt_id != attempt_id],
            num_ranks=plan.layout.num_ranks,
            usd_per_device_hour=plan.tariff.usd_per_device_hour,
            pue=plan.tariff.pue,
            grid_g_co2e_per_kwh=plan.tariff.grid_g_co2e_per_kwh,
            limit_seconds=min((limit for limit in limits.values() if not isinstance(limit, Unavailable)), default=math.inf),
            seconds=lambda: time.time() - began,
        )

    def begin(self, *, tokens: int) -> None:
        """Begin an attempt at so many tokens of the run."""
        self._first_tokens = self._tokens = tokens

    def row(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the figures after the step of a record, by metric name."""
        return {**self._cost(record), **self._energy(record)}

    def _cost(self, record: Mapping[str, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        if math.isfinite(self._limit_seconds):
            found["cost/limit_used"] = record["elapsed_seconds"] / self._limit_seconds
        if self._seconds is None:
            return found
        hours = self._num_ranks * self._seconds() / 3600
        found["cost/device_hours"] = self._hours_before + hours
        if not isinstance(self._price, Unavailable):
            found["cost/usd"] = self._usd_before + hours * self._price
            if record["tokens"] > self._first_tokens:
                found["cost/usd_per_million_tokens"] = hours * self._price / (record["tokens"] - self._first_tokens) * 1e6
        return found

    def _energy(self, record: Mapping[str, Any]) -> dict[str, float]:
        tokens, self._tokens = record["tokens"] - self._tokens, record["tokens"]
        seconds, self._elapsed = record["elapsed_seconds"] - self._elapsed, record["elapsed_seconds"]
        joules = record.get("joules")
        if joules is None:
            return {}
        self._joules += joules
        kwh = self._joules / JOULES_PER_KWH
        site = combine(lambda pue: kwh * pue, self._pue)
        grams = combine(lambda value, intensity: value * intensity, site, self._grid)
        found = {"energy/joules": joules, "energy/kwh": self._joules_before / JOULES_PER_KWH + kwh}
        if seconds > 0:  # not at the first step: what came before it has no recorded time
            found["energy/watts"] = joules / seconds
        if tokens > 0:
            found["energy/joules_per_token"] = joules / tokens
        for name, before, value in (
            ("energy/site_kwh", self._site_kwh_before, site),
            ("energy/g_co2e", self._grams_before, grams),
        ):
            if not isinstance(value, Unavailable):
                found[name] = before + value
        return found


def _known(figures: Any) -> float:
    return math.fsum(figure for figure in figures if not isinstance(figure, Unavailable))
