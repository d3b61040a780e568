"""The exported folder loads alone in transformers with exactly the ids' rows, in the base's type, and is whole or absent."""

from __future__ import annotations

import io
import json
import pydoc_data.topics
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout
from tests.integration.line_workspace import make_base

BACKEND = choose("cpu")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from megatron_cpt.export.completions import complete, side_by_side  # noqa: E402
from megatron_cpt.export.folder import copy_tokenizer, export_folder, load_alone  # noqa: E402
from megatron_cpt.export.prompts import beginnings  # noqa: E402
from megatron_cpt.model.hf_folder import INDEX_NAME, HfFolder, write_tensors  # noqa: E402
from megatron_cpt.model.names import EMBEDDING  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402
from megatron_cpt.model.stream import skeleton, write_checkpoint  # noqa: E402
from megatron_cpt.vocab.sentencepiece_base import tokenizer_json  # noqa: E402
from megatron_cpt.vocab.sentencepiece_file import parse_model  # noqa: E402

TEXT = [topic for topic in pydoc_data.topics.topics.values() if len(topic) > 400][:40]  # enough for 512 pieces
VOCAB = VocabLayout(512, 515, 640, 0, "")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama of 512 ids with its tokenizer, beside which lie files that an export must not publish."""
    folder = tmp_path_factory.mktemp("base")
    make_base(folder, TEXT)
    (folder / "notes.txt").write_text("private")
    (folder / "training_args.bin").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with 3 new rows and padding rows that would decide every softmax they took part in."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    added = torch.cat([torch.randn(3, 64, generator=torch.Generator().manual_seed(1)), torch.full((125, 64), 9.0)])
    with ranks(single_rank_layout(8, dtype="fp32"), backend=BACKEND, seed=1):
        bones = skeleton(ModelShape.from_hf_folder(base), VOCAB, dtype="fp32", backend=BACKEND)
        write_checkpoint(folder, HfFolder.open(base), bones, new_rows={EMBEDDING: added}, common={})
    return folder


@pytest.fixture(scope="module")
def extended_tokenizer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new1>", "<new2>", "<new3>"])
    tokenizer.save_pretrained(folder)
    return folder


def export(folder: Path, checkpoint: Path, base: Path, tokenizer: Path, **settings):
    return export_folder(
        folder, checkpoint=checkpoint, base_folder=base, tokenizer_folder=tokenizer, shape=ModelShape.from_hf_folder(base), vocab=VOCAB,
        backend=BACKEND, **settings,
    )  # fmt: skip


def test_shards_of_exactly_the_ids_rows_load_in_transformers_from_the_folder_alone(
    tmp_path: Path, base: Path, checkpoint: Path, extended_tokenizer: Path
) -> None:
    facts = export(tmp_path / "hf", checkpoint, base, extended_tokenizer, max_shard_bytes=200_000)
    assert facts["max_relative_difference"] < 1e-5
    assert (facts["num_rows"], facts["dtype"], facts["base_dtype"]) == (515, "fp32", "fp32")
    shards = [name for name in facts["shards"] if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert INDEX_NAME in facts["shards"]
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "hf", alone)
    shutil.rmtree(tmp_path / "hf")
    assert {path.name for path in alone.iterdir()} == {
        *facts["shards"], "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_pretrained(alone), AutoTokenizer.from_pretrained(alone)
    rows = model.get_input_embeddings().weight
    assert len(tokenizer) == rows.shape[0] == model.config.vocab_size == 515
    assert model.get_output_embeddings().weight.data_ptr() == rows.data_ptr()  # still tied
    assert torch.equal(rows[:512], HfFolder.open(base).read(EMBEDDING))
    assert json.loads((alone / "config.json").read_text())["dtype"] == "float32"


def test_a_type_is_kept_even_where_the_config_calls_it_by_the_old_name_and_another_is_given_when_asked_for(
    tmp_path: Path, base: Path, checkpoint: Path, extended_tokenizer: Path
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, half / name)
    config = json.loads((base / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype").replace("float32", "bfloat16")
    (half / "config.json").write_text(json.dumps(config))
    source = HfFolder.open(base)
    write_tensors(half, [(name, source.read(name).bfloat16()) for name in source.entries])
    for asked, dtype in ((None, torch.bfloat16), ("fp16", torch.float16)):
        out = tmp_path / str(asked)
        facts = export(out, checkpoint, half, extended_tokenizer, dtype=asked)
        written = HfFolder.open(out)
        assert {entry.dtype for entry in written.entries.values()} == {dtype}
        exported = json.loads((out / "config.json").read_text())
        assert exported["dtype"] == str(dtype).removeprefix("torch.")
        assert "torch_dtype" not in exported
        # half of the checkpoint's 4 bytes a number, and the header
        numbers = sum(torch.Size(entry.shape).numel() for entry in written.entries.values())
        assert numbers * 2 < facts["weights_bytes"] < numbers * 2 + 4096
        assert torch.equal(written.read("model.norm.weight"), source.read("model.norm.weight").to(dtype))


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path, base: Path, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sizes do not agree[\s\S]*ids up to 511, 515 rows"):
        export(tmp_path / "hf", checkpoint, base, base)


@pytest.mark.parametrize(
    ("change", "words"), [("untied", "missing keys: lm_head.weight"), ("without-norm", "missing keys: model.norm.weight")]
)
def test_a_tensor_that_transformers_would_invent_is_refused(tmp_path: Path, base: Path, change: str, words: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(base, folder)
    if change == "untied":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    else:
        source = HfFolder.open(base)
        write_tensors(folder, [(name, source.read(name)) for name in source.entries if name != "model.norm.weight"])
    with pytest.raises(CheckpointError, match=words):
        load_alone(folder, dtype="fp32")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        copy_tokenizer(tmp_path, tmp_path / "out")


def test_completions_stand_side_by_side_and_are_those_of_a_greedy_loop(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    source = HfFolder.open(base)
    write_tensors(other, [(name, source.read(name) * (1.5 if "mlp" in name else 1.0)) for name in source.entries])
    (rows,) = side_by_side(["def main"], base_folder=base, continued_folder=other, start_id=0, num_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, folder in (("base", base), ("continued", other)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        ids = [0, *tokenizer("def main")["input_ids"]]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 6 and (len(ids) == start or ids[-1] != 0):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert rows[name] == tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert rows["prompt"] == "def main"
    assert complete(base, [], start_id=0, num_tokens=6) == []


def test_a_completion_keeps_its_first_space_where_the_tokenizer_takes_one_for_a_dummy_prefix(base: Path, tmp_path: Path) -> None:
    folder, written = tmp_path / "spm", io.BytesIO()
    shutil.copytree(base, folder)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXT).split("\n")), model_writer=written, model_type="bpe", vocab_size=512, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(parse_model(written.getvalue()))))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    prompts = ["The", "def main", "if a", "A list of", "return the", "or", "import", "Python is", "see also", "class of"]
    made = complete(folder, prompts, start_id=1, num_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(" main", add_special_tokens=False)["input_ids"][1:]) == "main", "alone it would lose its space"
    ids = [tokenizer(prompt + answer, add_special_tokens=False)["input_ids"] for prompt, answer in zip(prompts, made, strict=True)]
    assert [tokenizer.decode(each) for each in ids] == [prompt + answer for prompt, answer in zip(prompts, made, strict=True)]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, answer in zip(prompts, made, strict=True):
        start = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            first = tokenizer.convert_ids_to_tokens(int(model(torch.tensor([start])).logits[0, -1].argmax()))
        assert answer.startswith(" ") == first.startswith("\u2581"), (prompt, first, answer)
    assert any(answer.startswith(" ") for answer in made)


def test_a_prompt_is_the_beginning_of_a_text_up_to_a_word() -> None:
    long = "word " * 100
    assert beginnings(["  short  ", long, "", "字" * 500]) == ["short", ("word " * 24).strip(), "字" * 120]
