"""The command `account`: what runs took, from their ledgers and, when asked, from Slurm's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.meter.account import account_text
from megatron_cpt.meter.account_tables import account_csv, account_json, account_table
from megatron_cpt.meter.attempts import AttemptRecord, attempts_of, attempts_of_project
from megatron_cpt.meter.difference import Difference, differences
from megatron_cpt.meter.ledger import LEDGER_NAME
from megatron_cpt.meter.slurm import ask_sacct, import_jobs, jobs_of, parse_sacct
from megatron_cpt.meter.totals import GROUPS, WHOLE, totals, totals_by, totals_by_stage
from megatron_cpt.record.store import read_lines, read_lines_and_torn
from megatron_cpt.record.unknown import Unavailable

DESCRIPTION = """Print what runs took: time, devices, tokens, energy, carbon and money of every attempt, planned against actual.

reads:   the ledgers of runs; with --sacct or --ask-sacct what Slurm knows of their jobs
writes:  lines of Slurm's jobs into the ledgers, when it is asked; otherwise nothing
refuses: a folder without a ledger, a key that nothing can be grouped by"""
EXAMPLES = """examples:
  megatron-cpt account                          # every run of runs/, a row each
  megatron-cpt account runs/quickstart          # one run by stage, with the reasons why it is not as planned
  megatron-cpt account --by user,week --csv     # for a spreadsheet
  megatron-cpt account --ask-sacct              # first add what Slurm knows of jobs that died before they could write
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run_dir", nargs="*", type=Path, help=f"runs' folders, each with a {LEDGER_NAME}; none: all runs of --runs-dir")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="the folder of all runs (default: runs)")
    parser.add_argument("--by", metavar="KEY[,KEY]", help=f"a row for each {', '.join(GROUPS)} or combination; weeks are ISO weeks in UTC")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="one CSV row a group")
    shape.add_argument("--json", action="store_true", help="every figure with what is missing from it")
    parser.add_argument(
        "--sacct", metavar="FILE", type=Path, help="add what Slurm knows: a file of `sacct --duplicates --parsable2` output"
    )
    parser.add_argument("--ask-sacct", action="store_true", help="add what Slurm knows: run sacct for the jobs of these runs")


def run_account(options: argparse.Namespace) -> None:
    """Print the account.

    Raises:
        ConfigError: a key of `--by` is unknown.
        DataError: a folder has no ledger, or sacct's output cannot be used.
    """
    keys = _keys(options.by)
    run_dirs = _run_dirs(options)
    if options.sacct or options.ask_sacct:
        _import(run_dirs, options)
    damage = [line for run_dir in run_dirs for line in damage_of(run_dir / LEDGER_NAME)]
    if options.run_dir:
        records = [record for run_dir in run_dirs for record in attempts_of(run_dir)]
    else:
        damage += damage_of(options.runs_dir / LEDGER_NAME)
        records = attempts_of_project(options.runs_dir)
    of_run = {run: differences([record for record in records if record.run == run]) for run in dict.fromkeys(each.run for each in records)}
    for line in damage:
        print(line, file=sys.stderr)
    if options.csv or options.json:
        keys = keys or ["run", "stage"]
        rows = totals_by(records, keys)
        _say(account_csv(keys, rows) if options.csv else account_json(keys, rows, differences=of_run, damage=damage))
    elif options.run_dir and not keys:
        _say("\n".join(_text(records, run_dir.resolve().name, of_run) for run_dir in run_dirs))
    else:
        keys = keys or ["run"]
        _say(account_table(keys, totals_by(records, keys), totals(records, stage=WHOLE)) if records else "no attempt is recorded\n")


def _say(text: str) -> None:
    print(text, end="")


def _text(records: Sequence[AttemptRecord], run: str, of_run: dict[str, dict[str, Difference | Unavailable]]) -> str:
    mine = [record for record in records if record.run == run]
    return account_text(run, totals_by_stage(mine), differences=of_run.get(run))


def _keys(text: str | None) -> list[str]:
    keys = list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
    unknown = [key for key in keys if key not in GROUPS]
    if unknown:
        raise ConfigError(f"An account cannot be made by {', '.join(unknown)}.", where="--by", rule=f"any of {', '.join(GROUPS)}")
    return keys


def _run_dirs(options: argparse.Namespace) -> list[Path]:
    if options.run_dir:
        missing = [run_dir for run_dir in options.run_dir if not (run_dir / LEDGER_NAME).is_file()]
        if missing:
            listed = ", ".join(map(str, missing))
            raise DataError(f"There is no {LEDGER_NAME} in {listed}.", next_step="Name a run's folder, e.g. runs/quickstart.")
        return list(options.run_dir)
    found = [path.parent for path in sorted(options.runs_dir.glob(f"*/{LEDGER_NAME}"))]
    if not found and not (options.runs_dir / LEDGER_NAME).is_file():
        raise DataError(
            f"There is no {LEDGER_NAME} of a run or of a project.",
            where=options.runs_dir,
            next_step="Name the folder of the runs: --runs-dir DIR.",
        )
    return found


def damage_of(path: Path) -> list[str]:
    """Say which lines of a ledger hold no record: a kill or a full disk tore them, and no figure of them is known."""
    return [f"{path}: line {number} is torn and holds no record; the others stand" for number in read_lines_and_torn(path)[1]]


def _import(run_dirs: Sequence[Path], options: argparse.Namespace) -> None:
    job_ids = {run_dir: jobs_of(read_lines(run_dir / LEDGER_NAME)) for run_dir in run_dirs}
    wanted = sorted({job_id for found in job_ids.values() for job_id in found})
    if options.ask_sacct:
        if not wanted:
            raise DataError(
                "No Slurm job is on these ledgers.", next_step="Jobs are known from `megatron-cpt submit`, or from an attempt in them."
            )
        text, where = ask_sacct(wanted), "sacct"
    else:
        try:
            text, where = options.sacct.read_text(encoding="utf-8"), str(options.sacct)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError("The output of sacct cannot be read.", where=options.sacct, value=str(error)) from None
    jobs = parse_sacct(text, where=where)
    project_dir = None if options.run_dir else options.runs_dir
    added = sum(import_jobs(run_dir, jobs, project_dir=_project_of(run_dir, project_dir)) for run_dir in run_dirs)
    strange = sum(job.job_id not in wanted for job in jobs)
    left = f"; {strange} of jobs that no ledger here names were left out" if strange else ""
    print(f"{where}: {len(jobs)} runs of jobs, {added} lines added to the bill{left}", file=sys.stderr)


def _project_of(run_dir: Path, project_dir: Path | None) -> Path | None:
    """Return the project of a run: as asked, or the folder above it where that has a ledger."""
    above = run_dir.resolve().parent
    return project_dir or (above if (above / LEDGER_NAME).is_file() else None)
