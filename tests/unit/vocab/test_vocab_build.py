"""The contract of an extended vocabulary, checked with the library alone, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron_cpt.config.schema import TokenizerConfig
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.tokenizer_file import for_plain_text
from megatron_cpt.vocab import contract
from megatron_cpt.vocab.base import load_base
from megatron_cpt.vocab.build import build_vocab
from megatron_cpt.vocab.byte_level import BYTE_OF_CHARACTER, piece_bytes

SEPARATOR = "<|endoftext|>"


def write_corpus(folder, sources):
    """Write shards of `{name: (role, train texts, test texts)}`; return the facts that a corpus stage gives."""
    folder.mkdir(exist_ok=True)
    facts = {}
    for name, (role, train, test) in sources.items():
        facts[name] = {"role": role, "licence": "MIT"}
        for side, texts in (("train", train), ("test", test)):
            lines = [json.dumps({"id": str(number), "text": text, "source": name}) + "\n" for number, text in enumerate(texts)]
            (folder / f"{name}.{side}.jsonl").write_text("".join(lines))
            facts[name][f"{side}_documents"] = len(texts)
            facts[name][f"{side}_bytes"] = sum(len(text.encode()) for text in texts)
    return {"sources": facts}


def build(folder, base_folder, sources, **changed):
    result = StageResult(folder / "vocab")
    result.folder.mkdir(parents=True)
    build_vocab(
        result,
        settings=TokenizerConfig(**({"num_new_pieces": 60, "document_separator": SEPARATOR} | changed)),
        base_folder=base_folder,
        corpus_folder=folder / "corpus",
        corpus_facts=write_corpus(folder / "corpus", sources),
        say=lambda line: None,
    )
    return result


def plain(path):
    return for_plain_text(Tokenizer.from_file(str(path / "tokenizer.json")))


@pytest.fixture(scope="module")
def sources(english, chinese):
    return {"law": ("domain", chinese[:8], chinese[8:]), "english": ("general", english[:-5], english[-5:])}


@pytest.fixture(scope="module")
def built(tmp_path_factory, base_folder, sources):
    return build(tmp_path_factory.mktemp("built"), base_folder, sources)


@pytest.fixture(scope="module")
def extended(built):
    return plain(built.folder / "tokenizer")


def test_every_base_id_decodes_to_the_same_bytes_after_extension(base_folder, extended):
    base = plain(base_folder)
    assert extended.get_vocab_size() == 660
    for number in range(600):
        assert extended.id_to_token(number) == base.id_to_token(number)
        assert extended.decode([number], skip_special_tokens=False) == base.decode([number], skip_special_tokens=False)


def test_general_text_keeps_its_ids_and_domain_text_gets_shorter(base_folder, extended, english, chinese):
    base = plain(base_folder)
    for text in english:
        assert extended.encode(text, add_special_tokens=False).ids == base.encode(text, add_special_tokens=False).ids
    before = sum(len(base.encode(text, add_special_tokens=False).ids) for text in chinese)
    after = sum(len(extended.encode(text, add_special_tokens=False).ids) for text in chinese)
    assert after < 0.6 * before


def test_the_count_of_each_piece_is_the_number_of_tokens_it_saves(tmp_path, base_folder, built, chinese):
    pieces = [json.loads(line) for line in (built.folder / "new_pieces.jsonl").read_text().splitlines()]
    data = json.loads((built.folder / "tokenizer" / "tokenizer.json").read_text())
    lengths = []
    for kept in (0, 1, 30, 60):
        data_kept = json.loads(json.dumps(data))
        merges = data_kept["model"]["merges"]
        data_kept["model"]["merges"] = merges[: len(merges) - 60 + kept]
        tokenizer = for_plain_text(Tokenizer.from_str(json.dumps(data_kept)))
        lengths.append(sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in chinese[:8]))
    counts = [piece["count"] for piece in pieces]
    assert [lengths[0] - length for length in lengths[1:]] == [counts[0], sum(counts[:30]), sum(counts)]


def test_new_pieces_spell_their_base_ids_and_can_be_produced(base_folder, built, extended):
    base = plain(base_folder)
    whole = Tokenizer(extended.model)
    pieces = [json.loads(line) for line in (built.folder / "new_pieces.jsonl").read_text().splitlines()]
    assert [piece["id"] for piece in pieces] == list(range(600, 660))
    assert len({extended.id_to_token(piece["id"]) for piece in pieces}) == 60
    for piece in pieces:
        spelt = b"".join(piece_bytes(base.id_to_token(number)) for number in piece["base_ids"])
        assert spelt == piece_bytes(extended.id_to_token(piece["id"]))
        assert piece["piece"] in (spelt.decode("utf-8", "replace"), f"0x{spelt.hex()}")
        assert whole.encode(extended.id_to_token(piece["id"]), add_special_tokens=False).ids == [piece["id"]]


def test_a_piece_with_a_line_separator_stays_on_one_line(tmp_path, base_folder, sources):
    texts = ["\u2028\u2028。\u2028\u2028。\x85\x85。" * 20]
    result = build(tmp_path, base_folder, {**sources, "law": ("domain", texts, texts)}, num_new_pieces=4)
    pieces = [json.loads(line)["piece"] for line in (result.folder / "new_pieces.jsonl").read_text().splitlines()]
    assert len(pieces) == 4
    assert any("\u2028" in piece for piece in pieces)


def test_pieces_are_in_the_model_and_not_in_the_added_token_list(built):
    data = json.loads((built.folder / "tokenizer" / "tokenizer.json").read_text())
    assert [token["content"] for token in data["added_tokens"]] == [SEPARATOR]
    assert max(data["model"]["vocab"].values()) == 659


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_survives_encoding_and_decoding(extended, text):
    assert extended.decode(extended.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["，：（）１２３", "a  b\n\tc", "  ", "\r\n", "𠀀𪛖\n", "👩‍👩‍👧", "e\u0301\u2028x"])
def test_full_width_spaces_and_rare_characters_survive(extended, text):
    assert extended.decode(extended.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_the_name_of_a_special_token_in_a_document_stays_text(extended):
    ids = extended.encode(f"quote {SEPARATOR} end", add_special_tokens=False).ids
    assert 0 not in ids
    assert extended.decode(ids) == f"quote {SEPARATOR} end"


def test_the_layout_holds_three_sizes_and_the_separator(built):
    layout = json.loads((built.folder / "vocab_layout.json").read_text())
    assert (layout["num_base_ids"], layout["num_ids"], layout["num_padded_rows"]) == (600, 660, 768)
    assert layout["end_of_document_id"] == 0


def test_all_clauses_are_written_with_the_number_of_cases(built, english):
    checks = {check["name"]: check for check in json.loads((built.folder / "contract.json").read_text())["checks"]}
    assert all(check["holds"] for check in checks.values())
    assert checks["every old id decodes to the same bytes"]["num_cases"] == 600
    assert checks["general documents are encoded with exactly the same ids"]["num_cases"] == len(english)
    assert checks["every new piece can be produced"]["num_cases"] == 60


def test_the_report_measures_held_out_text_as_counted_by_hand(base_folder, built, extended, chinese):
    fit = json.loads((built.folder / "report.json").read_text())["domain"]
    chars = sum(map(len, chinese[8:]))
    for name, tokenizer in (("base", plain(base_folder)), ("extended", extended)):
        tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in chinese[8:])
        assert fit[name]["tokens_per_char"] == pytest.approx(tokens / chars)
        assert fit[name]["bytes_per_token"] == pytest.approx(sum(len(text.encode()) for text in chinese[8:]) / tokens)
    # all but the ideographic spaces and full-width marks, which join words between spaces, are single characters
    assert fit["base"]["byte_fragment_rate"] > 0.9
    assert fit["base"]["unknown_rate"] == 0.0
    assert any(name.startswith("SentencePiece BPE") for name in fit)
    assert any(name.startswith("SentencePiece Unigram") for name in fit)


def test_no_new_pieces_copies_the_tokenizer_byte_for_byte(tmp_path, base_folder, sources):
    result = build(tmp_path, base_folder, sources, num_new_pieces=0)
    assert (result.folder / "tokenizer" / "tokenizer.json").read_bytes() == (base_folder / "tokenizer.json").read_bytes()
    assert result.facts["layout"]["num_ids"] == result.facts["layout"]["num_base_ids"] == 600
    assert result.facts["domain_token_saving"] == 0.0


def test_more_pieces_than_the_text_gives_is_an_error_with_a_number_that_works(tmp_path, base_folder, sources):
    with pytest.raises(DataError, match=r"at most (\d+)") as caught:
        build(tmp_path / "a", base_folder, sources, num_new_pieces=50_000)
    most = int(str(caught.value).split("at most ")[1].split(":")[0])
    assert build(tmp_path / "b", base_folder, sources, num_new_pieces=most).facts["num_new_pieces"] == most


def test_a_separator_of_another_tokenizer_is_refused_with_the_special_tokens_listed(tmp_path, base_folder, sources):
    with pytest.raises(DataError, match=r"<\|endoftext\|> \(0\)"):
        build(tmp_path, base_folder, sources, document_separator="</s>")


def changed_base(base_folder, tmp_path, change, rows=600):
    folder = tmp_path / "changed"
    shutil.copytree(base_folder, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    return folder


def test_other_kinds_of_tokenizer_are_refused_by_name(tmp_path, base_folder):
    for number, (word, change) in enumerate({
        "Unigram tokenizer": lambda data: data["model"].update(type="Unigram", vocab=[["a", 0.0]]),
        "WordPiece tokenizer": lambda data: data["model"].update(type="WordPiece"),
        "pre-tokenizer ByteLevel": lambda data: data["model"].update(byte_fallback=True),
        "neither byte-level nor": lambda data: data.update(pre_tokenizer=None, decoder=None),
        "dropout": lambda data: data["model"].update(dropout=0.1),
        "no model": lambda data: data.update(model=None),
    }.items()):  # fmt: skip
        with pytest.raises(DataError, match=word):
            load_base(changed_base(base_folder, tmp_path / str(number), change))


def test_a_base_without_pieces_for_needed_bytes_is_refused(tmp_path, base_folder):
    character = next(character for character, byte in BYTE_OF_CHARACTER.items() if byte == 0xE9)

    def drop(data):
        number = data["model"]["vocab"].pop(character)
        data["model"]["vocab"]["unused"] = number
        data["model"]["merges"] = [pair for pair in data["model"]["merges"] if character not in "".join(pair)]

    with pytest.raises(DataError, match="first 0xe9"):
        load_base(changed_base(base_folder, tmp_path, drop))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', b"\xff\xfe"])
def test_a_damaged_base_is_one_clear_error(tmp_path, base_folder, content):
    folder = changed_base(base_folder, tmp_path, lambda data: None)
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError):
        load_base(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="lacks a file"):
        load_base(folder)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path, base_folder):
    with pytest.raises(DataError, match="largest id 599"):
        load_base(changed_base(base_folder, tmp_path, lambda data: None, rows=599))


def test_added_tokens_behind_the_vocabulary_and_unnamed_rows_stay_where_they_are(tmp_path, base_folder, sources):
    """Llama-3 keeps its special tokens outside the model's vocabulary; Qwen's model has more rows than its tokenizer has ids."""

    def add(data):
        token = data["added_tokens"][0] | {"id": 600, "content": "<|eot|>"}
        data["added_tokens"].append(token)

    folder = changed_base(base_folder, tmp_path, add, rows=620)
    result = build(tmp_path, folder, sources)
    tokenizer = plain(result.folder / "tokenizer")
    assert tokenizer.token_to_id("<|eot|>") == 600
    pieces = [json.loads(line) for line in (result.folder / "new_pieces.jsonl").read_text().splitlines()]
    assert [piece["id"] for piece in pieces] == list(range(620, 680))
    assert result.facts["layout"]["num_base_ids"] == 620
    assert result.facts["unnamed_base_rows"] == 19


def test_a_base_that_cuts_long_texts_is_read_in_full(tmp_path, base_folder, sources, english):
    def cut(data):
        data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}

    base = load_base(changed_base(base_folder, tmp_path, cut))
    assert base.tokenizer.decode(base.tokenizer.encode(english[0], add_special_tokens=False).ids) == english[0]


def test_a_broken_contract_is_refused_clause_by_clause(base_folder, built):
    """Swap the ids of two base pieces, and drop the last merge: three clauses must notice."""
    data = json.loads((built.folder / "tokenizer" / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    by_id = {number: piece for piece, number in vocab.items()}
    vocab[by_id[300]], vocab[by_id[301]] = 301, 300
    data["model"]["merges"].pop()
    broken = for_plain_text(Tokenizer.from_str(json.dumps(data)))
    base = load_base(base_folder)
    text = (piece_bytes(by_id[300]) + b" " + piece_bytes(by_id[301])).decode()
    assert contract.changed_ids(base, broken).detail.startswith("2 fail")
    assert not contract.drifting(base, broken, [text])[0].holds
    with pytest.raises(DataError, match="old id"):
        contract.refuse_broken([contract.changed_ids(base, broken)])


def test_a_lossy_tokenizer_is_noticed_at_the_first_differing_character():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("none", "removed")
    check = contract.lossy(tokenizer, "x", ["abc"])
    assert not check.holds


def test_settings_without_sense_are_config_errors(tmp_path, base_folder, sources):
    for number, wrong in enumerate(({"num_new_pieces": -1}, {"pad_rows_to_multiple": 0}, {"sample_bytes": 0}, {"num_new_pieces": "???"})):
        with pytest.raises(ConfigError):
            build(tmp_path / str(number), base_folder, sources, **wrong)


def test_extension_without_general_or_domain_text_is_refused(tmp_path, base_folder, sources):
    with pytest.raises(DataError, match="no general text"):
        build(tmp_path / "a", base_folder, {"law": sources["law"]})
    with pytest.raises(DataError, match="no domain text"):
        build(tmp_path / "b", base_folder, {"english": sources["english"]})
