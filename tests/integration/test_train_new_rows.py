"""The first stage, which trains only the rows of new ids, and the embedding's own rate, on two ranks against transformers and torch."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import free_port, launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records

from megatron_cpt.plan.run_plan import CheckpointPlan, OptimizerPlan, RunPlan, SchedulePlan

pytestmark = pytest.mark.slow
BATCH, STAGE, STEPS = 8, 4, 7  # four steps of new rows, three of everything
STAGE_RATE, RATES, SCALE, DECAY = 1e-2, (2e-3, 1.1e-3, 2e-4), 0.5, 0.1
SCHEDULE = SchedulePlan("linear", 2e-3, 2e-4, BATCH, 3 * BATCH, new_rows_samples=STAGE * BATCH, new_rows_lr=STAGE_RATE)
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 20_000}
LAYOUTS = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2},
    "dp2-overlap": {"data": 2, **OVERLAP},
    "dp2-fsdp": {"data": 2, "fsdp": True},
}
TIED = {"tp2": False, "pp2": True, "dp2": True, "dp2-overlap": False, "dp2-fsdp": False}
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


def plan_of(run_dir: Path, layout: str) -> Path:
    every_steps = STAGE // 2 if layout == "dp2" else STAGE  # the others are not resumed, and a save costs more than a step
    return make_plan(
        run_dir, make_layout(**LAYOUTS[layout]), num_steps=STEPS, schedule=SCHEDULE, checkpoint=CheckpointPlan(every_steps, 10),
        optimizer=OptimizerPlan(0.9, 0.95, 1e-8, DECAY, 1.0, embedding_lr_scale=SCALE),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train all layouts in the same two processes and read what their checkpoints hold."""
    folder = tmp_path_factory.mktemp("new-rows")
    plans = [plan_of(make_run(folder, layout, tied=TIED[layout]), layout) for layout in LAYOUTS]
    return {**dict(zip(LAYOUTS, train_and_read(plans), strict=True)), "folder": folder}


def train_and_read(plans: list[Path]) -> list[dict[str, Any]]:
    ports = [free_port() for _ in range(len(plans) + 1)]
    return launch_ranks(_train_and_read, 2, [str(plan) for plan in plans], ports)[0]


def _train_and_read(plans: list[str], ports: list[int]) -> list[dict[str, Any]]:
    from megatron_cpt.backend import choose
    from megatron_cpt.model.parallel import ranks
    from megatron_cpt.train.run import run

    for plan, port in zip(plans, ports, strict=False):
        os.environ["MASTER_PORT"] = str(port)  # the ranks meet anew for each run
        assert run(Path(plan), evaluate=None) == 0
    os.environ["MASTER_PORT"] = str(ports[-1])
    with ranks(make_layout(data=2), backend=choose("cpu"), seed=0):
        return [read(plan) for plan in plans]


def read(plan_path: str) -> dict[str, Any]:
    """Return the samples of a run, and what moved in its checkpoints. Collective."""
    from megatron_cpt.train.data import build_dataset

    plan, run_dir = RunPlan.load(Path(plan_path)), Path(plan_path).parent.parent
    dataset = build_dataset(plan, run_dir, run_dir / "train", barrier=lambda: None)
    samples = [dataset[number] for number in range(plan.num_samples)]
    start = tensors(run_dir / "init" / "checkpoint")
    checkpoints = {int(folder.name.removeprefix("step_")): folder for folder in (run_dir / "train" / "checkpoints").glob("step_*")}
    by_step = {step: tensors(folder / "model") for step, folder in checkpoints.items()}
    return {
        "tokens": [[*sample["tokens"].tolist(), int(sample["labels"][-1])] for sample in samples],
        "new": (plan.vocab.num_base_ids, plan.vocab.num_ids),
        "weights": set(start),
        "moved": {step: moved_rows(start, now) for step, now in by_step.items()},
        "moments": {step: rows_with_moments(now) for step, now in by_step.items()},
        "bytes": {name: value.numpy().tobytes() for name, value in by_step[STEPS].items()},
    }


def tensors(folder: Path) -> dict[str, Any]:
    from megatron.core.dist_checkpointing import load_plain_tensors

    return {name: value for name, value in load_plain_tensors(str(folder)).items() if hasattr(value, "numpy")}


def moved_rows(start: dict[str, Any], now: dict[str, Any]) -> dict[str, list[int]]:
    """Return, for each weight that is not bit for bit the same, the rows of its first dimension that differ."""
    return {name: rows for name, value in start.items() if (rows := rows_where(value.view_as(now[name]) != now[name]))}


def rows_with_moments(now: dict[str, Any]) -> dict[str, list[int]]:
    moments = {name: value for name, value in now.items() if "exp_avg" in name}
    assert len(moments) > 10
    return {name: rows for name, value in moments.items() if (rows := rows_where(value != 0))}


