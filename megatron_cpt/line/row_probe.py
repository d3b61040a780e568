"""Tries rules for new rows: a few training steps with each on domain text, then bits per byte on domain text that was held back.

The steps are the train stage's own (model, optimizer, clipping, `optimizer_step`), on one rank, at a constant rate after a short
warm-up, on windows of domain text alone. It is not the run's own plan: no replay, no checkpoints, no decay.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from megatron_cpt.backend import Backend
from megatron_cpt.config.schema import RowProbeConfig
from megatron_cpt.errors import ConfigError, CptError, DataError
from megatron_cpt.eval.score import nats_by_document
from megatron_cpt.eval.windows import cut_windows
from megatron_cpt.index.sample import hold_back, sample_windows
from megatron_cpt.model.added_rows import AddedRows, make_rows, read_parts
from megatron_cpt.model.build import build_chunks
from megatron_cpt.model.convert import load_hf_into
from megatron_cpt.model.fit_rows import WINDOW_TOKENS, num_windows
from megatron_cpt.model.hf_folder import HfFolder
from megatron_cpt.model.initialise import base_model, dtype_of
from megatron_cpt.model.parallel import ranks, single_rank_layout
from megatron_cpt.plan.bare_plan import bare_plan
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.row_rules import RowPair, candidates
from megatron_cpt.plan.run_plan import EvalPlan, OptimizerPlan, RunPlan, SchedulePlan
from megatron_cpt.record.vocab_layout import VocabLayout
from megatron_cpt.train.data import Microbatch, StepBatch
from megatron_cpt.train.optimizer import wrap_and_optimize
from megatron_cpt.train.state import TrainState
from megatron_cpt.train.step import optimizer_step

WARM_UP = 0.1  # of the steps
DOCUMENT_TOKENS = 512  # scored of each document that is held back, at once: beginnings of many rather than a few whole ones


@dataclass(frozen=True)
class Text:
    """Documents as ids of the extended vocabulary, and how many bytes of UTF-8 they are."""

    documents: list[list[int]]
    num_bytes: int


@dataclass(frozen=True)
class Ground:
    """What every rule is tried on: one base, one vocabulary, the same windows in the same order, the same texts."""

    base: HfFolder
    shape: ModelShape
    vocab: VocabLayout
    parts: list[list[int]]
    plan: RunPlan
    training: list[list[int]]
    fitting: list[list[int]]
    texts: Mapping[str, Text]


def choose_rows(
    prefixes: Sequence[Path],
    *,
    base_folder: Path,
    vocab: VocabLayout,
    vocab_folder: Path,
    tokenizer: Tokenizer,
    settings: RowProbeConfig,
    optimizer: OptimizerPlan,
    rate: float,
    seed: int,
    backend: Backend,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the record of a probe; `chosen` names the pair of rules with the lowest bits per byte after the steps.

    Args:
        prefixes: indexed domain sources; their last documents are held back from the steps and scored.
        tokenizer: the extended one, to count the bytes of what is scored.
        rate: the steps' learning rate.

    Raises:
        ConfigError: a setting is not usable, or a rule is not known.
        DataError: too little domain text to hold some back.
        CptError: no rule came through its steps.
    """
    pairs = candidates(settings.rules, tied=ModelShape.from_hf_folder(base_folder).tied_embeddings)
    ground = lay_ground(
        prefixes, base_folder=base_folder, vocab=vocab, vocab_folder=vocab_folder, tokenizer=tokenizer, settings=settings,
        optimizer=optimizer, rate=rate, seed=seed, backend=backend, threads=threads,
    )  # fmt: skip
    tried: dict[str, Any] = {}
    for pair in pairs:
        tried[pair.name] = try_rows(pair, ground, seed=seed, backend=backend)
        start, end = (tried[pair.name][place]["domain"] for place in ("bits_per_byte_at_start", "bits_per_byte"))
        say(f"probe of new rows: {pair.name}: {start:.4f} -> " + (f"{end:.4f} bits per byte" if end else str(tried[pair.name]["failure"])))
    finished = {name: figures["bits_per_byte"]["domain"] for name, figures in tried.items() if figures["failure"] is None}
    if not finished:
        raise CptError("No rule for new rows came through the probe's steps.", where="tokenizer.row_probe", value="; ".join(tried))
    chosen = min(finished, key=lambda name: finished[name])
    return {
        "chosen": chosen,
        "settings": asdict(settings) | {"sequence_length": ground.plan.layout.sequence_length, "learning_rate": rate},
        "held_out_bytes": ground.texts["domain"].num_bytes,
        "rules": tried,
    }


