"""Starting and ending ranks, and the refusals before a model is built."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch import distributed

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout
from tests.integration.launch_ranks import RankFailed, launch_ranks

BACKEND = choose("cpu")

from megatron.core import parallel_state  # noqa: E402

from megatron_cpt.model.build import check_layout  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout, start_ranks  # noqa: E402

ONE = single_rank_layout(8, dtype="fp32")
SHAPE = ModelShape(
    hidden_size=36, num_layers=30, num_attention_heads=9, num_query_groups=3, head_dim=4, ffn_hidden_size=66, num_base_ids=100,
    max_position=64, norm_epsilon=1e-5, rotary_base=1e4, tied_embeddings=True,
)  # fmt: skip


def test_one_rank_needs_no_torchrun_and_can_start_again() -> None:
    for _ in range(2):
        with ranks(ONE, backend=BACKEND, seed=5):
            assert (distributed.get_world_size(), distributed.get_backend()) == (1, "gloo")
            assert parallel_state.get_tensor_model_parallel_world_size() == 1
        assert not distributed.is_initialized()


def test_a_failure_inside_ends_the_ranks_too() -> None:
    with pytest.raises(ZeroDivisionError), ranks(ONE, backend=BACKEND, seed=5):
        _ = 1 / 0
    assert not distributed.is_initialized()


def test_the_seed_decides_what_torch_draws() -> None:
    drawn = []
    for seed in (5, 5, 6):
        with ranks(ONE, backend=BACKEND, seed=seed):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_another_number_of_processes_than_the_layout_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"3 processes[\s\S]*tensor 2 x pipeline 1 x context 1 x data 1 = 2"):
        start_ranks(replace(ONE, tensor=2), backend=BACKEND, seed=1)
    assert not distributed.is_initialized()


def test_every_size_that_does_not_divide_is_listed() -> None:
    layout = replace(ONE, tensor=2, pipeline=4)
    with pytest.raises(ConfigError) as caught:
        check_layout(SHAPE, VocabLayout(100, 100, 101, 0, ""), layout)
    text = str(caught.value)
    for part in (
        "num_attention_heads=9",
        "num_query_groups=3",
        "num_padded_rows=101",
        "parallel.pipeline=4 does not divide the model's layers (30)",
    ):
        assert part in text
    assert "ffn_hidden_size" not in text


def test_a_layout_that_divides_passes() -> None:
    check_layout(SHAPE, VocabLayout(100, 100, 102, 0, ""), replace(ONE, tensor=3, pipeline=2))


def wait_for_a_rank_that_does_not_come() -> None:
    with ranks(replace(ONE, data=2), backend=choose("cpu"), seed=1, timeout=timedelta(seconds=5)):
        if distributed.get_rank() == 1:
            time.sleep(30)
        distributed.barrier()


def test_a_rank_that_does_not_come_ends_the_wait() -> None:
    start = time.monotonic()
    with pytest.raises(RankFailed, match="rank 0 of 2 failed"):
        launch_ranks(wait_for_a_rank_that_does_not_come, 2)
    assert time.monotonic() - start < 90
