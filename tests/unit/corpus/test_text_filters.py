"""The filters of a source together: the default changes nothing, each drop says its measure, settings that mean nothing are refused."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from filter_texts import python_texts, rules_of, statutes
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.filter_schema import (
    C4RulesConfig,
    FilterConfig,
    LanguageConfig,
    PrivateDataConfig,
    QualityRulesConfig,
    TextRulesConfig,
    UnicodeConfig,
)
from megatron_cpt.corpus.filters import TextFilters
from megatron_cpt.errors import ConfigError

ENGLISH = "The court held that the parties have to be heard, and that the order of the lower court was to stand. " * 3
CHINESE = "为了维护国家安全，保卫人民民主专政的政权和中国特色社会主义制度，保护人民的根本利益，根据宪法，制定本法。公民有义务守法。" * 3
GERMAN = "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt."


@settings(deadline=None)  # the first example makes tables
@given(text=st.text(st.characters(exclude_categories=())))
def test_the_default_leaves_every_text_as_it_is(text: str) -> None:
    assert TextFilters(FilterConfig(), language="en")(text) == (text, None, "", {}, None)


@settings(deadline=None)  # the first example makes tables
@given(text=st.text(st.characters(exclude_categories=())), preset=st.sampled_from(["fineweb", "zh"]))
def test_no_text_breaks_the_rules(text: str, preset: str) -> None:
    rules = replace(rules_of(preset), quality=replace(rules_of(preset).quality, min_words=None))
    verdict = TextFilters(FilterConfig(rules={"any": rules}), language="en")(text)
    assert verdict.reason is None or verdict.detail


@settings(deadline=None)  # the first example makes tables
@given(text=st.text(st.sampled_from("e\u0301\u00e9\r\n\u200b\u202e\u00ad\u200d\ufb01x")))
def test_repairs_done_twice_are_done_once(text: str) -> None:
    repair = TextFilters(FilterConfig(unicode=UnicodeConfig(normal_form="NFKC", format_characters="remove", line_ends="lf")), language="en")
    once = repair(text).text
    assert repair(once) == (once, None, "", {}, None)
    assert "\r" not in once
    assert once == unicodedata.normalize("NFKC", once)


def test_repairs_are_counted() -> None:
    repair = TextFilters(FilterConfig(unicode=UnicodeConfig(normal_form="NFC", format_characters="remove", line_ends="lf")), language="en")
    verdict = repair("a\r\nb\rc\u200b\u200be\u0301 \u0646\u0645\u06cc\u200c\u062e\u0648")
    assert verdict.text == "a\nb\nc\u00e9 \u0646\u0645\u06cc\u200c\u062e\u0648"  # the Persian joiner stays
    assert verdict.counts == {"line_ends": 2, "format_characters": 2, "normal_form": 1}


def test_a_drop_says_the_measure_and_the_threshold() -> None:
    filters = TextFilters(FilterConfig(rules={"en": rules_of("gopher")}), language="en")
    assert filters("Too short to be of use.")[1:3] == ("quality", "6, min_words 50")
    # the most frequent four words, three times 19 characters of 306: 57 / 306
    assert filters(ENGLISH)[1:3] == ("repetition", "0.186275, max_top_ngram_chars.4 0.16")


def test_rules_go_by_the_language_of_the_source() -> None:
    filters = FilterConfig(rules={"en": rules_of("gopher"), "zh": rules_of("zh")})
    assert TextFilters(filters, language="zh-CN")("The of and.").detail == "3, min_words 100"
    assert TextFilters(filters, language="en_GB")("The of and.").detail == "3, min_words 50"
    assert TextFilters(filters, language="de")("The of and.").reason is None


def test_chinese_rules_keep_most_statutes_and_drop_other_text() -> None:
    filters = TextFilters(FilterConfig(rules={"any": rules_of("zh")}), language="zh")
    kept = [filters(text).reason is None for text in statutes()]
    assert sum(kept) / len(kept) > 0.6  # the others repeat their phrases (docs/reference/corpus.md)
    no_han = [filters(text) for text in python_texts()[:50]]
    assert all(verdict.reason for verdict in no_han)


def test_too_few_han_characters_are_a_reason() -> None:
    filters = TextFilters(FilterConfig(rules={"any": TextRulesConfig(quality=QualityRulesConfig(min_han_share=0.3))}), language="zh")
    assert filters("甲乙 abcdefgh").detail == "0.2, min_han_share 0.3"
    assert filters("甲乙丙 abcdefg").reason is None


def test_lines_that_are_taken_out_are_counted() -> None:
    rules = TextRulesConfig(c4=C4RulesConfig(terminal_lines_only=True, remove_citations=True, min_words_per_line=3))
    verdict = TextFilters(FilterConfig(rules={"any": rules}), language="en")(
        "Menu\nThe court held so.[12]\n  It was right.\nHome | About us\n"
    )
    assert verdict.text == "The court held so.\nIt was right."
    assert verdict.counts == {"removed_lines": 2}


def test_languages_are_told_apart_and_counted_by_name() -> None:
    filters = TextFilters(FilterConfig(language=LanguageConfig(identify=True)), language="en")
    assert filters(ENGLISH)[1:] == (None, "", {}, "en")
    assert filters(CHINESE).language == "zh"
    dropped = filters(GERMAN)
    assert (dropped.reason, dropped.language) == ("language", "de")
    assert dropped.detail.startswith("de with confidence 0.") or dropped.detail.startswith("de with confidence 1.")
    assert filters("Das ist kurz.").language is None  # too short to judge: kept
    confined = TextFilters(FilterConfig(language=LanguageConfig(identify=True, among=["en", "zh"], keep=["zh"])), language="en")
    assert confined(GERMAN).language == "en"
    assert confined(CHINESE).reason is None


def test_real_text_is_of_its_language() -> None:
    filters = TextFilters(FilterConfig(language=LanguageConfig(identify=True)), language="zh")
    assert [filters(text).reason for text in statutes()] == [None] * len(statutes())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (FilterConfig(private=PrivateDataConfig(email="hide")), "private.email='hide' is not one of: 'ignore', 'count', 'mask', 'drop'."),
        (FilterConfig(unicode=UnicodeConfig(normal_form="NFD")), "unicode.normal_form='NFD'"),
        (FilterConfig(rules={"en": TextRulesConfig(words="bytes")}), "rules.en.words='bytes'"),
        (FilterConfig(rules={"en": TextRulesConfig(quality=QualityRulesConfig(max_words=-1))}), "rules.en: max_words=-1 is below 0."),
        (FilterConfig(rules={"en": TextRulesConfig(quality=QualityRulesConfig(min_stop_words=2))}), "min_stop_words=2"),
        (FilterConfig(language=LanguageConfig(identify=True, keep=["klingon"])), "does not know klingon"),
        (FilterConfig(language=LanguageConfig(identify=True, min_confidence=2)), "min_confidence=2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(asked: FilterConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.filters") as refused:
        TextFilters(asked, language="en")
    assert said in str(refused.value)


def test_the_filters_load_neither_torch_nor_pickles() -> None:
    code = (
        "import sys, pickle\n"
        "def refuse(*a, **k): raise SystemExit('a pickle was read')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "from megatron_cpt.config.filter_schema import FilterConfig, LanguageConfig\n"
        "from megatron_cpt.corpus.filters import TextFilters\n"
        "TextFilters(FilterConfig(language=LanguageConfig(identify=True)), language='en')('word ' * 40)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=60)


@pytest.mark.parametrize(
    ("broken", "whole"), [("cafÃ© â€” schÃ¶n", "café — schön"), ("ç¬¬ä¸€æ\x9d¡", "第一条"), (CHINESE, CHINESE), (GERMAN, GERMAN)]
)
def test_text_that_was_read_in_a_wrong_encoding_is_repaired_only_when_asked_for(broken: str, whole: str) -> None:
    # the broken forms are the UTF-8 bytes of the whole ones, read as Windows-1252
    pytest.importorskip("ftfy", reason="ftfy is not installed (extra mojibake)")
    assert TextFilters(FilterConfig(unicode=UnicodeConfig(mojibake="repair")), language="en")(broken).text == whole
    assert TextFilters(FilterConfig(), language="en")(broken).text == broken
