"""Figures that should make one look twice: equal scores of other weights, and a start that suits a model better."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.backend import choose
from megatron_cpt.eval.alike import warn_of_equal_scores
from megatron_cpt.record.store import write_json

choose("cpu")

from megatron_cpt.eval.starts import declared_bos_id, warn_of_better_start  # noqa: E402


def subject(weights: str, nats: tuple[float, ...] = (3.0, 4.5), answer: float = 1.0) -> dict[str, Any]:
    documents = [{"id": f"d{number}", "nats": each} for number, each in enumerate(nats)]
    items = [{"id": "q1", "metrics": {"accuracy": answer}}]
    return {"weights_sha256": weights, "texts": {"law": {"documents": documents}}, "tasks": {"bar exam": {"items": items}}}


def test_other_weights_with_the_same_figures_are_flagged_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = warn_of_equal_scores({"base": subject("aaa"), "train": subject("bbb"), "other": subject("ccc", answer=0.0)})
    assert found == [("base", "train")]
    assert "base and train have other weights (aaa, bbb)" in caplog.text


@pytest.mark.parametrize(
    "others",
    [
        {"train": subject("aaa")},  # the same weights
        {"train": subject("bbb", nats=(3.0, 4.5000001))},
        {"train": subject("bbb", answer=0.0)},
        {"init": subject("bbb")},  # without new ids the base in another form
    ],
)
def test_what_is_expected_is_not_flagged(others: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert warn_of_equal_scores({"base": subject("aaa"), **others}) == []
    assert caplog.text == ""


def test_a_start_that_is_better_by_more_than_the_limit_is_told_with_both_figures(caplog: pytest.LogCaptureFixture) -> None:
    assert not warn_of_better_start("base", {"separator": 3.0, "nothing": 2.86, "bos": 3.2}, used="separator")
    assert caplog.text == ""
    assert warn_of_better_start("base", {"separator": 3.0, "nothing": 2.9, "bos": 2.84}, used="separator")
    assert "3.0000 nats per token after the separator" in caplog.text
    assert "2.8400 after bos" in caplog.text


@pytest.mark.parametrize(("declared", "expected"), [(5, 5), (None, None), ([1, 2], None), (True, None), ("1", None)])
def test_only_a_declared_id_is_a_declared_start(tmp_path: Path, declared: object, expected: int | None) -> None:
    write_json(tmp_path / "config.json", {"bos_token_id": declared})
    assert declared_bos_id(tmp_path) == expected
