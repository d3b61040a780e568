"""What each stage takes in: fingerprints of earlier stages, digests of files and settings, which decide whether it is done already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import AllowanceConfig, CompareConfig, CorpusConfig, ExperimentConfig, SelectConfig
from megatron_cpt.errors import DataError
from megatron_cpt.line.run import Run
from megatron_cpt.plan.benches import bench_inputs
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.row_rules import PROBE, RowPair, candidates, wanted_pair
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest
from megatron_cpt.record.typed import to_plain
from megatron_cpt.stage_names import STAGES

ROW_KEYS = ("row_init", "row_init_output", "row_probe")  # of `tokenizer`, but the init stage's
_OF_THE_QUEUE = ("qos", "max_requeues", "preflight", "has_emulated_meter", "memory_gb", "exclusive")  # decide nothing in a plan
_CAME_LATER = {
    "gate": ("limits", "retries", "max_retries"),
    "stop": ("max_tokens", "scores"),
    "gpu": (
        "matmul_tflops", "matmul_fp8_tflops", "memory_tb_per_second", "link_gb_per_second", "network_gb_per_second", "num_multiprocessors",
        "mtbf_hours", "device_watts", "watts_share_low", "watts_share_likely", "watts_share_high", "rest_of_node_watts", "network_watts",
        "power_source",
    ),
    "tariff": (
        "price_date", "usd_per_device_hour_low", "usd_per_device_hour_high", "pue_low", "pue_high", "grid_region", "market_g_co2e_per_kwh",
        "market_source", "usd_per_gb_month", "storage_date", "storage_source", "keep_months", "embodied_g_co2e_per_device_hour",
        "embodied_source",
    ),
}  # fmt: skip


def corpus_inputs(run: Run) -> dict[str, Any]:
    from megatron_cpt.corpus.select.target import chooses, select_inputs  # noqa: PLC0415
    from megatron_cpt.corpus.sources import source_inputs  # noqa: PLC0415

    inputs = {"sources": source_inputs(run.config.source), **corpus_settings(run.config.corpus), **looked_for(run.config)}
    if run.config.corpus.dedup.near.enabled:
        from megatron_cpt.corpus.dedup.bands import SIGNATURE_VERSION  # noqa: PLC0415

        inputs["minhash"] = SIGNATURE_VERSION
    select = run.config.corpus.select
    if select != SelectConfig():
        inputs["select"] = select_inputs(select, run.config.source)
        if chooses(select):
            inputs["seed"] = run.config.seed
    return inputs


def looked_for(config: ExperimentConfig) -> dict[str, Any]:
    """Return the digests of the files whose items the corpus must not hold."""
    wanted = config.corpus.decontaminate
    files = {f"bench {name}": bench.path for name, bench in config.bench.items()} | {f"text {path}": path for path in wanted.texts}
    if wanted.action == "off" or not files:
        return {}
    return {"looked_for": {name: sha256_file(Path(path)) if Path(path).is_file() else "missing" for name, path in sorted(files.items())}}


def corpus_settings(settings: CorpusConfig) -> dict[str, Any]:
    """Return the settings that decide the corpus: what is not at its default, so that a setting that comes later changes no older run.

    The engine is left out: where the work is done changes no byte.
    """
    chosen, default = asdict(settings), asdict(CorpusConfig())
    changed = {
        group: {key: value for key, value in chosen[group].items() if value != default[group][key]} for group in chosen if group != "engine"
    }
    changed = {group: values for group, values in changed.items() if values}
    return {"corpus": changed} if changed else {}


def vocab_inputs(run: Run) -> dict[str, Any]:
    row_pairs(run)  # a rule that is not known is refused before hours of other work
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
    settings = {key: value for key, value in asdict(run.config.tokenizer).items() if key not in ROW_KEYS}
    # a stage from before these keys existed keeps its inputs
    for key, default in (("terms", ""), ("max_drift", 0.0), ("compare", asdict(CompareConfig()))):
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
    settings, pairs = run.config.tokenizer, row_pairs(run)
    read_by_rule: dict[str, Any] = {}
    if settings.row_init == PROBE:
        read_by_rule["row_probe"] = {**asdict(settings.row_probe), "optim": asdict(run.config.optim), "rate": run.config.schedule.peak_lr}
    if any(pair.reads_domain_text for pair in pairs) or settings.row_init == PROBE:
        read_by_rule |= run.fingerprints("index")
    if read_by_rule or any(pair.draws for pair in pairs):
        read_by_rule["seed"] = run.config.seed
    if settings.row_init_output:
        read_by_rule["row_init_output"] = settings.row_init_output
    return {
        **run.fingerprints("vocab"), **read_by_rule, "row_init": settings.row_init, "backend": run.config.cluster.backend, "base": base,
    }  # fmt: skip


def row_pairs(run: Run) -> list[RowPair]:
    """Return the rules for new rows that the run uses or, with a probe, tries.

    Raises:
        ConfigError: one is not known, or does not fit the base model.
    """
    settings, tied = run.config.tokenizer, ModelShape.from_hf_folder(run.base_folder).tied_embeddings
    pair = wanted_pair(settings.row_init, settings.row_init_output, tied=tied)
    return candidates(settings.row_probe.rules, tied=tied) if pair is None else [pair]


def plan_inputs(run: Run) -> dict[str, Any]:
    now = run.round
    of_round = {} if now.number == 1 else {"round": {"number": now.number, "resumes_from": to_plain(now.resumes_from)}}
    settings = with_recorded_queue(plan_settings(run.config), run.of("plan"))
    return {**run.fingerprints("corpus", "vocab", "index", "init"), "seed": run.config.seed, "settings": settings, **of_round}


def with_recorded_queue(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings with the recorded words for the queue where a plan has been made: they decide nothing in it, and may change."""
    if not (folder / MANIFEST_NAME).exists():
        return settings
    recorded = Manifest.load(folder).inputs.get("settings", {}).get("cluster", {})
    kept = {name: recorded[name] for name in ("partition", "account", "time_limit", "env_file") if name in recorded}
    return {**settings, "cluster": {**settings["cluster"], **kept}}


def plan_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that a plan is derived from. One that came later and is at its default is left out: older plans keep theirs."""
    groups = ("blend", "optim", "schedule", "parallel", "cluster", "gpu", "tariff", "gate", "eval", "checkpoint", "stop", "monitor")
    settings: dict[str, Any] = {group: asdict(getattr(config, group)) for group in groups}
    if config.eval.tasks:
        settings["bench"] = bench_inputs(config)
    if config.allowance != AllowanceConfig():
        settings["allowance"] = asdict(config.allowance)
    for group, names in _CAME_LATER.items():
        for name in names:
            if not settings[group][name]:  # null, none or no text
                del settings[group][name]
    for name in _OF_THE_QUEUE:
        del settings["cluster"][name]
    if (config.cluster.checkpoint_seconds, config.cluster.restart_seconds) == (60.0, 900.0):
        del settings["cluster"]["checkpoint_seconds"], settings["cluster"]["restart_seconds"]
    return settings


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
