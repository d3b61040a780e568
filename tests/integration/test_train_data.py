"""What a packed token sees, and which samples a blend draws: against transformers, megatron-core's own masks and the index files."""

# ruff: noqa: PLC0415  -- the rank imports torch and megatron in its own process, after the backend is chosen
from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run, write_index

from megatron_cpt.plan.run_plan import BlendEntry, BlendStage, PackingPlan, RunPlan

LENGTH = 32
FIRST, SECOND = [101, 5, 7, 9, 11, 13, 17, 19, 23], [102, 42, 43, 44, 45, 46, 47]
PACKINGS = [(False, True), (True, True), (False, False), (True, False)]  # reset positions, attention across documents


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_dir = make_run(tmp_path_factory.mktemp("data"))
    make_plan(run_dir, make_layout(micro_batch_size=1, global_batch_size=1))
    (facts,) = launch_ranks(_all_facts, 1, str(run_dir))
    return facts


@pytest.mark.parametrize("reset", [False, True])
def test_documents_that_do_not_see_each_other_lose_what_each_loses_alone(facts: dict[str, Any], reset: bool) -> None:
    packed, alone = facts["losses"][reset, False], facts["alone"]
    learned = [*range(len(FIRST)), *range(len(FIRST) + 1, len(FIRST) + 1 + len(SECOND))]  # not from one's end to the other's start
    assert [packed[place] for place in learned] == pytest.approx(alone, abs=2e-5)  # fp32 losses of about 6
    assert abs(packed[len(FIRST) + 1] - facts["losses"][False, True][len(FIRST) + 1]) > 1e-3  # unlike what attention across gives


def test_attention_across_documents_is_what_transformers_computes_at_the_same_positions(facts: dict[str, Any]) -> None:
    for reset in (False, True):
        assert facts["losses"][reset, True] == pytest.approx(facts["whole"][reset], abs=2e-5)
    moved = [a - b for a, b in zip(facts["losses"][True, True], facts["losses"][False, True], strict=True)]
    assert max(map(abs, moved[: len(FIRST) + 1])) < 2e-5  # the first document stands where it stood
    assert max(map(abs, moved[len(FIRST) + 1 :])) > 1e-3


def test_masks_and_positions_are_megatrons_own(facts: dict[str, Any]) -> None:
    assert facts["num_masks_with_two_documents"] > 3
    assert facts["masks_differ"] == []
    assert facts["loss_masks"] == {True: 0, False: facts["ends_read"]}  # tokens without a loss
    assert facts["ends_read"] > 3


def test_a_staged_blend_reads_every_token_of_each_source_once(facts: dict[str, Any]) -> None:
    for name, found in facts["staged"].items():
        assert found["too_often"] == 0, name
        assert found["left"] == found["tail"], name  # less than one sample
    assert facts["stage_counts"] == facts["stage_counts_wanted"]


def test_no_weight_draws_a_source_past_its_end(facts: dict[str, Any]) -> None:
    assert facts["drawn"] == {  # of 30 samples; megatron-core draws at least one of each, and a plan refuses a share of none
        "0.5 0.5": (15, 15), "1/3 2/3": (10, 20), "0.0001 0.9999": (1, 29), "the same source at 0.001 and 0.999": (1, 29),
        "staged": (11, 19),
    }  # fmt: skip


def _all_facts(run_dir_text: str) -> dict[str, Any]:
    from megatron_cpt.backend import choose

    backend = choose("cpu")
    from megatron_cpt.model.parallel import ranks

    run_dir = Path(run_dir_text)
    plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
    with ranks(plan.layout, backend=backend, seed=1):
        return {**_losses(plan, run_dir, backend), **_masks(plan, run_dir), **_staged(plan, run_dir), **_drawn(plan, run_dir)}


