"""Files of strangers through the whole stage: the right count, the right message, and every other record kept."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from megatron_cpt.config.schema import CorpusConfig, EngineConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.corpus.readers import Row, read_records
from megatron_cpt.corpus.sources import source_inputs
from megatron_cpt.errors import DataError
from megatron_cpt.record.manifest import StageResult

MARK = b"\xef\xbb\xbf"
MANY_TASKS = 0.001  # MB


def rows_of(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def build(folder: Path, path: Path, said: list[str] | None = None, *, text_key: object = "text", task_mb: float = 64.0):
    """Build a corpus of one source; return its folder and facts."""
    made = ProvenanceConfig("made here", "2026-11", "by this test")
    source = SourceConfig(str(path), text_key, "domain", "MIT", made, "en", test_fraction=0.0)
    result = StageResult(folder)
    folder.mkdir()
    settings = CorpusConfig(EngineConfig(workers=1, task_mb=task_mb))
    build_corpus(result, sources={"law": source}, say=(said if said is not None else []).append, settings=settings)
    return folder, result.facts["sources"]["law"]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_a_mark_at_the_start_of_each_shard_leaves_no_trace_in_any_text_and_is_counted(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "1.jsonl").write_bytes(MARK + rows_of("first", "second"))
    (shards / "2.jsonl").write_bytes(MARK + rows_of("third"))
    (shards / "3.jsonl.gz").write_bytes(gzip.compress(MARK + rows_of("fourth")))
    (shards / "4.txt").write_bytes(MARK + b"fifth")
    (shards / "5.jsonl").write_bytes(rows_of("sixth") + MARK + rows_of("seventh"))
    folder, facts = build(tmp_path / "out", shards)
    assert [row["text"] for row in read(folder / "law.train.jsonl")] == ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
    assert facts["repaired"] == {"byte_order_mark": 5}
    assert b"\xef\xbb\xbf" not in (folder / "law.train.jsonl").read_bytes()


def test_every_cut_of_a_file_into_ranges_gives_each_record_once(tmp_path):
    """All pairs of cuts of a small file: also at a line's first byte, inside a character, in blank lines and behind the last line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARK + rows_of("a", "法律") + b"\n\r\n" + rows_of("x" * 20).replace(b"\n", b"\r\n") + b'{"text": "end"}')
    size = path.stat().st_size
    whole = [getattr(record, "fields", record) for record in read_records(path, text_keys=["text"])]
    assert len(whole) == 6
    for first in range(1, size):
        for second in range(first, size + 1):
            parts = [(0, first), (first, second), (second, None)]
            records = [record for start, end in parts for record in read_records(path, text_keys=["text"], start=start, end=end)]
            shown = [record.fields if isinstance(record, Row) else record.reason for record in records]
            assert shown == [each if isinstance(each, dict) else each.reason for each in whole]


def test_a_line_of_25_megabytes_over_many_ranges_is_kept_with_its_neighbours(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(rows_of(*"abcde") + rows_of("long " * 5_000_000) + rows_of(*"fghij"))
    folder, facts = build(tmp_path / "out", path, task_mb=2)
    assert (facts["read"], facts["kept"]) == (11, 11)
    with (folder / "law.train.jsonl").open("rb") as file:
        assert sorted(len(line) for line in file)[-1] > 25_000_000


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "empty", "not compressed"])
def test_a_damaged_file_in_the_middle_is_named_and_the_stage_leaves_nothing_that_looks_whole(tmp_path, kind, damage):
    pack = gzip.compress if kind == "gz" else zstandard.compress
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        (shards / f"{number}.jsonl.{kind}").write_bytes(pack(rows_of(*(f"record {number} {row * 7919 % 1000}" for row in range(1000)))))
    damaged = shards / f"1.jsonl.{kind}"
    damaged.write_bytes({"cut": damaged.read_bytes()[:-20], "empty": b"", "not compressed": b"plain text"}[damage])
    with pytest.raises(DataError, match=r"cut or damaged(.|\n)*whole records before the damage") as caught:
        build(tmp_path / "out", shards)
    assert str(damaged) in str(caught.value)
    assert not (tmp_path / "out" / "law.train.jsonl").exists()


