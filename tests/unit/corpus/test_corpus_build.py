"""The balance sheet: every record is kept or rejected with a reason; equal texts stand once; a document keeps its side."""

from __future__ import annotations

import hashlib
import json

import pytest

from megatron_cpt.config.schema import ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import DataError
from megatron_cpt.record.manifest import StageResult

MADE_HERE = ProvenanceConfig("made here", "2026-11", "by this test")


def write_records(path, records):
    path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))
    return path


def build(tmp_path, files, name="out", **changed):
    """Build a corpus from `{source: records}` or `{source: path}`; return its folder and facts."""
    sources = {}
    for source, records in files.items():
        path = records if not isinstance(records, list) else write_records(tmp_path / f"{source}.jsonl", records)
        settings = {
            "role": "domain",
            "licence": "MIT",
            "provenance": MADE_HERE,
            "language": "en",
            "test_fraction": 0.0,
        } | changed
        sources[source] = SourceConfig(path=str(path), **settings)
    result = StageResult(tmp_path / name)
    result.folder.mkdir()
    build_corpus(result, sources=sources, say=lambda line: None)
    return result.folder, result.facts["sources"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_missing_null_and_other_types_are_rejected_with_line_and_keys(tmp_path):
    records = [{"text": "good"}, {"content": "x", "url": "y"}, {"text": None}, {"text": 5}, {"text": ["a"]}, "\n", "{broken\n"]
    folder, facts = build(tmp_path, {"law": records})
    assert facts["law"]["read"] == 7
    assert facts["law"]["kept"] == 1
    assert facts["law"]["rejected"] == {"blank_line": 1, "invalid_json": 1, "missing_text": 1, "null_text": 1, "text_not_a_string": 2}
    rejects = read(folder / "rejects" / "law.jsonl")
    assert [reject["line"] for reject in rejects] == [2, 3, 4, 5, 6, 7]
    assert rejects[0] == {"file": "law.jsonl", "line": 2, "reason": "missing_text", "detail": "no key 'text'; keys present: content, url"}


def test_empty_and_blank_documents_are_dropped_wherever_they_stand(tmp_path):
    _, facts = build(tmp_path, {"law": [{"text": ""}, {"text": "a"}, {"text": " \n\t\u3000"}, {"text": "\u0000"}]})
    assert facts["law"]["rejected"] == {"empty_text": 3}
    assert facts["law"]["train_documents"] == 1


def test_lone_surrogates_and_control_characters_are_repaired_and_counted(tmp_path):
    # six letters: backslash, u, d, 8, 3, d and so on, as a JSON file holds them
    folder, facts = build(
        tmp_path, {"law": ['{"text": "\\ud83d ok"}\n', '{"text": "\\ud83d\\ude00 pair"}\n', '{"text": "法\\u0000律\\u0007\\ufeff"}\n']}
    )
    assert [record["text"] for record in read(folder / "law.train.jsonl")] == ["\ufffd ok", "😀 pair", "法律"]
    assert facts["law"]["repaired"] == {"byte_order_mark": 1, "control_characters": 1, "lone_surrogate": 1}
    assert read(folder / "repairs" / "law.jsonl")[1] == {
        "file": "law.jsonl", "line": 3, "repairs": {"control_characters": 2, "byte_order_mark": 1},
    }  # fmt: skip
    (folder / "law.train.jsonl").read_bytes().decode("utf-8", "strict")


def test_layout_and_full_width_characters_are_not_touched(tmp_path):
    text = "第１条，　两  spaces\ttab\r\n\r\nnext\u0085line\u2028end\x0c e\u0301"
    folder, facts = build(tmp_path, {"law": [{"text": text}]})
    assert read(folder / "law.train.jsonl")[0]["text"] == text
    assert len((folder / "law.train.jsonl").read_text().splitlines()) == 1
    assert facts["law"]["train_bytes"] == len(text.encode())


def test_equal_texts_are_kept_once_over_files_and_sources(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    write_records(shards / "1.jsonl", [{"text": "same"}, {"text": "only in 1"}])
    write_records(shards / "2.jsonl", [{"text": "only in 2"}, {"text": "same"}])
    _, facts = build(tmp_path, {"b_source": [{"text": "same"}, {"text": "mine"}], "a_source": shards})
    assert facts["a_source"]["kept"] == 3
    assert facts["a_source"]["rejected"] == {"duplicate": 1}
    assert facts["b_source"]["kept"] == 1
    assert facts["b_source"]["rejected"] == {"duplicate": 1}


def test_users_ids_are_kept_and_made_unique_where_they_repeat(tmp_path):
    folder, _ = build(
        tmp_path, {"law": [{"id": "x", "text": "one"}, {"id": "x", "text": "two"}, {"id": 7, "text": "three"}, {"text": "four"}]}
    )
    digest = {text: hashlib.sha256(text.encode()).hexdigest()[:16] for text in ("two", "four")}
    assert [record["id"] for record in read(folder / "law.train.jsonl")] == ["x", f"x#{digest['two']}", "7", digest["four"]]


def test_the_side_of_a_document_follows_from_its_text_alone(tmp_path):
    texts = [f"document number {number}" for number in range(400)]
    folder, facts = build(tmp_path, {"law": [{"text": text} for text in texts]}, test_fraction=0.25)
    other, _ = build(tmp_path, {"renamed": [{"text": text} for text in reversed(texts[100:])]}, name="other", test_fraction=0.25)
    test = {record["text"] for record in read(folder / "law.test.jsonl")}
    assert {record["text"] for record in read(other / "renamed.test.jsonl")} == test & set(texts[100:])
    assert test == {text for text in texts if int(hashlib.sha256(text.encode()).hexdigest(), 16) < 0.25 * 2**256}
    assert 60 < facts["law"]["test_documents"] < 140  # 100 expected, standard deviation 8.7


def test_a_source_that_keeps_nothing_or_holds_nothing_out_is_refused_with_its_reasons(tmp_path):
    with pytest.raises(DataError, match=r"source law: none of its 2 records was kept \(null_text 2\)"):
        build(tmp_path, {"law": [{"text": None}, {"text": None}]})
    with pytest.raises(DataError, match="no test document among 1 kept"):
        build(tmp_path, {"law": [{"text": "a"}]}, name="out2", test_fraction=1e-9)
    with pytest.raises(DataError, match="all 1 kept documents were held out"):
        build(tmp_path, {"law": [{"text": "a"}]}, name="out3", test_fraction=1 - 1e-9)


def test_a_source_may_be_held_out_whole(tmp_path):
    folder, facts = build(tmp_path, {"law": [{"text": "a"}, {"text": "b"}]}, test_fraction=1.0)
    assert (facts["law"]["train_documents"], facts["law"]["test_documents"]) == (0, 2)
    assert (folder / "law.train.jsonl").read_text() == ""


def test_short_documents_are_rejected_by_the_sources_own_limit(tmp_path):
    _, facts = build(tmp_path, {"law": [{"text": "abc"}, {"text": "四个汉字"}]}, min_chars=4)
    assert facts["law"]["rejected"] == {"too_short": 1}


def test_a_rerun_gives_the_same_bytes(tmp_path):
    records = [{"id": number % 3, "text": f"text {number % 40}"} for number in range(60)]
    first, _ = build(tmp_path, {"law": records}, test_fraction=0.3)
    second, _ = build(tmp_path, {"law": records}, name="again", test_fraction=0.3)
    for file in sorted(path for path in first.rglob("*") if path.is_file()):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_the_data_card_shows_licence_counts_and_escaped_examples(tmp_path):
    folder, _ = build(tmp_path, {"law": [{"text": "an | example\u202e<b>\nend"}]})
    card = (folder / "data_card.md").read_text()
    assert "MIT" in card
    assert r"an \| example\\u202e&lt;b\>\\nend" in card
    assert json.loads((folder / "data_card.json").read_text())["sources"]["law"]["examples"] == ["an | example\\u202e<b>\\nend"]
