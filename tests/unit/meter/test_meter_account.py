"""The command as a user calls it: tables, CSV and JSON of real ledgers; unknown is never 0; wrong calls are told in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cpt.cli import main
from megatron_cpt.meter.energy import NoMeter
from megatron_cpt.meter.ledger import Planned, Site, attempt
from megatron_cpt.record.store import append_line
from megatron_cpt.record.unknown import Unavailable
from tests.unit.meter.test_meter_ledger import TenJoules

ROOT = Path(__file__).parents[3]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of one project: one with a meter, a price and factors, one that failed and has none of them."""
    folder = tmp_path / "runs"
    site = Site(tariff="mine", pue=1.2, grid_g_co2e_per_kwh=300.0)
    planned = Planned(1.0, 5, 0.5, 2.0)
    priced = {"usd_per_device_hour": 3600.0, "meter": TenJoules(), "planned": planned, "project_dir": folder, "site": site}
    with attempt(folder / "good", "train", num_ranks=2, **priced) as entry:  # type: ignore[arg-type]
        entry.tokens, entry.start_tokens = 1234, 0
    append_line(folder / "good" / "ledger.jsonl", {"kind": "event", "event": "rollback"})
    options = {"num_ranks": 1, "usd_per_device_hour": Unavailable("no price is set"), "meter": NoMeter("no counter"), "project_dir": folder}
    with pytest.raises(ValueError, match="x"), attempt(folder / "bad", "vocab", **options):  # type: ignore[arg-type]
        raise ValueError("x")
    return folder


def test_all_runs_are_a_row_each_and_the_notes_say_what_is_unknown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "--runs-dir", str(runs)]) == 0
    out = capsys.readouterr().out
    head, _, good, bad, _, whole, *notes = out.splitlines()
    assert head.split("  ")[0] == "run"
    assert good.split()[0] == "good"
    assert "1,234" in good
    assert bad.split()[0] == "bad"
    assert bad.count("unknown") == 4  # energy at the meters and of the site, carbon, money
    assert " 0 " not in bad
    assert whole.startswith("all ")
    assert any("no price is set" in note for note in notes)
    assert any("CPU without a meter" in note for note in notes)


def test_one_run_is_told_by_stage_with_the_reasons(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", str(runs / "good")]) == 0
    out = capsys.readouterr().out
    assert "train: 1 finished" in out
    assert "kWh with PUE" in out
    assert "kg CO2e" in out
    assert "why not as planned" in out


def test_groups_csv_and_json_hold_the_same_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "--runs-dir", str(runs), "--by", "user,tariff", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["tariff"] for row in rows} == {"mine", "unknown"}
    assert main(["account", "--runs-dir", str(runs), "--json"]) == 0
    groups = {group["run"]: group for group in json.loads(capsys.readouterr().out)["groups"]}
    assert groups["good"]["kwh"]["value"] == pytest.approx(10 / 3.6e6)
    assert groups["good"]["g_co2e"]["value"] == pytest.approx(10 / 3.6e6 * 1.2 * 300)
    assert groups["bad"]["kwh"]["value"] is None
    assert groups["bad"]["kwh"]["unknown_because"] == ["no counter"]
    assert float(next(row for row in rows if row["tariff"] == "mine")["kwh"]) == pytest.approx(10 / 3.6e6)
    assert next(row for row in rows if row["tariff"] == "unknown")["kwh"] == ""


def test_torn_lines_are_told_and_change_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "--runs-dir", str(runs), "--csv"]) == 0
    before = capsys.readouterr().out
    with (runs / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind":"end","att')
    assert main(["account", "--runs-dir", str(runs), "--csv"]) == 0
    after = capsys.readouterr()
    assert after.out == before
    assert "line 5 is torn" in after.err


def test_sacct_output_is_imported_from_a_file(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_line(runs / "bad" / "ledger.jsonl", {"kind": "submitted", "stage": "train", "slurm": {"job_id": "77"}})
    file = tmp_path / "sacct.txt"
    file.write_text("JobIDRaw|State|ElapsedRaw|AllocTRES\n77|OUT_OF_MEMORY|40|gres/gpu=2\n78|FAILED|10|gres/gpu=2\n", encoding="utf-8")
    for added in (1, 0):
        assert main(["account", "--runs-dir", str(runs), "--by", "run,stage", "--csv", "--sacct", str(file)]) == 0
        said = capsys.readouterr()
        assert f"{added} lines added to the bill; 1 of jobs that no ledger here names were left out" in said.err
        row = next(row for row in csv.DictReader(io.StringIO(said.out)) if (row["run"], row["stage"]) == ("bad", "train"))
        assert (row["seconds"], float(row["device_hours"]), row["ended"]) == ("40", pytest.approx(80 / 3600), "failed:1")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--by", "week,colour"], 2, "by colour"),
        (["nowhere"], 3, "no ledger.jsonl in nowhere"),
        (["--sacct", "absent.txt"], 3, "cannot be read"),
        (["--ask-sacct"], 3, "No Slurm job"),
    ],
)
def test_a_wrong_call_is_one_clear_error(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert main(["account", *arguments, "--runs-dir", str(runs)]) == code
    assert words in capsys.readouterr().err


def test_a_folder_without_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "--runs-dir", str(tmp_path)]) == 3
    assert "--runs-dir" in capsys.readouterr().err


def test_the_tool_is_the_command(runs: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/account.py"), str(runs / "good"), "--csv"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (answer.returncode, answer.stdout.count("\n")) == (0, 2)