def test_every_frame_of_a_file_is_read(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(rows_of(text)) for text in ("one", "two", "three")))
    assert build(tmp_path / "out", tmp_path / "a.jsonl.zst")[1]["kept"] == 3


def test_a_file_that_cannot_be_read_in_the_middle_is_named(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("1.jsonl", "3.jsonl"):
        (shards / name).write_bytes(rows_of(name))
    (shards / "2.jsonl").symlink_to("/proc/self/mem")  # a file whose first byte cannot be read, also by root
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*2\.jsonl(.|\n)*Input/output error"):
        source_inputs({"law": SourceConfig(str(shards), "text", "domain", "MIT", ProvenanceConfig("a", "2026", "b"), "en")})
    with pytest.raises(DataError, match="Input/output error"):
        build(tmp_path / "out", shards)
    (shards / "2.jsonl").unlink()
    (shards / "2.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"2\.jsonl' is no file that can be read"):
        build(tmp_path / "out2", shards)


def test_files_of_other_kinds_are_left_alone_aloud(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "1.jsonl").write_bytes(rows_of("one"))
    (shards / "notes.docx").write_bytes(b"PK")
    said: list[str] = []
    build(tmp_path / "out", shards, said)
    assert said[0] == "corpus: law: 1 files of other kinds are left alone (first: notes.docx)"


def test_several_text_keys_are_joined_and_each_must_be_there(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"title": "T", "body": "B"}, {"title": "T2"}, {"title": None, "body": "B3"}, {"title": "T4", "body": "B4", "id": 9}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, facts = build(tmp_path / "out", path, text_key=["title", "body"])
    assert [row["text"] for row in read(folder / "law.train.jsonl")] == ["T\n\nB", "T4\n\nB4"]
    assert facts["rejected"] == {"missing_text": 1, "null_text": 1}
    assert read(folder / "rejects" / "law.jsonl")[0]["detail"] == "no key 'body'; keys present: title"


def test_repeated_ids_of_the_user_merge_no_texts_whatever_the_cuts(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"id": "a", "text": "one"},
        {"id": "b", "text": "two"},
        {"id": "a", "text": "other"},
        {"id": "c", "text": "two"},
        {"id": "d", "text": "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = []
    for name, task_mb in (("whole", 64.0), ("two", 5e-5), ("each", 2e-5)):
        folder, _ = build(tmp_path / name, path, task_mb=task_mb)
        results.append([(folder / file).read_bytes() for file in ("law.train.jsonl", "rejects/law.jsonl")])
    assert results[0] == results[1] == results[2]
    kept = read(tmp_path / "whole" / "law.train.jsonl")
    assert [row["text"] for row in kept] == ["one", "two", "other", "x"]
    assert [row["id"].partition("#")[0] for row in kept] == ["a", "b", "a", "d"]
    assert len({row["id"] for row in kept}) == 4
    (reject,) = read(tmp_path / "whole" / "rejects" / "law.jsonl")
    assert (reject["line"], reject["reason"]) == (4, "duplicate")
    assert reject["detail"].endswith("that of the kept law: b")


def test_no_control_character_or_lone_surrogate_reaches_the_corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = (
        b'{"text": "\xe4\xb8\xad\\u0000\xe5\x9b\xbd"}', b'{"text": "\\ud83d ok"}', b'{"text": "\\ud83d\\ude00"}',
        b'{"id": "\\udcff\\u0000x", "text": "id"}',
    )  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    folder, facts = build(tmp_path / "out", path)
    kept = read(folder / "law.train.jsonl")
    assert [row["text"] for row in kept] == ["中国", "\ufffd ok", "😀", "id"]
    assert kept[3]["id"] == "\ufffdx"
    assert facts["repaired"] == {"control_characters": 1, "lone_surrogate": 1}


def test_separators_inside_texts_survive_and_end_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "one\u2028two\u0085three\u2029four\r\nfive\x0bsix"
    path.write_bytes(rows_of(text).replace(b"\n", b"\r\n"))
    folder, facts = build(tmp_path / "out", path)
    assert read(folder / "law.train.jsonl")[0]["text"] == text.replace("\x0b", "")
    assert len((folder / "law.train.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert facts["read"] == 1
