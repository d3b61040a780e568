"""Weights in shards (Megatron-FSDP): evaluations in the loop, saves that every other layout reads, resumes, the export."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import free_port, launch_ranks
from tiny_run import TEXTS, make_layout, make_plan, make_run, step_records

from megatron_cpt.plan.run_plan import CheckpointPlan, EvalPlan

pytestmark = pytest.mark.slow
STEPS, SAVED = 4, 2
LAYOUTS: dict[str, dict[str, Any]] = {"plain": {}, "fsdp": {"fsdp": True}}
# One document of one window: the second rank has none to run, and must nevertheless take part in the gathers of the first one's pass.
SHORT = tuple(dataclasses.replace(text, max_bytes=1, max_document_bytes=30) for text in TEXTS)


def _train(plan_paths: list[str], ports: list[int]) -> list[dict[str, Any]]:
    from megatron_cpt.eval.in_loop import scores_of
    from megatron_cpt.train.run import run

    found = []
    for plan_path, port in zip(plan_paths, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        held: dict[str, Any] = {}

        def look(plan: Any, run_dir: Path, chunks: list[Any], held: dict[str, Any] = held) -> Any:
            held |= _held(chunks[0])
            return scores_of(plan, run_dir, chunks)

        assert run(Path(plan_path), evaluate=look) == 0
        found.append(held)
    return found


def _held(chunk: Any) -> dict[str, Any]:
    """Return how many numbers of weights, of gradients and of moments this rank keeps between two steps."""
    if not chunk.ddp_config.use_megatron_fsdp:
        return {}
    buffer = chunk.param_and_grad_buffer
    whole = {name.split(".layers.")[1][0] for parameter, name in buffer.param_to_name.items() if ".layers." in name and _is_here(parameter)}
    return {
        "weights": sum(group.model_weight_buffer.data.numel() for group in buffer.parameter_groups),
        "gradients": sum(group.main_grad_buffer.data.numel() for group in buffer.parameter_groups),
        "whole_layers": sorted(whole),
        "all": sum(parameter.orig_param.shape.numel() for _, parameter in buffer.optimizer_named_parameters),
    }


def _is_here(parameter: Any) -> bool:
    return int(parameter.untyped_storage().size()) > 0


def train(plan_paths: list[Path]) -> list[list[dict[str, Any]]]:
    return launch_ranks(_train, 2, [str(path) for path in plan_paths], [free_port() for _ in plan_paths])


def plan_of(run_dir: Path, name: str) -> Path:
    return make_plan(
        run_dir, make_layout(data=2, **LAYOUTS[name]), num_steps=STEPS, checkpoint=CheckpointPlan(SAVED, 10, asynchronous=name == "fsdp"),
        eval_every_steps=1, eval=EvalPlan(SHORT, 48, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fsdp")
    made = {name: make_run(folder, name) for name in LAYOUTS}
    held = train([plan_of(run_dir, name) for name, run_dir in made.items()])
    return {**made, "held": [rank[1] for rank in held]}


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "eval"]


def resumed_from(source: Path, folder: Path, name: str) -> Path:
    shutil.copytree(source, folder / source.name)
    shutil.copytree(source.parent / f"{source.name}-base", folder / f"{source.name}-base")
    shutil.rmtree(folder / source.name / "train" / "checkpoints" / f"step_{STEPS:08d}")
    return plan_of(folder / source.name, name)


def test_a_rank_keeps_half_of_weights_and_gradients_and_one_layer_whole_at_most(runs: dict[str, Any]) -> None:
    for held in runs["held"]:
        # llama's count by hand: 288 rows; per layer 128 x 64 + 64 x 64 + 192 x 64 + 64 x 96 and two norms; the last norm
        assert held["all"] == 288 * 64 + 4 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96 + 128) + 64
        assert held["whole_layers"] in ([], ["0"])  # the first may be on its way for the next pass
        for kind in ("weights", "gradients"):
            assert held[kind] / held["all"] == pytest.approx(1 / 2, rel=0.02)  # cut between rows, and padded


def test_an_evaluation_in_the_loop_sees_the_weights_of_its_step_though_one_rank_has_nothing_to_score(runs: dict[str, Any]) -> None:
    plain, fsdp = evaluations(runs["plain"]), evaluations(runs["fsdp"])
    assert [record["step"] for record in plain] == [record["step"] for record in fsdp]
    assert len(plain) >= STEPS
    for ours, theirs in zip(fsdp, plain, strict=True):
        for name, score in theirs["bits_per_byte"].items():
            assert ours["bits_per_byte"][name] == pytest.approx(score, rel=1e-6)


def test_a_resume_goes_on_bit_for_bit_and_in_the_other_layout_within_rounding(runs: dict[str, Any], tmp_path: Path) -> None:
    changes = [("fsdp", "fsdp"), ("fsdp", "plain"), ("plain", "fsdp")]
    plans = []
    for number, (source, target) in enumerate(changes):
        (tmp_path / str(number)).mkdir()
        plans.append(resumed_from(runs[source], tmp_path / str(number), target))
    train(plans)
    for number, (source, target) in enumerate(changes):
        whole, resumed = step_records(runs[source]), step_records(tmp_path / str(number) / source)
        assert [record["step"] for record in resumed] == list(range(1, STEPS + 1))
        for key in ("loss", "grad_norm", "lr"):
            mine, theirs = ([record[key] for record in records] for records in (resumed, whole))
            assert mine == theirs if source == target else mine == pytest.approx(theirs, rel=1e-5), (source, target, key)


def test_a_checkpoint_has_the_tensors_of_the_distributed_optimizers_and_converts_to_the_same_model(runs: dict[str, Any]) -> None:
    tensors, converted = launch_ranks(_differences, 1, [str(runs[name]) for name in LAYOUTS])[0]
    # layers are stacked: six tensors of a layer, the embedding and the last norm; as weights, as the optimizer's and two moments
    assert len(tensors) == 4 * 8
    assert max(tensors.values()) < 1e-5, tensors
    assert len(converted) == 4 * 9 + 2  # Llama's names: a layer has four matrices of attention, three of the MLP, two norms
    assert max(converted.values()) < 1e-5, converted


def _differences(run_dirs: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return by how much the tensors of two runs' last checkpoints differ, and the weights that an export makes of them."""
    from megatron.core.dist_checkpointing import load_plain_tensors

    from megatron_cpt.backend import choose
    from megatron_cpt.model.build import build_chunks
    from megatron_cpt.model.convert import hf_tensors
    from megatron_cpt.model.dist_checkpoint import load_model
    from megatron_cpt.model.parallel import ranks
    from megatron_cpt.plan.run_plan import RunPlan

    backend = choose("cpu")
    tensors, weights = [], []
    with ranks(make_layout(), backend=backend, seed=0):
        for run_dir in map(Path, run_dirs):
            folder = run_dir / "train" / "checkpoints" / f"step_{STEPS:08d}" / "model"
            tensors.append({name: tensor for name, tensor in load_plain_tensors(str(folder)).items() if hasattr(tensor, "numpy")})
            plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
            chunks = build_chunks(plan.shape, plan.vocab, make_layout(), backend=backend)
            load_model(folder, chunks)
            weights.append({name: tensor.clone() for name, tensor in hf_tensors(chunks, plan.shape, plan.vocab)})
    plain, fsdp = tensors
    assert plain.keys() == fsdp.keys()
    assert all(plain[name].dtype == fsdp[name].dtype and plain[name].shape == fsdp[name].shape for name in plain)
    first, second = ({name: float((ours[name] - theirs[name]).abs().max()) for name in ours} for ours, theirs in (tensors, weights))
    return first, second
