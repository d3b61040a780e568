"""The index stage: every train document once, one end-of-document id at its end, texts decodable, nothing dropped in silence."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.index.build import build_index, build_parts
from megatron_cpt.index.format import IndexWriter
from megatron_cpt.index.verify import verify_index
from megatron_cpt.record.hashing import files_under
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.vocab_contract import Check, Drift, probe_of, write_contract
from megatron_cpt.record.vocab_layout import VocabLayout

SEPARATOR = "<|end|>"
TEXTS = ["one two", "第一条　民法", f"a quoted {SEPARATOR} stays text", "  spaces\n\n\tand tabs", "x"] + [
    f"document {n}" for n in range(300)
]


@pytest.fixture
def vocab_folder(tmp_path):
    """A byte-level tokenizer of the 256 bytes and one separator, id 256; byte 0xf1 has no piece of its own."""
    folder = tmp_path / "vocab"
    (folder / "tokenizer").mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: number for number, character in enumerate(alphabet)}
    vocab["unused"] = vocab.pop("ñ")  # the character of byte 0xf1
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SEPARATOR])
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    write_layout(folder)
    return folder


def write_layout(folder, **changed):
    digest = hashlib.sha256((folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    layout = {"num_base_ids": 257, "num_ids": 257, "num_padded_rows": 384, "end_of_document_id": 256, "tokenizer_sha256": digest}
    (folder / "vocab_layout.json").write_text(json.dumps(layout | changed))
    probe = probe_of(load_tokenizer(folder / "tokenizer" / "tokenizer.json"), TEXTS[:5])
    write_contract(folder, VocabLayout(**(layout | changed)), probe=probe, drift=Drift(0, 0, 0.0), checks=[Check("by hand", True, 1)])


def build(tmp_path, vocab_folder, sources, name="index"):
    corpus = tmp_path / "corpus"
    corpus.mkdir(exist_ok=True)
    facts = {}
    for source, texts in sources.items():
        lines = [json.dumps({"id": f"d{number}", "text": text, "source": source}) + "\n" for number, text in enumerate(texts)]
        (corpus / f"{source}.train.jsonl").write_text("".join(lines))
        facts[source] = {"role": "domain", "licence": "MIT", "train_documents": len(texts)}
    result = StageResult(tmp_path / name)
    result.folder.mkdir()
    build_index(result, corpus_folder=corpus, vocab_folder=vocab_folder, corpus_facts={"sources": facts}, say=lambda line: None)
    return result


def ids_of(vocab_folder, text):
    """What the tokenizer of 256 bytes must give, computed without it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    character = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return [alphabet.index(character[byte]) for byte in text.encode()]


def test_each_document_is_its_ids_and_one_end_mark(tmp_path, vocab_folder):
    result = build(tmp_path, vocab_folder, {"law": TEXTS})
    dataset = IndexedDataset(str(result.folder / "law.train"))
    assert len(dataset) == len(TEXTS)
    for number, text in enumerate(TEXTS):
        assert dataset[number].tolist() == [*ids_of(vocab_folder, text), 256]
    facts = result.facts["sources"]["law"]
    assert facts["documents"] == len(TEXTS)
    assert facts["tokens"] == sum(len(text.encode()) + 1 for text in TEXTS)
    assert (facts["dtype"], facts["role"], facts["licence"], facts["unencodable_documents"]) == ("uint16", "domain", "MIT", 0)


def test_the_files_equal_those_of_megatrons_builder_fed_with_the_same_ids(tmp_path, vocab_folder):
    result = build(tmp_path, vocab_folder, {"law": TEXTS})
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(257))
    for text in TEXTS:
        ids = [*ids_of(vocab_folder, text), 256]
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for half in (".bin", ".idx"):
        assert (result.folder / f"law.train{half}").read_bytes() == (tmp_path / f"theirs{half}").read_bytes()


def test_a_document_that_would_lose_bytes_is_left_out_and_listed(tmp_path, vocab_folder):
    result = build(tmp_path, vocab_folder, {"law": ["good", "bad \U00040000 plane 4", "also good"]})
    assert result.facts["sources"]["law"]["documents"] == 2
    assert result.facts["sources"]["law"]["unencodable_documents"] == 1
    rejects = [json.loads(line) for line in (result.folder / "rejects" / "law.jsonl").read_text().splitlines()]
    assert [(reject["id"], reject["line"]) for reject in rejects] == [("d1", 2)]


def test_sources_without_train_documents_get_no_index_and_none_at_all_is_an_error(tmp_path, vocab_folder):
    result = build(tmp_path, vocab_folder, {"held_out": [], "law": ["text"]})
    assert set(result.facts["sources"]) == {"law"}
    with pytest.raises(DataError, match="No source has a train document"):
        build(tmp_path, vocab_folder, {"held_out": []}, name="second")


def test_another_tokenizer_than_the_proven_one_is_refused(tmp_path, vocab_folder):
    path = vocab_folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match="not the one that the vocabulary was proven with"):
        build(tmp_path, vocab_folder, {"law": ["text"]})


def test_a_shard_that_lost_lines_is_refused(tmp_path, vocab_folder):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "law.train.jsonl").write_text('{"id": "a", "text": "one", "source": "law"}\n')
    (tmp_path / "index").mkdir()
    facts = {"sources": {"law": {"role": "domain", "licence": "MIT", "train_documents": 2}}}
    with pytest.raises(DataError, match="does not hold the documents"):
        build_index(
            StageResult(tmp_path / "index"), corpus_folder=corpus, vocab_folder=vocab_folder, corpus_facts=facts, say=lambda line: None
        )


