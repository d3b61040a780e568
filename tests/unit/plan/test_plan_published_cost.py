"""Energy, carbon, days, node power, money and ZeRO's memory against published figures; each row within its tolerance."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from estimate_checks import Check, Group, cost

GROUP: Group = cost.group()


@pytest.mark.parametrize("check", GROUP.checks, ids=lambda check: check.id)
def test_a_published_row_is_reproduced_within_its_tolerance(check: Check) -> None:
    assert check.passes, f"ours {check.ours}, published {check.published} {check.unit}"


def test_the_tables_were_read_and_what_is_left_out_says_why() -> None:
    assert sum(check.tolerance is not None and not check.excluded for check in GROUP.checks) >= 55
    assert all(len(check.excluded) > 20 for check in GROUP.checks if check.excluded)


def test_days_energy_and_tonnes_are_within_one_per_cent_on_average_and_each() -> None:
    assert [mean.what for mean in GROUP.means if mean.value > 0.01] == []
    rows = [check for check in (*cost.carbon_checks(), *cost.days_checks()) if not check.excluded]
    assert max(abs(check.error) for check in rows) <= 0.01