def _losses(plan: RunPlan, run_dir: Path, backend: Any) -> dict[str, Any]:
    """Return the losses of two packed documents, and what transformers says of the sequence and of each document alone."""
    import torch
    from torch.nn import functional
    from transformers import LlamaForCausalLM

    from megatron_cpt.eval.run import load_subject
    from megatron_cpt.eval.subjects import find_subject
    from megatron_cpt.train.data import Microbatch, document_mask
    from megatron_cpt.train.packing import prepare
    from megatron_cpt.train.step import _forward_step

    end = plan.vocab.end_of_document_id
    ids_S = torch.tensor([*FIRST, end, *SECOND, end])
    tokens_BS, labels_BS = ids_S[None, :-1], ids_S[None, 1:]
    starts = len(FIRST) + 1
    plain, reset = torch.arange(len(ids_S) - 1), torch.tensor([*range(starts), *range(len(ids_S) - 1 - starts)])
    found: dict[str, Any] = {"losses": {}, "whole": {}}
    for resets, across in PACKINGS:
        chunks = load_subject(find_subject("base", plan, run_dir), plan, backend=backend)
        prepare(chunks, PackingPlan(reset_positions=resets, cross_document_attention=across))
        mask = None if across else document_mask(tokens_BS, end=end)
        positions_BS = (reset if resets else plain)[None]
        batch = Microbatch(tokens_BS, labels_BS, torch.ones(tokens_BS.shape), positions_BS, torch.zeros(1, dtype=torch.int64), mask)
        with torch.no_grad():
            losses_BS, _ = _forward_step(iter([batch]), chunks[0])
        found["losses"][resets, across] = losses_BS[0].tolist()

    model = LlamaForCausalLM.from_pretrained(run_dir.parent / "run-base", dtype=torch.float32, attn_implementation="eager").eval()

    def by_transformers(ids: torch.Tensor, positions: torch.Tensor) -> list[float]:
        later = torch.full((len(positions), len(positions)), float("-inf")).triu(diagonal=1)[None, None]
        with torch.no_grad():  # the mask is given, or transformers would take restarting positions for packed documents
            logits = model(ids[None, :-1], attention_mask=later, position_ids=positions[None]).logits[0]
        return functional.cross_entropy(logits.double(), ids[1:], reduction="none").tolist()

    found["whole"] = {False: by_transformers(ids_S, plain), True: by_transformers(ids_S, reset)}
    documents = (torch.tensor([*FIRST, end]), torch.tensor([*SECOND, end]))
    found["alone"] = [loss for ids in documents for loss in by_transformers(ids, torch.arange(len(ids) - 1))]
    return found


def _masks(plan: RunPlan, run_dir: Path) -> dict[str, Any]:
    """Compare the batches of a plan that keeps documents apart with megatron-core's masks for the same tokens."""
    import torch
    from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

    end = plan.vocab.end_of_document_id
    plan = dataclasses.replace(plan, num_steps=40)
    packed = dataclasses.replace(plan, packing=PackingPlan(True, False, False))
    differ, with_two, unmasked, ends = [], 0, {True: 0, False: 0}, 0
    for number, batch in enumerate(_batches(packed, run_dir)):
        tokens_S = batch.tokens_BS[0]
        mask_1SS, loss_mask_S, positions_S = _get_ltor_masks_and_position_ids(tokens_S, end, True, True, True, True)
        ours = (batch.attention_mask_B1SS[0], batch.loss_mask_BS[0], batch.position_ids_BS[0])
        differ += [number for a, b in zip(ours, (mask_1SS, loss_mask_S, positions_S), strict=True) if not torch.equal(a, b)]
        with_two += end in tokens_S[:-1].tolist()
        ends += tokens_S.tolist().count(end)
        unmasked[False] += int((batch.loss_mask_BS == 0).sum())
    for batch in _batches(plan, run_dir):
        assert batch.attention_mask_B1SS is None
        unmasked[True] += int((batch.loss_mask_BS == 0).sum())
    return {"masks_differ": differ, "num_masks_with_two_documents": with_two, "loss_masks": unmasked, "ends_read": ends}


