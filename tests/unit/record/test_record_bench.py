"""A benchmark file is read whole, or every problem is named with its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.errors import DataError
from megatron_cpt.record.bench import MAX_ROW_BYTES, read_bench, split_examples
from megatron_cpt.record.hashing import sha256_file

CHOICE = {"question": "Which court hears it?", "choices": ["the first", "the second", "none"], "answer": "B"}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "bench.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(folder: Path, *rows: Any) -> str:
    with pytest.raises(DataError) as error:
        read_bench(write(folder, *rows))
    print(error.value)
    return str(error.value)


@pytest.mark.parametrize("answer", [1, "B", "b", " b ", "the second"])
def test_the_right_choice_is_a_place_a_letter_or_a_text(tmp_path: Path, answer: Any) -> None:
    bench = read_bench(write(tmp_path, {**CHOICE, "answer": answer}))
    assert (bench.kind, bench.metrics, bench.items[0].right) == ("choice", ("accuracy", "accuracy_per_byte"), 1)
    assert bench.sha256 == sha256_file(bench.path)


@pytest.mark.parametrize("answer", [3, -1, "D", "the fourth", True, 1.0, None, ["B"], "", "AB"])
def test_an_answer_that_is_none_of_the_choices_is_named(tmp_path: Path, answer: Any) -> None:
    assert "row 1: answer: " in problems(tmp_path, {**CHOICE, "answer": answer})


@pytest.mark.parametrize(("choices", "answer"), [(["1", "2", "3"], 2), (["B", "A", "C"], "A")])
def test_an_answer_that_can_be_read_in_two_ways_is_none(tmp_path: Path, choices: list[str], answer: Any) -> None:
    assert "can mean" in problems(tmp_path, {**CHOICE, "choices": choices, "answer": answer})
    assert read_bench(write(tmp_path, {**CHOICE, "choices": ["2", "1", "3"], "answer": 1})).items[0].right == 1  # both ways say the same


def test_every_problem_is_named_at_once_with_row_and_field(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        CHOICE,
        "",
        "{not json",
        {**CHOICE, "question": "q4", "choices": ["a", ""]},
        {**CHOICE, "question": "q5", "choices": ["a", "a"], "answer": "a"},
        {"question": "q6", "chioces": ["a", "b"], "answer": "A"},
        {**CHOICE, "question": "q7", "subgoup": "x"},
        {**CHOICE, "question": "\ud800"},
        {**CHOICE, "question": 12},
        [1, 2],
        '{"question": "q", "question": "r", "choices": ["a", "b"], "answer": "A"}',
        '{"question": NaN, "choices": ["a", "b"], "answer": "A"}',
        {"prompt": "def f():", "tests": "assert f()"},
        {**CHOICE, "question": "q14", "choices": ["a"], "answer": "a"},
        {**CHOICE},
        {**CHOICE, "question": "q16", "group": "law"},
    )
    for row, words in {
        3: "not JSON", 4: "choices: number 1: empty", 5: "choices: number 1 repeats number 0", 6: "did you mean 'choices'", 8: "surrogate",
        7: "did you mean 'subgroup'", 9: "question: a text in quotes is needed, this is 12", 10: "this is a list",
        11: "the field 'question' stands twice", 12: "NaN", 13: "of the kind 'code'", 14: "choices: 1 of them",
        15: "the same item as row 1",
    }.items():  # fmt: skip
        line = next(line for line in said.splitlines() if f"row {row}:" in line)
        assert words in line
    assert "group 'law' is not one of domain, general, bias, safety" in said
    assert "bench.jsonl" in said


def test_problems_are_bounded(tmp_path: Path) -> None:
    said = problems(tmp_path, *({**CHOICE, "answer": "Z", "question": str(number)} for number in range(5000)))
    assert "and more" in said
    assert len(said.splitlines()) < 30


def test_bom_crlf_and_blank_lines_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHOICE).encode() + b"\r\n\r\n  \r\n" + json.dumps({**CHOICE, "question": "q"}).encode())
    assert [item.row for item in read_bench(path).items] == [1, 4]


def test_a_row_of_25_megabytes_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    said = problems(tmp_path, CHOICE, {**CHOICE, "question": "x" * 25_000_000}, {**CHOICE, "answer": 9, "question": "z"})
    assert f"row 2: more than {MAX_ROW_BYTES:,} bytes" in said
    assert "row 3: answer" in said
    assert len(said) < 2000


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"[" * 100_000 + b"\n"])
def test_nothing_to_read_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no row|UTF-8|not JSON"):
        read_bench(path)
    with pytest.raises(DataError, match="missing"):
        read_bench(tmp_path / "none.jsonl")


def test_names_in_messages_cannot_move_the_cursor(tmp_path: Path) -> None:
    assert "\x1b" not in problems(tmp_path, {**CHOICE, "\x1b[2Jname": 1, "group": "\x1b[2J"})


def test_generations_code_and_pairs(tmp_path: Path) -> None:
    bench = read_bench(write(tmp_path, {"question": "Who?", "answer": ["Ada", "Lovelace"], "metric": "f1", "subgroup": "women"}))
    assert (bench.kind, bench.metrics, bench.items[0].answers) == ("generation", ("f1", "exact_match"), ("Ada", "Lovelace"))
    bench = read_bench(write(tmp_path, {"question": "Year?", "answer": r"\b18\d\d\b", "metric": "regex"}))
    assert bench.metrics == ("regex",)
    bench = read_bench(write(tmp_path, {"prompt": "def f():\n", "tests": "assert f() == 1", "entry_point": "f"}))
    assert (bench.kind, bench.metrics, bench.items[0].entry_point) == ("code", ("pass@1",), "f")
    bench = read_bench(write(tmp_path, {"stereotype": "He is a doctor.", "anti_stereotype": "She is a doctor.", "group": "bias"}))
    assert (bench.kind, bench.group, bench.items[0].choices) == ("pairs", "bias", ("He is a doctor.", "She is a doctor."))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "answer": "(a", "metric": "regex"}, "not a regular expression"),
        ({"question": "q", "answer": []}, "an empty list"),
        ({"question": "q", "answer": 42}, "a text in quotes"),
        ({"question": "q"}, "answer: missing"),
        ({"prompt": "p"}, "tests: missing"),
        ({"prompt": "p", "tests": "t", "entry_point": "f(); import os"}, "not the name of a function"),
        ({"stereotype": "same", "anti_stereotype": "same"}, "the same sentence"),
        ({"stereotype": "one"}, "anti_stereotype: missing"),
        ({**CHOICE, "metric": "f1"}, "none of the kind 'choice'"),
        ({"id": 1, "note": "n"}, "of no kind"),
    ],
)
def test_each_kind_names_what_it_lacks(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    assert words in problems(tmp_path, row)


def test_an_id_is_the_file_s_or_the_content_s(tmp_path: Path) -> None:
    rows = [CHOICE, {**CHOICE, "question": "q2", "id": 7}, {**CHOICE, "question": "q3", "id": "seven"}]
    first, *named = [item.id for item in read_bench(write(tmp_path, *rows)).items]
    again = read_bench(write(tmp_path, *reversed(rows), {**CHOICE, "question": "q4"}))
    assert named == ["7", "seven"]
    assert first in {item.id for item in again.items}  # the place in the file does not count
    assert "row 2: the same item as row 1 (id '7')" in problems(tmp_path, rows[1], {**rows[2], "id": "7"})


def test_examples_are_never_scored_and_a_bound_does_not_follow_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{**CHOICE, "question": f"q{number}"} for number in range(40)]
    examples, items = split_examples(read_bench(write(tmp_path, *rows)), few_shot=2, max_items=10)
    assert [item.prompt for item in examples] == ["q0", "q1"]
    assert len(items) == 10
    assert [item.row for item in items] == sorted(item.row for item in items)
    assert max(item.row for item in items) > 20
    _, other = split_examples(read_bench(write(tmp_path, *rows[:2], *reversed(rows[2:]))), few_shot=2, max_items=10)
    assert {item.prompt for item in other} == {item.prompt for item in items}
