"""A run's line under Slurm: submitted with its code and configuration frozen, shown with the queue's states, ended with a checkpoint."""

from __future__ import annotations

import contextlib
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_cpt.config.files import shipped_slurm
from megatron_cpt.config.schema import ClusterConfig, ExperimentConfig
from megatron_cpt.errors import ConfigError, CptError, DataError
from megatron_cpt.line.expecting import expected_plan, is_before_the_plan
from megatron_cpt.line.inputs import INPUTS
from megatron_cpt.line.ranks import LAUNCHER_VARIABLE
from megatron_cpt.line.run import Run, say
from megatron_cpt.line.shares import prepared_corpus, shares_of
from megatron_cpt.meter.attempts import attempts_of
from megatron_cpt.meter.here import slurm_job
from megatron_cpt.meter.ledger import LEDGER_NAME, STEP_RECORDS
from megatron_cpt.meter.slurm import ask_sacct, import_jobs, jobs_of, note_jobs, parse_sacct
from megatron_cpt.meter.totals import total_of
from megatron_cpt.plan.page import show_bytes, show_duration
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME, finished
from megatron_cpt.record.store import exclusive, read_lines
from megatron_cpt.record.unknown import Figure, show
from megatron_cpt.submit.array import Shares, with_arrays
from megatron_cpt.submit.cancel import cancel_line
from megatron_cpt.submit.frozen import PREFIX, commit_with_changes, environment_text, freeze, submissions_of
from megatron_cpt.submit.memory import Memory, default_memory_mib, node_bytes
from megatron_cpt.submit.preflight import preflight as look_at_nodes
from megatron_cpt.submit.queue import queued, states_of
from megatron_cpt.submit.record import SubmittedLine, newest_submitted, write_submitted
from megatron_cpt.submit.slurm import STAGES, Job, Place, line_of_jobs, num_cpus_of, requeue_problem, signal_lead_seconds
from megatron_cpt.submit.status import rows_of, table
from megatron_cpt.submit.submit import call_slurm, submit_line

CHECKPOINT_BYTES_PER_PARAM = 14  # bf16 weights with their fp32 copies and two moments; fp32 ones take 12
LOCK_SECONDS = 10.0  # for another submission of the same run to be through
STATUS_WIDTH = 80  # of what `status` says below its table, whose columns are as wide as they need


def submit(config: ExperimentConfig, *, config_yaml: str, dry_run: bool, until: str | None = None) -> None:
    """Plan here, freeze code and configuration into the run's folder, and send the line to Slurm as a chain of jobs.

    Stages that have finished with equal inputs are left out, and those after `until`. With `dry_run` every job body and sbatch line is
    printed, and nothing written.

    Args:
        config_yaml: the same configuration as text, which the jobs will run.

    Raises:
        ConfigError: the plan does not hold, jobs of this run are still in the queue, or Slurm refused a job.
    """
    run = Run.of_round(config)
    plan = expected_plan(run.config) if is_before_the_plan(run.config) or not (run.of("plan") / PLAN_NAME).exists() else run.plan
    lead = signal_lead_seconds(run.config.cluster, _step_seconds(plan))
    too_few = requeue_problem(
        run.config.cluster, elapsed_seconds=plan.estimate.elapsed_seconds, device_mtbf_hours=run.config.gpu.mtbf_hours
    )
    if too_few:
        say(f"note: {too_few}")
    sources = INPUTS["corpus"](run)
    stages = [stage for stage in _left_to_do(run, sources) if until is None or STAGES.index(stage) <= STAGES.index(until)]
    if not stages:
        say(f"{config.run_name}: every stage up to {until} has finished with equal inputs")
        return
    shares = {stage: found for stage in stages if (found := shares_of(run, stage, sources)) is not None}
    memory, env_file = _memory(run.config.cluster, plan), run.config.cluster.env_file
    if dry_run:
        frozen = run.folder / "slurm" / f"{PREFIX}{len(submissions_of(run.folder)) + 1}"
        jobs = _jobs(run, frozen, lead=lead, stages=stages, shares=shares, memory=memory)
        for path in sorted([*shipped_slurm().glob("*.sbatch"), *shipped_slurm().glob("*.sh")]):
            say(f"# --- {frozen}/slurm/{path.name}\n{path.read_text(encoding='utf-8')}")
        say(f"# --- {frozen}/env.sh\n{environment_text(env_file)}")
        for line in submit_line(jobs, dry_run=True).lines:
            say(line)
        return
    with exclusive(run.folder / "slurm" / ".lock", purpose=f"submitting the run {run.config.run_name!r}", patience_s=LOCK_SECONDS):
        _refuse_second_line(run)
        frozen = freeze(run.folder, config_yaml=config_yaml, env_file=env_file)
        jobs = _jobs(run, frozen, lead=lead, stages=stages, shares=shares, memory=memory)
        try:
            with prepared_corpus(run, sources) if "corpus" in shares else contextlib.nullcontext():
                submission = submit_line(jobs, dry_run=False)
        except BaseException:
            shutil.rmtree(frozen, ignore_errors=True)
            raise
        write_submitted(frozen, jobs, submission.job_ids, commit=commit_with_changes())
        for job in jobs:
            note_jobs(run.folder, {job.stage: submission.job_ids[job.name]})
    for line in submission.lines:
        say(line)
    steps = (
        f"{plan.num_steps} steps, {show(plan.estimate.seconds, '{:.0f} s')} of training expected, {show(plan.estimate.usd, '{:.4g} USD')}"
    )
    say(f"\n{run.config.run_name}: {len(jobs)} jobs, {', '.join(submission.job_ids.values())}; {steps}")
    say(f"code and configuration of these jobs: {frozen}")


