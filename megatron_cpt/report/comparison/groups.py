"""Puts runs that were measured on the same base and items into groups, with their figures and the front of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from megatron_cpt.meter.ledger import JOULES_PER_KWH
from megatron_cpt.meter.totals import StageTotals, Total
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.report.comparison.entry import Entry
from megatron_cpt.report.comparison.front import dominators
from megatron_cpt.report.comparison.measures import (
    Axis,
    Change,
    Measured,
    axis_of,
    base_figure,
    change_between,
    change_of,
    excluded_items,
    identity_of,
)
from megatron_cpt.report.comparison.settings import Differing, differing

GAIN, FORGETTING = "domain", "general"  # the groups of rules that the two axes are made of
BASE_TOLERANCE = 1e-3  # bits per byte, or a share: layouts and threads move a base's own figure by less (docs/reference/evaluation.md)
COSTS: tuple[tuple[str, Callable[[StageTotals], Total], float], ...] = (
    ("USD of training", lambda bill: bill.usd, 1.0),
    ("kWh of training at the meters", lambda bill: bill.joules, 1 / JOULES_PER_KWH),
    ("device-hours of training", lambda bill: bill.device_seconds, 1 / 3600),
)


@dataclass(frozen=True)
class Lead:
    """What a run that dominates another has over it, item by item: how much more it gained, and how much less it forgot."""

    name: str
    gain: Measured
    forgetting: Measured

    @property
    def is_sure(self) -> bool:
        """Whether the interval of one of the two lies above 0, and the other's does not lie below."""
        known = [each for each in (self.gain, self.forgetting) if isinstance(each, Change)]
        return len(known) == 2 and any(each.low > 0 for each in known) and all(each.high >= 0 for each in known)


@dataclass(frozen=True)
class Placed:
    """A run in its group; `ahead` are the runs on the front that dominate it; None: without a point, empty: on it."""

    entry: Entry
    gain: Measured
    forgetting: Measured
    cost: Figure
    ahead: tuple[Lead, ...] | None = None

    @property
    def is_on_front(self) -> bool:
        return self.ahead == ()

    @property
    def is_surely_behind(self) -> bool:
        """Whether a run's lead over this one is more than chance of the items would give."""
        return any(lead.is_sure for lead in self.ahead or ())

    @property
    def standing(self) -> str:
        if self.ahead is None:
            return "no point"
        if not self.ahead:
            return "on the front"
        return f"{'surely behind' if self.is_surely_behind else 'behind, but not surely'}: {', '.join(lead.name for lead in self.ahead)}"


@dataclass(frozen=True)
class Group:
    """Runs with the same base and items; `cost_name` says which figure stands for cost, the first that all of them know."""

    identity: dict[str, Any]
    settings: Differing
    gain: Axis
    forgetting: Axis
    cost_name: str
    runs: tuple[Placed, ...]
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return sha256_plain(self.identity)

    @property
    def base_name(self) -> str:
        """The folder's name of the base, and the beginning of the digest of its weights."""
        found = (run.entry.baseline["subjects"]["base"].get("checkpoint") for run in self.runs)
        name = next((PurePath(str(path)).name for path in found if path), "")
        return f"{name} ({self.identity['base'][:12]})" if name else str(self.identity["base"][:12])

    @property
    def front(self) -> tuple[Placed, ...]:
        """The runs on the front, the largest gain first."""
        return tuple(sorted((run for run in self.runs if run.is_on_front), key=lambda run: -point_of(run.gain)))


def point_of(measured: Measured) -> float:
    """Return the point value of a figure of a run that has a point."""
    assert isinstance(measured, Change)
    return measured.value


