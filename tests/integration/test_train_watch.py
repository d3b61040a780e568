"""What a run says of itself while it trains, and what it does with an update that no weight may take."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from test_eval_bits_per_byte import bits_per_byte_by_transformers
from tiny_run import TEXTS, make_layout, make_plan, make_run, step_records, torchrun, train_on_ranks, write_index
from tokenizers import Tokenizer

from megatron_cpt.plan.run_plan import (
    BlendEntry,
    BlendStage,
    CheckpointPlan,
    EvalPlan,
    GatePlan,
    GateRule,
    RunPlan,
    SchedulePlan,
    StopConditions,
    Tariff,
)
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.train.checkpoint_files import check_contents, read_record
from tests.wandb_file import attempts_in_wandb

STEPS = 4000  # more than the budget pays for
UNKNOWN = Unavailable("a test")
STAGES = (BlendStage(0, (6, 2)), BlendStage(1, (2, 6)), BlendStage(2, (8 * (STEPS - 2), 0)))
PEAK_TFLOPS, FLOPS_PER_TOKEN = 0.05, 1.2e6


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def outcome(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "train" / "outcome.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two data-parallel ranks with staged shares, evaluation and wandb, that its money ended."""
    run_dir = make_run(tmp_path_factory.mktemp("watched"))
    texts = {}
    for text in TEXTS:
        lines = map(json.loads, (run_dir / text.path).read_text(encoding="utf-8").splitlines())
        documents = [{"id": line["id"], "bytes": len(line["text"].encode()), "nats": 3.0 * len(line["text"].encode())} for line in lines]
        texts[text.name] = {"role": text.role, "documents": documents}
    (run_dir / "baseline").mkdir()
    (run_dir / "baseline" / "eval.json").write_text(json.dumps({"subjects": {"base": {"texts": texts}}}), encoding="utf-8")
    make_plan(run_dir, make_layout(data=2), num_steps=STEPS)
    plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
    dataclasses.replace(
        plan,
        blend=(
            BlendEntry("law", "domain", "CC0-1.0", "index/law", 0.9, 1500, 8 + STAGES[2].samples[0], 1.0),
            BlendEntry("talk", "general", "CC-BY-4.0", "index/talk", 0.1, 1500, 8, 1.0),
        ),
        blend_stages=STAGES,
        tariff=Tariff("t", 3600.0, "a test", UNKNOWN, "", UNKNOWN, "", UNKNOWN, ""),
        stop=StopConditions(None, 8.0, None),  # two devices spend 2 USD a second: some steps even on a busy machine
        estimate=dataclasses.replace(plan.estimate, flops_per_token=FLOPS_PER_TOKEN, dense_tflops=PEAK_TFLOPS),
        gate=GatePlan((GateRule("talk", "may_not_worsen", 0.01),), 0.9, 200, 3),
        eval_every_steps=2,
        grace_steps=2,
        wandb_mode="offline",
    ).save(run_dir / "plan")
    process = torchrun("megatron_cpt.train", f"plan={run_dir / 'plan' / 'plan.yaml'}", num_ranks=2, WANDB_API_KEY="")
    (run_dir / "said.txt").write_text(process.said, encoding="utf-8")  # type: ignore[attr-defined]
    return run_dir


@pytest.mark.slow
def test_a_money_budget_saves_evaluates_and_says_6(watched: Path) -> None:
    end, said = outcome(watched), (watched / "said.txt").read_text(encoding="utf-8")
    assert (end["status"], end["exit_code"], end["reason"]) == ("budget", 6, "the plan's stop.max_usd was reached"), said
    assert 2 < end["step"] < STEPS
    assert end["checkpoint"] == f"train/checkpoints/step_{end['step']:08d}"
    assert records(watched, "eval")[-1]["step"] == end["step"]
    used = [record["elapsed_seconds"] for record in step_records(watched)]
    assert used[-2] < 4.0  # 8 USD at 2 USD a second, looked at after each step


