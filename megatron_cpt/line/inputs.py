"""What each stage takes in: fingerprints of earlier stages, digests of files and settings, which decide whether it is done already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import CompareConfig
from megatron_cpt.errors import DataError
from megatron_cpt.line.run import Run
from megatron_cpt.plan.benches import bench_inputs
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.manifest import MANIFEST_NAME
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.vocab_layout import FITTED_ROWS
from megatron_cpt.stage_names import STAGES


def corpus_inputs(run: Run) -> dict[str, Any]:
    from megatron_cpt.corpus.sources import source_inputs  # noqa: PLC0415

    return {"sources": source_inputs(run.config.source)}


def vocab_inputs(run: Run) -> dict[str, Any]:
    ModelShape.from_hf_folder(run.base_folder)
    base = {
        key: sha256_file(run.base_folder / name)
        for key, name in (("base_tokenizer_sha256", "tokenizer.json"), ("base_sentencepiece_sha256", "tokenizer.model"))
        if (run.base_folder / name).is_file()
    }
    older = [run.base_folder / name for name in ("vocab.json", "merges.txt")]
    if not base and all(path.is_file() for path in older):
        base["base_tokenizer_sha256"] = sha256_plain({path.name: sha256_file(path) for path in older})
    if not base:
        raise DataError("The base model has no tokenizer.", where=run.base_folder, rule="tokenizer.json or tokenizer.model")
    settings = {key: value for key, value in asdict(run.config.tokenizer).items() if key != "row_init"}
    for key, default in (("terms", ""), ("max_drift", 0.0), ("compare", asdict(CompareConfig()))):
        # a stage from before they existed keeps its inputs
        if settings[key] == default:
            del settings[key]
    if run.config.tokenizer.terms:
        terms = Path(run.config.tokenizer.terms)
        settings["terms"] = sha256_file(terms) if terms.is_file() else "missing"
    return {**run.fingerprints("corpus"), "tokenizer": settings, **base}


def index_inputs(run: Run) -> dict[str, Any]:
    return run.fingerprints("corpus", "vocab")


def init_inputs(run: Run) -> dict[str, Any]:
    base = model_files(run.base_folder)
    rule = run.config.tokenizer.row_init
    read_by_rule = {**run.fingerprints("index"), "seed": run.config.seed} if rule == FITTED_ROWS else {}
    return {**run.fingerprints("vocab"), **read_by_rule, "row_init": rule, "backend": run.config.cluster.backend, "base": base}


def plan_inputs(run: Run) -> dict[str, Any]:
    groups = ("blend", "optim", "schedule", "parallel", "cluster", "gpu", "tariff", "gate", "eval", "checkpoint", "stop", "monitor")
    settings = {group: asdict(getattr(run.config, group)) for group in groups}
    if run.config.eval.tasks:
        settings["bench"] = bench_inputs(run.config)
    for name in ("limits", "retries", "max_retries"):  # a plan from before they existed keeps its inputs
        if not settings["gate"][name]:
            del settings["gate"][name]
    now = run.round
    of_round = {} if now.number == 1 else {"round": {"number": now.number, "resumes_from": to_plain(now.resumes_from)}}
    return {**run.fingerprints("corpus", "vocab", "index", "init"), "seed": run.config.seed, "settings": settings, **of_round}


def baseline_inputs(run: Run) -> dict[str, Any]:
    return run.fingerprints("init", "plan")


def train_inputs(run: Run) -> dict[str, Any]:
    return run.fingerprints("init", "index", "plan")


def eval_inputs(run: Run) -> dict[str, Any]:
    return run.fingerprints("plan", "train")


def gate_inputs(run: Run) -> dict[str, Any]:
    return run.fingerprints("plan", "baseline", "train", *(() if run.limit else ("eval",)))


def export_inputs(run: Run) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(run.config.export).items() if key != "instruct_model"}
    instruct = run.config.export.instruct_model
    return {**run.fingerprints("gate"), "settings": settings, "instruct": model_files(Path(instruct).resolve()) if instruct else {}}


def report_inputs(run: Run) -> dict[str, Any]:
    done = [stage.name for stage in STAGES if (run.of(stage.name) / MANIFEST_NAME).exists() and stage.name != "report"]
    bill = run.folder / "ledger.jsonl"
    return {**run.fingerprints(*done), "ledger_sha256": sha256_file(bill) if bill.exists() else ""}


def model_files(folder: Path) -> dict[str, str]:
    """Return the digest of everything in a Hugging Face folder that decides what its model computes."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.index.json"), folder / "config.json"])
    return {path.name: sha256_file(path) for path in files if path.is_file()}


INPUTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "corpus": corpus_inputs,
    "vocab": vocab_inputs,
    "index": index_inputs,
    "init": init_inputs,
    "plan": plan_inputs,
    "baseline": baseline_inputs,
    "train": train_inputs,
    "eval": eval_inputs,
    "gate": gate_inputs,
    "export": export_inputs,
    "report": report_inputs,
}
