"""The drill on the finished run of the tiny line: every promise is seen to hold, and one that does not hold is seen too."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from line_workspace import copy_prepared, cpt

from megatron_cpt.meter.attempts import attempts_of
from megatron_cpt.meter.totals import totals_by_stage


@pytest.mark.long  # three minutes and more each, and as long for the run before them
def test_a_drill_shows_that_a_bad_continuation_is_caught_and_undone_and_leaves_the_run_alone(workspace: Path) -> None:
    run_dir = workspace / "runs" / "good"
    ledger, files = (run_dir / "ledger.jsonl").read_bytes(), digests(run_dir)
    good = json.loads((run_dir / "good.json").read_text())
    drill = cpt(workspace, "drill", "drill.blend_steps=48")  # a random base of two layers has little to unlearn
    print(drill.stdout)
    assert drill.returncode == 0, drill.stdout + drill.stderr
    assert "Every promise held in 2 drills." in drill.stdout
    assert digests(run_dir) == files
    assert (run_dir / "ledger.jsonl").read_bytes().startswith(ledger)
    spent = next(total for total in totals_by_stage(attempts_of(run_dir)) if total.stage == "drill")
    assert (spent.num_by_status, spent.tokens) == ({"finished": 2}, (8 + 48) * 8 * 128)  # steps x sequences x tokens
    for name, last in (("rate-1", "step_00000018"), ("blend-1", "step_00000058")):  # after 10 sound steps 8 and 48 bad ones
        folder = run_dir / "drill" / name
        record = json.loads((folder / "drill.json").read_text())
        assert record["held"]
        assert (record["good_checkpoint"], record["good_sha256"]) == (good["checkpoint"], good["sha256"])
        assert len(record["promises"]) == 10
        now = json.loads((folder / "good.json").read_text())
        assert (now["checkpoint"], now["sha256"], now["verdict"]) == (good["checkpoint"], good["sha256"], "rollback")
        assert [path.name for path in (folder / "train" / "branches").glob("*/step_*")] == [last]
        assert not (folder / "train" / "checkpoints" / last).exists()
        assert f"step 10, {10 * 8} samples seen" in (folder / "drill.md").read_text()
        events = [line for line in map(json.loads, (folder / "train" / "metrics.jsonl").read_text().splitlines()) if line.get("event")]
        assert [event["event"] for event in events] == ["rollback"]
    assert cpt(workspace, "audit").returncode == 0


@pytest.mark.long  # three minutes and more each, and as long for the run before them
def test_a_drill_fails_and_names_the_promise_when_the_rules_are_so_lax_that_the_bad_run_passes(workspace: Path) -> None:
    run_dir = workspace / "runs" / "lax"
    shutil.copytree(workspace / "runs" / "good", run_dir, ignore=shutil.ignore_patterns("drill", ".lock"))
    plan = yaml.safe_load((run_dir / "plan" / "plan.yaml").read_text())
    plan["gate"]["rules"] = [{**rule, "kind": "may_not_worsen", "margin": 100.0} for rule in plan["gate"]["rules"]]
    (run_dir / "plan" / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    before = digests(run_dir)
    drill = cpt(workspace, "drill", "--only", "rate", "run_name=lax")
    assert drill.returncode == 3, drill.stdout + drill.stderr
    assert "rate-1: the gate catches it and says rollback: verdict promote" in drill.stderr
    assert "drill.rate_steps" in drill.stderr
    record = json.loads((run_dir / "drill" / "rate-1" / "drill.json").read_text())
    assert not record["held"]
    assert [promise["held"] for promise in record["promises"]] == [True, False, *[None] * 7, True]
    assert digests(run_dir) == before


def test_a_drill_without_a_judged_run_says_what_to_run_first(workspace: Path) -> None:
    copy_prepared(workspace, "unjudged")
    drill = cpt(workspace, "drill", "run_name=unjudged")
    assert drill.returncode == 3
    assert "A drill needs a run whose candidate was judged." in drill.stderr
    assert not (workspace / "runs" / "unjudged" / "drill").exists()


def digests(run_dir: Path) -> dict[str, str]:
    """Return the digest of every file of a run but its drills, its lock and its bill."""
    apart = {run_dir / "ledger.jsonl", run_dir / ".lock", run_dir / "train" / ".lock"}
    files = [path for path in run_dir.rglob("*") if path.is_file() and path not in apart and run_dir / "drill" not in path.parents]
    return {path.relative_to(run_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