@pytest.mark.slow
def test_shares_change_at_their_step_and_every_sample_is_counted(watched: Path) -> None:
    steps = step_records(watched)
    assert [record["source_samples"] for record in steps[:3]] == [{"law": 6, "talk": 2}, {"law": 8, "talk": 8}, {"law": 16, "talk": 8}]
    for record in steps:
        assert sum(record["source_samples"].values()) == record["samples"] == 8 * record["step"]
        assert record["source_tokens"] == {name: 32 * count for name, count in record["source_samples"].items()}
        assert record["licence_tokens"] == {"CC0-1.0": record["source_tokens"]["law"], "CC-BY-4.0": record["source_tokens"]["talk"]}
        assert record["tokens"] == 256 * record["step"]
    assert steps[-1]["source_samples"]["talk"] == 8  # no more of it in the last stage
    assert outcome(watched)["source_tokens"] == steps[-1]["source_tokens"]


@pytest.mark.slow
def test_the_losses_of_the_sources_add_up_to_the_loss(watched: Path) -> None:
    steps = step_records(watched)
    before = {"law": 0, "talk": 0}
    for record in steps:
        new = {name: record["source_tokens"][name] - before[name] for name in before}
        before = record["source_tokens"]
        assert {name for name, loss in record["source_loss"].items() if loss is None} == {name for name, count in new.items() if not count}
        total = sum(record["source_loss"][name] * count for name, count in new.items() if count)
        assert total / sum(new.values()) == pytest.approx(record["loss"], rel=1e-6)
    assert steps[0]["source_loss"]["law"] != steps[0]["source_loss"]["talk"]


@pytest.mark.slow
def test_utilization_names_its_convention_and_unknown_energy_its_reason(watched: Path) -> None:
    (attempt,) = records(watched, "attempt")
    assert attempt["mfu_convention"] == "none"  # the plan's own words
    assert (attempt["mfu_peak_tflops_per_device"], attempt["num_devices"]) == (PEAK_TFLOPS, 2)
    for record in step_records(watched):
        assert record["mfu"] == pytest.approx(FLOPS_PER_TOKEN * 256 / (record["seconds"] * 2 * PEAK_TFLOPS * 1e12))
        assert 50e6 < record["resident_bytes"] < 5e9
        if "unknown" in attempt["energy_scope"]:
            assert record["joules"] is None
        else:
            assert record["joules"] >= 0


@pytest.mark.slow
def test_forgetting_is_the_difference_to_the_frozen_base_with_its_interval(watched: Path) -> None:
    evaluations, found = records(watched, "eval"), records(watched, "forgetting")
    assert [record["step"] for record in found] == [record["step"] for record in evaluations]
    base = 3.0 / math.log(2)  # the baseline has 3 nats a byte in every document
    for evaluation, record in zip(evaluations, found, strict=True):
        assert record["confidence"] == 0.9
        assert record["in_grace"] is (record["step"] <= 2)
        for name, text in record["texts"].items():
            assert text["base"] == pytest.approx(base)
            assert text["now"] == pytest.approx(evaluation["bits_per_byte"][name])
            assert text["difference"] == pytest.approx(evaluation["bits_per_byte"][name] - base)
            assert text["low"] < text["difference"] < text["high"]
            assert text["num_documents"] == 7


@pytest.mark.slow
def test_validation_loss_is_in_nats_a_token_of_the_extended_vocabulary(watched: Path) -> None:
    wanted = RunPlan.load(watched / "plan" / "plan.yaml").vocab.tokenizer_sha256
    (path,) = {path for path in (watched / "vocab").rglob("tokenizer.json") if sha256_file(path) == wanted}
    tokenizer = Tokenizer.from_file(str(path))
    for name in ("law", "talk"):
        texts = [json.loads(line)["text"] for line in (watched / "corpus" / f"{name}.test.jsonl").read_text(encoding="utf-8").splitlines()]
        num_bytes = sum(len(text.encode()) for text in texts)
        num_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        for evaluation in records(watched, "eval"):
            nats = evaluation["bits_per_byte"][name] * math.log(2) * num_bytes
            assert evaluation["loss"][name] == pytest.approx(nats / num_tokens)


