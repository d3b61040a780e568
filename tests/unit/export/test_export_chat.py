"""The base-delta merge on small models, by hand arithmetic; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError
from tests.numerics.tiny_llama import save_tiny_llama

choose("cpu")

from megatron_cpt.export.chat import add_chat  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder, write_tensors  # noqa: E402
from megatron_cpt.model.names import EMBEDDING  # noqa: E402

PIECES = {f"p{number}": number for number in range(100)}


def write_tokenizer(folder: Path, pieces: dict[str, int], *, config: dict[str, Any] | None = None) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": pieces}, "added_tokens": []}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {"tokenizer_class": "x"}))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A base of 100 ids in bf16, an instruct model of it, and a continued one with 4 more ids."""
    for seed, (name, num_ids) in enumerate({"base_folder": 100, "instruct_folder": 100, "continued_folder": 104}.items()):
        save_tiny_llama(tmp_path / name, num_ids=num_ids, seed=seed, dtype=torch.bfloat16)
        write_tokenizer(tmp_path / name, PIECES | {f"new{number}": number for number in range(100, num_ids)})
    write_tokenizer(tmp_path / "instruct_folder", PIECES, config={"chat_template": "{{ x }}", "eos_token": "p3", "tokenizer_class": "y"})
    (tmp_path / "instruct_folder" / "generation_config.json").write_text('{"eos_token_id": 3}')
    return {name: tmp_path / name for name in ("base_folder", "instruct_folder", "continued_folder")}


def test_every_tensor_is_continued_plus_instruct_minus_base_and_new_rows_stay(tmp_path: Path, folders: dict[str, Path]) -> None:
    facts = add_chat(tmp_path / "chat", **folders)
    chat = HfFolder.open(tmp_path / "chat")
    base, instruct, continued = (HfFolder.open(folders[name]) for name in ("base_folder", "instruct_folder", "continued_folder"))
    assert facts["num_shared_rows"] == 100
    assert set(chat.entries) == set(continued.entries)
    delta_squares = continued_squares = 0.0
    for name in chat.entries:
        old, shared = continued.read(name).float(), slice(0, 100) if name == EMBEDDING else slice(None)
        wanted = old.clone()
        wanted[shared] = old[shared] + instruct.read(name).float() - base.read(name).float()
        # one rounding to bf16, of a sum of three that fp32 may round in another order
        torch.testing.assert_close(chat.read(name).float(), wanted, rtol=2**-7, atol=1e-6)
        assert chat.entries[name].dtype == torch.bfloat16
        delta_squares += float((wanted - old).square().sum())
        continued_squares += float(old.square().sum())
    assert torch.equal(chat.read(EMBEDDING)[100:], continued.read(EMBEDDING)[100:])
    assert facts["delta_over_weights"] == pytest.approx((delta_squares / continued_squares) ** 0.5, rel=1e-4)
    config = json.loads((tmp_path / "chat" / "tokenizer_config.json").read_text())
    assert config == {"tokenizer_class": "x", "chat_template": "{{ x }}", "eos_token": "p3"}
    assert json.loads((tmp_path / "chat" / "generation_config.json").read_text()) == {"eos_token_id": 3}
    assert json.loads((tmp_path / "chat" / "config.json").read_text())["vocab_size"] == 104


def test_an_instruct_model_that_learned_nothing_changes_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    facts = add_chat(tmp_path / "chat", **{**folders, "instruct_folder": folders["base_folder"]})
    chat, continued = HfFolder.open(tmp_path / "chat"), HfFolder.open(folders["continued_folder"])
    assert all(torch.equal(chat.read(name), continued.read(name)) for name in continued.entries)
    assert facts["delta_over_weights"] == 0.0


def moved_piece(folder: Path) -> None:
    write_tokenizer(folder, PIECES | {"p7": 8, "p8": 7})


def more_pieces(folder: Path) -> None:
    write_tokenizer(folder, PIECES | {"<chat>": 100})


def other_heads(folder: Path) -> None:
    save_tiny_llama(folder, num_groups=4, dtype=torch.bfloat16)


def infinite_weight(folder: Path) -> None:
    tensors = {name: HfFolder.open(folder).read(name) for name in HfFolder.open(folder).entries}
    tensors["model.norm.weight"][0] = float("inf")
    write_tensors(folder, tensors.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (moved_piece, r"2 ids have another piece[\s\S]*first is 7: 'p8' and 'p7'"),
        (more_pieces, r"1 ids have another piece[\s\S]*first is 100: '<chat>' and None"),
        (other_heads, r"num_query_groups is 4 in the instruct model and 2 in the continued one"),
        (infinite_weight, r"not finite[\s\S]*model.norm.weight"),
    ],
)
def test_a_model_that_is_no_relative_is_refused_by_what_differs(tmp_path: Path, folders: dict[str, Path], spoil, message: str) -> None:
    spoil(folders["instruct_folder"])
    with pytest.raises(CheckpointError, match=message):
        add_chat(tmp_path / "chat", **folders)
    assert not list((tmp_path / "chat").glob("*")) if (tmp_path / "chat").exists() else True
