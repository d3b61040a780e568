"""Figures as people read them."""

from __future__ import annotations

import pytest

from megatron_cpt.record.unknown import Amount, Unavailable, show


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00001164, "0.000012"), (0.0035744, "0.003574"), (12.3456, "12.35"), (999.96, "1,000"), (1234567.8, "1,234,568")],
)
def test_an_amount_has_no_exponent(value: float, text: str) -> None:
    assert f"{Amount(value):.4g}" == text
    assert show(value, "{:.4g} USD") == f"{text} USD"


def test_a_difference_keeps_its_sign_and_an_unknown_figure_its_reason() -> None:
    assert [f"{Amount(value):+.4g}" for value in (-45678.9, 0.5, -0.00002)] == ["-45,679", "+0.5", "-0.000020"]
    assert show(Unavailable("no price"), "{:.4g} USD") == "unknown (no price)"
    assert f"{Amount(1234.5):.1f}" == "1234.5"
    assert f"{Amount('inf'):.3g}" == "inf"
