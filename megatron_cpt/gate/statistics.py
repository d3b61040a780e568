"""Paired statistics in numpy: resampling, tests, the correction for several rules, and what a number of items can show. Pure.

Everything speaks of *worsening*, the amount by which the candidate is worse than the base: positive is harm, in any metric.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NORMAL = NormalDist()
POWER = 0.8  # the usual share of real differences of the named size that would be shown
TABLE_CELLS = 4_000_000  # bounds a table of draws to about 32 MB
LARGEST_ENUMERATION = 15  # items up to which every one of the 2^n signs is tried


def resampled_counts(strata_N: NDArray[np.int64], *, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield tables of R resamples by N items: how often each item was drawn, with replacement, within its own stratum."""
    generator = np.random.default_rng(seed)
    num = len(strata_N)
    members = [np.flatnonzero(strata_N == stratum) for stratum in np.unique(strata_N)]
    rows = max(1, TABLE_CELLS // num)
    for begin in range(0, num_resamples, rows):
        count = min(rows, num_resamples - begin)
        times_RN = np.empty((count, num))
        for ids in members:
            times_RN[:, ids] = generator.multinomial(len(ids), np.full(len(ids), 1.0 / len(ids)), size=count)
        yield times_RN


def sign_flip_p(worsening_N: Floats, *, num_draws: int, seed: int) -> float:
    """Return the one-sided p-value that the sum of paired differences is as far below 0 as it is, were each sign a coin's.

    The signs are all tried up to 15 items; above that they are drawn, and the observed sum counts as one draw, so that p is
    never 0 (Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585). Fisher's randomisation test of paired differences.
    """
    observed = float(worsening_N.sum()) + 1e-12 * float(np.abs(worsening_N).sum())  # equal sums count as equal despite rounding
    num = len(worsening_N)
    if num <= LARGEST_ENUMERATION:
        sums = np.array(list(itertools.product((-1.0, 1.0), repeat=num))) @ worsening_N
        return float(np.mean(sums <= observed))
    generator = np.random.default_rng(seed)
    rows, below = max(1, TABLE_CELLS // num), 0
    for begin in range(0, num_draws, rows):
        signs_RN = 2.0 * generator.integers(0, 2, size=(min(rows, num_draws - begin), num)) - 1.0
        below += int(np.count_nonzero(signs_RN @ worsening_N <= observed))
    return (below + 1) / (num_draws + 1)


def mcnemar_p(num_better: int, num_worse: int) -> float:
    """Return the exact one-sided p-value of this many items that became right, or more, among those that changed (McNemar 1947)."""
    num = num_better + num_worse
    log_half = num * math.log(2)
    terms = (math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) - log_half for k in range(num_better, num + 1))
    return min(1.0, math.fsum(map(math.exp, terms)))


def tango_z(num_worse: int, num_better: int, *, num: int, worsening: float) -> float:
    """Return the score statistic for a true worsening of a share, standard normal when it holds (Tango 1998, Stat. Med. 17:891).

    Far below 0: the true worsening is smaller than `worsening`. Unlike a bootstrap it says something when no item changed.
    """
    if worsening < 0:
        return -tango_z(num_better, num_worse, num=num, worsening=-worsening)
    b = -num_worse - num_better + (2 * num - num_worse + num_better) * worsening
    c = -num_better * worsening * (1 - worsening)
    share_better = (math.sqrt(max(0.0, b * b - 8 * num * c)) - b) / (4 * num)  # most likely one under the given worsening
    variance = num * (2 * share_better + worsening * (1 - worsening))
    distance = num_worse - num_better - num * worsening
    if variance <= 0:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_limit(num_worse: int, num_better: int, *, num: int, level: float, upper: bool) -> float:
    """Return the end of the score interval beyond which a true worsening is refused at a one-sided level."""
    sign, farthest = 1.0 if upper else -1.0, -NORMAL.inv_cdf(level)
    return bisect(
        lambda worsening: -sign * tango_z(num_worse, num_better, num=num, worsening=worsening) < farthest,
        inside=(num_worse - num_better) / num,
        outside=sign,
    )


@dataclass(frozen=True)
class Corrected:
    """A p-value after Holm's correction, whether it stands at its level, and by how much the level was divided for it."""

    p: float
    stands: bool
    divisor: int


def holm(p_values: Sequence[float], levels: Sequence[float]) -> list[Corrected]:
    """Correct p-values so that the chance of any false claim among them is at most the largest level (Holm 1979, Scand. J. Stat. 6:65).

    Hypotheses are taken in the order of p over level. Of k, the first is held against its level divided by k, the next by k - 1,
    and after the first that does not stand none does. With equal levels this is Holm's procedure word for word.
    """
    corrected: list[Corrected | None] = [None] * len(p_values)
    largest, stands = 0.0, True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index] / levels[index])):
        divisor = len(p_values) - rank
        largest = max(largest, divisor * p_values[index] / levels[index])
        stands = stands and largest <= 1
        corrected[index] = Corrected(min(1.0, largest * levels[index]), stands, divisor)
    return [each for each in corrected if each is not None]


def smallest_detectable(standard_error: float, *, level: float, power: float = POWER) -> float:
    """Return the true distance from a bound that a one-sided test at `level` shows with probability `power`.

    (z of the level + z of the power) x the standard error of the paired difference: Miller 2024, arXiv 2411.00640, section 5.
    """
    return (NORMAL.inv_cdf(1 - level) + NORMAL.inv_cdf(power)) * standard_error


def items_needed(num_items: int, standard_error: float, *, distance: float, level: float) -> int:
    """Return how many items like these would show this distance from a bound at `level` with power 0.8; the error falls with their root."""
    return math.ceil(num_items * (smallest_detectable(standard_error, level=level) / distance) ** 2)


def ratio_error(worsening_N: Floats, weight_N: Floats) -> float:
    """Return the standard error of sum(worsening) / sum(weight) over items, by the delta method; equal weights give sd / sqrt(N)."""
    num = len(weight_N)
    residual_N = worsening_N - worsening_N.sum() / weight_N.sum() * weight_N
    return float(math.sqrt(num / (num - 1) * float(residual_N @ residual_N)) / weight_N.sum())


def at_most_share(num_hits: int, num: int, *, level: float) -> float:
    """Return the exact upper limit of a rate at a one-sided level (Clopper and Pearson 1934)."""
    if num_hits == num:
        return 1.0

    def tail(rate: float) -> float:  # of num_hits or fewer
        log = math.log
        return math.fsum(
            math.exp(math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) + k * log(rate) + (num - k) * log(1 - rate))
            for k in range(num_hits + 1)
        )

    return bisect(lambda rate: tail(rate) > level, num_hits / num or 1e-12, 1 - 1e-12)


def bisect(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where a condition that holds at `inside` stops holding on the way to `outside`."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return (inside + outside) / 2