def _step_seconds(plan: RunPlan) -> Figure:
    seconds = plan.estimate.seconds_high
    return seconds / plan.num_steps if isinstance(seconds, float | int) and plan.num_steps else plan.estimate.step_seconds


def _memory(cluster: ClusterConfig, plan: RunPlan) -> Memory:
    """Return what a plan's ranks need of a node, beside what the cluster gives by default, where a Slurm is here to say so."""
    memory = Memory(node_bytes(plan))
    with contextlib.suppress(CptError):  # a dry run may be on any machine
        partitions = call_slurm(["scontrol", "show", "partition", "--oneliner"])
        settings = call_slurm(["scontrol", "show", "config"])
        found = default_memory_mib(cluster.partition, num_cpus=num_cpus_of(cluster), partitions=partitions, settings=settings)
        memory = replace(memory, default_mib=found)
    if memory.is_short and cluster.memory_gb is None and not cluster.exclusive:
        say(
            f"note: a job of {num_cpus_of(cluster)} cores has {memory.default_mib} MiB of a node here, and the ranks need about"
            f" {show_bytes(memory.need_bytes)}: that is asked for (cluster.memory_gb and cluster.exclusive set it)"
        )
    return memory


def _jobs(run: Run, frozen: Path, *, lead: int, stages: Sequence[str], shares: Mapping[str, Shares], memory: Memory) -> list[Job]:
    place, cluster = Place(run_dir=run.folder, frozen=frozen, work_dir=Path.cwd()), run.config.cluster
    jobs = line_of_jobs(cluster=cluster, run_name=run.config.run_name, place=place, lead_seconds=lead, stages=stages, memory=memory)
    return with_arrays(jobs, shares, cluster=cluster, run_name=run.config.run_name, place=place)


def _left_to_do(run: Run, sources: Mapping[str, Any]) -> list[str]:
    """Return the stages from the first that has not finished on; one that has, with other inputs, is refused here and not in its job."""
    for number, stage in enumerate(STAGES[:-1]):
        if not (run.of(stage) / MANIFEST_NAME).exists():
            return list(STAGES[number:])
        finished(run.of(stage), sources if stage == "corpus" else INPUTS[stage](run))
    return [STAGES[-1]]


def _refuse_second_line(run: Run) -> None:
    newest = newest_submitted(run.folder)
    left = queued([job.job_id for job in newest[1].jobs]) if newest is not None else {}
    if left:
        raise ConfigError(
            f"Jobs of the run {run.config.run_name!r} are still in the queue.",
            where=run.folder,
            value=", ".join(f"{job_id} {state.state}" for job_id, state in left.items()),
            next_step="Wait for them, or end them with `megatron-cpt cancel`; or use another run_name.",
        )


def _submitted(run: Run) -> tuple[Path, SubmittedLine]:
    newest = newest_submitted(run.folder)
    if newest is None:
        raise DataError("Nothing of this run was submitted.", where=run.folder / "slurm", next_step="Submit it: megatron-cpt submit ...")
    return newest


def status(config: ExperimentConfig) -> None:
    """Print the line with its jobs' states, the last step and what was spent, and put on the bill what Slurm knows of ended jobs.

    Raises:
        DataError: nothing of this run was submitted.
    """
    run = Run.of_round(config)
    frozen, line = _submitted(run)
    states = states_of([job.job_id for job in line.jobs])
    finished_stages = [stage for stage in STAGES if (run.of(stage) / MANIFEST_NAME).exists()]
    say(f"{run.config.run_name}, {frozen.name} at {line.commit}\n")
    say(table(rows_of(line.jobs, states, finished=finished_stages)))
    say("")
    bill_jobs(run)
    for text in (*_progress(run), *_spend(run)):
        say(textwrap.fill(text, STATUS_WIDTH, subsequent_indent=" " * 11, break_on_hyphens=False))


