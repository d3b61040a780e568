"""Bits per byte by Megatron against transformers, and the same whatever the batch size and the layout of ranks."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import END, TEXTS, make_layout, make_plan, make_run
from tokenizers import Tokenizer

from megatron_cpt.plan.run_plan import EvalPlan, RunPlan

WINDOW = 48


def evaluate(run_dir: Path, *, micro_batch_size: int = 2, subjects: tuple[str, ...] = ("base", "init"), **layout: Any) -> dict:
    wanted = make_layout(**layout)
    plan_path = make_plan(run_dir, wanted, eval=EvalPlan(TEXTS, WINDOW, micro_batch_size))
    out = run_dir / "eval" / "eval.json"
    launch_ranks(_evaluate_rank, wanted.num_ranks, str(plan_path), subjects, str(out))
    return json.loads(out.read_text(encoding="utf-8"))


def _evaluate_rank(plan_path: str, subjects: tuple[str, ...], out: str) -> None:
    from megatron_cpt.eval.run import run

    run(Path(plan_path), subjects=subjects, checkpoint=None, out=Path(out))


def bits_per_byte_by_transformers(model_folder: Path, path: Path) -> tuple[float, int, int]:
    """Return bits per byte, bytes and tokens of a text; each window alone, so that there is no batch and no padding."""
    import torch
    from torch.nn import functional
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    nats, num_bytes, num_tokens = 0.0, 0, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        num_bytes, num_tokens = num_bytes + len(text.encode("utf-8")), num_tokens + len(ids)
        for begin in range(0, len(ids), WINDOW):
            window = ids[begin : begin + WINDOW]
            with torch.no_grad():
                logits = model(torch.tensor([[end, *window[:-1]]])).logits[0]
            nats += functional.cross_entropy(logits.double(), torch.tensor(window), reduction="sum").item()
    return nats / math.log(2) / num_bytes, num_bytes, num_tokens


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def one_rank(run_dir: Path) -> dict:
    return evaluate(run_dir)


@pytest.mark.parametrize("kind", ["law", "talk"])
def test_the_base_scores_as_transformers_says(one_rank: dict, run_dir: Path, kind: str) -> None:
    expected, num_bytes, num_tokens = bits_per_byte_by_transformers(run_dir.parent / "run-base", run_dir / "corpus" / f"{kind}.test.jsonl")
    score = one_rank["subjects"]["base"]["texts"][kind]
    print(f"{kind}: {score['bits_per_byte']:.7f} against {expected:.7f}")
    assert score["bits_per_byte"] == pytest.approx(expected, abs=1e-5)  # fp32 losses of about 6, each exact to 1e-6
    assert (score["bytes"], score["tokens"]) == (num_bytes, num_tokens)


def test_base_and_extension_are_scored_over_the_same_bytes_with_their_own_tokenizers(one_rank: dict, run_dir: Path) -> None:
    base, init = one_rank["subjects"]["base"], one_rank["subjects"]["init"]
    plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
    assert (base["num_ids"], init["num_ids"]) == (plan.vocab.num_base_ids, plan.vocab.num_ids)
    assert init["tokenizer_sha256"] == plan.vocab.tokenizer_sha256 != base["tokenizer_sha256"]
    for kind in ("law", "talk"):
        assert base["texts"][kind]["bytes"] == init["texts"][kind]["bytes"]
        assert sum(document["bytes"] for document in base["texts"][kind]["documents"]) == base["texts"][kind]["bytes"]
    assert init["texts"]["law"]["tokens"] < base["texts"]["law"]["tokens"]  # the new pieces are law's
    assert init["texts"]["talk"]["tokens"] <= base["texts"]["talk"]["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batch_size": 1}, id="batch-1"),
        pytest.param({"micro_batch_size": 5}, id="batch-5", marks=pytest.mark.long),
        pytest.param({"tensor": 2}, id="tp2"),
        pytest.param({"tensor": 2, "sequence_parallel": True}, id="tp2-sequence-parallel", marks=pytest.mark.long),
        pytest.param({"pipeline": 2}, id="pp2", marks=pytest.mark.long),
        pytest.param({"pipeline": 2, "virtual_pipeline": 2}, id="pp2-vpp2"),
        pytest.param({"data": 2}, id="dp2"),
        pytest.param({"tensor": 2, "data": 2}, id="tp2-dp2", marks=pytest.mark.long),
        pytest.param({"pipeline": 2, "data": 2}, id="pp2-dp2"),
        pytest.param({"context": 2}, id="cp2"),
        pytest.param({"context": 2, "tensor": 2, "sequence_parallel": True}, id="tp2-cp2-sequence-parallel", marks=pytest.mark.long),
    ],
)
def test_scores_do_not_depend_on_batch_or_layout(changes: dict, one_rank: dict, tmp_path: Path) -> None:
    other = evaluate(make_run(tmp_path), **changes)
    for name, subject in one_rank["subjects"].items():
        for kind, score in subject["texts"].items():
            again = other["subjects"][name]["texts"][kind]
            difference = max(abs(a["nats"] / b["nats"] - 1) for a, b in zip(score["documents"], again["documents"], strict=True))
            print(f"{changes} {name} {kind}: largest relative difference of a document {difference:.1e}")
            assert difference < 2e-6  # fp32 sums in another order
            assert again["tokens"] == score["tokens"]


@pytest.mark.long
def test_shared_experts_score_as_whole_ones(tmp_path: Path) -> None:
    """Ranks that share experts meet in every layer: given other numbers of windows they would wait for each other for ever."""
    made = make_run(tmp_path, tied=False, experts=True)
    one_rank, shared = (evaluate(made, subjects=("init",), **layout) for layout in ({}, {"data": 4, "expert": 2}))
    for kind, score in one_rank["subjects"]["init"]["texts"].items():
        again = shared["subjects"]["init"]["texts"][kind]
        assert [document["nats"] for document in again["documents"]] == pytest.approx(
            [document["nats"] for document in score["documents"]], rel=2e-6
        )
