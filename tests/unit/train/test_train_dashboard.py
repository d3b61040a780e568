"""The panels of a wandb workspace: made of names that exist, and saved by one call that a stand-in for wandb's server takes."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.errors import ConfigError
from megatron_cpt.train.dashboard import SECTIONS, pattern_of, save, spec
from megatron_cpt.train.metric_names import AXES, METRICS

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


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as wandb's GraphQL does, to the two requests that saving a view needs."""

    views: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/graphql":
            asked = json.loads(body)
            if "upsertView" in asked["query"]:
                self.views.append(asked["variables"])
        answer = {"viewer": {"id": "u", "username": "u", "entity": "e"}, "upsertView": {"view": {"id": "1", "name": "nw-x-v"}}}
        data = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    Server.views = []
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


def test_the_command_saves_the_panels_as_one_view(server: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard`")
    url = f"http://127.0.0.1:{server.server_port}"
    environment = {
        **os.environ,
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "0" * 40,
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "megatron_cpt", "dashboard", "--save", "my-team/my-project"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith(f"{url}/my-team/my-project")
    (view,) = Server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("my-team", "my-project", "megatron_cpt")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in SECTIONS]
    saved = [panel["config"] for section in sections for panel in section["panels"]]
    wanted = [panel for section in spec()["sections"] for panel in section["panels"]]
    assert [each["chartTitle"] for each in saved] == [each["title"] for each in wanted]
    assert [each["xAxis"] for each in saved] == [each["x"] for each in wanted]
    assert [each.get("metricRegex") for each in saved] == [each.get("pattern") for each in wanted]
    assert [each["metrics"] for each in saved] == [each.get("metrics", []) for each in wanted]
