"""Reads wandb's local run file: records of its protocol in LevelDB's log format, as of wandb 0.19 to 0.31.

The format: https://github.com/google/leveldb/blob/main/doc/log_format.md, with a head of seven bytes and zlib's CRC-32.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES, HEAD_BYTES = 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of one `.wandb` file, each of type `wandb_internal_pb2.Record`."""
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415  -- wandb is an extra

    data, at, part = path.read_bytes(), HEAD_BYTES, b""
    assert data[:4] == b":W&B"
    while at + HEAD_BYTES <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEAD_BYTES:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + HEAD_BYTES])
        body = data[at + HEAD_BYTES : at + HEAD_BYTES + length]
        at += HEAD_BYTES + length
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        part = body if kind in (FULL, FIRST) else part + body
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(part)
            yield record


class WandbFile:
    """What one attempt left in its `.wandb` file: history rows without wandb's own keys, metric definitions, alerts, id and exit code."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.x_axis: dict[str, str] = {}
        self.alerts: list[tuple[str, str, str]] = []
        self.run_id, self.exit_code, self.config = "", -1, {}
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                pairs = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
                self.rows.append({key: value for key, value in pairs.items() if not key.startswith("_")})
            elif kind == "metric" and record.metric.options.defined:
                self.x_axis[record.metric.glob_name or record.metric.name] = record.metric.step_metric
            elif kind == "alert":
                self.alerts.append((record.alert.title, record.alert.level, record.alert.text))
            elif kind == "run":
                self.run_id = record.run.run_id
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key != "_wandb"}
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def column(self, name: str) -> list[Any]:
        """Return the values of one metric in the order in which they were logged."""
        return [row[name] for row in self.rows if name in row]


def attempts_in_wandb(train_dir: Path) -> list[WandbFile]:
    """Return what each start of wandb left under a run's `train/`, in order."""
    paths = sorted((train_dir / "wandb").glob("*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [WandbFile(path) for path in paths]
