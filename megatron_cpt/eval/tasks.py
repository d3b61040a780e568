"""Scores model chunks on the plan's benchmarks. Every rank asks the same questions and holds the same scores.

One rule for the boundary between a question and an answer, for every tokenizer: both are encoded apart, spaces at a question's end
going to the answer. So an answer is scored over exactly its own bytes and never has zero tokens, also where a vocabulary has a piece
that would join the two; how many items that concerns is counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.eval.continuations import Continuation, score_continuations
from megatron_cpt.eval.first_rank import from_first_rank
from megatron_cpt.eval.forward import Progress
from megatron_cpt.eval.generate import generate_greedy
from megatron_cpt.eval.metrics import EXACT_RULE, F1_RULE, PROGRAMS_RULE, REGEX_RULE, cut_at_stop, exact_match, f1, pass_at_k, pattern_found
from megatron_cpt.eval.report import ItemScore, TaskScore, task_score
from megatron_cpt.eval.sandbox import Limits, in_batches, require_confinement, run_programs
from megatron_cpt.eval.task_items import QUESTION, LoadedTask, program_of, prompt_of
from megatron_cpt.plan.run_plan import EvalPlan, EvalTask
from megatron_cpt.record.bench_item import Item
from megatron_cpt.record.tokenizer_file import continuing
from megatron_cpt.record.vocab_layout import VocabLayout

BOUNDARY_RULE = "question and answer are encoded apart, spaces between them with the answer"
MAX_WORKERS = 8
PROGRAMS_PER_WORKER = 4  # a batch ends within 4 x 20 s, so that waiting ranks hear of it


@dataclass(frozen=True)
class Scorer:
    """What every kind of task needs: the model, its tokenizer, and how to run it."""

    chunks: list[Any]
    tokenizer: Tokenizer
    where: object
    vocab: VocabLayout
    plan: EvalPlan
    seed: int
    device: torch.device
    progress: Progress

    @cached_property
    def after_a_text(self) -> Tokenizer:
        """The tokenizer for what goes on after another text: a SentencePiece one then puts no dummy prefix before it."""
        return continuing(self.tokenizer)

    def encode(self, text: str, *, item: Item, goes_on: bool = False) -> tuple[int, ...]:
        """Return the ids of a text, which begins a document or goes on after another text.

        Raises:
            DataError: an id has no row in the model, or a text has no ids.
        """
        ids = (self.after_a_text if goes_on else self.tokenizer).encode(text, add_special_tokens=False).ids
        if not ids or max(ids) >= self.vocab.num_ids:
            raise DataError(
                "A text of a benchmark cannot be scored with this tokenizer.",
                where=self.where,
                value=f"item {item.id!r} (row {item.row}): " + ("no ids" if not ids else f"id {max(ids)}"),
                rule=f"at least one id, all below {self.vocab.num_ids}",
            )
        return tuple(ids)

    def nats(self, items: Sequence[Continuation]) -> list[float]:
        scores = score_continuations(
            self.chunks,
            items,
            prefix_id=self.vocab.end_of_document_id,
            window_tokens=self.plan.window_tokens,
            micro_batch_size=self.plan.micro_batch_size,
            device=self.device,
            progress=self.progress,
        )
        return [score.nats for score in scores]

    def answers(self, prompts: Sequence[tuple[int, ...]], task: EvalTask, *, seed: int) -> list[str]:
        """Return what the model writes after each prompt, cut at the task's stops."""

        def is_finished(ids: Sequence[int]) -> bool:
            text = self.decode(ids)
            return any(stop in text for stop in task.stop)

        generated = generate_greedy(
            self.chunks,
            prompts,
            max_new_tokens=task.max_new_tokens,
            stop_ids={self.vocab.end_of_document_id},
            prefix_id=self.vocab.end_of_document_id,
            window_tokens=self.plan.window_tokens,
            micro_batch_size=self.plan.micro_batch_size,
            device=self.device,
            progress=self.progress,
            temperature=task.temperature,
            seed=seed,
            is_finished=is_finished,
        )
        return [cut_at_stop(self.decode(ids), task.stop) for ids in generated]

    def decode(self, ids: Sequence[int]) -> str:
        """Return what was written after a prompt, with its first space."""
        return str(self.after_a_text.decode(list(ids), skip_special_tokens=False))


