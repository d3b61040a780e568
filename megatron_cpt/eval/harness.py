"""Runs tasks of lm-evaluation-harness from a folder of the user's own task files, without a network.

A task file is text from outside: it may fill in templates, which run in jinja's sandbox, and it runs no Python unless the user says so.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.eval.harness_files import refuse_code
from megatron_cpt.eval.report import ItemScore, TaskScore
from megatron_cpt.plan.run_plan import HarnessPlan
from megatron_cpt.record.hashing import sha256_folder

FEW_SHOT_SEED = 1234  # the harness's own default

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarnessTasks:
    """Loaded tasks: the harness's own objects, by name."""

    plan: HarnessPlan
    version: str
    loaded: Mapping[str, Any]

    @classmethod
    def load(cls, plan: HarnessPlan) -> HarnessTasks:
        """Read the named tasks and their items.

        Raises:
            ConfigError: the harness is not installed, a task is not in the folder, cannot be loaded, or names code that may not run.
            DataError: the folder's files are not those of the plan.
        """
        folder = Path(plan.path)
        if not folder.is_dir() or sha256_folder(folder) != plan.sha256:
            raise DataError(
                "The task files are not those that the plan was made with.", where=folder, next_step="Plan again with the new ones."
            )
        if not plan.runs_code:
            refuse_code(folder)
        manager, version = _manager(folder, runs_code=plan.runs_code)
        unknown = [name for name in plan.tasks if name not in manager.all_tasks]
        if unknown:
            raise ConfigError(
                "The folder has no such task.", where=folder, value=", ".join(unknown), rule=f"of {', '.join(manager.all_tasks) or 'none'}"
            )
        try:
            loaded = manager.load(list(plan.tasks))
        except Exception as error:  # the harness and its data library raise anything for a damaged task or data file
            raise ConfigError("A task cannot be loaded.", where=folder, value=f"{type(error).__name__}: {error}"[:500]) from error
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEW_SHOT_SEED)
        return cls(plan, version, loaded)

    def score(self, model: Any) -> dict[str, TaskScore]:
        """Return every task's scores, the same on every rank. Collective, through the model.

        Raises:
            ConfigError: a task cannot be run with this model, or gives no figure by item that is better when it is higher.
        """
        from lm_eval.evaluator import evaluate  # noqa: PLC0415

        try:
            results = evaluate(lm=model, task_dict=self.loaded, limit=self.plan.max_items, bootstrap_iters=0, log_samples=True)
        except ValueError as error:  # how the harness refuses tasks that would run generated code, or that want images
            raise ConfigError("The harness refuses a task.", where=self.plan.path, value=str(error)[:500]) from error
        assert results is not None, "every rank is the harness's first"
        return {
            name: self._task_score(name, task, results["samples"][name], num_joined=len(model.joined[name]))
            for name, task in self.loaded["tasks"].items()
        }

    def _task_score(self, name: str, task: Any, samples: Sequence[Mapping[str, Any]], *, num_joined: int) -> TaskScore:
        items = items_of(samples, wanted=self._metrics_of(name, task))
        metrics = sorted({metric for item in items for metric in item.metrics})
        if not metrics:
            raise ConfigError(
                "A task gives no figure by item that is better when it is higher.",
                where=f"{self.plan.path}: {name}",
                value=", ".join(task.higher_is_better()),
                rule="one metric with aggregation: mean and higher_is_better: true",
            )
        shots = task.get_config("num_fewshot")
        return TaskScore(
            kind=str(task.OUTPUT_TYPE),
            group="general",
            licence="not stated by the task file",
            source=f"lm-evaluation-harness {self.version}, task {name} of {self.plan.path}",
            file_sha256=self.plan.sha256,
            rule=f"as lm-evaluation-harness {self.version} chooses and normalises, {shots} examples before the question; acc takes the "
            "answer of the highest log-likelihood, acc_norm that of the highest one per character",
            metrics={metric: math.fsum(item.metrics[metric] for item in items) / len(items) for metric in metrics},
            joined_boundaries=num_joined,
            items=items,
        )

    def _metrics_of(self, name: str, task: Any) -> set[str]:
        """Return the metrics that are means over items and better when higher; a gate can pair no other."""
        from lm_eval.api.metrics import mean  # noqa: PLC0415

        better, aggregated = task.higher_is_better(), task.aggregation()
        kept = {metric for metric in better if better[metric] and aggregated.get(metric) is mean}
        if left_out := sorted(set(better) - kept):
            logger.warning("%s: %s left out, for it is no mean over items or better when lower.", name, ", ".join(left_out))
        return kept


def items_of(samples: Sequence[Mapping[str, Any]], *, wanted: set[str]) -> tuple[ItemScore, ...]:
    """Return the items of the harness's samples, in their order; a metric of a filter other than the default bears the filter's name.

    An item's id is its place and a digest of its content, so that other items are never taken for its pair.
    """
    metrics: dict[str, dict[str, float]] = {}
    for sample in samples:
        figures = metrics.setdefault(f"{sample['doc_id']}-{sample['doc_hash'][:12]}", {})
        for metric in sample["metrics"]:
            value = sample[metric]
            if metric in wanted and isinstance(value, int | float):
                figures[metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"] = float(value)
    return tuple(ItemScore(item_id, None, figures) for item_id, figures in metrics.items())


def _manager(folder: Path, *, runs_code: bool) -> tuple[Any, str]:
    """Import the harness without a network and return its manager of this folder's tasks alone, and its version."""
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(variable, "1")
    # each rank's own, gone with it: ranks never wait for each other's locks, and no earlier file of the same name is served
    kept = tempfile.mkdtemp(prefix="harness-")
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    os.environ["HF_DATASETS_CACHE"] = kept
    try:
        import lm_eval  # noqa: PLC0415
        from lm_eval import utils  # noqa: PLC0415
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "lm-evaluation-harness is not installed.",
            where="eval.harness",
            value=str(error),
            next_step="pip install 'megatron-cpt[eval]'",
        ) from None
    if not runs_code:
        utils.env = _sandboxed(utils.env)
    return TaskManager(include_path=str(folder), include_defaults=False), str(lm_eval.__version__)


def _sandboxed(environment: Any) -> Any:
    """Return jinja's sandbox with an environment's settings: a template then reaches no more than the item's own fields."""
    from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415

    sandbox = SandboxedEnvironment(
        loader=environment.loader, undefined=environment.undefined, keep_trailing_newline=environment.keep_trailing_newline
    )
    sandbox.filters.update(environment.filters)
    return sandbox
