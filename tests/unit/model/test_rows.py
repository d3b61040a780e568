"""First values of new rows, by hand, by their statistics, and against what transformers draws."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_cpt.model.rows import GAUSSIAN_SCALE, RULES, RowInputs, new_rows, seed_of

BASE = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 1.0]])


def rows_by(rule: str, base: torch.Tensor, parts: list[list[int]], *, num_padding: int = 0, **more: object) -> torch.Tensor:
    return new_rows(RowInputs(base, parts, **more), rule=rule, num_padding=num_padding)  # type: ignore[arg-type]


def test_mean_is_the_mean_of_the_parts_and_padding_the_mean_of_all() -> None:
    rows = rows_by("mean", BASE, [[0, 1], [2]], num_padding=2)
    torch.testing.assert_close(rows, torch.tensor([[1.5, 2.0], [1.0, 1.0], [4 / 3, 5 / 3], [4 / 3, 5 / 3]]))


def test_a_repeated_part_counts_each_time() -> None:
    assert rows_by("mean", BASE, [[0, 0, 1]]).tolist() == [[2.0, pytest.approx(4 / 3)]]


def test_mean_norm_points_like_the_mean_and_is_as_long_as_its_parts() -> None:
    (row,) = rows_by("mean_norm", BASE, [[0, 1]])
    # The mean (1.5, 2) has norm 2.5, its parts 3 and 4: rescaled by 3.5 / 2.5.
    torch.testing.assert_close(row, torch.tensor([2.1, 2.8]))


def test_noise_leaves_the_mean_as_it_is_and_fills_up_the_length_at_right_angles() -> None:
    (row,) = rows_by("noise", BASE, [[0, 1]], seed=3)
    mean, added = torch.tensor([1.5, 2.0]), row - torch.tensor([1.5, 2.0])
    assert float(row.norm()) == pytest.approx(3.5, rel=1e-6)  # the mean norm of the parts
    assert float(added @ mean) == pytest.approx(0.0, abs=1e-6)
    assert float(added.norm()) == pytest.approx(math.sqrt(3.5**2 - 2.5**2), rel=1e-6)


def test_noise_tells_apart_pieces_of_the_same_parts_and_another_seed_draws_other_rows() -> None:
    base = torch.randn(10, 32, generator=torch.Generator().manual_seed(1))
    rows = rows_by("noise", base, [[1, 2], [2, 1]], seed=3)
    assert float((rows[0] - rows[1]).norm()) > 1.0
    torch.testing.assert_close(rows, rows_by("noise", base, [[1, 2], [2, 1]], seed=3), rtol=0, atol=0)
    assert not torch.equal(rows, rows_by("noise", base, [[1, 2], [2, 1]], seed=4))


def test_weighted_is_the_mean_by_use_in_domain_text() -> None:
    (row, unseen) = rows_by("weighted", BASE, [[0, 1], [2]], counts_V=np.array([2, 0, 0]))
    assert row.tolist() == [9 / 4, 1.0]  # weights 3 and 1
    assert unseen.tolist() == [1.0, 1.0]


def test_parts_that_cancel_give_finite_rows_as_long_as_they_are() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert rows_by("mean_norm", opposite, [[0, 1]]).isfinite().all()
    assert float(rows_by("noise", opposite, [[0, 1]]).norm()) == pytest.approx(1.0)


def test_half_precision_bases_are_averaged_without_their_rounding() -> None:
    base = torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)
    assert rows_by("mean", base, [[0, 1]]).tolist() == [[1.00390625]]


def test_gaussian_rows_have_the_mean_and_the_covariance_that_transformers_draws_with() -> None:
    """transformers' public `resize_token_embeddings` draws from the same mean and 1e-9 times the same covariance."""
    size, drawn, hidden = 60, 40_000, 8
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, hidden_size=hidden, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(size, hidden, generator=generator) @ torch.randn(hidden, hidden, generator=generator) + 0.3
    model.get_input_embeddings().weight.data.copy_(base)
    torch.manual_seed(6)
    theirs = model.resize_token_embeddings(size + drawn, mean_resizing=True).weight.detach()[size:].double()
    ours = rows_by("gaussian", base, [[0]] * drawn, seed=7).double()
    covariance = torch.from_numpy(np.cov(base.double().numpy(), rowvar=False, ddof=0))
    largest = float(covariance.abs().max())
    for rows, scale in ((theirs, 1e-9), (ours, GAUSSIAN_SCALE)):
        torch.testing.assert_close(rows.mean(dim=0), base.double().mean(dim=0), rtol=0, atol=5 * math.sqrt(scale * largest / drawn) + 1e-7)
        found = torch.from_numpy(np.cov(rows.numpy(), rowvar=False, ddof=0)) / scale
        assert float((found - covariance).abs().max()) < 5 * largest * math.sqrt(2 / drawn)  # five standard errors of a variance


def test_gaussian_rows_need_no_covariance_of_full_rank_and_differ_in_bf16() -> None:
    base = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) + 0.1  # rank 3 of 32
    rows = rows_by("gaussian", base, [[0]] * 50, seed=1)
    assert rows.isfinite().all()
    assert len(torch.unique(rows.bfloat16(), dim=0)) == 50


# Recorded on an AMD EPYC with AVX2, and the same there without vector units (NPY_DISABLE_CPU_FEATURES, OPENBLAS_CORETYPE=Prescott).
RECORDED = {
    "mean": "242202031dfafe78",
    "mean_norm": "8c79548edab2d006",
    "noise": "7b04b37802464dc9",
    "weighted": "86c35fe08ecfcad6",
    "gaussian": "5364e020a5d7204f",
}


@pytest.mark.parametrize("rule", RECORDED)
def test_equal_inputs_give_equal_bytes_on_every_machine(rule: str) -> None:
    numbers = torch.arange(5000 * 48, dtype=torch.int64)
    base = ((numbers * 2654435761 % 4096).float() / 4096 - 0.5).reshape(5000, 48)
    parts = [[7 * number, 11 * number + 1, 13 * number + 2][: 2 + number % 2] for number in range(40)]
    seed = seed_of("0" * 64, seed=1, side="input")
    rows = rows_by(rule, base, parts, seed=seed, counts_V=np.arange(5000) % 17)
    assert hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16] == RECORDED[rule]


def test_the_seed_is_of_the_vocabulary_the_run_and_the_side() -> None:
    seeds = {seed_of(vocab, seed=seed, side=side) for vocab in ("a", "b") for seed in (1, 2) for side in ("input", "output")}
    assert len(seeds) == 8
    assert seed_of("a", seed=1, side="input") in seeds


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_add_is_no_rows(rule: str) -> None:
    assert rows_by(rule, BASE, [], counts_V=np.zeros(3)).shape == (0, 2)