@pytest.mark.parametrize("documents", [[[1, 2]], [[1, 0, 0]], [[0, 1], [1, 0]], [[1, 0, 2, 0]]])
def test_a_missing_doubled_or_misplaced_end_mark_is_found(tmp_path, documents):
    with IndexWriter(tmp_path / "x", num_ids=10) as writer:
        for ids in documents:
            writer.add(ids)
        writer.finish()
    with pytest.raises(DataError, match="exactly one"):
        verify_index(tmp_path / "x", num_ids=10, end_id=0, num_documents=len(documents))


def test_a_source_that_stands_finished_is_not_done_again_and_a_damaged_one_is(tmp_path, vocab_folder):
    first = build(tmp_path, vocab_folder, {"law": TEXTS, "tales": ["once", "upon"]})
    bytes_before = {path.name: path.read_bytes() for path in first.folder.glob("*.*")}
    times = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*.bin")}
    (first.folder / "tales.train.idx").unlink()
    said: list[str] = []
    again = StageResult(first.folder)
    facts = {name: {"role": "domain", "licence": "MIT", "train_documents": number} for name, number in (("law", 305), ("tales", 2))}
    build_index(again, corpus_folder=tmp_path / "corpus", vocab_folder=vocab_folder, corpus_facts={"sources": facts}, say=said.append)
    assert again.facts == first.facts
    assert {path.name: path.read_bytes() for path in first.folder.glob("*.*")} == bytes_before
    assert (first.folder / "law.train.bin").stat().st_mtime_ns == times["law.train.bin"]
    assert (first.folder / "tales.train.bin").stat().st_mtime_ns != times["tales.train.bin"]
    assert said[0].endswith("finished before")
    assert "finished before" not in said[1]


def test_another_corpus_is_refused_where_a_finished_pair_stands_and_the_field_is_named(tmp_path, vocab_folder):
    first = build(tmp_path, vocab_folder, {"law": ["one", "two"]})
    before = {path.name: path.read_bytes() for path in first.folder.glob("*.*")}
    (tmp_path / "corpus" / "law.train.jsonl").write_text('{"id": "a", "text": "six", "source": "law"}\n')
    facts = {"sources": {"law": {"role": "domain", "licence": "MIT", "train_documents": 1}}}
    with pytest.raises(ConfigError, match=r"finished with other inputs:\n +texts\.law\.train\.jsonl: "):
        build_index(StageResult(first.folder), corpus_folder=tmp_path / "corpus", vocab_folder=vocab_folder, corpus_facts=facts, say=print)
    assert {path.name: path.read_bytes() for path in first.folder.glob("*.*")} == before


def test_parts_of_other_processes_are_gathered_into_the_bytes_of_the_undivided_stage(tmp_path, vocab_folder):
    sources = {"law": [*TEXTS, "bad \U00040000 plane 4"], "notes": ["a", "b"], "tales": ["once", "upon"]}
    whole = build(tmp_path, vocab_folder, sources)
    facts = {"sources": {name: {"role": "domain", "licence": "MIT", "train_documents": len(texts)} for name, texts in sources.items()}}
    given = {"corpus_folder": tmp_path / "corpus", "vocab_folder": vocab_folder, "corpus_facts": facts}
    folder = tmp_path / "parts"
    for number in (2, 0, 0):  # tales and law, as elements in any order do, one of them twice
        build_parts(folder, **given, say=lambda line: None, share=(number, 3))
    for left in (".notes.train.json.17.tmp", "notes.train.bin.partial", "notes.train.idx.partial", "rejects/.x.tmp"):
        (folder / left).write_text("of an element that was killed")
    said: list[str] = []
    gathered = StageResult(folder)
    assert (
        build_index(gathered, **given, say=said.append) == 4
    )  # two documents of one byte, with their end marks: of the one part that was left
    assert ["finished before" in line for line in said] == [True, False, True]
    assert gathered.facts == whole.facts
    files = [{path.relative_to(at).as_posix(): path.read_bytes() for path in files_under(at)} for at in (whole.folder, folder)]
    assert files[0] == files[1]


def test_a_part_at_which_another_process_works_is_refused_and_its_list_of_rejects_is_left_alone(tmp_path, vocab_folder):
    build(tmp_path, vocab_folder, {"law": ["one"]}, name="other")
    facts = {"sources": {"law": {"role": "domain", "licence": "MIT", "train_documents": 1}}}
    folder = tmp_path / "parts"
    rejects = folder / "rejects" / "law.jsonl"
    rejects.parent.mkdir(parents=True)
    rejects.write_text("of the other process\n")
    with (
        IndexWriter(folder / "law.train", num_ids=257),
        pytest.raises(DataError, match="Another process is writing this index"),
    ):
        build_parts(folder, corpus_folder=tmp_path / "corpus", vocab_folder=vocab_folder, corpus_facts=facts, say=lambda line: None)
    assert rejects.read_text() == "of the other process\n"


def test_a_shard_with_a_broken_line_is_refused_by_its_number(tmp_path, vocab_folder):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "law.train.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "te\n')
    (tmp_path / "index").mkdir()
    facts = {"sources": {"law": {"role": "domain", "licence": "MIT", "train_documents": 2}}}
    with pytest.raises(DataError, match=r"law\.train\.jsonl:2"):
        build_index(
            StageResult(tmp_path / "index"), corpus_folder=corpus, vocab_folder=vocab_folder, corpus_facts=facts, say=lambda line: None
        )
    assert list((tmp_path / "index").glob("*.bin*")) == []
