"""The run report as people see it, in a real browser: live charts that hold the records' figures, and still ones without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
from playwright.sync_api import Browser, Page

from megatron_cpt.charts.data import Axis, BarChart, BarSeries, Mark, Series, Span, Timeline, XYChart, thinned
from megatron_cpt.charts.figure import figure
from megatron_cpt.charts.interactive import description
from megatron_cpt.charts.page import Cell, table, whole_page
from megatron_cpt.meter.attempts import attempts_of
from megatron_cpt.record.store import read_lines
from megatron_cpt.report.page import write_report
from tests.browser import Opened, opened
from tests.unit.report.report_run import EVALUATED, HOSTILE, SOURCES, make_run, plan

STEP = 2**20  # tokens


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Path:
    write_report(run_dir / "report", run_dir)
    return run_dir / "report" / "report.html"


@pytest.fixture(scope="module")
def live(report: Path, chromium: Browser) -> Iterator[Opened]:
    """The page in one window, whose tests come one after another and leave it as they found it."""
    with opened(chromium, report) as seen:
        yield seen


def chart(page: Page, title: str) -> list[dict[str, Any]]:
    """Return the traces of a chart as Plotly holds them: what is in the picture, and not what we handed over."""
    return page.evaluate(
        """title => {
            const captions = [...document.querySelectorAll("figure.chart figcaption")];
            const found = captions.find((each) => each.innerText.startsWith(title)).parentElement;
            return found.querySelector(".plot").data.map((each) => ({...each}));
        }""",
        title,
    )


def points(trace: dict[str, Any]) -> list[tuple[float, float]]:
    return list(zip(trace["x"], trace["y"], strict=True))


def test_the_page_is_quiet_and_asks_for_nothing(live: Opened) -> None:
    assert live.complaints == []
    assert live.requests == []
    figures, drawn = live.page.evaluate(
        "[document.querySelectorAll('figure.chart').length, document.querySelectorAll('.js-plotly-plot .main-svg').length]"
    )
    assert figures >= 12
    assert drawn >= figures


def test_loss_holds_the_steps_in_the_weights_and_those_left_behind(live: Opened) -> None:
    (loss,), (left,) = chart(live.page, "Training loss"), chart(live.page, "Loss of rounds left behind")
    assert points(loss) == [(step * STEP, 3.0 + 1 / step) for step in range(1, 11)]
    assert points(left) == [(step * STEP, 9.0 + 1 / step) for step in (1, 2, 3)]
    (norm,) = chart(live.page, "Gradient norm")
    assert [x for x, _ in points(norm)] == [step * STEP for step in range(1, 11) if step != 3]  # that one was no finite number
    law, web = chart(live.page, "Training loss by source")
    assert set(law["y"]) == {3.0}
    assert set(web["y"]) == {4.0}


def test_gain_and_forgetting_hold_every_evaluation_with_its_interval(live: Opened) -> None:
    (law,), (news,) = chart(live.page, "Domain texts: gain"), chart(live.page, "General texts: forgetting")
    for trace, values in (
        (law, [0.5, *(-gain for gain, _ in EVALUATED.values()), -0.1]),
        (news, [0.001, *(loss for _, loss in EVALUATED.values()), 0.012]),
    ):
        assert trace["x"] == [0, *(step * STEP for step in EVALUATED), 10 * STEP]
        assert trace["y"] == pytest.approx(values)
        for ends, value in zip(trace["customdata"], values, strict=True):  # every document moved alike: the interval is the point
            assert ends == pytest.approx([value, value])
    (course,) = chart(live.page, "Gain against forgetting")
    assert course["text"] == ["extended", *(f"step {step}" for step in EVALUATED), "trained"]
    assert points(course)[-1] == pytest.approx((0.012, 0.1))


def test_sources_memory_and_the_bill_stand_beside_their_plan(live: Opened, run_dir: Path) -> None:
    planned, consumed = chart(live.page, "Tokens by source")
    assert planned["x"] == [960 * 8192, 320 * 8192]  # three parts and one of 1,280 sequences
    assert consumed["x"] == [960 * 8192, 320 * 8192]
    memory = {trace["name"]: trace["x"] for trace in chart(live.page, "Memory of a rank")}
    rank = plan().estimate.memory[0]
    assert memory["weights"] == [rank.weights / 1e9]
    assert memory["measured"] == [40_000_000_010 / 1e9]
    (extent, _) = chart(live.page, "Bytes per token")
    assert extent["x"] == [1.6, 1.6]
    planned_share, actual = chart(live.page, "Actual against planned")
    spent = sum(float(record.usd) for record in attempts_of(run_dir) if record.stage == "train" and isinstance(record.usd, float))
    place = actual["customdata"].index("cost")
    assert planned_share["x"][place] == 100
    assert actual["x"][place] == pytest.approx(100 * spent / 4e-6)  # two rounds planned 2e-6 USD each


def test_every_attempt_is_on_one_axis_of_time_coloured_by_its_end(live: Opened, run_dir: Path) -> None:
    spans = {trace["name"]: trace for trace in chart(live.page, "Attempts by how they ended")}
    attempts = attempts_of(run_dir)
    assert {name: len(trace["x"]) for name, trace in spans.items()} == {"finished": 3, "rolled back": 1, "stopped": 1, "killed": 1}
    zero = min(record.began or 0.0 for record in attempts)
    for name, trace in spans.items():
        mine = [record for record in attempts if record.status.replace("_", " ") == name]
        assert trace["base"] == pytest.approx([(record.began or 0.0) - zero for record in mine])
        lengths = [record.seconds if isinstance(record.seconds, float) else 0.0 for record in mine]
        assert trace["x"] == pytest.approx(lengths, abs=1e-6)
    colours = [trace["marker"]["color"] for trace in spans.values()]
    assert len(set(colours)) == 4
    assert all(colour.startswith("#") for colour in colours)


def test_texts_of_others_stay_text(live: Opened) -> None:
    assert live.page.evaluate("window.broken") is None
    assert live.page.evaluate("document.images.length + document.querySelectorAll('b, iframe, object').length") == 0
    shown = live.page.evaluate("[...document.querySelectorAll('#sources td:first-child')].map((cell) => cell.textContent)")
    assert shown == list(SOURCES)
    legend = live.page.evaluate("[...document.querySelectorAll('#training .legendtext')].map((each) => each.textContent)")
    assert any(text.startswith("</script><script>window.broken=1") for text in legend)


def test_a_script_that_gets_into_the_page_does_not_run_and_nothing_can_be_fetched(live: Opened) -> None:
    said = len(live.complaints)
    live.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.broken = 1'}))")
    assert live.page.evaluate("window.broken") is None
    assert live.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => String(error))") == "TypeError: Failed to fetch"
    assert live.requests == []
    assert any("Content Security Policy" in text for text in live.complaints[said:])
    del live.complaints[said:]
    live.page.evaluate("document.body.lastElementChild.remove()")


def test_a_chart_offers_to_be_saved_here_and_to_be_sent_nowhere(live: Opened) -> None:
    plot = live.page.locator("#training .plot").first
    offered = plot.locator(".modebar-btn").evaluate_all("(buttons) => buttons.map((each) => each.dataset.title)")
    assert offered == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    plot.hover()
    with live.page.expect_download() as saved:
        plot.locator(".modebar-btn").first.click()
    assert saved.value.path().read_bytes().startswith(b"\x89PNG")
    assert live.complaints == []


def test_dark_mode_is_followed_while_the_page_is_open_and_the_zoom_stays(live: Opened) -> None:
    look = """() => {
        const plot = document.querySelector("#training .plot");
        const page = getComputedStyle(document.body).backgroundColor;
        return [plot.layout.paper_bgcolor, page, plot.layout.xaxis.range, plot.data[0].line.color];
    }"""
    live.page.evaluate(f"Plotly.relayout(document.querySelector('#training .plot'), {{'xaxis.range': [{STEP}, {5 * STEP}]}})")
    light = live.page.evaluate(look)
    live.page.emulate_media(color_scheme="dark")
    live.page.wait_for_selector("html[data-charts=dark]")
    dark = live.page.evaluate(look)
    live.page.emulate_media(color_scheme="light")
    live.page.wait_for_selector("html[data-charts=light]")
    assert light[:2] == ["#fff", "rgb(255, 255, 255)"]
    assert dark[:2] == ["#12161c", "rgb(18, 22, 28)"]
    assert light[2] == dark[2] == [STEP, 5 * STEP]
    assert light[3] != dark[3]
    assert live.page.evaluate(look) == light


def test_a_table_is_sorted_by_its_heading_and_what_is_unknown_stays_last(live: Opened) -> None:
    rows = (
        "[...document.querySelectorAll('#bill table:last-of-type tbody')].at(-1).innerText.split('\\n').map((row) => row.split('\\t')[0])"
    )
    heading = live.page.locator("#bill table").last.locator("th button", has_text="seconds")
    heading.click()
    assert live.page.evaluate(rows)[-1] == "all stages"
    heading.click()
    assert live.page.evaluate(rows)[0] == "all stages"
    ended = live.page.locator("#history th button", has_text="seconds")
    for _ in range(2):
        ended.click()
        assert "killed" in live.page.evaluate("[...document.querySelectorAll('#history tbody tr')].at(-1).innerText")


def test_a_phone_needs_no_sideways_scrolling(live: Opened) -> None:
    live.page.set_viewport_size({"width": 390, "height": 844})
    live.page.wait_for_function("() => [...document.querySelectorAll('.plot')].every((plot) => plot._fullLayout.width <= 390)")
    assert live.page.evaluate("document.documentElement.scrollWidth") == 390
    live.page.set_viewport_size({"width": 1280, "height": 900})


def test_print_takes_the_still_pictures(live: Opened) -> None:
    live.page.emulate_media(media="print")
    seen = """[...document.querySelectorAll('figure.chart')].map(
        (each) => ['.still', '.plot'].map((part) => each.querySelector(part).checkVisibility())
    )"""
    printed = live.page.evaluate(seen)
    live.page.emulate_media(media="screen")
    assert all(each == [True, False] for each in printed)
    assert all(each == [False, True] for each in live.page.evaluate(seen))
    assert live.complaints == []


def test_without_javascript_there_are_pictures_and_tables(report: Path, chromium: Browser) -> None:
    with opened(chromium, report, runs_scripts=False, width=390) as seen:
        figures = seen.page.locator("figure.chart")
        assert figures.count() >= 12
        for number in range(figures.count()):
            box = figures.nth(number).locator(".still svg").bounding_box()
            assert box is not None
            assert 0 < box["width"] <= 390
        assert not seen.page.locator(".plot").first.is_visible()
        line = seen.page.locator("figure.chart", has_text="Training loss").first.locator("polyline").first
        assert len((line.get_attribute("points") or "").split(" ")) == 10
        assert seen.page.locator("#history tbody tr").count() == 6
        assert HOSTILE in seen.page.locator("#completions td").nth(1).text_content()  # type: ignore[operator]  -- no text fails too
        assert seen.complaints == []
        assert seen.requests == []


def test_an_empty_run_has_a_page_that_says_what_is_unknown(tmp_path: Path) -> None:
    write_report(tmp_path / "report", tmp_path)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert 'class="chart' not in page.split("<script>")[0]
    assert page.count("Unknown: ") >= 5


CHARTS = [
    XYChart(
        "xy",
        [
            Series("a", [(0, 1), (1, float("nan")), (2, 3)], intervals=[(0.5, 1.5), None, (2, 4)], labels=["<p>", "q", "r"], mode="both"),
            Series("b", [(1, 1)], "b", x_intervals=[(0.5, 1.5)], mode="points", dashed=True),
        ],
        Axis("x", "tokens"), Axis("y"), marks=[Mark(1, "here")], levels=[Mark(2, "there", "bad")],
    ),
    BarChart(
        "across", ["one", "two"], [BarSeries("s", [1.0, None], intervals=[(0.5, 2.0), None]), BarSeries("t", [2.0, 3.0], "b")], Axis("v")
    ),
    BarChart("stacked", ["one"], [BarSeries("s", [1.0]), BarSeries("t", [2.0], "b")], Axis("v"), stacked=True),
    BarChart("upright", ["one", "two"], [BarSeries("s", [1.0, 2.0])], Axis("v"), across=False),
    Timeline(
        "time", [Span("train", 0, 1, "killed", "bad"), Span("eval", 1, 2, "finished", "good", "words")], Axis("s"), marks=[Mark(1, "m")]
    ),
]  # fmt: skip


@pytest.mark.parametrize("shown", CHARTS, ids=lambda each: each.title)
def test_plotly_knows_every_property_of_a_description(shown: XYChart | BarChart | Timeline) -> None:
    def with_colours(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_colours(each) for key, each in value.items()}
        return "#000" if isinstance(value, str) and value.startswith("var(--") else value

    found = description(shown)
    traces = [with_colours(trace) for trace in found["data"]]
    plotly.graph_objects.Figure(data=traces, layout=with_colours(found["layout"]))  # raises on a property that it does not know


def test_charts_of_every_kind_are_drawn_and_a_name_is_no_tag(tmp_path: Path, chromium: Browser) -> None:
    cells = table(("name", "value"), [("b", Cell("ten", 10.0)), ("a", Cell("unknown", None)), ("c", Cell("two", 2.0))], is_sortable=True)
    path = tmp_path / "page.html"
    path.write_text(whole_page("all", "".join(map(figure, CHARTS)) + cells, is_interactive=True), encoding="utf-8")
    with opened(chromium, path) as seen:
        assert seen.complaints == []
        assert seen.page.locator(".plot .main-svg").count() >= len(CHARTS)
        (first, second) = chart(seen.page, "xy")
        assert points(first) == [(0, 1), (2, 3)]
        assert (first["error_y"]["array"], first["error_y"]["arrayminus"]) == ([0.5, 1.0], [0.5, 1.0])
        assert (second["error_x"]["array"], second["error_x"]["arrayminus"]) == ([0.5], [0.5])
        assert "<p>" in seen.page.locator(".plot").first.locator(".textpoint").all_text_contents()
        value = seen.page.locator("th button", has_text="value")
        names = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent).join('')"
        value.click()
        assert seen.page.evaluate(names) == "cba"
        value.click()
        assert seen.page.evaluate(names) == "bca"


def test_a_spike_of_one_step_survives_thinning() -> None:
    line = [(float(step), 2.0 + step / 1e6) for step in range(100_000)]
    line[54_321] = (54_321.0, 40.0)
    kept = thinned(line)
    assert len(kept) <= 1500
    assert line[54_321] in kept
    assert (kept[0], kept[-1]) == (line[0], line[-1])
    assert kept == sorted(kept)
    assert thinned(line[:1500]) == line[:1500]


def test_steps_of_a_stopped_attempt_are_not_drawn_twice(run_dir: Path) -> None:
    lines = [line for line in read_lines(run_dir / "train" / "metrics.jsonl") if line["kind"] == "step" and line.get("round") == 2]
    assert [line["step"] for line in lines] == list(range(1, 11))
