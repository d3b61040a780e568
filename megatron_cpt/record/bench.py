"""Benchmarks that people write: one JSON object a line, checked as a whole before anything is scored with it.

A file is of one kind, told by the fields of its rows (docs/reference/bench.md):

    choice       question, choices, answer: the place of the right one counted from 0, its letter, or its text
    generation   question, answer: a text, or a list of texts that are all right; with metric "regex" a pattern
    code         prompt, tests, and entry_point where the tests define `check(candidate)`
    pairs        stereotype, anti_stereotype: two sentences that differ in whom they speak of
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_cpt.errors import DataError, printable, raise_all
from megatron_cpt.record.bench_item import (
    OWN_FIELDS,
    SHARED_FIELDS,
    SHOWN_PROBLEMS,
    Item,
    Kind,
    Problems,
    Row,
    item_of,
    kind_of_row,
    strange_fields,
    text_problem,
)
from megatron_cpt.record.hashing import sha256_file, sha256_plain

GROUPS = ("domain", "general", "bias", "safety")
MAX_ROW_BYTES = 1 << 20  # a question is a page of text, not a book
MAX_ROWS = 1_000_000
KNOWN_FIELDS = (*dict.fromkeys(name for names in OWN_FIELDS.values() for name in names), "entry_point", *SHARED_FIELDS)
BOM = b"\xef\xbb\xbf"
METRICS: dict[Kind, tuple[str, ...]] = {
    "choice": ("accuracy", "accuracy_per_byte"),
    "generation": ("exact_match", "f1", "regex"),
    "code": ("pass@1",),
    "pairs": ("stereotype",),
}


@dataclass(frozen=True)
class Bench:
    """A benchmark file that has passed every check."""

    path: Path
    sha256: str
    kind: Kind
    metrics: tuple[str, ...]
    items: tuple[Item, ...]
    group: str | None
    licences: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def subgroups(self) -> tuple[str, ...]:
        return tuple(sorted({item.subgroup for item in self.items if item.subgroup is not None}))


def read_bench(path: Path) -> Bench:
    """Return a benchmark.

    A byte-order mark, CRLF line ends and blank lines are passed over; an item without an id is named by its content.

    Raises:
        DataError: naming file, row and field of everything that is wrong, the first `SHOWN_PROBLEMS` of it.
    """
    if not path.is_file():
        raise DataError("A benchmark file is missing.", where=path, next_step="Check bench.<name>.path.")
    problems = Problems()
    rows: list[Row] = []
    with path.open("rb") as file:
        for row in _rows(file, problems):
            rows.append(row)
            if len(rows) > MAX_ROWS:
                problems.append(f"row {row.number}: the file has more than {MAX_ROWS:,} rows")
                break
            if problems.full:
                break
    if not rows and not problems:
        problems.append("the file holds no row")
    kind = _kind_of(rows, problems)
    items = [item for row in rows if (item := item_of(row, kind, problems)) is not None] if kind else []
    _check_ids(items, problems)
    shared = {name: _words(rows, name, problems) for name in ("metric", "group", "licence", "source")}
    for name in ("metric", "group"):
        if len(shared[name]) > 1:
            problems.append(f"{name}: one file has one, and its rows say {' and '.join(map(repr, shared[name]))}")
    group = shared["group"][0] if shared["group"] else None
    if group is not None and group not in GROUPS:
        problems.append(f"group {printable(group)!r} is not one of {', '.join(GROUPS)}")
    metrics = _metrics(kind, shared["metric"], problems) if kind else ()
    if problems:
        shown = [printable(problem) for problem in sorted(problems[:SHOWN_PROBLEMS], key=_row_of)]
        if problems.full:
            shown.append("and more: these are the first that were found")
        raise_all(DataError, shown, where=path, next_step="Mend the rows; docs/reference/bench.md shows one of each kind.")
    assert kind is not None
    return Bench(path, sha256_file(path), kind, metrics, tuple(items), group, tuple(shared["licence"]), tuple(shared["source"]))


def first_item_ids(items: Sequence[Item], max_items: int | None) -> set[str]:
    """Return the ids of at most so many items, chosen by their names' digests: not by their places, because files are often sorted."""
    ids = sorted((item.id for item in items), key=sha256_plain)
    return set(ids if max_items is None else ids[:max_items])


