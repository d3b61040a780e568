"""Distributed checkpoints on one rank: damaged, foreign and unsafe ones are refused. Other layouts: tests/numerics/test_ranks_agree.py."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout

BACKEND = choose("cpu")

from megatron.core.dist_checkpointing import load_plain_tensors  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.dist_checkpoint import PendingSave, load_model, save_model  # noqa: E402
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


class Trained:
    """A model with megatron's optimizer around it, after one step: it has moments."""

    def __init__(self, *, steps: int = 1) -> None:
        config = OptimizerConfig(optimizer="adam", lr=1e-2, weight_decay=0.1, use_distributed_optimizer=True)
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        (chunk,) = build()
        self.chunks = [DistributedDataParallel(chunk.config, ddp, chunk)]
        self.optimizer = get_megatron_optimizer(config, self.chunks)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        ids = torch.arange(8)[None]
        self.chunks[0].zero_grad_buffer()
        self.chunks[0](ids, ids, None, labels=ids + 1).mean().backward()
        self.chunks[0].finish_grad_sync()
        self.optimizer.step()

    def save(self, folder: Path) -> Path:
        save_model(folder, self.chunks, optimizer=self.optimizer, common={})
        return folder

    def begin_save(self, folder: Path) -> PendingSave:
        folder.mkdir()
        return PendingSave(folder, self.chunks, optimizer=self.optimizer, common={})


def contents(folder: Path) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in load_plain_tensors(str(folder)).items() if isinstance(value, torch.Tensor)}


def test_a_save_beside_training_holds_what_was_there_when_it_began(tmp_path: Path) -> None:
    trained = Trained()
    plain = contents(trained.save(tmp_path / "plain"))
    pending = trained.begin_save(tmp_path / "beside")
    assert not (tmp_path / "beside" / "metadata.json").exists()  # not whole before all ranks are done
    trained.step()
    assert pending.finished(wait=True)
    assert contents(tmp_path / "beside") == plain
    assert contents(trained.save(tmp_path / "later")) != plain


def test_what_an_aborted_save_left_behind_does_not_end_the_next_one_too_early(tmp_path: Path) -> None:
    trained = Trained()
    first = trained.begin_save(tmp_path / "first")
    deadline = time.monotonic() + 60
    while any(call.async_caller.process.is_alive() for call in first._calls.async_calls):  # its writer has reported
        assert time.monotonic() < deadline
    first.abort()
    trained.step()
    second = trained.begin_save(tmp_path / "second")
    assert second.finished(wait=True)
    assert contents(tmp_path / "second") == contents(trained.save(tmp_path / "plain"))
    assert not (tmp_path / "first" / "metadata.json").exists()


def test_a_writer_that_is_killed_is_an_error_and_the_next_save_is_whole(tmp_path: Path) -> None:
    trained = Trained()
    pending = trained.begin_save(tmp_path / "killed")
    for call in pending._calls.async_calls:
        call.async_caller.process.kill()
    with pytest.raises(CheckpointError, match="could not be written"):
        pending.finished(wait=True)
    pending.abort()
    assert contents(trained.save(tmp_path / "next")) == contents(trained.save(tmp_path / "again"))


def test_a_checkpoint_without_moments_is_refused_when_moments_are_wanted(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    trained = Trained()
    with pytest.raises(CheckpointError, match=r"(other tensors|cannot be read)[\s\S]*optimizer"):
        load_model(saved[0], trained.chunks, optimizer=trained.optimizer)


@pytest.mark.parametrize("key", ["step", "betas", "wd_mult"])
def test_a_checkpoint_whose_optimizer_groups_lack_a_key_is_explained(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of a library that did not have the key yet."""
    trained = Trained()
    whole = trained.optimizer.sharded_state_dict

    def lacking(*arguments: Any, **named: Any) -> Any:
        state = whole(*arguments, **named)
        groups = next(part["param_groups"] for part in (state.get("optimizer", {}), state) if "param_groups" in part)
        for group in groups:
            assert key in group
            del group[key]
        return state

    monkeypatch.setattr(trained.optimizer, "sharded_state_dict", lacking)
    folder = trained.save(tmp_path / "c")
    monkeypatch.undo()
    other = Trained()
    with pytest.raises(CheckpointError, match=rf"optimizer's state[\s\S]*{key}[\s\S]*megatron-core"):
        load_model(folder, other.chunks, optimizer=other.optimizer)
