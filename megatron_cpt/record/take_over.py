"""A finished stage of another run, taken over instead of done again: the same inputs, the same code, and files that are proven whole."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CptError
from megatron_cpt.record.hashing import canonical_json, sha256_file
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest, commit_in_use, versions_in_use
from megatron_cpt.record.store import publish_folder, share_file, write_json
from megatron_cpt.record.typed import to_plain


def take_over(folder: Path, inputs: Mapping[str, Any], others: Sequence[Path]) -> Manifest | None:
    """Publish a stage from the first of other runs that has finished it with equal inputs; None when none has, and nothing is left behind.

    Its files are hard links (copies where the file system has none), each of the size and digest that the other manifest names. A
    finished stage is never written into, so runs that share one cannot change it for each other; removing a run leaves the others theirs.

    Args:
        folder: of the stage that is to do, in its run.
        others: folders of other runs in the same folder of runs, so that relative paths in the stage hold in this run too.
    """
    for run in others:
        manifest = _usable(run / folder.name, inputs) if run.parent == folder.parent.parent and run != folder.parent else None
        if manifest is not None and _publish(run / folder.name, folder, manifest):
            return Manifest.load(folder)
    return None


def _usable(source: Path, inputs: Mapping[str, Any]) -> Manifest | None:
    try:
        manifest = Manifest.load(source)
    except CptError:
        return None  # not finished, or by another version
    same_code = manifest.versions == versions_in_use() and manifest.commit == commit_in_use()
    return manifest if same_code and canonical_json(manifest.inputs) == canonical_json(dict(inputs)) else None


def _publish(source: Path, folder: Path, manifest: Manifest) -> bool:
    aside = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}.partial"
    for stale in (*folder.parent.glob(f".{folder.name}-*.partial"), folder):
        if stale.exists():
            shutil.rmtree(stale)  # without a manifest it is the torso of a killed try
    try:
        for name, file in manifest.outputs.items():
            share_file(source / name, aside / name)
            if (aside / name).stat().st_size != file.size_bytes or sha256_file(aside / name) != file.sha256:
                return False
        write_json(aside / MANIFEST_NAME, to_plain(dataclasses.replace(manifest, taken_from=manifest.taken_from or source.parent.name)))
        publish_folder(aside, folder)
    except OSError:  # the other run is being removed, or the disk is full: the stage itself will say so
        return False
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True
