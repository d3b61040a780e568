"""A whole run folder at toy size, made with the real parts: a Llama in Hugging Face form, an index, an initial checkpoint, a plan."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from launch_ranks import free_port, launch_ranks
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import (
    BlendEntry,
    CheckpointPlan,
    Estimate,
    EvalPlan,
    EvalText,
    GatePlan,
    Layout,
    OptimizerPlan,
    RunPlan,
    SchedulePlan,
    StopConditions,
    Tariff,
)
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.manifest import Manifest, build_stage
from megatron_cpt.record.store import write_json
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows

ROOT = Path(__file__).parents[2]
END = "<|end|>"
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ġ", "the"), ("an", "d")]
NEW_MERGES = [("l", "a"), ("la", "w"), ("c", "o"), ("Ġ", "law")]
WORDS = {
    "law": ["the", "law", "and", "the", "court", "bind", "the", "party", "in", "an", "act", "of", "law", "and", "the", "judge"],
    "talk": ["an", "ant", "and", "the", "thin", "inn", "in", "the", "land", "sing", "and", "the", "moon", "hangs", "on"],
}
UNKNOWN = Unavailable("a test")
TEXTS = (
    EvalText("law", "domain", "corpus/law.test.jsonl", 100_000),
    EvalText("talk", "general", "corpus/talk.test.jsonl", 100_000),
)


def make_tokenizer(path: Path, merges: list[tuple[str, str]]) -> Tokenizer:
    """Write a byte-level BPE: 256 bytes, the end mark as id 256, then one piece a merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(alphabet)}
    vocab[END] = len(vocab)
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path))
    return tokenizer


def sentences(kind: str, count: int, *, seed: int) -> list[str]:
    rng = random.Random(f"{kind}-{seed}")
    return [" ".join(rng.choices(WORDS[kind], k=rng.randint(8, 60))) + "。" for _ in range(count)]


@functools.cache
def _template(tied: bool, experts: bool) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    launch_ranks(_make_run, 1, str(folder / "run"), tied, experts)
    return folder


def make_run(folder: Path, name: str = "run", *, tied: bool = True, experts: bool = False) -> Path:
    """Return a run folder that is filled up to `init/`, beside its base model's; made once a process, then copied."""
    for source, target in (("run", name), ("run-base", f"{name}-base")):
        shutil.copytree(_template(tied, experts) / source, folder / target)
    return folder / name


