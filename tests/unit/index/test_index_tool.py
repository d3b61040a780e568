"""tools/preprocess_data.py is a drop-in for Megatron-LM's: the same flags and bytes, and a named refusal for what it does not do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_cpt.record.index_pair import open_pair
from tests.unit.index.index_examples import END, SAMPLE, byte_level, run_alone, run_tool, save, write_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(byte_level(), tmp_path_factory.mktemp("tokenizer"))


def encoded(tokenizer, text: str) -> list[int]:
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_two_keys_give_two_pairs_and_what_is_left_out_is_counted(tmp_path, folder):
    """Blank documents stand first, in the middle and last; each key of one pass is finalised."""
    records = [
        {"text": "", "title": "zero"}, {"text": "one", "title": "first"}, {"content": "two"}, {"text": None, "title": 7},
        {"text": " \n\t ", "title": "third"}, {"text": "第三", "title": ""},
    ]  # fmt: skip
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    answer = run_tool(
        "preprocess_data.py", "--input", tmp_path / "in.jsonl.gz", "--output-prefix", tmp_path / "out" / "my", "--tokenizer-type",
        "HuggingFaceTokenizer", "--tokenizer-model", folder, "--append-eod", "--json-keys", "text", "title", "--workers", "8",
        "--log-interval", "1",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    for part in ("2 documents", "empty_text 2", "missing_text 1", "null_text 1", "3 documents", "text_not_a_string 1"):
        assert part in answer.stdout
    assert "Processed 6 documents" in answer.stderr
    tokenizer = byte_level()
    end = tokenizer.token_to_id(END)
    for key, texts in (("text", ["one", "第三"]), ("title", ["zero", "first", "third"])):
        prefix = tmp_path / "out" / f"my_{key}_document"
        dataset = IndexedDataset(str(prefix))
        assert [dataset[number].tolist() for number in range(len(dataset))] == [[*encoded(tokenizer, text), end] for text in texts]
        record = json.loads(prefix.with_name(prefix.name + ".json").read_text())
        assert record["records_read"] == record["documents"] + sum(record["left_out"].values()) == 6
        assert record["tokenizer"]["end_of_document_token"] == END  # the tokenizer's own, from tokenizer_config.json
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".bin", ".bin", ".idx", ".idx", ".json", ".json"]
    shown = run_tool("inspect_index.py", tmp_path / "out" / "my_text_document", "--tokenizer", folder, "--verify")
    assert shown.returncode == 0, shown.stderr
    for part in ("2 documents", "第三", f"every document ends in one id {end}", "both files are those of the record"):
        assert part in shown.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split-sentences"], ["--split-sentences", "pickle"]),
        (["--lang", "english"], ["--lang"]),
        (["--find-optimal-num-workers"], ["--find-optimal-num-workers"]),
        (["--trust-remote-code"], ["--trust-remote-code"]),
        (["--partitions", "2"], ["--partitions", "--keep-sequential-samples"]),
        (["--tokenizer-type", "BertWordPieceCase"], ["BertWordPieceCase", "WordPiece"]),
        (["--tokenizer-type", "Nonsense"], ["Nonsense", "known: HuggingFaceTokenizer"]),
        (["--tokenizer-type", "GPT2BPETokenizer"], ["--vocab-file"]),
        (["--workers", "0"], ["--workers"]),
        (["--json-keys", "text", "text"], ["--json-keys", "twice"]),
        (["--tokenizer-model", "meta-llama/Llama-3.1-8B"], ["nothing is fetched"]),
        (["--append-eod", "--eod-token", "<|endoftext|>"], ["--eod-token", END]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_and_leaves_nothing(tmp_path, folder, flags, words):
    source = write_lines(tmp_path / "in.jsonl", ["one"])
    answer = run_tool("preprocess_data.py", "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-model", folder, *flags)
    assert answer.returncode in (2, 3)
    for word in words:
        assert word in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_texts_and_parquet_are_read_as_documents(tmp_path, folder):
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text("a whole\nfile")
    answer = run_tool("preprocess_data.py", "--input", tmp_path, "--output-prefix", tmp_path / "out" / "x", "--tokenizer-model", folder)
    assert answer.returncode == 0, answer.stderr
    pair, tokenizer = open_pair(tmp_path / "out" / "x_text_document"), byte_level()
    assert [tokenizer.decode(pair.document(number).tolist()) for number in range(3)] == ["one", "two", "a whole\nfile"]


def test_a_folder_that_names_no_end_token_is_refused_until_one_is_named(tmp_path):
    folder = save(byte_level(), tmp_path / "tokenizer", end=None)
    source = write_lines(tmp_path / "corpus.json", ["one", "two"])  # the name that Megatron-LM's own documentation uses
    common = ["--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-model", folder / "tokenizer.json", "--append-eod"]
    refused = run_tool("preprocess_data.py", *common)
    assert refused.returncode == 2
    assert END in refused.stderr
    assert list(tmp_path.glob("out*")) == []
    given = run_tool("preprocess_data.py", *common, "--eod-token", END, "--partitions", "2", "--keep-sequential-samples")
    assert given.returncode == 0, given.stderr
    assert open_pair(tmp_path / "out_text_document").num_documents == 2


def test_gpt2s_two_files_give_the_ids_of_the_same_tokenizer_as_one_file(tmp_path):
    tokenizer = byte_level(special=("<|endoftext|>",))
    data = json.loads(tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(data["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in data["merges"]))
    source = write_lines(tmp_path / "in.jsonl", [*SAMPLE[:4], "quoted <|endoftext|> text"])
    answer = run_tool(
        "preprocess_data.py", "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-type", "GPT2BPETokenizer",
        "--vocab-file", tmp_path / "vocab.json", "--merge-file", tmp_path / "merges.txt", "--append-eod",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    pair = open_pair(tmp_path / "out_text_document")
    end = tokenizer.token_to_id("<|endoftext|>")
    wanted = [[*encoded(tokenizer, text), end] for text in [*SAMPLE[:4], "quoted <|endoftext|> text"]]
    assert [pair.document(number).tolist() for number in range(5)] == wanted


@pytest.mark.parametrize(("byte_fallback", "form"), [(True, "identity"), (True, "nmt_nfkc"), (False, "identity")])
def test_a_sentencepiece_model_gives_the_librarys_own_ids(tmp_path, byte_fallback, form):
    """With NFKC gigatoken 0.10 gives other ids, which the probe finds; without byte fallback it refuses the model.

    There, characters without a piece become the model's unknown id.
    """
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text.replace("\n", " ") for text in SAMPLE))
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(tmp_path / "m"), vocab_size=400, model_type="bpe", byte_fallback=byte_fallback,
        character_coverage=0.98, minloglevel=2, hard_vocab_limit=False, normalization_rule_name=form,
        remove_extra_whitespaces=form != "identity",
    )  # fmt: skip
    lines = [*SAMPLE[:4], "龘 unknown", "  two  spaces ", "<s> quoted </s>", "naïve ﬁ ½"]
    source = write_lines(tmp_path / "in.jsonl", lines)
    answer = run_tool(
        "preprocess_data.py", "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-model", tmp_path / "m.model", "--append-eod", "--workers", "2",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    pair = open_pair(tmp_path / "out_text_document")
    wanted = [[*processor.encode(line), processor.eos_id()] for line in lines]
    assert [pair.document(number).tolist() for number in range(len(lines))] == wanted
    record = json.loads((tmp_path / "out_text_document.json").read_text())
    assert record["encoder"]["name"] == ("gigatoken" if byte_fallback and form == "identity" else "sentencepiece"), record["encoder"]
    assert (record["unknown_tokens"] > 0) is not byte_fallback


def test_a_cut_file_and_an_absent_one_end_in_one_message_and_no_index(tmp_path, folder):
    whole = gzip.compress("".join(json.dumps({"text": f"{n} " * 50}) + "\n" for n in range(2000)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("cut.jsonl.gz", "absent.jsonl"):
        answer = run_alone(
            "preprocess_data.py", "--input", tmp_path / name, "--output-prefix", tmp_path / "out" / "x", "--tokenizer-model", folder
        )
        assert answer.returncode == 3
        assert "Traceback" not in answer.stderr
        assert name in answer.stderr
    assert list(tmp_path.glob("out/*")) == []


def test_without_append_eod_documents_are_their_ids_alone(tmp_path, folder):
    source = write_lines(tmp_path / "in.jsonl", SAMPLE[:4])
    answer = run_tool("preprocess_data.py", "--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-model", folder)
    assert answer.returncode == 0, answer.stderr
    pair, tokenizer = open_pair(tmp_path / "out_text_document"), byte_level()
    assert [pair.document(number).tolist() for number in range(4)] == [encoded(tokenizer, text) for text in SAMPLE[:4]]


def test_merging_keeps_boundaries_and_tokens_and_refuses_other_tokenizers(tmp_path, folder):
    other = save(byte_level(vocab_size=400), tmp_path / "other")
    for name, texts, model in (("a", SAMPLE[:3], folder), ("b", ["one", "two"], folder), ("c", ["three"], other)):
        source = write_lines(tmp_path / f"{name}.jsonl", texts, source=name)
        prefix = tmp_path / name
        assert run_tool(
            "preprocess_data.py", "--input", source, "--output-prefix", prefix, "--tokenizer-model", model, "--append-eod"
        ).returncode == 0  # fmt: skip
    a, b, c = (tmp_path / f"{name}_text_document" for name in "abc")
    merged = run_tool("inspect_index.py", a, b, "--merge-to", tmp_path / "ab")
    assert merged.returncode == 0, merged.stderr
    dataset, parts = IndexedDataset(str(tmp_path / "ab")), [IndexedDataset(str(prefix)) for prefix in (a, b)]
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4, 5]
    wanted = [part[number].tolist() for part in parts for number in range(len(part))]
    assert [dataset[number].tolist() for number in range(5)] == wanted
    assert run_tool("inspect_index.py", tmp_path / "ab", "--verify").returncode == 0
    record = json.loads((tmp_path / "ab.json").read_text())
    assert {name: counts["documents"] for name, counts in record["by_source"].items()} == {"a": 3, "b": 2}
    refused = run_tool("inspect_index.py", a, c, "--merge-to", tmp_path / "ac")
    assert refused.returncode == 3
    assert "different tokenizers" in refused.stderr
    assert list(tmp_path.glob("ac*")) == []


def test_damage_inside_a_file_is_found_by_its_digest(tmp_path, folder):
    source = write_lines(tmp_path / "in.jsonl", SAMPLE)
    assert run_tool("preprocess_data.py", "--input", source, "--output-prefix", tmp_path / "x", "--tokenizer-model", folder).returncode == 0
    path = tmp_path / "x_text_document.bin"
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[3] = 5 if tokens[3] != 5 else 6
    tokens.tofile(path)
    answer = run_tool("inspect_index.py", path, "--verify")
    assert answer.returncode == 3
    assert path.name in answer.stderr
    path.unlink()
    assert path.name in run_tool("inspect_index.py", Path(str(path)[:-4])).stderr