def lay_ground(
    prefixes: Sequence[Path],
    *,
    base_folder: Path,
    vocab: VocabLayout,
    vocab_folder: Path,
    tokenizer: Tokenizer,
    settings: RowProbeConfig,
    optimizer: OptimizerPlan,
    rate: float,
    seed: int,
    backend: Backend,
    threads: int,
) -> Ground:
    """Return what a probe tries every rule on; arguments and errors as `choose_rows`."""
    check_settings(settings, rate=rate)
    shape = ModelShape.from_hf_folder(base_folder)
    held = hold_back(prefixes, num_tokens=settings.held_out_tokens, document_tokens=DOCUMENT_TOKENS)
    sequence = min(settings.sequence_length, shape.max_position)
    training = sample_windows(
        prefixes,
        num_windows=settings.steps * settings.sequences,
        window_tokens=sequence + 1,
        seed=seed,
        tokens_before=held.tokens_before,
    )
    if not held.documents or any(len(window) <= sequence for window in training):
        raise DataError(
            "There is too little domain text for a probe of new rows.",
            where="tokenizer.row_init",
            rule=f"an indexed domain source of two documents or more, and windows of {sequence + 1} tokens",
            next_step="Name a rule in tokenizer.row_init, or set a smaller tokenizer.row_probe.sequence_length.",
        )
    base = HfFolder.open(base_folder)
    num_new = vocab.num_ids - vocab.num_base_ids
    return Ground(
        base=base,
        shape=shape,
        vocab=vocab,
        parts=read_parts(vocab_folder / "new_pieces.jsonl", vocab),
        plan=plan_of(
            shape, vocab, settings, sequence=sequence, dtype=dtype_of(base), optimizer=optimizer, rate=rate, seed=seed, threads=threads,
            backend=backend.kind,
        ),
        training=training,
        fitting=sample_windows(
            prefixes, num_windows=num_windows(num_new), window_tokens=WINDOW_TOKENS, seed=seed, tokens_before=held.tokens_before
        ),
        texts={"domain": text_of(held.documents, tokenizer)},
    )  # fmt: skip


def check_settings(settings: RowProbeConfig, *, rate: float) -> None:
    for key in ("steps", "sequences", "sequence_length", "held_out_tokens"):
        value = getattr(settings, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            where = f"tokenizer.row_probe.{key}"
            raise ConfigError(f"{where} is not usable.", where=where, value=value, rule="a whole number from 1 on")
    if not (isinstance(rate, int | float) and math.isfinite(rate) and rate > 0):
        raise ConfigError("The probe's learning rate is not usable.", where="schedule.peak_lr", value=rate, rule="a number above 0")


def try_rows(pair: RowPair, ground: Ground, *, seed: int, backend: Backend) -> dict[str, Any]:
    """Return bits per byte of each text before and after the plan's steps from rows by this pair of rules, as `try_added`."""
    return try_added(rows_of(pair, ground, seed=seed, backend=backend), ground, backend=backend)


def try_added(added: AddedRows, ground: Ground, *, backend: Backend) -> dict[str, Any]:
    """Return bits per byte of each text before and after the plan's steps from these rows.

    Rows whose training diverges have a `failure` and no figures after it.
    """
    plan = ground.plan
    with ranks(plan.layout, backend=backend, seed=plan.seed):
        model = build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend)
        load_hf_into(model, ground.base, plan.shape, plan.vocab, added.by_tensor)
        chunks, optimizer = wrap_and_optimize(model, plan)
        start, end, failure = _score(chunks, ground, backend), dict.fromkeys(ground.texts), None
        state, losses = TrainState.start(plan), []
        try:
            for batch in _batches(ground, backend):
                state = state.after(optimizer_step(chunks, optimizer, batch, plan, before=state))
                assert state.last is not None
                losses.append(state.last.loss)
            end = _score(chunks, ground, backend)
        except CptError as error:
            failure = str(error)
        del model, chunks, optimizer
    gc.collect()
    return {
        "bits_per_byte_at_start": start,
        "bits_per_byte": end,
        "losses": losses,
        "failure": failure,
        "row_fit": added.fit,
    }


