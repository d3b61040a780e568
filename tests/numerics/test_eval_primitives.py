"""Continuations and generation by Megatron against transformers, alone and on ranks. Promises share launches: those are the cost."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from megatron_cpt.backend import choose
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from tests.integration.launch_ranks import launch_ranks
from tests.numerics.tiny_llama import layout_of_ids, load_reference, save_tiny_llama

BACKEND = choose("cpu")

from megatron_cpt.errors import ConfigError, DataError  # noqa: E402
from megatron_cpt.eval.continuations import Continuation, ContinuationScore, score_continuations  # noqa: E402
from megatron_cpt.eval.generate import generate_greedy  # noqa: E402
from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import load_hf_into  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder  # noqa: E402
from megatron_cpt.model.names import row_names  # noqa: E402
from megatron_cpt.model.parallel import ranks  # noqa: E402

NUM_IDS = 100
PREFIX = 0
WINDOW = 80
NEW_TOKENS = 12
SEED = 3
NUM_DRAWS = 2000


def layout(**sizes: Any) -> Layout:
    given = {
        "tensor": 1, "pipeline": 1, "data": 1, "micro_batch_size": 1, "global_batch_size": 8, "sequence_length": 64,
        "sequence_parallel": False, "distributed_optimizer": True, "dtype": "fp32", "num_nodes": 1, "threads_per_rank": 1,
    }  # fmt: skip
    return Layout(**{**given, **sizes})


@dataclass(frozen=True)
class Question:
    items: tuple[Continuation, ...]
    prompts: tuple[tuple[int, ...], ...]
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    by_micro_batch: dict[int, list[ContinuationScore]]
    without_prefix: list[ContinuationScore]
    generated: list[list[int]]
    sampled: list[list[int]]
    said: list[str]


def answer(folder: Path, this: Layout, question: Question) -> Answer:
    """Score and generate on this rank's part of the model. Padding rows of 3.0 would win many a place, were they not left out."""
    shape = ModelShape.from_hf_folder(folder)
    vocab = layout_of_ids(shape, multiple=256)  # with two tensor-parallel ranks the second one holds padding only
    said: list[str] = []
    common: dict[str, Any] = {"window_tokens": WINDOW, "device": BACKEND.device, "progress": said.append}
    with ranks(this, backend=BACKEND, seed=11):
        chunks = build_chunks(shape, vocab, this, backend=BACKEND)
        rows = {name: torch.full((256 - NUM_IDS, shape.hidden_size), 3.0) for name in row_names(shape)}
        load_hf_into(chunks, HfFolder.open(folder), shape, vocab, rows)
        scored = {size: score_continuations(chunks, question.items, prefix_id=PREFIX, micro_batch_size=size, **common) for size in (1, 3)}
        bare = score_continuations(chunks, question.items[1:], prefix_id=None, micro_batch_size=3, **common)
        common |= {"max_new_tokens": NEW_TOKENS, "micro_batch_size": 4, "prefix_id": PREFIX}
        generated = generate_greedy(chunks, question.prompts, stop_ids=question.stop_ids, **common)
        sampled = generate_greedy(chunks, [question.prompts[1]] * 5, stop_ids=(), temperature=0.8, seed=SEED, **common)
    return Answer(scored, bare, generated, sampled, said)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder, num_layers=4, num_ids=NUM_IDS)
    return folder


@pytest.fixture(scope="module")
def reference(base: Path) -> Any:
    return load_reference(base)


def generate_by_transformers(model: Any, ids: list[int], *, eos_token_id: int | None) -> list[int]:
    inputs = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=eos_token_id,
            pad_token_id=PREFIX,
        )  # fmt: skip
    return [int(token) for token in out[0, len(ids) :]]


