"""The statistics against hand arithmetic and published values; none is compared with itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_cpt.gate.statistics import (
    at_most_share,
    holm,
    items_needed,
    mcnemar_p,
    ratio_error,
    sign_flip_p,
    smallest_detectable,
    tango_limit,
    tango_z,
)

# heights of crossed minus self-fertilised maize in eighths of an inch, Darwin 1876; Fisher 1935, The Design of Experiments, section 21
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_signs_are_flipped_as_fisher_flipped_them_by_hand() -> None:
    """863 of the 32,768 sums are as large as Darwin's or larger (Fisher 1935, section 21)."""
    assert sign_flip_p(-np.array(DARWIN, dtype=float), num_draws=1, seed=0) == pytest.approx(863 / 32768)


@pytest.mark.parametrize(("differences", "p"), [([-1, -2, -3], 1 / 8), ([-3, 1, 1], 4 / 8), ([1, 2], 1.0), ([0.1, -0.3, 0.2], 5 / 8)])
def test_a_few_signs_can_be_counted_on_paper(differences: list[float], p: float) -> None:
    assert sign_flip_p(np.array(differences, dtype=float), num_draws=1, seed=0) == p


def test_drawn_signs_agree_with_the_normal_law_and_never_give_zero() -> None:
    values = np.where(np.arange(400) % 2 == 0, 1.0, -1.0)
    values[:20] = -1.0  # the sum is 190 - 210 = -20, one standard deviation (20) below 0
    # half the step between two possible sums (2) is the continuity correction: z = -19 / 20
    assert sign_flip_p(values, num_draws=20_000, seed=1) == pytest.approx(0.1711, abs=0.01)
    assert sign_flip_p(np.full(50, -1.0), num_draws=999, seed=1) == 0.001


def test_mcnemar_is_exact() -> None:
    """Airway hyper-responsiveness, 1 against 7 changes: two-sided 0.070 (Fagerland et al. 2013, BMC Med. Res. Methodol. 13:91)."""
    assert mcnemar_p(7, 1) == pytest.approx(9 / 256)
    assert round(2 * mcnemar_p(7, 1), 3) == 0.070
    assert mcnemar_p(5, 0) == pytest.approx(1 / 32)
    assert mcnemar_p(0, 5) == pytest.approx(1.0)
    assert mcnemar_p(0, 0) == 1.0


@pytest.mark.parametrize(
    ("num_worse", "num_better", "num", "level", "interval"),
    [
        (1, 7, 21, 0.025, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014, Stat. Med. 33:2850
        (28, 25, 618, 0.05, (-0.0148, 0.0247)),  # scoreci.mp(25, 28, 618, 0.90) of the R package PropCIs
    ],
)
def test_the_score_interval_has_published_ends(
    num_worse: int, num_better: int, num: int, level: float, interval: tuple[float, float]
) -> None:
    ends = tuple(tango_limit(num_worse, num_better, num=num, level=level, upper=upper) for upper in (False, True))
    assert ends == pytest.approx(interval, abs=6e-4 if num < 100 else 6e-5)


def test_items_that_all_stayed_as_they_were_leave_room_for_a_change() -> None:
    """Without a change the statistic is sqrt(n d / (1 - d)), so the ends are +- z^2 / (n + z^2): 0.0714 for 50 items at 95 %."""
    assert tango_limit(0, 0, num=50, level=0.025, upper=True) == pytest.approx(3.8415 / 53.8415, abs=1e-5)
    assert tango_limit(0, 0, num=50, level=0.025, upper=False) == pytest.approx(-3.8415 / 53.8415, abs=1e-5)
    assert tango_z(0, 0, num=50, worsening=0.1) == pytest.approx(-math.sqrt(50 * 0.1 / 0.9))


@pytest.mark.parametrize("worsening", [-0.2, -0.01, 0.03, 0.15, 0.5])
def test_the_score_statistic_takes_the_likeliest_shares_under_the_worsening(worsening: float) -> None:
    """Independent: the constrained likelihood, maximised over a fine grid instead of by a formula."""
    num_worse, num_better, num = 9, 4, 60
    better = np.linspace(1e-9, 1 - 1e-9, 200_001)
    worse = better + worsening
    with np.errstate(invalid="ignore", divide="ignore"):
        likelihood = num_worse * np.log(worse) + num_better * np.log(better) + (num - 13) * np.log(1 - worse - better)
    best = better[np.nanargmax(likelihood)]
    expected = (num_worse - num_better - num * worsening) / math.sqrt(num * (2 * best + worsening - worsening**2))
    assert tango_z(num_worse, num_better, num=num, worsening=worsening) == pytest.approx(expected, abs=1e-3)


def test_holm_corrects_as_in_the_textbook() -> None:
    """p.adjust(c(0.03, 0.01, 0.04, 0.02, 0.05), "holm") of R: by hand 5 x 0.01, 4 x 0.02, 3 x 0.03, then never below what came before."""
    corrected = holm([0.03, 0.01, 0.04, 0.02, 0.05], [0.05] * 5)
    assert [each.p for each in corrected] == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert [each.stands for each in corrected] == [False, True, False, False, False]
    assert [each.divisor for each in corrected] == [3, 5, 2, 4, 1]


def test_after_the_first_that_does_not_stand_none_does() -> None:
    assert [each.stands for each in holm([0.02, 0.04, 0.001], [0.05] * 3)] == [True, True, True]
    assert [each.stands for each in holm([0.03, 0.04, 0.001], [0.05] * 3)] == [False, False, True]
    assert holm([], []) == []


def test_a_stricter_level_of_one_rule_is_its_own() -> None:
    loose, strict = holm([0.01, 0.01], [0.05, 0.005])
    assert (loose.stands, strict.stands) == (True, False)


def test_the_smallest_detectable_difference_is_the_textbooks() -> None:
    """z(0.975) + z(0.8) = 1.96 + 0.8416 = 2.80 standard errors; 100 items of standard deviation 1 show 0.28."""
    error = ratio_error(np.array([1.0, -1.0] * 50) * math.sqrt(0.99), np.ones(100))
    assert error == pytest.approx(0.1)
    assert smallest_detectable(error, level=0.025) == pytest.approx(0.28016, abs=1e-5)
    # half the distance needs four times the items
    assert items_needed(100, error, distance=0.14008, level=0.025) == pytest.approx(400, abs=1)


def test_the_error_of_a_ratio_is_that_of_the_delta_method() -> None:
    """By hand: two items of 1 and 3 bytes, 1 and 1 bits worse; the ratio is 2/4, residuals 0.5 and -0.5, so sqrt(2 x 0.5) / 4."""
    assert ratio_error(np.array([1.0, 1.0]), np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2 * 0.5) / 4)


def test_no_event_in_200_trials_bounds_the_rate_by_the_rule_of_three() -> None:
    assert at_most_share(0, 200, level=0.05) == pytest.approx(1 - 0.05 ** (1 / 200), abs=1e-6)
    # Clopper and Pearson's own figure for 10 of 20 would be 0.728 at 0.025
    assert at_most_share(10, 20, level=0.025) == pytest.approx(0.728, abs=5e-4)
