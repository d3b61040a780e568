"""Scores subjects on all ranks of the plan's layout; the first rank writes the report."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.eval.alike import warn_of_equal_scores
from megatron_cpt.eval.report import SCHEMA_VERSION, EvalReport
from megatron_cpt.eval.subjects import Subject, find_subject, hf_subject, train_checkpoint
from megatron_cpt.launch_ranks import metered
from megatron_cpt.plan.run_plan import HarnessPlan, RunPlan
from megatron_cpt.record.store import read_json
from megatron_cpt.record.typed import to_plain

logger = logging.getLogger(__name__)


def run(
    plan_path: Path,
    *,
    subjects: Sequence[str],
    checkpoint: Path | None,
    out: Path,
    hf_folder: Path | None = None,
    harness: HarnessPlan | None = None,
) -> None:
    """Write `out`, an `eval.json` of the named subjects, of the checkpoint and of the Hugging Face folder when they are given.

    Args:
        harness: tasks of lm-evaluation-harness in the place of the plan's.

    Raises:
        ConfigError: an unknown subject, one given twice, windows longer than the model's positions, another number of ranks.
        CheckpointError, DataError: a subject's or a text's files are missing or damaged.
    """
    started = time.time()
    _configure_log()
    plan, run_dir = RunPlan.load(plan_path), plan_path.resolve().parent.parent
    if harness is not None:
        plan = replace(plan, eval=replace(plan.eval, harness=harness))
    if plan.eval.window_tokens > plan.shape.max_position:
        raise ConfigError(
            "A window is longer than the model's positions.",
            where="eval.window_tokens",
            value=plan.eval.window_tokens,
            rule=f"at most {plan.shape.max_position}",
        )
    found = [find_subject(name, plan, run_dir) for name in subjects]
    if checkpoint is not None:
        found.append(train_checkpoint(checkpoint.name, checkpoint, plan, run_dir))
    if hf_folder is not None:
        found.append(hf_subject(hf_folder.resolve().name, hf_folder, plan, run_dir))
    names = [subject.name for subject in found]
    if len(set(names)) < len(names):
        raise ConfigError("Two subjects have one name.", where="subjects", value=", ".join(names), next_step="Rename a folder.")
    backend = choose(plan.backend)
    # megatron and torch load only now: the CPU backend must be in place before
    from megatron_cpt.eval.all_items import AllItems, score_or_take  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks  # noqa: PLC0415

    items = AllItems.read(plan, run_dir)
    with metered(run_dir, backend=plan.backend), ranks(plan.layout, backend=backend, seed=plan.seed):
        scores = {}
        for subject in found:
            load = partial(load_subject, subject, plan, backend=backend)
            scores[subject.name] = score_or_take(subject, load, items, plan, run_dir, device=backend.device)
    if _is_first_rank():
        report = EvalReport(SCHEMA_VERSION, scores, time.time() - started)
        report.save(out)
        logger.info("Wrote %s.", out)
        warn_of_equal_scores({**_subjects_of(run_dir / "baseline" / "eval.json"), **to_plain(report)["subjects"]})


def _subjects_of(path: Path) -> dict[str, Any]:
    """Return the subjects of a report that may not be there yet."""
    return dict(read_json(path)["subjects"]) if path.is_file() else {}


def load_subject(subject: Subject, plan: RunPlan, *, backend: Any) -> list[Any]:
    """Return this rank's chunks with the subject's weights. Collective."""
    import torch  # noqa: PLC0415
    from megatron.core.transformer.module import Float16Module  # noqa: PLC0415

    from megatron_cpt.model.build import build_chunks  # noqa: PLC0415
    from megatron_cpt.model.convert import load_hf_into  # noqa: PLC0415
    from megatron_cpt.model.dist_checkpoint import load_model  # noqa: PLC0415
    from megatron_cpt.model.hf_folder import HfFolder  # noqa: PLC0415
    from megatron_cpt.model.names import row_names  # noqa: PLC0415

    vocab = subject.vocab
    chunks = build_chunks(subject.shape, vocab, plan.layout, backend=backend, initialise_weights=False)
    if subject.hf_folder is not None:
        # rows that pad the vocabulary to the tensor-parallel size; the softmax never sees them
        padding = torch.zeros(vocab.num_padded_rows - vocab.num_ids, subject.shape.hidden_size)
        rows = dict.fromkeys(row_names(subject.shape), padding) if len(padding) else None
        load_hf_into(chunks, HfFolder.open(subject.hf_folder), subject.shape, vocab, rows)
    else:
        assert subject.core_folder is not None
        load_model(subject.core_folder, chunks)
    return [Float16Module(chunk.config, chunk) for chunk in chunks] if plan.layout.dtype == "bf16" else chunks


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _configure_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("megatron_cpt")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO if _is_first_rank() else logging.ERROR)
    if os.environ.get("MEGATRON_CPT_DEBUG") != "1":  # torch and megatron-core warn about each other on every rank
        warnings.filterwarnings("ignore", category=FutureWarning)
