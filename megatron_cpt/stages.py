"""Walks the line: passes over finished stages, runs the others with their bill, and goes on after a rollback as the plan says.

Stage packages never import each other; `megatron_cpt/line/` hands one stage's record to the next. Torch loads in children only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import DataError, RolledBack
from megatron_cpt.gate.audit import audit as audit_run
from megatron_cpt.gate.rounds import finish_move, next_retry
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.line.deciding import do_verdict, gate_body
from megatron_cpt.line.exporting import export_body, report_body
from megatron_cpt.line.inputs import INPUTS
from megatron_cpt.line.jobs import bill_jobs
from megatron_cpt.line.preparing import corpus_body, index_body, init_body, plan_body, vocab_body
from megatron_cpt.line.rounds import begin_asked_round, begin_retry, rollback_without_retry
from megatron_cpt.line.run import Run, say
from megatron_cpt.line.scoring import baseline_body, eval_body
from megatron_cpt.line.training import train_body
from megatron_cpt.meter.energy import open_meter
from megatron_cpt.meter.here import slurm_job
from megatron_cpt.meter.killed import settle
from megatron_cpt.meter.ledger import LEDGER_NAME, Attempt, Planned, attempt
from megatron_cpt.record.manifest import MANIFEST_NAME, StageResult, build_stage, finished, run_lock, write_manifest
from megatron_cpt.record.store import append_line
from megatron_cpt.record.take_over import take_over
from megatron_cpt.record.unknown import combine
from megatron_cpt.stage_names import STAGES, StageInfo

Body = Callable[[Run, StageResult, Attempt], None]
BODIES: dict[str, Body | None] = {
    "corpus": corpus_body,
    "vocab": vocab_body,
    "index": index_body,
    "init": init_body,
    "plan": plan_body,
    "baseline": baseline_body,
    "train": None,  # works in place
    "eval": eval_body,
    "gate": gate_body,
    "export": export_body,
    "report": report_body,
}
STAGES_ON_RANKS = ("baseline", "train", "eval")


SHARED = ("corpus", "vocab", "index", "init")  # their inputs decide them whole; the plan and what follows from it are a run's own


def walk(
    config: ExperimentConfig,
    chosen: Sequence[StageInfo],
    *,
    begin: Literal["new round", "retry"] | None = None,
    siblings: Sequence[Path] = (),
) -> None:
    """Run stages in order. Finished ones are passed over; a rollback still gets its report before it ends the walk.

    After a rollback the plan's retry policy begins the next round, as far as all stages that it does anew are among the chosen ones.

    Args:
        begin: a new round that a person asks for after a verdict, or the next one of the retry policy.
        siblings: folders of runs whose finished stages before the plan are taken over where the inputs are equal.

    Raises:
        CptError: the first stage that cannot be done; earlier stages stay finished.
    """
    run = Run(config)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with run_lock(run.folder):
        settle(run.folder, project_dir=run.folder.parent)
        finish_move(run.folder)
        if begin == "new round":
            begin_asked_round(run)
        elif begin == "retry":
            begin_retry(Run.of_round(config))
        left: Sequence[StageInfo] = chosen
        while left:
            left = _walk_round(Run.of_round(config), left, chosen, siblings)
    if chosen[-1].name == "report":
        say("")
        say((run.of("report") / "summary.txt").read_text(encoding="utf-8").rstrip())


def _walk_round(run: Run, stages: Sequence[StageInfo], chosen: Sequence[StageInfo], siblings: Sequence[Path]) -> Sequence[StageInfo]:
    """Run stages in one round; return those of the next round when a rollback begins one, none when all are done.

    Raises:
        RolledBack: no retry is left, or the stages that it would do anew are not all among the chosen ones.
    """
    for stage in stages:
        try:
            _walk_one(run, stage, siblings)
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
            begin_retry(run)
            return [each for each in chosen if names.index(each.name) >= names.index(following.first_stage)]
    return []


def _walk_one(run: Run, stage: StageInfo, siblings: Sequence[Path] = ()) -> None:
    if stage.name == "eval" and run.limit:
        stage = next(each for each in STAGES if each.name == "gate")  # a hard limit ended training: its verdict needs no scores
    number = [each.name for each in STAGES].index(stage.name) + 1
    title = f"[{number:>2}/{len(STAGES)}] {stage.name:<9}"
    if stage.name == "report" and slurm_job() is not None:
        bill_jobs(run)
    inputs, body = INPUTS[stage.name](run), BODIES[stage.name]
    if stage.name == "report" and _outdated(run.of("report"), inputs):
        shutil.rmtree(run.of("report"))  # a page over the records is made anew when they have grown
    done = finished(run.of(stage.name), inputs, next_step=_next_step_after_change(run, stage))
    if done is None and stage.name in SHARED and (done := take_over(run.of(stage.name), inputs, siblings)):
        note = {"kind": "event", "event": "taken_over", "stage": stage.name, "from": done.taken_from, "fingerprint": done.fingerprint}
        append_line(run.folder / LEDGER_NAME, note)  # what it took is on that run's bill, and once on the project's
        say(f"{title} taken over from {done.taken_from}, which finished it with equal inputs")
    elif done is not None:
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
                resumes = stage.name == "index"  # source by source
                build_stage(run.of(stage.name), inputs, lambda result: body(run, result, entry), is_resumed=resumes)
        say(f"{'':>18}done in {entry.seconds:.1f} s")
    if stage.name == "gate":
        do_verdict(run)


def _next_step_after_change(run: Run, stage: StageInfo) -> str | None:
    """Say how a run may go on with other settings after its verdict; None where it may not."""
    if stage.name != "plan" or not (run.of("gate") / MANIFEST_NAME).exists():
        return None
    return "To go on from the good checkpoint with these settings: megatron-cpt run --new-round ...; or use a new run_name."


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
    planned, num_ranks, num_nodes = None, 1, 1
    if stage in STAGES_ON_RANKS:
        plan = run.plan
        num_ranks, num_nodes = plan.layout.num_ranks, plan.layout.num_nodes
        if stage == "train":
            estimate = plan.estimate
            carbon = combine(lambda kg: kg * 1000, estimate.kg_co2e)
            planned = Planned(estimate.seconds, estimate.tokens, estimate.usd, estimate.kwh, carbon)
    backend = run.config.cluster.backend if stage in STAGES_ON_RANKS else "cpu"
    with attempt(
        run.folder,
        stage,
        num_ranks=num_ranks,
        usd_per_device_hour=run.price,
        meter=open_meter(backend),
        planned=planned,
        round_number=run.round.number,
        project_dir=run.folder.parent,
        num_nodes=num_nodes,
        device="gpu" if backend == "cuda" else "cpu",
        site=run.site,
    ) as entry:
        yield entry
