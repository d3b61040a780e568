"""The fast encoder runs only while its ids equal the reference's; else the reference writes the file from its start, and says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_cpt.index import parity
from megatron_cpt.index.codec import HfCodec, _gigatoken_of
from megatron_cpt.index.parity import HARD_TEXTS, choose_encoder
from megatron_cpt.index.shards import shard_batches, spread_samples
from megatron_cpt.index.write import Job, write_index
from megatron_cpt.record.index_pair import open_pair
from megatron_cpt.record.tokenizer_file import for_plain_text
from tests.unit.index.index_examples import END, add_token, byte_level, with_appended_merge, write_lines

gigatoken = pytest.importorskip("gigatoken", reason="the fast encoder is not installed")


def codec_of(tokenizer: Tokenizer) -> HfCodec:
    return HfCodec(for_plain_text(Tokenizer.from_str(tokenizer.to_str())), tokenizer.to_str().encode())


def index(tmp_path: Path, codec: HfCodec, texts: list[str], name: str = "x", **settings):
    shard = write_lines(tmp_path / f"{name}.jsonl", texts)
    said: list[str] = []
    end_id = codec.id_of(END)
    job = Job(tmp_path / name, codec, lambda: shard_batches(shard), end_id, dict, samples=spread_samples(shard, key="text"), **settings)
    return write_index(job, say=said.append), said


def expected(codec: HfCodec, texts: list[str]) -> list[list[int]]:
    """The reference one text at a time."""
    return [[*codec._tokenizer.encode(text, add_special_tokens=False).ids, codec.id_of(END)] for text in texts]


def read_back(prefix: Path) -> list[list[int]]:
    pair = open_pair(prefix)
    return [pair.document(number).tolist() for number in range(pair.num_documents)]


TEXTS = [text for text in HARD_TEXTS if text.strip()] + [f"a quoted {END} and <|other|> stay text", END, "the end"] * 3


@pytest.mark.parametrize("kind", ["trained", "appended merge", "added word"])
def test_the_fast_encoder_writes_the_references_ids(tmp_path, kind):
    tokenizer = byte_level()
    if kind == "appended merge":
        tokenizer = with_appended_merge(tokenizer, "z", "q")
    elif kind == "added word":
        tokenizer = add_token(tokenizer, "supercali", special=False)
    codec = codec_of(tokenizer)
    texts = [*TEXTS, "zq zqzq", "a supercalifragil b"]
    record, said = index(tmp_path, codec, texts)
    assert (record["encoder"]["name"], said) == ("gigatoken", [])
    assert record["encoder"]["texts_compared"] > len(HARD_TEXTS)
    assert read_back(tmp_path / "x") == expected(codec, texts)
    slow, _ = index(tmp_path, codec, texts, name="slow", fast=False)
    assert slow["encoder"]["name"] == "tokenizers"
    assert slow["files"] == record["files"]


class WithStrangeFast(HfCodec):
    """A tokenizer whose fast twin was made of another vocabulary: the ids differ where that has one more merge."""

    other = b""

    def fast(self):
        return _gigatoken_of(self.other)


def test_a_mismatch_in_the_middle_begins_the_file_again_with_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "RECHECK_EVERY", 1)
    monkeypatch.setattr("megatron_cpt.index.batches.BATCH_RECORDS", 10)
    base = byte_level()
    codec = WithStrangeFast(for_plain_text(Tokenizer.from_str(base.to_str())), base.to_str().encode())
    codec.other = with_appended_merge(base, "z", "q").to_str().encode()
    texts = [f"document {number}" for number in range(60)] + ["here zq stands"] * 10
    monkeypatch.setattr("megatron_cpt.index.shards.NUM_SAMPLES", 1)  # only the first line is probed before
    record, said = index(tmp_path, codec, texts)
    assert record["encoder"]["name"] == "tokenizers"
    assert "begun again" in record["encoder"]["reason"]
    assert len(said) == 1
    assert record["records_read"] == record["documents"] == 70
    assert read_back(tmp_path / "x") == expected(codec, texts)


def test_a_mismatch_in_the_probe_is_recorded_with_the_first_token_that_differs(tmp_path):
    base = byte_level()
    codec = WithStrangeFast(for_plain_text(Tokenizer.from_str(base.to_str())), base.to_str().encode())
    codec.other = with_appended_merge(base, "x", "x").to_str().encode()
    record, _ = index(tmp_path, codec, ["xx"])
    assert record["encoder"]["name"] == "tokenizers"
    assert "the probe before the run: gigatoken gave other ids than tokenizers from token" in record["encoder"]["reason"]


def test_a_tokenizer_that_the_fast_library_refuses_goes_to_the_reference():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    chosen = choose_encoder(codec_of(words), ["a b"])
    assert chosen.encoder.name == "tokenizers"
    assert "gigatoken" in chosen.reason


def test_without_the_fast_library_the_reference_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    chosen = choose_encoder(codec_of(byte_level()), [])
    assert (chosen.encoder.name, chosen.reason) == ("tokenizers", "gigatoken is not installed")


def test_a_vocabulary_above_16_bits_keeps_its_ids(tmp_path):
    """Ids 65,535, 65,536 and 69,999 in one document; a cast to 16 bits would make the last 4,463."""
    data = json.loads(byte_level(special=(END,)).to_str())
    data["model"]["merges"] = []
    pieces = [piece for piece in data["model"]["vocab"] if len(piece) == 1 or piece == END]
    filler = [f"filler{number}" for number in range(70_000 - len(pieces))]
    places = {"a": 65_535, "b": 65_536, "c": 69_999}
    rest = iter([piece for piece in [*pieces, *filler] if piece not in places])
    by_place = {place: piece for piece, place in places.items()}
    data["model"]["vocab"] = {by_place[number] if number in by_place else next(rest): number for number in range(70_000)}
    data["added_tokens"][0]["id"] = data["model"]["vocab"][END]
    codec = codec_of(Tokenizer.from_str(json.dumps(data)))
    record, _ = index(tmp_path, codec, ["abc"])
    assert record["dtype"] == "int32"
    assert read_back(tmp_path / "x")[0][:-1] == [65_535, 65_536, 69_999]


def test_a_document_of_25_megabytes_and_one_of_65537_tokens_are_whole(tmp_path):
    codec = codec_of(byte_level())
    long = ("The parser reads one token after another. " * 600_000)[:25_000_000]
    exact = "q" * 65_536  # no merge of q with q: one token each
    record, _ = index(tmp_path, codec, ["before", exact, long, "after"])
    pair = open_pair(tmp_path / "x")
    assert pair.lengths[1] == 65_537
    assert codec.back(pair.document(2)[:-1].tolist()) == long
    assert record["text_bytes"] == 6 + 65_536 + 25_000_000 + 5
    assert codec.back(pair.document(3)[:-1].tolist()) == "after"


def test_documents_whose_ids_would_hold_the_end_mark_are_left_out(tmp_path):
    """An end token that is no special one is taken for more than text by the reference itself."""
    tokenizer = add_token(byte_level(special=()), END, special=False)
    record, _ = index(tmp_path, codec_of(tokenizer), ["one", f"two {END} three", "four"])
    assert (record["documents"], record["left_out"]) == (2, {"holds_end_mark": 1})


def test_counts_by_source_and_licence_add_up(tmp_path):
    codec = codec_of(byte_level())
    shard = tmp_path / "mixed.jsonl"
    records = [{"text": "one two"}, {"text": "three", "source": "b"}, {"text": "four", "source": "b", "licence": "CC0-1.0"}]
    shard.write_text("".join(json.dumps(record) + "\n" for record in records))
    labels = {"source": "a", "licence": "MIT"}
    job = Job(tmp_path / "x", codec, lambda: shard_batches(shard), codec.id_of(END), dict, labels=labels)
    record = write_index(job, say=lambda line: None)
    lengths = [len(ids) for ids in expected(codec, ["one two", "three", "four"])]
    assert record["by_source"] == {"a": {"documents": 1, "tokens": lengths[0]}, "b": {"documents": 2, "tokens": sum(lengths[1:])}}
    assert record["by_licence"] == {
        "CC0-1.0": {"documents": 1, "tokens": lengths[2]}, "MIT": {"documents": 2, "tokens": sum(lengths[:2])}
    }  # fmt: skip


def test_the_recheck_reads_the_ids_that_were_written():
    """A recheck of whole documents compares the batch's own ids, so a wrong batch is found even where encoding again is right."""
    codec = codec_of(byte_level())
    chosen = choose_encoder(codec, [])
    assert chosen.is_fast
    ids, lengths = chosen.encoder.encode(["one", "two"])
    with pytest.raises(parity.Mismatch):
        chosen.recheck(["one", "two"], np.roll(ids, 1), lengths)
