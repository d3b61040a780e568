"""The account of a run as text: every stage's totals, planned against actual, and the reasons of the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_cpt.meter.difference import Difference
from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.meter.totals import WHOLE, StageTotals, Total
from megatron_cpt.record.unknown import Amount, Unavailable

UNITS = {"seconds": ("time", "s"), "usd": ("cost", "USD"), "kwh": ("energy with PUE", "kWh")}

_KG = "{:.4g} kg CO2e"
_HOURS_FROM = 7200.0  # seconds from which on times are told in hours


def account_text(run: str, stages: Sequence[StageTotals], *, differences: Mapping[str, Difference | Unavailable] | None = None) -> str:
    """Return the totals of one run, a paragraph a stage, and why they differ from the plan where it is given."""
    lines = [f"{run}"]
    if not stages or not stages[-1].num_by_status:
        return f"{run}\n  no attempt is recorded\n"
    for part in stages:
        ends = ", ".join(f"{count} {status}" for status, count in part.num_by_status.items())
        lines += [
            f"  {part.stage}: {ends}",
            f"    time    {_time(part)}",
            f"    devices {part.device_seconds.show('{:.4g} device-hours', 1 / 3600)}",
            *([f"    tokens  {part.tokens:,}{_planned(part, 'tokens', '{:,.0f}')}"] if part.tokens and part.stage != WHOLE else []),
            *([f"    lost    {part.lost_tokens:,} of these tokens: read, and in no weights"] if _shows_loss(part) else []),
            f"    energy  {part.joules.show('{:.4g} kWh', 1 / JOULES_PER_KWH)}",
            *_estimate(part),
            f"    site    {_from_energy(part, part.site_kwh, '{:.4g} kWh with PUE')}{_planned(part, 'kwh', '{:.4g} kWh')}",
            f"    carbon  {_from_energy(part, part.g_co2e, _KG, 1 / 1000)}{_planned(part, 'g_co2e', _KG, 1 / 1000)}",
            f"    cost    {part.usd.show('{:.4g} USD')}{_planned(part, 'usd', '{:.4g} USD')}",
            *_jumps(part),
        ]
    methods = dict.fromkeys(method for part in stages for method in part.estimate_methods)
    notes = [f"  {method}; in no other figure" for method in methods]
    return "\n".join([*lines, *notes, *difference_lines(differences or {})]) + "\n"


def difference_lines(differences: Mapping[str, Difference | Unavailable]) -> list[str]:
    """Return, for each figure of the plan, the difference and the reasons that add up to it, the largest first."""
    told = {key: each for key, each in differences.items() if isinstance(each, Difference)}
    if not told:
        return []
    lines = ["  why not as planned (the reasons of a figure add up to its difference)"]
    for key, each in told.items():
        name, unit = UNITS[key]
        scale = 1.0
        if key == "seconds" and max(each.planned, each.actual) >= _HOURS_FROM:
            scale, unit = 1 / 3600, "h"
        outside = f"; {each.num_outside} attempts without a recorded time are not in it" if each.num_outside else ""
        planned, actual, more = (Amount(value * scale) for value in (each.planned, each.actual, each.actual - each.planned))
        lines.append(f"    {name}: planned {planned:.4g}, actual {actual:.4g} {unit}, {more:+.4g}{outside}")
        least = 1e-9 * max(abs(each.planned), abs(each.actual))  # what is left of rounding
        reasons = sorted(((value, reason) for reason, value in each.parts.items() if abs(value) > least), key=lambda part: -abs(part[0]))
        lines += [f"      {Amount(value * scale):+.4g} {unit}  {reason}" for value, reason in reasons]
    return lines


def _time(part: StageTotals) -> str:
    """Return the time and the plan's, both in hours where it took two or more."""
    scale, pattern = (1 / 3600, "{:.4g} h") if part.seconds.value >= _HOURS_FROM else (1.0, "{:,.1f} s")
    return part.seconds.show(pattern, scale) + _planned(part, "seconds", pattern, scale)


def _estimate(part: StageTotals) -> list[str]:
    if not part.num_estimated:
        return []
    kwh, attempts = part.estimated_joules / JOULES_PER_KWH, _attempts(part.num_estimated)
    return [f"            estimated {Amount(kwh):.4g} kWh of CPU in {attempts}"]


def _attempts(number: int) -> str:
    return "1 attempt" if number == 1 else f"{number:,} attempts"


def _from_energy(part: StageTotals, total: Total, pattern: str, scale: float = 1.0) -> str:
    """Return a figure that is made from the energy; where that is unknown altogether, its reasons are not told again."""
    return total.show(pattern, scale) if part.joules.num_known else "unknown, as the energy"


def _jumps(part: StageTotals) -> list[str]:
    if not part.clock_jumps or part.stage == WHOLE:
        return []
    largest = max(part.clock_jumps, key=abs)
    return [
        f"    clock   set, or the machine slept, in {_attempts(len(part.clock_jumps))}, by {largest:+,.0f} s at most; "
        "times are by a clock that does not jump"
    ]


def _shows_loss(part: StageTotals) -> bool:
    return part.lost_tokens > 0 and part.stage != WHOLE


def _planned(part: StageTotals, key: str, pattern: str, scale: float = 1.0) -> str:
    if part.planned is None or part.stage == WHOLE:
        return ""
    figure = part.planned.get(key, Unavailable("not recorded"))
    return f"  | planned {figure if isinstance(figure, Unavailable) else pattern.format(Amount(figure * scale))}"
