"""Runs are set against each other on the same base and items only; the front is that of the definition; unknown stays unknown."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from megatron_cpt.cli import main
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.plan.run_plan import GatePlan, GateRule
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_lines, write_json
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.report.comparison.front import dominators
from megatron_cpt.report.comparison.groups import Comparison, compare
from megatron_cpt.report.comparison.measures import Change
from megatron_cpt.report.comparison.page import html, short_names
from megatron_cpt.report.comparison.settings import differing, settings_of
from megatron_cpt.report.comparison.tables import csv_text, json_text, markdown
from megatron_cpt.report.comparison.terminal import terminal
from megatron_cpt.report.page import write_report
from megatron_cpt.sweep import Job, comparison_of
from tests.unit.gate.gate_examples import record, spread
from tests.unit.report.comparison_runs import GATE, billed, make_run, scores


def test_the_front_of_points_by_hand() -> None:
    """a gains most, b forgets least, c lies between; d is below c on both counts, e is a's equal in gain and forgets more."""
    points = {"a": (3.0, 2.0), "b": (1.0, -1.0), "c": (2.0, 0.5), "d": (1.5, 0.6), "e": (3.0, 2.5)}
    assert dominators(points) == {"a": (), "b": (), "c": (), "d": ("c",), "e": ("a",)}
    assert dominators({"one": (1.0, 1.0), "same": (1.0, 1.0)}) == {"one": (), "same": ()}  # equal points do not dominate each other


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rates on the front and one that is worse than another in both figures; one run failed in training, one has no price."""
    runs = tmp_path_factory.mktemp("runs")
    for name, law, web in (("low", 0.05, -0.01), ("middle", 0.2, 0.01), ("high", 0.15, 0.3)):
        make_run(runs / f"lr-{name}", law=law, web=web, settings={"schedule": {"kind": "cosine", "peak_lr": len(name) / 1000}})
    make_run(runs / "lr-free", law=0.1, web=0.005, settings={"schedule": {"peak_lr": 0.5}}, usd_per_hour=Unavailable("no price is known"))
    failed = make_run(runs / "lr-failed", settings={"schedule": {"kind": "cosine", "peak_lr": 9.0}}, until="baseline")
    billed(failed, "train", fails=True)
    return runs


@pytest.fixture(scope="module")
def compared(sweep: Path) -> Comparison:
    return compare(sorted(sweep.glob("lr-*")))


def test_gain_forgetting_and_front_of_a_sweep(compared: Comparison) -> None:
    (group,) = compared.groups
    found = {run.entry.name: run for run in group.runs}
    for name, gain, forgetting in (("lr-low", 0.05, -0.01), ("lr-middle", 0.2, 0.01), ("lr-high", 0.15, 0.3), ("lr-free", 0.1, 0.005)):
        run = found[name]
        assert isinstance(run.gain, Change)
        assert isinstance(run.forgetting, Change)
        assert (run.gain.value, run.forgetting.value) == (pytest.approx(gain), pytest.approx(forgetting))
        assert (run.gain.low, run.gain.high) == (pytest.approx(gain), pytest.approx(gain))  # every document changed by the same
    assert [run.entry.name for run in group.front] == ["lr-middle", "lr-free", "lr-low"]  # the largest gain first
    (lead,) = found["lr-high"].ahead or ()
    assert (lead.name, lead.is_sure) == ("lr-middle", True)
    assert isinstance(lead.gain, Change)
    assert isinstance(lead.forgetting, Change)
    assert (lead.gain.value, lead.forgetting.value) == (pytest.approx(0.2 - 0.15), pytest.approx(0.3 - 0.01))
    assert found["lr-high"].entry.state.word == "rolled back"
    assert found["lr-failed"].ahead is None
    assert found["lr-failed"].standing == "no point"
    assert str(found["lr-failed"].entry.state) == "failed (in train, exit code 3)"
    assert group.settings.apart["schedule.peak_lr"] == ["9", "0.5", "0.004", "0.003", "0.006"]
    assert group.settings.apart["schedule.kind"] == ["cosine", "not set", "cosine", "cosine", "cosine"]
    assert set(group.settings.apart) == {"schedule.peak_lr", "schedule.kind"}
    assert group.settings.equal["tokenizer.num_new_pieces"] == "200"


def test_cost_is_the_first_kind_that_every_trained_run_knows(compared: Comparison, sweep: Path) -> None:
    assert compared.groups[0].cost_name == "device-hours of training"  # one has no price, and none has a meter
    (priced,) = compare([sweep / "lr-low", sweep / "lr-high"]).groups
    assert priced.cost_name == "USD of training"
    (end,) = [line for line in read_lines(sweep / "lr-low" / "ledger.jsonl") if line["kind"] == "end"]
    assert priced.runs[0].cost == pytest.approx(end["usd"])


def test_the_interval_is_that_of_the_verdict_for_a_rule_alone(tmp_path: Path) -> None:
    """With one required rule the gate corrects for nothing, so that its verdict and the comparison must say the same."""
    gate = GatePlan((GATE.rules[0], dataclasses.replace(GATE.rules[1], required=False)), 0.95, 500, 7)
    trained = record("train", {"law": [v - 0.1 - 0.05 * (i % 3) for i, v in enumerate(spread(1.8))], "web": spread(1.2, phase=1)})
    make_run(tmp_path / "run", trained=trained, gate=gate)
    law, web = Verdict.load(tmp_path / "run" / "gate" / VERDICT_NAME).rules
    (group,) = compare([tmp_path / "run"]).groups
    gain, forgetting = group.runs[0].gain, group.runs[0].forgetting
    assert isinstance(gain, Change)
    assert isinstance(forgetting, Change)
    assert law.difference is not None
    assert law.low is not None
    assert law.high is not None
    assert (-gain.value, -gain.high, -gain.low) == (pytest.approx(law.difference), pytest.approx(law.low), pytest.approx(law.high))
    assert (forgetting.value, forgetting.low, forgetting.high) == (web.difference, web.low, web.high)
    assert forgetting.low < forgetting.value < forgetting.high


def test_a_lead_that_hangs_on_a_few_items_is_not_sure(tmp_path: Path) -> None:
    """Point values say that one dominates; half of the items say otherwise by more than the mean, and no interval leaves 0 out."""
    even = {name: [value - 0.1 for value in spread(1.8 if name == "law" else 1.2)] for name in ("law", "web")}
    uneven = {name: [value - (0.3 if index % 2 else -0.28) for index, value in enumerate(values)] for name, values in even.items()}
    make_run(tmp_path / "even", trained=record("train", even))
    make_run(tmp_path / "uneven", trained=record("train", uneven))
    (group,) = compare([tmp_path / "even", tmp_path / "uneven"]).groups
    (front,), (behind,) = group.front, [run for run in group.runs if not run.is_on_front]
    assert (front.entry.name, behind.entry.name) == ("uneven", "even")
    assert not behind.is_surely_behind
    assert behind.standing == "behind, but not surely: uneven"
    make_run(tmp_path / "better", trained=record("train", {name: [value - 0.01 for value in values] for name, values in even.items()}))
    (again,) = compare([tmp_path / "even", tmp_path / "better"]).groups
    assert again.runs[0].standing == "surely behind: better"  # by far less, on every item


def test_several_rules_in_one_unit_are_one_mean(tmp_path: Path) -> None:
    gate = GatePlan((*GATE.rules, GateRule("news", "must_improve", 0.0, group="domain")), 0.95, 500, 7)
    base = record("base", {"law": spread(1.8), "web": spread(1.2), "news": spread(1.2)})
    make_run(tmp_path / "run", base=base, trained=record("train", scores(law=0.1, web=0.0, news=0.3)), gate=gate)
    (group,) = compare([tmp_path / "run"]).groups
    assert group.gain.title == "mean of law, news"
    assert isinstance(group.runs[0].gain, Change)
    assert group.runs[0].gain.value == pytest.approx(0.2)
    assert group.runs[0].gain.low == pytest.approx(0.2)


def test_runs_on_another_base_or_other_items_are_never_in_one_group(tmp_path: Path) -> None:
    texts = {"law": spread(1.8), "web": spread(1.2)}
    make_run(tmp_path / "one")
    make_run(tmp_path / "same")
    make_run(tmp_path / "other-base", base=record("base", texts, weights="others"))
    other_items = record("base", texts)
    other_items["subjects"]["base"]["texts"]["law"]["documents"][3]["id"] = "law-new"
    make_run(tmp_path / "other-items", base=other_items)
    comparison = compare([tmp_path / name for name in ("one", "other-base", "same", "other-items")])
    assert [[run.entry.name for run in group.runs] for group in comparison.groups] == [["one", "same"], ["other-base"], ["other-items"]]
    written = markdown(comparison)
    assert "Not those of group 1: the base's weights." in written
    assert "Not those of group 1: the items of law." in written
    assert "never set against those of another" in written
    assert "never set against those of another" in html(comparison)
    (unlike,) = comparison.groups[2].runs
    assert isinstance(unlike.gain, Unavailable)  # base and candidate were scored on other documents
    assert "other documents" in unlike.gain.reason


def test_what_one_run_may_have_seen_is_left_out_of_all(tmp_path: Path) -> None:
    """The other run's blend lacks the item, but a figure with it could not be set against one without it."""
    base = record("base", {"law": spread(1.8), "web": spread(1.2)})
    make_run(tmp_path / "clean", base=base)
    seen = copy.deepcopy(base) | {"contaminated": {"law": [{"id": "law-0"}, {"id": "law-5"}]}}
    make_run(tmp_path / "seen", base=seen)
    (group,) = compare([tmp_path / "clean", tmp_path / "seen"]).groups
    assert [run.gain.num_items for run in group.runs if isinstance(run.gain, Change)] == [38, 38]
    assert any(note.startswith("2 of the items of law overlap") for note in group.notes)


