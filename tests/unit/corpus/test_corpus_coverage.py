"""The coverage report says what of a domain a corpus holds and lacks; the data card shows strangers' text without its markup."""

from __future__ import annotations

import json
import math
import pydoc_data.topics
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_corpus_chosen import CODE_PARTS, PROSE_PARTS, build, rows, write

from megatron_cpt.config.schema import CorpusConfig
from megatron_cpt.corpus import coverage
from megatron_cpt.corpus.coverage import Seen, Yardstick, count_files, sampled
from megatron_cpt.corpus.coverage_report import coverage_lines, coverage_report
from megatron_cpt.corpus.distinctive import RunCounts, distinctive_terms, least_log_odds, runs_of
from megatron_cpt.corpus.markdown import cell
from megatron_cpt.corpus.select.terms import TermFinder
from megatron_cpt.corpus.topics import Topics

LAW = ["行政处罚由行政机关决定，行政处罚决定书应当送达当事人。", "行政处罚法规定，当事人可以申请行政复议。", "法院审理行政处罚案件。"] * 4


def test_log_odds_are_those_of_the_formula_by_hand():
    # Monroe et al. 2008, eq. 16 and 20, with a prior of 1,000 n-grams distributed as 30 of 20,000
    prior = 1000 * 30 / 20_000
    odds, odds_there = (25 + prior) / (10_000 + 1000 - 25 - prior), (5 + prior) / (10_000 + 1000 - 5 - prior)
    wanted = math.log(odds / odds_there) - 1.96 * math.sqrt(1 / (25 + prior) + 1 / (5 + prior))
    assert least_log_odds(25, 5, 10_000, 10_000) == pytest.approx(wanted)


def test_runs_are_words_and_pairs_or_characters_and_never_cross_punctuation():
    assert set(runs_of("heart attack, at 3 行政法")) == {
        ("heart",), ("attack",), ("at",), ("heart", "attack"), ("行",), ("政",), ("法",), ("行", "政"), ("政", "法"), ("行", "政", "法"),
    }  # fmt: skip


def test_drawn_terms_are_the_domains_and_not_its_function_words():
    here = RunCounts.of(CODE_PARTS)
    terms = distinctive_terms(here, here + RunCounts.of(PROSE_PARTS), limit=40)
    assert {"json", "encoder", "decode"} & set(terms)
    assert not {"the", "of", "and", "is"} & set(terms)
    assert distinctive_terms(here, here, limit=40) == []  # nothing to set it apart from


def test_chinese_terms_are_whole_words_where_the_other_texts_have_no_chinese():
    here = RunCounts.of(LAW)
    terms = distinctive_terms(here, here + RunCounts.of(PROSE_PARTS), limit=40)
    assert {"行政处罚", "当事人"} <= set(terms)
    assert not {"政处", "处罚", "事人"} & set(terms)  # parts of longer terms


def test_topics_tell_two_kinds_of_text_apart_and_know_what_is_of_neither():
    rng = random.Random(1)
    law, sea = ["court", "party", "judge", "appeal", "statute", "verdict"], ["ship", "whale", "storm", "sail", "harbour", "anchor"]
    texts = [" ".join(rng.choices(words, k=60)) for words in [law] * 30 + [sea] * 30]
    topics = Topics.of(texts, num_topics=2)
    found = [topics.topic_of(text) for text in texts]
    (of_law, num_law), (of_sea, num_sea) = (Counter(part).most_common(1)[0] for part in (found[:30], found[30:]))
    assert {of_law, of_sea} == {0, 1}
    assert min(num_law, num_sea) >= 28  # the least like 2 % of all are of none, by the rule
    assert topics.topic_of(" ".join(rng.choices(sea, k=60))) == of_sea
    assert topics.topic_of("numpy arrays are sliced by index and reshaped") == 2
    assert topics.shares == (0.5, 0.5)


def test_topics_of_a_small_target_take_in_other_documents_of_its_kind():
    topics = Topics.of(CODE_PARTS[::2], num_topics=10)
    inside = [topics.topic_of(text) < len(topics.shares) for text in CODE_PARTS[1::2]]
    outside = [topics.topic_of(text) == len(topics.shares) for text in LAW]
    assert np.mean(inside) > 0.6
    assert all(outside)


