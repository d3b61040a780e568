"""Reading strangers' weights: what is whole is read, what is not is refused with its file's name."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_cpt.errors import CheckpointError
from megatron_cpt.model.hf_folder import INDEX_NAME, SINGLE_NAME, HfFolder, write_tensors

TENSORS = {"a": torch.arange(12.0).reshape(4, 3), "b": torch.ones(5, dtype=torch.float32), "c": torch.full((2, 2), 7.0)}


def with_header(path: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 50], ids=["one-file", "shards"])
def test_tensors_are_read_as_they_were_written(tmp_path: Path, max_shard_bytes: int) -> None:
    names = write_tensors(tmp_path, TENSORS.items(), max_shard_bytes=max_shard_bytes)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    folder = HfFolder.open(tmp_path)
    assert set(folder.entries) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(folder.read(name), tensor)
        assert folder.entries[name].shape == tuple(tensor.shape)
    assert torch.equal(folder.read("a", dim=0, start=1, stop=3), TENSORS["a"][1:3])
    assert torch.equal(folder.read("a", dim=1, start=2, stop=3), TENSORS["a"][:, 2:3])


def test_shards_are_named_and_indexed_as_transformers_reads_them(tmp_path: Path) -> None:
    names = write_tensors(tmp_path, TENSORS.items(), max_shard_bytes=50)
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX_NAME]
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    # a: 48 bytes alone; b (20) and c (16) together.
    assert index == {"metadata": {"total_size": 84}, "weight_map": {"a": names[0], "b": names[1], "c": names[1]}}


def test_nothing_is_left_when_the_source_of_tensors_fails(tmp_path: Path) -> None:
    def tensors():
        yield "a", torch.ones(20)
        yield "b", torch.ones(20)
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        write_tensors(tmp_path, tensors(), max_shard_bytes=80)
    assert list(tmp_path.iterdir()) == []


def test_a_declared_tensor_is_let_go_when_it_is_written(tmp_path: Path) -> None:
    """What bounds the memory of a conversion."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def tensors():
        for name, tensor in TENSORS.items():
            assert all(ref() is None for ref in alive), "an earlier tensor is still held"
            copy = tensor.clone()
            alive.append(weakref.ref(copy))
            yield name, copy
            del copy

    declared = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    write_tensors(tmp_path, tensors(), declared=declared, max_shard_bytes=50)
    assert len(alive) == 3
    for file in tmp_path.glob("*.safetensors"):  # the format's own library agrees
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, TENSORS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_is_written_as_the_formats_own_library_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "transposed": torch.randn(4, 2).to(dtype).T}
    write_tensors(tmp_path, tensors.items())
    read = load_file(tmp_path / SINGLE_NAME)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("num_bytes_less", [1, 40])
def test_a_truncated_file_is_refused(tmp_path: Path, num_bytes_less: int) -> None:
    write_tensors(tmp_path, TENSORS.items())
    path = tmp_path / SINGLE_NAME
    path.write_bytes(path.read_bytes()[:-num_bytes_less])
    with pytest.raises(CheckpointError, match=r"damaged or not whole[\s\S]*model.safetensors"):
        HfFolder.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        (2**40).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"not json!!",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}" + b"more than the header says",
    ],
    ids=["empty", "two-bytes", "huge-header", "no-json", "a-list", "too-long"],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or not whole"):
        HfFolder.open(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": "22", "data_offsets": [0, 4]},
        7,
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, fields: object) -> None:
    with_header(tmp_path / SINGLE_NAME, {"a": fields}, b"\0" * 4)
    with pytest.raises(CheckpointError, match="damaged or not whole"):
        HfFolder.open(tmp_path)


def test_a_type_that_is_no_float_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.int64)}, tmp_path / SINGLE_NAME)
    with pytest.raises(CheckpointError, match=r"a: I64[\s\S]*F32, BF16, F16"):
        HfFolder.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    names = write_tensors(tmp_path, TENSORS.items(), max_shard_bytes=50)
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=names[1]):
        HfFolder.open(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, shard: str) -> None:
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "folder" / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="shard that the index names is missing"):
        HfFolder.open(tmp_path / "folder")


def test_an_index_that_disagrees_with_a_shard_is_refused(tmp_path: Path) -> None:
    names = write_tensors(tmp_path, TENSORS.items(), max_shard_bytes=50)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    index["weight_map"]["d"] = names[0]
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"do not agree[\s\S]*value: d"):
        HfFolder.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_unreadable_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="index of the weights is not readable"):
        HfFolder.open(tmp_path)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle can run any code[\s\S]*pytorch_model.bin[\s\S]*save_pretrained"):
        HfFolder.open(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights that can be read"):
        HfFolder.open(tmp_path)


def test_a_name_that_is_not_there_is_said(tmp_path: Path) -> None:
    write_tensors(tmp_path, TENSORS.items())
    with pytest.raises(CheckpointError, match=r"A tensor is missing[\s\S]*lm_head"):
        HfFolder.open(tmp_path).read("lm_head.weight")
