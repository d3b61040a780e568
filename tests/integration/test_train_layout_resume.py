"""A run that stops half way on one layout of two ranks goes on in each other one, as a run that nobody stopped."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path

import pytest
from launch_ranks import free_port, launch_ranks
from tiny_run import make_layout, make_plan, make_run, step_records

from megatron_cpt.plan.run_plan import CheckpointPlan

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS, STOP = 24, 12
LAYOUTS = {
    "dp2": make_layout(data=2),
    "dp2-replicated": make_layout(data=2, distributed_optimizer=False),
    "tp2": make_layout(tensor=2, sequence_parallel=True),
    "pp2": make_layout(pipeline=2),
}
CHECKPOINTS = CheckpointPlan(STOP, 4)


def test_a_resume_on_each_other_layout_loses_what_the_uninterrupted_run_loses(tmp_path: Path) -> None:
    """Twelve steps on one layout and twelve on another, against 24 on the first: losses and gradient norms within 1e-5 in fp32."""
    for name, layout in LAYOUTS.items():
        make_plan(make_run(tmp_path, name), layout, num_steps=STEPS, checkpoint=CHECKPOINTS)
    pairs = list(itertools.permutations(LAYOUTS, 2))
    ports = [free_port() for _ in range(len(LAYOUTS) + len(pairs))]
    codes = launch_ranks(_train_and_go_on, 2, str(tmp_path), ports, timeout_s=1500)
    assert codes == [[0] * len(ports)] * 2
    for source, target in pairs:
        whole, resumed = step_records(tmp_path / source), step_records(tmp_path / f"{source}-to-{target}")
        assert [record["step"] for record in resumed] == list(range(1, STEPS + 1))
        for key in ("loss", "grad_norm"):
            worst = max(abs(a[key] / b[key] - 1) for a, b in zip(resumed, whole, strict=True))
            print(f"{source} to {target}: largest relative difference of {key} up to step {STEPS}: {worst:.1e}")
            assert worst < 1e-5, (source, target, key)
        for key in ("lr", "source_samples"):
            assert [record[key] for record in resumed] == [record[key] for record in whole]


def _train_and_go_on(folder_text: str, ports: list[int]) -> list[int]:
    """Train on every layout, then go on from the middle of each in every other, in the same processes: starting those is the cost."""
    from megatron_cpt.train.run import run

    folder, codes, free = Path(folder_text), [], iter(ports)
    for name in LAYOUTS:
        os.environ["MASTER_PORT"] = str(next(free))
        codes.append(run(folder / name / "plan" / "plan.yaml", evaluate=None))
    for source, target in itertools.permutations(LAYOUTS, 2):
        run_dir = folder / f"{source}-to-{target}"
        if os.environ["RANK"] == "0":
            shutil.copytree(folder / f"{source}-base", folder / f"{run_dir.name}-base")
            aside = folder / f".{run_dir.name}"
            shutil.copytree(folder / source, aside)
            shutil.rmtree(aside / "train" / "checkpoints" / f"step_{STEPS:08d}")
            shutil.copy(folder / target / "plan" / "plan.yaml", aside / "plan" / "plan.yaml")
            aside.rename(run_dir)
        while not run_dir.exists():
            time.sleep(0.01)
        os.environ["MASTER_PORT"] = str(next(free))
        codes.append(run(run_dir / "plan" / "plan.yaml", evaluate=None))
    return codes
