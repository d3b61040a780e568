"""Candidates: every character reaches the trainer or is accounted for, the text is read once, and what cannot be is one clear error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.schema import CompareConfig
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.vocab import candidates
from megatron_cpt.vocab.candidates import bound_of, refuse_rewriting, save_candidate, train_candidate
from megatron_cpt.vocab.compare import check_compare, gain_curve, train_candidates
from megatron_cpt.vocab.sample import CUT, MAX_LINE_BYTES, RESERVED, write_sample
from tests.unit.vocab.conftest import CHINESE_DOCUMENTS, english_documents

KINDS = ("bpe", "unigram", "byte_level")
# lines beyond the limit, carriage returns before line ends, tabs, the trainer's own marks, characters of 4 bytes
HARD = [
    "𠀀" * 3000,
    "a" * 9000 + "\r\nb\r\r\n\r",
    "tab\there  and\u2028there",
    "mark \u2581 and \u2585 and nul \x00 end",
    "",
    "\n\n",
    "第一条\n" * 40,
]


def texts():
    return english_documents() + CHINESE_DOCUMENTS * 3


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(texts(), tmp_path_factory.mktemp("sample") / "sample.txt")


def test_the_library_counts_exactly_the_characters_of_the_account(tmp_path):
    """SentencePiece's own log says how many sentences it loaded and how many characters they hold."""
    hard = [*HARD, *texts()]
    sample = write_sample(hard, tmp_path / "sample.txt")
    assert sample.chars_in == sum(map(len, hard)) == sample.chars_trained + sample.line_breaks + sample.reserved
    assert sample.reserved == 3
    assert sample.line_breaks == sum(text.count("\n") for text in hard) + 4
    code = (
        "import io, sys, sentencepiece\n"
        "sentencepiece.SentencePieceTrainer.train(input=[sys.argv[1]], model_writer=io.BytesIO(), vocab_size=1000,"
        " model_type='bpe', character_coverage=1.0, byte_fallback=True, normalization_rule_name='identity', add_dummy_prefix=False,"
        f" remove_extra_whitespaces=False, hard_vocab_limit=False, max_sentence_length={MAX_LINE_BYTES})"
    )
    log = subprocess.run(
        [sys.executable, "-c", code, str(sample.for_sentencepiece(tmp_path / "part"))], capture_output=True, text=True, check=True
    ).stderr
    assert int(re.search(r"all chars count=(\d+)", log)[1]) == sample.chars_trained
    assert "Skipped" not in log
    assert "Too long" not in log


def test_no_line_is_beyond_the_limit_and_the_blocks_give_the_texts_back(tmp_path):
    hard = [*HARD, *texts()]
    sample = write_sample(hard, tmp_path / "sample.txt")
    lines = list(sample.lines())
    assert max(map(len, lines)) <= MAX_LINE_BYTES + 1
    assert len(lines) == sample.line_ends.size
    # parts of 1,024 characters until the rest fits: 3,000 of 4 bytes leave 952 after two, 9,000 of one byte 3,880 after five
    assert np.count_nonzero(sample.line_ends == CUT) == 2 + 5
    wanted = "".join(hard)
    for mark in RESERVED:
        wanted = wanted.replace(mark, "")
    assert "".join(sample.blocks()) == wanted


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=6), times=st.integers(1, 60))
def test_any_text_comes_back_from_the_scratch_file(tmp_path_factory, parts, times):
    path = tmp_path_factory.mktemp("any") / "sample.txt"
    given_texts = ["x", *(part * times for part in parts)]
    sample = write_sample(given_texts, path)
    wanted = "".join(given_texts)
    for mark in RESERVED:
        wanted = wanted.replace(mark, "")
    assert "".join(sample.blocks()) == wanted
    assert sum(1 for _ in sample.lines()) == sample.line_ends.size