def test_a_run_without_scores_or_plan_is_shown_as_such(tmp_path: Path) -> None:
    make_run(tmp_path / "planned", until="plan")
    make_run(tmp_path / "trained", until="train")
    (tmp_path / "begun").mkdir()
    billed(tmp_path / "begun", "corpus", fails=True)
    (tmp_path / "damaged" / "plan").mkdir(parents=True)
    (tmp_path / "damaged" / "plan" / "manifest.json").write_text("{")
    comparison = compare([tmp_path / name for name in ("planned", "trained", "begun", "damaged")])
    assert [(entry.name, why) for entry, why in comparison.waiting][:2] == [
        ("planned", "the base has not been scored"), ("begun", "it has no plan yet"),
    ]  # fmt: skip
    assert comparison.waiting[2][0].state.word == "unreadable"
    (group,) = comparison.groups
    assert isinstance(group.runs[0].gain, Unavailable)
    assert str(group.runs[0].entry.state) == "unfinished (up to train)"
    assert comparison.settings.apart == {}
    said = terminal(comparison)
    assert "begun: failed (in corpus, exit code 3); in no group: it has no plan yet" in said
    for text in (markdown(comparison), html(comparison)):
        assert "it has no plan yet" in text


def test_what_a_run_took_over_is_named_beside_its_bill_and_in_its_lineage(tmp_path: Path) -> None:
    make_run(tmp_path / "first")
    second = make_run(tmp_path / "second")
    for stage in ("corpus", "vocab"):
        taken = dataclasses.replace(Manifest.load(second / stage), taken_from="first")
        write_json(second / stage / "manifest.json", to_plain(taken))
    comparison = compare([tmp_path / "first", second])
    assert "second took corpus, vocab over from first, whose bill has them." in comparison.groups[0].notes
    assert json.loads(json_text(comparison))["runs"][1]["taken_over"] == {"corpus": "first", "vocab": "first"}
    write_report(tmp_path / "out", second)
    assert "corpus from first; vocab from first" in (tmp_path / "out" / "report.html").read_text()


