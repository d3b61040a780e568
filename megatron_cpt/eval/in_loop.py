"""Scores the model that is being trained, between two of its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_cpt.eval.subjects import extended_tokenizer
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.typed import to_plain


def scores_of(plan: RunPlan, run_dir: Path, chunks: list[Any]) -> dict[str, dict[str, Any]]:
    """Return the chunks' scores by text name, in the form of `eval.json`, and by task name where the plan scores tasks in the loop.

    Of a text whose source has a validation side that side is scored, and the test side is left to the gate.

    Collective; weights and training mode are left alone.
    """
    from megatron_cpt.backend import choose  # noqa: PLC0415
    from megatron_cpt.eval.bits_per_byte import (  # noqa: PLC0415  -- megatron loads after the backend is in place
        read_texts,
        read_watched,
        score_texts,
    )
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
    watched = read_watched(plan.eval, run_dir)
    others = replace(plan.eval, texts=tuple(text for text in plan.eval.texts if text.name not in watched))
    texts = score_texts(chunks, {**read_texts(others, run_dir), **watched}, **with_what)
    wanted = read_tasks(plan.eval, run_dir) if plan.eval.tasks_in_loop else []
    tasks = score_tasks(chunks, wanted, seed=plan.seed, **with_what)
    return {name: to_plain(score) for name, score in {**texts, **tasks}.items()}
