"""The trained model of each run against that of one run of its group, on the same items.

Two intervals against the base say little of how two runs differ: what makes an item hard moves both. Here each item's difference between
the two trained models is taken, as the gate takes it between a run and its base, so that this cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.report.comparison.entry import Entry
from megatron_cpt.report.comparison.groups import Comparison, Group
from megatron_cpt.report.comparison.measures import NOT_SCORED, Axis, Change, Measured, change_between, excluded_items

EXPLAINED = (
    "What a run's trained model has more than that of {reference}, item by item on the items of both. An interval holds what other items "
    "would change, not what another seed would; it is not widened for the number of runs."
)


@dataclass(frozen=True)
class Difference:
    """A run minus the reference: a positive gain is the run's advantage, a positive forgetting its disadvantage."""

    name: str
    gain: Measured
    forgetting: Measured


@dataclass(frozen=True)
class Against:
    """The differences of the other runs of a group to its run `reference`; none where the reference is in another group."""

    reference: str
    differences: tuple[Difference, ...]

    @classmethod
    def of(cls, group: Group, reference: str) -> Against:
        """Set the runs of a group against one of them."""
        found = {run.entry.name: run.entry for run in group.runs}
        if reference not in found:
            return cls(reference, ())
        rows = []
        for name, entry in found.items():
            if name == reference:
                continue
            gain, forgetting = (_difference(group, axis, entry, found[reference]) for axis in (group.gain, group.forgetting))
            rows.append(Difference(name, gain.gain if isinstance(gain, Change) else gain, forgetting))
        return cls(reference, tuple(rows))

    @property
    def explained(self) -> str:
        return EXPLAINED.format(reference=self.reference)


def against_in(comparison: Comparison, reference: str | None) -> dict[int, Against]:
    """Return the differences by the place of their group, for groups with another run beside the reference."""
    if reference is None:
        return {}
    found = {number: Against.of(group, reference) for number, group in enumerate(comparison.groups)}
    return {number: against for number, against in found.items() if against.differences}


def _difference(group: Group, axis: Axis, run: Entry, reference: Entry) -> Measured:
    if reference.candidate is None or run.plan is None:
        return NOT_SCORED if run.candidate is None else Unavailable(f"{reference.name}: {NOT_SCORED.reason}")
    records = [record for each in group.runs for record in (each.entry.baseline, each.entry.candidate or {})]
    exclude = {rule.of: excluded_items(records, rule) for rule in axis.rules}
    return change_between(axis, run.plan.gate, reference.candidate, run.candidate, exclude=exclude)