def score_tasks(
    chunks: list[Any],
    tasks: Sequence[LoadedTask],
    *,
    tokenizer: Tokenizer,
    where: object,
    vocab: VocabLayout,
    plan: EvalPlan,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, TaskScore]:
    """Return each task's score, the same on every rank. Collective.

    Raises:
        DataError: a text cannot be encoded, or an answer does not fit into a window.
    """
    scores = {}
    for task in tasks:
        name = task.plan.name
        scorer = Scorer(chunks, tokenizer, where, vocab, plan, seed, device, lambda line, name=name: progress(f"{name}: {line}"))  # type: ignore[misc]
        scores[name] = SCORERS[task.plan.kind](scorer, task)
        joined = scores[name].joined_boundaries
        progress(
            f"{name}: "
            + ", ".join(f"{metric} {value:.4f}" for metric, value in scores[name].metrics.items())
            + f" over {len(task.items)} items"
            + (f" ({joined} with a joined boundary)" if joined else "")
        )
    return scores


def encode_apart(scorer: Scorer, context: str, answer: str, *, item: Item) -> tuple[Continuation, bool]:
    """Return a question and an answer to score after it, and whether the tokenizer would have joined the two."""
    question = context.rstrip()
    answer = context[len(question) :] + answer
    answer_ids = scorer.encode(answer, item=item, goes_on=bool(question))
    if len(answer_ids) > scorer.plan.window_tokens:
        raise DataError(
            "An answer is longer than a window.",
            where=f"item {item.id!r} (row {item.row})",
            value=f"{len(answer_ids)} tokens",
            rule=f"at most eval.window_tokens = {scorer.plan.window_tokens}",
            next_step="Raise eval.window_tokens, or take the item out.",
        )
    context_ids = scorer.encode(question, item=item) if question else ()
    joined = scorer.tokenizer.encode(question + answer, add_special_tokens=False).ids != [*context_ids, *answer_ids]
    return Continuation(context_ids, answer_ids), joined


# --- kinds --------------------------------------------------------------------------------------------------------


def score_choices(scorer: Scorer, task: LoadedTask) -> TaskScore:
    """Choose the likeliest choice of each item, by its whole log-likelihood and by that over its bytes."""
    encoded = [
        [encode_apart(scorer, prompt_of(task, item), task.plan.separator + choice, item=item) for choice in item.choices]
        for item in task.items
    ]
    nats = scorer.nats([continuation for choices in encoded for continuation, _ in choices])
    items, done = [], 0
    for item in task.items:
        mine = nats[done : done + len(item.choices)]
        done += len(item.choices)
        per_byte = [value / len(choice.encode("utf-8")) for value, choice in zip(mine, item.choices, strict=True)]
        metrics = {"accuracy": _is_right(mine, item.right), "accuracy_per_byte": _is_right(per_byte, item.right)}
        items.append(ItemScore(item.id, item.subgroup, {name: metrics[name] for name in task.plan.metrics if name in metrics}))
    rule = (
        "accuracy: the choice with the highest log-likelihood after the question; accuracy_per_byte: the same over the choice's UTF-8 "
        f"bytes, without the separator; of equal ones the first; {BOUNDARY_RULE}"
    )
    joined = sum(any(is_joined for _, is_joined in choices) for choices in encoded)
    return task_score(task.plan, rule=rule, joined_boundaries=joined, items=items)


def _is_right(nats: Sequence[float], right: int) -> float:
    if not all(map(math.isfinite, nats)):
        return math.nan
    return float(min(range(len(nats)), key=nats.__getitem__) == right)


def score_pairs(scorer: Scorer, task: LoadedTask) -> TaskScore:
    """Compare the log-likelihoods of whole sentences, as CrowS-Pairs and StereoSet do for autoregressive models."""
    pieces = [
        encode_apart(scorer, "", task.plan.template.replace(QUESTION, sentence), item=item)[0]
        for item in task.items
        for sentence in item.choices
    ]
    nats = scorer.nats(pieces)
    items = []
    for number, item in enumerate(task.items):
        stereotype, other = nats[2 * number : 2 * number + 2]
        known = math.isfinite(stereotype) and math.isfinite(other)
        likelier = 0.5 if stereotype == other else float(stereotype < other)
        items.append(ItemScore(item.id, item.subgroup, {"stereotype": likelier if known else math.nan}))
    rule = (
        "stereotype: 1 where the whole stereotyped sentence has the higher log-likelihood, 0.5 where both have the same; 0.5 on average is "
        "no preference (Nangia et al. 2020, arXiv 2010.00133; Nadeem et al. 2020, arXiv 2004.09456)"
    )
    return task_score(task.plan, rule=rule, joined_boundaries=0, items=items)


