"""The filters within the corpus stage: every document accounted for, nothing private in any file, presets that compose."""

from __future__ import annotations

import json

import pytest
from filter_texts import english_texts

from megatron_cpt.config.compose import compose
from megatron_cpt.config.filter_schema import (
    FilterConfig,
    LanguageConfig,
    NgramLimitConfig,
    PrivateDataConfig,
    TextRulesConfig,
    UnicodeConfig,
)
from megatron_cpt.config.schema import CorpusConfig, EngineConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.corpus.filters import TextFilters
from megatron_cpt.corpus.tasks import TaskPlan
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.inputs import corpus_settings
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.typed import from_plain, to_plain

ENGLISH = "The court held that the parties have to be heard, and that the order of the lower court was to stand."
GERMAN = "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt."


def build(tmp_path, records, filters):
    path = tmp_path / "law.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    source = SourceConfig(
        path=str(path), role="domain", licence="MIT", provenance=ProvenanceConfig("made here", "2026-11", "by this test"),
        language="en", test_fraction=0.0,
    )  # fmt: skip
    result = StageResult(tmp_path / "out")
    result.folder.mkdir()
    settings = CorpusConfig(filters=filters, engine=EngineConfig(workers=1))
    build_corpus(result, sources={"law": source}, say=lambda line: None, settings=settings)
    return result.folder, result.facts["sources"]["law"]


def test_what_is_private_stands_in_no_file_and_is_counted(tmp_path):
    private = ["jane.doe@uni-jena.de", "13912345678", "11010519491231002X"]
    records = [{"text": f"{ENGLISH} {value} {number}"} for number, value in enumerate(private)] + [
        {"text": ENGLISH + "\u200b"},
        {"text": GERMAN},
    ]
    filters = FilterConfig(
        unicode=UnicodeConfig(format_characters="remove"), language=LanguageConfig(identify=True),
        private=PrivateDataConfig(email="mask", phone="mask", resident_id_cn="drop"),
    )  # fmt: skip
    folder, facts = build(tmp_path, records, filters)
    assert (facts["read"], facts["kept"], facts["rejected"]) == (5, 3, {"language": 1, "private_data": 1})
    assert facts["found"] == {"email": 1, "format_characters": 1, "phone": 1, "resident_id_cn": 1}
    assert facts["languages"] == {"de": 1, "en": 4}
    assert facts["repaired"] == {"email": 1, "format_characters": 1, "phone": 1}
    texts = [json.loads(line)["text"] for line in (folder / "law.train.jsonl").read_text().splitlines()]
    assert texts == [f"{ENGLISH} <EMAIL> 0", f"{ENGLISH} <PHONE> 1", ENGLISH]
    for path in folder.rglob("*"):
        if path.is_file():
            assert not any(value in path.read_text(encoding="utf-8") for value in private), path
    card = (folder / "data_card.md").read_text()
    assert "- found by the filters: email 1, format\\_characters 1, phone 1, resident\\_id\\_cn 1" in card
    assert "- documents by identified language: de 1, en 4" in card


def test_a_setting_that_means_nothing_is_refused_before_any_text_is_read(tmp_path):
    with pytest.raises(ConfigError, match="words='bytes' is not one of"):
        build(tmp_path, [{"text": ENGLISH}], FilterConfig(rules={"en": TextRulesConfig(words="bytes")}))
    assert not (tmp_path / "out" / "rejects").exists()


def test_texts_that_the_repairs_make_equal_are_one(tmp_path):
    filters = FilterConfig(unicode=UnicodeConfig(line_ends="lf", normal_form="NFC"))
    _, facts = build(tmp_path, [{"text": "a\r\nb\u00e9"}, {"text": "a\nbe\u0301"}, {"text": "\u200b"}], filters)
    assert facts["rejected"] == {"duplicate": 1}


def test_presets_compose_and_stand_together():
    assert compose(["experiment=tiny"]).corpus.filters == FilterConfig()
    filters = compose(["experiment=tiny", "filter=[fineweb,zh]", "corpus.filters.private.email=mask"]).corpus.filters
    assert set(filters.rules) == {"en", "zh"}
    assert filters.rules["en"].quality.min_words == 50
    assert filters.rules["en"].repetition.max_top_ngram_chars == [
        NgramLimitConfig(2, 0.20),
        NgramLimitConfig(3, 0.18),
        NgramLimitConfig(4, 0.16),
    ]
    assert filters.rules["zh"].words == "characters"
    assert (filters.private.email, filters.private.phone) == ("mask", "count")


def test_the_rules_are_the_same_read_back_from_a_record():
    settings = compose(["experiment=tiny", "filter=[fineweb,zh]"]).corpus
    plan = TaskPlan(sources={}, settings=settings, tasks=())
    assert from_plain(TaskPlan, json.loads(json.dumps(to_plain(plan))), where="plan") == plan
    inputs = corpus_settings(settings)  # a finished stage is told by them
    assert json.loads(json.dumps(inputs)) == inputs
    assert corpus_settings(compose(["experiment=tiny"]).corpus) == {}


def test_a_worker_reads_the_rules_as_they_were_composed(tmp_path):
    filters = compose(["experiment=tiny", "filter=gopher"]).corpus.filters
    prose = next(text for text in english_texts() if TextFilters(filters, language="en")(text).reason is None)
    _, facts = build(tmp_path, [{"text": prose}, {"text": "Too short."}, {"text": f"{ENGLISH} " * 5}], filters)
    assert (facts["kept"], facts["rejected"]) == (1, {"quality": 1, "repetition": 1})
