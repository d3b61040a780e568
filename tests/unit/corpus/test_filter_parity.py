"""The filters decide as datatrove's own do, on real text and on text made to repeat itself, with the same splitting into words."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_top_duplicate, get_n_grams
from filter_texts import english_texts, one_group, rules_of, statutes, stock_filters
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.filter_schema import FilterConfig
from megatron_cpt.corpus.filters import TextFilters
from megatron_cpt.corpus.filters.repetition import RepeatedRuns, split_lines, top_ngram_share
from megatron_cpt.corpus.filters.text_filters import Rules
from megatron_cpt.corpus.filters.words import WORD_PATTERN, Words

GROUPS = {
    "GopherRepetitionFilter": "repetition",
    "GopherQualityFilter": "quality",
    "C4QualityFilter": "c4",
    "FineWebQualityFilter": "lines",
}
# datatrove's reason: the rule that says the same here
RULES = {
    "gopher_short_doc": "min_words", "gopher_long_doc": "max_words", "gopher_below_avg_threshold": "min_mean_word_length",
    "gopher_above_avg_threshold": "max_mean_word_length", "gopher_too_many_hashes": "max_hashes_per_word",
    "gopher_too_many_ellipsis": "max_ellipses_per_word", "gopher_too_many_bullets": "max_bullet_lines",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines", "gopher_below_alpha_threshold": "min_alphabetic_words",
    "gopher_enough_stop_words": "min_stop_words", "dup_para_frac": "max_duplicate_paragraphs",
    "dup_para_char_frac": "max_duplicate_paragraph_chars", "dup_line_frac": "max_duplicate_lines",
    "dup_line_char_frac": "max_duplicate_line_chars", "lorem_ipsum": "drop_lorem_ipsum", "curly_bracket": "drop_curly_brackets",
    "too_few_sentences": "min_sentences", "line_punct_ratio": "min_terminal_lines", "short_line_ratio": "max_short_lines",
    "char_dup_ratio": "max_duplicate_line_chars", "list_ratio": "max_newlines_per_word",
    **{f"top_{n}_gram": f"max_top_ngram_chars.{n}" for n in range(2, 9)},
    **{f"duplicated_{n}_n_grams": f"max_duplicate_ngram_chars.{n}" for n in range(5, 21)},
}  # fmt: skip
few_words = st.lists(st.sampled_from(["a", "b", "ab", "c-d", "x.", "12", "\u7532", "\u4e59\u4e19", ",", "\n", "\n\n"]), max_size=80).map(
    " ".join
)
any_text = st.text(st.sampled_from("aZ\u00e90_'\u2019-.,;\u7532\u3042 \n\t\u2028\x1f#\u2026"), max_size=40)


def unlike(preset: str, texts: tuple[str, ...], *, without: tuple[str, ...] = ()) -> tuple[Counter[str], Counter[str]]:
    """Return the verdicts that differ, and how often each rule dropped a text; `without` are quality rules that are switched off."""
    rules = rules_of(preset)
    rules = replace(rules, quality=replace(rules.quality, min_han_share=None, **dict.fromkeys(without)))
    differ: Counter[str] = Counter()
    fired: Counter[str] = Counter()
    for stock in stock_filters(rules):
        group = GROUPS[type(stock).__name__]
        ours = Rules(one_group(rules, group))
        for text in texts:
            document = Document(text=text, id="")
            theirs = stock.filter(document)
            kept, dropped, _ = ours(text)
            if theirs is True:
                same = dropped is None and (kept == document.text or group != "c4")
            else:
                rule = RULES[theirs[1]]
                same = dropped is not None and rule in dropped[1].split()[-2:]
                fired[rule] += 1
            if not same:
                differ[f"{type(stock).__name__}: {theirs} but {dropped}: {text[:60]!r}"] += 1
    return differ, fired


def test_every_verdict_on_thousands_of_english_texts_is_datatroves() -> None:
    texts = english_texts()
    assert len(texts) > 2000
    differ, fired = unlike("fineweb", texts)
    loose, later = unlike("gopher", texts[::5], without=("min_words", "min_alphabetic_words"))
    assert not differ
    assert not loose
    # the comparison says little of a rule that never fired
    assert len(fired + later) >= 18, fired + later


def test_every_verdict_on_chinese_statutes_is_datatroves() -> None:
    differ, fired = unlike("zh", statutes()[::6])
    assert not differ
    assert fired["max_duplicate_ngram_chars.10"] > 0


def test_all_filters_together_keep_what_datatroves_chain_keeps() -> None:
    rules = rules_of("fineweb")
    ours, chain = TextFilters(FilterConfig(rules={"en": rules}), language="en"), stock_filters(rules)
    num_kept = 0
    for text in english_texts()[::5]:
        document = Document(text=text, id="")
        kept = all(step.filter(document) is True for step in chain)
        verdict = ours(text)
        assert (verdict.reason is None) == kept
        assert not kept or verdict.text == document.text
        num_kept += kept
    assert num_kept > 20


@pytest.mark.parametrize("mode", WORD_PATTERN)
def test_words_are_those_of_the_pattern_on_real_text(mode: str) -> None:
    for text in english_texts()[::9]:
        words = Words(text, mode=mode)
        assert words.lengths.tolist() == [len(match.group()) for match in re.finditer(WORD_PATTERN[mode], text)]


@settings(deadline=None)  # other work on the machine is no failure
@given(text=any_text, mode=st.sampled_from(list(WORD_PATTERN)))
def test_words_are_those_of_the_pattern(text: str, mode: str) -> None:
    expected = [match.group() for match in re.finditer(WORD_PATTERN[mode], text)]
    words = Words(text, mode=mode)
    cuts = words.offsets.tolist()
    joined = "".join(expected)
    assert [joined[a:b] for a, b in pairwise(cuts)] == expected
    assert words.num_alphabetic == sum(any(map(str.isalpha, word)) for word in expected)


@settings(deadline=None)  # other work on the machine is no failure
@given(text=few_words, n=st.integers(1, 6))
def test_repeated_runs_are_counted_as_datatrove_counts_them(text: str, n: int) -> None:
    words = [match.group() for match in re.finditer(WORD_PATTERN["spaced"], text)]
    if len(words) >= n:
        arrays = Words(text)
        assert round(top_ngram_share(arrays, n, len(text), 0.0) * len(text)) == find_top_duplicate(get_n_grams(words, n))
        runs = RepeatedRuns(arrays, n)
        for size in range(n, min(n + 3, len(words)) + 1):
            walked = runs.of_size(size).walked_chars()
            assert walked == find_all_duplicate(words, size)
            assert walked <= runs.covered_chars()


@settings(deadline=None)  # other work on the machine is no failure
@given(text=few_words)
def test_lines_are_split_as_the_pattern_splits(text: str) -> None:
    assert split_lines(text) == re.split("\n+", text)


@settings(deadline=None)  # other work on the machine is no failure
@given(text=few_words)
def test_rules_agree_on_texts_that_repeat_themselves(text: str) -> None:
    rules = rules_of("gopher")
    if text.strip():
        theirs = stock_filters(rules)[0].filter(Document(text=text, id=""))
        assert (Rules(one_group(rules, "repetition"))(text)[1] is None) == (theirs is True)
