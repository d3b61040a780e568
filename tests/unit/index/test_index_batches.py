"""Lines become batches: the quick way and the careful way agree, and what is unusual costs its own line only."""

from __future__ import annotations

import io
import json

import pytest

from megatron_cpt.index import batches
from megatron_cpt.index.batches import read_batches


def read(data: bytes, *, key: str = "text", **limits):
    found = list(read_batches(io.BytesIO(data), key=key, **limits))
    texts = [text for batch in found for text in batch.texts]
    numbers = [number for batch in found for number in batch.numbers]
    left_out = [item for batch in found for item in batch.left_out]
    assert sum(batch.num_read for batch in found) == len(texts) + len(left_out)
    assert [size for batch in found for size in batch.sizes] == [len(text.encode()) for text in texts]
    return texts, numbers, left_out


def line(text: object, **more: object) -> bytes:
    return json.dumps({"text": text, **more}, ensure_ascii=False).encode() + b"\n"


def test_separators_inside_texts_stay_and_only_lf_ends_a_line():
    texts = ["a\u2028b\u2029c\u0085d\x0ce", "第一条", "tab\tnul\x00", "😀"]
    assert read(b"".join(map(line, texts)))[0] == texts


def test_a_last_line_without_lf_and_crlf_are_read():
    assert read(b'{"text": "one"}\r\n{"text": "two"}')[0] == ["one", "two"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\n", "blank_line"),
        (b" \r\n", "blank_line"),
        (b'{"text": "\xff"}\n', "invalid_utf8"),
        (b'{"text": "cut\n', "invalid_json"),
        (b'["text"]\n', "invalid_json"),
        (b'"text"\n', "invalid_json"),
        (b'{"text": "a"},{"text": "b"}\n', "invalid_json"),
        (b'{"text": null}\n', "null_text"),
        (b'{"text": 5}\n', "text_not_a_string"),
        (b'{"text": ["a", "b"]}\n', "text_not_a_string"),
        (b'{"body": "a"}\n', "missing_text"),
        (b'{"text": ""}\n', "empty_text"),
        (b'{"text": " \\n\\t\\u3000"}\n', "empty_text"),
        (b'{"text": "a\\ud800b"}\n', "lone_surrogate"),
    ],
)
def test_one_bad_line_is_left_out_by_its_reason_and_its_number(bad, reason):
    texts, numbers, left_out = read(line("one") + line("two") + bad + line("three"))
    assert (texts, numbers, left_out) == (["one", "two", "three"], [1, 2, 4], [(3, reason)])


def test_a_byte_order_mark_at_each_files_start_is_dropped():
    mark = b"\xef\xbb\xbf"
    assert read(mark + line("one") + mark + line("two")) == (["one", "two"], [1, 2], [])


def test_blocks_cut_anywhere_give_the_same_texts(monkeypatch):
    texts = [f"document {number} " + "x" * (number % 37) for number in range(200)]
    data = b"".join(map(line, texts)).replace(line(texts[50]), b"not json\n")
    for size in (1, 7, 64, 1000, 10**6):
        monkeypatch.setattr(batches, "BATCH_BYTES", size)
        monkeypatch.setattr(batches, "BATCH_RECORDS", 13)
        found, numbers, left_out = read(data)
        assert found == texts[:50] + texts[51:]
        assert numbers == [*range(1, 51), *range(52, 201)]
        assert left_out == [(51, "invalid_json")]


def test_a_line_that_is_too_long_is_left_out_and_its_neighbours_are_not(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 20)
    data = line("one") + line("y" * 5000) + line("two") + line("three")
    assert read(data, max_line_bytes=100) == (["one", "two", "three"], [1, 3, 4], [(2, "too_long")])
    assert read(line("y" * 5000), max_line_bytes=100)[2] == [(1, "too_long")]


def test_labels_travel_with_their_documents_and_other_kinds_of_values_are_none():
    found = list(read_batches(io.BytesIO(line("a", source="s", licence="MIT", id=7) + line("b", source=["x"])), key="text"))
    assert [label for batch in found for label in batch.labels] == [("s", "MIT"), (None, None)]
    assert found[0].ids == [7, None]
