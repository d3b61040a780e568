"""Makes a judged run's bad continuation in a copy, lets the run's own gate judge it, and tests every promise of the rollback."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cpt import stages
from megatron_cpt.config.schema import DrillConfig, ExperimentConfig
from megatron_cpt.drill import promises
from megatron_cpt.drill.bad_plan import KINDS, Kind, bad_plan, checkpoint_under, last_blend
from megatron_cpt.drill.page import DrillResult, checklist, markdown
from megatron_cpt.drill.poison import poison_index
from megatron_cpt.drill.promises import Checklist
from megatron_cpt.drill.share import DRILLS, changes, only_grew, share_folder, snapshot
from megatron_cpt.errors import CheckpointError, ConfigError, CptError, DataError, RolledBack, Stopped
from megatron_cpt.gate.act import GOOD_NAME, INIT_CHECKPOINT, LEDGER, METRICS, GoodCheckpoint
from megatron_cpt.gate.verdict import VERDICT_NAME
from megatron_cpt.line.exporting import export_body
from megatron_cpt.line.inputs import export_inputs
from megatron_cpt.line.run import Run, say
from megatron_cpt.meter.energy import open_meter
from megatron_cpt.meter.killed import settle
from megatron_cpt.meter.ledger import attempt
from megatron_cpt.plan.benches import COPIES
from megatron_cpt.plan.page import page
from megatron_cpt.plan.run_plan import BlendEntry, RunPlan
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.manifest import Manifest, StageResult, build_stage, run_lock
from megatron_cpt.record.store import append_line, read_json, read_lines, write_json, write_text
from megatron_cpt.stage_names import STAGES

STAGE = "drill"  # on the run's ledger
RECORD_NAME, PAGE_NAME = "drill.json", "drill.md"
CHECKPOINT_RECORD = "checkpoint.json"
SHARED_STAGES = ("corpus", "vocab", "index", "init", "baseline")  # the baseline's scores are of the same texts and the same base
WALKED_STAGES = ("train", "eval", "gate")
MADE = "a bad continuation trains and is scored"
UNTOUCHED = "the run itself is untouched"


def drill(config: ExperimentConfig, kinds: Sequence[Kind] = KINDS) -> list[DrillResult]:
    """Hold the drills one after the other, print a checklist of each and write `drill.json` and `drill.md` into its folder.

    Raises:
        DataError: a promise did not hold, or no checkpoint of the run was judged yet. All broken promises are listed.
        ConfigError: the drill's settings make nothing bad.
        CheckpointError: the good checkpoint is damaged before anything began.
    """
    _check_settings(config.drill)
    run = Run(config)
    if not (run.folder / GOOD_NAME).exists():
        raise DataError(
            "A drill needs a run whose candidate was judged.",
            where=run.folder / GOOD_NAME,
            next_step=f"Run the line first: megatron-cpt run run_name={config.run_name} ...",
        )
    with run_lock(run.folder):
        settle(run.folder)
        results = [_hold(run, kind) for kind in kinds]
    broken = [f"{result.name}: {promise.promise}: {promise.seen}" for result in results for promise in result.promises if not promise.held]
    if broken:
        listed = "\n".join(f"    {number}. {line}" for number, line in enumerate(broken, 1))
        raise DataError(
            f"The drill found promises that do not hold:\n{listed}",
            where=run.folder / DRILLS,
            next_step="Where the gate let a bad run pass: tighten its rules, or raise drill.rate_steps, rate_factor or blend_steps.",
        )
    say(f"Every promise held in {len(results)} drill{'s' if len(results) != 1 else ''}.")
    return results


def _check_settings(settings: DrillConfig) -> None:
    if min(settings.rate_steps, settings.blend_steps) < 1:
        raise ConfigError(
            "A drill needs steps.", value=f"rate_steps={settings.rate_steps}, blend_steps={settings.blend_steps}", rule="1 or more each"
        )
    if not settings.rate_factor > 1:
        raise ConfigError("drill.rate_factor makes no rate too high.", value=settings.rate_factor, rule="above 1, such as 100")


def _hold(run: Run, kind: Kind) -> DrillResult:
    """Hold one drill and write what came of it."""
    good = GoodCheckpoint.load(run.folder)
    _require_intact(run, good)
    before, bill = snapshot(run.folder), run.folder / LEDGER
    bill_before = (bill.stat().st_size, sha256_file(bill)) if bill.exists() else (0, "")
    copy = Run(dataclasses.replace(run.config, runs_dir=str(run.folder / DRILLS), run_name=_next_name(run.folder / DRILLS, kind)))
    say(f"== drill {copy.config.run_name}: a bad continuation of {good.checkpoint}")
    checks, started = Checklist(), time.monotonic()
    plan = run.plan
    backend = run.config.cluster.backend
    with attempt(
        run.folder,
        STAGE,
        num_ranks=plan.layout.num_ranks,
        usd_per_device_hour=run.price,
        meter=open_meter(backend),
        project_dir=run.folder.parent,
        num_nodes=plan.layout.num_nodes,
        device="gpu" if backend == "cuda" else "cpu",
        site=run.site,
    ) as entry:
        bad = _prepare(run, copy, kind, good)
        entry.tokens = _num_steps(run, kind) * plan.layout.tokens_per_step
        _walk(checks, copy)
        _test(checks, copy, good)
    checks.test(UNTOUCHED, lambda: _untouched(run, before, bill_before))
    result = DrillResult(
        name=copy.config.run_name, kind=kind, bad=bad, run=run.config.run_name, good_checkpoint=good.checkpoint, good_sha256=good.sha256,
        num_steps=_num_steps(run, kind), tokens=entry.tokens, seconds=time.monotonic() - started, promises=tuple(checks.promises),
    )  # fmt: skip
    write_text(copy.folder / PAGE_NAME, markdown(result))
    write_json(copy.folder / RECORD_NAME, result.to_record())
    for line in checklist(result.promises):
        say(f"  {line}")
    say(f"  {copy.folder / PAGE_NAME}")
    return result


def _num_steps(run: Run, kind: Kind) -> int:
    return run.config.drill.rate_steps if kind == "rate" else run.config.drill.blend_steps


def _require_intact(run: Run, good: GoodCheckpoint) -> None:
    found = promises.weights_sha256(run.folder, good.checkpoint)
    if found != good.sha256:
        raise CheckpointError(
            "The good checkpoint is not the one that was judged.", where=run.folder / good.checkpoint, value=found, rule=good.sha256
        )


def _next_name(folder: Path, kind: Kind) -> str:
    number = 1
    while (folder / f"{kind}-{number}").exists():
        number += 1
    return f"{kind}-{number}"


# --- the bad continuation -----------------------------------------------------------------------------------------


def _prepare(run: Run, copy: Run, kind: Kind, good: GoodCheckpoint) -> str:
    """Fill the copy up to the good checkpoint and a bad plan; return in words what is bad."""
    plan, settings = run.plan, run.config.drill
    for stage in SHARED_STAGES:
        if not (kind == "blend" and stage == "index"):
            share_folder(run.of(stage), copy.of(stage))
    shutil.copyfile(run.folder / GOOD_NAME, copy.folder / GOOD_NAME)
    for line in read_lines(run.folder / LEDGER):
        if line.get("stage") == "baseline":  # whose scores the copy is judged by; the audit asks what they took
            append_line(copy.folder / LEDGER, line)
    identity, poisoned = dict(plan.identity), None
    if kind == "blend":
        poisoned = _poison(run, copy, plan, num_tokens=_num_steps(run, kind) * plan.layout.tokens_per_step)
        identity["index"] = copy.manifest("index").fingerprint
    record: dict[str, Any] = {"step": 0}
    if good.checkpoint != INIT_CHECKPOINT:
        share_folder(run.folder / good.checkpoint, copy.folder / good.checkpoint, without=(CHECKPOINT_RECORD,))
        shutil.copyfile(run.folder / METRICS, copy.folder / METRICS)  # it grows line by line: a shared one would grow in the run too
        record = read_json(run.folder / good.checkpoint / CHECKPOINT_RECORD)
    peak_lr = plan.schedule.peak_lr * (settings.rate_factor if kind == "rate" else 1.0)
    worse = bad_plan(
        plan,
        name=copy.config.run_name,
        good_step=int(record["step"]),
        num_steps=_num_steps(run, kind),
        peak_lr=peak_lr,
        poisoned=poisoned,
        identity=identity,
    )
    build_stage(copy.of("plan"), {"drill": kind, "plan": run.manifest("plan").fingerprint}, lambda result: _save_plan(run, worse, result))
    if good.checkpoint != INIT_CHECKPOINT:
        write_json(copy.folder / good.checkpoint / CHECKPOINT_RECORD, checkpoint_under(worse, record))
    if poisoned is not None:
        return f"the whole blend is {poisoned.source}, garbage of a few symbols, at the run's peak rate {peak_lr:g}"
    return f"the peak rate times {settings.rate_factor:g} ({peak_lr:g})"


def _save_plan(run: Run, plan: RunPlan, result: StageResult) -> None:
    plan.save(result.folder)
    if (run.of("plan") / COPIES).is_dir():
        share_folder(run.of("plan") / COPIES, result.folder / COPIES)  # the benchmarks, which a plan keeps beside it
    write_text(result.folder / "plan.txt", page(plan))
    result.facts = {"fingerprint": plan.fingerprint, "num_steps": plan.num_steps, "num_tokens": plan.num_tokens}


def _poison(run: Run, copy: Run, plan: RunPlan, *, num_tokens: int) -> BlendEntry:
    """Build the copy's index stage from a poisoned beginning of the source with the largest share; return that source."""
    shares = last_blend(plan)
    entry = max(shares, key=lambda each: (shares[each], each.source))
    name = f"{entry.source}-poisoned"
    inputs = {"poisoned": entry.source, "index": run.manifest("index").fingerprint, "num_tokens": num_tokens}

    def body(result: StageResult) -> None:
        documents, tokens = poison_index(
            run.folder / entry.prefix,
            result.folder / f"{name}.train",
            num_ids=plan.vocab.num_ids,
            end_id=plan.vocab.end_of_document_id,
            num_tokens=num_tokens,
        )
        result.facts = {"sources": {name: {"role": entry.role, "licence": entry.licence, "documents": documents, "tokens": tokens}}}

    manifest: Manifest = build_stage(copy.of("index"), inputs, body)
    return dataclasses.replace(
        entry, source=name, prefix=f"index/{name}.train", share=1.0, num_tokens=manifest.facts["sources"][name]["tokens"]
    )


