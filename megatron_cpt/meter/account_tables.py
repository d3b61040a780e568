"""Accounts over several runs: a table for people, CSV and JSON for programs. What is unknown is never shown as 0."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_cpt.meter.difference import Difference
from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.meter.totals import StageTotals, Total
from megatron_cpt.record.unknown import Amount, Figure, Unavailable

Rows = Sequence[tuple[tuple[str, ...], StageTotals]]
FIELDS = (
    "attempts", "seconds", "device_hours", "tokens", "kwh", "usd", "seconds_known", "kwh_known", "usd_known",
    "planned_seconds", "planned_tokens", "planned_kwh", "planned_usd", "unknown_because", "lost_tokens",
    "site_kwh", "g_co2e", "planned_g_co2e", "estimated_cpu_kwh", "lower_bounds", "ended",
)  # fmt: skip
COLUMNS = ("attempts", "time", "device-h", "tokens", "kWh metered", "kWh with PUE", "kg CO2e", "USD")


def account_csv(keys: Sequence[str], rows: Rows) -> str:
    """Return one CSV row a group; an unknown figure is an empty field, with its reason in `unknown_because`. No row is a sum of others."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*keys, *FIELDS])
    for name, part in rows:
        planned: dict[str, Figure] = part.planned or {}
        reasons = dict.fromkeys(
            (*part.seconds.reasons, *part.joules.reasons, *part.site_kwh.reasons, *part.g_co2e.reasons, *part.usd.reasons)
        )
        writer.writerow([
            *name, sum(part.num_by_status.values()), _cell(part.seconds), _cell(part.device_seconds, 1 / 3600), _tokens_of(keys, part),
            _cell(part.joules, 1 / JOULES_PER_KWH), _cell(part.usd), _known(part.seconds), _known(part.joules), _known(part.usd),
            *(_planned_cell(planned, key) for key in ("seconds", "tokens", "kwh", "usd")), "; ".join(reasons), part.lost_tokens,
            _cell(part.site_kwh), _cell(part.g_co2e), _planned_cell(planned, "g_co2e"),
            f"{part.estimated_joules / JOULES_PER_KWH:.10g}" if part.num_estimated else "", part.seconds.num_lower_bounds,
            " ".join(f"{status}:{count}" for status, count in part.num_by_status.items()),
        ])  # fmt: skip
    return out.getvalue()


def _cell(total: Total, scale: float = 1.0) -> str:
    return f"{total.value * scale:.10g}" if total.num_known else ""


def _known(total: Total) -> str:
    return f"{total.num_known}/{total.num_attempts}"


def _planned_cell(planned: dict[str, Figure], key: str) -> str:
    figure = planned.get(key)
    return "" if figure is None or isinstance(figure, Unavailable) else f"{figure:.10g}"