def _make_run(run_dir_text: str, tied: bool, experts: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    from megatron_cpt.backend import choose

    backend = choose("cpu")
    run_dir = Path(run_dir_text)
    base = run_dir.parent / f"{run_dir.name}-base"
    base.mkdir(parents=True)
    base_tokenizer = make_tokenizer(base / "tokenizer.json", MERGES)
    num_base = base_tokenizer.get_vocab_size()
    sizes = {
        "vocab_size": num_base, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": tied, "initializer_range": 0.1,
    }  # fmt: skip
    config = (
        Qwen3MoeConfig(**sizes, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)
        if experts
        else LlamaConfig(**sizes)
    )
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    for name, parameter in model.named_parameters():
        if ".gate." in name:  # the routers, which transformers may leave at zero
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(base)

    vocab_dir = run_dir / "vocab"
    vocab_dir.mkdir(parents=True)
    tokenizer = make_tokenizer(vocab_dir / "tokenizer.json", MERGES + NEW_MERGES)
    num_ids = tokenizer.get_vocab_size()
    layout = VocabLayout(
        num_base, num_ids, padded_rows(num_ids, multiple=32), base_tokenizer.token_to_id(END), sha256_file(vocab_dir / "tokenizer.json")
    )
    write_json(vocab_dir / "vocab_layout.json", to_plain(layout))
    lines = []
    for new_id in range(num_base, num_ids):
        text = tokenizer.decode([new_id])
        lines.append(json.dumps({"id": new_id, "base_ids": base_tokenizer.encode(text, add_special_tokens=False).ids}))
    (vocab_dir / "new_pieces.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    for kind in WORDS:
        write_index(
            run_dir / "index" / kind, [tokenizer.encode(text).ids for text in sentences(kind, 60, seed=0)], end=layout.end_of_document_id
        )
        held_out = run_dir / "corpus" / f"{kind}.test.jsonl"
        held_out.parent.mkdir(exist_ok=True)
        rows = [{"id": f"{kind}-{number}", "text": text, "source": kind} for number, text in enumerate(sentences(kind, 7, seed=1))]
        held_out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    from megatron_cpt.model.initialise import initialise

    build_stage(
        run_dir / "init", {}, lambda result: initialise(result, base_folder=base, vocab_folder=vocab_dir, row_init="mean", backend=backend)
    )
    write_json(run_dir / "init" / "base.json", {"path": "../run-base"})


def write_index(prefix: Path, documents: list[list[int]], *, end: int) -> None:
    """Write a `.bin/.idx` pair with megatron-core's own builder; every document ends with the end mark."""
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for ids in documents:
        builder.add_document(torch.tensor([*ids, end]), [len(ids) + 1])
    builder.finalize(f"{prefix}.idx")


def make_layout(*, tensor: int = 1, pipeline: int = 1, data: int = 1, **changes: Any) -> Layout:
    layout = Layout(
        tensor=tensor, pipeline=pipeline, data=data, micro_batch_size=2, global_batch_size=8, sequence_length=32, sequence_parallel=False,
        distributed_optimizer=True, dtype="fp32", num_nodes=1, threads_per_rank=1,
    )  # fmt: skip
    return dataclasses.replace(layout, **changes)


def make_plan(run_dir: Path, layout: Layout, *, num_steps: int = 5, **changes: Any) -> Path:
    """Write `plan/plan.yaml` and return its path."""
    init = Manifest.load(run_dir / "init")
    vocab = VocabLayout(**json.loads((run_dir / "vocab" / "vocab_layout.json").read_text()))
    num_samples = num_steps * layout.global_batch_size
    plan = RunPlan(
        schema_version=1, run_name=run_dir.name, seed=11, backend="cpu",
        shape=ModelShape.from_hf_folder(run_dir.parent / f"{run_dir.name}-base"), vocab=vocab, layout=layout,
        blend=(
            BlendEntry("law", "domain", "CC0", "index/law", 0.7, 1500, round(0.7 * num_samples), 1.0),
            BlendEntry("talk", "general", "CC0", "index/talk", 0.3, 1500, round(0.3 * num_samples), 1.0),
        ),
        num_steps=num_steps, optimizer=OptimizerPlan(0.9, 0.95, 1e-8, 0.1, 1.0),
        schedule=SchedulePlan("cosine", 2e-3, 2e-4, 2 * layout.global_batch_size, num_samples), checkpoint=CheckpointPlan(1000, 2),
        log_every_steps=1, eval_every_steps=0, wandb_mode="disabled", wandb_project="test",
        eval=EvalPlan(TEXTS, 48, 2),
        gate=GatePlan((), 0.95, 100, 0), stop=StopConditions(None, None, None),
        tariff=Tariff("none", UNKNOWN, "", UNKNOWN, "", UNKNOWN, "", UNKNOWN, ""),
        estimate=Estimate(200_000, (), UNKNOWN, 1.0, "none", 1, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, ()),
        identity={"init": init.fingerprint},
    )  # fmt: skip
    return dataclasses.replace(plan, **changes).save(run_dir / "plan")


def torchrun(module: str, *arguments: str, num_ranks: int, wait: bool = True, **environment: str) -> subprocess.Popen[str]:
    """Start `torchrun -m <module>` as a user would, and wait for its end unless told not to."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}", "-m", module, *arguments,
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    if wait:
        finish(process)
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process and return what it said."""
    try:
        output, _ = process.communicate(timeout=900)  # far beyond any run here: a busy machine is not a failure
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    process.said = output  # type: ignore[attr-defined]
    return output


def step_records(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def train_on_ranks(plan_path: Path, num_ranks: int) -> list[int]:
    """Train in fresh processes without torchrun and return each rank's exit code."""
    return launch_ranks(_train_rank, num_ranks, str(plan_path))


def train_in_turn(plan_paths: list[Path], num_ranks: int) -> None:
    """Train several plans of one number of ranks, one after the other in the same processes: starting those is the cost."""
    ports = [free_port() for _ in plan_paths]
    codes = launch_ranks(_train_plans, num_ranks, [str(path) for path in plan_paths], ports, timeout_s=60.0 + 120.0 * len(plan_paths))
    assert codes == [[0] * len(plan_paths)] * num_ranks, codes


def _train_plans(plan_paths: list[str], ports: list[int]) -> list[int]:
    codes = []
    for plan_path, port in zip(plan_paths, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)  # the store of the run before may still hold its own
        codes.append(_train_rank(plan_path))
    return codes


def _train_rank(plan_path: str) -> int:
    from megatron_cpt.train.run import run

    return run(Path(plan_path), evaluate=None)
