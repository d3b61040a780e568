"""The tasks of the first pass as Ray tasks: on the cluster of RAY_ADDRESS, on one that runs on this machine, or on a Ray of its own.

The scratch folder must lie where every node of the cluster sees it under the same path.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.corpus.engine import Progress, environment, note
from megatron_cpt.corpus.tasks import TaskPlan
from megatron_cpt.corpus.worker import FirstPass, answer
from megatron_cpt.errors import ConfigError, CptError


def by_ray(scratch: Path, plan: TaskPlan, pending: Sequence[int], progress: Progress) -> dict[int, list[str]]:
    """Do tasks on Ray, at most `engine.workers` at a time (null: one for every core of the cluster).

    Raises:
        ConfigError: ray is not installed.
        CptError: a worker died, or cannot write.
    """
    try:
        import ray  # noqa: PLC0415 - optional: extra [ray]
    except ImportError:
        raise ConfigError(
            "Running the corpus on Ray needs the ray package.", where="corpus.engine.kind", next_step="pip install 'megatron-cpt[ray]'"
        ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home
    started = not ray.is_initialized()
    if started:
        names = ("PYTHONPATH", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
        passed_on = {key: value for key, value in environment().items() if key in names}
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False, runtime_env={"env_vars": passed_on})
    failures: dict[int, list[str]] = {}
    running: dict[Any, int] = {}
    try:
        task = ray.remote(max_retries=0, num_cpus=1)(do_task)
        limit = plan.settings.engine.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = deque(pending)
        while waiting or running:
            while waiting and len(running) < limit:
                rank = waiting.popleft()
                running[task.remote(str(scratch), rank)] = rank
            for ready in ray.wait(list(running), num_returns=1)[0]:
                rank = running.pop(ready)
                try:
                    note(failures, ray.get(ready), progress)
                except ray.exceptions.RayError as error:
                    raise CptError(
                        "A worker of the corpus died.",
                        where=plan.tasks[rank].shown,
                        value=str(error).strip().splitlines()[0][:300],
                        next_step="Run again: finished tasks stay.",
                    ) from None
    finally:
        for left in running:
            ray.cancel(left, force=True)
        if started:
            ray.shutdown()
    return failures


def do_task(scratch: str, rank: int) -> dict[str, Any]:
    """Do one task in a worker of Ray, which rebuilds it from the frozen plan; return its answer."""
    folder = Path(scratch)
    return answer(FirstPass(folder, TaskPlan.load(folder)), rank)
