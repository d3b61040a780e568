#!/usr/bin/env python3
"""Print what runs took: totals by stage of their ledgers, planned against actual."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_cpt.meter.account import account_csv, account_text
from megatron_cpt.meter.ledger import LEDGER_NAME
from megatron_cpt.meter.totals import attempts_of, totals_by_stage


def main(arguments: list[str] | None = None) -> int:
    """Print the totals of the named runs; return 2 when one of them has no ledger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", nargs="+", type=Path, help="a run's folder, which holds ledger.jsonl")
    parser.add_argument("--csv", action="store_true", help="one CSV row a run and stage")
    options = parser.parse_args(arguments)
    missing = [run_dir for run_dir in options.run_dir if not (run_dir / LEDGER_NAME).is_file()]
    if missing:
        sys.stderr.write("".join(f"{run_dir}: no {LEDGER_NAME} here. Name a run's folder, e.g. runs/quickstart\n" for run_dir in missing))
        return 2
    rows = [(run_dir.resolve().name, totals_by_stage(attempts_of(run_dir))) for run_dir in options.run_dir]
    sys.stdout.write(account_csv(rows) if options.csv else "\n".join(account_text(run, stages) for run, stages in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
