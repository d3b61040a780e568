"""What paired scores say about the true worsening: how sure it lies below a bound, above it, and between which ends. Pure.

Which test: items scored 0 or 1 have an exact one (McNemar) against no change and a score test (Tango) against a margin, and the
score interval says something even when no item changed, where a bootstrap would claim certainty. Other sums over items are tested
by flipping the signs of their differences, with bootstrap ends. A distance or a spread is no sum over items, so its test is the
bootstrap's own share of resamples beyond the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from megatron_cpt.gate.pairs import Pairs
from megatron_cpt.gate.statistics import (
    NORMAL,
    Floats,
    mcnemar_p,
    ratio_error,
    sign_flip_p,
    tango_limit,
    tango_z,
)


class Evidence(Protocol):
    """Levels are one-sided; every amount is a worsening in the metric's unit."""

    @property
    def test(self) -> str: ...
    @property
    def standard_error(self) -> float: ...
    def p_below(self, bound: float) -> float:
        """Return the p-value of the claim that the true worsening lies below the bound."""

    def p_above(self, bound: float) -> float:
        """Return the p-value of the claim that it lies above the bound."""

    def lower(self, level: float) -> float:
        """Return the lower end, under which it lies with probability `level` at most."""

    def upper(self, level: float) -> float:
        """Return the upper end."""


def evidence_of(pairs: Pairs, *, num_resamples: int, seed: int) -> Evidence:
    """Return the evidence of pairs by the test that suits them: see the head of this module."""
    differences_N = pairs.worsening_N
    are_binary = bool(np.isin(pairs.base_N, (0.0, 1.0)).all() and np.isin(pairs.candidate_N, (0.0, 1.0)).all())
    is_bounded = pairs.metric.statistic != "ratio"
    if is_bounded and pairs.is_figure_of_sums and are_binary:
        return Counts(int((differences_N > 0).sum()), int((differences_N < 0).sum()), pairs.num_items)
    if is_bounded and not differences_N.any():  # scores from 0 to 1: without a change they say what 0 and 1 would
        # a gap moves by two subgroups' means, each of its own items: half the smallest one stands for both
        smallest = int(np.bincount(pairs.stratum_N).min())
        return Counts(0, 0, max(1, smallest // 2) if pairs.metric.statistic == "spread" else pairs.num_items)
    return Resamples(pairs, num_resamples=num_resamples, seed=seed)


@dataclass(frozen=True)
class Counts:
    """Items that were right for one model only, of `num`."""

    num_worse: int
    num_better: int
    num: int
    test: str = "exact McNemar against 0, Tango's score test against a margin"

    @property
    def standard_error(self) -> float:
        mean = (self.num_worse - self.num_better) / self.num
        changed = (self.num_worse + self.num_better) / self.num
        return float(np.sqrt(max(0.0, changed - mean**2) / max(1, self.num - 1)))

    def p_below(self, bound: float) -> float:
        if bound == 0:
            return mcnemar_p(self.num_better, self.num_worse)
        return NORMAL.cdf(tango_z(self.num_worse, self.num_better, num=self.num, worsening=bound))

    def p_above(self, bound: float) -> float:
        if bound == 0:
            return mcnemar_p(self.num_worse, self.num_better)
        return NORMAL.cdf(-tango_z(self.num_worse, self.num_better, num=self.num, worsening=bound))

    def lower(self, level: float) -> float:
        return tango_limit(self.num_worse, self.num_better, num=self.num, level=level, upper=False)

    def upper(self, level: float) -> float:
        return tango_limit(self.num_worse, self.num_better, num=self.num, level=level, upper=True)


class Resamples:
    """A paired bootstrap, with sign flips where the metric is a sum over items."""

    def __init__(self, pairs: Pairs, *, num_resamples: int, seed: int) -> None:
        self._pairs, self._num_resamples, self._seed = pairs, num_resamples, seed
        self.test = "sign flips of paired differences" if pairs.is_figure_of_sums else "share of bootstrap resamples beyond the bound"

    @cached_property
    def _worsening(self) -> Floats:
        return self._pairs.resampled_worsening(num_resamples=self._num_resamples, seed=self._seed)

    @property
    def standard_error(self) -> float:
        if self._pairs.is_figure_of_sums:
            return ratio_error(self._pairs.worsening_N, self._pairs.weight_N)
        return float(self._worsening.std(ddof=1))

    def p_below(self, bound: float) -> float:
        return self._p(bound, sign=1.0)

    def p_above(self, bound: float) -> float:
        return self._p(bound, sign=-1.0)

    def _p(self, bound: float, *, sign: float) -> float:
        if self._pairs.is_figure_of_sums:
            distances_N = sign * (self._pairs.worsening_N - bound * self._pairs.weight_N)
            return sign_flip_p(distances_N, num_draws=self._num_resamples, seed=self._seed)
        beyond = int(np.count_nonzero(sign * (self._worsening - bound) >= 0))
        return (beyond + 1) / (self._num_resamples + 1)

    def lower(self, level: float) -> float:
        return float(np.quantile(self._worsening, level))

    def upper(self, level: float) -> float:
        return float(np.quantile(self._worsening, 1 - level))