def _walk(checks: Checklist, copy: Run) -> None:
    """Train, score and judge the copy as any run; the rollback that must follow is no failure."""

    def look() -> tuple[bool, str]:
        try:
            stages.walk(copy.config, [stage for stage in STAGES if stage.name in WALKED_STAGES])
        except RolledBack:
            say(f"{'':>18}rolled back, as it must be")
        except Stopped:
            raise
        except CptError as error:
            if not (copy.of("gate") / VERDICT_NAME).exists():
                return False, " ".join(str(error).split())
        steps = copy.manifest("train").facts
        return True, f"trained up to step {steps['step']}"

    checks.test(MADE, look)


# --- what must be true afterwards ---------------------------------------------------------------------------------


def _test(checks: Checklist, copy: Run, good: GoodCheckpoint) -> None:
    rest = (*promises.AFTER_ROLLBACK, promises.REFUSED, promises.RECORDS)
    if checks.broken:
        checks.skip(promises.CAUGHT, *rest, because="there was no bad continuation to judge")
    elif not checks.test(promises.CAUGHT, lambda: promises.caught(copy.folder)):
        checks.skip(*rest, because="there was no rollback")
    else:
        promises.check_rollback(checks, copy.folder, good=good)
        checks.test(promises.REFUSED, lambda: _export_refuses(copy))
        checks.test(promises.RECORDS, lambda: promises.records_hold(copy.folder))


def _export_refuses(copy: Run) -> tuple[bool, str]:
    try:
        build_stage(copy.of("export"), export_inputs(copy), lambda result: export_body(copy, result, None))  # type: ignore[arg-type]
    except ConfigError:
        raise  # such as a full disk: that is no refusal
    except CptError as error:
        return not copy.of("export").exists(), str(error).splitlines()[0]
    return False, f"{copy.of('export')} was written"


def _untouched(run: Run, before: dict[str, str], bill_before: tuple[int, str]) -> tuple[bool, str]:
    changed = changes(before, snapshot(run.folder))
    size, digest = bill_before
    if size and not only_grew(run.folder / LEDGER, size_before=size, sha256_before=digest):
        changed.append(LEDGER)
    if changed:
        return False, f"changed: {', '.join(changed)}"
    return True, f"{len(before)} files as before, {GOOD_NAME} among them; {LEDGER} only grew by the drill's own lines"