def test_an_unknown_figure_has_a_reason_and_no_number(compared: Comparison) -> None:
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(csv_text(compared)))}
    assert rows["lr-free"]["train_usd"] == ""
    assert "no price is known" in rows["lr-free"]["unknown_because"]
    assert float(rows["lr-middle"]["train_usd"]) > 0
    assert (rows["lr-failed"]["gain"], rows["lr-failed"]["state"]) == ("", "failed")
    assert "has not been scored" in rows["lr-failed"]["unknown_because"]
    plain = json.loads(json_text(compared))
    failed = next(run for run in plain["runs"] if run["run"] == "lr-failed")
    assert failed["gain"] == {"unavailable": "the trained model has not been scored"}
    assert failed["training"]["kwh"]["value"] is None
    assert plain["groups"][0]["front"] == ["lr-middle", "lr-free", "lr-low"]


def test_a_source_that_some_runs_lack_is_one_difference() -> None:
    manifests = {"corpus": object()}
    with_web = {"source.law.role": "domain", "source.web.role": "general", "source.web.licence": "MIT"}
    found = differing(["a", "b"], [(with_web, manifests), ({"source.law.role": "domain"}, manifests)])  # type: ignore[list-item]
    assert found.apart == {"source.web": ["there", "not set"]}
    assert found.equal == {"source.law.role": "domain"}
    assert settings_of({}) == {}