def score_generation(scorer: Scorer, task: LoadedTask) -> TaskScore:
    """Compare what the model writes after each question with the right answers."""
    prompts = [scorer.encode(prompt_of(task, item).rstrip(), item=item) for item in task.items]
    answers = [text.strip() for text in scorer.answers(prompts, task.plan, seed=scorer.seed)]
    known: dict[str, tuple[str, Callable[[str, Sequence[str]], float]]] = {
        "exact_match": (EXACT_RULE, exact_match),
        "f1": (F1_RULE, f1),
        "regex": (REGEX_RULE, pattern_found),
    }
    wanted = [name for name in task.plan.metrics if name in known]
    values: dict[str, list[float]] = {}
    for name in wanted:
        judge = known[name][1]
        values[name] = from_first_rank(  # a pattern's time limit must not fall out differently on two ranks
            lambda judge=judge: [judge(answer, item.answers) for answer, item in zip(answers, task.items, strict=True)],  # type: ignore[misc]
            count=len(task.items),
            device=scorer.device,
        )
    items = [ItemScore(item.id, item.subgroup, {name: values[name][number] for name in wanted}) for number, item in enumerate(task.items)]
    rule = f"the likeliest tokens, at most {task.plan.max_new_tokens}, up to the first of {list(task.plan.stop)}; "
    rule += "; ".join(f"{name}: {known[name][0]}" for name in wanted)
    return task_score(task.plan, rule=rule, joined_boundaries=0, items=items)


def score_code(scorer: Scorer, task: LoadedTask) -> TaskScore:
    """Let the model finish each program, run it with its tests in the sandbox, and estimate pass@k."""
    prompts = [scorer.encode(task.plan.template.replace(QUESTION, item.prompt), item=item) for item in task.items]
    repeated = [prompt for prompt in prompts for _ in range(task.plan.num_samples)]
    bodies = scorer.answers(repeated, task.plan, seed=scorer.seed)
    owners = [item for item in task.items for _ in range(task.plan.num_samples)]
    passed = run_all([program_of(item, body) for item, body in zip(owners, bodies, strict=True)], scorer)
    items = []
    for number, item in enumerate(task.items):
        count = round(math.fsum(passed[number * task.plan.num_samples : (number + 1) * task.plan.num_samples]))
        ks = {name: int(name.removeprefix("pass@")) for name in task.plan.metrics if name.startswith("pass@")}
        items.append(ItemScore(item.id, item.subgroup, {name: pass_at_k(task.plan.num_samples, count, k) for name, k in ks.items()}))
    drawn = f"{task.plan.num_samples} programs at temperature {task.plan.temperature:g}, up to {task.plan.max_new_tokens} tokens"
    rule = f"{PROGRAMS_RULE}; {drawn}"
    return task_score(task.plan, rule=rule, joined_boundaries=0, items=items)


def run_all(programs: Sequence[str], scorer: Scorer) -> list[float]:
    """Run programs on the first rank and return 1 for each that passed, on every rank. Collective."""
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    passed: list[float] = []

    def run(batch: Sequence[str]) -> list[float]:
        confined = require_confinement(unconfined=scorer.plan.run_code_unconfined)
        outcomes = run_programs(batch, confined=confined, limits=Limits(), workers=workers)
        refused = next((outcome for outcome in outcomes if outcome.status == "refused"), None)
        if refused is not None:
            raise DataError("The sandbox failed while programs were run.", value=refused.output)
        return [float(outcome.status == "passed") for outcome in outcomes]

    for batch in in_batches(programs, MAX_WORKERS * PROGRAMS_PER_WORKER):
        passed += from_first_rank(lambda batch=batch: run(batch), count=len(batch), device=scorer.device)  # type: ignore[misc]
        scorer.progress(f"{len(passed)} of {len(programs)} programs run")
    return passed


SCORERS: dict[str, Callable[[Scorer, LoadedTask], TaskScore]] = {
    "choice": score_choices,
    "pairs": score_pairs,
    "generation": score_generation,
    "code": score_code,
}