def test_a_bounded_sample_is_spread_evenly_and_says_what_it_leaves_out(tmp_path):
    sample = write_sample([f"{number:05d} {'x' * 90}\n" * 3 for number in range(1000)], tmp_path / "all.txt")
    half = sample.bounded(sample.num_bytes // 2)
    assert half.chars_in == sample.chars_in == half.chars_trained + half.line_breaks + half.reserved + half.left_out
    assert 0.49 * sample.num_bytes < half.num_bytes <= 0.5 * sample.num_bytes
    numbers = [int(line[:5]) for line in half.lines() if line.strip()]
    assert np.histogram(numbers, bins=10, range=(0, 1000))[0].tolist() == pytest.approx([150] * 10, abs=6)
    assert sample.bounded(sample.num_bytes) is sample


def test_the_account_of_a_bounded_sample_is_what_its_lines_hold(tmp_path):
    hard = [*HARD, *(f"{text}\r\n{text}" for text in texts())]
    sample = write_sample(hard, tmp_path / "sample.txt").bounded(60_000)
    lines = [line.decode() for line in sample.lines()]
    assert sample.num_bytes == sum(len(line.encode()) for line in lines) <= 60_000
    assert sample.chars_trained == sum(len(line.rstrip("\r\n")) for line in lines)
    assert sample.left_out > 0
    assert sample.chars_in == sum(map(len, hard)) == sample.chars_trained + sample.line_breaks + sample.reserved + sample.left_out
    handed_over = sample.for_sentencepiece(tmp_path / "part").read_bytes()
    assert handed_over == b"".join(line.rstrip("\r\n").encode() + b"\n" for line in lines)
    whole = "\n\n".join(hard)
    for mark in RESERVED:
        whole = whole.replace(mark, "")
    assert all(block in whole for block in sample.blocks())


def test_a_trainer_gets_less_of_a_text_that_takes_more_memory(tmp_path, monkeypatch):
    chinese = write_sample(CHINESE_DOCUMENTS, tmp_path / "zh.txt")
    monkeypatch.setattr(candidates, "MEMORY_BUDGET", 45.0 * chinese.num_bytes)
    assert bound_of("byte_level", chinese) == pytest.approx(chinese.num_bytes / 2, rel=0.02)
    assert bound_of("bpe", chinese) == chinese.num_bytes
    trained = train_candidate("byte_level", chinese, num_pieces=20)
    assert trained.sample.left_out > 0.4 * chinese.chars_in
    assert [path.name for path in tmp_path.iterdir()] == ["zh.txt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_gives_the_text_back_and_trains_the_same_twice(tmp_path, sample, kind):
    candidate = train_candidate(kind, sample, num_pieces=400)
    assert candidate.num_pieces >= 400
    again = replace(sample, path=tmp_path / "elsewhere")
    again.path.write_bytes(sample.path.read_bytes())
    assert train_candidate(kind, again, num_pieces=400).model == candidate.model, "where the text lay is no part of a model"
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    ids = candidate.vocabulary.encode(["第一条　民事主体 two  spaces\t𠀀"])[0]
    assert max(ids) < candidate.vocabulary.lengths.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_candidate_loads_in_a_process_that_knows_nothing_of_us(tmp_path, sample, kind):
    candidate = train_candidate(kind, sample, num_pieces=400)
    save_candidate(tmp_path / kind, candidate)
    text = "第一条　民事主体 two  spaces\t𠀀, e\u0301"
    if kind == "byte_level":
        code = "from tokenizers import Tokenizer; t = Tokenizer.from_file('tokenizer.json'); ids = t.encode(x).ids; back = t.decode(ids)"
    else:
        code = (
            "import sentencepiece; t = sentencepiece.SentencePieceProcessor(model_file='tokenizer.model'); "
            "ids = t.encode(x); back = t.decode(ids)"
        )
    code = f"import json; x = json.loads({json.dumps(json.dumps(text))}); {code}; assert back == x, back; print(json.dumps(ids))"
    answer = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path / kind, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == candidate.vocabulary.encode([text])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_beyond_the_text_is_an_error_with_a_size_that_works(sample, kind):
    with pytest.raises(DataError, match=r"at most \d+ pieces") as caught:
        train_candidate(kind, sample, num_pieces=200_000)
    most = int(re.search(r"at most (\d+)", str(caught.value))[1])
    assert train_candidate(kind, sample, num_pieces=most).num_pieces >= most


@pytest.mark.parametrize("blank", [[], [""], [" \n\t\u3000\r\n", "\n"]])
def test_an_empty_or_blank_sample_is_refused_and_leaves_no_file(tmp_path, blank):
    with pytest.raises(DataError, match="empty or holds white space only"):
        write_sample(blank, tmp_path / "sample.txt")
    assert not list(tmp_path.iterdir())


def test_a_normaliser_that_rewrites_is_refused_with_count_and_first_example(tmp_path):
    sample = write_sample(["plain", "第１条，甲方", "ok\n（乙）"], tmp_path / "sample.txt")
    with pytest.raises(DataError, match=r"2 of 4 lines; first: line 2, character 2: '１条，甲方' becomes '1条,甲方'"):
        refuse_rewriting(sample, "nfkc")
    with pytest.raises(ConfigError, match="identity, nfkc"):
        refuse_rewriting(sample, "nmt")
    refuse_rewriting(sample, "identity")
    refuse_rewriting(write_sample(["plain text"], tmp_path / "plain.txt"), "nfkc")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"sizes": [0]}, "sizes"),
        ({"sizes": [-3]}, "sizes"),
        ({"sizes": [True]}, "sizes"),
        ({"sizes": [400, 500, 400]}, "sizes"),
        ({"kinds": ["bpe", "bpe"]}, "kinds"),
        ({"kinds": ["wordpiece"]}, "kinds"),
        ({"sample_bytes": 0}, "sample_bytes"),
        ({"relearn_tokens": -1.0}, "relearn_tokens"),
    ],
)
def test_settings_that_make_no_comparison_are_named(wrong, named):
    with pytest.raises(ConfigError, match=rf"tokenizer\.compare\.{named}"):
        check_compare(CompareConfig(**wrong))


def test_all_candidates_are_trained_from_one_reading_of_the_corpus(tmp_path):
    readings = []

    def read():
        readings.append(1)
        return iter(texts())

    chosen = CompareConfig(sizes=[300, 500])
    found, remarks = train_candidates(chosen, read, tmp_path, like=None, default_size=0, say=lambda line: None)
    assert len(readings) == 1
    assert len(found) == 6
    assert len(remarks) == 7
    assert not list(tmp_path.iterdir())


def test_a_size_that_nobody_asked_for_is_a_remark_where_the_text_does_not_give_it(tmp_path):
    found, remarks = train_candidates(
        CompareConfig(kinds=["byte_level"]), lambda: iter(["abc abc"]), tmp_path, like=None, default_size=50, say=lambda line: None
    )
    assert found == []
    assert "at most 2 pieces" in remarks[1]
    with pytest.raises(DataError, match="at most 2"):
        train_candidates(
            CompareConfig(kinds=["byte_level"], sizes=[50]), lambda: iter(["abc abc"]), tmp_path, like=None, default_size=0, say=print
        )
    assert not list(tmp_path.iterdir())


def test_the_gain_curve_adds_the_counts_up_and_holds_the_size_asked_for():
    gain = gain_curve([9, 5, 4, 1], sample_tokens=100, asked=3, num_points=2)
    assert gain == {"sample_tokens": 100, "asked": 3, "points": [[0, 0], [2, 14], [3, 18], [4, 19]]}