def rows_of(pair: RowPair, ground: Ground, *, seed: int, backend: Backend) -> AddedRows:
    """Return the rows that the init stage would make by this pair of rules."""
    with ranks(ground.plan.layout, backend=backend, seed=ground.plan.seed):
        base_chunks = base_model(ground.shape, ground.base, ground.plan.layout, backend)
        return make_rows(
            pair, base=ground.base, base_model=base_chunks[0], shape=ground.shape, vocab=ground.vocab, parts=ground.parts, seed=seed,
            domain_windows=ground.fitting, device=backend.device,
        )  # fmt: skip


def _batches(ground: Ground, backend: Backend) -> Iterator[StepBatch]:
    """Yield one batch a step, of one micro-batch for each sequence."""
    size = ground.plan.layout.global_batch_size
    for begin in range(0, len(ground.training), size):
        yield StepBatch(begin, tuple(_microbatch(window).to(backend.device) for window in ground.training[begin : begin + size]))


def _microbatch(window: list[int]) -> Microbatch:
    ids = torch.tensor([window])
    length = ids.shape[1] - 1
    return Microbatch(
        ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(1, length), torch.arange(length)[None], torch.tensor([0])
    )


def _score(chunks: list[Any], ground: Ground, backend: Backend) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    window_tokens = ground.plan.eval.window_tokens
    for name, text in ground.texts.items():
        nats = nats_by_document(
            chunks,
            cut_windows(text.documents, prefix_id=ground.vocab.end_of_document_id, window_tokens=window_tokens),
            num_documents=len(text.documents),
            window_tokens=window_tokens,
            micro_batch_size=ground.plan.eval.micro_batch_size,
            device=backend.device,
            progress=lambda _: None,
        )
        found[name] = math.fsum(nats) / math.log(2) / text.num_bytes
    return found


def text_of(documents: list[list[int]], tokenizer: Tokenizer) -> Text:
    """Return documents with the bytes of what their ids decode to; ids of a last character that a cut has split are left out."""
    whole, num_bytes = [], 0
    for ids in documents:
        length, text = len(ids), tokenizer.decode(ids, skip_special_tokens=False)
        while text.endswith("\ufffd"):
            length -= 1
            text = tokenizer.decode(ids[:length], skip_special_tokens=False)
        if length:
            whole.append(ids[:length])
            num_bytes += len(text.encode("utf-8"))
    return Text(whole, num_bytes)


def plan_of(
    shape: ModelShape, vocab: VocabLayout, settings: RowProbeConfig, *, sequence: int, dtype: Any, optimizer: OptimizerPlan, rate: float,
    seed: int, threads: int, backend: Any,
) -> RunPlan:  # fmt: skip
    """Return the plan that the train stage's step reads: one rank, one source, a constant rate after a warm-up."""
    layout = replace(single_rank_layout(sequence, dtype=dtype, threads=threads), global_batch_size=settings.sequences)
    num_samples = settings.steps * settings.sequences
    return bare_plan(
        shape, vocab, layout, name="row-probe", seed=seed, backend=backend, num_steps=settings.steps, optimizer=optimizer,
        schedule=SchedulePlan("constant", rate, rate, max(1, round(WARM_UP * num_samples)), num_samples),
        eval_plan=EvalPlan((), min(DOCUMENT_TOKENS, shape.max_position), 4),
    )  # fmt: skip
