"""Megatron's training step against transformers' Llama and torch's AdamW, on the same tokens."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records, train_on_ranks

STEPS, BATCH, PEAK, FLOOR, WARMUP_STEPS = 20, 8, 2e-3, 2e-4, 2


def test_losses_and_gradient_norms_equal_transformers_with_adamw(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = make_plan(run_dir, make_layout(), num_steps=STEPS)
    assert train_on_ranks(plan_path, 1) == [0]
    (tokens,) = launch_ranks(read_tokens, 1, str(plan_path))
    expected = reference(run_dir, tokens)
    for record, (loss, norm) in zip(step_records(run_dir), expected, strict=True):
        print(f"step {record['step']}: loss {record['loss'] / loss - 1:+.2e}, gradient norm {record['grad_norm'] / norm - 1:+.2e}")
        # the promise is 1e-4 over 20 steps; fp32 sums in another order gave differences below 1e-6
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-4)

    last = step_records(run_dir)[-1]
    assert last["source_samples"] == {"law": 112, "talk": 48}  # 0.7 and 0.3 of 20 x 8
    assert last["source_tokens"] == {"law": 112 * 32, "talk": 48 * 32}
    assert [record["lr"] for record in step_records(run_dir)][:2] == [PEAK / 2, PEAK]


def read_tokens(plan_path: str) -> list[list[int]]:
    """Return all samples, S + 1 tokens each, in the order of their numbers."""
    from megatron_cpt.backend import choose
    from megatron_cpt.model.parallel import ranks
    from megatron_cpt.plan.run_plan import RunPlan
    from megatron_cpt.train.data import build_dataset

    plan, run_dir = RunPlan.load(Path(plan_path)), Path(plan_path).parent.parent
    with ranks(plan.layout, backend=choose("cpu"), seed=0):
        dataset = build_dataset(plan, run_dir, run_dir / "train", barrier=lambda: None)
        samples = [dataset[number] for number in range(plan.num_samples)]
        return [[*sample["tokens"].tolist(), int(sample["labels"][-1])] for sample in samples]


def reference(run_dir: Path, samples: list[list[int]]) -> list[tuple[float, float]]:
    import torch
    from torch.nn import functional
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(run_dir.parent / "run-base", dtype=torch.float32)
    old = model.get_input_embeddings().weight.detach().clone()
    pieces = [json.loads(line)["base_ids"] for line in (run_dir / "vocab" / "new_pieces.jsonl").read_text().splitlines()]
    model.resize_token_embeddings(len(old) + len(pieces), mean_resizing=False)
    model.get_input_embeddings().weight.data[len(old) :] = torch.stack([old[ids].mean(dim=0) for ids in pieces])
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-8)
    results = []
    for step in range(STEPS):
        done = step + 1
        cosine = 0.5 * (1 + math.cos(math.pi * (done - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))
        rate = PEAK * done / WARMUP_STEPS if done < WARMUP_STEPS else FLOOR + (PEAK - FLOOR) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = torch.tensor(samples[step * BATCH : (step + 1) * BATCH])
        logits = model(batch[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        results.append((loss.item(), float(norm)))
    return results
