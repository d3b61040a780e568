"""First values of new rows, by hand."""

from __future__ import annotations

import pytest
import torch

from megatron_cpt.errors import ConfigError
from megatron_cpt.model.rows import new_rows

BASE = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 1.0]])


def test_mean_is_the_mean_of_the_parts_and_padding_the_mean_of_all() -> None:
    rows = new_rows(BASE, [[0, 1], [2]], rule="mean", num_padding=2)
    torch.testing.assert_close(rows, torch.tensor([[1.5, 2.0], [1.0, 1.0], [4 / 3, 5 / 3], [4 / 3, 5 / 3]]))


def test_a_repeated_part_counts_each_time() -> None:
    assert new_rows(BASE, [[0, 0, 1]], rule="mean", num_padding=0).tolist() == [[2.0, pytest.approx(4 / 3)]]


def test_mean_norm_points_like_the_mean_and_is_as_long_as_its_parts() -> None:
    (row,) = new_rows(BASE, [[0, 1]], rule="mean_norm", num_padding=0)
    # The mean (1.5, 2) has norm 2.5, its parts 3 and 4: rescaled by 3.5 / 2.5.
    torch.testing.assert_close(row, torch.tensor([2.1, 2.8]))


def test_parts_that_cancel_give_finite_rows() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert new_rows(opposite, [[0, 1]], rule="mean_norm", num_padding=0).isfinite().all()


def test_half_precision_bases_are_averaged_in_fp32() -> None:
    base = torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)
    assert new_rows(base, [[0, 1]], rule="mean", num_padding=0).tolist() == [[1.00390625]]


def test_nothing_to_add_is_no_rows() -> None:
    assert new_rows(BASE, [], rule="mean", num_padding=0).shape == (0, 2)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"zeros[\s\S]*mean, mean_norm"):
        new_rows(BASE, [[0]], rule="zeros", num_padding=0)
