"""Money, energy and carbon from device hours. Each rate is an input with a source; an unknown one makes its product unknown."""

from __future__ import annotations

import math

from megatron_cpt.config.schema import GpuConfig, TariffConfig
from megatron_cpt.plan.run_plan import StopConditions, Tariff
from megatron_cpt.record.unknown import Figure, Unavailable, combine


def known(value: float | None, *, key: str, reason: str = "") -> Figure:
    """Return a configured figure, or say why it is unknown and which key sets it."""
    if value is not None:
        return float(value)
    return Unavailable(f"{reason}; set {key}" if reason else f"set {key}")


def tariff_of(tariff: TariffConfig, gpu: GpuConfig) -> Tariff:
    """Return the tariff that a plan freezes: prices of the tariff group and watts of the gpu group."""
    return Tariff(
        name=tariff.name,
        usd_per_device_hour=known(tariff.usd_per_device_hour, key="tariff.usd_per_device_hour", reason=tariff.price_source),
        price_source=tariff.price_source,
        watts_per_device=known(gpu.node_watts_per_device, key="gpu.node_watts_per_device"),
        power_source=gpu.source,
        pue=known(tariff.pue, key="tariff.pue", reason=tariff.pue_source),
        pue_source=tariff.pue_source,
        grid_g_co2e_per_kwh=known(tariff.grid_g_co2e_per_kwh, key="tariff.grid_g_co2e_per_kwh", reason=tariff.grid_source),
        grid_source=tariff.grid_source,
    )


def run_cost_usd(device_hours: Figure, tariff: Tariff) -> Figure:
    """Multiply device hours by the price of one."""
    return combine(lambda hours, price: hours * price, device_hours, tariff.usd_per_device_hour)


def run_energy_kwh(device_hours: Figure, tariff: Tariff) -> Figure:
    """Multiply device hours by the node's watts per device and by the site's power usage effectiveness (PUE)."""
    return combine(lambda hours, watts, pue: hours * watts * pue / 1000, device_hours, tariff.watts_per_device, tariff.pue)


def run_carbon_kg(energy_kwh: Figure, tariff: Tariff) -> Figure:
    """Multiply energy by the grid's carbon intensity (location-based)."""
    return combine(lambda kwh, grams: kwh * grams / 1000, energy_kwh, tariff.grid_g_co2e_per_kwh)


def clock_limits(stop: StopConditions, tariff: Tariff, *, num_ranks: int) -> dict[str, Figure]:
    """Return, for each limit that is set, the seconds of training at which it is reached, or why nobody can tell.

    Money and energy are those of the plan's rates: a device costs and draws as the tariff says, by the clock.
    """
    device_hours = num_ranks / 3600  # of one second
    rates: dict[str, tuple[float | None, Figure]] = {
        "stop.max_hours": (stop.max_hours, 1 / 3600),
        "stop.max_usd": (stop.max_usd, run_cost_usd(device_hours, tariff)),
        "stop.max_kwh": (stop.max_kwh, run_energy_kwh(device_hours, tariff)),
    }
    return {
        key: combine(lambda per_second, limit=limit: limit / per_second if per_second > 0 else math.inf, rate)
        for key, (limit, rate) in rates.items()
        if limit is not None
    }
