"""tools/convert_checkpoint.py: each direction is one command and proves itself; bad input is one message and leaves nothing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pydoc_data.topics
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.line_workspace import ROOT, make_base

TOOL = ROOT / "tools" / "convert_checkpoint.py"
TEXT = [topic for topic in pydoc_data.topics.topics.values() if len(topic) > 400][:40]  # enough for 512 pieces


@pytest.fixture(scope="module")
def convert() -> Callable[..., int]:
    spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> int:
        return module.main([str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(folder, TEXT)
    return folder


@pytest.fixture(scope="module")
def megatron(convert: Callable[..., int], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "megatron"
    assert convert("hf-to-megatron", base, out, "--pad-rows-to-multiple", 640, "--check") == 0
    return out / "model"


def test_there_and_back_is_bit_identical_and_the_figures_are_printed(
    convert: Callable[..., int], base: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hf"
    assert convert("megatron-to-hf", megatron, out, "--like", base, "--check", "--max-shard-gb", 0.0001) == 0
    printed = capsys.readouterr().out
    theirs = load_file(base / "model.safetensors")
    ours = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert len(list(out.glob("*.safetensors"))) > 1
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert f"{'num_equal_tensors':<24}{len(theirs)}\n" in printed
    for name in ("logit_difference_early", "logit_difference_late"):
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        assert float(line.split()[1]) < 1e-4
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert before == after
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_checkpoint_becomes_one_of_other_padding(convert: Callable[..., int], base: Path, megatron: Path, tmp_path: Path) -> None:
    assert convert("megatron-to-megatron", megatron, tmp_path / "other", "--like", base, "--pad-rows-to-multiple", 768, "--check") == 0
    assert convert("megatron-to-hf", tmp_path / "other" / "model", tmp_path / "hf", "--like", base, "--check") == 0
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "hf"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_checkpoint_of_another_trainer_is_read_without_its_classes_and_optimizer_state(
    convert: Callable[..., int], base: Path, tmp_path: Path
) -> None:
    """As Megatron-LM writes it: arguments in a Namespace beside the model, and moments."""
    from megatron.core import dist_checkpointing  # noqa: PLC0415
    from megatron.core.dist_checkpointing.mapping import ShardedTensor  # noqa: PLC0415

    from megatron_cpt.backend import choose  # noqa: PLC0415
    from megatron_cpt.model.build import build_chunks  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: PLC0415
    from megatron_cpt.plan.model_shape import ModelShape  # noqa: PLC0415
    from megatron_cpt.record.vocab_layout import VocabLayout  # noqa: PLC0415

    backend, one = choose("cpu"), single_rank_layout(8, dtype="bf16")
    with ranks(one, backend=backend, seed=3):
        vocab = VocabLayout(512, 512, 576, 0, "")
        (model,) = build_chunks(ModelShape.from_hf_folder(base), vocab, one, backend=backend)
        state = {
            "model": model.sharded_state_dict(),
            "optimizer": {"m": ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.x", torch.ones(4))},
            "args": argparse.Namespace(num_layers=2),
            "iteration": 5,
        }
        (tmp_path / "theirs").mkdir()
        dist_checkpointing.save(state, str(tmp_path / "theirs"))
        rows = model.embedding.word_embeddings.weight.detach().float().clone()
    assert convert("megatron-to-hf", tmp_path / "theirs", tmp_path / "hf", "--like", base, "--dtype", "bf16", "--check") == 0
    written = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(written["model.embed_tokens.weight"].float(), rows[:512])


def write_gguf(path: Path, base: Path) -> dict[str, np.ndarray]:
    """Write a one-layer Llama of the base's tokenizer, Q8_0 where the format allows; return the tensors as dequantised."""
    from gguf import GGMLQuantizationType, GGUFWriter  # noqa: PLC0415
    from gguf.quants import dequantize, quantize  # noqa: PLC0415

    tokenizer = json.loads((base / "tokenizer.json").read_text())
    pieces = [piece for piece, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda pair: pair[1])]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([3, *[1] * (len(pieces) - 1)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {
        "token_embd.weight": (len(pieces), 64), "output_norm.weight": (64,), "output.weight": (len(pieces), 64),
        "blk.0.attn_norm.weight": (64,), "blk.0.attn_q.weight": (64, 64), "blk.0.attn_k.weight": (32, 64), "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_output.weight": (64, 64), "blk.0.ffn_norm.weight": (64,), "blk.0.ffn_gate.weight": (96, 64),
        "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96),
    }  # fmt: skip
    chance, tensors = np.random.default_rng(5), {}
    for name, shape in shapes.items():
        values = chance.normal(0.0, 0.15, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            tensors[name] = values
        else:
            packed = quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
            tensors[name] = dequantize(packed, GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_a_folder_with_its_dequantised_weights_and_its_splitting_of_digits(
    convert: Callable[..., int], base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the extra `samples` reads GGUF files")
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    wanted = write_gguf(tmp_path / "model.gguf", base)
    assert convert("gguf-to-hf", tmp_path / "model.gguf", tmp_path / "hf", "--check") == 0
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }
    for ours, theirs in names.items():
        assert torch.equal(state[ours], torch.from_numpy(wanted[theirs])), ours
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("in 1984 times")["input_ids"]) == "in 1984 times"
    assert not any(sum(letter.isdigit() for letter in piece) > 1 for piece in tokenizer.tokenize("in 1984 times"))
    assert convert("hf-to-megatron", tmp_path / "hf", tmp_path / "megatron", "--check") == 0


def copy_of(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"model.norm.weight": "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def fewer_rows_than_ids(folder: Path) -> None:
    """The config and the weights say 500, the tokenizer has 512 ids."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:500].clone()
    save_file(tensors, folder / "model.safetensors")
    change_config(folder, vocab_size=500)


def other_vocab_size(folder: Path) -> None:
    change_config(folder, vocab_size=640)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    "case",
    [
        (without_config, ["not a Hugging Face folder", "config.json"]),
        (truncated, ["damaged or not whole", "model.safetensors"]),
        (missing_shard, ["model-0000"]),
        (fewer_rows_than_ids, ["ids that the model has no row for", "largest id 511", "500"]),
        (other_vocab_size, ["model.embed_tokens.weight", "[512, 64]", "[640, 64]"]),
        (pickled, ["pickle", "pytorch_model.bin", "save_pretrained"]),
    ],
    ids=lambda case: case[0].__name__,
)
def test_bad_input_is_one_message_and_leaves_nothing(
    convert: Callable[..., int], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: tuple[Callable, list[str]]
) -> None:
    spoil, words = case
    folder = copy_of(base, tmp_path / "in")
    spoil(folder)
    assert convert("hf-to-megatron", folder, tmp_path / "out" / "megatron") == 4
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert list((tmp_path / "out").glob("*")) == []


def test_other_refusals(
    convert: Callable[..., int], base: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert convert("hf-to-megatron", base, tmp_path / "there") == 2
    assert "output exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        convert("megatron-to-hf", megatron, tmp_path / "hf")
    assert ended.value.code == 2
    assert convert("megatron-to-hf", megatron, tmp_path / "hf", "--like", base, "--num-ids", 1000) == 4
    assert "fewer rows" in capsys.readouterr().err
    (tmp_path / "no.gguf").write_bytes(b"nothing of the kind")
    assert convert("gguf-to-hf", tmp_path / "no.gguf", tmp_path / "hf") == 4
    assert "not a GGUF file" in capsys.readouterr().err
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + bytes(40))
    assert convert("gguf-to-hf", tmp_path / "torn.gguf", tmp_path / "hf") == 4
    assert "cannot be read by transformers" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_a_full_disk_is_said_in_the_systems_words_and_nothing_half_written_is_left(
    base: Path, megatron: Path, tmp_path: Path, direction: str
) -> None:
    """A limit on the size of files, which the kernel enforces in the middle of a write as it does when a disk is full."""
    out = tmp_path / "out" / "result"
    source = [str(base)] if direction == "hf-to-megatron" else [str(megatron)]
    like = [] if direction == "hf-to-megatron" else ["--like", str(base)]
    ended = subprocess.run(
        [sys.executable, str(TOOL), direction, *source, str(out), *like],
        env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1"),  # the limit would cut a .pyc file too
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 4, ended.stderr
    assert "could not be written" in ended.stderr
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((tmp_path / "out").glob("*")) == []
    assert list((tmp_path / "out").glob(".*")) == []
