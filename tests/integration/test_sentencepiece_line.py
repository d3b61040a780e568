"""The whole line on a base that is a `tokenizer.model` alone: Mistral's own vocabulary, a tiny random model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from line_workspace import EXPERIMENT, ROOT, cpt, make_workspace
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_cpt.errors import DataError

sys.path.insert(0, str(ROOT / "tools"))
import fetch_samples
import fetch_tokenizers

NUM_NEW = 16
pytestmark = pytest.mark.long  # 1 to 4 minutes on two cores, as busy as they are


def make_base(folder: Path) -> None:
    mistral = fetch_tokenizers.BASES["mistral"]
    try:
        wheel = fetch_samples.fetch_package(mistral.package, ROOT / "data")
    except DataError as error:
        pytest.skip(f"Mistral's tokenizer.model could not be fetched: {error}")
    folder.mkdir()
    mistral.write(wheel, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_workspace(tmp_path_factory.mktemp("spm"))
    for name in ("base", "base-instruct"):
        shutil.rmtree(folder / name)
    make_base(folder / "base")
    experiment = EXPERIMENT.format(runs=folder / "runs", base=folder / "base", text=folder / "text")
    for old, new in (
        ("num_new_pieces: 32", f"num_new_pieces: {NUM_NEW}"),
        ('document_separator: "<|endoftext|>"', 'document_separator: "</s>"'),
        (f"instruct_model: {folder / 'base'}-instruct, ", ""),
    ):
        assert old in experiment
        experiment = experiment.replace(old, new)
    (folder / "conf" / "experiment" / "line.yaml").write_text(experiment)
    ran = cpt(folder, "run")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def test_a_sentencepiece_base_goes_through_the_line_and_is_exported_in_both_forms(finished: Path) -> None:
    run_dir = finished / "runs" / "good"
    hf = run_dir / "export" / "hf"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(hf / "tokenizer.model"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
    assert reference.get_piece_size() == len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 32000 + NUM_NEW
    text = "def main():\n    return 0  # 第一条\n"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text)
    assert tokenizer.decode(reference.encode(text)) == text


def test_base_and_candidate_are_scored_over_the_same_bytes_with_their_own_tokenizers(finished: Path) -> None:
    run_dir = finished / "runs" / "good"
    baseline, candidate = (json.loads((run_dir / stage / "eval.json").read_text()) for stage in ("baseline", "eval"))
    base, trained = baseline["subjects"]["base"], candidate["subjects"]["train"]
    for name, score in base["texts"].items():
        assert score["bytes"] == trained["texts"][name]["bytes"]
    assert trained["texts"]["code"]["tokens"] < base["texts"]["code"]["tokens"]
    assert trained["texts"]["other"]["tokens"] == base["texts"]["other"]["tokens"]  # general text keeps its ids
    assert base["tasks"]["quiz"]["joined_boundaries"] == 0  # a dummy prefix in an answer would show here


def test_a_document_of_the_index_is_sentencepieces_ids_and_the_end_mark(finished: Path) -> None:
    from megatron_cpt.record.index_pair import open_pair  # noqa: PLC0415

    run_dir = finished / "runs" / "good"
    index = open_pair(run_dir / "index" / "code.train")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(run_dir / "vocab" / "tokenizer" / "tokenizer.model"))
    shard = (run_dir / "corpus" / "code.train.jsonl").read_text(encoding="utf-8").split("\n")
    for number in range(5):
        assert index.document(number).tolist() == [*reference.encode(json.loads(shard[number])["text"]), 2]
    assert Tokenizer.from_file(str(run_dir / "vocab" / "base" / "tokenizer.json")).get_vocab_size() == 32000
