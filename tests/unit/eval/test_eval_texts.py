"""Held-out documents are taken whole, in file order, within the byte bound."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from megatron_cpt.errors import CheckpointError, ConfigError, DataError
from megatron_cpt.eval.__main__ import main, parse
from megatron_cpt.eval.report import text_score
from megatron_cpt.eval.subjects import newest_checkpoint
from megatron_cpt.eval.texts import Document, cut_at_character, read_text
from megatron_cpt.plan.run_plan import EvalText


def write(folder: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"d{number}", "text": text, "source": "s"}, ensure_ascii=False) for number, text in enumerate(texts)]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def read(folder: Path, max_bytes: int) -> list[tuple[str, str]]:
    return [(document.id, document.text) for document in read_text(EvalText("t", "domain", "t.jsonl", max_bytes), folder)]


def test_the_last_document_is_cut_between_characters(tmp_path: Path) -> None:
    folder = write(tmp_path, ["高炉", "", "iron", "rest"])  # 6, 0, 4, 4 bytes
    assert read(folder, 100) == [("d0", "高炉"), ("d2", "iron"), ("d3", "rest")]
    assert read(folder, 8) == [("d0", "高炉"), ("d2", "ir")]
    assert read(folder, 6) == [("d0", "高炉")]
    assert read(folder, 5) == [("d0", "高")]


def test_a_text_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to score"):
        read(write(tmp_path, ["高炉"]), 2)


@pytest.mark.parametrize("line", ["not json", "[1]", '{"id": 1}', '{"id": 1, "text": null}', '{"id": 1, "text": "\\ud800"}'])
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 0, "text": "good"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"t\.jsonl:2"):
        read(tmp_path, 1000)


def test_cutting_keeps_what_fits() -> None:
    assert [cut_at_character("a高b", max_bytes=size) for size in range(6)] == ["", "a", "a", "a", "a高", "a高b"]


def test_bits_per_byte_is_a_ratio_of_sums_and_does_not_depend_on_the_number_of_tokens() -> None:
    texts = [Document("a", "x" * 100), Document("b", "高" * 20)]  # 100 and 60 bytes
    many = text_score("domain", texts, tokens=[90, 30], nats=[100.0, 20.0])
    few = text_score("domain", texts, tokens=[30, 10], nats=[100.0, 20.0])
    assert many.bits_per_byte == few.bits_per_byte == pytest.approx(120 / math.log(2) / 160)
    assert (many.tokens, few.tokens, many.bytes) == (120, 40, 160)


def test_the_newest_checkpoint_is_by_number_and_complete(tmp_path: Path) -> None:
    for name, step in (("step_500", 500), ("step_2500", 2500), ("step_10000", 10000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.json").write_text(json.dumps({"step": step}))
    (tmp_path / "step_20000").mkdir()
    assert newest_checkpoint(tmp_path).name == "step_10000"
    with pytest.raises(CheckpointError, match="no complete training checkpoint"):
        newest_checkpoint(tmp_path / "step_20000")


def test_arguments_are_typed() -> None:
    wanted = parse(["plan=p/plan.yaml", "subjects=base,init", "out=o.json"])
    assert (wanted.plan, wanted.subjects, wanted.checkpoint, wanted.out) == (Path("p/plan.yaml"), ("base", "init"), None, Path("o.json"))


@pytest.mark.parametrize("arguments", [[], ["plan=p", "out=o"], ["plan=p", "subjects=base"], ["plan=p", "out=o", "subject=base"], ["x"]])
def test_bad_arguments_are_a_config_error(arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse(arguments)
    assert main(arguments) == 2


def test_a_limit_a_document_takes_beginnings_of_more_documents(tmp_path: Path) -> None:
    lines = [{"id": str(number), "text": "高" * 10} for number in range(4)]  # 30 bytes each
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read_here = read_text(EvalText("t", "domain", "t.jsonl", 20, 7), tmp_path)
    assert [(document.id, document.text) for document in read_here] == [
        ("0", "高高"),
        ("1", "高高"),
        ("2", "高高"),
    ]  # 6 + 6 + 6 of 20 bytes
