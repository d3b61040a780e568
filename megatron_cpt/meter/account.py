"""Ledger totals as text and as CSV, planned against actual."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from megatron_cpt.meter.totals import WHOLE, StageTotals, Total
from megatron_cpt.record.unknown import Figure, Unavailable

JOULES_PER_KWH = 3.6e6
CSV_FIELDS = (
    "run", "stage", "attempts", "seconds", "device_hours", "tokens", "kwh", "usd", "seconds_known", "kwh_known", "usd_known",
    "planned_seconds", "planned_tokens", "planned_kwh", "planned_usd", "unknown_because", "lost_tokens",
)  # fmt: skip


def account_text(run: str, stages: Sequence[StageTotals]) -> str:
    """Return the totals of one run, a paragraph a stage."""
    lines = [f"{run}"]
    if not stages or not stages[-1].num_by_status:
        return f"{run}\n  no attempt is recorded\n"
    for part in stages:
        ends = ", ".join(f"{count} {status}" for status, count in part.num_by_status.items())
        lines += [
            f"  {part.stage}: {ends}",
            f"    time    {part.seconds.show('{:,.1f} s')}{_planned(part, 'seconds', '{:,.1f} s')}",
            f"    devices {part.device_seconds.show('{:,.3f} device-hours', 1 / 3600)}",
            *([f"    tokens  {part.tokens:,}{_planned(part, 'tokens', '{:,.0f}')}"] if part.tokens and part.stage != WHOLE else []),
            *([f"    lost    {part.lost_tokens:,} of these tokens: read, and in no weights"] if _shows_loss(part) else []),
            f"    energy  {part.joules.show('{:,.4g} kWh', 1 / JOULES_PER_KWH)}{_planned(part, 'kwh', '{:,.4g} kWh')}",
            f"    cost    {part.usd.show('{:,.4g} USD')}{_planned(part, 'usd', '{:,.4g} USD')}",
        ]
    return "\n".join(lines) + "\n"


def _shows_loss(part: StageTotals) -> bool:
    return part.lost_tokens > 0 and part.stage != WHOLE


def _planned(part: StageTotals, key: str, pattern: str) -> str:
    if part.planned is None or part.stage == WHOLE:
        return ""
    figure = part.planned.get(key, Unavailable("not recorded"))
    return f"  | planned {figure if isinstance(figure, Unavailable) else pattern.format(figure)}"


def account_csv(rows: Sequence[tuple[str, Sequence[StageTotals]]]) -> str:
    """Return one CSV row a run and stage; an unknown figure is an empty field, with its reason in the last column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for run, stages in rows:
        for part in stages:
            planned: dict[str, Figure] = part.planned or {}
            reasons = dict.fromkeys((*part.seconds.reasons, *part.joules.reasons, *part.usd.reasons))
            writer.writerow([
                run, part.stage, sum(part.num_by_status.values()), _cell(part.seconds), _cell(part.device_seconds, 1 / 3600), part.tokens,
                _cell(part.joules, 1 / JOULES_PER_KWH), _cell(part.usd), _known(part.seconds), _known(part.joules), _known(part.usd),
                *(_planned_cell(planned, key) for key in ("seconds", "tokens", "kwh", "usd")), "; ".join(reasons), part.lost_tokens,
            ])  # fmt: skip
    return out.getvalue()


def _cell(total: Total, scale: float = 1.0) -> str:
    return f"{total.value * scale:.10g}" if total.num_known else ""


def _known(total: Total) -> str:
    return f"{total.num_known}/{total.num_attempts}"


def _planned_cell(planned: dict[str, Figure], key: str) -> str:
    figure = planned.get(key)
    return "" if figure is None or isinstance(figure, Unavailable) else f"{figure:.10g}"