def test_a_report_counts_terms_and_lists_what_was_never_seen(tmp_path):
    yardstick = Yardstick.of(CorpusConfig(), terms=["heart attack", "aorta", "never"], target=["the aorta"], others=[])
    path = tmp_path / "a.train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["Heart attack in 1984, 1,985 and 20021", "aorta aorta 1987年"]))
    report = coverage_report(yardstick, count_files({"a": path}, yardstick, workers=1), target=["t"])
    assert [(term["count"], term["documents"], term["in_target"]) for term in report["terms"]] == [(1, 1, 0), (2, 1, 1), (0, 0, 0)]
    assert (report["terms_seen"], report["never_seen"], report["decades_named"]) == (2, ["never"], {"1980": 2})
    assert "2 of 3 terms (66.7%) are seen" in "\n".join(coverage_lines(report))
    empty = coverage_report(yardstick, {"a": Seen()}, target=[])
    assert "0 of 3 terms" in "\n".join(coverage_lines(empty))


def test_slices_and_processes_count_what_one_pass_counts(tmp_path, monkeypatch):
    path = tmp_path / "a.train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in CODE_PARTS))
    yardstick = Yardstick.of(CorpusConfig(), terms=["json", "def", "the decoder"], target=[], others=[])
    whole = count_files({"a": path}, yardstick, workers=1)["a"]
    assert whole.documents == len(CODE_PARTS)
    assert whole.terms[1] == sum(len(re.findall(r"(?<!\w)def(?!\w)", text.lower())) for text in CODE_PARTS)
    starts = sorted({0, *np.cumsum([len(line) + 1 for line in path.read_text().splitlines()])[:-1].tolist()})
    for size in (starts[1], starts[1] - 1, 777):
        monkeypatch.setattr(coverage, "SLICE_BYTES", size)
        sliced = Seen()
        for start in range(0, path.stat().st_size, size):
            sliced += coverage.count_slice(path, start, TermFinder(yardstick.terms), None)
        assert sliced == whole


def test_a_sample_is_the_same_in_any_order_and_bounded():
    texts = [(number * 7919 % 1000, f"{number:04d}" * 25) for number in range(1000)]
    found = sampled(texts, max_bytes=1000)
    assert found == sampled(texts[::-1], max_bytes=1000)
    assert len(found) == 10
    assert found[0] == texts[0][1]
    assert sampled([(1, "x" * 5000)], max_bytes=1000) == ["x" * 5000]


def test_the_stage_reports_coverage_of_a_file_target_and_a_term_list(tmp_path):
    terms = tmp_path / "terms.txt"
    terms.write_text("decoder\nzebra crossing\n")
    sources = {
        "code": write(tmp_path / "code.jsonl", CODE_PARTS[1::2]),
        "prose": write(tmp_path / "prose.jsonl", PROSE_PARTS),
    }
    target = write(tmp_path / "target.jsonl", CODE_PARTS[::2])
    result = build(tmp_path / "out", sources, target=[target], max_documents=12, terms=str(terms))
    report = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert report["never_seen"] == ["zebra crossing"]
    assert result.facts["coverage"]["terms_seen"] == 1
    assert report["documents"] == 12 == sum(len(rows(tmp_path / "out" / f"{name}.train.jsonl")) for name in sources)
    card = (tmp_path / "out" / "data_card.md").read_text()
    assert "zebra crossing" in card
    assert "12 of " in card
    data = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert sum(entry["documents"] for facts in data["sources"].values() for entry in facts["length_histogram"]) == 12
    assert data["coverage"]["never_seen"] == ["zebra crossing"]


def test_strangers_text_is_no_markup():
    assert cell("a|b `c` <i> *d* _e_ [f](g) & ~x~") == r"a\|b \`c\` &lt;i\> \*d\* \_e\_ \[f\](g) &amp; \~x\~"
    assert cell("http://a.b www.c.d e@f.g") == r"http\://a.b www\.c.d e\@f.g"
    assert "\n" not in cell("one\n# two\u2028\u202e")


def test_the_card_of_pydoc_topics_has_one_line_an_example(tmp_path):
    nasty = ["# heading\n\n| a | b |\n<script>alert(1)</script> ![x](http://y)", *pydoc_data.topics.topics.values()]
    build(tmp_path / "out", {"law": write(tmp_path / "law.jsonl", nasty)})
    (example,) = [line for line in (tmp_path / "out" / "data_card.md").read_text().splitlines() if "heading" in line]
    assert example == r"- example: # heading\\n\\n\| a \| b \|\\n&lt;script\>alert(1)&lt;/script\> !\[x\](http\://y)"
    assert Path(tmp_path / "out" / "coverage.json").exists() is False
