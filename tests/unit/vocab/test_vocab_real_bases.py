"""Real SentencePiece vocabularies out of packages: Mistral's, its twin in another form, and LLaMA's with llama.cpp's test texts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from test_vocab_build import build

from megatron_cpt.errors import DataError
from megatron_cpt.vocab.base import load_base
from megatron_cpt.vocab.contract import NASTY_TEXTS

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))
import fetch_samples  # noqa: E402 - beside the tools
import fetch_tokenizers  # noqa: E402


def fetched(name, folder):
    base = fetch_tokenizers.BASES[name]
    try:
        package = fetch_samples.fetch_package(base.package, ROOT / "data")
    except DataError as error:
        pytest.skip(f"{name}: {error}")
    folder.mkdir()
    base.write(package, folder)
    (folder / "config.json").write_text(json.dumps(base.config))
    return folder, package


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return fetched("mistral", tmp_path_factory.mktemp("mistral") / "base")[0]


def test_chinese_law_on_mistral_moves_no_english_document(tmp_path, mistral, english, chinese):
    sources = {"law": ("domain", chinese[:8] * 2, chinese[8:]), "english": ("general", english[:-5], english[-5:])}
    result = build(tmp_path, mistral, sources, num_new_pieces=50, document_separator="</s>")
    contract = json.loads((result.folder / "contract.json").read_text())
    assert all(check["holds"] for check in contract["checks"])
    assert contract["drift"]["num_changed"] == 0
    assert result.facts["layout"]["num_base_ids"] == 32000
    assert result.facts["domain_token_saving"] > 0.1


def test_the_json_made_of_mistrals_file_is_its_published_twin(tmp_path, mistral, english, chinese):
    if shutil.which("npm") is None:
        pytest.skip("the twin comes from the npm registry, and there is no npm")
    twin = load_base(fetched("mistral_json", tmp_path / "twin")[0])
    ours = load_base(mistral)
    assert ours.data["model"]["vocab"] == twin.data["model"]["vocab"]
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in twin.data["model"]["merges"]]
    assert sorted(map(tuple, ours.data["model"]["merges"])) == sorted(pairs)
    for part in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert ours.data[part] == twin.data[part]
    for text in [*NASTY_TEXTS, *english, *chinese]:
        assert ours.tokenizer.encode(text, add_special_tokens=False).ids == twin.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.long  # a download of 77 MB
def test_llamas_vocabulary_gives_the_ids_of_llama_cpps_test_texts(tmp_path):
    pytest.importorskip("gguf", reason="the extra `samples` reads GGUF files")
    folder, archive = fetched("llama", tmp_path / "llama")
    base = load_base(folder)
    models = "llama_cpp_python-0.3.36/vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf"
    texts = fetch_tokenizers.member(archive, f"{models}.inp").decode("utf-8").split("\n__ggml_vocab_test__\n")
    wanted = fetch_tokenizers.member(archive, f"{models}.out").decode("utf-8").split("\n")
    assert len(texts) == 47
    for text, ids in zip(texts, wanted, strict=True):
        assert base.tokenizer.encode(text, add_special_tokens=False).ids == [int(number) for number in ids.split()], text
