"""One run as the stages see it: its configuration, its folder and the records of its finished stages; and how the line speaks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.gate.limits import Breach
from megatron_cpt.gate.rounds import Round, current_round
from megatron_cpt.meter.ledger import Site
from megatron_cpt.plan.money import tariff_of
from megatron_cpt.plan.retry import with_changes
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest
from megatron_cpt.record.typed import from_plain
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.stage_names import STAGES


def say(text: str) -> None:
    print(text, flush=True)


def indented(text: str) -> None:
    """Print a line under the current stage's title; a stage's own name at its head would only repeat the title."""
    head, _, rest = text.partition(": ")
    say(f"{'':>18}{rest if head in {stage.name for stage in STAGES} else text}".rstrip())


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
    def site(self) -> Site:
        """What turns joules at the meters into energy and carbon of the site, for the bill."""
        tariff = tariff_of(self.config.tariff, self.config.gpu)
        return Site(tariff=tariff.name, pue=tariff.pue, grid_g_co2e_per_kwh=tariff.grid_g_co2e_per_kwh)

    @property
    def price(self) -> Figure:
        price = self.config.tariff.usd_per_device_hour
        return Unavailable(self.config.tariff.price_source or "no price is set") if price is None else price


def threads_of_this_host() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
