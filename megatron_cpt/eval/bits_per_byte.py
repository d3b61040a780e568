"""Bits per byte of model chunks on the plan's texts: the sum of nats over the sum of UTF-8 bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from megatron_cpt.eval.forward import Progress
from megatron_cpt.eval.report import TextScore, text_score
from megatron_cpt.eval.score import nats_by_document
from megatron_cpt.eval.texts import Document, read_text
from megatron_cpt.eval.tokenize import encode
from megatron_cpt.eval.windows import cut_windows
from megatron_cpt.plan.run_plan import EvalPlan
from megatron_cpt.record.vocab_layout import VocabLayout

Texts = Mapping[str, tuple[str, Sequence[Document]]]


def read_texts(plan: EvalPlan, run_dir: Path) -> Texts:
    """Return role and documents by text name.

    Raises:
        DataError: a text is missing, damaged or empty.
    """
    return {text.name: (text.role, read_text(text, run_dir)) for text in plan.texts}


def read_watched(plan: EvalPlan, run_dir: Path) -> Texts:
    """Return role and documents of the validation sides by text name; a text whose source has none is left out.

    Raises:
        DataError: as `read_texts`.
    """
    watched = [replace(text, path=text.watch_path) for text in plan.texts if text.watch_path]
    return read_texts(replace(plan, texts=tuple(watched)), run_dir)


def score_texts(
    chunks: list[Any],
    texts: Texts,
    *,
    tokenizer: Tokenizer,
    where: object,
    vocab: VocabLayout,
    plan: EvalPlan,
    device: torch.device,
    progress: Progress,
) -> dict[str, TextScore]:
    """Return each text's score, the same on every rank. Collective.

    Raises:
        DataError: the tokenizer gives ids that the model has no rows for.
    """
    scores = {}
    for name, (role, documents) in texts.items():
        ids = encode(tokenizer, documents, num_ids=vocab.num_ids, where=where)
        nats = nats_by_document(
            chunks,
            cut_windows(ids, prefix_id=vocab.end_of_document_id, window_tokens=plan.window_tokens, stride_tokens=plan.stride_tokens),
            num_documents=len(documents),
            window_tokens=plan.window_tokens,
            micro_batch_size=plan.micro_batch_size,
            device=device,
            progress=lambda line, name=name: progress(f"{name}: {line}"),  # type: ignore[misc]
        )
        scores[name] = text_score(role, documents, tokens=[len(document) for document in ids], nats=nats)
        progress(f"{name}: {scores[name].bits_per_byte:.4f} bits per byte over {scores[name].bytes} bytes, {scores[name].tokens} tokens")
    return scores
