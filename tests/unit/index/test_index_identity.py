"""Byte identity: the loop of Megatron-LM's tools/preprocess_data.py, over megatron-core's own tokenizer and builder, writes our bytes."""

from __future__ import annotations

import pytest
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from megatron_cpt.index.merge import merge_indexes
from tests.unit.index.index_examples import SAMPLE, byte_level, run_tool, save, write_lines

pytest.importorskip("megatron.core.tokenizers.text.libraries.huggingface_tokenizer", reason="this megatron-core has no such tokenizer")


def write_as_megatron_does(prefix, texts, folder, *, append_eod):
    """One document after another: text to ids, the end mark once, one sequence a document; dtype from the tokenizer's size."""
    import torch  # noqa: PLC0415
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer  # noqa: PLC0415

    tokenizer = HuggingFaceTokenizer(str(folder), use_fast=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    for text in texts:
        ids = tokenizer.text_to_ids(text)
        if ids and append_eod:
            ids.append(tokenizer.eod)
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("append_eod", [True, False])
def test_the_tool_writes_what_megatrons_loop_writes(tmp_path, append_eod):
    folder = save(byte_level(), tmp_path / "tokenizer")
    texts = [f"{text} {number}" for number, text in enumerate(SAMPLE)]
    source = write_lines(tmp_path / "in.jsonl", texts)
    flags = ["--append-eod"] if append_eod else []
    answer = run_tool("preprocess_data.py", "--input", source, "--output-prefix", tmp_path / "ours", "--tokenizer-model", folder, *flags)
    assert answer.returncode == 0, answer.stderr
    write_as_megatron_does(tmp_path / "theirs", texts, folder, append_eod=append_eod)
    for half in (".bin", ".idx"):
        assert (tmp_path / f"ours_text_document{half}").read_bytes() == (tmp_path / f"theirs{half}").read_bytes()


def test_a_merge_writes_what_megatrons_builder_merges(tmp_path):
    folder = save(byte_level(), tmp_path / "tokenizer")
    for name, texts in (("a", SAMPLE[:3]), ("b", SAMPLE[3:5])):
        write_as_megatron_does(tmp_path / name, texts, folder, append_eod=True)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(500))
    for name in "ab":
        builder.add_index(str(tmp_path / name))
    builder.finalize(str(tmp_path / "theirs.idx"))
    merged = merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "ours")
    assert merged.num_documents == 5
    for half in (".bin", ".idx"):
        assert (tmp_path / f"ours{half}").read_bytes() == (tmp_path / f"theirs{half}").read_bytes()
