"""Overlapped communication: it really runs beside the passes, and evaluations and saves never see weights that are not here yet."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import free_port, launch_ranks
from tiny_run import TEXTS, make_layout, make_plan, make_run, step_records

from megatron_cpt.plan.run_plan import CheckpointPlan, EvalPlan

pytestmark = pytest.mark.slow
STEPS = 4
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 20_000}
# One document of one window: the second rank has none to run, and so no forward pass in which weights would come.
SHORT = tuple(dataclasses.replace(text, max_bytes=1, max_document_bytes=30) for text in TEXTS)


def _train_and_resume(plain: str, overlap: str, resumed: str, ports: list[int]) -> dict[str, float]:
    """Train both plans, and the second anew from its first checkpoint; return by how much the tensors of the checkpoints differ."""
    from megatron_cpt.backend import choose
    from megatron_cpt.eval.in_loop import scores_of
    from megatron_cpt.model.parallel import ranks
    from megatron_cpt.train.run import run

    def train(run_dir: str, port: int) -> None:
        os.environ["MASTER_PORT"] = str(port)  # the ranks meet anew for each run
        assert run(Path(run_dir) / "plan" / "plan.yaml", evaluate=scores_of) == 0

    train(plain, ports[0])
    train(overlap, ports[1])
    ready = Path(resumed).parent / "ready"
    if os.environ["RANK"] == "0":
        for source, target in ((overlap, resumed), (f"{overlap}-base", f"{resumed}-base")):
            shutil.copytree(source, target)
        shutil.rmtree(Path(resumed) / "train" / "checkpoints" / f"step_{STEPS:08d}")
        ready.touch()
    while not ready.exists():
        time.sleep(0.01)
    train(resumed, ports[2])
    os.environ["MASTER_PORT"] = str(ports[3])
    with ranks(make_layout(data=2), backend=choose("cpu"), seed=0):
        return _largest_differences(plain, overlap)


def _largest_differences(*run_dirs: str) -> dict[str, float]:
    """Return by how much the tensors of two runs' checkpoints of step 2 differ, moments included."""
    from megatron.core.dist_checkpointing import load_plain_tensors

    folders = [Path(run_dir) / "train" / "checkpoints" / "step_00000002" / "model" for run_dir in run_dirs]
    plain, overlap = (load_plain_tensors(str(folder)) for folder in folders)
    tensors = {name: value for name, value in plain.items() if hasattr(value, "numpy")}
    return {name: float((value - overlap[name]).abs().max()) for name, value in tensors.items()}


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "eval"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("overlap")
    made: dict[str, Any] = {"resumed": folder / "resumed"}
    for name, changes in {"plain": {}, "overlap": OVERLAP}.items():
        made[name] = make_run(folder, name)
        make_plan(
            made[name], make_layout(data=2, **changes), num_steps=STEPS, checkpoint=CheckpointPlan(2, 10), eval_every_steps=1,
            eval=EvalPlan(SHORT, 48, 2),
        )  # fmt: skip
    folders = [str(made[name]) for name in ("plain", "overlap", "resumed")]
    made["differences"] = launch_ranks(_train_and_resume, 2, *folders, [free_port() for _ in range(4)])[0]
    return made


def test_an_evaluation_in_the_loop_sees_the_weights_of_its_step(runs: dict[str, Any]) -> None:
    plain, overlap = (evaluations(runs[name]) for name in ("plain", "overlap"))
    assert [record["step"] for record in plain] == [record["step"] for record in overlap]
    assert len(plain) >= STEPS
    seen = set()
    for ours, theirs in zip(overlap, plain, strict=True):
        for name, bits in theirs["bits_per_byte"].items():
            seen.add(bits)
            assert ours["bits_per_byte"][name] == pytest.approx(bits, rel=1e-6)
    assert len(seen) >= 2 * STEPS  # every step moves them by more than that


