"""What only a CUDA machine can run: Transformer Engine's layers in bf16 and FP8, and context parallelism over NCCL.

Skipped where torch sees no CUDA device; `python -m pytest -m gpu tests/integration/test_cuda_layouts.py` runs them.
"""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records, train_on_ranks

NUM_DEVICES = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_engine = pytest.mark.skipif(find_spec("transformer_engine") is None, reason="needs Transformer Engine")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_DEVICES == 0, reason="needs a CUDA device")]
# bf16 has 8 bits: a loss of 6 from weights and activations that are each off by 2e-3 at most
BF16_TOLERANCE = 1e-2
# e4m3 has 4 bits: a product is off by 3e-2 at most, and a loss averages over many
FP8_TOLERANCE = 5e-2


def _init_on_cuda(run_dir_text: str) -> None:
    """Make the initial checkpoint anew with the layers of this machine, whose state Transformer Engine adds to."""
    from megatron_cpt.backend import choose
    from megatron_cpt.model.initialise import initialise
    from megatron_cpt.record.manifest import build_stage
    from megatron_cpt.record.store import write_json

    run_dir = Path(run_dir_text)
    base = run_dir.parent / f"{run_dir.name}-base"
    shutil.rmtree(run_dir / "init")
    build_stage(
        run_dir / "init",
        {},
        lambda result: initialise(result, base_folder=base, vocab_folder=run_dir / "vocab", row_init="mean", backend=choose("cuda")),
    )
    write_json(run_dir / "init" / "base.json", {"path": f"../{base.name}"})


def losses(folder: Path, name: str, *, backend: str = "cuda", **layout: object) -> list[float]:
    run_dir = make_run(folder, name)
    if backend == "cuda":
        launch_ranks(_init_on_cuda, 1, str(run_dir))
    wanted = make_layout(**layout)  # type: ignore[arg-type]
    plan = make_plan(run_dir, wanted, backend=backend)
    assert train_on_ranks(plan, wanted.num_ranks) == [0] * wanted.num_ranks
    return [record["loss"] for record in step_records(run_dir)]


def worst_difference(ours: list[float], theirs: list[float]) -> float:
    worst = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    print(f"largest relative difference of a loss over {len(ours)} steps: {worst:.2e}")
    return worst


def test_bf16_on_a_gpu_trains_as_fp32_on_a_cpu(tmp_path: Path) -> None:
    on_cpu = losses(tmp_path, "cpu", backend="cpu")
    assert worst_difference(losses(tmp_path, "gpu", dtype="bf16"), on_cpu) < BF16_TOLERANCE


@needs_engine
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_fp8_trains_as_bf16_within_its_precision(recipe: str, tmp_path: Path) -> None:
    bf16 = losses(tmp_path, "bf16", dtype="bf16")
    fp8 = losses(tmp_path, "fp8", dtype="bf16", fp8="hybrid", fp8_recipe=recipe)
    assert fp8 != bf16
    assert worst_difference(fp8, bf16) < FP8_TOLERANCE


@pytest.mark.skipif(NUM_DEVICES < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("layout", [{"context": 2}, {"data": 2, "overlap_grad_reduce": True, "overlap_param_gather": True}])
def test_two_gpus_train_as_one(layout: dict[str, object], tmp_path: Path) -> None:
    one = losses(tmp_path, "one", dtype="bf16")
    assert worst_difference(losses(tmp_path, "two", dtype="bf16", **layout), one) < BF16_TOLERANCE
