"""The whole line as a user runs it: promote, no-op, refusal of changed inputs, a rollback that happens, and going on after kill -9."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from line_workspace import ROOT, command, copy_prepared, cpt

from megatron_cpt.meter.attempts import attempts_of
from megatron_cpt.meter.totals import totals_by_stage
from megatron_cpt.record.manifest import Manifest


def test_a_sound_run_is_promoted_and_its_records_hold(workspace: Path) -> None:
    run_dir = workspace / "runs" / "good"
    assert json.loads((run_dir / "gate" / "verdict.json").read_text())["decision"] == "promote"
    assert json.loads((run_dir / "good.json").read_text())["checkpoint"].startswith("train/checkpoints/step_")
    audit = cpt(workspace, "audit")
    assert audit.returncode == 0, audit.stderr
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "end" and line["stage"] == "train"]
    assert len(trained) == 1
    assert trained[0]["tokens"] == 10 * 8 * 128  # steps x sequences x tokens of the experiment
    assert trained[0]["usd"]["unavailable"]  # no price was set: unknown, never zero


def test_a_benchmark_goes_through_the_line_and_what_was_trained_on_is_named(workspace: Path) -> None:
    run_dir = workspace / "runs" / "good"
    baseline, candidate = (json.loads((run_dir / stage / "eval.json").read_text()) for stage in ("baseline", "eval"))
    base, trained = baseline["subjects"]["base"]["tasks"]["quiz"], candidate["subjects"]["train"]["tasks"]["quiz"]
    assert [item["id"] for item in base["items"]] == [item["id"] for item in trained["items"]] == [f"q{number}" for number in range(7)]
    assert set(base["metrics"]) == {"accuracy", "accuracy_per_byte", "gap"}
    assert base["file_sha256"] == trained["file_sha256"]
    seen = {item["id"] for item in baseline["contaminated"]["quiz"]}
    assert len(seen) >= 2
    assert seen <= {"q4", "q5", "q6"}
    before = json.loads((run_dir / "corpus" / "contamination.json").read_text())
    assert seen <= {item["id"] for item in before["items"]} <= {"q4", "q5", "q6"}  # found in documents before, in the index after
    assert "quiz accuracy" in (run_dir / "report" / "summary.txt").read_text()


def test_the_export_loads_from_its_folder_alone(workspace: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    alone = tmp_path / "elsewhere"
    shutil.copytree(workspace / "runs" / "good" / "export" / "hf", alone)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(alone), AutoTokenizer.from_pretrained(alone)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 512 + 32
    assert tokenizer.decode(tokenizer("def main():\n    return 0")["input_ids"]) == "def main():\n    return 0"


def test_the_export_has_a_card_completions_and_a_second_folder_with_chat_added(workspace: Path) -> None:
    from huggingface_hub import ModelCard  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    export = workspace / "runs" / "good" / "export"
    facts = json.loads((export / "manifest.json").read_text())["facts"]
    assert len(facts["completions"]) == 2  # a prompt of each held-out text
    report = (workspace / "runs" / "good" / "report" / "report.html").read_text()
    assert "<h2>Completions</h2>" in report
    for folder in ("hf", "hf-chat"):
        card = ModelCard.load(export / folder / "README.md")
        assert card.data.license == "apache-2.0"
        assert str(workspace) not in card.content
        assert "PSF-2.0 10,240" in card.text
        assert "unknown: no price is known" in card.text
    weights = {name: load_file(folder / "model.safetensors") for name, folder in {
        "plain": export / "hf", "chat": export / "hf-chat", "base": workspace / "base", "instruct": workspace / "base-instruct",
    }.items()}  # fmt: skip
    for name, chat in weights["chat"].items():
        rows = slice(0, 512) if name == "model.embed_tokens.weight" else slice(None)
        wanted = weights["plain"][name].clone()
        wanted[rows] += weights["instruct"][name] - weights["base"][name]
        torch.testing.assert_close(chat, wanted)


def test_a_second_run_passes_over_every_stage(workspace: Path) -> None:
    again = cpt(workspace, "run")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before with equal inputs") == 11


def test_changed_inputs_are_refused_and_the_field_is_named(workspace: Path) -> None:
    changed = cpt(workspace, "run", "schedule.peak_lr=1e-4")
    assert changed.returncode == 2
    assert "settings.schedule.peak_lr: 0.005 -> 0.0001" in changed.stderr
    assert "Traceback" not in changed.stderr


@pytest.mark.slow
def test_a_run_with_a_huge_rate_is_really_rolled_back(workspace: Path) -> None:
    run_dir = copy_prepared(workspace, "bad")
    bad = cpt(workspace, "run", "run_name=bad", "schedule.peak_lr=30", "schedule.min_lr=30")
    assert bad.returncode == 5, bad.stdout + bad.stderr
    assert "rolled back" in bad.stderr
    assert json.loads((run_dir / "good.json").read_text())["checkpoint"] == "init/checkpoint"
    assert not list((run_dir / "train" / "checkpoints").glob("step_*"))
    branches = list((run_dir / "train" / "branches").iterdir())
    assert len(branches) == 1
    assert list(branches[0].glob("step_*"))
    for record in ("ledger.jsonl", "train/metrics.jsonl"):
        events = [line for line in map(json.loads, (run_dir / record).read_text().splitlines()) if line.get("event") == "rollback"]
        assert len(events) == 1
    assert (run_dir / "report" / "report.html").exists()
    assert not (run_dir / "export").exists()
    export = cpt(workspace, "export", "run_name=bad", "schedule.peak_lr=30", "schedule.min_lr=30")
    assert export.returncode == 3
    again = cpt(workspace, "run", "run_name=bad", "schedule.peak_lr=30", "schedule.min_lr=30")
    assert again.returncode == 5
    audit = cpt(workspace, "audit", "run_name=bad", "schedule.peak_lr=30", "schedule.min_lr=30")
    assert audit.returncode == 0, audit.stderr
    (run_dir / "good.json").unlink()
    audit = cpt(workspace, "audit", "run_name=bad", "schedule.peak_lr=30", "schedule.min_lr=30")
    assert audit.returncode == 3
    assert "good.json" in audit.stderr
    verdict = run_dir / "gate" / "verdict.json"
    verdict.write_text(verdict.read_text().replace('"decision": "rollback"', '"decision": "promote"'))
    audit = cpt(workspace, "audit", "run_name=bad", "schedule.peak_lr=30", "schedule.min_lr=30")
    assert audit.returncode == 3  # what `make pretrain-eval` ends with
    assert "says promote; the scores and the plan's rules give rollback" in audit.stderr


@pytest.mark.long  # every stage has its own kills in the suite
def test_killed_at_random_moments_it_goes_on_to_the_same_weights(workspace: Path) -> None:
    """`kill -9` of the command at seven random moments; the finished run scores and weighs what the undisturbed one does."""
    run_dir = workspace / "runs" / "killed"
    chance = random.Random(20261125)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), WANDB_MODE="offline")
    for _ in range(7):
        process = subprocess.Popen(
            command(workspace, "run", "run_name=killed"),
            cwd=workspace,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=chance.uniform(2, 40))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(1)  # for the kernel to end the children
    finished = cpt(workspace, "run", "run_name=killed", timeout_s=600)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    scores = [
        json.loads((folder / "eval" / "eval.json").read_text())["subjects"]["train"]["texts"]
        for folder in (run_dir, workspace / "runs" / "good")
    ]
    assert scores[0] == scores[1]
    steps = [json.loads(line) for line in (run_dir / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "step"] == list(range(1, 11))
    assert not list(run_dir.glob(".*.partial"))
    train = next(total for total in totals_by_stage(attempts_of(run_dir)) if total.stage == "train")
    print(f"train: {train.num_by_status}, {train.tokens} tokens read, {train.lost_tokens} of them lost")
    assert train.tokens - train.lost_tokens == 10 * 8 * 128  # whatever was killed when, the weights have seen the plan's tokens once


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["source.code.path=nowhere.jsonl"], 3, ["nowhere.jsonl"]),
        (["source.code.licence=''"], 2, ["licence", "code"]),
        (["model.path=text"], 4, ["config.json"]),
        (["source.other.role=genral"], 2, ["genral"]),
        (["tokenizer.row_init=zeros"], 2, ["zeros", "mean_norm"]),
        (["tokenizer.row_init_output=noise"], 2, ["same rows", "tie_word_embeddings"]),
    ],
)
def test_bad_input_is_one_clear_message_and_leaves_nothing(workspace: Path, overrides: list[str], code: int, words: list[str]) -> None:
    failed = cpt(workspace, "run", "run_name=refused", *overrides)
    assert failed.returncode == code, failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr
    for word in words:
        assert word in failed.stderr
    left = {path.name for path in (workspace / "runs" / "refused").iterdir()} - {".lock", "ledger.jsonl"}
    assert left <= {"corpus"}


@pytest.mark.slow
def test_a_probe_takes_the_rule_that_is_best_after_its_steps_and_records_all(workspace: Path) -> None:
    settings = "tokenizer.row_probe={rules: [mean, gaussian, fitted], steps: 4, sequence_length: 64, held_out_tokens: 1000}"

    def run_init(name: str, rule: str) -> dict[str, Any]:
        run_dir = copy_prepared(workspace, name)
        shutil.rmtree(run_dir / "init")
        done = cpt(workspace, "run", "--only", "init", f"run_name={name}", f"tokenizer.row_init={rule}", settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return Manifest.load(run_dir / "init").facts

    facts = run_init("probed", "probe")
    assert run_init("named", facts["row_init"])["row_init"] == facts["row_init"]
    probe = facts["row_probe"]
    tried = {name: found["bits_per_byte"]["domain"] for name, found in probe["rules"].items()}
    print(tried)
    assert list(tried) == ["mean", "gaussian", "fitted"]
    assert facts["row_init"] == probe["chosen"] == min(tried, key=tried.__getitem__)
    assert len(set(tried.values())) == 3
    for found in probe["rules"].values():
        assert len(found["losses"]) == 4
        assert found["bits_per_byte"]["domain"] < found["bits_per_byte_at_start"]["domain"]
    assert probe["settings"]["learning_rate"] == 5.0e-3
    # The rows are those of a run that names the rule: the probe's steps leave no trace in them.
    weights = [sorted((workspace / "runs" / name / "init" / "checkpoint").glob("*.distcp")) for name in ("probed", "named")]
    assert [path.name for path in weights[0]] == [path.name for path in weights[1]] != []
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*weights, strict=True))


def test_every_degree_that_does_not_divide_is_listed(workspace: Path) -> None:
    copy_prepared(workspace, "undivided")
    failed = cpt(workspace, "run", "run_name=undivided", "parallel.tensor=3", "schedule.min_lr=1")
    assert failed.returncode == 2
    assert "tensor" in failed.stderr
    assert "min_lr" in failed.stderr
    assert not (workspace / "runs" / "undivided" / "plan").exists()
    assert not list((workspace / "runs" / "undivided").glob(".*.partial"))