@pytest.fixture(scope="module")
def question(reference: Any) -> Question:
    """Continuations of many lengths, some of them greedy by transformers, and prompts of which one meets a stop id."""
    rng = random.Random(5)

    def ids(number: int) -> tuple[int, ...]:
        return tuple(rng.randrange(NUM_IDS) for _ in range(number))

    items = [Continuation((), ids(4))]
    items += [Continuation(ids(context), ids(length)) for context, length in ((1, 1), (3, 7), (20, 2), (60, 15), (100, 9), (70, 80))]
    prompts = (ids(1), ids(7), ids(33), ids(120))
    greedy = [generate_by_transformers(reference, [PREFIX, *prompt], eos_token_id=None) for prompt in prompts[:3]]
    for prompt, new in zip(prompts, greedy, strict=False):
        items += [Continuation(prompt, tuple(new)), Continuation(prompt, (*new[:-1], (new[-1] + 1) % NUM_IDS))]
    return Question(tuple(items), prompts, (greedy[1][4],))


def score_by_transformers(model: Any, item: Continuation, *, prefix: tuple[int, ...]) -> tuple[float, bool]:
    """Return nats and whether every token is the likeliest, of one item alone: no batch, no padding."""
    ids, wanted = (*item.context_ids, *item.continuation_ids), len(item.continuation_ids)
    whole = [*prefix, *(ids[-WINDOW:] if prefix else ids[-(WINDOW + 1) :])]
    with torch.no_grad():
        logits = model(torch.tensor([whole[:-1]])).logits[0, -wanted:].double()
    labels = torch.tensor(item.continuation_ids)
    return functional.cross_entropy(logits, labels, reduction="sum").item(), bool((logits.argmax(-1) == labels).all())


@pytest.fixture(scope="module")
def one_rank(base: Path, question: Question) -> Answer:
    return launch_ranks(answer, 1, base, layout(), question)[0]


def test_continuations_score_as_transformers_says_whatever_the_batch(one_rank: Answer, question: Question, reference: Any) -> None:
    expected = [score_by_transformers(reference, item, prefix=(PREFIX,)) for item in question.items]
    for scores in one_rank.by_micro_batch.values():
        assert [score.nats for score in scores] == pytest.approx([nats for nats, _ in expected], rel=1e-5)  # fp32 losses of about 5
        assert [score.is_greedy for score in scores] == [greedy for _, greedy in expected]
    assert {True, False} == {greedy for _, greedy in expected}
    once, thrice = one_rank.by_micro_batch.values()
    assert [score.nats for score in once] == pytest.approx([score.nats for score in thrice], rel=2e-6)


def test_without_a_prefix_the_context_begins_the_sequence(one_rank: Answer, question: Question, reference: Any) -> None:
    expected = [score_by_transformers(reference, item, prefix=())[0] for item in question.items[1:]]
    assert [score.nats for score in one_rank.without_prefix] == pytest.approx(expected, rel=1e-5)


def test_greedy_ids_are_those_of_transformers_and_end_before_a_stop(one_rank: Answer, question: Question, reference: Any) -> None:
    stop = question.stop_ids[0]
    room = WINDOW - NEW_TOKENS - 1
    for prompt, new in zip(question.prompts, one_rank.generated, strict=True):
        expected = generate_by_transformers(reference, [PREFIX, *prompt[-room:]], eos_token_id=stop)
        assert new == (expected[: expected.index(stop)] if stop in expected else expected)
    assert len(one_rank.generated[1]) == 4  # it met the stop id
    assert max(map(len, one_rank.generated)) == NEW_TOKENS


def test_what_was_cut_is_told_with_counts(one_rank: Answer) -> None:
    assert f"2 of 13 contexts do not fit into a window of {WINDOW} tokens: their beginnings are left out" in one_rank.said
    assert f"1 of 4 prompts do not fit into a window of {WINDOW} tokens: their beginnings are left out" in one_rank.said


