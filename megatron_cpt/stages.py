"""Wires the line: what each stage takes in, the body that it runs, and the bill that it leaves.

Stage packages never import each other; this module hands one stage's record to the next. Torch loads in children only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import (
    EXIT_ROLLED_BACK,
    BudgetReached,
    CheckpointError,
    ConfigError,
    CptError,
    DataError,
    RolledBack,
    Stopped,
    printable,
)
from megatron_cpt.gate.act import GOOD_NAME, GoodCheckpoint, carry_out, check_digest
from megatron_cpt.gate.audit import audit as audit_run
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.limits import Breach, verdict_of_breach
from megatron_cpt.gate.page import verdict_lines, verdict_page
from megatron_cpt.gate.rounds import (
    Round,
    asked_round,
    begin_round,
    current_round,
    earlier_of,
    finish_move,
    going_on_from,
    next_retry,
    past_rounds,
    resume_point,
    tried_rounds,
)
from megatron_cpt.gate.verdict import VERDICT_NAME, VERDICT_PAGE, Verdict
from megatron_cpt.launch_ranks import run_in_child, run_ranks
from megatron_cpt.meter.energy import open_meter
from megatron_cpt.meter.killed import consumption_of, settle
from megatron_cpt.meter.ledger import STEP_RECORDS, Attempt, Planned, attempt
from megatron_cpt.meter.totals import attempts_of, totals_by_stage
from megatron_cpt.plan.benches import bench_inputs, copy_benches, read_benches
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.page import page
from megatron_cpt.plan.retry import with_changes
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan, grace_window_steps
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.manifest import (
    MANIFEST_NAME,
    Manifest,
    StageResult,
    build_stage,
    commit_in_use,
    finished,
    run_lock,
    versions_in_use,
    write_manifest,
)
from megatron_cpt.record.store import read_json, read_lines, require_free_space, write_json, write_text
from megatron_cpt.record.typed import from_plain, to_plain
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.record.vocab_layout import FITTED_ROWS, VocabLayout
from megatron_cpt.stage_names import STAGES, StageInfo

STOP_FILE = "stop-requested"
BASE_RECORD = "base.json"
LAUNCHER_VARIABLE = "MEGATRON_CPT_LAUNCHER"  # set by the job bodies in slurm/


def say(text: str) -> None:
    print(text, flush=True)


@dataclass
class Run:
    """One run: its configuration, its folder, and the records of its finished stages."""

    config: ExperimentConfig

    @classmethod
    def of_round(cls, config: ExperimentConfig) -> Run:
        """Return a run with the configuration of its current round: as composed, with what the retry policy has changed in it."""
        run = cls(config)
        changes = run.round.changes
        return cls(with_changes(config, changes)) if changes else run

    @property
    def round(self) -> Round:
        return current_round(self.folder)

    @property
    def limit(self) -> Breach | None:
        """The hard limit that ended training in this round, None when none did."""
        facts = self.manifest("train").facts if (self.of("train") / MANIFEST_NAME).exists() else {}
        return from_plain(Breach, facts["limit"], where=self.of("train")) if "limit" in facts else None

    @cached_property
    def folder(self) -> Path:
        return Path(self.config.runs_dir).resolve() / self.config.run_name

    @cached_property
    def base_folder(self) -> Path:
        return Path(self.config.model.path).resolve()

    def of(self, stage: str) -> Path:
        return self.folder / stage

    def manifest(self, stage: str) -> Manifest:
        return Manifest.load(self.of(stage))

    def fingerprints(self, *stages: str) -> dict[str, str]:
        return {stage: self.manifest(stage).fingerprint for stage in stages}

    @property
    def plan(self) -> RunPlan:
        return RunPlan.load(self.of("plan") / PLAN_NAME)

    @property
    def price(self) -> Figure:
        price = self.config.tariff.usd_per_device_hour
        return Unavailable(self.config.tariff.price_source or "no price is set") if price is None else price


# --- what each stage takes in -------------------------------------------------------------------------------------


def corpus_inputs(run: Run) -> dict[str, Any]:
    from megatron_cpt.corpus.sources import source_inputs  # noqa: PLC0415

    return {"sources": source_inputs(run.config.source)}


def vocab_inputs(run: Run) -> dict[str, Any]:
    ModelShape.from_hf_folder(run.base_folder)
    tokenizer = run.base_folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise DataError("The base model has no tokenizer.json.", where=run.base_folder, rule="a byte-level BPE tokenizer.json")
    settings = {key: value for key, value in asdict(run.config.tokenizer).items() if key != "row_init"}
    return {**run.fingerprints("corpus"), "tokenizer": settings, "base_tokenizer_sha256": sha256_file(tokenizer)}


def index_inputs(run: Run) -> dict[str, Any]:
    return run.fingerprints("corpus", "vocab")


def init_inputs(run: Run) -> dict[str, Any]:
    base = _model_files(run.base_folder)
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
    return {**run.fingerprints("gate"), "settings": settings, "instruct": _model_files(Path(instruct).resolve()) if instruct else {}}


def report_inputs(run: Run) -> dict[str, Any]:
    done = [stage.name for stage in STAGES if (run.of(stage.name) / MANIFEST_NAME).exists() and stage.name != "report"]
    bill = run.folder / "ledger.jsonl"
    return {**run.fingerprints(*done), "ledger_sha256": sha256_file(bill) if bill.exists() else ""}


# --- what each stage does -----------------------------------------------------------------------------------------


def corpus_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.corpus.build import build_corpus  # noqa: PLC0415

    build_corpus(result, sources=run.config.source, say=_indented)


def vocab_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.vocab.build import build_vocab  # noqa: PLC0415

    build_vocab(
        result,
        settings=run.config.tokenizer,
        base_folder=run.base_folder,
        corpus_folder=run.of("corpus"),
        corpus_facts=run.manifest("corpus").facts,
        say=_indented,
    )


def index_body(run: Run, result: StageResult, entry: Attempt) -> None:
    from megatron_cpt.index.build import build_index  # noqa: PLC0415

    build_index(
        result,
        corpus_folder=run.of("corpus"),
        vocab_folder=run.of("vocab"),
        corpus_facts=run.manifest("corpus").facts,
        say=_indented,
    )
    entry.tokens = sum(source["tokens"] for source in result.facts["sources"].values())


def init_body(run: Run, result: StageResult, _: Attempt) -> None:
    size = sum(path.stat().st_size for path in run.base_folder.glob("*.safetensors"))
    require_free_space(run.folder, 2 * size, purpose="the initial checkpoint")
    result.facts = run_in_child(
        _initialise_in_child,
        result.folder,
        base_folder=run.base_folder,
        vocab_folder=run.of("vocab"),
        row_init=run.config.tokenizer.row_init,
        domain_prefixes=_domain_prefixes(run) if run.config.tokenizer.row_init == FITTED_ROWS else [],
        seed=run.config.seed,
        backend=run.config.cluster.backend,
        threads=_threads_of_this_host(),
    )
    write_json(result.folder / BASE_RECORD, {"path": os.path.relpath(run.base_folder, run.folder)})
    facts = result.facts
    _indented(f"{facts['num_params']:,} parameters, {facts['num_new_rows']} new rows by the rule {facts['row_init']!r}")
    if facts["row_fit"]:
        _indented(
            f"rows fitted on {facts['row_fit']['positions']:,} positions of domain text: "
            f"{facts['row_fit']['held_out_nats_per_token_of_mean_rows']:.3f} -> {facts['row_fit']['held_out_nats_per_token']:.3f} nats per "
            "token on held-out ones"
        )
    _indented(f"old-id logits unmoved: largest difference {facts['probe_max_difference']:.1e}")


def _domain_prefixes(run: Run) -> list[Path]:
    sources = run.manifest("index").facts["sources"]
    return [run.of("index") / f"{name}.train" for name, facts in sources.items() if facts["role"] == "domain"]


def plan_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.plan.calibrate import measure_host  # noqa: PLC0415
    from megatron_cpt.plan.derive import derive  # noqa: PLC0415

    layout_path = run.of("vocab") / "vocab_layout.json"
    now = run.round
    benches = read_benches(run.config)
    plan = derive(
        run.config,
        init_facts=run.manifest("init").facts,
        index_facts=run.manifest("index").facts,
        corpus_facts=run.manifest("corpus").facts,
        shape=ModelShape.from_hf_folder(run.base_folder),
        vocab=from_plain(VocabLayout, read_json(layout_path), where=layout_path),
        identity=run.fingerprints("corpus", "vocab", "index", "init"),
        host=measure_host(run.config.cluster),
        round_number=now.number,
        num_retries=now.num_retries,
        earlier=None if now.resumes_from is None else earlier_of(run.folder, now.resumes_from),
        benches=benches,
    )
    copy_benches(plan.eval, benches, result.folder)
    plan.save(result.folder)
    text = page(plan)
    write_text(result.folder / "plan.txt", text)
    result.facts = {"fingerprint": plan.fingerprint, "num_steps": plan.num_steps, "num_tokens": plan.num_tokens}
    for line in text.rstrip().splitlines():
        _indented(line)


def baseline_body(run: Run, result: StageResult, _: Attempt) -> None:
    earlier = _baseline_before(run)
    if earlier is None:
        _evaluate(run, result, subjects="base,init")
        return
    write_json(result.folder / "eval.json", read_json(earlier / "eval.json"))
    result.facts = Manifest.load(earlier).facts
    _indented(f"the scores of {earlier.relative_to(run.folder)}: same models, texts, layout and code")


def _baseline_before(run: Run) -> Path | None:
    """Return the baseline of the round before where it would come out the same: models, what is scored, layout and code are equal."""
    rounds = past_rounds(run.folder)
    folder = rounds[-1] / "baseline" if rounds else None
    if folder is None or not (folder / MANIFEST_NAME).exists():
        return None
    manifest, plan, before = Manifest.load(folder), run.plan, RunPlan.load(rounds[-1] / "plan" / PLAN_NAME)
    manifest.check_outputs(folder)
    is_same = (
        manifest.inputs["init"] == run.manifest("init").fingerprint
        and (plan.eval, plan.layout, plan.vocab, plan.backend) == (before.eval, before.layout, before.vocab, before.backend)
        and (manifest.versions, manifest.commit) == (versions_in_use(), commit_in_use())
    )
    return folder if is_same else None


def eval_body(run: Run, result: StageResult, _: Attempt) -> None:
    _evaluate(run, result, subjects="train")


def train_body(run: Run, folder: Path, entry: Attempt) -> dict[str, Any]:
    """Train in place, since training resumes from what an earlier attempt left; return the facts of a finished run.

    Raises:
        Stopped, BudgetReached: a checkpoint was saved; run again to go on.
        CptError: a rank failed; its own words are on the terminal.
    """
    from megatron_cpt.train.outcome import OUTCOME_NAME, read_outcome  # noqa: PLC0415

    plan = run.plan
    folder.mkdir(parents=True, exist_ok=True)
    before, code = read_outcome(folder), 0
    if before is None or before.status != "limit":  # one that a limit ended is over, even if its command was killed before it said so
        (folder / OUTCOME_NAME).unlink(missing_ok=True)
        (folder / STOP_FILE).unlink(missing_ok=True)
        code = _ranks(run, plan, "megatron_cpt.train", [], stop_file=folder / STOP_FILE, attempt_id=entry.attempt_id)
        (folder / STOP_FILE).unlink(missing_ok=True)
    recorded = consumption_of(read_lines(run.folder / STEP_RECORDS), entry.attempt_id)
    if recorded is not None:  # all that is known of ranks that ended without a word
        entry.start_tokens, entry.tokens = recorded.start_tokens, recorded.tokens
        entry.source_tokens, entry.licence_tokens = recorded.source_tokens, recorded.licence_tokens
    outcome = read_outcome(folder)
    if outcome is None:
        raise CptError("Training ended without a word.", where=folder, value=f"torchrun exit {code}", next_step="Run again to resume.")
    licences = {entry.source: entry.licence for entry in plan.blend}
    entry.tokens = sum(outcome.source_tokens.values())  # this attempt's: the bill adds up attempts
    entry.source_tokens, entry.licence_tokens = outcome.source_tokens, _by_licence(outcome.source_tokens, licences)
    if outcome.status == "stopped":
        raise Stopped(f"Training stopped after step {outcome.step} of {plan.num_steps}: {outcome.reason}", next_step="Run again to go on.")
    if outcome.status == "budget":
        raise BudgetReached(f"A stop condition ended training after step {outcome.step}: {outcome.reason}", where=outcome.checkpoint)
    if outcome.status == "limit" and outcome.breach is not None:
        entry.status, entry.exit_code = "rolled_back", EXIT_ROLLED_BACK
        _indented(outcome.reason)
    elif outcome.status != "finished" or outcome.checkpoint is None:
        raise _failure_of_rank(outcome.exit_code, outcome.reason, folder)
    ended = {} if outcome.breach is None else {"limit": to_plain(outcome.breach)}
    if outcome.checkpoint is None:
        return {"step": outcome.step, "checkpoint": None, "checkpoint_sha256": None, "sources": {}, "tokens": entry.tokens, **ended}
    record = read_json(run.folder / outcome.checkpoint / "checkpoint.json")
    return {
        "step": outcome.step,
        "tokens": record["tokens_seen"],
        "checkpoint": outcome.checkpoint,
        "checkpoint_sha256": sha256_plain({name: file["sha256"] for name, file in record["files"].items()}),
        "sources": {
            name: {"samples": samples, "tokens": tokens}
            for name, samples, tokens in zip(record["sources"], record["source_samples"], record["source_tokens"], strict=True)
        },
        "licences": _by_licence(dict(zip(record["sources"], record["source_tokens"], strict=True)), licences),
        "skipped_steps": record.get("skipped_steps", 0),
        **ended,
    }


def _by_licence(source_tokens: dict[str, int], licences: dict[str, str]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, tokens in source_tokens.items():
        sums[licences[name]] = sums.get(licences[name], 0) + tokens
    return sums


def gate_body(run: Run, result: StageResult, _: Attempt) -> None:
    baseline, plan = read_json(run.of("baseline") / "eval.json"), run.plan
    facts = run.manifest("train").facts
    if run.limit:
        verdict = verdict_of_breach(baseline, plan.gate, run.limit, weights_sha256=facts["checkpoint_sha256"])
    else:
        candidate = read_json(run.of("eval") / "eval.json")
        verdict = decide(baseline, candidate, plan.gate, step=int(facts["step"]), grace_steps=grace_window_steps(plan))
    write_json(result.folder / VERDICT_NAME, to_plain(verdict))
    write_text(result.folder / VERDICT_PAGE, verdict_page(verdict, run_name=plan.run_name))
    result.facts = {"decision": verdict.decision, "reasons": list(verdict.reasons)}


def export_body(run: Run, result: StageResult, _: Attempt) -> None:
    verdict = Verdict.load(run.of("gate") / VERDICT_NAME)
    good = GoodCheckpoint.load(run.folder)
    if verdict.decision != "promote" or good.verdict_sha256 != verdict.fingerprint:
        raise DataError(
            "Only a promoted checkpoint is exported.", where=run.of("gate"), value=verdict.decision, next_step="See gate/verdict.json."
        )
    check_digest(run.folder, good)
    plan, settings, folder = run.plan, run.config.export, result.folder / "hf"
    size = sum(path.stat().st_size for path in run.base_folder.glob("*.safetensors"))
    require_free_space(run.folder, int(1.3 * size * (2 if settings.instruct_model else 1)), purpose="the exported model")
    threads = _threads_of_this_host()
    result.facts = run_in_child(
        _export_in_child,
        folder,
        checkpoint=run.folder / good.checkpoint / "model",
        base_folder=run.base_folder,
        tokenizer_folder=run.of("vocab") / "tokenizer",
        plan_path=run.of("plan") / PLAN_NAME,
        dtype=settings.dtype,
        max_shard_bytes=int(settings.max_shard_gb * 1e9),
        threads=threads,
    )
    _indented(f"{run.of('export') / 'hf'}: reloaded in transformers, logits equal to {result.facts['max_relative_difference']:.1e}")
    _indented(_size_change(result.facts, base_bytes=size))
    if settings.completion_tokens:
        result.facts["completions"] = run_in_child(
            _complete_in_child,
            settings.prompts or _held_out_beginnings(run),
            base_folder=run.base_folder,
            continued_folder=folder,
            start_id=plan.vocab.end_of_document_id,
            num_tokens=settings.completion_tokens,
            threads=threads,
        )
        for each in result.facts["completions"]:
            for label, text in (("prompt", each["prompt"]), ("base", each["base"]), ("continued", each["continued"])):
                _indented(f"{label:<11}{printable(text)}")
    card = _model_card(run, good=good, verdict=verdict, export_facts=result.facts)
    write_text(folder / "README.md", card)
    if settings.instruct_model:
        _add_chat(run, result, card=card, instruct_folder=Path(settings.instruct_model).resolve())


def _add_chat(run: Run, result: StageResult, *, card: str, instruct_folder: Path) -> None:
    """Write the second folder, with the instruct model's difference to the base added."""
    from megatron_cpt.export.card import with_chat  # noqa: PLC0415

    folder = result.folder / "hf-chat"
    result.facts["chat"] = run_in_child(
        _add_chat_in_child,
        folder,
        continued_folder=result.folder / "hf",
        base_folder=run.base_folder,
        instruct_folder=instruct_folder,
        max_shard_bytes=int(run.config.export.max_shard_gb * 1e9),
        threads=_threads_of_this_host(),
    )
    write_text(folder / "README.md", with_chat(card, instruct_sha256=sha256_plain(_model_files(instruct_folder))))
    share = result.facts["chat"]["delta_over_weights"]
    _indented(f"{run.of('export') / 'hf-chat'}: instruct minus base added, {share:.1%} of the weights' norm")


