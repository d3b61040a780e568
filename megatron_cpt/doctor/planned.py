"""The planned run: its files, its plan, and where its metrics go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.doctor.finding import Finding
from megatron_cpt.errors import CptError
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.unknown import Unavailable

SAMPLES = "make samples, or python -m megatron_cpt.tools.fetch_samples NAME, for the shipped experiments"


def plan_or_problem(config: ExperimentConfig) -> RunPlan | Finding:
    """Return the plan that the configuration leads to, or what is wrong with it."""
    from megatron_cpt.line.expecting import expected_plan  # noqa: PLC0415

    try:
        return expected_plan(config)
    except CptError as error:
        return Finding(
            "plan", "bad", " ".join(str(error).split()), "the plan refuses this run", "megatron-cpt plan with the same overrides"
        )


def planned_findings(config: ExperimentConfig, plan: RunPlan | Finding) -> Iterator[Finding]:
    """Look at what the planned run reads, and at what its plan says of memory."""
    yield from file_findings(config)
    yield plan if isinstance(plan, Finding) else plan_finding(plan)
    yield monitor_finding(config.monitor.wandb_mode)


def file_findings(config: ExperimentConfig) -> Iterator[Finding]:
    """Say whether the base model and every source are there."""
    base = Path(config.model.path)
    weights = sorted(base.glob("*.safetensors"))
    if not (base / "config.json").is_file() or not weights:
        yield Finding(
            "base model", "bad", f"no config.json and *.safetensors at {base}", "the line begins with it",
            f"{SAMPLES}, or model.path=/your/hf_folder",
        )  # fmt: skip
    else:
        yield Finding("base model", "good", f"{base}, {sum(path.stat().st_size for path in weights) / 1e9:.2f} GB of weights")
    from megatron_cpt.corpus.sources import files_of  # noqa: PLC0415

    missing, count = [], 0
    for name, source in config.source.items():
        try:
            count += len(files_of(name, source.path))
        except CptError as error:
            missing.append(str(error).splitlines()[0])
    if missing:
        yield Finding("sources", "bad", "; ".join(missing), "the corpus stage refuses them", f"{SAMPLES}, or source.<name>.path=...")
    else:
        yield Finding("sources", "good", f"{len(config.source)} sources in {count} files")


def plan_finding(plan: RunPlan) -> Finding:
    """Say what the plan counts on."""
    fullest, limit = max(rank.total for rank in plan.estimate.memory), plan.estimate.memory_limit_bytes
    of = "" if isinstance(limit, Unavailable) else f" of {limit / 1e9:.1f}"
    return Finding("plan", "good", f"{plan.num_steps:,} steps, {plan.num_tokens:,} tokens, {fullest / 1e9:.1f}{of} GB on the fullest rank")


def monitor_finding(mode: str) -> Finding:
    """Say whether wandb is there and can send what it is to send; a key is looked for and never shown."""
    from megatron_cpt.train.tracking import has_key  # noqa: PLC0415

    if mode == "disabled":
        return Finding("wandb", "good", "disabled: nothing is shown there")
    if find_spec("wandb") is None:
        means = "the run trains and keeps its own records, and wandb is shown nothing"
        return Finding(
            "wandb", "note", f"{mode}, but not installed", means, "pip install 'megatron-cpt[wandb]', or monitor.wandb_mode=disabled"
        )
    if mode == "offline":
        return Finding("wandb", "good", "offline: nothing is sent; `wandb sync` sends it later")
    if has_key(os.environ):
        return Finding("wandb", "good", "online, and there is a key")
    return Finding("wandb", "warning", "online, but there is no key", "training would write offline instead", "wandb login")
