"""Bases as people have them: whole-word look-up, a normaliser, older files, damaged files, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_vocab_build import SEPARATOR, build, changed_base, plain
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.record.store import read_json
from megatron_cpt.record.vocab_contract import check_vocab
from megatron_cpt.vocab import contract
from megatron_cpt.vocab.base import load_base

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sources(english, chinese):
    return {"law": ("domain", chinese[:8], chinese[8:]), "english": ("general", english[:-5], english[-5:])}


def test_whole_word_look_up_still_needs_merges_that_build_each_piece(tmp_path, base_folder, sources):
    """Llama 3: `ignore_merges` finds a piece that stands alone; inside a longer word only merges make it (bug D77)."""
    folder = changed_base(base_folder, tmp_path, lambda data: data["model"].update(ignore_merges=True))
    result = build(tmp_path, folder, sources)
    data = read_json(result.folder / "tokenizer" / "tokenizer.json")
    assert data["model"]["ignore_merges"] is True
    base, tokenizer = load_base(folder), plain(result.folder / "tokenizer")
    pieces = [json.loads(line) for line in (result.folder / "new_pieces.jsonl").read_text().splitlines()]
    merges = [contract.Merge(piece["left"], piece["right"], piece["id"], tokenizer.id_to_token(piece["id"]), 1) for piece in pieces]
    assert contract.unreachable(base, tokenizer, merges).holds
    lacking = dict(data, model=dict(data["model"], merges=data["model"]["merges"][:-1]))
    found = contract.unreachable(base, Tokenizer.from_str(json.dumps(lacking)), merges)
    assert not found.holds
    assert found.detail.startswith("1 fail")


def test_a_base_that_normalises_keeps_its_normal_form_and_says_so(tmp_path, base_folder, sources):
    folder = changed_base(base_folder, tmp_path, lambda data: data.update(normalizer={"type": "NFC"}))
    result = build(tmp_path, folder, sources)
    checks = {check["name"]: check for check in read_json(result.folder / "contract.json")["checks"]}
    assert "NFC" in checks["normaliser, prefix, pre-tokenizer and decoder are the base's"]["detail"]
    assert "normal form" in checks["decode(encode(x)) == x on the nasty texts"]["detail"]


def test_a_base_that_puts_a_space_before_each_text_is_refused(tmp_path, base_folder):
    folder = changed_base(base_folder, tmp_path, lambda data: data["pre_tokenizer"].update(add_prefix_space=True))
    with pytest.raises(DataError, match="add_prefix_space"):
        load_base(folder)


def older_form(base_folder, tmp_path, model_type="gpt2"):
    folder = tmp_path / "older"
    folder.mkdir()
    model = read_json(base_folder / "tokenizer.json")["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 600}))
    return folder


def test_gpt2s_older_files_are_extended_and_both_forms_agree(tmp_path, base_folder, sources, english):
    folder = older_form(base_folder, tmp_path)
    base, same = load_base(folder).tokenizer, plain(base_folder)
    for text in english:
        assert base.encode(text, add_special_tokens=False).ids == same.encode(text, add_special_tokens=False).ids
    result = build(tmp_path, folder, sources)
    checks = {check["name"]: check for check in read_json(result.folder / "contract.json")["checks"]}
    assert checks["vocab.json and merges.txt give the same ids as tokenizer.json"]["num_cases"] > 20
    assert check_vocab(result.folder).num_ids == 660


def test_the_older_files_of_another_model_are_refused_with_the_way_out(tmp_path, base_folder):
    with pytest.raises(DataError, match=r"qwen2[\s\S]*save_pretrained"):
        load_base(older_form(base_folder, tmp_path, model_type="qwen2"))


def test_a_tiktoken_file_is_refused_by_name_with_the_way_out(tmp_path, base_folder):
    shutil.copyfile(base_folder / "config.json", tmp_path / "config.json")
    (tmp_path / "cl100k_base.tiktoken").write_bytes(b"IQ== 0\n")
    with pytest.raises(DataError, match=r"tiktoken[\s\S]*TikTokenConverter"):
        load_base(tmp_path)


def test_two_pieces_alike_and_an_empty_piece_in_a_base_are_refused(tmp_path, base_folder):
    def alike(data):
        data["model"]["vocab"]["the same id"] = 300

    with pytest.raises(DataError, match="two pieces with one id"):
        load_base(changed_base(base_folder, tmp_path / "a", alike))
    with pytest.raises(DataError, match="empty piece"):
        load_base(changed_base(base_folder, tmp_path / "b", lambda data: data["model"]["vocab"].update({"": 599})))
    folder = changed_base(base_folder, tmp_path / "c", lambda data: None)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"vocab": {', '"vocab": {"a": 1, "a": 2, ', 1))
    with pytest.raises(DataError, match="'a' stands twice"):
        load_base(folder)


@pytest.mark.parametrize("name", ["law.model", "tokenizer.json"])
def test_a_trained_vocabulary_in_the_place_of_text_is_refused_with_the_route(tmp_path, base_folder, name):
    """Bug D37: a SentencePiece model is offered as the domain of a byte-level base."""
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    command = [
        sys.executable, str(ROOT / "tools" / "extend_vocab.py"), "--base", str(base_folder), "--domain", str(tmp_path / name),
        "--general", str(tmp_path / "x.jsonl"), "--num-new-pieces", "5", "--document-separator", SEPARATOR,
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    answer = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert answer.returncode == 2
    assert "not text" in answer.stderr
    assert "--terms" in answer.stderr
    assert not (tmp_path / "out").exists()
