"""A stage's folder appears whole; a stage that resumes begins in the folder that an earlier try with equal inputs left."""

from __future__ import annotations

import pytest

from megatron_cpt.record.manifest import Manifest, build_stage


class Killed(Exception):
    """Stands for whatever ends a body."""


def fails_after(name):
    def body(result):
        (result.folder / name).write_text(name)
        raise Killed

    return body


def test_a_failed_stage_leaves_nothing(tmp_path):
    with pytest.raises(Killed):
        build_stage(tmp_path / "corpus", {"a": 1}, fails_after("one"))
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_resumes_finds_what_it_finished_for_equal_inputs_only(tmp_path):
    with pytest.raises(Killed):
        build_stage(tmp_path / "index", {"a": 1}, fails_after("one"), is_resumed=True)
    assert not (tmp_path / "index").exists()
    seen = []

    def finishing(result):
        seen.append(sorted(path.name for path in result.folder.iterdir()))
        (result.folder / "two").write_text("two")

    manifest = build_stage(tmp_path / "index", {"a": 1}, finishing, is_resumed=True)
    assert seen == [["one"]]
    assert set(manifest.outputs) == {"one", "two"}
    assert Manifest.load(tmp_path / "index").fingerprint == manifest.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    with pytest.raises(Killed):
        build_stage(tmp_path / "other" / "index", {"a": 1}, fails_after("one"), is_resumed=True)
    build_stage(tmp_path / "other" / "index", {"a": 2}, finishing, is_resumed=True)
    assert seen[1] == []
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["index"]