def split_examples(bench: Bench, *, few_shot: int, max_items: int | None) -> tuple[list[Item], list[Item]]:
    """Return the first `few_shot` items, which serve as examples and are never scored, and the items to score in the file's order."""
    examples, rest = list(bench.items[:few_shot]), list(bench.items[few_shot:])
    kept = first_item_ids(rest, max_items)
    return examples, [item for item in rest if item.id in kept]


def _rows(file: BinaryIO, problems: Problems) -> Iterator[Row]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            problems.append(f"row {number}: more than {MAX_ROW_BYTES:,} bytes")
            continue
        line = line.removeprefix(BOM) if number == 1 else line
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constants)
        except UnicodeDecodeError as error:
            problems.append(f"row {number}: byte 0x{line[error.start]:02x} is not UTF-8")
            continue
        except (ValueError, RecursionError) as error:
            problems.append(f"row {number}: not JSON ({str(error)[:120]})")
            continue
        if not isinstance(fields, dict):
            problems.append(f"row {number}: a row is an object {{...}}, this is a {type(fields).__name__}")
            continue
        yield Row(number, fields)
        if problems.full:
            return


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return fields


def _no_constants(word: str) -> Any:
    raise ValueError(f"{word} is no value")


def _kind_of(rows: Sequence[Row], problems: Problems) -> Kind | None:
    """Return the kind of the file: the one of its first row that has one."""
    found: Kind | None = None
    for row in rows:
        kind = kind_of_row(row.fields)
        if kind is None:
            problems.append(
                f"row {row.number}: of no kind; it needs question + choices + answer, question + answer, prompt + tests, or "
                f"stereotype + anti_stereotype (it has {', '.join(map(str, list(row.fields)[:8])) or 'nothing'})"
            )
        elif found is None:
            found = kind
        elif kind != found:
            misspelt = [problem for problem in strange_fields(row.fields, KNOWN_FIELDS, "any kind") if "did you mean" in problem]
            why = misspelt[0] if misspelt else f"of the kind {kind!r}, and the rows before are of the kind {found!r}: one file has one kind"
            problems.append(f"row {row.number}: {why}")
        if problems.full:
            break
    return found


def _row_of(problem: str) -> int:
    named = re.match(r"row (\d+)", problem)
    return int(named.group(1)) if named else 0


def _check_ids(items: Sequence[Item], problems: Problems) -> None:
    first: dict[str, int] = {}
    for item in items:
        if item.id in first:
            problems.append(f"row {item.row}: the same item as row {first[item.id]} (id {item.id!r})")
        first.setdefault(item.id, item.row)
        if problems.full:
            break


def _words(rows: Sequence[Row], name: str, problems: Problems) -> list[str]:
    """Return the different values of a field that describes the file, in the order of their first rows."""
    found: dict[str, None] = {}
    for row in rows:
        if row.fields.get(name) is None:
            continue
        problem = text_problem(row.fields[name])
        if problem:
            problems.append(f"row {row.number}: {name}: {problem}")
        else:
            found[row.fields[name]] = None
        if problems.full:
            break
    return list(found)


def _metrics(kind: Kind, named: Sequence[str], problems: Problems) -> tuple[str, ...]:
    """Return what is measured, the metric that the file names first; patterns are no texts, so `regex` stands alone."""
    known = METRICS[kind]
    if not named:
        return tuple(metric for metric in known if metric != "regex")
    if named[0] not in known:
        problems.append(f"metric {named[0]!r} is none of the kind {kind!r}: {', '.join(known)}")
        return ()
    if named[0] == "regex":
        return ("regex",)
    return (named[0], *(metric for metric in known if metric not in (named[0], "regex")))
