"""The index on disk: Megatron's own builder writes the same bytes, its reader reads them back, and damage is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_cpt.errors import DataError
from megatron_cpt.index.format import IndexWriter, dtype_code_for, write_idx
from megatron_cpt.record.index_pair import open_pair

DOCUMENTS = [[5, 1, 0], [7, 0], [3, 3, 3, 3, 0]]


def write(prefix, documents, num_ids):
    with IndexWriter(prefix, num_ids=num_ids) as writer:
        for ids in documents:
            writer.add(ids)
        writer.finish()


def write_with_megatron(prefix, documents, num_ids):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(num_ids))
    for ids in documents:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("num_ids", [10, 65_499, 65_500, 65_536, 70_000, 151_936])
def test_both_files_equal_those_of_megatrons_own_builder(tmp_path, num_ids):
    documents = [*DOCUMENTS, [num_ids - 1, num_ids // 2, 0], list(range(10)) * 30]
    write(tmp_path / "ours.train", documents, num_ids)
    write_with_megatron(tmp_path / "theirs", documents, num_ids)
    assert (tmp_path / "ours.train.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()
    assert (tmp_path / "ours.train.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    assert {path.name for path in tmp_path.glob("ours*")} == {"ours.train.bin", "ours.train.idx"}


def test_megatrons_reader_and_ours_give_the_documents_back(tmp_path):
    write(tmp_path / "x", DOCUMENTS, 10)
    theirs, ours = IndexedDataset(str(tmp_path / "x")), open_pair(tmp_path / "x")
    assert len(theirs) == ours.num_documents == 3
    for number, ids in enumerate(DOCUMENTS):
        assert theirs[number].tolist() == ours.document(number).tolist() == ids
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]


def test_ids_around_16_bits_are_kept_exactly(tmp_path):
    ids = [65_535, 65_536, 69_999, 0]
    write(tmp_path / "x", [ids], 70_000)
    assert open_pair(tmp_path / "x").tokens.dtype == np.int32
    dataset = IndexedDataset(str(tmp_path / "x"))  # named: a dropped dataset unmaps the arrays that it gave out
    assert dataset[0].tolist() == ids


def test_sixteen_bits_hold_every_id_that_they_are_chosen_for():
    assert [dtype_code_for(num_ids) for num_ids in (1, 65_499, 65_500, 65_537)] == [8, 8, 4, 4]


@pytest.mark.parametrize(("ids", "match"), [([1, 10], "outside"), ([-1], "outside"), ([], "does not fit")])
def test_an_id_outside_the_vocabulary_or_an_empty_document_is_refused_and_leaves_nothing(tmp_path, ids, match):
    with pytest.raises(DataError, match=match):
        write(tmp_path / "x", [[1, 0], ids], 10)
    assert list(tmp_path.iterdir()) == []


def test_an_index_without_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match="without a single document"):
        write(tmp_path / "x", [], 10)
    assert list(tmp_path.iterdir()) == []


def test_a_document_of_65537_tokens_keeps_its_length(tmp_path):
    write(tmp_path / "x", [[1, 0], [2] * 65_536 + [0], [3, 0]], 10)
    index = open_pair(tmp_path / "x")
    assert index.lengths.tolist() == [2, 65_537, 2]
    assert (tmp_path / "x.bin").stat().st_size == 2 * (2 + 65_537 + 2)
    dataset = IndexedDataset(str(tmp_path / "x"))
    assert dataset[2].tolist() == [3, 0]


def test_offsets_of_more_than_two_gigabytes_do_not_wrap():
    file = io.BytesIO()
    write_idx(file, np.array([400_000_000] * 3, dtype=np.int32), 8)
    offsets = struct.unpack("<3q", file.getvalue()[34 + 12 : 34 + 12 + 24])
    assert offsets == (0, 800_000_000, 1_600_000_000)
    file = io.BytesIO()
    write_idx(file, np.array([2_000_000_000] * 3, dtype=np.int32), 4)
    assert struct.unpack("<3q", file.getvalue()[46:70]) == (0, 8_000_000_000, 16_000_000_000)


@pytest.mark.parametrize("half", [".bin", ".idx"])
def test_half_an_index_is_refused_by_name(tmp_path, half):
    write(tmp_path / "x", DOCUMENTS, 10)
    (tmp_path / f"x{half}").unlink()
    with pytest.raises(DataError, match="Half of an index") as caught:
        open_pair(tmp_path / "x")
    assert f"x{half}" in str(caught.value)


@pytest.mark.parametrize("size", [0, 5, 20, 34, 60, -1, -9])
def test_a_cut_idx_is_refused(tmp_path, size):
    write(tmp_path / "x", DOCUMENTS, 10)
    data = (tmp_path / "x.idx").read_bytes()
    (tmp_path / "x.idx").write_bytes(data[:size])
    with pytest.raises(DataError):
        open_pair(tmp_path / "x")


def test_a_cut_or_foreign_bin_is_refused(tmp_path):
    write(tmp_path / "x", DOCUMENTS, 10)
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match="does not belong to its"):
        open_pair(tmp_path / "x")


@pytest.mark.parametrize("place", range(34, 34 + 12 + 24 + 32, 8))
def test_damage_inside_the_idx_is_refused(tmp_path, place):
    write(tmp_path / "x", DOCUMENTS, 10)
    data = bytearray((tmp_path / "x.idx").read_bytes())
    data[place] ^= 0x55
    (tmp_path / "x.idx").write_bytes(data)
    with pytest.raises(DataError):
        open_pair(tmp_path / "x")


def test_a_record_of_other_files_is_refused_and_a_strange_file_of_its_name_is_not(tmp_path):
    write(tmp_path / "x", DOCUMENTS, 10)
    record = tmp_path / "x.json"
    for text in ("", "[1, 2]\n[3]", '{"text": "a line of a corpus"}'):
        record.write_text(text)
        assert open_pair(tmp_path / "x").num_documents == 3
    record.write_text('{"schema_version": 1, "files": {".bin": {"size_bytes": 99}}}')
    with pytest.raises(DataError, match="not the one that its sidecar describes"):
        open_pair(tmp_path / "x")
