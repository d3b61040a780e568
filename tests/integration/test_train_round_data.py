"""A later round reads on: what an earlier one read of a source is not read again before the rest of its epochs (megatron-core's data)."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run

from megatron_cpt.plan.blend import requested_samples
from megatron_cpt.plan.run_plan import BlendEntry, BlendStage, RunPlan

STEPS, MORE = 30, 70  # steps of 8 samples of 32 tokens: 240 samples, and 560
SHARES = (0.7, 0.3)
Samples = dict[int, list[tuple[int, ...]]]


def test_a_longer_plan_goes_on_in_the_order_of_the_shorter_one(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    first, second, forgetful, lengths, num_epochs = launch_ranks(_read_rounds, 1, str(run_dir))[0]
    assert num_epochs == [2, 1]
    assert [len(first[source]) for source in (0, 1)] == [168, 72]
    for source in (0, 1):
        read = first[source]
        assert second[source][: len(read)] == read
        assert len(second[source]) == len(read) + 160  # 40 steps of 8 samples at 1 to 1
        rest = second[source][len(read) : lengths[source]]
        assert rest, "the earlier round ended with an epoch: nothing is proven"
        epoch = lengths[source] // num_epochs[source]
        assert not set(rest) & set(read[(num_epochs[source] - 1) * epoch + 1 :])  # what is left of the last epoch was not read in it
    # law is read more than once: without the earlier numbers a longer plan draws another order, and what was read comes again
    assert forgetful[0][:168] != first[0]


def _read_rounds(run_dir_text: str) -> tuple[Samples, Samples, Samples, list[int], list[int]]:
    """Return the samples of each source in the order of three plans, how many the first plan's own epochs hold, and their number."""
    from megatron_cpt.backend import choose
    from megatron_cpt.model.parallel import ranks, single_rank_layout

    backend, run_dir = choose("cpu"), Path(run_dir_text)
    plan = RunPlan.load(make_plan(run_dir, make_layout(), num_steps=STEPS))
    entries = tuple(
        BlendEntry(name, "domain", "CC0", f"index/{name}", share, 1500, round(share * 240), 1.0)
        for name, share in zip(("law", "talk"), SHARES, strict=True)
    )
    first = dataclasses.replace(plan, blend=entries)
    longer = tuple(
        dataclasses.replace(
            entry, share=(entry.num_samples + 160) / 560, num_samples=entry.num_samples + 160, earlier_num_samples=(wanted,)
        )
        for entry, wanted in zip(entries, requested_samples(first), strict=True)
    )
    stages = (BlendStage(0, (168, 72)), BlendStage(STEPS, (160, 160)))
    second = dataclasses.replace(first, num_steps=MORE, blend=longer, blend_stages=stages)
    forgetful = dataclasses.replace(second, blend=tuple(dataclasses.replace(entry, earlier_num_samples=()) for entry in longer))
    with ranks(single_rank_layout(32, dtype="fp32"), backend=backend, seed=0):
        read = [_samples(each, run_dir, run_dir / f"train-{number}") for number, each in enumerate((first, second, forgetful))]
    return read[0][0], read[1][0], read[2][0], *read[0][1:]


def _samples(plan: RunPlan, run_dir: Path, train_dir: Path) -> tuple[Samples, list[int], list[int]]:
    import torch

    from megatron_cpt.train.data import TrainingData, build_dataset

    dataset: Any = build_dataset(plan, run_dir, train_dir, barrier=lambda: None)
    data = TrainingData(dataset, plan=plan, data_rank=0, device=torch.device("cpu"))
    found: Samples = {0: [], 1: []}
    for step in data.from_sample(0):
        for batch in step.microbatches:
            for source, tokens in zip(batch.source_ids_B.tolist(), batch.tokens_BS.tolist(), strict=True):
                found[source].append(tuple(tokens))
    parts = getattr(dataset, "datasets", [])
    return found, [len(part) for part in parts], [len(part.document_index) // len(set(part.document_index.tolist())) for part in parts]
