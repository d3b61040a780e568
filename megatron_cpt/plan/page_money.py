"""The part of a plan's page that says how long a run takes, what it costs in money, energy and carbon, and when it stops."""

from __future__ import annotations

from typing import Protocol

from megatron_cpt.plan.money import clock_limits, with_lost_and_allowance
from megatron_cpt.plan.page_text import field, show_amount, show_bytes, show_count, show_duration, show_durations, show_range
from megatron_cpt.plan.run_plan import Bill, Estimate, Layout, StopConditions, Tariff
from megatron_cpt.record.unknown import Figure, Interval, Range, Unavailable, around


class Priced(Protocol):
    """A plan, or a quote: what has a layout, an estimate and a tariff."""

    @property
    def backend(self) -> str: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def tariff(self) -> Tariff: ...
    @property
    def stop(self) -> StopConditions: ...
    @property
    def estimate(self) -> Estimate: ...


def summary(plan: Priced) -> list[str]:
    """Return the two or three sentences that a reader without time needs."""
    estimate, layout = plan.estimate, plan.layout
    largest = max(estimate.memory, key=lambda rank: rank.total)
    limit = estimate.memory_limit_bytes
    room = "The memory of a device is not known."
    if not isinstance(limit, Unavailable):
        room = f"It fits: {show_bytes(largest.total)} of {show_bytes(limit)} on the fullest device."
    device = "rank" if plan.backend == "cpu" else "GPU"
    lasts = "a time that is unknown" if isinstance(estimate.seconds, Unavailable) else show_duration(estimate.seconds)
    bill = bill_of_plan(plan)
    figures = {"cost": (bill.usd, "USD"), "energy": (bill.kwh, "kWh"), "carbon": (bill.kg_location, "kg CO2e")}
    costs = [f"{show_amount(found.likely)} {unit}" for found, unit in figures.values() if isinstance(found, Interval)]
    unknown = [what for what, (found, _) in figures.items() if isinstance(found, Unavailable)]
    about = f", about {', '.join(costs)}" if costs else ""
    about += f"; unknown: {', '.join(unknown)}" if unknown else ""
    plural = "" if layout.num_ranks == 1 else "s"
    return field("in short", f"{layout.num_ranks} {device}{plural} for {lasts}{about}.{_longer(bill, estimate)} {room}")


def _longer(bill: Bill, estimate: Estimate) -> str:
    """Return how long the run lasts with checkpoints and interruptions, where they are a tenth of its steps' time or more."""
    if isinstance(bill.lost_share, Unavailable) or isinstance(estimate.elapsed_seconds, Unavailable) or bill.lost_share < 0.1:
        return ""
    return f" With checkpoints and interruptions it lasts {show_duration(estimate.elapsed_seconds)}."


def elapsed(estimate: Estimate) -> Range:
    """Return the seconds of the training steps as an interval."""
    if isinstance(estimate.seconds, Unavailable):
        return estimate.seconds
    return around(estimate.seconds, low=estimate.seconds_low, high=estimate.seconds_high)


def bill_of_plan(plan: Priced) -> Bill:
    """Return the plan's bill; of a plan from before there was one, its likely figures alone."""
    estimate = plan.estimate
    if estimate.bill is not None:
        return estimate.bill
    older = Unavailable("the plan is from before this figure was counted")
    flat = [around(figure, low=figure, high=figure) for figure in (estimate.device_hours, estimate.usd, estimate.kwh, estimate.kg_co2e)]
    return Bill(flat[0], flat[1], older, older, flat[2], flat[3], older, older, older, older)


def money_lines(plan: Priced) -> list[str]:
    """Return time, device use, cost, energy, carbon, what comes on top, and when it stops."""
    bill, tariff, estimate = bill_of_plan(plan), plan.tariff, plan.estimate
    seconds = elapsed(estimate)
    if isinstance(seconds, Unavailable):
        time = str(seconds)
    else:
        time = f"{show_durations(seconds.likely, seconds.low, seconds.high)}, for the training steps"
    dated = f", {tariff.price_date}" if tariff.price_date else ""
    price = f"{_figure(tariff.usd_per_device_hour)} USD a device-hour{dated}: {tariff.price_source}"
    power = f"{_figure(tariff.watts_per_device)} W a device with its part of the node, x PUE {_figure(tariff.pue)}"

    def shown(found: Range, unit: str) -> str:
        same = isinstance(seconds, Unavailable) and found == seconds
        return "unknown without the time" if same else show_range(found, unit)

    grid = f"{_figure(tariff.grid_g_co2e_per_kwh)} g/kWh: {tariff.grid_source}"
    return [
        *field("time", time),
        *field("device use", shown(bill.device_hours, "device-hours")),
        *field("cost", shown(bill.usd, "USD") + _because(bill.usd, price)),
        *_storage(bill, plan),
        *field("energy", shown(bill.kwh, "kWh") + _because(bill.kwh, power)),
        *field("carbon", f"{shown(bill.kg_location, 'kg CO2e')}, location-based" + _because(bill.kg_location, grid)),
        *field("", f"- market-based: {shown(bill.kg_market, 'kg CO2e')}" + _because(bill.kg_market, tariff.market_source)),
        *_embodied(bill, plan),
        *_on_top(bill, seconds),
        *_stops(plan),
    ]


