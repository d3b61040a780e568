"""The figures of a run as text, number and reason, for every form of the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.meter.totals import WHOLE, StageTotals, Total
from megatron_cpt.plan.page import show_duration
from megatron_cpt.record.unknown import Figure, Unavailable, show
from megatron_cpt.report.comparison.entry import Entry
from megatron_cpt.report.comparison.groups import Placed
from megatron_cpt.report.comparison.measures import Measured


@dataclass(frozen=True)
class Shown:
    """A figure: its text for a narrow cell, its number or None, and why it is unknown or not whole."""

    text: str
    value: float | None = None
    reason: str = ""


def of_figure(figure: Figure, pattern: str) -> Shown:
    if isinstance(figure, Unavailable):
        return Shown("unknown", None, figure.reason)
    return Shown(show(figure, pattern), figure)


def of_change(measured: Measured) -> Shown:
    if isinstance(measured, Unavailable):
        return Shown("unknown", None, measured.reason)
    return Shown(f"{measured.value:+.4f} ({measured.low:+.4f} to {measured.high:+.4f})", measured.value)


def of_total(total: Total | None, pattern: str = "{:.4g}", scale: float = 1.0) -> Shown:
    """Return a sum over attempts; one that is not of all of them says so in its reason."""
    if total is None:
        return Shown("unknown", None, "no attempt is on the bill")
    text, _, words = total.show(pattern, scale).partition(" (")
    return Shown(text, total.value * scale if total.num_known else None, words.removesuffix(")"))


def duration_of(bill: StageTotals | None) -> Shown:
    shown = of_total(bill.seconds if bill else None)
    if shown.value is None:
        return shown
    bound = "at least " if bill and bill.seconds.num_lower_bounds else ""
    return Shown(f"{bound}{show_duration(shown.value)}", shown.value, shown.reason)


BILL: tuple[tuple[str, str, Callable[[StageTotals], Total], float], ...] = (
    ("device_hours", "device-hours", lambda bill: bill.device_seconds, 1 / 3600),
    ("usd", "USD", lambda bill: bill.usd, 1.0),
    ("kwh", "kWh at the meters", lambda bill: bill.joules, 1 / JOULES_PER_KWH),
    ("site_kwh", "kWh with PUE", lambda bill: bill.site_kwh, 1.0),
    ("g_co2e", "g CO2e", lambda bill: bill.g_co2e, 1.0),
)


def bill_of(entry: Entry, stage: str = WHOLE) -> dict[str, Shown]:
    """Return what a stage, or the whole run, took over all its attempts, by the keys of `BILL` and `seconds`."""
    bill = entry.total(stage)
    return {"seconds": duration_of(bill), **{key: of_total(pick(bill) if bill else None, scale=scale) for key, _, pick, scale in BILL}}


def figures_of(run: Placed) -> dict[str, Shown]:
    """Return the figures of the main table: what was gained and forgotten, and what training took."""
    entry, bill = run.entry, bill_of(run.entry, "train")
    return {
        "gain": of_change(run.gain),
        "forgetting": of_change(run.forgetting),
        "tokens": of_figure(entry.tokens, "{:,.0f}"),
        "seconds": bill["seconds"],
        "usd": bill["usd"],
        "kwh": bill["kwh"],
        "g_co2e": bill["g_co2e"],
        "bytes_per_token": of_figure(entry.bytes_per_token("domain"), "{:.3f}"),
    }


class Notes:
    """Reasons below a table, each once, that cells refer to by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, shown: Shown) -> str:
        """Return the text with the number of its reason."""
        if not shown.reason:
            return shown.text
        if shown.reason not in self.texts:
            self.texts.append(shown.reason)
        return f"{shown.text} [{self.texts.index(shown.reason) + 1}]"
