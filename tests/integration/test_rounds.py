"""Rounds of the tiny line as a user runs them: a bad round is tried, retried and left behind, and the next one is as if it had never been;
a hard limit ends a round in the loop, and the retry policy makes it good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from line_workspace import copy_prepared, cpt

from tests.wandb_file import attempts_in_wandb

pytestmark = pytest.mark.slow
GOOD = "train/checkpoints/step_00000010"
MORE = ("parallel.tensor=1", "blend.num_tokens=15360")  # 15 steps of 8 x 128 tokens; the promoted run had 10
BAD_RATE = ("schedule.peak_lr=30", "schedule.min_lr=30")
TRY_AGAIN = ("gate.retries=[{lower_rate: 0.9}]", "gate.max_retries=1")
LIMIT = ("gate.limits=[{of: other, max_increase: 0.3}]", "monitor.eval_every_steps=2", "monitor.grace_steps=1")
SHOWN = "monitor.wandb_mode=offline"


def of(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def copy_of_good(workspace: Path, name: str) -> Path:
    return Path(shutil.copytree(workspace / "runs" / "good", workspace / "runs" / name))


@pytest.fixture(scope="module")
def rolled_back(workspace: Path) -> tuple[Path, str]:
    """A copy of the promoted run after a round at a rate of 30 and its retry at 27, both rolled back; and what the command said."""
    run_dir = copy_of_good(workspace, "rounds")
    bad = cpt(workspace, "run", "--new-round", "run_name=rounds", *MORE, *BAD_RATE, *TRY_AGAIN)
    assert bad.returncode == 5, bad.stdout + bad.stderr
    return run_dir, bad.stdout + bad.stderr


@pytest.mark.long
def test_a_changed_configuration_is_refused_and_the_new_round_is_named(workspace: Path) -> None:
    refused = cpt(workspace, "run", "blend.num_tokens=15360")
    assert refused.returncode == 2
    assert "settings.blend.num_tokens: 10240 -> 15360" in refused.stderr
    assert "--new-round" in refused.stderr
    same = cpt(workspace, "run", "--new-round")
    assert same.returncode == 2
    assert "Nothing differs" in same.stderr
    assert not (workspace / "runs" / "good" / "rounds").exists()


def test_a_rollback_of_a_later_round_goes_back_to_the_promoted_checkpoint_and_loses_nothing(
    workspace: Path, rolled_back: tuple[Path, str]
) -> None:
    run_dir, said = rolled_back
    before = read(workspace / "runs" / "good" / "good.json")
    good = read(run_dir / "good.json")
    assert (good["checkpoint"], good["sha256"], good["verdict"]) == (GOOD, before["sha256"], "rollback")
    assert [path.name for path in (run_dir / "train" / "checkpoints").glob("*")] == ["step_00000010"]
    moved = sorted(path.name for path in (run_dir / "train" / "branches").glob("*/step_*"))
    assert moved.count("step_00000015") == 2  # one of either round
    for record in ("ledger.jsonl", "train/metrics.jsonl"):
        events = [line["event"] for line in of(run_dir / record, kind="event")]
        assert events == ["new round", "rollback", "new round", "rollback"]
    for words in ("round 1 (the first): promote", "round 2 (asked for): rollback", "round 3 (retry 1 of 1: lower_rate 0.9): rollback"):
        assert words in said
    assert "A person decides now" in said
    steps = of(run_dir / "train" / "metrics.jsonl", kind="step")
    assert [(step.get("round", 1), step["step"]) for step in steps] == [
        *((1, step) for step in range(1, 11)), *((2, step) for step in range(11, 16)), *((3, step) for step in range(11, 16)),
    ]  # fmt: skip
    assert [step["lr"] for step in steps if step.get("round") == 3] == pytest.approx([27.0] * 5)
    assert read(run_dir / "rounds" / "2" / "gate" / "verdict.json")["decision"] == "rollback"
    ended = of(run_dir / "ledger.jsonl", kind="end", stage="train")
    assert [line.get("round", 1) for line in ended] == [1, 2, 3]
    assert [line["tokens"] for line in ended] == [10240, 5120, 5120]
    assert ended[1]["planned"]["tokens"] == 5120


def test_rounds_after_a_rollback_are_refused_retried_and_audited_in_words(workspace: Path, rolled_back: tuple[Path, str]) -> None:
    audit = cpt(workspace, "audit", "run_name=rounds", *MORE, *BAD_RATE, *TRY_AGAIN)
    assert audit.returncode == 0, audit.stderr
    again = cpt(workspace, "run", "run_name=rounds", *MORE, *BAD_RATE, *TRY_AGAIN)
    assert again.returncode == 5
    assert "step 1" not in again.stdout
    over = cpt(workspace, "run", "--retry", "run_name=rounds", *MORE, *BAD_RATE, *TRY_AGAIN)
    assert over.returncode == 2
    assert "allows 1 retries, and 1 were made" in over.stderr


def test_the_round_after_a_rollback_continues_bit_for_bit_as_if_the_bad_ones_had_never_been(
    workspace: Path, rolled_back: tuple[Path, str]
) -> None:
    """Both go on from the promoted step with its moments, counters and cursors; one has two bad rounds behind it."""
    undisturbed = copy_of_good(workspace, "undisturbed")
    run_dir, _ = rolled_back
    for name in ("rounds", "undisturbed"):
        planned = cpt(workspace, "run", "--new-round", "--until", "plan", f"run_name={name}", *MORE)
        assert planned.returncode == 0, planned.stdout + planned.stderr
        assert f"from {GOOD}" in planned.stdout
        trained = cpt(workspace, "run", "--only", "train", f"run_name={name}", *MORE)
        assert trained.returncode == 0, trained.stdout + trained.stderr
    found = [
        of(run_dir / "train" / "metrics.jsonl", kind="step", round=4),
        of(undisturbed / "train" / "metrics.jsonl", kind="step", round=2),
    ]
    assert [step["step"] for step in found[0]] == [11, 12, 13, 14, 15]
    for key in ("step", "samples", "tokens", "loss", "grad_norm", "lr", "source_samples", "source_loss"):
        assert [step[key] for step in found[0]] == [step[key] for step in found[1]], key
    # 56 + 24 samples of the first ten steps (0.7 and 0.3 of 80), and 28 + 12 of the five to come
    assert found[0][-1]["source_samples"] == {"code": 84, "replay": 36}
    digests = [read(folder / "train" / "manifest.json")["facts"]["sources"] for folder in (run_dir, undisturbed)]
    assert digests[0] == digests[1]


def test_a_hard_limit_ends_training_in_the_loop_and_the_retry_is_promoted_by_the_same_command(workspace: Path) -> None:
    run_dir = copy_prepared(workspace, "limit")
    policy = ("gate.retries=[{lower_rate: 0.0002}]", "gate.max_retries=1")
    done = cpt(workspace, "run", "--until", "gate", "run_name=limit", *BAD_RATE, *LIMIT, *policy, SHOWN)
    assert done.returncode == 0, done.stdout + done.stderr
    first = run_dir / "rounds" / "1"
    assert read(first / "train" / "outcome.json")["status"] == "limit"
    verdict = read(first / "gate" / "verdict.json")
    assert verdict["decision"] == "rollback"
    assert "hard limit in the loop: other is +" in verdict["reasons"][0]
    assert not (first / "eval").exists()
    metrics = run_dir / "train" / "metrics.jsonl"
    assert [step["step"] for step in of(metrics, kind="step") if "round" not in step] == [1, 2]  # the first evaluation after the grace
    assert [line["event"] for line in of(metrics, kind="event")] == ["limit", "rollback", "new round"]
    assert len(list((run_dir / "train" / "branches").glob("*/step_00000002"))) == 1
    (ended, retried) = of(run_dir / "ledger.jsonl", kind="end", stage="train")
    assert (ended["status"], ended["exit_code"], retried["status"]) == ("rolled_back", 5, "finished")
    assert next(step["lr"] for step in of(metrics, kind="step", round=2)) == pytest.approx(6e-3)
    assert read(run_dir / "good.json")["verdict"] == "promote"
    audit = cpt(workspace, "audit", "run_name=limit", *BAD_RATE, *LIMIT, *policy, SHOWN)
    assert audit.returncode == 0, audit.stderr
    found = attempts_in_wandb(run_dir / "train")
    assert len({each.run_id for each in found}) == 1
    events = [name.rpartition("/")[2] for each in found for row in each.rows for name in row if name.startswith("train/event/")]
    assert events == ["limit", "end_limit", "rollback", "new round", "resume", "end_finished", "promote"]
    titles = [title for each in found for title, _, _ in each.alerts]
    assert titles == ["Hard limit broken", "Verdict: rolled back", "New round", "Verdict: promoted"]


def test_the_export_refuses_a_checkpoint_with_one_other_byte(workspace: Path) -> None:
    run_dir = copy_of_good(workspace, "swapped")
    shutil.rmtree(run_dir / "export")
    weights = max((run_dir / GOOD / "model").rglob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    refused = cpt(workspace, "export", "run_name=swapped")
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert f"model/{weights.name}" in refused.stderr
    assert "not the one that was promoted" in refused.stderr
    assert not (run_dir / "export").exists()
    later = cpt(workspace, "run", "--new-round", "--until", "plan", "run_name=swapped", *MORE)  # and training refuses to go on from it
    assert later.returncode == 0, later.stderr
    trained = cpt(workspace, "run", "--only", "train", "run_name=swapped", *MORE)
    assert trained.returncode == 4, trained.stdout + trained.stderr
