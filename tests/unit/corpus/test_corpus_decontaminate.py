"""What is evaluated is found in the documents that would be trained on, by the share of a question or an answer that stands there."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from megatron_cpt.config.schema import CorpusConfig, DecontaminateConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.corpus.decontaminate import EvalGrams, decontaminate_problems, matches_in_words
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.text.runs import Rows, TextHashes

WORDS = [f"w{number}" for number in range(3000)]
# Articles 1165 and 577 of the Civil Code of the PRC (in force since 2021; statutes carry no copyright), as a question and its answer
QUESTION = "行为人因过错侵害他人民事权益造成损害的，应当如何承担民事责任？请说明法律依据以及举证责任的分配方式。"
ANSWER = "当事人一方不履行合同义务或者履行合同义务不符合约定的，应当承担继续履行、采取补救措施或者赔偿损失等违约责任。"
PROVENANCE = ProvenanceConfig(origin="made here", date="2026", obtained="by hand")


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def bench(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def quiz(tmp_path):
    rng = random.Random(1)
    rows = [
        {"id": f"q{number}", "question": words(rng, 40), "choices": [words(rng, 15), words(rng, 15)], "answer": 1, "group": "domain"}
        for number in range(6)
    ]
    return bench(tmp_path / "quiz.jsonl", rows), rows


def grams(benches, texts=(), **settings) -> EvalGrams:
    return EvalGrams.of_files(benches, list(texts), DecontaminateConfig(**settings))


def test_a_question_in_a_document_is_found_whatever_its_spelling_and_named(quiz) -> None:
    path, rows = quiz
    rng = random.Random(2)
    document = f"{words(rng, 30)} «{rows[3]['question'].upper().replace(' ', ',  ')}» {words(rng, 30)}"
    (match,) = grams({"quiz": path}).matches(document)
    assert (match.bench, match.item, match.share) == ("quiz", "q3", 1.0)
    assert match.run == " ".join(rows[3]["question"].split()[:13])
    assert matches_in_words([match]) == f"holds quiz q3 (100%): {match.run}"


def test_the_right_answer_alone_is_found_and_a_wrong_one_is_not(quiz) -> None:
    path, rows = quiz
    found = grams({"quiz": path}).matches(f"so {rows[2]['choices'][1]} it is")
    assert [(match.item, match.share) for match in found] == [("q2", 1.0)]
    assert grams({"quiz": path}).matches(f"so {rows[2]['choices'][0]} it is") == []


def test_shares_are_of_runs_and_count_from_the_threshold_on(quiz) -> None:
    path, rows = quiz
    head = " ".join(rows[0]["question"].split()[:26])  # 14 of the 28 runs of 13 words
    assert [match.share for match in grams({"quiz": path}).matches(head)] == [0.5]
    shorter = head.rpartition(" ")[0]
    assert grams({"quiz": path}).matches(shorter) == []
    assert [match.share for match in grams({"quiz": path}, item_share=1e-9).matches(shorter)] == [13 / 28]
    assert grams({"quiz": path}, item_share=1e-9).matches(" ".join(head.split()[:12])) == []  # twelve words are chance


def test_a_chinese_answer_hidden_in_a_document_is_found(tmp_path) -> None:
    path = bench(tmp_path / "law.jsonl", [{"id": "577", "question": QUESTION, "answer": ANSWER, "group": "domain"}])
    found = grams({"law": path}).matches("前言。" * 20 + ANSWER.replace("，", ",").replace("、", "") + "后记。" * 20)
    assert [(match.item, match.share) for match in found] == [("577", 1.0)]
    assert found[0].run == "当事人一方不履行合同义务或者履行合同义务不符合约"
    assert grams({"law": path}).matches("前言。" * 20 + ANSWER[:20] + "后记。" * 20) == []


def test_many_documents_at_once_are_judged_each_for_itself(quiz) -> None:
    path, rows = quiz
    half = rows[1]["question"].split()
    texts = [" ".join(half[:20]), " ".join(half[20:]), "", rows[1]["question"], rows[5]["question"] + " " + rows[4]["question"]]
    found = grams({"quiz": path}).matches_of_rows(Rows.of(texts, TextHashes()), texts)
    assert [[match.item for match in matches] for matches in found] == [[], [], [], ["q1"], ["q4", "q5"]]


def test_short_items_are_counted_as_too_short_to_tell(tmp_path) -> None:
    rows = [
        {"id": "a", "question": "Who was it?", "answer": "He was", "group": "domain"},
        {"id": "b", "question": "Who", "answer": words(random.Random(3), 9), "group": "domain"},
    ]
    found = grams({"short": bench(tmp_path / "short.jsonl", rows)})
    assert (found.num_items, found.too_short) == ({"short": 2}, {"short": 1})
    assert found.matches("Who was it? He was") == []
    assert [match.item for match in found.matches(f"x {rows[1]['answer']} y")] == ["b"]


def test_workers_find_the_same_in_what_was_saved(quiz, tmp_path) -> None:
    path, rows = quiz
    made = grams({"quiz": path})
    made.save(tmp_path / "grams.npz")
    loaded = EvalGrams.load(tmp_path / "grams.npz")
    texts = [rows[0]["question"], words(random.Random(4), 50), rows[2]["choices"][1]]
    assert [loaded.matches(text) for text in texts] == [made.matches(text) for text in texts]
    assert (loaded.num_items, loaded.too_short) == (made.num_items, made.too_short)
    with np.load(tmp_path / "grams.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_held_out_texts_count_from_half_of_their_runs_on(tmp_path) -> None:
    rng = random.Random(5)
    text = words(rng, 52)  # 40 runs
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": text}) + "\n")
    found = grams({}, [tmp_path / "held.jsonl"])
    assert [(match.bench, match.item) for match in found.matches(" ".join(text.split()[:32]))] == [("held.jsonl", "1")]
    assert found.matches(" ".join(text.split()[:31])) == []
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"content": "x"}\n')
    with pytest.raises(DataError, match=r"held-out text cannot be read[\s\S]*bad\.jsonl, record 2"):
        grams({}, [tmp_path / "bad.jsonl"])


def build(tmp_path, records, benches, name="out", **settings):
    path = tmp_path / "law.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    test_fraction = settings.pop("test_fraction", 0.0)
    source = SourceConfig(path=str(path), role="domain", licence="MIT", provenance=PROVENANCE, language="en", test_fraction=test_fraction)
    result = StageResult(tmp_path / name)
    result.folder.mkdir()
    lines = []
    chosen = CorpusConfig(decontaminate=DecontaminateConfig(**settings))
    build_corpus(result, sources={"law": source}, settings=chosen, benches=benches, say=lines.append)
    return result, lines


def test_the_corpus_leaves_out_or_reports_documents_that_hold_items(quiz, tmp_path) -> None:
    path, rows = quiz
    rng = random.Random(6)
    records = [{"id": str(number), "text": words(rng, 60)} for number in range(5)]
    records[2]["text"] += " " + rows[1]["question"]
    records[4]["text"] += " " + rows[1]["choices"][1] + " " + rows[0]["choices"][1]
    result, lines = build(tmp_path, records, {"quiz": path})
    assert result.facts["sources"]["law"]["rejected"] == {"contaminated": 2}
    assert result.facts["sources"]["law"]["kept"] == 3
    assert result.facts["contamination"] == {
        "action": "drop", "documents": {"law": 2}, "files": {"quiz": {"items": 6, "found": 2, "too_short": 0}},
    }  # fmt: skip
    rejected = [json.loads(line) for line in (result.folder / "rejects" / "law.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [3, 5]
    assert rejected[1]["detail"].startswith("holds quiz q0 (100%), quiz q1 (100%): ")
    report = json.loads((result.folder / "contamination.json").read_text())
    assert [(item["id"], item["documents"]) for item in report["items"]] == [("q0", 1), ("q1", 2)]
    assert "| quiz q1 | 100% | 2 | law |" in (result.folder / "contamination.md").read_text()
    assert any("2 training documents hold 2 items" in line for line in lines)

    reported, _ = build(tmp_path, records, {"quiz": path}, "report", action="report")
    assert reported.facts["sources"]["law"]["kept"] == 5
    assert reported.facts["contamination"]["documents"] == {"law": 2}
    off, _ = build(tmp_path, records, {"quiz": path}, "off", action="off")
    assert off.facts["sources"]["law"]["kept"] == 5
    assert not (off.folder / "contamination.json").exists()


def test_held_out_documents_may_hold_what_is_evaluated(quiz, tmp_path) -> None:
    path, rows = quiz
    records = [{"text": row["question"]} for row in rows]
    result, _ = build(tmp_path, records, {"quiz": path}, test_fraction=1.0)
    assert result.facts["sources"]["law"]["test_documents"] == 6
    assert result.facts["contamination"]["documents"] == {}


def test_settings_that_cannot_be_are_refused_by_name(quiz, tmp_path) -> None:
    wrong = DecontaminateConfig(action="mask", words=1, item_share=0.0, document_share=2.0, texts=["nowhere.jsonl"])
    assert len(decontaminate_problems(wrong)) == 5
    with pytest.raises(ConfigError, match=r"corpus\.decontaminate\.action is 'mask': use drop, report, off"):
        build(tmp_path, [{"text": "a"}], {}, action="mask")
    with pytest.raises(DataError, match="benchmark file is missing"):
        build(tmp_path, [{"text": "a"}], {"quiz": tmp_path / "none.jsonl"}, "missing")