def account_json(
    keys: Sequence[str], rows: Rows, *, differences: Mapping[str, Mapping[str, Difference | Unavailable]], damage: Sequence[str] = ()
) -> str:
    """Return the groups with every figure as number or null, how many attempts it is of, and why the others are unknown."""
    groups = [
        {
            **dict(zip(keys, name, strict=True)),
            "attempts": part.num_by_status,
            "tokens": _tokens_of(keys, part),
            "lost_tokens": part.lost_tokens,
            "seconds": _figure(part.seconds),
            "device_hours": _figure(part.device_seconds, 1 / 3600),
            "kwh": _figure(part.joules, 1 / JOULES_PER_KWH),
            "site_kwh": _figure(part.site_kwh),
            "g_co2e": _figure(part.g_co2e),
            "usd": _figure(part.usd),
            "estimated_cpu_kwh": part.estimated_joules / JOULES_PER_KWH if part.num_estimated else None,
            "estimate_methods": list(part.estimate_methods),
            "planned": {key: _plain(figure) for key, figure in (part.planned or {}).items()} or None,
        }
        for name, part in rows
    ]
    why = {run: {key: _difference(each) for key, each in found.items()} for run, found in differences.items()}
    return json.dumps({"groups": groups, "differences": why, "damage": list(damage)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _figure(total: Total, scale: float = 1.0) -> dict[str, Any]:
    return {
        "value": total.value * scale if total.num_known else None,
        "known_attempts": total.num_known,
        "of_attempts": total.num_attempts,
        "lower_bounds": total.num_lower_bounds,
        "of_devices": total.share_measured or None,
        "unknown_because": list(total.reasons),
    }


def _plain(figure: Figure) -> Any:
    return {"unavailable": figure.reason} if isinstance(figure, Unavailable) else figure


def _difference(each: Difference | Unavailable) -> Any:
    if isinstance(each, Unavailable):
        return {"unavailable": each.reason}
    parts = {reason.partition(":")[0]: value for reason, value in each.parts.items()}
    return {"planned": each.planned, "actual": each.actual, "parts": parts, "attempts_without_time": each.num_outside}


def account_table(keys: Sequence[str], rows: Rows, whole: StageTotals) -> str:
    """Return a table with a row a group and a last one of all, and below it what its numbers in brackets say."""
    notes: list[str] = []
    names = [*(" ".join(name) for name, _ in rows), "all"]
    cells = [_row(part, notes, tokens=_tokens_of(keys, part)) for _, part in rows] + [_row(whole, notes, tokens=whole.trained_tokens)]
    head = [" ".join(keys), *COLUMNS]
    table = [head, *([name, *row] for name, row in zip(names, cells, strict=True))]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    rule = "-" * len(lines[0])
    lines = [lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:-1]), rule, lines[-1].rstrip()]
    lines += [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    if any(part.seconds.num_lower_bounds for _, part in rows):
        lines.append(">= at least: killed attempts count up to their last sign of life")
    if whole.num_estimated:
        kwh, plural = whole.estimated_joules / JOULES_PER_KWH, "" if whole.num_estimated == 1 else "s"
        methods = "; ".join(whole.estimate_methods)
        lines.append(f"CPU without a meter: {Amount(kwh):.4g} kWh in {whole.num_estimated} attempt{plural}, in no sum above ({methods})")
    return "\n".join(lines) + "\n"


def _tokens_of(keys: Sequence[str], part: StageTotals) -> int:
    return part.tokens if "stage" in keys else part.trained_tokens  # tokens of unlike stages do not add up


def _row(part: StageTotals, notes: list[str], *, tokens: int) -> list[str]:
    return [
        f"{sum(part.num_by_status.values()):,}",
        _short(part.seconds, notes, show=_hours),
        _short(part.device_seconds, notes, scale=1 / 3600),
        f"{tokens:,}" if tokens else "-",
        _short(part.joules, notes, scale=1 / JOULES_PER_KWH),
        _short(part.site_kwh, notes),
        _short(part.g_co2e, notes, scale=1 / 1000),
        _short(part.usd, notes),
    ]


def _short(total: Total, notes: list[str], *, scale: float = 1.0, show: Any = None) -> str:
    """Return a figure for a narrow cell; what is missing from it goes to the notes, each once."""
    value = total.value * scale
    text = "unknown" if not total.num_known else show(value) if show else f"{Amount(value):.4g}"
    text = f">={text}" if total.num_known and total.num_lower_bounds else text
    missing = total.num_known < total.num_attempts or total.share_measured
    if not missing:
        return text
    of = f"{total.num_known} of {total.num_attempts} attempts known" if 0 < total.num_known < total.num_attempts else ""
    of = "; ".join(filter(None, [f"of {total.share_measured}" if total.share_measured else "", of]))
    note = ": ".join(filter(None, [of, "; ".join(total.reasons)])) or "no attempt"
    if note not in notes:
        notes.append(note)
    return f"{text} [{notes.index(note) + 1}]"


def _hours(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,}:{rest // 60:02d}:{rest % 60:02d}"
