"""Money, energy and carbon from device hours. Each rate is an input with a source; an unknown one makes its product unknown."""

from __future__ import annotations

import math

from megatron_cpt.config.schema import AllowanceConfig, GpuConfig, TariffConfig
from megatron_cpt.plan.grid import grid_interval, grid_region
from megatron_cpt.plan.power import node_power
from megatron_cpt.plan.run_plan import NOT_STATED, Bill, Layout, StopConditions, Tariff
from megatron_cpt.record.unknown import Figure, Interval, Range, Unavailable, around, combine, product


def known(value: float | None, *, key: str, reason: str = "") -> Figure:
    """Return a configured figure, or say why it is unknown and which key sets it."""
    if value is not None:
        return float(value)
    return Unavailable(f"{reason}; set {key}" if reason else f"set {key}")


def tariff_of(tariff: TariffConfig, gpu: GpuConfig, *, num_nodes: int = 1) -> Tariff:
    """Return the tariff that a plan freezes: prices and grid of the tariff group, watts of the gpu group."""
    power = node_power(gpu, num_nodes=num_nodes)
    watts = power.watts
    grid, grid_low, grid_high, grid_source = _grid(tariff)
    return Tariff(
        name=tariff.name,
        usd_per_device_hour=known(tariff.usd_per_device_hour, key="tariff.usd_per_device_hour", reason=tariff.price_source),
        price_source=tariff.price_source,
        watts_per_device=watts if isinstance(watts, Unavailable) else watts.likely,
        power_source="; ".join(part for part in (power.parts, gpu.power_source or gpu.source) if part),
        pue=known(tariff.pue, key="tariff.pue", reason=tariff.pue_source),
        pue_source=tariff.pue_source,
        grid_g_co2e_per_kwh=grid,
        grid_source=grid_source,
        price_date=tariff.price_date,
        usd_per_device_hour_low=_end(tariff.usd_per_device_hour_low),
        usd_per_device_hour_high=_end(tariff.usd_per_device_hour_high),
        watts_per_device_low=watts if isinstance(watts, Unavailable) else watts.low,
        watts_per_device_high=watts if isinstance(watts, Unavailable) else watts.high,
        pue_low=_end(tariff.pue_low),
        pue_high=_end(tariff.pue_high),
        grid_g_co2e_per_kwh_low=grid_low,
        grid_g_co2e_per_kwh_high=grid_high,
        market_g_co2e_per_kwh=known(
            tariff.market_g_co2e_per_kwh, key="tariff.market_g_co2e_per_kwh", reason="your contract for electricity states it"
        ),
        market_source=tariff.market_source,
        usd_per_gb_month=known(tariff.usd_per_gb_month, key="tariff.usd_per_gb_month"),
        storage_date=tariff.storage_date,
        storage_source=tariff.storage_source,
        keep_months=known(tariff.keep_months, key="tariff.keep_months"),
        embodied_g_co2e_per_device_hour=known(tariff.embodied_g_co2e_per_device_hour, key="tariff.embodied_g_co2e_per_device_hour"),
        embodied_source=tariff.embodied_source,
    )


def _end(value: float | None) -> Figure:
    return NOT_STATED if value is None else float(value)


def _grid(tariff: TariffConfig) -> tuple[Figure, Figure, Figure, str]:
    """Return the grid's likely, low and high intensity and their source: a figure of the user's own, else the table's."""
    found = None if tariff.grid_region is None else grid_region(tariff.grid_region)
    if tariff.grid_g_co2e_per_kwh is None and found is not None:
        spread = grid_interval(found)
        return spread.likely, spread.low, spread.high, found.in_words
    own = known(tariff.grid_g_co2e_per_kwh, key="tariff.grid_region or tariff.grid_g_co2e_per_kwh", reason=tariff.grid_source)
    return own, NOT_STATED, NOT_STATED, tariff.grid_source


def price_range(tariff: Tariff) -> Range:
    """Return the price of a device hour as an interval, in USD."""
    return around(tariff.usd_per_device_hour, low=tariff.usd_per_device_hour_low, high=tariff.usd_per_device_hour_high)


