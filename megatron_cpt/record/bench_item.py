"""One row of a benchmark file: the kinds that there are, their fields, and what is wrong with a row. Pure."""

from __future__ import annotations

import difflib
import json
import re
import string
from dataclasses import dataclass, replace
from typing import Any, Literal

from megatron_cpt.record.hashing import sha256_plain

Kind = Literal["choice", "generation", "code", "pairs"]

MAX_CHOICES = len(string.ascii_uppercase)
MAX_PATTERN = 2_000
SHOWN_PROBLEMS = 20
OWN_FIELDS: dict[Kind, tuple[str, ...]] = {
    "choice": ("question", "choices", "answer"),
    "generation": ("question", "answer"),
    "code": ("prompt", "tests"),
    "pairs": ("stereotype", "anti_stereotype"),
}
SHARED_FIELDS = ("id", "metric", "group", "subgroup", "licence", "source", "note")


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        row: its line in the file, counted from 1.
        prompt: question or code prompt; the stereotyped sentence of a pair.
        choices: the choices; both sentences of a pair, the stereotyped one first; nothing for the other kinds.
        right: the place of the right choice, counted from 0.
        answers: texts or patterns that are right, of a generation.
    """

    id: str
    row: int
    prompt: str
    choices: tuple[str, ...] = ()
    right: int = 0
    answers: tuple[str, ...] = ()
    tests: str = ""
    entry_point: str | None = None
    subgroup: str | None = None


@dataclass(frozen=True)
class Row:
    """A parsed line; `number` counts from 1."""

    number: int
    fields: dict[str, Any]


class Problems(list[str]):
    """Collects sentences and says when there are more than a person reads."""

    @property
    def full(self) -> bool:
        return len(self) > SHOWN_PROBLEMS


def kind_of_row(fields: dict[str, Any]) -> Kind | None:
    if "stereotype" in fields or "anti_stereotype" in fields:
        return "pairs"
    if "prompt" in fields or "tests" in fields:
        return "code"
    if "choices" in fields:
        return "choice"
    return "generation" if "question" in fields or "answer" in fields else None


def strange_fields(fields: dict[str, Any], allowed: tuple[str, ...], what: str) -> list[str]:
    """Name the fields that a row may not have: a misspelt one would otherwise be passed over without a word."""
    found = []
    for name in fields:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            found.append(f"{name[:60]}: not a field of {what}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return found


def item_of(row: Row, kind: Kind, problems: Problems) -> Item | None:
    """Return a row's item, or None after saying what is wrong with it."""
    if problems.full or kind_of_row(row.fields) != kind:
        return None
    mine = Problems()
    allowed = (*OWN_FIELDS[kind], *(("entry_point",) if kind == "code" else ()), *SHARED_FIELDS)
    mine += strange_fields(row.fields, allowed, f"the kind {kind!r}")
    texts = {name: _text(row.fields, name, mine) for name in OWN_FIELDS[kind] if name not in ("choices", "answer")}
    subgroup = _text(row.fields, "subgroup", mine, required=False)
    _text(row.fields, "note", mine, required=False)
    filled = replace(Item("", row.number, next(iter(texts.values())) or ""), subgroup=subgroup)
    if kind == "choice":
        choices = _choices(row.fields, mine)
        filled = replace(filled, choices=choices, right=_right(row.fields, choices, mine) if choices else 0)
    elif kind == "generation":
        filled = replace(filled, answers=_answers(row.fields, mine))
    elif kind == "code":
        filled = replace(filled, tests=texts["tests"] or "", entry_point=_entry_point(row.fields, mine))
    else:
        pair = tuple(text for text in texts.values() if text)
        if len(pair) == 2 and pair[0] == pair[1]:
            mine.append("stereotype and anti_stereotype are the same sentence")
        filled = replace(filled, choices=pair)
    given = row.fields.get("id")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    name = None if given is None else _text({"id": given}, "id", mine)
    problems += [f"row {row.number}: {problem}" for problem in mine]
    if mine:
        return None
    content = {key: value for key, value in row.fields.items() if key in OWN_FIELDS[kind]}
    return replace(filled, id=name or sha256_plain(content)[:16])


def _text(fields: dict[str, Any], name: str, problems: Problems, *, required: bool = True) -> str | None:
    if name not in fields or (fields[name] is None and not required):
        if required:
            problems.append(f"{name}: missing")
        return None
    problem = text_problem(fields[name])
    if problem:
        problems.append(f"{name}: {problem}")
        return None
    return str(fields[name])


def text_problem(value: object) -> str | None:
    if not isinstance(value, str):
        return f"a text in quotes is needed, this is {json.dumps(value, default=str)[:60]}"
    if not value.strip():
        return "empty"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate), which no tokenizer can read"
    return None


def _choices(fields: dict[str, Any], problems: Problems) -> tuple[str, ...]:
    choices = fields["choices"]
    if not isinstance(choices, list):
        problems.append("choices: a list of texts is needed")
        return ()
    if not 2 <= len(choices) <= MAX_CHOICES:
        problems.append(f"choices: {len(choices)} of them; use 2 to {MAX_CHOICES}")
        return ()
    found = [f"choices: number {number}: {problem}" for number, choice in enumerate(choices) if (problem := text_problem(choice))]
    if not found:
        found = [
            f"choices: number {number} repeats number {choices.index(choice)}"
            for number, choice in enumerate(choices)
            if choices.index(choice) < number
        ]
    problems += found
    return () if found else tuple(choices)


def _right(fields: dict[str, Any], choices: tuple[str, ...], problems: Problems) -> int:
    """Return the place of the right choice; an answer that can be read in two ways is none."""
    if "answer" not in fields:
        problems.append("answer: missing")
        return 0
    answer = fields["answer"]
    readings = set()
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            readings.add(answer)
        if str(answer) in choices:
            readings.add(choices.index(str(answer)))
    elif isinstance(answer, str):
        if answer in choices:
            readings.add(choices.index(answer))
        letter = answer.strip().upper()
        if len(letter) == 1 and letter in string.ascii_uppercase[: len(choices)]:
            readings.add(string.ascii_uppercase.index(letter))
    if len(readings) == 1:
        return readings.pop()
    shown = json.dumps(answer, ensure_ascii=False, default=str)[:60]
    if readings:
        both = " or ".join(f"{json.dumps(choices[place], ensure_ascii=False)[:40]}" for place in sorted(readings))
        problems.append(f"answer: {shown} can mean {both}")
    else:
        problems.append(
            f"answer: {shown} is none of the choices; write a place from 0 to {len(choices) - 1}, "
            f"a letter from A to {string.ascii_uppercase[len(choices) - 1]}, or the text of a choice"
        )
    return 0


def _answers(fields: dict[str, Any], problems: Problems) -> tuple[str, ...]:
    if "answer" not in fields:
        problems.append("answer: missing")
        return ()
    answers = fields["answer"] if isinstance(fields["answer"], list) else [fields["answer"]]
    if not answers:
        problems.append("answer: an empty list")
    found = [f"answer: {problem}" for answer in answers if (problem := text_problem(answer))]
    if not found and fields.get("metric") == "regex":
        found = [f"answer: {problem}" for answer in answers if (problem := _pattern_problem(answer))]
    problems += found
    return () if found else tuple(answers)


def _pattern_problem(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN:
        return f"a pattern of more than {MAX_PATTERN} characters"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression ({error})"
    return None


def _entry_point(fields: dict[str, Any], problems: Problems) -> str | None:
    name = _text(fields, "entry_point", problems, required=False)
    if name is not None and not name.isidentifier():
        problems.append("entry_point: not the name of a function")
    return name