def test_names_of_strangers_stay_text(tmp_path: Path) -> None:
    for number, value in enumerate(("<img src=x onerror=alert(1)>", "=cmd|'/c calc'!A0")):
        make_run(tmp_path / f"run{number}", settings={"schedule": {"kind": value}})
    comparison = compare(sorted(tmp_path.glob("run*")))
    page = html(comparison)
    assert "<img" not in page.partition("<script>")[0]
    assert "&lt;img" in page
    assert "\\<img" in markdown(comparison)
    assert "'=cmd" in csv_text(comparison)


def test_labels_leave_out_what_all_names_begin_with() -> None:
    assert short_names(["tiny-peak_lr_1", "tiny-peak_lr_2"]) == ["1", "2"]
    assert short_names(["one", "two"]) == ["one", "two"]
    assert short_names(["alone-here"]) == ["alone-here"]


def test_the_command_takes_names_patterns_and_folders(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["compare", "lr-low", "lr-*", str(sweep / "lr-low"), "--runs-dir", str(sweep), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "* lr-middle" in said
    assert "  lr-high" in said
    assert len(json.loads((out / "comparison.json").read_text())["runs"]) == 5  # each once
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.html", "comparison.json", "comparison.md"]
    assert main(["compare", "lr-lwo", "--runs-dir", str(sweep)]) == 3
    assert "Did you mean lr-low?" in capsys.readouterr().err
    assert main(["compare", "lr-low", "--runs-dir", str(sweep), "--out", str(sweep / "lr-high")]) == 2
    assert "not written into a run" in capsys.readouterr().err
    assert main(["compare", "--runs-dir", str(sweep), "--out", str(out)]) == 0  # all of them


def test_a_sweep_ends_with_its_comparison_and_the_command_for_it(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass
    class Config:
        run_name: str
        runs_dir: str = str(sweep)

    jobs = [Job((), (), Config(name)) for name in ("lr-low", "lr-middle", "lr-nothing")]  # type: ignore[arg-type]
    said = comparison_of(jobs, is_over=True)
    assert "* lr-middle" in said
    typed = said.rpartition("again ")[2].split()
    assert "lr-nothing" not in typed  # it left no records
    out = sweep / "lr-comparison"
    assert len(json.loads((out / "comparison.json").read_text())["runs"]) == 2
    assert typed[0] == "megatron-cpt"
    assert main(typed[1:]) == 0
    assert "* lr-middle" in capsys.readouterr().out
    assert comparison_of(jobs, is_over=False).startswith("When they are through: megatron-cpt compare lr-low lr-middle lr-nothing ")
