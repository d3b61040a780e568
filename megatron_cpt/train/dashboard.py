"""The panels of a project's wandb workspace as code: what the report shows of one run, over all runs of the project.

The panels are made of the names of `metric_names.py`; a name with a place in it, such as `<name>`, becomes a pattern, so that one
workspace serves runs with any sources and texts. Only `save` needs a network and the package wandb-workspaces.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.train.guests import within
from megatron_cpt.train.metric_names import STEP, TOKENS
from megatron_cpt.train.tracking import DEFAULT_HOST, has_key

TITLE = "megatron_cpt"
SAVE_SECONDS = 60


@dataclass(frozen=True)
class Panel:
    """One line chart: its metrics by the names of the table, its x axis and the unit of its y axis."""

    title: str
    metrics: tuple[str, ...]
    unit: str
    x: str = STEP
    is_log: bool = False


@dataclass(frozen=True)
class Section:
    name: str
    panels: tuple[Panel, ...]


def _gap(group: str) -> tuple[str, ...]:
    return tuple(f"eval/{group}/<name>/{key}" for key in ("difference", "low", "high"))


SECTIONS = (
    Section(
        "Gain and forgetting",
        (
            Panel("Domain against the frozen base, with its interval (below zero is gained)", _gap("domain"), "bits a byte", TOKENS),
            Panel(
                "General text against the frozen base, with its interval (above zero is forgotten)", _gap("general"), "bits a byte", TOKENS
            ),
            Panel("Domain text", ("eval/domain/<name>/bits_per_byte",), "bits a byte", TOKENS),
            Panel("General text", ("eval/general/<name>/bits_per_byte",), "bits a byte", TOKENS),
        ),
    ),
    Section(
        "Training",
        (
            Panel("Loss", ("train/loss",), "nats a token", TOKENS),
            Panel("Loss by source", ("train/source/<source>/loss",), "nats a token", TOKENS),
            Panel("Learning rate", ("train/learning_rate", "train/learning_rate_embedding"), ""),
            Panel("Gradient norm", ("train/grad_norm",), "", is_log=True),
            Panel("Updates left out", ("train/skipped_steps",), "steps"),
            Panel("Restarts, rollbacks, verdicts", ("train/event/<event>",), ""),
        ),
    ),
    Section(
        "Tokens",
        (
            Panel("Read by source", ("train/source/<source>/tokens",), "tokens"),
            Panel("Read by licence", ("train/licence/<licence>/tokens",), "tokens"),
        ),
    ),
    Section(
        "Speed and memory",
        (
            Panel("Tokens a second", ("train/tokens_per_second",), "tokens/s"),
            Panel("Model FLOPs utilisation", ("train/mfu",), "share of the dense peak"),
            Panel("Step time", ("train/step_seconds",), "s"),
            Panel("Peak device memory", ("system/device_peak_bytes",), "bytes"),
        ),
    ),
    Section(
        "Cost",
        (
            Panel("Money", ("cost/usd",), "USD"),
            Panel("Device time", ("cost/device_hours",), "device-hours"),
            Panel("Money for a million tokens", ("cost/usd_per_million_tokens",), "USD"),
            Panel("Used of the nearest limit", ("cost/limit_used",), "share"),
        ),
    ),
    Section(
        "Energy and carbon",
        (
            Panel("Energy", ("energy/kwh", "energy/site_kwh"), "kWh"),
            Panel("Power", ("energy/watts",), "W"),
            Panel("Energy for a token", ("energy/joules_per_token",), "J"),
            Panel("Carbon", ("energy/g_co2e",), "g CO2e"),
        ),
    ),
)


def spec() -> dict[str, Any]:
    """Return the panels as JSON: sections in order, each panel with its x axis and either metrics or a pattern of their names."""
    return {
        "name": TITLE,
        "sections": [
            {"name": section.name, "panels": [{"title": panel.title, "x": panel.x, **_y(panel)} for panel in section.panels]}
            for section in SECTIONS
        ],
    }


def _y(panel: Panel) -> dict[str, Any]:
    more = {"unit": panel.unit, "log": panel.is_log}
    if any("<" in name for name in panel.metrics):
        return {"pattern": f"^({'|'.join(map(pattern_of, panel.metrics))})$", **more}
    return {"metrics": list(panel.metrics), **more}


def pattern_of(name: str) -> str:
    """Return the regular expression of a metric's name: each place in it is anything without a slash."""
    return "[^/]+".join(map(re.escape, re.split(r"<[^>]+>", name)))


def workspace_of(found: dict[str, Any], *, entity: str, project: str) -> Any:
    """Return the panels of `spec` as a `wandb_workspaces.workspaces.Workspace`; sends nothing."""
    from wandb_workspaces import workspaces  # noqa: PLC0415  -- the extra `dashboard`

    reports: Any = import_module("wandb_workspaces.reports.v2")  # what it exports is written for readers, not for type checkers

    def plot(panel: dict[str, Any]) -> Any:
        return reports.LinePlot(
            title=panel["title"],
            x=panel["x"],
            y=panel.get("metrics", []),
            metric_regex=panel.get("pattern"),
            title_x="tokens" if panel["x"] == TOKENS else "steps",
            title_y=panel["unit"],
            log_y=panel["log"] or None,
        )

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=found["name"],
        sections=[
            workspaces.Section(name=section["name"], panels=[plot(panel) for panel in section["panels"]], is_open=True)
            for section in found["sections"]
        ],
    )


def save(target: str) -> str:
    """Save the panels as a new view of the project's workspace and return its address.

    Raises:
        ConfigError: the target is not ENTITY/PROJECT, the package is missing, or there is no key.
        CptError: wandb did not take it.
    """
    entity, _, project = target.partition("/")
    if not entity or not project or "/" in project:
        raise ConfigError("The project is not known.", where="--save", value=target, rule="ENTITY/PROJECT, as in the project's address")
    if not has_key(os.environ):
        raise ConfigError("wandb has no key here.", where="--save", next_step="wandb login, or set WANDB_API_KEY")
    try:
        workspace = workspace_of(spec(), entity=entity, project=project)
    except ImportError as error:
        raise ConfigError(
            "Saving a workspace needs a package that is not installed.",
            where="--save", value=error.name, next_step="pip install 'megatron-cpt[dashboard]'",
        ) from error  # fmt: skip
    try:
        within(SAVE_SECONDS, workspace.save)
    except Exception as error:
        host = os.environ.get("WANDB_BASE_URL") or DEFAULT_HOST
        raise CptError("wandb did not take the workspace.", where=host, value=f"{type(error).__name__}: {error}"[:500]) from error
    return str(workspace.url)