def _size_change(facts: dict[str, Any], *, base_bytes: int) -> str:
    kept = "the base's type" if facts["dtype"] == facts["base_dtype"] else f"the base has {facts['base_dtype']}"
    return f"{facts['weights_bytes'] / 1e6:.1f} MB of weights in {facts['dtype']} ({kept}, {base_bytes / 1e6:.1f} MB)"


def _held_out_beginnings(run: Run) -> list[str]:
    """Return a prompt of the first document of each held-out text."""
    from megatron_cpt.eval.texts import read_text  # noqa: PLC0415
    from megatron_cpt.export.prompts import beginnings  # noqa: PLC0415

    return beginnings([read_text(text, run.folder)[0].text for text in run.plan.eval.texts])


def _model_files(folder: Path) -> dict[str, str]:
    """Return the digest of everything in a Hugging Face folder that decides what its model computes."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.index.json"), folder / "config.json"])
    return {path.name: sha256_file(path) for path in files if path.is_file()}


def _model_card(run: Run, *, good: GoodCheckpoint, verdict: Verdict, export_facts: dict[str, Any]) -> str:
    from megatron_cpt.export.card import model_card  # noqa: PLC0415

    return model_card(
        run.plan,
        run.config.model,
        good=good,
        verdict=verdict,
        facts={stage.name: run.manifest(stage.name).facts for stage in STAGES if (run.of(stage.name) / MANIFEST_NAME).exists()},
        lineage={
            "base": sha256_plain(run.manifest("init").inputs["base"]),
            **run.fingerprints("corpus"),
            "tokenizer": run.plan.vocab.tokenizer_sha256,
            **run.fingerprints("vocab", "index", "init"),
        },
        totals=[total for total in totals_by_stage(attempts_of(run.folder)) if total.stage != "export"],
        completions=export_facts.get("completions", []),
        private=[str(run.folder), str(run.base_folder), f"{Path.home()}/"],
    )


def report_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.report.page import write_report  # noqa: PLC0415

    write_report(result.folder, run.folder)


# --- walking ------------------------------------------------------------------------------------------------------

Inputs = Callable[[Run], dict[str, Any]]
Body = Callable[[Run, StageResult, Attempt], None]
WIRES: dict[str, tuple[Inputs, Body | None]] = {
    "corpus": (corpus_inputs, corpus_body),
    "vocab": (vocab_inputs, vocab_body),
    "index": (index_inputs, index_body),
    "init": (init_inputs, init_body),
    "plan": (plan_inputs, plan_body),
    "baseline": (baseline_inputs, baseline_body),
    "train": (train_inputs, None),  # works in place
    "eval": (eval_inputs, eval_body),
    "gate": (gate_inputs, gate_body),
    "export": (export_inputs, export_body),
    "report": (report_inputs, report_body),
}
STAGES_ON_RANKS = ("baseline", "train", "eval")


def walk(config: ExperimentConfig, chosen: Sequence[StageInfo], *, begin: Literal["new round", "retry"] | None = None) -> None:
    """Run stages in order. Finished ones are passed over; a rollback still gets its report before it ends the walk.

    After a rollback the plan's retry policy begins the next round, as far as all stages that it does anew are among the chosen ones.

    Args:
        begin: a new round that a person asks for after a verdict, or the next one of the retry policy.

    Raises:
        CptError: the first stage that cannot be done; earlier stages stay finished.
    """
    run = Run(config)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with run_lock(run.folder):
        settle(run.folder)
        finish_move(run.folder)
        if begin == "new round":
            _begin_asked_round(run)
        elif begin == "retry":
            _begin_retry(Run.of_round(config))
        left: Sequence[StageInfo] = chosen
        while left:
            left = _walk_round(Run.of_round(config), left, chosen)
    if chosen[-1].name == "report":
        say("")
        say((run.of("report") / "summary.txt").read_text(encoding="utf-8").rstrip())


def _walk_round(run: Run, stages: Sequence[StageInfo], chosen: Sequence[StageInfo]) -> Sequence[StageInfo]:
    """Run stages in one round; return those of the next round when a rollback begins one, none when all are done.

    Raises:
        RolledBack: no retry is left, or the stages that it would do anew are not all among the chosen ones.
    """
    for stage in stages:
        try:
            _walk_one(run, stage)
        except RolledBack as rollback:
            if any(later.name == "report" for later in chosen):
                _walk_one(run, STAGES[-1])
            following = next_retry(run.round, run.plan)
            if following is None:
                raise rollback_without_retry(run, rollback) from None
            names = [each.name for each in STAGES]
            needed = STAGES[names.index(following.first_stage) : names.index("gate") + 1]
            if any(each not in chosen for each in needed):
                raise RolledBack(
                    str(rollback).splitlines()[0],
                    where=run.of("gate") / VERDICT_NAME,
                    value="; ".join(Verdict.load(run.of("gate") / VERDICT_NAME).reasons),
                    next_step=f"{following.why}. It begins with: megatron-cpt run --retry --until plan ...; then run or submit again.",
                ) from None
            _begin_retry(run)
            return [each for each in chosen if names.index(each.name) >= names.index(following.first_stage)]
    return []


def rollback_without_retry(run: Run, rollback: RolledBack) -> RolledBack:
    """Return the rollback that ends the walk, with what was tried in each round when there was more than one."""
    tried = tried_rounds(run.folder)
    if len(tried) < 2:
        return rollback
    return RolledBack(
        "The candidate was rolled back, and the retry policy has nothing more to try. A person decides now:\n    " + "\n    ".join(tried),
        where=run.of("gate") / VERDICT_NAME,
        value=f"{GOOD_NAME} names {GoodCheckpoint.load(run.folder).checkpoint}",
        next_step="Change one thing and begin a round of your own: megatron-cpt run --new-round ... <overrides>.",
    )


def _begin_asked_round(run: Run) -> None:
    """Begin the round that a person asked for, after a verdict and with a configuration that differs from the one that was judged.

    Raises:
        ConfigError: there is no verdict yet, nothing differs, or something differs that a round cannot change.
    """
    now = run.round
    if not (run.of("gate") / MANIFEST_NAME).exists():
        if now.number > 1 and not (run.of("plan") / MANIFEST_NAME).exists():
            return  # a command that was killed had begun it
        raise ConfigError(
            f"Round {now.number} has no verdict yet, so that no new round can begin.",
            where=run.of("gate"),
            next_step="Leave out --new-round to go on with this round. After changes use a new run_name.",
        )
    _carry_out(run, say_it=False)
    if now.changes:
        dropped = ", then ".join(map(str, now.changes))
        say(f"--- a round that is asked for is as it is asked for: the retries' changes are dropped ({dropped})")
    for stage in STAGES[: [each.name for each in STAGES].index("plan")]:
        finished(run.of(stage.name), WIRES[stage.name][0](run))
    before, now_wanted = run.manifest("plan").inputs, plan_inputs(run)
    if all(before.get(key) == now_wanted[key] for key in ("settings", "seed")):
        raise ConfigError(
            "Nothing differs from the round that was judged, so that a new one would end alike.",
            where=run.of("plan"),
            next_step="Change something with it, e.g. megatron-cpt run --new-round ... schedule.peak_lr=1e-5 or blend.num_tokens=2000000.",
        )
    _begin_round(run, asked_round(now))


def _begin_retry(run: Run) -> None:
    """Begin the next round of the retry policy.

    Raises:
        ConfigError: the last verdict is no rollback, or the policy has nothing more to try.
    """
    now = run.round
    if now.num_retries and not (run.of("plan") / MANIFEST_NAME).exists():
        return  # a command that was killed had begun it
    gate = run.of("gate") / VERDICT_NAME
    if not gate.exists() or Verdict.load(gate).decision != "rollback":
        raise ConfigError("Only a rollback is retried.", where=gate, next_step="Run the line to its verdict first.")
    following = next_retry(now, run.plan)
    if following is None:
        raise ConfigError(
            f"The plan allows {run.plan.gate.max_retries} retries, and {now.num_retries} were made.",
            where="gate.max_retries",
            next_step="Begin a round of your own: megatron-cpt run --new-round ... <overrides>.",
        )
    _carry_out(run, say_it=False)
    _begin_round(run, following)


def _begin_round(run: Run, following: Round) -> None:
    point = None
    verdict = Verdict.load(run.of("gate") / VERDICT_NAME)
    if verdict.decision == "unknown":  # neither refused nor promoted: what was trained is gone on with
        facts = run.manifest("train").facts
        point = resume_point(run.folder, facts["checkpoint"], facts["checkpoint_sha256"])
    else:
        good = GoodCheckpoint.load(run.folder)
        if good.is_trained:
            point = resume_point(run.folder, good.checkpoint, good.sha256)
    begin_round(run.folder, going_on_from(following, point), stages=[stage.name for stage in STAGES])
    say(f"--- round {following.number}, {following.why}: from {point.checkpoint if point else 'the initial weights'}")


def _walk_one(run: Run, stage: StageInfo) -> None:
    if stage.name == "eval" and run.limit:
        stage = next(each for each in STAGES if each.name == "gate")  # a hard limit ended training: its verdict needs no scores
    number = [each.name for each in STAGES].index(stage.name) + 1
    title = f"[{number:>2}/{len(STAGES)}] {stage.name:<9}"
    take_inputs, body = WIRES[stage.name]
    inputs = take_inputs(run)
    if stage.name == "report" and _outdated(run.of("report"), inputs):
        shutil.rmtree(run.of("report"))  # a page over the records is made anew when they have grown
    done = finished(run.of(stage.name), inputs, next_step=_next_step_after_change(run, stage))
    if done is not None:
        say(f"{title} finished before with equal inputs")
    elif stage.name == "report":
        say(f"{title} {stage.does}")
        build_stage(run.of("report"), inputs, lambda result: report_body(run, result, None))  # type: ignore[arg-type]  # reading a bill adds no line to it
    else:
        say(f"{title} {stage.does}")
        with _on_the_bill(run, stage.name) as entry:
            if body is None:
                facts = train_body(run, run.of(stage.name), entry)
                write_manifest(run.of(stage.name), stage.name, inputs, facts, only=("outcome.json",))
            else:
                build_stage(run.of(stage.name), inputs, lambda result: body(run, result, entry))
        say(f"{'':>18}done in {entry.seconds:.1f} s")
    if stage.name == "gate":
        _carry_out(run)


def _next_step_after_change(run: Run, stage: StageInfo) -> str | None:
    """Say how a run may go on with other settings after its verdict; None where it may not."""
    if stage.name != "plan" or not (run.of("gate") / MANIFEST_NAME).exists():
        return None
    return "To go on from the good checkpoint with these settings: megatron-cpt run --new-round ...; or use a new run_name."


def _carry_out(run: Run, *, say_it: bool = True) -> None:
    """Do what the recorded verdict says; safe after a kill, because doing it twice is doing it once.

    Args:
        say_it: show the rules and the decision, and raise unless it is to promote.
    """
    verdict = Verdict.load(run.of("gate") / VERDICT_NAME)
    candidate = run.manifest("train").facts["checkpoint"]
    init = {name: file.sha256 for name, file in run.manifest("init").outputs.items() if name.startswith("checkpoint/")}
    carry_out(run.folder, verdict, checkpoint=candidate, init_sha256=sha256_plain(init))
    if verdict.decision == "rollback":
        run_in_child(_show_events_in_child, run.of("train"), plan_path=run.of("plan") / PLAN_NAME)
    if not say_it:
        return
    for line in verdict_lines(verdict):
        _indented(line)
    if verdict.decision == "rollback":
        raise RolledBack(
            "The candidate was rolled back:\n    " + "\n    ".join(verdict.reasons),
            where=run.of("gate") / VERDICT_NAME,
            value=f"{GOOD_NAME} names {GoodCheckpoint.load(run.folder).checkpoint}",
            next_step="Change one thing (more replay, a lower rate) and begin a new round: megatron-cpt run --new-round ... <overrides>.",
        )
    if verdict.decision == "unknown":
        raise DataError(
            "The verdict is unknown, which is never a pass:\n    " + "\n    ".join(verdict.reasons),
            where=run.of("gate") / VERDICT_PAGE,
            value=f"{run.of('train').parent / GOOD_NAME} is as it was",
            next_step="More items decide (eval.max_bytes, a larger benchmark), or a margin that these can show, or longer training.",
        )


def audit(config: ExperimentConfig) -> None:
    """Check the records of a run.

    Raises:
        DataError: listing every problem.
    """
    run = Run(config)
    problems = audit_run(run.folder)
    if problems:
        listed = "\n".join(f"    {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise DataError(f"The records of the run do not hold:\n{listed}", where=run.folder)
    say(f"The records of {run.config.run_name} are complete, and its verdict was carried out.")


def submit(config: ExperimentConfig, *, overrides: Sequence[str], config_dir: Path | None, dry_run: bool) -> None:
    """Send the line to Slurm as a chain of jobs; with `dry_run` print the lines only."""
    from megatron_cpt.submit.slurm import line_of_jobs  # noqa: PLC0415
    from megatron_cpt.submit.submit import submit_line  # noqa: PLC0415

    run = Run(config)
    corpus_inputs(run)
    ModelShape.from_hf_folder(run.base_folder)
    passed_on = [*overrides, *([f"--config-dir={config_dir.resolve()}"] if config_dir else [])]
    jobs = line_of_jobs(
        cluster=config.cluster,
        run_name=config.run_name,
        run_dir=run.folder,
        slurm_dir=Path(__file__).resolve().parent.parent / "slurm",
        overrides=passed_on,
    )
    submission = submit_line(jobs, dry_run=dry_run)
    if dry_run:
        for path, text in submission.scripts.items():
            say(f"# --- {path}\n{text}")
    for line in submission.lines:
        say(line)
    if submission.job_ids:
        write_json(run.folder / "slurm" / "jobs.json", submission.job_ids)


# --- helpers ------------------------------------------------------------------------------------------------------


def _indented(text: str) -> None:
    """Print a line under the current stage's title; a stage's own name at its head would only repeat the title."""
    head, _, rest = text.partition(": ")
    say(f"{'':>18}{rest if head in WIRES else text}".rstrip())


def _outdated(folder: Path, inputs: dict[str, Any]) -> bool:
    path = folder / MANIFEST_NAME
    if not path.exists():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("inputs") != inputs)
    except ValueError:
        return True


@contextmanager
def _on_the_bill(run: Run, stage: str) -> Iterator[Attempt]:
    planned, num_ranks = None, 1
    if stage in STAGES_ON_RANKS:
        plan = run.plan
        num_ranks = plan.layout.num_ranks
        if stage == "train":
            planned = Planned(plan.estimate.seconds, plan.estimate.tokens, plan.estimate.usd, plan.estimate.kwh)
    meter = open_meter(run.config.cluster.backend if stage in STAGES_ON_RANKS else "cpu")
    with attempt(
        run.folder,
        stage,
        num_ranks=num_ranks,
        usd_per_device_hour=run.price,
        meter=meter,
        planned=planned,
        round_number=run.round.number,
    ) as entry:
        yield entry


def _threads_of_this_host() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ranks(
    run: Run, plan: RunPlan, module: str, arguments: list[str], *, stop_file: Path | None = None, attempt_id: str | None = None
) -> int:
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if plan.layout.num_nodes != 1 and launcher is None:
        raise CptError(
            f"The plan needs {plan.layout.num_nodes} nodes, and this command starts the ranks of one.",
            next_step="Use `megatron-cpt submit`, or launch/multi_node.sh on each node.",
        )
    plan_path = run.of("plan") / PLAN_NAME
    return run_ranks(
        module,
        [f"plan={plan_path}", *arguments],
        ranks_per_node=plan.layout.num_ranks // plan.layout.num_nodes,
        threads_per_rank=plan.layout.threads_per_rank,
        launcher=launcher,
        stop_file=stop_file,
        attempt_id=attempt_id,
    )


def _evaluate(run: Run, result: StageResult, *, subjects: str) -> None:
    plan = run.plan
    out = result.folder / "eval.json"
    code = _ranks(run, plan, "megatron_cpt.eval", [f"subjects={subjects}", f"out={out}"])
    if code != 0 or not out.exists():
        raise CptError("The evaluation failed; the rank's own words are above.", where=result.folder.name, value=f"torchrun exit {code}")
    report = read_json(out)
    result.facts = {
        name: {text: score["bits_per_byte"] for text, score in subject["texts"].items()} for name, subject in report["subjects"].items()
    }
    for name, scores in result.facts.items():
        _indented(f"{name:<6}" + "  ".join(f"{text} {float(bits):.4f}" for text, bits in scores.items()) + "  bits per byte")


def _failure_of_rank(exit_code: int, reason: str, folder: Path) -> CptError:
    kinds: dict[int, type[CptError]] = {2: ConfigError, 3: DataError, 4: CheckpointError}
    return kinds.get(exit_code, CptError)(
        "Training failed.", where=folder, value=reason, next_step="Mend the cause, then run again to resume."
    )


def _initialise_in_child(
    folder: Path,
    *,
    base_folder: Path,
    vocab_folder: Path,
    row_init: str,
    domain_prefixes: list[Path],
    seed: int,
    backend: str,
    threads: int,
) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    chosen = choose("cpu" if backend == "cpu" else "cuda")
    import torch  # noqa: PLC0415

    from megatron_cpt.index.sample import sample_windows  # noqa: PLC0415
    from megatron_cpt.model.fit_rows import WINDOW_TOKENS, num_windows  # noqa: PLC0415
    from megatron_cpt.model.initialise import initialise  # noqa: PLC0415

    torch.set_num_threads(threads)
    result = StageResult(folder)
    vocab = from_plain(VocabLayout, read_json(vocab_folder / "vocab_layout.json"), where=vocab_folder / "vocab_layout.json")
    count = num_windows(vocab.num_ids - vocab.num_base_ids) if domain_prefixes else 0
    windows = sample_windows(domain_prefixes, num_windows=count, window_tokens=WINDOW_TOKENS, seed=seed)
    initialise(result, base_folder=base_folder, vocab_folder=vocab_folder, row_init=row_init, backend=chosen, domain_windows=windows)
    return result.facts


def _export_in_child(
    folder: Path,
    *,
    checkpoint: Path,
    base_folder: Path,
    tokenizer_folder: Path,
    plan_path: Path,
    dtype: str | None,
    max_shard_bytes: int,
    threads: int,
) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    plan = RunPlan.load(plan_path)
    chosen = choose(plan.backend)
    import torch  # noqa: PLC0415

    from megatron_cpt.export.folder import export_folder  # noqa: PLC0415

    torch.set_num_threads(threads)
    return export_folder(
        folder,
        checkpoint=checkpoint,
        base_folder=base_folder,
        tokenizer_folder=tokenizer_folder,
        shape=plan.shape,
        vocab=plan.vocab,
        backend=chosen,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )


def _complete_in_child(
    prompts: list[str], *, base_folder: Path, continued_folder: Path, start_id: int, num_tokens: int, threads: int
) -> list[dict[str, Any]]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.export.completions import side_by_side  # noqa: PLC0415

    torch.set_num_threads(threads)
    return side_by_side(prompts, base_folder=base_folder, continued_folder=continued_folder, start_id=start_id, num_tokens=num_tokens)


def _add_chat_in_child(
    folder: Path, *, continued_folder: Path, base_folder: Path, instruct_folder: Path, max_shard_bytes: int, threads: int
) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.export.chat import add_chat  # noqa: PLC0415

    torch.set_num_threads(threads)
    return add_chat(
        folder,
        continued_folder=continued_folder,
        base_folder=base_folder,
        instruct_folder=instruct_folder,
        max_shard_bytes=max_shard_bytes,
    )


def _show_events_in_child(train_dir: Path, *, plan_path: Path) -> None:
    from megatron_cpt.train.tracking import show_events  # noqa: PLC0415

    show_events(train_dir, RunPlan.load(plan_path))