def _staged(plan: RunPlan, run_dir: Path) -> dict[str, Any]:
    """Draw exactly one epoch of each source over three stages of unlike shares, and compare the tokens with the index files."""
    import numpy as np

    tokens = {name: np.fromfile(run_dir / "index" / f"{name}.bin", dtype=np.uint16).tolist() for name in ("law", "talk")}
    whole = {name: (len(ids) - 1) // LENGTH for name, ids in tokens.items()}
    early = {name: count // 3 for name, count in whole.items()}
    stages = (
        (early["law"], early["talk"] // 2),
        (0, early["talk"]),
        (whole["law"] - early["law"], whole["talk"] - early["talk"] - early["talk"] // 2),
    )
    first_steps = (0, sum(stages[0]), sum(stages[0]) + sum(stages[1]))
    entries = tuple(
        BlendEntry(name, "domain", "CC0", f"index/{name}", count / sum(whole.values()), len(tokens[name]), count, 1.0)
        for name, count in whole.items()
    )
    blended = dataclasses.replace(
        plan,
        blend=entries,
        num_steps=sum(whole.values()),
        blend_stages=tuple(BlendStage(first, counts) for first, counts in zip(first_steps, stages, strict=True)),
    )
    read = [Counter[int](), Counter[int]()]
    counts = [[0, 0] for _ in stages]
    for step, batch in enumerate(_batches(blended, run_dir)):
        source = int(batch.source_ids_B[0])
        read[source].update(batch.tokens_BS[0].tolist())
        counts[sum(step >= first for first in first_steps) - 1][source] += 1
    found = {}
    for name, drawn in zip(whole, read, strict=True):
        stored = Counter(tokens[name])
        found[name] = {
            "too_often": sum((drawn - stored).values()),
            "left": sum((stored - drawn).values()),
            "tail": len(tokens[name]) - whole[name] * LENGTH,
        }
    return {"staged": found, "stage_counts": counts, "stage_counts_wanted": [list(counts) for counts in stages]}


def _drawn(plan: RunPlan, run_dir: Path) -> dict[str, tuple[int, int]]:
    """Draw 30 samples from sources of 10 and 20 samples at several weights; an overdrawn source is an IndexError."""
    end = plan.vocab.end_of_document_id
    for name, num_samples in (("ten", 10), ("twenty", 20)):
        write_index(run_dir / "index" / name, [[7 + number] * (LENGTH - 1) for number in range(num_samples)], end=end)
    cases: dict[str, tuple[tuple[str, str], tuple[float, float], tuple[BlendStage, ...]]] = {
        "0.5 0.5": (("ten", "twenty"), (0.5, 0.5), ()),
        "1/3 2/3": (("ten", "twenty"), (1 / 3, 2 / 3), ()),
        "0.0001 0.9999": (("ten", "twenty"), (0.0001, 0.9999), ()),
        "the same source at 0.001 and 0.999": (("ten", "ten"), (0.001, 0.999), ()),
        "staged": (("ten", "ten"), (11 / 30, 19 / 30), (BlendStage(0, (1, 9)), BlendStage(10, (10, 10)))),
    }
    drawn = {}
    for label, (names, shares, stages) in cases.items():
        entries = tuple(
            BlendEntry(name, "domain", "CC0", f"index/{name}", share, 320, round(30 * share), 1.0)
            for name, share in zip(names, shares, strict=True)
        )
        batches = _batches(dataclasses.replace(plan, blend=entries, num_steps=30, blend_stages=stages), run_dir)
        sources = [int(batch.source_ids_B[0]) for batch in batches]
        drawn[label] = (sources.count(0), sources.count(1))
    return {"drawn": drawn}  # type: ignore[dict-item]


def _batches(plan: RunPlan, run_dir: Path) -> list[Any]:
    import torch

    from megatron_cpt.train.data import TrainingData, build_dataset

    dataset = build_dataset(plan, run_dir, run_dir / "train", barrier=lambda: None)
    data = TrainingData(dataset, plan=plan, data_rank=0, device=torch.device("cpu"))
    return [batch for step in data.from_sample(0) for batch in step.microbatches]
