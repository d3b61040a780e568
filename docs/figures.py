"""Write the tables of the documents that are made from records, and say which commands measure the records anew.

    python docs/figures.py            # write every table from its record
    python docs/figures.py --check    # write nothing; fail when a page does not show what its record holds
    python docs/figures.py --how      # print the commands that measure the records anew, in minutes to hours

A table stands between two marks in its page, `<!-- figures: NAME -->` and `<!-- end of figures -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "measured" / "vocabulary-figures"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from row_rules import table as table_of_rules  # noqa: E402  # found by the line above

PROBE = "python benchmarks/row_rules.py runs/rows --seed 1234 --sequences 1 --sequence-length 128 --held-out-tokens 2048 --bytes 4000"
UNTIED = " ".join(f"--rule mean/{rule}" for rule in ("mean_norm", "noise", "gaussian", "weighted"))


@dataclass(frozen=True)
class Shown:
    """One table of a page: the record that it is made of, how, and what measures the record anew."""

    name: str
    page: str
    record: Path
    make: Callable[[Any], str]
    measured_by: str

    def text(self) -> str:
        return self.make(json.loads(self.record.read_text(encoding="utf-8")))


SHOWN = (
    Shown(
        "row_rules", "docs/reference/vocabulary-rows.md", RECORDS / "row_rules.json", table_of_rules,
        "python benchmarks/row_rules.py runs/rows --steps 50 --sequences 1 --sequence-length 128 --bytes 6000"
        " --rule base --rule mean --rule mean_norm --rule noise --rule weighted --rule gaussian --rule fitted",
    ),
    Shown(
        "row_probe", "docs/reference/vocabulary-rows.md", RECORDS / "row_probe.json", table_of_rules,
        f"{PROBE} --rule base --rule mean --rule mean_norm --rule fitted",
    ),
    Shown(
        "row_rules_untied", "docs/reference/vocabulary-rows.md", RECORDS / "row_rules_untied.json", table_of_rules,
        f"{PROBE} --untied --steps 0 --rule base --rule mean {UNTIED}",
    ),
)  # fmt: skip


def with_tables(page: str, text: str) -> str:
    """Return a page with its tables as their records have them."""
    for shown in SHOWN:
        if shown.page == page:
            marks = (f"<!-- figures: {shown.name} -->", "<!-- end of figures -->")
            pattern = rf"({re.escape(marks[0])}\n).*?(\n{re.escape(marks[1])})"
            text, number = re.subn(pattern, lambda found, shown=shown: f"{found[1]}\n{shown.text()}\n{found[2]}", text, flags=re.DOTALL)
            assert number == 1, (page, shown.name)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Write or check the tables, the page of estimates included."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page does not show what its record holds")
    parser.add_argument("--how", action="store_true", help="print the commands that measure the records anew")
    options = parser.parse_args(arguments)
    if options.how:
        print("megatron-cpt run --until index experiment=quickstart run_name=rows tokenizer.num_new_pieces=512")
        print("\n".join(f"{shown.measured_by} --output {shown.record.relative_to(ROOT)}" for shown in SHOWN))
        return 0
    stale = []
    for page in dict.fromkeys(shown.page for shown in SHOWN):
        old = (ROOT / page).read_text(encoding="utf-8")
        new = with_tables(page, old)
        stale += [page] if new != old else []
        if not options.check:
            (ROOT / page).write_text(new, encoding="utf-8")
    if options.check:
        for page in stale:
            print(f"{page} does not show what its records hold; run python docs/figures.py", file=sys.stderr)
    estimates = [sys.executable, str(ROOT / "tools" / "validate_estimates.py"), *(["--check"] if options.check else [])]
    return subprocess.run(estimates, cwd=ROOT, check=False).returncode or int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
