"""One manifest a stage: what went in, what came out, written last. Its presence is the completion mark.

A stage's folder is built aside and renamed when it is whole. A rerun with equal inputs is a no-op; with other inputs it
is refused, naming each field that differs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import megatron_cpt
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.hashing import canonical_json, files_under, sha256_file, sha256_plain
from megatron_cpt.record.store import exclusive, publish_folder, read_json, write_json
from megatron_cpt.record.typed import from_plain, to_plain

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
RECORDED_PACKAGES = ("megatron-core", "torch", "transformers", "tokenizers", "sentencepiece", "numpy", "hydra-core")


@dataclass(frozen=True)
class OutputFile:
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage.

    Attributes:
        inputs: everything that decides the outputs, as plain data: settings, upstream fingerprints, file digests.
        outputs: every file of the stage by relative path.
        facts: figures that later stages and the report read (counts, scores); plain data.
        taken_from: the run whose finished stage this is, with equal inputs; empty for a stage that was done here.
    """

    schema_version: int
    stage: str
    inputs: dict[str, Any]
    outputs: dict[str, OutputFile]
    facts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = "unknown"
    taken_from: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Digest of inputs and outputs: the identity that downstream stages record."""
        return sha256_plain([self.stage, self.inputs, {name: file.sha256 for name, file in self.outputs.items()}])

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read a stage's manifest.

        Raises:
            DataError: the stage has not finished, or its manifest was written by another schema.
        """
        path = folder / MANIFEST_NAME
        if not path.exists():
            raise DataError(
                f"The stage {folder.name!r} has not finished.",
                where=folder,
                next_step=f"Run it first: megatron-cpt run --until {folder.name} ...",
            )
        data = read_json(path)
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                "A manifest was written by another version.",
                where=path,
                rule=f"schema_version {SCHEMA_VERSION}",
                next_step="Start a new run_name.",
            )
        return from_plain(cls, data, where=path)

    def check_outputs(self, folder: Path) -> None:
        """Refuse a finished stage whose files were removed or cut.

        Raises:
            DataError: naming the first file that is missing or has another size.
        """
        for name, file in self.outputs.items():
            path = folder / name
            size = path.stat().st_size if path.exists() else None
            if size != file.size_bytes:
                raise DataError(
                    f"A file of the finished stage {self.stage!r} is {'missing' if size is None else 'damaged'}.",
                    where=path,
                    value=f"{size} bytes",
                    rule=f"{file.size_bytes} bytes by its manifest",
                    next_step=f"Remove {folder} and run again to rebuild it.",
                )


@dataclass
class StageResult:
    """What a stage's body fills while it works in its folder. `inputs` is what decides the outputs, for work that goes on after a stop."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)


def versions_in_use() -> dict[str, str]:
    """Return the versions that a record names: Python, this package and the libraries that decide results."""
    found = {"python": platform.python_version(), "megatron_cpt": megatron_cpt.__version__}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


COMMIT_NAME = "commit.txt"  # beside a copy of the package: the commit that it was copied at


def commit_in_use() -> str:
    """Return the commit of the checkout that this package runs from, or was copied from for a job; `unknown` where there is none."""
    folder = Path(megatron_cpt.__file__).parent
    with contextlib.suppress(OSError):
        return (folder.parent / COMMIT_NAME).read_text(encoding="utf-8").strip()
    try:
        answer = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def describe_outputs(folder: Path, *, only: Sequence[str] | None = None) -> dict[str, OutputFile]:
    paths = [path for path in files_under(folder) if path.name != MANIFEST_NAME] if only is None else [folder / name for name in only]
    return {path.relative_to(folder).as_posix(): OutputFile(path.stat().st_size, sha256_file(path)) for path in paths}


def differing_fields(recorded: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `key: recorded -> wanted` for every leaf that differs."""
    lines = []
    for key in sorted(set(recorded) | set(wanted)):
        old, new = recorded.get(key, "(absent)"), wanted.get(key, "(absent)")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differing_fields(old, new, f"{prefix}{key}.")
        elif canonical_json(old) != canonical_json(new):
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines


def finished(folder: Path, inputs: Mapping[str, Any], *, next_step: str | None = None) -> Manifest | None:
    """Return the manifest when the stage is done for these inputs, None when it is still to do.

    Args:
        next_step: what to do about other inputs, where there is more to do than the usual.

    Raises:
        ConfigError: the stage was done for other inputs; each differing field is named.
        DataError: its files were damaged since.
    """
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.load(folder)
    changes = differing_fields(manifest.inputs, inputs)
    if changes:
        raise ConfigError(
            f"The stage {folder.name!r} was finished with other inputs:\n    " + "\n    ".join(changes),
            where=folder,
            rule="a finished stage is never redone in place",
            next_step=next_step or f"Use a new run_name, or remove {folder} and every later stage of this run.",
        )
    manifest.check_outputs(folder)
    return manifest


def write_manifest(
    folder: Path, stage: str, inputs: Mapping[str, Any], facts: Mapping[str, Any], *, only: Sequence[str] | None = None
) -> Manifest:
    """Hash a stage's files and write its manifest, the last of them.

    Args:
        only: the files to record, for a stage whose other files are records of their own (checkpoints, metrics).
    """
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        stage=stage,
        inputs=dict(inputs),
        outputs=describe_outputs(folder, only=only),
        facts=dict(facts),
        versions=versions_in_use(),
        commit=commit_in_use(),
    )
    write_json(folder / MANIFEST_NAME, to_plain(manifest))
    return manifest


def build_stage(folder: Path, inputs: Mapping[str, Any], body: Callable[[StageResult], None], *, is_resumed: bool = False) -> Manifest:
    """Run a stage's body in a folder aside, then publish it whole; leave nothing behind when it fails.

    Args:
        is_resumed: the body knows what it finished before it was killed: it begins in the folder that an earlier try with equal inputs
            left, where there is one; so that folder stays when it fails.
    """
    identity = sha256_plain([dict(inputs), megatron_cpt.__version__])[:8] if is_resumed else uuid.uuid4().hex[:8]
    aside = folder.parent / f".{folder.name}-{identity}.partial"
    for stale in folder.parent.glob(f".{folder.name}-*.partial"):
        if not is_resumed or stale != aside:
            shutil.rmtree(stale)
    if folder.exists():
        shutil.rmtree(folder)  # without a manifest it is the torso of a killed rename of an older version
    aside.mkdir(parents=True, exist_ok=is_resumed)
    try:
        result = StageResult(aside, inputs=inputs)
        body(result)
        manifest = write_manifest(aside, folder.name, inputs, result.facts)
        publish_folder(aside, folder)
    except BaseException:
        if not is_resumed:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    return manifest


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Let one process at a time work on a run."""
    os.makedirs(run_dir, exist_ok=True)
    with exclusive(run_dir / ".lock", purpose=f"working on the run {run_dir.name!r}"):
        yield
