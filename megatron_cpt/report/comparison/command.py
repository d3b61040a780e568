"""The command `compare`: which runs are meant, and where the comparison is written."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.meter.ledger import LEDGER_NAME
from megatron_cpt.record.manifest import MANIFEST_NAME
from megatron_cpt.record.store import write_text
from megatron_cpt.stage_names import STAGES

FOLDER_NAME = "comparison"
PAGE_NAME = "comparison.html"
DESCRIPTION = (
    "Set runs against each other: the settings that differ, gain, forgetting, the front, verdict, tokens, time, cost, energy, carbon.\n\n"
    "reads:   the records of the runs, which may still go on\n"
    f"writes:  {PAGE_NAME}, comparison.md, comparison.csv, comparison.json\n"
    "refuses: nothing but a name that is no run; runs measured on another base or other items stand in groups of their own"
)
EXAMPLES = """examples:
  megatron-cpt compare                                 every run of runs/
  megatron-cpt compare quickstart second               two runs of runs/
  megatron-cpt compare 'tiny-peak_lr*' --out rates     the runs of a sweep, written to rates/
  megatron-cpt compare 'tiny-peak_lr*' --against tiny-peak_lr-1e-3   and each of them against one, item by item
  megatron-cpt compare runs/quickstart /mnt/other/runs/quickstart
"""
GLOB = re.compile(r"[*?\[]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", nargs="*", help="folders of runs, or names or quoted patterns of runs in --runs-dir; none: all of them")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="the folder of all runs (default: runs)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"where to write it; an older comparison there is replaced (RUNS_DIR/{FOLDER_NAME})"
    )
    parser.add_argument("--against", metavar="RUN", help="hold the trained models of the other runs against this run's, item by item")


def run_compare(options: argparse.Namespace) -> None:
    """Write the comparison and print it.

    Raises:
        DataError: a name is no run.
        ConfigError: the folder to write to is a run's.
    """
    folders = folders_of(options.run, options.runs_dir)
    reference = None
    if options.against is not None:
        (reference, *more) = folders_of([options.against], options.runs_dir)
        if more:
            raise ConfigError(
                "Runs are held against one run.", where="--against", value=options.against, rule="the name or folder of a run"
            )
        if reference.resolve() not in {folder.resolve() for folder in folders}:
            folders = [reference, *folders]
    print(write_comparison(folders, options.out or options.runs_dir / FOLDER_NAME, against=reference), end="")


def write_comparison(folders: Sequence[Path], out: Path, *, against: Path | None = None) -> str:
    """Write the four forms of a comparison into a folder, and return what a terminal shows of it.

    Args:
        against: the one of the folders whose trained model the others' are held against.

    Raises:
        ConfigError: the folder is a run's.
    """
    from megatron_cpt.report.comparison.groups import compare, names_of  # noqa: PLC0415  -- numpy and plotly load only when needed
    from megatron_cpt.report.comparison.page import html  # noqa: PLC0415
    from megatron_cpt.report.comparison.tables import csv_text, json_text, markdown  # noqa: PLC0415
    from megatron_cpt.report.comparison.terminal import terminal  # noqa: PLC0415

    if is_run(out) or (out / MANIFEST_NAME).exists():
        raise ConfigError("A comparison is not written into a run.", where=out, next_step="Name another folder: --out DIR.")
    comparison = compare(folders)
    names = dict(zip((folder.resolve() for folder in folders), names_of(folders), strict=True))
    reference = None if against is None else names[against.resolve()]
    for name, text in (
        ("comparison.md", markdown(comparison, against=reference)),
        ("comparison.csv", csv_text(comparison)),
        ("comparison.json", json_text(comparison, against=reference)),
        (PAGE_NAME, html(comparison, against=reference)),
    ):
        write_text(out / name, text)
    return f"{terminal(comparison, against=reference)}\npage       {out / PAGE_NAME}\ntables     {out / 'comparison.md'}, .csv, .json\n"


def folders_of(words: Sequence[str], runs_dir: Path) -> list[Path]:
    """Return the runs that words name, each once, in their order; all of `runs_dir` where there is no word.

    Raises:
        DataError: a word names no run.
    """
    found: dict[Path, Path] = {}
    for word in words or ["*"]:
        for folder in _meant(word, runs_dir):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _meant(word: str, runs_dir: Path) -> list[Path]:
    if Path(word).is_dir() and is_run(Path(word)):
        return [Path(word)]
    if GLOB.search(word):
        folder = Path(word).parent if "/" in word else runs_dir
        runs = [path for path in sorted(folder.glob(Path(word).name)) if is_run(path)]
    else:
        runs = [path for path in [runs_dir / word] if is_run(path)]
    if not runs:
        known = sorted(path.name for path in runs_dir.glob("*") if is_run(path))
        near = difflib.get_close_matches(word, known, n=1)
        raise DataError(
            "There is no such run.",
            where=runs_dir,
            value=word,
            rule="a folder with a run's records, or the name or pattern of one in --runs-dir",
            next_step=f"Did you mean {near[0]}?" if near else "Name the folder of the runs: --runs-dir DIR.",
        )
    return runs


def is_run(folder: Path) -> bool:
    """Say whether a folder holds a run's records, and is not the folder of all runs, which has a bill too."""
    if any((folder / stage.name / MANIFEST_NAME).is_file() for stage in STAGES):
        return True
    return (folder / LEDGER_NAME).is_file() and not any(folder.glob(f"*/{LEDGER_NAME}"))
