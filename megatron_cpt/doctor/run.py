"""Looks at everything in order and says whether the planned run can start."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.doctor.devices import device_findings
from megatron_cpt.doctor.finding import Finding, as_json, as_page, can_start
from megatron_cpt.doctor.host import host_findings
from megatron_cpt.doctor.packages import ask_probe, package_findings
from megatron_cpt.doctor.planned import plan_or_problem, planned_findings
from megatron_cpt.doctor.scheduler import scheduler_findings
from megatron_cpt.errors import EXIT_FINISHED, ConfigError
from megatron_cpt.record.unknown import Unavailable


def examine(config: ExperimentConfig | None, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return what this machine offers to the planned run; with None, to any run on the kind of device that it has."""
    plan = None if config is None else plan_or_problem(config)
    stored = Unavailable("no plan") if plan is None or isinstance(plan, Finding) or not plan.estimate.bill else plan.estimate.bill.stored_gb
    submits = config is not None and config.cluster.partition is not None and "SLURM_JOB_ID" not in environment
    ranks_run_here = None if submits else config  # on a login node there need be no device; the nodes are judged before training
    needs_cuda = ranks_run_here is not None and ranks_run_here.cluster.backend == "cuda"
    findings = [
        *host_findings(
            Path("runs" if config is None else config.runs_dir),
            needed_bytes=None if isinstance(stored, Unavailable) else stored * 1e9,
            num_nodes=1 if ranks_run_here is None else ranks_run_here.cluster.num_nodes,
        ),
    ]
    probe = ask_probe(None if ranks_run_here is None else ranks_run_here.cluster.backend)
    findings += package_findings(probe, needs_cuda=needs_cuda)
    findings += device_findings(probe, ranks_run_here)
    findings += scheduler_findings(None if config is None else config.cluster)
    if config is not None and plan is not None:
        findings += planned_findings(config, plan)
    if submits:
        findings.append(Finding("compute nodes", "note", "not judged from a login node; the job looks at them before the first step"))
    return findings


def doctor(config: ExperimentConfig | None, *, is_json: bool, write: Callable[[str], object] = print) -> int:
    """Print the findings; return the exit code of a configuration that cannot start, or that of success."""
    findings = examine(config)
    asked_for = "A run" if config is None else f"Run {config.run_name!r}"
    write(as_json(findings) if is_json else as_page(findings, asked_for=asked_for).rstrip("\n"))
    return EXIT_FINISHED if can_start(findings) else ConfigError.exit_code
