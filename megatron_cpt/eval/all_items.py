"""Everything that a subject is scored on: the plan's texts, its tasks and those of lm-evaluation-harness."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import distributed

from megatron_cpt.eval.bits_per_byte import Texts, read_texts, read_watched, score_texts
from megatron_cpt.eval.cache import CacheEntry
from megatron_cpt.eval.report import SubjectScore, TaskScore
from megatron_cpt.eval.starts import NUM_DOCUMENTS, declared_bos_id, nats_by_start, warn_of_better_start
from megatron_cpt.eval.subjects import Subject
from megatron_cpt.eval.task_items import LoadedTask, read_tasks
from megatron_cpt.eval.tasks import score_tasks
from megatron_cpt.gate.pairs import BASE
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.tokenizer_file import load_tokenizer

SEPARATOR = "document separator"
EXTENDED = "init"  # the base with its new rows: runs of a sweep often share it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AllItems:
    """What was read before any rank started; `harness` is None where the plan names none of its tasks.

    `watched` are the validation sides, which are scored for the frozen base alone.
    """

    texts: Texts
    watched: Texts
    tasks: Sequence[LoadedTask]
    harness: Any

    @classmethod
    def read(cls, plan: RunPlan, run_dir: Path) -> AllItems:
        """Read and check every file.

        Raises:
            ConfigError, DataError: a text or a task is missing, damaged, or not the one that the plan was made with.
        """
        harness = None
        if plan.eval.harness is not None:
            from megatron_cpt.eval.harness import HarnessTasks  # noqa: PLC0415  -- the harness is an extra

            harness = HarnessTasks.load(plan.eval.harness)
        return cls(read_texts(plan.eval, run_dir), read_watched(plan.eval, run_dir), read_tasks(plan.eval, run_dir), harness)


def score_or_take(
    subject: Subject, load: Callable[[], list[Any]], items: AllItems, plan: RunPlan, run_dir: Path, *, device: torch.device
) -> SubjectScore:
    """Return the subject's scores, those of before training from the cache where they are kept. Collective: the first rank reads for all.

    Args:
        load: returns this rank's chunks with the subject's weights.
    """
    if not (plan.eval.cache and subject.name in (BASE, EXTENDED)):
        return score_subject(subject, load(), items, plan, device=device)
    entry = CacheEntry.of(subject, plan, run_dir)
    kept: list[Any] = [entry.read() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(kept, src=0)
    if kept[0] is not None:
        logger.info("%s: scores of the same weights, items and settings are taken from %s.", subject.name, entry.path)
        taken: SubjectScore = replace(kept[0], checkpoint=subject.checkpoint)
        return taken
    score = score_subject(subject, load(), items, plan, device=device)
    if distributed.get_rank() == 0:
        entry.write(score)
    return score


def score_subject(subject: Subject, chunks: list[Any], items: AllItems, plan: RunPlan, *, device: torch.device) -> SubjectScore:
    """Score one loaded subject on everything. Collective."""
    logger.info("Scoring %s (%s).", subject.name, subject.checkpoint)
    tokenizer = load_tokenizer(subject.tokenizer_path)
    with_what: Any = {
        "tokenizer": tokenizer,
        "where": subject.tokenizer_path,
        "vocab": subject.vocab,
        "plan": plan.eval,
        "device": device,
        "progress": _say,
    }
    texts = score_texts(chunks, items.texts, **with_what)
    tasks = score_tasks(chunks, items.tasks, seed=plan.seed, **with_what)
    if items.harness is not None:
        tasks = {**tasks, **_score_harness(items.harness, chunks, subject, plan, device=device)}
    return SubjectScore(
        checkpoint=subject.checkpoint,
        weights_sha256=subject.weights_sha256,
        tokenizer_sha256=sha256_file(subject.tokenizer_path),
        num_ids=subject.vocab.num_ids,
        prefix_id=subject.vocab.end_of_document_id,
        texts=texts,
        tasks=tasks,
        watched=score_texts(chunks, items.watched, **with_what) if subject.name == BASE else {},
        nats_by_start=_compare_starts(subject, chunks, items.texts, tokenizer, plan, device=device),
    )


def _score_harness(harness: Any, chunks: list[Any], subject: Subject, plan: RunPlan, *, device: torch.device) -> Mapping[str, TaskScore]:
    from megatron_cpt.eval.harness_model import RanksLM  # noqa: PLC0415

    model = RanksLM(
        chunks,
        Tokenizer.from_file(str(subject.tokenizer_path)),  # as the harness's Hugging Face backend has it, special tokens included
        end_id=subject.vocab.end_of_document_id,
        window_tokens=plan.eval.window_tokens,
        micro_batch_size=plan.eval.micro_batch_size,
        seed=plan.seed,
        torch_device=device,
        progress=_say,
    )
    scores: Mapping[str, TaskScore] = harness.score(model)
    for name, score in scores.items():
        _say(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in score.metrics.items()))
    return scores


def _compare_starts(
    subject: Subject, chunks: list[Any], texts: Texts, tokenizer: Tokenizer, plan: RunPlan, *, device: torch.device
) -> dict[str, float]:
    """Return nats per token after the separator and after other starts; only for a model that came with a declaration of its own."""
    if subject.hf_folder is None:
        return {}
    starts: dict[str, int | None] = {SEPARATOR: subject.vocab.end_of_document_id, "nothing": None}
    bos_id = declared_bos_id(subject.hf_folder)
    if bos_id is not None and bos_id != starts[SEPARATOR] and 0 <= bos_id < subject.vocab.num_ids:
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
    warn_of_better_start(subject.name, nats, used=SEPARATOR)
    return nats


def _say(line: str) -> None:
    logger.info("  %s", line)
