"""Strangers' files: each bad record costs itself only, and a cut file is never a whole one."""

from __future__ import annotations

import gzip
import importlib.util
import json

import pytest
import zstandard

from megatron_cpt.corpus.readers import Row, Unreadable, read_records
from megatron_cpt.errors import DataError


def records_of(path):
    return list(read_records(path, text_keys=["text"]))


def texts_of(path):
    return [record.fields["text"] for record in records_of(path) if isinstance(record, Row)]


def lines(*texts):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def test_a_byte_order_mark_costs_no_record_also_in_the_middle_of_joined_shards(tmp_path):
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + lines("first", "second") + mark + lines("third"))
    assert texts_of(path) == ["first", "second", "third"]
    assert [record.had_bom for record in records_of(path)] == [True, False, True]


def test_only_the_line_that_is_not_utf8_is_lost_and_its_byte_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b'{"text": "\xff"}\n' + lines("three"))
    _, bad, _ = records_of(path)
    assert bad == Unreadable(2, "invalid_utf8", "byte 0xff at byte 26 of the file")
    assert texts_of(path) == ["one", "three"]


@pytest.mark.parametrize("junk", [b"{", b"[1]", b'"text"', b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}"])
def test_a_line_that_is_no_json_object_is_rejected_alone(tmp_path, junk):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + junk + b"\n" + lines("three"))
    first, bad, third = records_of(path)
    assert isinstance(bad, Unreadable)
    assert bad.reason == "invalid_json"
    assert (first.line, bad.line, third.line) == (1, 2, 3)


def test_only_a_newline_ends_a_record(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "a\u2028b\u2029c\u0085d\x0ce"
    path.write_bytes(lines(text).replace(b"\n", b"\r\n") + json.dumps({"text": "no newline at the end"}).encode())
    assert texts_of(path) == [text, "no newline at the end"]


def test_a_line_of_25_megabytes_is_read_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*"abcde") + lines("x" * 25_000_000) + lines(*"fghij"))
    texts = texts_of(path)
    assert len(texts) == 11
    assert len(texts[5]) == 25_000_000


def test_a_line_over_the_limit_is_rejected_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_cpt.corpus.readers.MAX_RECORD_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + lines("y" * 5000) + lines("three"))
    assert [getattr(record, "reason", "") for record in records_of(path)] == ["", "too_long", ""]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_cut_compressed_file_is_an_error_that_counts_what_was_whole(tmp_path, kind):
    data = lines(*(f"record {number} {number * 7919 % 1000}" for number in range(1000)))
    packed = gzip.compress(data) if kind == "gz" else zstandard.compress(data)
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed)
    assert len(texts_of(path)) == 1000
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"cut or damaged(.|\n)*whole records") as caught:
        texts_of(path)
    assert f"a.jsonl.{kind}" in str(caught.value)


def test_all_frames_and_members_are_read(tmp_path):
    for kind, pack in (("gz", gzip.compress), ("zst", zstandard.compress)):
        path = tmp_path / f"a.jsonl.{kind}"
        path.write_bytes(pack(lines("one", "two")) + pack(lines("three")))
        assert texts_of(path) == ["one", "two", "three"]


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"this is not compressed")
        with pytest.raises(DataError, match="cut or damaged"):
            records_of(tmp_path / name)


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "c.txt").write_bytes(b"ok\n\xff\n")
    assert texts_of(tmp_path / "a.txt") == ["one\r\n\r\ntwo\n"]
    assert texts_of(tmp_path / "b.txt.gz") == ["three"]
    assert records_of(tmp_path / "c.txt") == [Unreadable(2, "invalid_utf8", "byte 0xff at byte 3 of the file")]


def test_parquet_is_read_or_the_missing_package_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1")
        with pytest.raises(DataError, match="pyarrow"):
            records_of(path)
        return
    import pyarrow  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pyarrow.table({"text": ["one", None, "three"], "id": [7, 8, 9], "other": [0, 0, 0]}), path)
    assert [record.fields for record in records_of(path)] == [
        {"text": "one", "id": 7}, {"text": None, "id": 8}, {"text": "three", "id": 9},
    ]  # fmt: skip
    with pytest.raises(DataError, match="no text column"):
        list(read_records(path, text_keys=["body"]))
