"""Sources are refused with everything that is wrong with them, and identified by content."""

from __future__ import annotations

import shutil

import pytest

from megatron_cpt.config.schema import ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.sources import source_inputs
from megatron_cpt.errors import ConfigError, DataError

MADE_HERE = ProvenanceConfig("made here", "2026-11", "by this test")


def source(path, **changed):
    settings = {
        "role": "domain",
        "licence": "MIT",
        "provenance": MADE_HERE,
        "language": "en",
    } | changed
    return SourceConfig(path=str(path), **settings)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "hello"}\n')
    return path


def test_every_problem_of_every_source_is_listed_at_once(tmp_path, shard):
    wrong = {
        "one": source(shard, licence="", role="expert", test_fraction=1.5),
        "two": SourceConfig(path=str(tmp_path / "absent.jsonl"), role="general", licence="MIT"),
        "../three": source(shard),
    }
    with pytest.raises(ConfigError) as caught:
        source_inputs(wrong)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    for part in (
        "source.one.licence is missing", "source.one.role is 'expert'", "source.one.test_fraction is 1.5",
        "source.two.provenance.origin is missing", "source.two.provenance.date is missing", "source.two.provenance.obtained is missing",
        "source.two.language is missing", "absent.jsonl", "'../three'",
    ):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("pattern", ["absent.jsonl", "*.jsonl.gz", "empty_folder"])
def test_a_source_without_files_is_a_data_error_that_names_it(tmp_path, shard, pattern):
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(DataError, match=r"source\.law: no file") as caught:
        source_inputs({"law": source(tmp_path / pattern)})
    assert caught.value.exit_code == 3


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match="known kind"):
        source_inputs({"law": source(tmp_path / "a.docx")})


def test_moved_data_keep_their_identity_and_changed_data_do_not(tmp_path, shard):
    before = source_inputs({"law": source(shard)})
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(shard, tmp_path / "moved" / "a.jsonl")
    assert source_inputs({"law": source(moved)}) == before
    shard.write_text('{"text": "hello!"}\n')
    assert source_inputs({"law": source(shard)}) != before


def test_files_of_folders_and_globs_come_in_name_order(tmp_path):
    for name in ("b.jsonl", "a.txt", "skipped.csv"):
        (tmp_path / name).write_text("{}\n")
    assert list(source_inputs({"x": source(tmp_path)})["x"]["files"]) == ["a.txt", "b.jsonl"]
    assert list(source_inputs({"x": source(tmp_path / "*.jsonl")})["x"]["files"]) == ["b.jsonl"]
