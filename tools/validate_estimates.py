#!/usr/bin/env python3
"""Hold the planner's estimates against published figures and write the table of errors to docs/measured/estimates.md.

Usage: validate_estimates.py [--check | --print]

Exit status 1 when a row lies outside its tolerance, or, with --check, when the page is not what this script writes.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from estimate_checks import Check, Group, Mean, groups

PAGE = Path(__file__).resolve().parents[1] / "docs" / "measured" / "estimates.md"
HEAD = """# How far the estimates are from published figures

This page is written by `python tools/validate_estimates.py`; the figures of others lie in `tests/data/published/`, each row with its
source. An error is ours less the published figure. No constant of the planner was fitted to a row: what is left is printed as it is.
A row whose published figure contradicts itself, or that measures what the planner does not describe, is named with the reason and
decides nothing.
"""


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _row(check: Check) -> str:
    error = "" if math.isnan(check.ours) else f"{check.error:+.3g} {check.unit}" if check.absolute else f"{100 * check.error:+.2f} %"
    allowed = "" if check.tolerance is None else (f"{check.tolerance:g} {check.unit}" if check.absolute else f"{100 * check.tolerance:g} %")
    verdict = "left out" if check.excluded else ("" if check.tolerance is None else ("yes" if check.passes else "**no**"))
    cells = [
        check.id, check.what, f"{_figure(check.published)} {check.unit}", f"{_figure(check.ours)} {check.unit}", error, allowed, verdict,
        check.other, check.source,
    ]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _mean(mean: Mean) -> str:
    allowed = "" if mean.tolerance is None else f" (allowed: {100 * mean.tolerance:g} %)"
    counted = sum(not check.excluded for check in mean.checks)
    return f"- {mean.what}: mean absolute error **{100 * mean.value:.2f} %** over {counted} rows{allowed}."


def section(group: Group) -> str:
    """Return one group as Markdown."""
    lines = [f"## {group.title}", "", group.intro.strip(), ""]
    if group.checks:
        lines += ["| Row | What | Published | Ours | Error | Allowed | Within | Other tools | Source |", "| --- " * 9 + "|"]
        lines += [_row(check) for check in group.checks] + [""]
    if group.means:
        lines += [_mean(mean) for mean in group.means] + [""]
    left_out = [check for check in group.checks if check.excluded]
    if left_out:
        lines += ["Left out:", ""] + [f"- {check.id}: {check.excluded}" for check in left_out] + [""]
    if group.closing:
        lines += [group.closing.strip(), ""]
    return "\n".join(lines)


def page() -> tuple[str, list[str]]:
    """Return the page, and the rows and means that lie outside their tolerance."""
    found = list(groups())
    bad = [check.id for group in found for check in group.checks if not check.passes]
    bad += [mean.what for group in found for mean in group.means if not mean.passes]
    return "\n".join([HEAD] + [section(group) for group in found]), bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is not up to date")
    parser.add_argument("--print", action="store_true", help="write the page to standard output")
    options = parser.parse_args()
    text, bad = page()
    for row in bad:
        print(f"outside its tolerance: {row}", file=sys.stderr)
    if options.print:
        print(text, end="")
    elif not options.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is not what this script writes; run it without --check", file=sys.stderr)
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
