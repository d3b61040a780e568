"""Starts the ranks of a plan, on this machine or through the job's launcher."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_cpt.config.files import shipped_launch
from megatron_cpt.errors import CptError
from megatron_cpt.launch_ranks import run_ranks
from megatron_cpt.line.run import Run
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan

LAUNCHER_VARIABLE = "MEGATRON_CPT_LAUNCHER"  # set by the job bodies in slurm/


def start_ranks(
    run: Run, plan: RunPlan, module: str, arguments: list[str], *, stop_file: Path | None = None, attempt_id: str | None = None
) -> int:
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if plan.layout.num_nodes != 1 and launcher is None:
        raise CptError(
            f"The plan needs {plan.layout.num_nodes} nodes, and this command starts the ranks of one.",
            next_step=f"Use `megatron-cpt submit`, or {shipped_launch() / 'multi_node.sh'} on each node.",
        )
    plan_path = run.of("plan") / PLAN_NAME
    return run_ranks(
        module,
        [f"plan={plan_path}", *arguments],
        ranks_per_node=plan.layout.num_ranks // plan.layout.num_nodes,
        threads_per_rank=plan.layout.threads_per_rank,
        launcher=launcher,
        stop_file=stop_file,
        attempt_id=attempt_id,
        on_cpu=plan.backend == "cpu",
    )