def kw_range(tariff: Tariff) -> Range:
    """Return what one device draws at the site's meter, in kW: with its part of the node and network, times the PUE."""
    watts = around(tariff.watts_per_device, low=tariff.watts_per_device_low, high=tariff.watts_per_device_high)
    return product(watts, around(tariff.pue, low=tariff.pue_low, high=tariff.pue_high), 1e-3)


def grid_range(tariff: Tariff) -> Range:
    """Return the grid's location-based intensity as an interval, in g CO2e per kWh."""
    return around(tariff.grid_g_co2e_per_kwh, low=tariff.grid_g_co2e_per_kwh_low, high=tariff.grid_g_co2e_per_kwh_high)


def run_cost_usd(device_hours: Figure, tariff: Tariff) -> Figure:
    """Multiply device hours by the price of one."""
    return combine(lambda hours, price: hours * price, device_hours, tariff.usd_per_device_hour)


def run_energy_kwh(device_hours: Figure, tariff: Tariff) -> Figure:
    """Multiply device hours by the node's watts per device and by the site's power usage effectiveness (PUE)."""
    return combine(lambda hours, watts, pue: hours * watts * pue / 1000, device_hours, tariff.watts_per_device, tariff.pue)


def run_carbon_kg(energy_kwh: Figure, tariff: Tariff) -> Figure:
    """Multiply energy by the grid's carbon intensity (location-based)."""
    return combine(lambda kwh, grams: kwh * grams / 1000, energy_kwh, tariff.grid_g_co2e_per_kwh)


def bill_of(device_hours: Range, tariff: Tariff, *, stored_gb: Figure, goodput: Figure, allowance: AllowanceConfig | None = None) -> Bill:
    """Return money, energy and carbon of device hours as intervals.

    Args:
        stored_gb: what the run keeps on disk; it costs for the tariff's months.
        goodput: share of elapsed time that trains; the rest is a line of its own.
        allowance: development and failed runs, on top.
    """
    kwh = product(device_hours, kw_range(tariff))
    storage = combine(lambda size, price, months: size * price * months, stored_gb, tariff.usd_per_gb_month, tariff.keep_months)
    more = allowance or AllowanceConfig()
    return Bill(
        device_hours=device_hours,
        usd=product(device_hours, price_range(tariff)),
        storage_usd=_flat(storage),
        stored_gb=stored_gb,
        kwh=kwh,
        kg_location=product(kwh, grid_range(tariff), 1e-3),
        kg_market=product(kwh, _flat(tariff.market_g_co2e_per_kwh), 1e-3),
        kg_embodied=product(device_hours, _flat(tariff.embodied_g_co2e_per_device_hour), 1e-3),
        lost_share=combine(lambda share: 1 / share - 1, goodput),
        allowance=around(known(more.likely, key="allowance.likely"), low=_end(more.low), high=_end(more.high)),
        allowance_source=more.source,
    )


def _flat(figure: Figure) -> Range:
    return figure if isinstance(figure, Unavailable) else Interval(figure, figure, figure)


def with_lost_and_allowance(found: Range, bill: Bill) -> Range:
    """Return a figure of the steps with what checkpoints, interruptions, development and failed runs add, as far as they are known."""
    lost = 0.0 if isinstance(bill.lost_share, Unavailable) else bill.lost_share
    more = bill.allowance
    on_top = Interval(1, 1, 1) if isinstance(more, Unavailable) else Interval(1 + more.low, 1 + more.likely, 1 + more.high)
    return product(found, 1 + lost, on_top)


def stored_gb(*, num_params: int, layout: Layout, num_checkpoints: int, num_tokens: int, num_ids: int) -> float:
    """Return what a run keeps on disk in GB: its checkpoints, the initial and the exported weights, and the token files.

    A checkpoint holds Adam's two moments and the weights in fp32 (12 bytes a parameter), with bf16 the weights once more (2 bytes).
    A token takes 2 bytes below 65,500 ids (Megatron's limit), else 4. The text itself and the base model are not counted.
    """
    of_weights = 4 if layout.dtype == "fp32" else 2
    of_checkpoint = 12 if layout.dtype == "fp32" else 14
    kept = num_params * (of_checkpoint * num_checkpoints + 2 * of_weights)
    return (kept + num_tokens * (2 if num_ids < 65_500 else 4)) / 1e9


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
