"""The comparison in a real browser: it says nothing to the console, sorts, and draws the data's points."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from megatron_cpt.report.comparison.command import PAGE_NAME, write_comparison
from tests.browser import opened
from tests.unit.report.comparison_runs import billed, make_run


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    made = [
        make_run(runs / f"law-peak_lr_{rate:g}", law=law, web=web, settings={"schedule": {"peak_lr": rate}})
        for rate, law, web in ((0.001, 0.05, -0.01), (0.01, 0.2, 0.01), (0.002, 0.15, 0.3))
    ]
    failed = make_run(runs / "law-peak_lr_0.1", settings={"schedule": {"peak_lr": 0.1}}, until="baseline")
    billed(failed, "train", fails=True)
    write_comparison([*made, failed], runs / "out")
    return runs / "out" / PAGE_NAME


def test_it_draws_the_front_and_the_others_where_they_are(chromium: Browser, page_path: Path) -> None:
    with opened(chromium, page_path) as seen:
        drawn = seen.page.evaluate(
            """() => document.querySelector("figure.chart .plot").data.map(
                (trace) => ({ name: trace.name, x: [...trace.x], y: [...trace.y], labels: [...trace.text] }))"""
        )
        assert seen.complaints == []
        assert seen.requests == []
    front, behind = drawn
    assert (front["name"], front["labels"]) == ("on the front", ["0.01", "0.001"])
    assert front["x"] == [pytest.approx(0.2), pytest.approx(0.05)]
    assert front["y"] == [pytest.approx(0.01), pytest.approx(-0.01)]
    assert (behind["labels"], behind["x"], behind["y"]) == (["0.002"], [pytest.approx(0.15)], [pytest.approx(0.3)])


def test_a_click_on_a_heading_sorts_by_the_figure_and_leaves_unknown_last(chromium: Browser, page_path: Path) -> None:
    with opened(chromium, page_path) as seen:
        results = seen.page.locator("table.sortable").first

        def rates() -> list[str]:
            return [row.locator("td").nth(1).inner_text() for row in results.locator("tbody tr").all()]

        assert rates() == ["0.001", "0.01", "0.002", "0.1"]
        results.get_by_role("button", name="schedule.peak_lr").click()
        assert rates() == ["0.001", "0.002", "0.01", "0.1"]
        results.get_by_role("button", name="gain").click()
        assert rates() == ["0.001", "0.002", "0.01", "0.1"]
        results.get_by_role("button", name="gain").click()
        assert rates() == ["0.01", "0.002", "0.001", "0.1"]  # the failed run has no gain, and stays last
        assert seen.complaints == []


@pytest.mark.parametrize("width", [390, 1280])
def test_without_scripts_and_on_a_phone_everything_is_there(chromium: Browser, page_path: Path, width: int) -> None:
    with opened(chromium, page_path, runs_scripts=False, width=width) as seen:
        assert seen.page.locator("figure.chart .still svg").first.is_visible()
        assert seen.page.locator("circle.dot").count() == 6  # three runs in two pictures
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert "failed (in train, exit code 3)" in seen.page.inner_text("body")