def test_draws_of_one_prompt_differ(one_rank: Answer) -> None:
    assert len({tuple(ids) for ids in one_rank.sampled}) == 5


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"tensor": 2}, id="tp2"),
        pytest.param({"tensor": 2, "sequence_parallel": True}, id="tp2-sequence-parallel", marks=pytest.mark.long),
        pytest.param({"pipeline": 2, "virtual_pipeline": 2}, id="pp2-vpp2", marks=pytest.mark.slow),
        pytest.param({"data": 2}, id="dp2", marks=pytest.mark.slow),
        pytest.param({"context": 2}, id="cp2", marks=pytest.mark.slow),
        pytest.param({"tensor": 2, "pipeline": 2}, id="tp2-pp2", marks=pytest.mark.long),
    ],
)
def test_scores_and_generated_ids_do_not_depend_on_the_layout(base: Path, one_rank: Answer, question: Question, sizes: dict) -> None:
    this = layout(**sizes)
    answers = launch_ranks(answer, this.num_ranks, base, this, question)
    for other in answers:  # each rank has them all
        for scores, again in zip(one_rank.by_micro_batch.values(), other.by_micro_batch.values(), strict=True):
            assert [score.nats for score in again] == pytest.approx([score.nats for score in scores], rel=5e-6)  # sums in another order
            assert [score.is_greedy for score in again] == [score.is_greedy for score in scores]
        assert (other.generated, other.sampled) == (one_rank.generated, one_rank.sampled)


def draw_first_tokens(folder: Path) -> list[int]:
    this, shape = layout(), ModelShape.from_hf_folder(folder)
    vocab = layout_of_ids(shape)
    with ranks(this, backend=BACKEND, seed=11):
        chunks = build_chunks(shape, vocab, this, backend=BACKEND)
        load_hf_into(chunks, HfFolder.open(folder), shape, vocab, None)
        drawn = generate_greedy(
            chunks, [(5, 9)] * NUM_DRAWS, max_new_tokens=1, stop_ids=(), prefix_id=PREFIX, window_tokens=8, micro_batch_size=250,
            device=BACKEND.device, progress=lambda _: None, temperature=2.0, seed=SEED,
        )  # fmt: skip
    return [ids[0] for ids in drawn]


def test_draws_follow_the_softmax_at_the_temperature(base: Path, reference: Any) -> None:
    drawn = launch_ranks(draw_first_tokens, 1, base)[0]
    with torch.no_grad():
        logits_V = reference(torch.tensor([[PREFIX, 5, 9]])).logits[0, -1].double()
    shares_V = torch.bincount(torch.tensor(drawn), minlength=NUM_IDS) / NUM_DRAWS

    def distance(temperature: float) -> float:
        return float((shares_V - torch.softmax(logits_V / temperature, 0)).abs().sum() / 2)

    # A sample of n from K even shares lies sqrt(K / (2 pi n)) = 0.09 from them in total variation on average, from uneven ones less.
    print(f"total variation {distance(2.0):.3f}; at temperature 1 it would be {distance(1.0):.3f}, at 4 {distance(4.0):.3f}")
    assert distance(2.0) < 0.11 < min(distance(1.0), distance(4.0))


def test_what_has_no_likelihood_is_refused_before_anything_runs() -> None:
    common: dict[str, Any] = {"window_tokens": 8, "micro_batch_size": 1, "device": BACKEND.device, "progress": print}
    with pytest.raises(DataError, match="item 1"):
        score_continuations([], [Continuation((1,), (2,)), Continuation((1,), ())], prefix_id=PREFIX, **common)
    with pytest.raises(DataError, match="longer than the window"):
        score_continuations([], [Continuation((1,), tuple(range(9)))], prefix_id=PREFIX, **common)
    with pytest.raises(DataError, match="nothing before it"):
        score_continuations([], [Continuation((), (1,))], prefix_id=None, **common)
    with pytest.raises(ConfigError, match="no room for a prompt"):
        generate_greedy([], [(1,)], max_new_tokens=8, stop_ids=(), prefix_id=PREFIX, **common)
    with pytest.raises(DataError, match="prompt 0"):
        generate_greedy([], [()], max_new_tokens=2, stop_ids=(), prefix_id=None, **common)
