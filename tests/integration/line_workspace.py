"""A workspace for the whole line: a tiny random base with its own tokenizer, and real text that every Python carries.

The domain is the source code of the standard library; the general texts are the language reference in `pydoc_data`.
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("ast", "bdb", "cmd", "csv", "dis", "glob", "heapq", "shlex", "inspect", "tempfile", "argparse", "subprocess")
SEPARATOR = "<|endoftext|>"
PREPARED = ("corpus", "vocab", "index", "init")
EXPERIMENT = """\
# @package _global_
defaults:
  - override /cluster: laptop
run_name: good
runs_dir: {runs}
model: {{path: {base}, licence: Apache-2.0, provenance: random weights of the tests}}
tokenizer: {{num_new_pieces: 32, document_separator: "<|endoftext|>", row_init: mean}}
source:
  code:
    {{path: {text}/code.jsonl, role: domain, licence: PSF-2.0, language: en, test_fraction: 0.2,
     provenance: {{origin: the standard library, date: 2026-11, obtained: read from this machine}}}}
  replay:
    {{path: {text}/replay.jsonl, role: general, licence: PSF-2.0, language: en, test_fraction: 0.1,
     provenance: {{origin: pydoc_data, date: 2026-11, obtained: read from this machine}}}}
  other:
    {{path: {text}/other.jsonl, role: general, licence: PSF-2.0, language: en, test_fraction: 1.0,
     provenance: {{origin: pydoc_data, date: 2026-11, obtained: read from this machine}}}}
blend: {{num_tokens: 10240, shares: {{code: 0.7, replay: 0.3}}}}
schedule: {{peak_lr: 5.0e-3, min_lr: 5.0e-4, warmup_fraction: 0.1}}
parallel: {{tensor: 2, pipeline: 1, micro_batch_size: 4, global_batch_size: 8, sequence_length: 128, dtype: fp32}}
checkpoint: {{every_steps: 4}}
bench:
  quiz: {{path: {text}/quiz.jsonl, group: domain, licence: PSF-2.0, source: questions of the tests}}
corpus: {{decontaminate: {{action: report}}}}   # three questions quote what is trained on: the evaluation names them too
eval: {{texts: [code, other], max_bytes: 12000, window_tokens: 128, tasks: [quiz]}}
monitor: {{wandb_mode: disabled}}   # the tests that look at it turn it on
export: {{instruct_model: {base}-instruct, completion_tokens: 8}}
gate:
  rules:
    - {{of: code, kind: must_improve, margin: 0.0}}
    - {{of: other, kind: may_not_worsen, margin: 0.05}}
"""


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": f"{path.stem}-{number}", "text": text}) + "\n" for number, text in enumerate(texts)))


def make_workspace(folder: Path) -> Path:
    """Fill `folder` with text, a base model and the experiment `line`; return it."""
    text = folder / "text"
    text.mkdir(parents=True)
    topics = [topic for topic in pydoc_data.topics.topics.values() if len(topic) > 400]
    library = Path(os.__file__).parent
    sources = [(library / f"{name}.py").read_text()[:9000] for name in MODULES]
    code = [source[start : start + 1500] for source in sources for start in range(0, len(source), 1500)]
    write_jsonl(text / "code.jsonl", code)
    write_jsonl(text / "replay.jsonl", topics[:40])
    write_jsonl(text / "other.jsonl", topics[40:50])
    write_quiz(text / "quiz.jsonl", topics)
    make_base(folder / "base", topics[:40])
    make_base(folder / "base-instruct", topics[:40], seed=1)
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "line.yaml").write_text(EXPERIMENT.format(runs=folder / "runs", base=folder / "base", text=text))
    return folder


def write_quiz(path: Path, topics: list[str]) -> None:
    """Write four questions of our own, and three that quote what is trained on, unless the split holds it out."""
    questions = [
        ("Which statement leaves a loop?", ["break", "pass"], "A"),
        ("Which word begins a function?", ["class", "def"], "B"),
        ("What does len return?", ["a number of items", "a list"], "A"),
        ("Which brackets hold a tuple?", ["( and )", "{ and }"], "A"),
        *((" ".join(topic.split()[10:30]), ["yes", "no"], "A") for topic in topics[:3]),
    ]
    rows = [
        {"id": f"q{number}", "question": question, "choices": choices, "answer": answer, "subgroup": "ab"[number % 2]}
        for number, (question, choices, answer) in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_base(folder: Path, texts: list[str], *, seed: int = 0) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, special_tokens=[SEPARATOR], initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR, bos_token=SEPARATOR).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def copy_prepared(workspace: Path, name: str) -> Path:
    """Give a new run the finished preparation of `good`, so that only what differs is done again."""
    run_dir = workspace / "runs" / name
    shutil.rmtree(run_dir, ignore_errors=True)
    for stage in PREPARED:
        shutil.copytree(workspace / "runs" / "good" / stage, run_dir / stage)
    return run_dir


def command(workspace: Path, *arguments: str) -> list[str]:
    name, *rest = arguments
    return [sys.executable, "-m", "megatron_cpt", name, *rest, "experiment=line", "--config-dir", str(workspace / "conf")]


def cpt(workspace: Path, *arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
    """Run one `megatron-cpt` command in the workspace and return what it printed and its exit code."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), WANDB_MODE="offline")
    return subprocess.run(
        command(workspace, *arguments), cwd=workspace, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
