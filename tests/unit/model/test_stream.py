"""Streamed conversion writes and reads what megatron-core itself would, bit for bit, whatever the layout that loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout
from tests.integration.launch_ranks import launch_ranks
from tests.numerics.test_ranks_agree import lay_out, layout, tensors_of
from tests.numerics.tiny_llama import layout_of_ids, save_tiny_llama

BACKEND = choose("cpu")

from torch.distributed.checkpoint import FileSystemReader  # noqa: E402
from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: E402

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import load_hf_into  # noqa: E402
from megatron_cpt.model.dist_checkpoint import load_model, save_model  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder, write_tensors  # noqa: E402
from megatron_cpt.model.names import EMBEDDING, OUTPUT  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402
from megatron_cpt.model.stream import declared_tensors, read_checkpoint, recast_checkpoint, skeleton, write_checkpoint  # noqa: E402

NUM_PADDING = 28  # 100 ids in 128 rows


def padding(shape: ModelShape) -> dict[str, torch.Tensor]:
    return {name: torch.full((NUM_PADDING, shape.hidden_size), 3.0) for name in (EMBEDDING, OUTPUT)}


def description(folder: Path) -> dict[str, tuple]:
    """Return what the checkpoint says of each tensor: type, size, and the place and size of its parts."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        key: (entry.properties, entry.size, sorted((tuple(part.offsets), tuple(part.sizes)) for part in entry.chunks))
        for key, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


@pytest.mark.parametrize(("tied", "dtype"), [(True, "bf16"), (False, "fp32")], ids=["tied-bf16", "untied-fp32"])
def test_a_streamed_checkpoint_is_the_one_that_megatron_saves_of_the_loaded_model(tmp_path: Path, tied: bool, dtype: str) -> None:
    torch_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    shape = save_tiny_llama(tmp_path / "base", tied=tied, dtype=torch_dtype)
    base, vocab = HfFolder.open(tmp_path / "base"), layout_of_ids(shape, multiple=128)
    one = single_rank_layout(8, dtype=dtype)  # type: ignore[arg-type]
    with ranks(one, backend=BACKEND, seed=1):
        chunks = build_chunks(shape, vocab, one, backend=BACKEND)
        load_hf_into(chunks, base, shape, vocab, padding(shape))
        save_model(tmp_path / "loaded", chunks, common={"a": 1})
        bones = skeleton(shape, vocab, dtype=dtype, backend=BACKEND)
        assert {param.device.type for param in bones.model.parameters()} == {"meta"}
        write_checkpoint(tmp_path / "streamed", base, bones, new_rows=padding(shape), common={"a": 1})
        assert description(tmp_path / "streamed") == description(tmp_path / "loaded")
        both = [tensors_of(tmp_path / name) for name in ("streamed", "loaded")]
        assert both[0].keys() == both[1].keys()
        for key, value in both[0].items():
            assert torch.equal(value, both[1][key]), key
        assert load_model(tmp_path / "streamed", build_chunks(shape, vocab, one, backend=BACKEND)) == {"a": 1}

        back = dict(read_checkpoint(tmp_path / "loaded", bones, dtype=torch_dtype))
        declared = declared_tensors(bones, dtype=torch_dtype)
    assert list(back) == list(declared)
    assert set(back) == set(base.entries)
    for name, tensor in back.items():
        assert torch.equal(tensor, base.read(name)), name
        assert (tensor.dtype, tuple(tensor.shape)) == declared[name]


def load_on_layouts(folder: Path, checkpoint: Path) -> list[str]:
    """Load the checkpoint at TP 2 and at PP 2, and name the parameters that differ from those read from the folder."""
    shape = ModelShape.from_hf_folder(folder)
    vocab = layout_of_ids(shape, multiple=128)
    differing = []
    with ranks(layout(2, 1), backend=BACKEND, seed=1):
        for this in (layout(2, 1), layout(1, 2)):
            lay_out(this)
            loaded, wanted = (build_chunks(shape, vocab, this, backend=BACKEND) for _ in range(2))
            load_model(checkpoint, loaded)
            load_hf_into(wanted, HfFolder.open(folder), shape, vocab, padding(shape))
            ours, theirs = dict(loaded[0].named_parameters()), dict(wanted[0].named_parameters())
            differing += [name for name in theirs if not torch.equal(ours[name], theirs[name])]
            assert len(ours) > 5
    return differing


