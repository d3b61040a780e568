"""The plan's benchmarks as items, and the texts that a model is shown for them. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import DataError
from megatron_cpt.eval.sandbox import require_confinement
from megatron_cpt.plan.run_plan import EvalPlan, EvalTask
from megatron_cpt.record.bench import read_bench, split_examples
from megatron_cpt.record.bench_item import Item

QUESTION = "{question}"
BETWEEN_EXAMPLES = "\n\n"


@dataclass(frozen=True)
class LoadedTask:
    """A task with its items: `examples` are shown, `items` are scored."""

    plan: EvalTask
    examples: tuple[Item, ...]
    items: tuple[Item, ...]


def read_tasks(plan: EvalPlan, run_dir: Path) -> list[LoadedTask]:
    """Return the plan's tasks with their items.

    Raises:
        DataError: a file is missing, or is not the one that the plan was made with.
        ConfigError: a task runs code, and programs cannot be shut in here.
    """
    tasks = []
    for task in plan.tasks:
        bench = read_bench(run_dir / task.path)
        if bench.sha256 != task.sha256:
            raise DataError(
                "A benchmark file changed since the plan was made.",
                where=run_dir / task.path,
                value=bench.sha256,
                rule=f"sha256 {task.sha256}",
                next_step="Put the file back, or plan again under a new run_name.",
            )
        examples, items = split_examples(bench, few_shot=task.few_shot, max_items=task.max_items)
        tasks.append(LoadedTask(task, tuple(examples), tuple(items)))
    if any(task.kind == "code" for task in plan.tasks) and os.environ.get("RANK", "0") == "0":
        require_confinement(unconfined=plan.run_code_unconfined)
    return tasks


def prompt_of(task: LoadedTask, item: Item) -> str:
    """Return the examples with their answers, then the item's question."""
    shown = [
        task.plan.template.replace(QUESTION, example.prompt) + task.plan.separator + right_answer(example) for example in task.examples
    ]
    return BETWEEN_EXAMPLES.join([*shown, task.plan.template.replace(QUESTION, item.prompt)])


def right_answer(item: Item) -> str:
    return item.choices[item.right] if item.choices else item.answers[0]


def program_of(item: Item, body: str) -> str:
    """Return the whole program: what was asked, what was written, the tests, and their call where they define `check`."""
    call = f"\ncheck({item.entry_point})" if item.entry_point else ""
    return f"{item.prompt}{body}\n\n{item.tests}{call}\n"