def _because(found: Range, why: str) -> str:
    return "" if isinstance(found, Unavailable) or not why else f" ({why})"


def _figure(figure: Figure) -> str:
    return "unknown" if isinstance(figure, Unavailable) else f"{figure:.4g}"


def _storage(bill: Bill, plan: Priced) -> list[str]:
    if isinstance(bill.stored_gb, Unavailable):
        return []
    tariff = plan.tariff
    kept = f"{show_amount(bill.stored_gb)} GB of checkpoints, weights and token files"
    if isinstance(bill.storage_usd, Unavailable):
        return field("", f"- storage of {kept}: {bill.storage_usd}")
    return field(
        "",
        f"- storage of {kept} for {_figure(tariff.keep_months)} months: {show_range(bill.storage_usd, 'USD')}"
        f" ({_figure(tariff.usd_per_gb_month)} USD a GB-month, {tariff.storage_date}: {tariff.storage_source})",
    )


def _embodied(bill: Bill, plan: Priced) -> list[str]:
    if isinstance(bill.kg_embodied, Unavailable):
        return []
    return field("", f"- making of the machines: {show_range(bill.kg_embodied, 'kg CO2e')} ({plan.tariff.embodied_source})")


def _on_top(bill: Bill, seconds: Range) -> list[str]:
    lost, more = bill.lost_share, bill.allowance
    lines = []
    if isinstance(lost, Unavailable):
        lines.append(f"checkpoints and interruptions: {'unknown without the time' if lost == seconds else lost}")
    elif lost < 2:
        lines.append(f"checkpoints and interruptions: {lost:.1%} more")
    else:  # a short run that saves after every few steps
        lines.append(f"checkpoints and interruptions: {show_amount(lost)} times the training steps' own")
    if isinstance(more, Unavailable):
        lines.append(f"development and failed runs: {more}")
    else:
        ends = "" if more.low == more.high else f" likely, {more.low:.0%} to {more.high:.0%}"
        lines.append(f"development and failed runs: {more.likely:.0%} more{ends} ({bill.allowance_source})")
    if not (isinstance(lost, Unavailable) and isinstance(more, Unavailable)):
        amounts = [
            show_range(with_lost_and_allowance(found, bill), unit)
            for found, unit in ((bill.usd, "USD"), (bill.kwh, "kWh"), (bill.kg_location, "kg CO2e"))
            if not isinstance(found, Unavailable)
        ]
        if amounts:
            lines.append("with what is known of these: " + "; ".join(amounts))
    found = [line for text in lines for line in field("", f"- {text}")]
    return [f"{'on top':<12}" + found[0].strip(), *found[1:]]


def _stops(plan: Priced) -> list[str]:
    stop, layout = plan.stop, plan.layout
    ends = [f"{show_count(plan.estimate.tokens)} tokens"]
    if stop.max_tokens is not None and stop.max_tokens < plan.num_tokens:
        ends = [f"{show_count(stop.max_tokens)} tokens of the {show_count(plan.num_tokens)} planned"]
    after = clock_limits(stop, plan.tariff, num_ranks=layout.num_ranks)
    for key, value, unit in (("max_hours", stop.max_hours, "h"), ("max_usd", stop.max_usd, "USD"), ("max_kwh", stop.max_kwh, "kWh")):
        if value is not None:
            reached = after[f"stop.{key}"]
            when = "" if unit == "h" or isinstance(reached, Unavailable) else f" (after {show_duration(reached)})"
            ends.append(f"{value:,g} {unit}{when}")
    for score in stop.scores:
        bound = f"at most {score.at_most:g}" if score.at_most is not None else f"at least {score.at_least:g}"
        ends.append(f"{score.of} {bound} {score.metric}")
    lines = field("stops at", ", or ".join(ends) + "; it saves and exits with 6 at a limit")
    early = _high_end_over(plan)
    return lines + (field("", f"- {early}") if early else [])


def _high_end_over(plan: Priced) -> str:
    """Return which limit would end a run as slow or dear as the high end, though the likely one stays within it."""
    bill = bill_of_plan(plan)
    stop = plan.stop
    seconds = elapsed(plan.estimate)
    hours: Range = (
        seconds if isinstance(seconds, Unavailable) else Interval(*(value / 3600 for value in (seconds.low, seconds.likely, seconds.high)))
    )
    over = [
        f"{unit} ({show_amount(found.high)} against {limit:,g})"
        for unit, limit, found in (("hours", stop.max_hours, hours), ("USD", stop.max_usd, bill.usd), ("kWh", stop.max_kwh, bill.kwh))
        if limit is not None and isinstance(found, Interval) and found.high > limit
    ]
    return f"NOTE: at the high end the limit comes before the last token: {', '.join(over)}" if over else ""