def test_a_streamed_checkpoint_loads_with_tensor_and_with_pipeline_ranks(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base", tied=False)
    one = single_rank_layout(8, dtype="fp32")
    with ranks(one, backend=BACKEND, seed=1):
        bones = skeleton(shape, layout_of_ids(shape, multiple=128), dtype="fp32", backend=BACKEND)
        write_checkpoint(tmp_path / "c", HfFolder.open(tmp_path / "base"), bones, new_rows=padding(shape), common={})
    assert launch_ranks(load_on_layouts, 2, tmp_path / "base", tmp_path / "c") == [[], []]


def test_other_padding_and_type_keep_the_rows_of_ids(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base")
    base, old = HfFolder.open(tmp_path / "base"), layout_of_ids(shape, multiple=128)
    new = VocabLayout(old.num_base_ids, old.num_ids, 200, 0, "")
    with ranks(single_rank_layout(8, dtype="fp32"), backend=BACKEND, seed=1):
        before, after = skeleton(shape, old, dtype="fp32", backend=BACKEND), skeleton(shape, new, dtype="bf16", backend=BACKEND)
        write_checkpoint(tmp_path / "old", base, before, new_rows=padding(shape), common={})
        recast_checkpoint(tmp_path / "old", tmp_path / "new", before, after, common={})
        rows = tensors_of(tmp_path / "new")["embedding.word_embeddings.weight"]
        tensors = dict(read_checkpoint(tmp_path / "new", after, dtype=torch.bfloat16))
    assert rows.shape == (200, 64)
    assert torch.equal(rows[100:128], torch.full((28, 64), 3.0).bfloat16())
    torch.testing.assert_close(rows[199].float(), base.read(EMBEDDING).mean(dim=0), rtol=1e-2, atol=1e-3)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, base.read(name).bfloat16()), name


def test_reading_refuses_another_model_a_damaged_file_and_values_that_the_type_cannot_hold(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base")
    vocab = layout_of_ids(shape, multiple=128)
    other = save_tiny_llama(tmp_path / "other", tied=False)
    with ranks(single_rank_layout(8, dtype="fp32"), backend=BACKEND, seed=1):
        bones = skeleton(shape, vocab, dtype="fp32", backend=BACKEND)
        write_checkpoint(tmp_path / "c", HfFolder.open(tmp_path / "base"), bones, new_rows=padding(shape), common={})
        with pytest.raises(CheckpointError, match=r"other tensors[\s\S]*output_layer.weight"):
            next(read_checkpoint(tmp_path / "c", skeleton(other, vocab, dtype="fp32", backend=BACKEND), dtype=torch.float32))
        wider = VocabLayout(100, 100, 256, 0, "")
        with pytest.raises(CheckpointError, match=r"another shape[\s\S]*\[128, 64\][\s\S]*\[256, 64\]"):
            next(read_checkpoint(tmp_path / "c", skeleton(shape, wider, dtype="fp32", backend=BACKEND), dtype=torch.float32))
        with pytest.raises(CheckpointError, match="no whole distributed checkpoint"):
            next(read_checkpoint(tmp_path / "nothing", bones, dtype=torch.float32))

        tensors = {name: HfFolder.open(tmp_path / "base").read(name) for name in HfFolder.open(tmp_path / "base").entries}
        tensors["model.norm.weight"][3] = 1e6
        write_tensors(tmp_path / "base", tensors.items())
        write_checkpoint(tmp_path / "large", HfFolder.open(tmp_path / "base"), bones, new_rows=padding(shape), common={})
        with pytest.raises(CheckpointError, match=r"too large for fp16[\s\S]*model.norm.weight"):
            list(read_checkpoint(tmp_path / "large", bones, dtype=torch.float16))

        for path in (tmp_path / "c").glob("*.distcp"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match="cannot be read"):
            list(read_checkpoint(tmp_path / "c", bones, dtype=torch.float32))


def test_what_the_source_says_is_said_and_nothing_is_left_when_streaming_fails(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base")
    tensors = {name: HfFolder.open(tmp_path / "base").read(name) for name in HfFolder.open(tmp_path / "base").entries}
    tensors[EMBEDDING][7] = float("inf")
    write_tensors(tmp_path / "base", tensors.items())
    with ranks(single_rank_layout(8, dtype="fp32"), backend=BACKEND, seed=1):
        bones = skeleton(shape, layout_of_ids(shape), dtype="fp32", backend=BACKEND)
        with pytest.raises(CheckpointError, match=r"zero or not finite[\s\S]*1 rows, the first for id 7"):
            write_checkpoint(tmp_path / "c", HfFolder.open(tmp_path / "base"), bones, common={})
        assert not (tmp_path / "c").exists()
        tensors[EMBEDDING][7] = 1.0
        write_tensors(tmp_path / "base", tensors.items())
        write_checkpoint(tmp_path / "c", HfFolder.open(tmp_path / "base"), bones, common={})  # the failed save left no mark on this one
        assert dict(read_checkpoint(tmp_path / "c", bones, dtype=torch.float32)).keys() == tensors.keys()
