"""A finished stage is taken over for equal inputs, equal code and whole files alone, and the manifest says from whom."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from megatron_cpt.record.manifest import Manifest, StageResult, build_stage, finished
from megatron_cpt.record.store import write_json
from megatron_cpt.record.take_over import take_over
from megatron_cpt.record.typed import to_plain

INPUTS = {"sources": {"law": "5f3a"}, "seed": 1}


def body(result: StageResult) -> None:
    (result.folder / "inner").mkdir()
    (result.folder / "inner" / "law.jsonl").write_text("one\n")
    (result.folder / "card.md").write_text("card\n")
    result.facts["kept"] = 1


@pytest.fixture
def other(tmp_path: Path) -> Path:
    build_stage(tmp_path / "first" / "corpus", INPUTS, body)
    (tmp_path / "second").mkdir()
    return tmp_path / "first"


def test_it_is_the_same_stage_by_hard_links_and_names_its_origin(other: Path) -> None:
    mine = other.parent / "second" / "corpus"
    taken = take_over(mine, INPUTS, [other.parent / "none", other])
    assert taken is not None
    first = Manifest.load(other / "corpus")
    assert (taken.taken_from, first.taken_from) == ("first", "")
    assert (taken.fingerprint, taken.facts) == (first.fingerprint, {"kept": 1})
    assert finished(mine, INPUTS) is not None
    assert (mine / "inner" / "law.jsonl").stat().st_ino == (other / "corpus" / "inner" / "law.jsonl").stat().st_ino
    third = other.parent / "third" / "corpus"
    third.parent.mkdir()
    again = take_over(third, INPUTS, [mine.parent])
    assert again is not None
    assert again.taken_from == "first"  # who did the work, not who handed it on
    shutil.rmtree(other)
    assert (mine / "card.md").read_text() == "card\n"


@pytest.mark.parametrize("change", ["inputs", "version", "commit", "content", "missing", "elsewhere", "unfinished"])
def test_anything_else_is_not_taken_and_leaves_nothing(other: Path, change: str, tmp_path: Path) -> None:
    mine, inputs = other.parent / "second" / "corpus", dict(INPUTS)
    manifest = Manifest.load(other / "corpus")
    if change == "inputs":
        inputs["seed"] = 2
    elif change == "version":
        write_json(other / "corpus" / "manifest.json", to_plain(dataclasses.replace(manifest, versions={"python": "2.7"})))
    elif change == "commit":
        write_json(other / "corpus" / "manifest.json", to_plain(dataclasses.replace(manifest, commit="another")))
    elif change == "content":
        (other / "corpus" / "card.md").write_text("CARD\n")  # of the same size
    elif change == "missing":
        (other / "corpus" / "card.md").unlink()
    elif change == "elsewhere":
        mine = tmp_path / "other-runs" / "second" / "corpus"
        mine.parent.mkdir(parents=True)
    else:
        (other / "corpus" / "manifest.json").unlink()
    assert take_over(mine, inputs, [other]) is None
    assert list(mine.parent.iterdir()) == []
