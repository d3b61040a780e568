"""A user's terms become pieces, and say why when they cannot."""

from __future__ import annotations

import json

import pytest
from test_vocab_build import build, plain

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.store import read_json
from megatron_cpt.vocab.base import load_base

GENERAL_WORD = "configuration"  # stands in the documentation that the base and the general text are made of


@pytest.fixture
def terms_file(tmp_path):
    def write(*terms):
        path = tmp_path / "terms.txt"
        path.write_text("".join(f"{term}\n" for term in terms), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="module")
def sources(english, chinese):
    return {"law": ("domain", chinese[:8], chinese[8:]), "english": ("general", english[:-5], english[-5:])}


def outcomes_of(result):
    return {line["term"]: line for line in map(json.loads, (result.folder / "terms.jsonl").read_text().splitlines())}


def test_each_term_is_one_token_before_any_learned_piece(tmp_path, base_folder, sources, terms_file):
    terms = ["民事法律关系", "善意取得", "民事", "zugzwang", "善意取得"]
    result = build(tmp_path, base_folder, sources, terms=terms_file(*terms))
    tokenizer = plain(result.folder / "tokenizer")
    for term in set(terms):
        assert len(tokenizer.encode(term, add_special_tokens=False).ids) == 1, term
        assert tokenizer.decode(tokenizer.encode(f"于{term}。", add_special_tokens=False).ids) == f"于{term}。"
    pieces = [json.loads(line) for line in (result.folder / "new_pieces.jsonl").read_text().splitlines()]
    assert len(pieces) == 60
    forced = [piece for piece in pieces if piece.get("forced")]
    assert [piece["id"] for piece in forced] == list(range(600, 600 + len(forced)))
    assert set(terms) <= {piece["piece"] for piece in forced}
    assert outcomes_of(result)["民事"]["outcome"] == "one piece already" or outcomes_of(result)["民事"]["num_merges"] == 0


def test_terms_share_their_parts(tmp_path, base_folder, sources, terms_file):
    """民事 is built once: 3 bytes a character are 2 merges each and 1 for the pair; 民事法 adds 2 for 法 and 1 for the join."""
    result = build(tmp_path, base_folder, sources, terms=terms_file("民事", "民事法"))
    found = outcomes_of(result)
    assert (found["民事"]["num_merges"], found["民事法"]["num_merges"]) == (5, 3)


def test_a_term_after_a_space_is_forced_as_it_stands_in_the_text(tmp_path, base_folder, sources, terms_file):
    text = "the estoppel and the estoppel bar the estoppel. " * 3
    law = ("domain", [*sources["law"][1], text], sources["law"][2])
    result = build(tmp_path, base_folder, {**sources, "law": law}, terms=terms_file("estoppel"))
    tokenizer = plain(result.folder / "tokenizer")
    assert outcomes_of(result)["estoppel"]["form"] == " estoppel"
    assert len(tokenizer.encode(" estoppel", add_special_tokens=False).ids) == 1


def test_terms_that_cannot_be_pieces_say_why_and_general_text_stays(tmp_path, base_folder, sources, terms_file):
    ids = load_base(base_folder).tokenizer.encode(GENERAL_WORD, add_special_tokens=False).ids
    assert len(ids) > 1, "the word is of several pieces in the base, so forcing it would move general text"
    result = build(tmp_path, base_folder, sources, terms=terms_file("two words", "the", GENERAL_WORD, "物权"))
    found = outcomes_of(result)
    assert found["two words"]["outcome"] == "crosses words"
    assert found["the"]["outcome"] == "one piece already"
    assert found[GENERAL_WORD]["outcome"] == "changes general text"
    assert found["物权"]["outcome"] == "forced"
    assert read_json(result.folder / "contract.json")["drift"]["num_changed"] == 0


def test_a_bound_lets_a_term_change_so_many_general_documents_and_the_contract_counts_them(
    tmp_path, base_folder, sources, terms_file, english
):
    result = build(tmp_path, base_folder, sources, terms=terms_file(GENERAL_WORD), max_drift=0.5)
    assert outcomes_of(result)[GENERAL_WORD]["outcome"] == "forced"
    tokenizer, base = plain(result.folder / "tokenizer"), plain(base_folder)
    assert len(tokenizer.encode(GENERAL_WORD, add_special_tokens=False).ids) == 1
    changed = sum(
        tokenizer.encode(text, add_special_tokens=False).ids != base.encode(text, add_special_tokens=False).ids for text in english
    )
    drift = read_json(result.folder / "contract.json")["drift"]
    assert 0 < changed <= 0.5 * len(english)
    assert drift == {"num_documents": len(english), "num_changed": changed, "max_share": 0.5}


def test_a_term_beyond_the_bound_is_left_out(tmp_path, base_folder, sources, terms_file):
    result = build(tmp_path, base_folder, sources, terms=terms_file(GENERAL_WORD), max_drift=1e-6)
    assert outcomes_of(result)[GENERAL_WORD]["outcome"] == "changes general text"


def test_more_terms_than_new_pieces_is_an_error_with_a_number_that_works(tmp_path, base_folder, sources, terms_file):
    with pytest.raises(DataError, match="num_new_pieces=5 or more"):
        build(tmp_path / "a", base_folder, sources, terms=terms_file("民事"), num_new_pieces=4)
    assert build(tmp_path / "b", base_folder, sources, terms=terms_file("民事"), num_new_pieces=5).facts["num_new_pieces"] == 5


@pytest.mark.parametrize("wrong", [{"max_drift": -0.1}, {"max_drift": 1.0}, {"max_drift": float("nan")}, {"terms": "/nowhere.txt"}])
def test_settings_of_terms_without_sense_are_config_errors(tmp_path, base_folder, sources, wrong):
    with pytest.raises(ConfigError):
        build(tmp_path, base_folder, sources, **wrong)
    with pytest.raises(ConfigError, match="no new pieces"):
        build(tmp_path / "b", base_folder, sources, terms="x", num_new_pieces=0)