@dataclass(frozen=True)
class Comparison:
    """All runs in the order asked for, with the settings of all of them; `waiting` are those of no group, each with the reason."""

    entries: tuple[Entry, ...]
    settings: Differing
    groups: tuple[Group, ...]
    waiting: tuple[tuple[Entry, str], ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read runs and set those against each other that can be."""
    entries = tuple(Entry.read(folder, name=name) for folder, name in zip(folders, names_of(folders), strict=True))
    by_print: dict[str, list[tuple[Entry, dict[str, Any]]]] = {}
    waiting = []
    for entry in entries:
        identity = _identity(entry)
        if isinstance(identity, Unavailable):
            waiting.append((entry, identity.reason))
        else:
            by_print.setdefault(sha256_plain(identity), []).append((entry, identity))
    groups = tuple(_group([entry for entry, _ in same], same[0][1]) for same in by_print.values())
    return Comparison(entries, _settings(entries), groups, tuple(waiting))


def _settings(entries: Sequence[Entry]) -> Differing:
    return differing(
        [entry.name for entry in entries], [(entry.settings, entry.records.manifests if entry.records else {}) for entry in entries]
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, with the folder above where two would be the same."""
    names = [folder.name for folder in folders]
    return [f"{folder.parent.name}/{folder.name}" if names.count(folder.name) > 1 else folder.name for folder in folders]


def _identity(entry: Entry) -> dict[str, Any] | Unavailable:
    if entry.records is None:
        return Unavailable(entry.state.detail)
    if entry.plan is None:
        return Unavailable("it has no plan yet")
    axes = [axis_of(entry.plan, group) for group in (GAIN, FORGETTING)]
    for axis in axes:
        if not axis.rules:
            return Unavailable(f"its plan has no rule on {axis.group}")
    return identity_of(entry.plan, entry.baseline, axes)


def _group(entries: Sequence[Entry], identity: dict[str, Any]) -> Group:
    plans = [entry.plan for entry in entries]
    assert plans[0] is not None
    gain, forgetting = axis_of(plans[0], GAIN), axis_of(plans[0], FORGETTING)
    records = [record for entry in entries for record in (entry.baseline, entry.candidate or {})]
    exclude = {rule.of: excluded_items(records, rule) for axis in (gain, forgetting) for rule in axis.rules}
    cost_name, costs = _costs(entries)
    placed = []
    for entry, cost in zip(entries, costs, strict=True):
        assert entry.plan is not None
        first, second = (change_of(axis, entry.plan.gate, entry.baseline, entry.candidate, exclude=exclude) for axis in (gain, forgetting))
        placed.append(Placed(entry, first.gain if isinstance(first, Change) else first, second, cost))
    points = {
        run.entry.name: (point_of(run.gain), point_of(run.forgetting))
        for run in placed
        if isinstance(run.gain, Change) and isinstance(run.forgetting, Change)
    }
    by_name, above, axes = {run.entry.name: run for run in placed}, dominators(points), (gain, forgetting)
    front = [name for name, others in above.items() if not others]
    ahead = {name: tuple(_lead(by_name[other], by_name[name], axes, exclude) for other in front if other in above[name]) for name in above}
    runs = tuple(replace(run, ahead=ahead.get(run.entry.name)) for run in placed)
    return Group(identity, _settings(entries), gain, forgetting, cost_name, runs, tuple(_notes(entries, axes, exclude)))


def _lead(one: Placed, other: Placed, axes: tuple[Axis, Axis], exclude: dict[str, set[str]]) -> Lead:
    """Return the lead of one run over another by their scores on the same items."""
    assert one.entry.plan is not None
    gate, before, after = one.entry.plan.gate, other.entry.candidate or {}, one.entry.candidate or {}
    gain, forgetting = (change_between(axis, gate, before, after, exclude=exclude) for axis in axes)
    return Lead(one.entry.name, *(each.gain if isinstance(each, Change) else each for each in (gain, forgetting)))


def _costs(entries: Sequence[Entry]) -> tuple[str, list[Figure]]:
    """Return the first kind of cost that every run that trained knows as a whole, else device-hours; and each run's figure."""
    bills = [entry.total("train") for entry in entries]
    for name, pick, scale in COSTS:
        figures = [_whole(pick(bill), scale) if bill else Unavailable("it has not trained") for bill in bills]
        if all(isinstance(figure, float) for figure, bill in zip(figures, bills, strict=True) if bill) or name == COSTS[-1][0]:
            return name, figures
    raise AssertionError("the last kind is always taken")


def _whole(total: Total, scale: float) -> Figure:
    if total.num_known == 0 or total.num_known < total.num_attempts or total.share_measured:
        return Unavailable("; ".join(total.reasons) or "no attempt")
    return total.value * scale


def _notes(entries: Sequence[Entry], axes: Sequence[Axis], exclude: dict[str, set[str]]) -> list[str]:
    notes = []
    for of, items in exclude.items():
        if items:
            notes.append(f"{len(items)} of the items of {of} overlap with the training data of a run, and are left out in every run.")
    for axis in axes:
        found = {entry.name: figure for entry in entries if (figure := base_figure(axis, entry.baseline)) is not None}
        if found and max(found.values()) - min(found.values()) > BASE_TOLERANCE:
            listed = ", ".join(f"{name} {figure:.4f}" for name, figure in found.items())
            notes.append(f"The base itself scored differently on {axis.title}: {listed}. Another number format or machine can do that.")
    shared: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        taken = entry.taken_over()
        for run in dict.fromkeys(taken.values()):
            shared.setdefault((run, ", ".join(stage for stage in taken if taken[stage] == run)), []).append(entry.name)
    notes += [f"{', '.join(names)} took {stages} over from {run}, whose bill has them." for (run, stages), names in shared.items()]
    return notes
