"""The report shows what is recorded, and unknown where nothing is; strangers' names stay text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from megatron_cpt.charts.data import Axis, Series, XYChart
from megatron_cpt.charts.figure import still
from megatron_cpt.charts.page import table
from megatron_cpt.report.page import write_report
from megatron_cpt.report.steps import StepRecords


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]


def test_an_empty_run_is_reported_as_not_judged(tmp_path: Path) -> None:
    run_dir = tmp_path / "nothing"
    run_dir.mkdir()
    write_report(tmp_path / "out", run_dir)
    assert "not judged yet" in (tmp_path / "out" / "summary.txt").read_text()
    assert "Not judged yet" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "train").mkdir(parents=True)
    lines = [{"kind": "step", "step": step, "tokens": 10 * step, "loss": 3 / step, "lr": 0.1, "grad_norm": 1.0} for step in (1, 2, 3)]
    (run_dir / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path / "out", run_dir)
    tags = Tags()
    tags.feed((tmp_path / "out" / "report.html").read_text())
    assert [source for source in tags.sources if not source.startswith("#")] == []
    assert tags.opened.count("polyline") == 3  # loss, rate, norm; throughput was not recorded


def test_benchmarks_stand_beside_texts_with_unknown_for_what_was_not_scored(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    task = {"group": "bias", "metrics": {"stereotype": 0.625, "gap": 0.25}, "items": []}
    for folder, subjects in {"baseline": {"base": {"tasks": {"<pairs>": task}}, "init": {}}, "eval": {"train": {"tasks": {}}}}.items():
        (run_dir / folder).mkdir(parents=True)
        (run_dir / folder / "eval.json").write_text(json.dumps({"subjects": subjects}))
    write_report(tmp_path / "out", run_dir)
    summary, page = (tmp_path / "out" / "summary.txt").read_text(), (tmp_path / "out" / "report.html").read_text()
    print(summary)
    line = next(line for line in summary.splitlines() if line.startswith("<pairs> stereotype"))
    assert line.split()[2:] == ["0.6250", "unknown", "unknown", "unknown"]
    assert "<h2>Benchmarks</h2>" in page
    assert "&lt;pairs&gt;" in page
    assert "<pairs>" not in page


def test_a_chart_places_points_in_proportion() -> None:
    chart = still(XYChart("t", [Series("s", [(0, 0), (5, 5), (10, 10)])], Axis("x"), Axis("y")))
    points = chart.split('points="')[1].split('"')[0].split(" ")
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in points]
    assert abs((x0 + x2) / 2 - x1) < 0.11  # coordinates have one decimal
    assert abs((y0 + y2) / 2 - y1) < 0.11
    assert y2 < y0  # up is less in SVG


def test_points_that_are_not_finite_are_left_out() -> None:
    assert "nan" not in still(XYChart("t", [Series("s", [(0, float("nan")), (1, 1)])], Axis("x"), Axis("y")))
    assert "no data" in still(XYChart("t", [Series("s", [(0, float("inf"))])], Axis("x"), Axis("y")))


def test_cells_are_escaped() -> None:
    assert "<script>" not in table(("a",), [("<script>alert(1)</script>",)])


def test_only_the_steps_that_led_to_the_current_weights_are_drawn() -> None:
    def step(number: int, loss: float) -> dict[str, object]:
        return {"kind": "step", "step": number, "loss": loss}

    lines = [
        step(1, 1.0), step(2, 2.0), {"kind": "event", "event": "rollback"},
        {"kind": "resume", "step": 1, "round": 2}, step(2, 5.0), step(3, 6.0),
    ]  # fmt: skip
    assert [line["loss"] for line in StepRecords.of(lines).steps] == [1.0, 5.0, 6.0]
    assert [line["loss"] for line in StepRecords.of(lines[:3]).steps] == [1.0, 2.0]  # after a rollback: what was tried
