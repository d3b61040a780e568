"""Scores the model that is being trained, between two of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cpt.eval.subjects import extended_tokenizer
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.typed import to_plain


def scores_of(plan: RunPlan, run_dir: Path, chunks: list[Any]) -> dict[str, dict[str, Any]]:
    """Return the chunks' scores by text name, in the form of `eval.json`, and by task name where the plan scores tasks in the loop.

    Collective; weights and training mode are left alone.
    """
    from megatron_cpt.backend import choose  # noqa: PLC0415
    from megatron_cpt.eval.bits_per_byte import read_texts, score_texts  # noqa: PLC0415  -- megatron loads after the backend is in place
    from megatron_cpt.eval.task_items import read_tasks  # noqa: PLC0415
    from megatron_cpt.eval.tasks import score_tasks  # noqa: PLC0415

    path = extended_tokenizer(plan, run_dir)
    with_what: Any = {
        "tokenizer": load_tokenizer(path),
        "where": path,
        "vocab": plan.vocab,
        "plan": plan.eval,
        "device": choose(plan.backend).device,
        "progress": lambda _: None,
    }
    texts = score_texts(chunks, read_texts(plan.eval, run_dir), **with_what)
    wanted = read_tasks(plan.eval, run_dir) if plan.eval.tasks_in_loop else []
    tasks = score_tasks(chunks, wanted, seed=plan.seed, **with_what)
    return {name: to_plain(score) for name, score in {**texts, **tasks}.items()}
