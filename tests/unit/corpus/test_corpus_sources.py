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


@pytest.mark.parametrize(
    "licence",
    ["MIT", "CC-BY-4.0", "Apache-2.0 OR MIT", "GPL-2.0-only WITH Classpath-exception-2.0", "LicenseRef-public-domain-US AND PSF-2.0"],
)
def test_an_spdx_expression_is_a_licence(shard, licence):
    assert source_inputs({"law": source(shard, licence=licence)})


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("Apach-2.0", "Apach-2.0 is no SPDX id; near: Apache-2.0"),
        ("CC BY 4.0", "CC BY 4.0 is no SPDX id; near: CC-BY-4.0"),
        ("MIT OR", "not an SPDX expression"),
        ("public domain", "public domain is no SPDX id; for others: LicenseRef-"),
        ("MIT AND Proprietary-Foo", r"Proprietary-Foo is no SPDX id(.|\n)*LicenseRef-<name>"),
    ],
)
def test_another_licence_is_refused_with_the_nearest_names(shard, licence, said):
    with pytest.raises(ConfigError, match=said):
        source_inputs({"law": source(shard, licence=licence)})


@pytest.mark.parametrize("language", ["en", "zh-Hans", "pt-BR", "zh-yue-Hant-HK", "de-1996", "en-x-legal", "und", "mul"])
def test_a_bcp_47_tag_is_a_language(shard, language):
    assert source_inputs({"law": source(shard, language=language)})


@pytest.mark.parametrize("language", ["english", "zh_CN", "e", "en-", "en us"])
def test_another_language_is_refused(shard, language):
    with pytest.raises(ConfigError, match="BCP 47"):
        source_inputs({"law": source(shard, language=language)})


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        (ProvenanceConfig("a court", "2026-11"), r"provenance\.obtained is missing: how"),
        (ProvenanceConfig("a court", "November", "by hand"), "date is 'November': use 2026, 2026-11 or 2026-11-29"),
        (ProvenanceConfig("a court", "2026-13", "by hand"), "date is '2026-13'"),
        ("a court", "one phrase: give origin, date and obtained"),
    ],
)
def test_a_part_of_the_provenance_that_is_missing_or_no_date_is_refused(shard, provenance, said):
    with pytest.raises(ConfigError, match=said):
        source_inputs({"law": source(shard, provenance=provenance)})


@pytest.mark.parametrize("key", ["", [], ["title", ""], None])
def test_a_text_key_that_names_nothing_is_refused(shard, key):
    with pytest.raises(ConfigError, match="text_key"):
        source_inputs({"law": source(shard, text_key=key)})
