"""Checkpoint folders without torch: what counts as complete, as newest, as prunable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_cpt.errors import CheckpointError
from megatron_cpt.train.checkpoint_files import (
    best_steps,
    check_contents,
    check_counters,
    complete_checkpoints,
    describe,
    prune,
    publish,
    read_record,
    remove_torsos,
)
from megatron_cpt.train.state import TrainState


def save(folder: Path, step: int, *, name: str | None = None) -> Path:
    partial = folder / f".step_{step:08d}-test.partial"
    (partial / "model").mkdir(parents=True)
    (partial / "model" / "weights").write_bytes(bytes([step % 256]) * 100)
    state = TrainState(step, step * 8, (step * 6, step * 2), (step * 60, step * 20), skipped_steps=3, recent_grad_norms=(0.1, 1 / 3))
    record = describe(partial, state, sources=["law", "talk"], plan_fingerprint="p", wandb_run_id="w")
    final = folder / (name or f"step_{step:08d}")
    publish(partial, final, record)
    return final


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "train" / "checkpoints"
    path.mkdir(parents=True)
    return path


def test_the_state_comes_back_as_it_was(folder: Path) -> None:
    record = read_record(save(folder, 40))
    assert record.state() == TrainState(40, 320, (240, 80), (2400, 800), skipped_steps=3, recent_grad_norms=(0.1, 1 / 3))
    assert (record.tokens_seen, record.wandb_run_id, record.plan_fingerprint) == (3200, "w", "p")


# What the check reads of a plan: 8 samples of 10 tokens a step, 100 steps of two sources.
PLAN: Any = SimpleNamespace(
    num_steps=100,
    fingerprint="p",
    layout=SimpleNamespace(global_batch_size=8, tokens_per_step=80),
    blend=(SimpleNamespace(source="law"), SimpleNamespace(source="talk")),
)


def test_counters_that_contradict_each_other_or_the_plan_are_refused(folder: Path) -> None:
    record = read_record(save(folder, 40))
    check_counters(record, PLAN, folder)
    for change in (
        {"samples_seen": 328}, {"tokens_seen": 3210}, {"source_samples": (241, 80)}, {"source_tokens": (2400, 810)}, {"step": 41},
        {"sources": ("talk", "law")},
        {"step": 120, "samples_seen": 960, "tokens_seen": 9600, "source_samples": (720, 240), "source_tokens": (7200, 2400)},
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="counters of a checkpoint's record do not fit"):
            check_counters(replace(record, **change), PLAN, folder)


def test_a_source_that_joined_in_a_later_round_has_given_nothing_yet(folder: Path) -> None:
    record = read_record(save(folder, 40))
    later = SimpleNamespace(**{**vars(PLAN), "fingerprint": "q", "blend": (*PLAN.blend, SimpleNamespace(source="news"))})
    joined = check_counters(record, later, folder)
    assert (joined.sources, joined.source_samples, joined.source_tokens) == (("law", "talk", "news"), (240, 80, 0), (2400, 800, 0))
    later.fingerprint = record.plan_fingerprint  # under its own plan nothing joins
    with pytest.raises(CheckpointError, match="counters of a checkpoint's record do not fit"):
        check_counters(record, later, folder)


def test_the_newest_is_the_highest_number_not_the_last_name(folder: Path) -> None:
    for step, name in ((500, "step_500"), (2500, "step_2500"), (10000, "step_10000")):
        save(folder, step, name=name)
    assert [record.step for _, record in complete_checkpoints(folder)] == [10000, 2500, 500]


def test_a_torso_is_not_complete_and_is_removed(folder: Path) -> None:
    save(folder, 2)
    (folder / ".step_00000004-abc.partial" / "model").mkdir(parents=True)
    (folder / "step_00000006").mkdir()  # no record
    assert [record.step for _, record in complete_checkpoints(folder)] == [2]
    remove_torsos(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002", "step_00000006"]


def test_a_cut_file_makes_a_checkpoint_incomplete_and_a_changed_byte_is_found_by_its_hash(folder: Path) -> None:
    cut, changed = save(folder, 2), save(folder, 4)
    (cut / "model" / "weights").write_bytes(b"short")
    (changed / "model" / "weights").write_bytes(b"x" * 100)
    found = complete_checkpoints(folder)
    assert [record.step for _, record in found] == [4]
    with pytest.raises(CheckpointError, match="has changed"):
        check_contents(*found[0])


def test_pruning_keeps_the_newest_and_the_one_that_good_json_names(folder: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        save(folder, step)
    (folder.parent.parent / "good.json").write_text(json.dumps({"checkpoint": "train/checkpoints/step_00000004"}))
    prune(folder, keep_last=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000004", "step_00000008", "step_00000010"]


def test_pruning_never_removes_the_only_checkpoint(folder: Path) -> None:
    save(folder, 2)
    prune(folder, keep_last=0)
    assert [record.step for _, record in complete_checkpoints(folder)] == [2]


def evaluation(step: int, **bits: float) -> dict:
    return {"kind": "eval", "step": step, "bits_per_byte": bits}


def test_the_best_step_has_the_lowest_mean_of_the_domain_texts_alone() -> None:
    records = [
        evaluation(2, law=2.0, code=1.0, talk=0.1),  # mean of law and code: 1.5
        {"kind": "step", "step": 3, "loss": 0.1},
        evaluation(4, law=1.0, code=1.5, talk=9.0),  # 1.25
        evaluation(6, law=1.25, code=1.25, talk=1.0),  # 1.25, and newer
        evaluation(8, law=0.1, talk=0.1),  # scored on another list of texts: not comparable
    ]
    assert best_steps(records, texts=["law", "code"]) == [6, 4, 2]
    assert best_steps(records, texts=[]) == []


def test_pruning_keeps_the_best_that_are_there_beside_the_newest(folder: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        save(folder, step)
    prune(folder, keep_last=1, best_first=[3, 4, 10, 2, 6], keep_best=2)  # of step 3 there is no checkpoint
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000004", "step_00000010"]
