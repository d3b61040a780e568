"""Which rules for input and output rows a configuration names, and what is refused."""

from __future__ import annotations

import pytest

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.row_rules import ROW_RULES, RowPair, candidates, row_pair, wanted_pair


@pytest.mark.parametrize(
    ("row_init", "output", "tied", "pair"),
    [
        ("mean", "", True, RowPair("mean", "mean")),
        ("mean", "", False, RowPair("mean", "mean")),
        ("noise", "noise", True, RowPair("noise", "noise")),
        ("mean", "gaussian", False, RowPair("mean", "gaussian")),
        ("fitted", "", True, RowPair("fitted", "fitted")),
        ("fitted", "", False, RowPair("mean", "fitted")),  # only output rows can be fitted
        ("noise", "fitted", False, RowPair("noise", "fitted")),
        ("probe", "", True, None),
    ],
)
def test_one_rule_stands_for_both_sides_and_two_for_one_each(row_init: str, output: str, tied: bool, pair: RowPair | None) -> None:
    assert wanted_pair(row_init, output, tied=tied) == pair
    if pair is not None:
        assert row_pair(pair.name, tied=tied) == pair


@pytest.mark.parametrize(
    ("row_init", "output", "tied", "words"),
    [
        ("zeros", "", True, ["zeros", "mean, mean_norm, noise, weighted, gaussian, fitted"]),
        ("mean", "zeros", False, ["zeros"]),
        ("", "", False, ["row_init"]),
        ("mean", "fitted", True, ["same rows", "tie_word_embeddings", "tokenizer.row_init=fitted"]),
        ("fitted", "mean", False, ["row_init_output=fitted"]),
        ("probe", "mean", False, ["row_probe.rules"]),
        ("mean", "probe", False, ["row_probe.rules"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(row_init: str, output: str, tied: bool, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        wanted_pair(row_init, output, tied=tied)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_probe_tries_all_rules_or_those_that_are_named_once() -> None:
    assert [pair.name for pair in candidates([], tied=True)] == list(ROW_RULES)
    assert [pair.name for pair in candidates(["fitted", "mean/fitted", "mean"], tied=False)] == ["mean/fitted", "mean"]
    with pytest.raises(ConfigError, match="same rows"):
        candidates(["mean", "mean/noise"], tied=True)
