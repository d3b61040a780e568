"""A stand-in for wandb's server on this machine: it takes runs, their history, alerts and saved views, and keeps them by what was sent."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"
VIEWER = {"id": "u", "username": "u", "entity": "e", "flags": "{}", "teams": {"edges": []}}


class WandbServer(http.server.ThreadingHTTPServer):
    """Keeps the history lines of each run at their offsets, alerts as (run, title, severity), and views as their variables."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: dict[str, list[str]] = {}
        self.alerts: list[tuple[str, str, str]] = []
        self.views: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return what wandb answers to one GraphQL request."""
        if "upsertView" in query:
            self.views.append(given)
            return {"viewer": VIEWER, "upsertView": {"view": {"id": "1", "name": "nw-x-v"}, "inserted": True}}
        if "notifyScriptableRunAlert" in query:
            self.alerts.append((given["runName"], given["title"], given["severity"]))
            return {"notifyScriptableRunAlert": {"success": True}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}
        place = {"id": "P", "name": "p", "entity": {"id": "E", "name": "e"}}
        name = str(given.get("name", ""))
        if "upsertBucket" in query:
            self.history.setdefault(name, [])
            return {"upsertBucket": {"bucket": {"id": "B", "name": name, "displayName": "r", "project": place}, "inserted": True}}
        if "RunResumeStatus" in query:
            return {"model": {**place, "bucket": self._run(name)}}
        return {"viewer": VIEWER, "serverInfo": {"features": [], "cliVersionInfo": {}}}

    def _run(self, name: str) -> dict[str, Any] | None:
        lines = self.history.get(name)
        if lines is None:
            return None
        return {
            "id": "B", "name": name, "displayName": "r", "config": "{}", "summaryMetrics": "{}", "tags": [], "wandbConfig": '{"t": 1}',
            "historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]",
        }  # fmt: skip

    def stream(self, run: str, files: dict[str, Any]) -> None:
        """Keep history lines of one request to the file stream."""
        part = (files or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        kept = self.history.setdefault(run, [])
        assert part["offset"] <= len(kept), f"a gap in the history of {run}: {part['offset']} after {len(kept)} lines"
        kept[part["offset"] : part["offset"] + len(part["content"])] = part["content"]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, answer = self._body(), b"{}"
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = json.dumps({"data": self.server.answer(asked["query"], asked.get("variables") or {})}).encode()  # type: ignore[attr-defined]
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files"))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a free port for as long as the block lasts."""
    server = WandbServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