def rows_where(mask: Any) -> list[int]:
    return mask.reshape(mask.shape[0], -1).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_the_stage_everything_but_the_new_rows_stands_still_to_the_bit_and_gathers_no_moments(
    layout: str, trained: dict[str, Any]
) -> None:
    seen = trained[layout]
    new = list(range(*seen["new"]))
    assert len(new) == 4
    tables = {EMBEDDING} if TIED[layout] else {EMBEDDING, OUTPUT}
    for step in (2, STAGE) if layout == "dp2" else (STAGE,):
        assert seen["moved"][step].keys() == tables
        # an input row moves once its id was read; an output row always, through the softmax
        assert all(set(rows) <= set(new) for rows in seen["moved"][step].values())
        assert seen["moved"][step][EMBEDDING if TIED[layout] else OUTPUT] == new
        assert {
            name.removeprefix("optimizer.state.exp_avg.").removeprefix("optimizer.state.exp_avg_sq.") for name in seen["moments"][step]
        } == tables
        assert all(set(rows) <= set(new) for rows in seen["moments"][step].values())
    assert seen["moved"][STEPS].keys() == seen["weights"]  # afterwards everything learns
    assert len(seen["weights"]) == (8 if TIED[layout] else 9)  # megatron stacks the layers: six weights of a layer, a norm, the tables
    assert set(range(200)) <= set(seen["moved"][STEPS][EMBEDDING if TIED[layout] else OUTPUT])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_norms_equal_transformers_with_a_fresh_adamw_for_each_stage(layout: str, trained: dict[str, Any]) -> None:
    run_dir = trained["folder"] / layout
    expected = reference(run_dir, trained[layout]["tokens"])
    records = step_records(run_dir)
    assert [record["lr"] for record in records] == pytest.approx([STAGE_RATE] * STAGE + list(RATES), rel=1e-12)
    by_hand = [STAGE_RATE] * STAGE + [SCALE * rate for rate in RATES]
    assert [record["lr_embedding"] for record in records] == pytest.approx(by_hand, rel=1e-12)
    for record, (loss, norm) in zip(records, expected, strict=True):
        print(f"{layout} step {record['step']}: loss {record['loss'] / loss - 1:+.2e}, gradient norm {record['grad_norm'] / norm - 1:+.2e}")
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-4)


def reference(run_dir: Path, samples: list[list[int]]) -> list[tuple[float, float]]:
    import torch
    from torch.nn import functional
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(run_dir.parent / f"{run_dir.name}-base", dtype=torch.float32)
    pieces = [json.loads(line)["base_ids"] for line in (run_dir / "vocab" / "new_pieces.jsonl").read_text().splitlines()]
    old = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    num_base = len(old[0])
    model.resize_token_embeddings(num_base + len(pieces), mean_resizing=False)
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    for table, rows in zip(tables.values(), old, strict=False):
        table.data[num_base:] = torch.stack([rows[ids].mean(dim=0) for ids in pieces])

    def adam(parameters: Any) -> torch.optim.AdamW:
        groups = [{"params": [parameter], "weight_decay": decay, "scale": scale} for parameter, decay, scale in parameters]
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)

    first = adam((table, 0.0, 1.0) for table in tables.values())
    second = adam((p, DECAY if p.dim() > 1 else 0.0, SCALE if id(p) in tables else 1.0) for p in model.parameters())
    results = []
    for step in range(STEPS):
        batch = torch.tensor(samples[step * BATCH : (step + 1) * BATCH])
        loss = functional.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer, rate = (first, STAGE_RATE) if step < STAGE else (second, RATES[step - STAGE])
        trained = list(tables.values()) if step < STAGE else list(model.parameters())
        if step < STAGE:
            for table in trained:
                table.grad[:num_base] = 0.0
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.zero_grad()
        results.append((loss.item(), float(norm)))
    return results


def test_a_run_that_stopped_in_the_stage_or_at_its_end_goes_on_bit_for_bit(trained: dict[str, Any], tmp_path: Path) -> None:
    whole = trained["folder"] / "dp2"
    plans = []
    for stopped_at in (STAGE // 2, STAGE):
        run_dir = tmp_path / f"stopped-{stopped_at}"
        shutil.copytree(whole, run_dir)
        shutil.copytree(whole.parent / "dp2-base", tmp_path / f"{run_dir.name}-base")
        for checkpoint in (run_dir / "train" / "checkpoints").glob("step_*"):
            if int(checkpoint.name.removeprefix("step_")) > stopped_at:
                shutil.rmtree(checkpoint)
        plans.append(run_dir / "plan" / "plan.yaml")
    for resumed, plan in zip(train_and_read(plans), plans, strict=True):
        run_dir = plan.parent.parent
        lines = map(json.loads, (run_dir / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        resumed_after = [record["step"] for record in lines if record["kind"] == "resume" and record["lost_steps"]]
        assert resumed_after == [int(run_dir.name.removeprefix("stopped-"))]
        for key in ("step", "loss", "grad_norm", "lr"):
            assert [record[key] for record in step_records(run_dir)] == [record[key] for record in step_records(whole)], key
        assert resumed["bytes"].keys() == trained["dp2"]["bytes"].keys()
        assert [name for name, value in resumed["bytes"].items() if value != trained["dp2"]["bytes"][name]] == []