def bill_jobs(run: Run) -> None:
    """Put what Slurm's accounting knows of a run's ended jobs on its bill, also of those that died before they could write."""
    known = jobs_of(read_lines(run.folder / LEDGER_NAME))
    if not known:
        return
    with contextlib.suppress(DataError):  # no sacct on this machine: `megatron-cpt account --ask-sacct` says so where it is asked for
        jobs = parse_sacct(ask_sacct(sorted(known)), where="sacct")
        import_jobs(run.folder, jobs, project_dir=run.folder.parent, is_emulated=run.config.cluster.has_emulated_meter)


def preflight(config: ExperimentConfig) -> None:
    """Look at every node of this Slurm job before training on them, and print what was found.

    Raises:
        ConfigError: this is no Slurm job.
        PreflightFailed: naming each bad node and what is wrong with it.
    """
    job = slurm_job()
    if job is None:
        raise ConfigError("There is no Slurm job here.", rule="preflight looks at the nodes of the job that it runs in")
    if not config.cluster.preflight:
        return
    run = Run.of_round(config)
    folder = run.folder / "slurm" / f"preflight-{job['job_id']}"
    nodes = call_slurm(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]).split()
    cluster = config.cluster
    say(
        look_at_nodes(
            folder,
            nodes=nodes,
            ranks_per_node=cluster.ranks_per_node,
            gpus_per_node=cluster.ranks_per_node if cluster.backend == "cuda" else 0,
            min_free_bytes=CHECKPOINT_BYTES_PER_PARAM * run.plan.estimate.num_params,
            bodies=Path(os.environ[LAUNCHER_VARIABLE]).parent,
        )
    )


def _progress(run: Run) -> list[str]:
    steps = [record for record in read_lines(run.folder / STEP_RECORDS) if record.get("kind") == "step"]
    if not steps:
        return ["training   no step yet"]
    last, recent = steps[-1], steps[-20:]
    seconds = sum(float(step["seconds"]) for step in recent)
    tokens = sum(float(step["seconds"]) * float(step["tokens_per_second"]) for step in recent)
    of = f" of {run.plan.num_steps}" if (run.of("plan") / PLAN_NAME).exists() else ""
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.4f}"
    return [f"training   step {last['step']}{of}, loss {loss}, {tokens / seconds:,.0f} tokens a second over the last {len(recent)} steps"]


def _spend(run: Run) -> list[str]:
    attempts = attempts_of(run.folder)
    trained = [attempt for attempt in attempts if attempt.stage == "train"]
    hours, energy = total_of("seconds", trained), total_of("joules", attempts).show("{:.4g} kWh", 1 / 3.6e6)
    usd, usd_training = (total_of("usd", each).show("{:.4g} USD") for each in (attempts, trained))
    marked = " (from an emulated meter: no measurement)" if run.config.cluster.has_emulated_meter else ""
    stop = run.config.stop
    limits = [
        f"{limit:g} {unit}" for limit, unit in ((stop.max_usd, "USD"), (stop.max_hours, "h"), (stop.max_kwh, "kWh")) if limit is not None
    ]
    lines = [
        f"spent      all stages {usd}; training {usd_training}, {show_duration(hours.value) if hours.num_known else 'no time yet'}",
        f"budget     of training: {', '.join(limits) or 'none (stop.max_usd, stop.max_hours, stop.max_kwh)'}",
        f"energy     {energy}{marked}",
    ]
    if (run.of("plan") / PLAN_NAME).exists():
        estimate = run.plan.estimate
        lines.insert(2, f"planned    {show(estimate.usd, '{:.4g} USD')}, {show_duration(estimate.seconds)} of training")
    return lines


def cancel(config: ExperimentConfig, *, patience_seconds: float) -> None:
    """End a submitted line: waiting jobs at once, training with a checkpoint.

    Raises:
        DataError: nothing of this run was submitted.
    """
    run = Run(config)
    _, line = _submitted(run)
    stop_file = run.of("train") / "stop-requested"
    if cancel_line(line.jobs, stop_file=stop_file, patience_seconds=patience_seconds, say=say):
        say("No job of this run is left in the queue. Submit again to go on.")
    bill_jobs(run)
