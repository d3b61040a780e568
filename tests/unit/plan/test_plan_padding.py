"""The vocabulary's rows are padded once, for every tensor degree; another degree is refused with the nearest multiple that fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_cpt.plan.checks import padding_problem


def config(multiple, tensor):
    return SimpleNamespace(tokenizer=SimpleNamespace(pad_rows_to_multiple=multiple), parallel=SimpleNamespace(tensor=tensor))


@pytest.mark.parametrize(("multiple", "tensor", "nearest"), [(128, 3, 384), (1, 2, 2), (100, 8, 200), (128, 256, 256), (6, 4, 12)])
def test_a_degree_that_the_padding_does_not_serve_is_refused_with_one_that_does(multiple, tensor, nearest):
    """Bug D23; the nearest multiple is the least common one, by hand, and serves the old degrees too."""
    problem = padding_problem(config(multiple, tensor))
    assert f"parallel.tensor={tensor}" in problem
    assert problem.endswith(f"Set tokenizer.pad_rows_to_multiple={nearest}.")
    assert padding_problem(config(nearest, tensor)) is None


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 32, 64, 128])
def test_the_default_padding_serves_every_power_of_two(tensor):
    assert padding_problem(config(128, tensor)) is None
