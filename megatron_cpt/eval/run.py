"""Scores subjects on all ranks of the plan's layout; the first rank writes the report."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError
from megatron_cpt.eval.alike import warn_of_equal_scores
from megatron_cpt.eval.cache import CacheEntry
from megatron_cpt.eval.report import SCHEMA_VERSION, EvalReport, SubjectScore, TaskScore
from megatron_cpt.eval.subjects import Subject, find_subject, hf_subject, train_checkpoint
from megatron_cpt.plan.run_plan import HarnessPlan, RunPlan
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.store import read_json
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.typed import to_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What every subject is scored on: held-out texts, tasks of the plan's benches, and tasks of lm-evaluation-harness."""

    texts: Any
    tasks: Any
    harness: Any = None


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
    from megatron_cpt.model.parallel import ranks  # noqa: PLC0415

    content = _read_content(plan, run_dir)
    with ranks(plan.layout, backend=backend, seed=plan.seed):
        scores = {subject.name: _score_or_take(subject, content, plan, run_dir, backend=backend) for subject in found}
    if _is_first_rank():
        report = EvalReport(SCHEMA_VERSION, scores, time.time() - started)
        report.save(out)
        logger.info("Wrote %s.", out)
        warn_of_equal_scores({**_subjects_of(run_dir / "baseline" / "eval.json"), **to_plain(report)["subjects"]})


def _read_content(plan: RunPlan, run_dir: Path) -> Content:
    from megatron_cpt.eval.bits_per_byte import read_texts  # noqa: PLC0415
    from megatron_cpt.eval.task_items import read_tasks  # noqa: PLC0415

    harness = None
    if plan.eval.harness is not None:
        from megatron_cpt.eval.harness import HarnessTasks  # noqa: PLC0415  -- the harness is an extra

        harness = HarnessTasks.load(plan.eval.harness)
    return Content(read_texts(plan.eval, run_dir), read_tasks(plan.eval, run_dir), harness)


def _subjects_of(path: Path) -> dict[str, Any]:
    """Return the subjects of a report that may not be there yet."""
    return dict(read_json(path)["subjects"]) if path.is_file() else {}


def _score_or_take(subject: Subject, content: Content, plan: RunPlan, run_dir: Path, *, backend: Any) -> SubjectScore:
    """Return the subject's scores, the base's from the cache where they are kept. Collective: the first rank reads for all."""
    from torch import distributed  # noqa: PLC0415

    if not (plan.eval.cache and subject.name == "base"):
        return score_subject(subject, content, plan, backend=backend)
    entry = CacheEntry.of(subject, plan, run_dir)
    kept: list[Any] = [entry.read() if _is_first_rank() else None]
    distributed.broadcast_object_list(kept, src=0)
    if kept[0] is not None:
        logger.info("%s: scores of the same weights, items and settings are taken from %s.", subject.name, entry.path)
        taken: SubjectScore = replace(kept[0], checkpoint=subject.checkpoint)
        return taken
    score = score_subject(subject, content, plan, backend=backend)
    if _is_first_rank():
        entry.write(score)
    return score


def score_subject(subject: Subject, content: Content, plan: RunPlan, *, backend: Any) -> SubjectScore:
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
    scores = score_texts(chunks, content.texts, **with_what)
    task_scores = score_tasks(chunks, content.tasks, seed=plan.seed, **with_what)
    if content.harness is not None:
        task_scores |= _score_harness(content.harness, chunks, subject, plan, device=backend.device)
    return SubjectScore(
        checkpoint=subject.checkpoint,
        weights_sha256=subject.weights_sha256,
        tokenizer_sha256=sha256_file(subject.tokenizer_path),
        num_ids=subject.vocab.num_ids,
        prefix_id=subject.vocab.end_of_document_id,
        texts=scores,
        tasks=task_scores,
        nats_by_start=_compare_starts(subject, chunks, content.texts, tokenizer, plan, device=backend.device),
    )


def _score_harness(harness: Any, chunks: list[Any], subject: Subject, plan: RunPlan, *, device: Any) -> dict[str, TaskScore]:
    from tokenizers import Tokenizer  # noqa: PLC0415

    from megatron_cpt.eval.harness_model import RanksLM  # noqa: PLC0415

    model = RanksLM(
        chunks,
        Tokenizer.from_file(str(subject.tokenizer_path)),  # as the harness's Hugging Face backend has it, special tokens included
        end_id=subject.vocab.end_of_document_id,
        window_tokens=plan.eval.window_tokens,
        micro_batch_size=plan.eval.micro_batch_size,
        seed=plan.seed,
        torch_device=device,
        progress=lambda line: logger.info("  %s", line),
    )
    scores: dict[str, TaskScore] = harness.score(model)
    for name, score in scores.items():
        logger.info("  %s: %s", name, ", ".join(f"{metric} {value:.4f}" for metric, value in score.metrics.items()))
    return scores


def _compare_starts(subject: Subject, chunks: list[Any], texts: Any, tokenizer: Any, plan: RunPlan, *, device: Any) -> dict[str, float]:
    """Return nats per token after the separator and after other starts; only for a model that came with a declaration of its own."""
    from megatron_cpt.eval.starts import NUM_DOCUMENTS, declared_bos_id, nats_by_start, warn_of_better_start  # noqa: PLC0415

    if subject.hf_folder is None:
        return {}
    used, bos_id = "document separator", declared_bos_id(subject.hf_folder)
    starts: dict[str, int | None] = {used: subject.vocab.end_of_document_id, "nothing": None}
    if bos_id is not None and bos_id != starts[used] and 0 <= bos_id < subject.vocab.num_ids:
        starts["its declared beginning of text"] = bos_id
    each = -(-NUM_DOCUMENTS // len(texts))
    first = [document.text for _, documents in texts.values() for document in documents[:each]]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(first, add_special_tokens=False) if len(encoding.ids) > 1]
    if not ids or plan.eval.window_tokens < 2:
        return {}
    nats = nats_by_start(
        chunks,
        ids,
        starts=starts,
        window_tokens=plan.eval.window_tokens,
        micro_batch_size=plan.eval.micro_batch_size,
        device=device,
        progress=lambda _: None,
    )
    warn_of_better_start(subject.name, nats, used=used)
    return nats


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
