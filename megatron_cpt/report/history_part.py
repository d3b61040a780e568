"""The attempts of a run on one axis of time, what happened between them, and what every stage was made from."""

from __future__ import annotations

import datetime
import re
from html import escape

from megatron_cpt.charts.data import Axis, Colour, Mark, Span, Timeline
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import Cell, table
from megatron_cpt.meter.attempts import AttemptRecord
from megatron_cpt.plan.page_text import show_duration
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.unknown import Unavailable, show
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.section import Section, note, notes

ENDS: dict[str, Colour] = {"finished": "good", "stopped": "f", "killed": "e", "failed": "bad", "rolled_back": "g", "running": "a"}
UNITS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
DIGEST = re.compile(r"[0-9a-f]{64}")
SHOWN_DIGITS = 12


def history(records: RunRecords) -> Section:
    """Return every attempt over time, coloured by how it ended, and the events."""
    attempts = records.attempts
    if not attempts:
        return Section("history", "Attempts", "<p>Unknown: no attempt is on the ledger.</p>")
    begun = [record for record in attempts if record.began is not None]
    drawn = charts([_timeline(begun)]) if begun else ""
    rows = [
        (
            record.stage, Cell(str(record.round), record.round), _moment(record.began), record.status.replace("_", " "),
            "unknown" if record.exit_code is None else str(record.exit_code), _seconds(record),
            Cell(f"{record.tokens:,}", record.tokens) if record.start_tokens is not None else Cell("", None),
            "" if record.start_tokens is None else f"{record.start_tokens:,}",
            "" if record.job_id is None else f"{record.job_id}" + (f", requeue {record.job_restart}" if record.job_restart else ""),
        )
        for record in attempts
    ]  # fmt: skip
    head = ("stage", "round", "began (UTC)", "ended", "exit", "seconds", "tokens read", "began with tokens", "Slurm job")
    missing = len(attempts) - len(begun)
    words = note(f"{missing} attempts have no recorded beginning and are not in the picture.") if missing else ""
    return Section(
        "history", "Attempts", drawn + table(head, rows, numbers=(1, 2, 4, 5, 6, 7), is_sortable=True) + words + notes(_events(records))
    )


def _timeline(begun: list[AttemptRecord]) -> str:
    zero = min(record.began or 0.0 for record in begun)
    ends = [(record.began or 0.0) + _length(record) - zero for record in begun]
    size, unit = next((size, unit) for least, size, unit in UNITS if max(ends) >= least)
    spans = [
        Span(
            row=record.stage if record.round == 1 else f"{record.stage}, round {record.round}",
            begin=((record.began or 0.0) - zero) / size,
            end=end / size,
            kind=record.status.replace("_", " "),
            colour=ENDS.get(record.status, "c"),
            words=_words(record),
        )
        for record, end in zip(begun, ends, strict=True)
    ]
    marks = [Mark(((record.began or 0.0) - zero) / size, words) for record in begun if (words := _again(record, begun))]
    axis = Axis(f"{unit} since {_moment(zero)} UTC")
    return figure(Timeline("Attempts by how they ended", spans, axis, marks=marks), is_wide=True)


def _again(record: AttemptRecord, begun: list[AttemptRecord]) -> str:
    """Say of an attempt of training that it went on where an earlier one of its round ended; empty for others."""
    if record.job_restart:
        return f"requeue {record.job_restart}"
    earlier = [each for each in begun if each.stage == record.stage and each.round == record.round and each is not record]
    is_later = any((each.began or 0.0) < (record.began or 0.0) for each in earlier)
    return "resumed" if record.start_tokens is not None and is_later else ""


def _length(record: AttemptRecord) -> float:
    return 0.0 if isinstance(record.seconds, Unavailable) else record.seconds


def _words(record: AttemptRecord) -> str:
    parts = [record.stage, record.status.replace("_", " "), _duration(record), f"began {_moment(record.began)} UTC"]
    if record.start_tokens is not None:
        parts.append(f"{record.tokens:,} tokens after {record.start_tokens:,}")
    if record.exit_code:
        parts.append(f"exit {record.exit_code}")
    return ", ".join(parts)


def _duration(record: AttemptRecord) -> str:
    if isinstance(record.seconds, Unavailable):
        return f"time {record.seconds}"
    return f"{'at least ' if record.is_lower_bound else ''}{show_duration(record.seconds)}"


def _seconds(record: AttemptRecord) -> Cell:
    if isinstance(record.seconds, Unavailable):
        return Cell(str(record.seconds), None)
    return Cell(("at least " if record.is_lower_bound else "") + show(record.seconds, "{:,.1f}"), record.seconds)


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _events(records: RunRecords) -> list[str]:
    lines = []
    for event in records.training.events:
        where = f" at step {event['step']}" if "step" in event else ""
        went = f", back to {event['checkpoint']}" if event.get("checkpoint") else ""
        reasons = "; ".join(map(str, event.get("reasons", ())))
        lines.append(f"round {event.get('round', 1)}, {event.get('event', 'unknown')}{where}{went}: {reasons}")
    return lines


def lineage(records: RunRecords) -> Section:
    """Return each stage's fingerprint, and the hashes of what it was made from."""
    if not records.manifests:
        return Section("lineage", "Lineage", "<p>Unknown: no stage has finished.</p>")
    rows = []
    known = {manifest.fingerprint for manifest in records.manifests.values()}
    for name, manifest in records.manifests.items():
        parts = [
            f"{key} {_short(value)}" + ("" if value in known or key not in records.manifests else " (of an earlier round)")
            for key, value in manifest.inputs.items()
            if isinstance(value, str) and DIGEST.fullmatch(value)
        ]
        if name == "corpus":
            parts = [
                f"{source}: {', '.join(f'{file} {_short(digest)}' for file, digest in files.items())}"
                for source, files in _files(manifest.inputs).items()
            ]
        if isinstance(base := manifest.inputs.get("base"), dict):
            parts.append(f"base model {_short(sha256_plain(base))}")
        rows.append((name, "\n".join(parts), manifest.fingerprint, manifest.commit[:SHOWN_DIGITS]))
    versions = next(reversed(records.manifests.values())).versions
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    checkpoint = records.facts("train").get("checkpoint_sha256")
    trained = f"Trained weights: sha256 {checkpoint}." if checkpoint else ""
    taken = "; ".join(f"{name} from {manifest.taken_from}" for name, manifest in records.manifests.items() if manifest.taken_from)
    origin = f"Stages that another run had finished with equal inputs were taken over, and are on its bill: {taken}." if taken else ""
    head = ("stage", "made from, by hash", "fingerprint", "commit")
    return Section(
        "lineage",
        "Lineage",
        table(head, rows, hashes=(2, 3), words=(1,)) + note(origin) + note(trained) + f'<p class="soft">{escape(listed)}</p>',
    )


def _files(inputs: dict[str, object]) -> dict[str, dict[str, str]]:
    sources = inputs.get("sources")
    if not isinstance(sources, dict):
        return {}
    return {name: dict(source.get("files", {})) for name, source in sources.items() if isinstance(source, dict)}


def _short(digest: str) -> str:
    return digest[:SHOWN_DIGITS]
