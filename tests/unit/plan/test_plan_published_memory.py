"""Parameters and memory against published figures, each row within its tolerance; and the page of errors is what its script writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from estimate_checks import Check, Group, memory
from estimate_checks.golden_cases import CASES, case_of
from estimate_checks.megatron_reporter import reported_bytes

ROOT = Path(__file__).resolve().parents[3]
GROUP: Group = memory.group()
DECIDING = [check for check in GROUP.checks if check.tolerance is not None]


@pytest.mark.parametrize("check", DECIDING, ids=lambda check: f"{check.id}-{check.what}"[:60])
def test_a_published_row_is_reproduced_within_its_tolerance(check: Check) -> None:
    assert check.passes, f"ours {check.ours}, published {check.published} {check.unit}"


def test_the_means_are_within_theirs_and_hold_what_they_should() -> None:
    # 4 % at rest and 6 % at peak for dense tests, 15 % with experts; a golden that is left out says why
    assert [(mean.what, mean.value) for mean in GROUP.means if not mean.passes] == []
    assert [sum(not check.excluded for check in mean.checks) for mean in GROUP.means] == [48, 48, 19, 19]
    left_out = {check.what.split(",")[0] for mean in GROUP.means for check in mean.checks if check.excluded}
    assert len(left_out) == 7  # Mamba 3, offloading 2, FSDP 2
    assert all(len(check.excluded) > 20 for check in GROUP.checks if check.excluded)


def test_half_of_the_dense_goldens_at_rest_are_met_to_two_thousandths() -> None:
    errors = sorted(abs(check.error) for check in GROUP.means[0].checks)
    assert errors[len(errors) // 2] < 2e-3


def test_megatrons_own_reporter_errs_as_it_was_found_to() -> None:
    # +7.8 % and +0.8 % on its two 7B tests' peaks, and more than twice the peak of the 15B one, worked out from its formulas elsewhere
    peaks = {"gpt3_7b_tp1_pp4_memory_speed": 60.72e9, "gpt3_7b_tp4_pp1_memory_speed": 57.14e9, "gpt3_15b_8t_release": 28.16e9}
    errors = {name: reported_bytes(CASES[name]) / peak - 1 for name, peak in peaks.items()}
    assert errors["gpt3_7b_tp1_pp4_memory_speed"] == pytest.approx(0.078, abs=0.01)
    assert errors["gpt3_7b_tp4_pp1_memory_speed"] == pytest.approx(0.008, abs=0.02)
    assert 1.0 < errors["gpt3_15b_8t_release"] < 1.3


def test_a_test_is_described_by_the_longest_name_that_it_begins_with() -> None:
    assert case_of("gpt3_15b_8t_release_sm_gb200").layout.pipeline == 2
    assert case_of("gpt3_15b_8t_release_sm").layout.pipeline == 1


def test_the_committed_page_is_what_the_script_writes_and_every_row_is_within_its_tolerance() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "validate_estimates.py"), "--check"], capture_output=True, text=True, check=False, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