def test_a_checkpoint_holds_the_weights_of_its_step_and_a_resume_goes_on_bit_for_bit(runs: dict[str, Any]) -> None:
    for key in ("step", "loss", "grad_norm", "lr"):
        assert [record[key] for record in step_records(runs["resumed"])] == [record[key] for record in step_records(runs["overlap"])], key
    differences = runs["differences"]
    assert len(differences) > 10
    # weights of size 0.1 after steps of 2e-3, in another order of sums; moments that lay in another bucket's place would be far off
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.long
def test_gradients_leave_during_the_backward_pass_and_weights_arrive_during_the_forward_pass(tmp_path: Path) -> None:
    """The overlap is real: collectives start between passes of layers, and weights of another rank's share are late without a gather."""
    run_dir = make_run(tmp_path)
    plan_path = make_plan(run_dir, make_layout(data=2, **OVERLAP))
    for found in launch_ranks(_events, 2, str(plan_path)):
        assert found["buckets"] > 2
        second = found["second_step"]
        assert second.count("reduce") == second.count("gather") == found["buckets"]  # once a bucket, in the last micro-batch alone
        assert second.index("reduce") < len(second) - 1 - second[::-1].index("backward")
        assert second.index("forward") < len(second) - 1 - second[::-1].index("gather")
        assert found["stale_before"] > 0  # what the other rank updated is not here after the step
        assert found["stale_after"] == 0


def _events(plan_path: str) -> dict[str, Any]:
    """Take two steps and return, in their order, the starts of collectives and the passes of layers in the second."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup
    from torch import distributed

    from megatron_cpt.backend import choose
    from megatron_cpt.model.build import build_chunks, inner_model
    from megatron_cpt.model.dist_checkpoint import load_model
    from megatron_cpt.model.parallel import ranks
    from megatron_cpt.plan.run_plan import RunPlan
    from megatron_cpt.train.data import TrainingData, build_dataset
    from megatron_cpt.train.optimizer import gather_weights, wrap_and_optimize
    from megatron_cpt.train.state import TrainState
    from megatron_cpt.train.step import optimizer_step

    plan, run_dir, backend = RunPlan.load(Path(plan_path)), Path(plan_path).parent.parent, choose("cpu")
    events: list[str] = []
    reduce, gather = _ParamAndGradBucketGroup.start_grad_sync, _ParamAndGradBucketGroup.start_param_sync

    def note(event: str, function: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            events.append(event)
            return function(*args, **kwargs)

        return noted

    def checksums(chunks: list[Any]) -> torch.Tensor:
        return torch.tensor([parameter.detach().double().sum() for parameter in chunks[0].parameters()])

    def stale(chunks: list[Any]) -> int:
        mine = checksums(chunks)
        both = [torch.empty_like(mine) for _ in range(2)]
        distributed.all_gather(both, mine)
        return int((both[0] != both[1]).sum())

    with ranks(plan.layout, backend=backend, seed=plan.seed):
        (run_dir / "train").mkdir(exist_ok=True)
        dataset = build_dataset(plan, run_dir, run_dir / "train", barrier=distributed.barrier)
        chunks, optimizer = wrap_and_optimize(build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend), plan)
        load_model(run_dir / "init" / "checkpoint", chunks)
        optimizer.reload_model_params()
        _ParamAndGradBucketGroup.start_grad_sync = note("reduce", reduce)
        _ParamAndGradBucketGroup.start_param_sync = note("gather", gather)
        for layer in inner_model(chunks[0]).decoder.layers:
            layer.register_forward_hook(lambda *_: events.append("forward"))
            layer.register_full_backward_hook(lambda *_: events.append("backward"))
        data = TrainingData(dataset, plan=plan, data_rank=parallel_state.get_data_parallel_rank(), device=backend.device)
        batches, state = data.from_sample(0), TrainState.start(plan)
        state = state.after(optimizer_step(chunks, optimizer, next(batches), plan, before=state))
        events.clear()
        optimizer_step(chunks, optimizer, next(batches), plan, before=state)
        second = list(events)
        before = stale(chunks)
        gather_weights(chunks)
        return {"buckets": len(chunks[0].bucket_groups), "second_step": second, "stale_before": before, "stale_after": stale(chunks)}