@pytest.mark.slow
def test_wandb_holds_the_figures_of_every_record_and_the_end(watched: Path) -> None:
    assert "wandb could not" not in (watched / "said.txt").read_text(encoding="utf-8")
    (shown,) = attempts_in_wandb(watched / "train")
    steps, evaluations, found = step_records(watched), records(watched, "eval"), records(watched, "forgetting")
    assert shown.run_id == (watched / "train" / "wandb-run-id").read_text(encoding="utf-8")
    assert shown.column("train/loss") == [record["loss"] for record in steps]
    assert [row["train/tokens"] for row in shown.rows if "train/loss" in row] == [record["tokens"] for record in steps]
    assert shown.column("train/source/talk/tokens") == [record["source_tokens"]["talk"] for record in steps]
    for group, name in (("domain", "law"), ("general", "talk")):
        assert shown.column(f"eval/{group}/{name}/bits_per_byte") == [record["bits_per_byte"][name] for record in evaluations]
        for key in ("difference", "low", "high"):
            assert shown.column(f"eval/{group}/{name}/{key}") == [record["texts"][name][key] for record in found]
    at_evaluation = [row["train/tokens"] for row in shown.rows if "eval/domain/law/bits_per_byte" in row]
    assert at_evaluation == [256 * record["step"] for record in evaluations]
    assert shown.column("cost/limit_used") == pytest.approx([record["elapsed_seconds"] / 4.0 for record in steps])
    usd = shown.column("cost/usd")
    assert usd == sorted(usd)
    assert usd[-1] >= 2 * (steps[-1]["elapsed_seconds"] - steps[0]["elapsed_seconds"])  # two devices at one USD a second
    assert len(shown.column("energy/joules")) == sum(record["joules"] is not None for record in steps)
    assert shown.alerts == [("Budget reached", "WARN", "the plan's stop.max_usd was reached")]
    assert shown.exit_code == 0


