"""Windows that slide, Hugging Face folders as subjects, and scores that are kept: with the real model, against transformers."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import launch_ranks
from tiny_run import END, TEXTS, make_layout, make_plan, make_run
from tokenizers import Tokenizer

from megatron_cpt.plan.run_plan import EvalPlan, RunPlan

WINDOW, STRIDE = 48, 20


def export_initial_model(run_dir: str, plan_path: str, folder: str) -> None:
    from megatron_cpt.backend import choose
    from megatron_cpt.export.folder import export_folder

    plan = RunPlan.load(Path(plan_path))
    export_folder(
        Path(folder),
        checkpoint=Path(run_dir) / "init" / "checkpoint",
        base_folder=Path(f"{run_dir}-base"),
        tokenizer_folder=Path(run_dir) / "vocab",
        shape=plan.shape,
        vocab=plan.vocab,
        backend=choose("cpu"),
        check=False,
    )


def evaluate_rank(plan_path: str, hf_folder: str, out: str) -> None:
    from megatron_cpt.eval.run import run

    run(Path(plan_path), subjects=("base", "init"), checkpoint=None, out=Path(out), hf_folder=Path(hf_folder))


def plan_of(run_dir: Path, *, micro_batch_size: int = 2, cache: bool = False, **layout: Any) -> Path:
    return make_plan(run_dir, make_layout(**layout), eval=EvalPlan(TEXTS, WINDOW, micro_batch_size, stride_tokens=STRIDE, cache=cache))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("subjects"))


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Path:
    folder = run_dir.parent / "exported"
    launch_ranks(export_initial_model, 1, str(run_dir), str(plan_of(run_dir)), str(folder))
    return folder


@pytest.fixture(scope="module")
def two_ranks(run_dir: Path, exported: Path) -> dict[str, Any]:
    """Subjects by name, scored with TP2."""
    out = run_dir / "eval" / "eval.json"
    launch_ranks(evaluate_rank, 2, str(plan_of(run_dir, tensor=2)), str(exported), str(out))
    return json.loads(out.read_text(encoding="utf-8"))["subjects"]


def load_by_transformers(folder: Path) -> tuple[Any, Tokenizer]:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def texts_of(run_dir: Path, kind: str) -> list[str]:
    lines = (run_dir / "corpus" / f"{kind}.test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def log_probs(model: Any, start: list[int], ids: list[int]) -> Any:
    """Return log-probabilities (S, V) of what follows the start and each id, in one row without padding."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([[*start, *ids]])).logits[0].double().log_softmax(-1)


