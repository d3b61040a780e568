"""One finding of the doctor, and how findings are told to a person or a program."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from megatron_cpt.errors import printable

State = Literal["good", "note", "warning", "bad"]
MARKS: dict[State, str] = {"good": "ok", "note": "-", "warning": "warn", "bad": "FAIL"}
WIDTH = 100
_INDENT = 25


@dataclass(frozen=True)
class Finding:
    """What was looked at and found.

    Attributes:
        state: `good`; `note` where something optional is absent or cannot be known; `warning` where a run starts, but not as it should;
            `bad` where it cannot start.
        means: what follows for a run.
        mend: a command or a key that changes it; empty where nothing needs to.
    """

    check: str
    state: State
    found: str
    means: str = ""
    mend: str = ""


def can_start(findings: Sequence[Finding]) -> bool:
    return all(finding.state != "bad" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """Return one JSON object: `can_start`, and the findings in order."""
    return json.dumps({"can_start": can_start(findings), "findings": [asdict(each) for each in findings]}, ensure_ascii=False, indent=1)


def as_page(findings: Sequence[Finding], *, asked_for: str) -> str:
    """Return a page of at most 100 columns; `asked_for` names what was judged."""
    lines = []
    for finding in findings:
        head = f"{MARKS[finding.state]:<5}{finding.check:<{_INDENT - 5}}"
        lines += textwrap.wrap(printable(finding.found), WIDTH, initial_indent=head, subsequent_indent=" " * _INDENT)
        if finding.means:
            lines += textwrap.wrap(printable(finding.means), WIDTH, initial_indent=" " * _INDENT, subsequent_indent=" " * _INDENT)
        if finding.mend:
            # commands stay on one line, so that they can be copied
            lines.append(f"{' ' * _INDENT}mend: {printable(finding.mend)}")
    bad, warned = (sum(each.state == state for each in findings) for state in ("bad", "warning"))
    end = f"{asked_for} can start here" if not bad else f"{asked_for} cannot start here: {bad} of {len(findings)} findings forbid it"
    lines += ["", f"{end}{f'; {warned} warnings' if warned > 1 else '; 1 warning' if warned else ''}."]
    return "\n".join(lines) + "\n"
