"""The panels of a wandb workspace: made of names that exist, and saved by one call that a stand-in for wandb's server takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cpt.errors import ConfigError
from megatron_cpt.train.dashboard import SECTIONS, pattern_of, save, spec
from megatron_cpt.train.metric_names import AXES, METRICS
from tests.wandb_server import KEY, wandb_server

NAMES = {metric.name for metric in METRICS}
ROOT = Path(__file__).parents[3]


def test_panels_are_made_of_metrics_that_are_logged() -> None:
    for section in SECTIONS:
        for panel in section.panels:
            assert panel.x in AXES
            for name in panel.metrics:
                general = re.sub(r"^eval/(domain|general)/", "eval/<group>/", name)
                assert general in NAMES, name


def test_every_prefix_of_the_scheme_has_a_panel() -> None:
    shown = {name.rpartition("/")[0] for section in SECTIONS for panel in section.panels for name in panel.metrics}
    for prefix in ("train", "eval/domain", "eval/general", "cost", "energy", "system"):
        assert any(name.startswith(prefix) for name in shown), prefix


def test_a_pattern_matches_one_text_and_no_other_metric() -> None:
    pattern = re.compile(f"^{pattern_of('eval/domain/<name>/difference')}$")
    assert pattern.match("eval/domain/china_law/difference")
    assert not pattern.match("eval/general/web/difference")
    assert not pattern.match("eval/domain/china_law/gate_bits_per_byte_difference")


@pytest.mark.parametrize("target", ["", "project", "a/b/c", "/p", "e/"])
def test_a_target_that_is_no_entity_and_project_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
        save(target)


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no key"):
        save("e/p")


def saved_by_command(home: Path, url: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "HOME": str(home), "PYTHONPATH": path}
    command = [sys.executable, "-m", "megatron_cpt", "dashboard", "--save", "my-team/my-project"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=120)


def test_the_command_saves_the_panels_as_one_view(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard`")
    with wandb_server() as server:
        done, url, views = saved_by_command(tmp_path, server.url), server.url, server.views
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith(f"{url}/my-team/my-project")
    (view,) = views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("my-team", "my-project", "megatron_cpt")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in SECTIONS]
    saved = [panel["config"] for section in sections for panel in section["panels"]]
    wanted = [panel for section in spec()["sections"] for panel in section["panels"]]
    assert [each["chartTitle"] for each in saved] == [each["title"] for each in wanted]
    assert [each["xAxis"] for each in saved] == [each["x"] for each in wanted]
    assert [each.get("metricRegex") for each in saved] == [each.get("pattern") for each in wanted]
    assert [each["metrics"] for each in saved] == [each.get("metrics", []) for each in wanted]
