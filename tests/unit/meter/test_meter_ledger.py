"""The bill: every attempt is on it however it ended, a kill loses a heartbeat at most, and unknown stays visible."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_cpt.errors import BudgetReached, DataError, RolledBack, Stopped
from megatron_cpt.meter.account import account_text
from megatron_cpt.meter.account_tables import account_csv
from megatron_cpt.meter.attempts import attempts_in, attempts_of
from megatron_cpt.meter.energy import NoMeter, Part
from megatron_cpt.meter.ledger import attempt
from megatron_cpt.meter.totals import totals_by, totals_by_stage
from megatron_cpt.record.store import read_lines
from megatron_cpt.record.unknown import Figure, Unavailable

ROOT = Path(__file__).parents[3]


class TenJoules:
    scope = "a test"

    def parts(self) -> tuple[Part, ...]:
        return (Part("cpu", 10.0, 1, 1, "a test"),)

    def read(self) -> Figure:
        return 10.0


def test_the_start_is_on_disk_before_the_work_and_the_end_after_it(tmp_path: Path) -> None:
    with attempt(tmp_path, "train", num_ranks=4, usd_per_device_hour=3600.0, meter=TenJoules()) as entry:
        assert [line["kind"] for line in read_lines(tmp_path / "ledger.jsonl")] == ["start"]
        entry.tokens = 512
        time.sleep(0.05)
    (record,) = attempts_of(tmp_path)
    assert (record.stage, record.status, record.exit_code, record.tokens, record.joules) == ("train", "finished", 0, 512, 10.0)
    assert isinstance(record.seconds, float)
    assert 0.05 <= record.seconds < 5
    assert record.device_seconds == pytest.approx(4 * record.seconds)
    assert record.usd == pytest.approx(4 * record.seconds)  # a dollar a device-second


def test_the_end_says_what_was_read_by_source_and_licence_where_it_is_known(tmp_path: Path) -> None:
    with attempt(tmp_path, "train", num_ranks=1, usd_per_device_hour=1.0) as entry:
        entry.source_tokens, entry.licence_tokens = {"law": 30, "web": 12}, {"CC0-1.0": 42}
    with attempt(tmp_path, "eval", num_ranks=1, usd_per_device_hour=1.0):
        pass
    train, evaluation = [line for line in read_lines(tmp_path / "ledger.jsonl") if line["kind"] == "end"]
    assert (train["source_tokens"], train["licence_tokens"]) == ({"law": 30, "web": 12}, {"CC0-1.0": 42})
    assert "source_tokens" not in evaluation


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DataError("x"), "failed", 3),
        (Stopped("x"), "stopped", 75),
        (BudgetReached("x"), "stopped", 6),
        (RolledBack("x"), "rolled_back", 5),
        (ValueError("x"), "failed", 1),
        (KeyboardInterrupt(), "failed", 130),
        (SystemExit(4), "failed", 4),
    ],
)
def test_every_kind_of_end_is_on_the_bill_and_the_error_goes_on(tmp_path: Path, error: BaseException, status: str, code: int) -> None:
    with pytest.raises(type(error)), attempt(tmp_path, "train", num_ranks=1, usd_per_device_hour=1.0):
        raise error
    (record,) = attempts_of(tmp_path)
    assert (record.status, record.exit_code) == (status, code)


def test_no_price_and_no_meter_are_reasons_and_not_zeros(tmp_path: Path) -> None:
    with attempt(
        tmp_path, "eval", num_ranks=2, usd_per_device_hour=Unavailable("set tariff.usd_per_device_hour"), meter=NoMeter("no counter")
    ):
        pass
    (record,) = attempts_of(tmp_path)
    assert record.usd == Unavailable("set tariff.usd_per_device_hour")
    assert record.joules == Unavailable("no counter")


def test_a_killed_attempt_lasted_at_least_to_its_last_heartbeat(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from megatron_cpt.meter.ledger import attempt\n"
        "with attempt(pathlib.Path(sys.argv[1]), 'train', num_ranks=2, usd_per_device_hour=3600.0, beat_seconds=0.1) as entry:\n"
        "    entry.tokens = 7\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.6)
    (alive,) = attempts_of(tmp_path)
    assert alive.status == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (record,) = attempts_of(tmp_path)
    assert record.status == "killed"
    assert isinstance(record.seconds, float)
    assert 0.1 <= record.seconds < 10
    assert record.tokens == 7
    assert record.usd == pytest.approx(2 * record.seconds)
    assert isinstance(record.joules, Unavailable)
    text = account_text("run", totals_by_stage([record]))
    assert "1 killed" in text
    assert "at least" in text


def test_a_torn_last_line_loses_nothing_else_and_later_lines_are_read(tmp_path: Path) -> None:
    with attempt(tmp_path, "corpus", num_ranks=1, usd_per_device_hour=1.0):
        pass
    with (tmp_path / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind":"start","attempt":"torn","sta')
    with attempt(tmp_path, "vocab", num_ranks=1, usd_per_device_hour=1.0):
        pass
    assert [(record.stage, record.status) for record in attempts_of(tmp_path)] == [("corpus", "finished"), ("vocab", "finished")]


def test_attempts_written_by_two_threads_at_once_are_all_there(tmp_path: Path) -> None:
    def work(stage: str) -> None:
        for _ in range(20):
            with attempt(tmp_path, stage, num_ranks=1, usd_per_device_hour=1.0, beat_seconds=None):
                pass

    threads = [threading.Thread(target=work, args=(stage,)) for stage in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.stage for record in attempts_of(tmp_path)) == ["a"] * 20 + ["b"] * 20


def end(attempt_id: str, stage: str, *, seconds: float, joules: object, usd: object, status: str = "finished") -> dict[str, object]:
    return {
        "kind": "end", "attempt": attempt_id, "stage": stage, "status": status, "exit_code": 0, "num_ranks": 2, "seconds": seconds,
        "device_seconds": 2 * seconds, "tokens": 100, "joules": joules, "usd": usd,
        "planned": {"seconds": 90.0, "tokens": 250, "usd": {"unavailable": "no price"}, "kwh": 0.5},
    }  # fmt: skip


LINES = [
    end("a", "train", seconds=10.0, joules=3.6e6, usd=1.0, status="failed"),
    end("b", "train", seconds=30.0, joules={"unavailable": "no NVML on node 3"}, usd=3.0),
    end("c", "eval", seconds=5.0, joules={"unavailable": "no meter"}, usd={"unavailable": "no price"}),
]


def test_failed_attempts_stay_on_the_bill_and_the_total_says_what_it_lacks() -> None:
    train, evaluation, whole = totals_by_stage(attempts_in(LINES))
    assert (train.seconds.value, train.usd.value, train.tokens) == (40.0, 4.0, 200)
    assert train.num_by_status == {"failed": 1, "finished": 1}
    assert train.joules.show("{:.1f} kWh", 1 / 3.6e6) == "1.0 kWh (measured 1 of 2 attempts; the rest unknown: no NVML on node 3)"
    assert evaluation.usd.show("{:.2f} USD") == "unknown (no price)"
    assert whole.usd.show("{:.2f} USD") == "4.00 USD (measured 2 of 3 attempts; the rest unknown: no price)"
    assert (whole.seconds.value, whole.device_seconds.value) == (45.0, 90.0)


def test_the_account_shows_planned_beside_actual() -> None:
    text = account_text("run", totals_by_stage(attempts_in(LINES)))
    assert "40.0 s  | planned 90.0 s" in text
    assert "200  | planned 250" in text
    assert "| planned unknown (no price)" in text


def test_the_csv_leaves_an_unknown_field_empty_and_gives_the_reason() -> None:
    rows = list(csv.DictReader(io.StringIO(account_csv(["stage"], totals_by(attempts_in(LINES), ["stage"])))))
    assert [(row["stage"], row["kwh"], row["usd"], row["kwh_known"]) for row in rows] == [
        ("train", "1", "4", "1/2"),
        ("eval", "", "", "0/1"),
    ]
    assert rows[1]["unknown_because"] == "no meter; no price"
    assert rows[1]["usd"] == rows[1]["g_co2e"] == ""