@pytest.mark.slow
def test_a_source_that_joins_later_is_refused_at_resume(watched: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(watched, run_dir)
    for suffix in (".bin", ".idx"):
        shutil.copy(run_dir / "index" / f"talk{suffix}", run_dir / "index" / f"more{suffix}")
    plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
    more = BlendEntry("more", "general", "CC0-1.0", "index/more", 0.2, 1500, 10, 1.0)
    shares = [dataclasses.replace(entry, share=0.4) for entry in plan.blend]
    changed = dataclasses.replace(
        plan, blend=(*shares, more), blend_stages=(), stop=StopConditions(None, None, None), wandb_mode="disabled"
    )
    assert set(train_on_ranks(changed.save(run_dir / "plan"), 2)) == {4}
    end = outcome(run_dir)
    assert "written under another plan (model, data, schedule or batch differ)" in end["reason"]
    assert end["step"] is None


def test_a_bad_update_on_one_rank_is_left_out_by_all_and_counted(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    stop = StopConditions(None, None, None, max_skipped_steps=1)
    # without the distributed optimizer each rank has a norm of its own: they have to agree
    layout = make_layout(data=2, distributed_optimizer=False)
    plan_path = make_plan(run_dir, layout, num_steps=7, stop=stop, checkpoint=CheckpointPlan(5, 2))
    results = launch_ranks(_train_with_a_nan, 2, str(plan_path), (5,))
    assert [code for code, _ in results] == [0, 0]
    (_, before), (_, others) = results
    assert before == others  # both ranks hold the same weights, bit for bit, before every step
    assert [before[step] == before[step - 1] for step in range(1, 7)] == [False, False, False, False, True, False]  # step 5 moved none
    steps = step_records(run_dir)
    assert [record["is_skipped"] for record in steps] == [False] * 4 + [True] + [False] * 2
    assert [record["skipped_steps"] for record in steps] == [0, 0, 0, 0, 1, 1, 1]
    assert steps[4]["grad_norm"] is None or math.isfinite(steps[4]["grad_norm"])
    assert all(math.isfinite(record["loss"]) for record in steps)
    saved = json.loads((run_dir / "train" / "checkpoints" / "step_00000005" / "checkpoint.json").read_text(encoding="utf-8"))
    assert (saved["skipped_steps"], len(saved["recent_grad_norms"])) == (1, 4)


def test_one_bad_update_too_many_ends_all_ranks_at_the_last_good_checkpoint(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    stop = StopConditions(None, None, None, max_skipped_steps=1)
    plan_path = make_plan(run_dir, make_layout(data=2), num_steps=7, stop=stop, checkpoint=CheckpointPlan(2, 2), wandb_mode="offline")
    assert [code for code, _ in launch_ranks(_train_with_a_nan, 2, str(plan_path), (3, 5))] == [1, 1]
    end = outcome(run_dir)
    assert (end["status"], end["step"], end["checkpoint"]) == ("failed", 4, "train/checkpoints/step_00000004")
    assert "stop.max_skipped_steps=1 are left out already" in end["reason"]
    assert sorted(path.name for path in (run_dir / "train" / "checkpoints").glob("step_*")) == ["step_00000002", "step_00000004"]
    (shown,) = attempts_in_wandb(run_dir / "train")
    assert [(title, level) for title, level, _ in shown.alerts] == [("Not a finite number", "WARN"), ("Training diverged", "ERROR")]
    assert (shown.exit_code, shown.column("train/event/end_diverged")) == (1, [1])


def _train_with_a_nan(plan_path: str, bad_steps: tuple[int, ...]) -> tuple[int, list[float]]:
    """Train with a gradient of the second rank spoilt at some steps; return the code and the sum of the weights before each step."""
    from megatron_cpt.backend import choose

    choose("cpu")
    from megatron_cpt.train import step
    from megatron_cpt.train.run import run

    whole = step.forward_backward
    sums = []

    def spoilt(chunks: list[Any], optimizer: Any, batch: Any, plan: RunPlan) -> Any:
        sums.append(sum(float(parameter.double().sum()) for parameter in chunks[0].parameters()))
        nats = whole(chunks, optimizer, batch, plan)
        if batch.first_sample // plan.layout.global_batch_size + 1 in bad_steps and os.environ["RANK"] == "1":
            for parameter in chunks[0].parameters():
                parameter.main_grad.view(-1)[0] = math.nan  # of every tensor: a rank's optimizer may hold a part of them only
        return nats

    step.forward_backward = spoilt
    return run(Path(plan_path), evaluate=None), sums


SPIKES = (13, 14, 19, 20)  # steps that read nothing but poison; three of them may be left out


def test_a_spike_of_poisoned_text_is_left_out_by_all_ranks_until_the_limit_is_used_up(tmp_path: Path) -> None:
    """A source of one byte over and over, as of a damaged disk, comes in by a stage of the blend, twice; its gradients are what spikes."""
    run_dir = make_run(tmp_path)
    stages = (BlendStage(0, (96, 0)), BlendStage(12, (0, 16)), BlendStage(14, (32, 0)), BlendStage(18, (0, 16)), BlendStage(20, (32, 0)))
    blend = (
        BlendEntry("law", "domain", "CC0", "index/law", 160 / 192, 1500, 160, 1.0),
        BlendEntry("poison", "general", "CC0", "index/poison", 32 / 192, 1500, 32, 1.0),
    )
    stop = StopConditions(None, None, None, max_skipped_steps=3, spike_factor=3.0)
    plan_path = make_plan(
        run_dir, make_layout(data=2), num_steps=24, stop=stop, checkpoint=CheckpointPlan(2, 20), blend=blend, blend_stages=stages,
        schedule=SchedulePlan("constant", 2e-3, 2e-3, 16, 192),
    )  # fmt: skip
    results = launch_ranks(_train_on_poison, 2, str(plan_path))
    steps = step_records(run_dir)
    for record in steps:
        print(f"step {record['step']}: loss {record['loss']:.3f}, gradient norm {record['grad_norm']:.3f}, {record['is_skipped']}")
    assert [code for code, _ in results] == [1, 1]
    (_, before), (_, others) = results
    assert before == others  # both ranks hold the same weights, bit for bit, before every step
    assert [record["step"] for record in steps if record["is_skipped"]] == list(SPIKES[:3])
    assert [record["skipped_steps"] for record in steps[11:19]] == [0, 1, 2, 2, 2, 2, 2, 3]
    moved = [number for number, (this, after) in enumerate(itertools.pairwise(before), 1) if this != after]
    assert moved == [number for number in range(1, 20) if number not in SPIKES]  # no weight took a poisoned update
    assert steps[18]["source_samples"] == {"law": 128, "poison": 24}  # but its text counts as read
    end = outcome(run_dir)
    assert (end["status"], end["exit_code"], end["step"]) == ("failed", 1, 19)
    assert "stop.max_skipped_steps=3 are left out already" in end["reason"]
    assert end["checkpoint"] == "train/checkpoints/step_00000018"
    folder = run_dir / "train" / "checkpoints"
    check_contents(folder / "step_00000018", read_record(folder / "step_00000018"))
    clean = [record["loss"] for record in steps if record["step"] in (12, 15)]
    assert abs(clean[1] / clean[0] - 1) < 0.1  # what was learned is still there


def _train_on_poison(plan_path: str) -> tuple[int, list[float]]:
    """Write the poisoned source, train, and return the code and the sum of the weights before each step."""
    from megatron_cpt.backend import choose

    choose("cpu")
    from megatron_cpt.train import step
    from megatron_cpt.train.run import run

    if os.environ["RANK"] == "0":  # the other rank reads it behind a barrier
        plan = RunPlan.load(Path(plan_path))
        write_index(Path(plan_path).parent.parent / "index" / "poison", [[0] * 200] * 8, end=plan.vocab.end_of_document_id)
    whole = step.forward_backward
    sums = []

    def noting(chunks: list[Any], *arguments: Any) -> Any:
        sums.append(sum(float(parameter.double().sum()) for parameter in chunks[0].parameters()))
        return whole(chunks, *arguments)

    step.forward_backward = noting
    return run(Path(plan_path), evaluate=None), sums


@pytest.mark.slow
def test_a_text_of_fewer_documents_than_ranks_is_scored_whole(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    law = run_dir / "corpus" / "law.test.jsonl"
    law.write_text(law.read_text(encoding="utf-8").splitlines(keepends=True)[0], encoding="utf-8")  # one document for two ranks
    talk = run_dir / "corpus" / "talk.test.jsonl"
    talk.write_text("".join(talk.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    plan_path = make_plan(run_dir, make_layout(data=2), eval=EvalPlan(TEXTS, 48, 4))  # a micro-batch larger than the whole text
    launch_ranks(_score_base, 2, str(plan_path), str(tmp_path / "eval.json"))
    report = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    for path, count in ((law, 1), (talk, 3)):
        score = report["subjects"]["base"]["texts"][path.name.split(".")[0]]
        expected, num_bytes, num_tokens = bits_per_byte_by_transformers(run_dir.parent / "run-base", path)
        assert (len(score["documents"]), score["bytes"], score["tokens"]) == (count, num_bytes, num_tokens)
        assert score["bits_per_byte"] == pytest.approx(expected, abs=1e-5)  # as in test_eval_bits_per_byte


def _score_base(plan_path: str, out: str) -> None:
    from megatron_cpt.eval.run import run

    run(Path(plan_path), subjects=("base",), checkpoint=None, out=Path(out))
