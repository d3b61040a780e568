"""Scores subjects on all ranks of the plan's layout; the first rank writes the report."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.eval.report import SCHEMA_VERSION, EvalReport, SubjectScore
from megatron_cpt.eval.subjects import Subject, find_subject, train_checkpoint
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.tokenizer_file import load_tokenizer

logger = logging.getLogger(__name__)


def run(plan_path: Path, *, subjects: Sequence[str], checkpoint: Path | None, out: Path) -> None:
    """Write `out`, an `eval.json` of the named subjects and of the checkpoint when one is given.

    Raises:
        ConfigError: an unknown subject, windows longer than the model's positions, another number of ranks.
        CheckpointError, DataError: a subject's or a text's files are missing or damaged.
    """
    started = time.time()
    _configure_log()
    plan, run_dir = RunPlan.load(plan_path), plan_path.resolve().parent.parent
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
    backend = choose(plan.backend)
    # megatron and torch load only now: the CPU backend must be in place before
    from megatron_cpt.eval.bits_per_byte import read_texts  # noqa: PLC0415
    from megatron_cpt.eval.tasks import read_tasks  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks  # noqa: PLC0415

    texts, tasks = read_texts(plan.eval, run_dir), read_tasks(plan.eval, run_dir)
    with ranks(plan.layout, backend=backend, seed=plan.seed):
        scores = {subject.name: score_subject(subject, texts, tasks, plan, backend=backend) for subject in found}
    if os.environ.get("RANK", "0") == "0":
        EvalReport(SCHEMA_VERSION, scores, time.time() - started).save(out)
        logger.info("Wrote %s.", out)


def score_subject(subject: Subject, texts: Any, tasks: Any, plan: RunPlan, *, backend: Any) -> SubjectScore:
    """Load one subject into the plan's layout and score it. Collective."""
    from megatron_cpt.eval.bits_per_byte import score_texts  # noqa: PLC0415
    from megatron_cpt.eval.tasks import score_tasks  # noqa: PLC0415

    logger.info("Scoring %s (%s).", subject.name, subject.checkpoint)
    chunks, tokenizer = load_subject(subject, plan, backend=backend), load_tokenizer(subject.tokenizer_path)
    with_what: Any = {
        "tokenizer": tokenizer,
        "where": subject.tokenizer_path,
        "vocab": subject.vocab,
        "plan": plan.eval,
        "device": backend.device,
        "progress": lambda line: logger.info("  %s", line),
    }
    scores = score_texts(chunks, texts, **with_what)
    task_scores = score_tasks(chunks, tasks, seed=plan.seed, **with_what)
    return SubjectScore(
        checkpoint=subject.checkpoint,
        weights_sha256=subject.weights_sha256,
        tokenizer_sha256=sha256_file(subject.tokenizer_path),
        num_ids=subject.vocab.num_ids,
        texts=scores,
        tasks=task_scores,
    )


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
    chunks = build_chunks(plan.shape, vocab, plan.layout, backend=backend, initialise_weights=False)
    if subject.hf_folder is not None:
        # rows that pad the vocabulary to the tensor-parallel size; the softmax never sees them
        padding = torch.zeros(vocab.num_padded_rows - vocab.num_ids, plan.shape.hidden_size)
        rows = dict.fromkeys(row_names(plan.shape), padding) if len(padding) else None
        load_hf_into(chunks, HfFolder.open(subject.hf_folder), plan.shape, vocab, rows)
    else:
        assert subject.core_folder is not None
        load_model(subject.core_folder, chunks)
    return [Float16Module(chunk.config, chunk) for chunk in chunks] if plan.layout.dtype == "bf16" else chunks


def _configure_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("megatron_cpt")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    if os.environ.get("MEGATRON_CPT_DEBUG") != "1":  # torch and megatron-core warn about each other on every rank
        warnings.filterwarnings("ignore", category=FutureWarning)
