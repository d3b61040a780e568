"""Sources are checked before megatron opens them. The bytes are written here by the format's description, not by our code."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.errors import DataError
from megatron_cpt.record.index_pair import id_range, open_pair
from megatron_cpt.train.index_files import check_sources


def write_pair(prefix: Path, documents: list[list[int]], *, dtype: type = np.uint16, code: int = 8) -> Path:
    lengths = [len(document) for document in documents]
    size = np.dtype(dtype).itemsize
    pointers = np.cumsum([0, *lengths])[:-1] * size
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(documents), len(documents) + 1)
    index += (
        np.array(lengths, np.int32).tobytes()
        + pointers.astype(np.int64).tobytes()
        + np.arange(len(documents) + 1, dtype=np.int64).tobytes()
    )
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    prefix.with_name(prefix.name + ".bin").write_bytes(np.array([i for d in documents for i in d], dtype).tobytes())
    return prefix


def test_a_pair_is_read_in_both_widths(tmp_path: Path) -> None:
    narrow = open_pair(write_pair(tmp_path / "narrow", [[1, 65535], [3]]))
    wide = open_pair(write_pair(tmp_path / "wide", [[1, 70000], [3]], dtype=np.int32, code=4))
    assert (narrow.num_tokens, list(narrow.lengths), id_range(narrow)) == (3, [2, 1], (1, 65535))
    assert id_range(wide) == (1, 70000)


def test_every_bad_source_is_named_at_once(tmp_path: Path) -> None:
    prefixes = [write_pair(tmp_path / "good", [[1, 2]]), write_pair(tmp_path / "empty", []), write_pair(tmp_path / "high", [[5, 320]])]
    with pytest.raises(DataError) as caught:
        check_sources(prefixes, num_ids=320)
    message = str(caught.value)
    assert "empty holds 0 tokens" in message
    assert "high holds token id 320; the vocabulary has ids 0 to 319" in message
    assert "good" not in message
    assert caught.value.exit_code == 3


def test_a_negative_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id -1"):
        check_sources([write_pair(tmp_path / "bad", [[4, -1]], dtype=np.int32, code=4)], num_ids=10)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_cut_or_missing_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    prefix = write_pair(tmp_path / "source", [[1, 2, 3], [4]])
    path = tmp_path / f"source{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=f"source{suffix}"):
        open_pair(prefix)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        open_pair(prefix)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "source", [[1, 2, 3]])
    (tmp_path / "source.idx").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match="not a Megatron index"):
        open_pair(prefix)


def test_a_header_that_claims_more_than_the_file_holds_is_refused_without_reading_it(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "source", [[1, 2, 3]])
    (tmp_path / "source.idx").write_bytes(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2**60, 2**60))
    with pytest.raises(DataError, match="cut or damaged"):
        open_pair(prefix)