def sliding_bits_per_byte(model: Any, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return bits per byte token by token: each is looked up in the first window that reaches it."""
    end, nats, num_bytes = tokenizer.token_to_id(END), 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        num_bytes += len(text.encode("utf-8"))
        rows: dict[int, Any] = {}
        for place, token in enumerate(ids):
            begin = 0 if place < WINDOW else ((place - WINDOW) // STRIDE + 1) * STRIDE
            if begin not in rows:
                rows[begin] = log_probs(model, [end], ids[begin : begin + WINDOW - 1])
            nats -= rows[begin][place - begin, token].item()
        assert place < WINDOW or place - begin >= WINDOW - STRIDE
    return nats / math.log(2) / num_bytes


def test_sliding_windows_score_base_and_folder_as_transformers_says(two_ranks: dict[str, Any], run_dir: Path, exported: Path) -> None:
    for name, folder in (("base", run_dir.parent / "run-base"), ("exported", exported)):
        model, tokenizer = load_by_transformers(folder)
        for kind in ("law", "talk"):
            texts, score = texts_of(run_dir, kind), two_ranks[name]["texts"][kind]
            expected = sliding_bits_per_byte(model, tokenizer, texts)
            print(f"{name} {kind}: {score['bits_per_byte']:.7f} against {expected:.7f}")
            assert score["bits_per_byte"] == pytest.approx(expected, abs=1e-5)  # fp32 losses of about 6, each exact to 1e-6
            assert score["tokens"] == sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        assert max(document["tokens"] for document in two_ranks[name]["texts"]["law"]["documents"]) > WINDOW + STRIDE


def test_a_folder_scores_like_the_checkpoint_that_it_was_exported_from(two_ranks: dict[str, Any], run_dir: Path) -> None:
    init, folder = two_ranks["init"], two_ranks["exported"]
    for kind in ("law", "talk"):
        ours, theirs = init["texts"][kind], folder["texts"][kind]
        assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)
        assert theirs["tokens"] == ours["tokens"]
    plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
    assert (folder["num_ids"], folder["tokenizer_sha256"]) == (plan.vocab.num_ids, plan.vocab.tokenizer_sha256)
    assert len({two_ranks[name]["weights_sha256"] for name in two_ranks}) == 3


def test_every_subject_records_its_prefix_and_how_other_starts_compare(two_ranks: dict[str, Any], run_dir: Path) -> None:
    plan = RunPlan.load(run_dir / "plan" / "plan.yaml")
    assert {subject["prefix_id"] for subject in two_ranks.values()} == {plan.vocab.end_of_document_id}
    model, tokenizer = load_by_transformers(run_dir.parent / "run-base")
    ids = [
        tokenizer.encode(text, add_special_tokens=False).ids[:WINDOW] for kind in ("law", "talk") for text in texts_of(run_dir, kind)[:4]
    ]
    declared = json.loads((run_dir.parent / "run-base" / "config.json").read_text())["bos_token_id"]
    starts = {"document separator": [tokenizer.token_to_id(END)], "nothing": [], "its declared beginning of text": [declared]}
    expected = {}
    for name, start in starts.items():
        nats = 0.0
        for row in ids:
            found = log_probs(model, start, row)
            nats -= sum(found[place - 1 + len(start), row[place]].item() for place in range(1, len(row)))
        expected[name] = nats / sum(len(row) - 1 for row in ids)
    print(expected)
    assert two_ranks["base"]["nats_by_start"] == pytest.approx(expected, rel=1e-5)
    assert two_ranks["init"]["nats_by_start"] == {}


def keep_and_take(plan_path_text: str) -> dict[str, Any]:
    """Score base and start again and again in one process, and say each time what it cost and what was warned of."""
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)  # one rank that needs no port, several times
    from megatron_cpt.backend import choose

    choose("cpu")
    from megatron_cpt.eval import all_items as module
    from megatron_cpt.eval.run import run

    plan_path = Path(plan_path_text)
    run_dir = plan_path.parent.parent
    folder, out = run_dir.parent / f"{run_dir.name}-base", run_dir / "eval" / "eval.json"
    warned: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.append(record.getMessage())

    num_scored, score_subject = [0], module.score_subject

    def counted(*arguments: Any, **settings: Any) -> Any:
        num_scored[0] += 1
        return score_subject(*arguments, **settings)

    module.score_subject = counted
    said = {}

    def again(name: str, subject: str = "base") -> None:
        num_scored[0] = 0
        warned.clear()
        listener = Listen(logging.WARNING)
        logging.getLogger("megatron_cpt.eval.cache").addHandler(listener)
        run(plan_path, subjects=(subject,), checkpoint=None, out=out)
        logging.getLogger("megatron_cpt.eval.cache").removeHandler(listener)
        said[name] = {"scored": num_scored[0], "warned": list(warned), subject: json.loads(out.read_text())["subjects"][subject]}

    kept = run_dir.parent / ".eval-cache"
    again("first")
    again("second")
    (entry,) = kept.iterdir()
    entry.write_text(entry.read_text().replace('"bits_per_byte": ', '"bits_per_byte": 1', 1))
    again("damaged")
    again("mended")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for number in range(len(data) - 4000, len(data), 4):  # the lowest bits of a thousand fp32 weights: other weights, near scores
        data[number] ^= 1
    weights.write_bytes(bytes(data))
    again("replaced")
    again("start", "init")
    again("the same start", "init")
    return said


def test_kept_scores_are_served_for_the_same_weights_alone(two_ranks: dict[str, Any], tmp_path: Path) -> None:
    """And the first of them, in batches of 5 on one rank, are those of batches of 2 on two ranks."""
    made = make_run(tmp_path)
    (said,) = launch_ranks(keep_and_take, 1, str(plan_of(made, micro_batch_size=5, cache=True)))
    assert {name: each["scored"] for name, each in said.items()} == {
        "first": 1, "second": 0, "damaged": 1, "mended": 0, "replaced": 1, "start": 1, "the same start": 0,
    }  # fmt: skip
    assert said["the same start"]["init"] == said["start"]["init"]
    for kind, score in said["first"]["base"]["texts"].items():
        again = two_ranks["base"]["texts"][kind]
        assert [each["nats"] for each in score["documents"]] == pytest.approx([each["nats"] for each in again["documents"]], rel=2e-6)
    assert said["second"]["base"] == said["first"]["base"] == said["damaged"]["base"] == said["mended"]["base"]
    assert "do not agree" in said["damaged"]["warned"][0]
    assert said["first"]["warned"] == said["mended"]["warned"] == []
    assert said["replaced"]["base"]["weights_sha256"] != said["first"]["base"]["weights_sha256"]
    assert said["replaced"]["base"]["texts"] != said["first"]["base"]["texts"]
