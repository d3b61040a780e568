"""Distributed checkpoints on one rank: damaged, foreign and unsafe ones are refused. Other layouts: tests/numerics/test_ranks_agree.py."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout

BACKEND = choose("cpu")

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.dist_checkpoint import load_model, save_model  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402

SHAPE = ModelShape(
    hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2, head_dim=8, ffn_hidden_size=48, num_base_ids=100,
    max_position=64, norm_epsilon=1e-5, rotary_base=1e4, tied_embeddings=False,
)  # fmt: skip
VOCAB = VocabLayout(100, 110, 128, 0, "")
LAYOUT = single_rank_layout(8, dtype="fp32")


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with ranks(LAYOUT, backend=BACKEND, seed=9):
        yield


def build(shape: ModelShape = SHAPE, vocab: VocabLayout = VOCAB, dtype: str = "fp32") -> list:
    return build_chunks(shape, vocab, replace(LAYOUT, dtype=dtype), backend=BACKEND)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    chunks = build()
    save_model(tmp_path / "c", chunks, common={"step": 3, "plan": "abc", "list": [1, 2.5, None]})
    return tmp_path / "c", {name: param.detach().clone() for name, param in chunks[0].named_parameters()}


def test_weights_and_common_come_back(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, before = saved
    chunks = build()
    assert load_model(folder, chunks) == {"step": 3, "plan": "abc", "list": [1, 2.5, None]}
    for name, param in chunks[0].named_parameters():
        assert torch.equal(param, before[name]), name


def test_an_fp32_checkpoint_loads_into_a_bf16_model_rounded(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, before = saved
    chunks = build(dtype="bf16")
    load_model(folder, chunks)
    for name, param in chunks[0].named_parameters():
        assert torch.equal(param, before[name].bfloat16()), name


def test_another_vocabulary_is_refused_instead_of_filled_with_zeros(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(CheckpointError, match=r"another shape[\s\S]*\[128, 32\][\s\S]*\[256, 32\]"):
        load_model(saved[0], build(vocab=VocabLayout(100, 200, 256, 0, "")))


@pytest.mark.parametrize("change", [{"num_layers": 4}, {"ffn_hidden_size": 64}, {"tied_embeddings": True}])
def test_another_model_is_refused(saved: tuple[Path, dict[str, torch.Tensor]], change: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=r"another shape|other tensors"):
        load_model(saved[0], build(replace(SHAPE, **change)))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("weight", ["embedding.word_embeddings.weight", "output_layer.weight"])
def test_a_new_row_of_zeros_or_nan_is_refused_with_its_id(tmp_path: Path, value: float, weight: str) -> None:
    chunks = build()
    with torch.no_grad():
        dict(chunks[0].named_parameters())[weight][105] = value
    save_model(tmp_path / "c", chunks, common={})
    with pytest.raises(CheckpointError, match=r"zero or not finite[\s\S]*1 rows, the first for id 105"):
        load_model(tmp_path / "c", build())


def test_a_padding_row_and_an_untrained_base_row_may_be_zero(tmp_path: Path) -> None:
    chunks = build()
    with torch.no_grad():
        chunks[0].embedding.word_embeddings.weight[[4, 120]] = 0.0
    save_model(tmp_path / "c", chunks, common={})
    load_model(tmp_path / "c", build())


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="no whole distributed checkpoint"):
            load_model(folder, build())


@pytest.mark.parametrize("pattern", ["*.distcp", ".metadata"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "overwritten"])
def test_a_damaged_file_is_a_checkpoint_error(saved: tuple[Path, dict[str, torch.Tensor]], pattern: str, damage: str) -> None:
    folder, _ = saved
    path = sorted(folder.glob(pattern))[0]
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "overwritten": b"\xff" * len(content)}[damage])
    with pytest.raises(CheckpointError):
        load_model(folder, build())


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", [".metadata", "common.pt"])
def test_code_in_a_checkpoint_is_not_run(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, name: str) -> None:
    folder, _ = saved
    marker = tmp_path / "exploited"
    if name == "common.pt":
        torch.save({"x": Exploit(marker)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Exploit(marker)))
    try:
        load_model(folder, build())
    except CheckpointError:
        refused = True
    else:
        refused = False
    assert not marker.exists()
    # megatron-core 0.19 keeps the common state among the shards and reads common.pt only where they lack it.
    assert refused or name == "common.pt"
