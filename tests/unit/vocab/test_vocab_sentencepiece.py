"""SentencePiece bases: both forms extended alike, judged by the sentencepiece library; and what is refused by name."""

from __future__ import annotations

import io
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocab_build import build, plain
from tokenizers import Tokenizer

from megatron_cpt.errors import DataError
from megatron_cpt.index.codec import HfCodec
from megatron_cpt.record.store import read_json
from megatron_cpt.record.tokenizer_file import continuing, for_plain_text, normal_form
from megatron_cpt.record.vocab_contract import check_vocab
from megatron_cpt.vocab.base import load_base
from megatron_cpt.vocab.contract import NASTY_TEXTS, forms_agree
from megatron_cpt.vocab.sentencepiece_base import tokenizer_json
from megatron_cpt.vocab.sentencepiece_bpe import PieceRules, falling_scores
from megatron_cpt.vocab.sentencepiece_file import BYTE, NORMAL, Piece, extended_model, parse_model, read_model

NUM_BASE, NUM_NEW = 900, 60
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}


def train(texts, **changed):
    """Return a model file trained by the library as Llama's was: byte fallback, digits apart, no normaliser."""
    model = io.BytesIO()
    wanted = {
        "model_type": "bpe", "vocab_size": NUM_BASE, "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "character_coverage": 1.0,
        "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    lines = [line for text in texts for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **(wanted | changed))
    return model.getvalue()


def folder_of(path, model, num_rows=NUM_BASE):
    path.mkdir(parents=True)
    (path / "tokenizer.model").write_bytes(model)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": num_rows}))
    return path


def processor(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def model(english):
    return train(english)


@pytest.fixture(scope="module")
def spm_base(tmp_path_factory, model):
    return folder_of(tmp_path_factory.mktemp("spm") / "base", model)


@pytest.fixture(scope="module")
def sources(english, chinese):
    return {"law": ("domain", chinese[:8], chinese[8:]), "english": ("general", english[:-5], english[-5:])}


@pytest.fixture(scope="module")
def built(tmp_path_factory, spm_base, sources):
    return build(tmp_path_factory.mktemp("built"), spm_base, sources, num_new_pieces=NUM_NEW, document_separator="</s>")


def test_both_written_forms_give_sentencepieces_ids(built, english, chinese):
    tokenizer, reference = plain(built.folder / "tokenizer"), processor(built.folder / "tokenizer")
    assert reference.get_piece_size() == NUM_BASE + NUM_NEW
    pieces = [reference.id_to_piece(number) for number in range(NUM_BASE, NUM_BASE + NUM_NEW)]
    assert [tokenizer.id_to_token(number) for number in range(NUM_BASE, NUM_BASE + NUM_NEW)] == pieces
    for text in [*NASTY_TEXTS, *english, *chinese, *pieces, "a\u2581b", "<s> </s> <0x41>"]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)
    assert check_vocab(built.folder).num_ids == NUM_BASE + NUM_NEW


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="第一条民事主体法律，。ab  \n\t1２\u2581é龘😀", max_size=40))
def test_both_forms_agree_on_any_text_and_give_it_back(built, text):
    tokenizer, reference = plain(built.folder / "tokenizer"), processor(built.folder / "tokenizer")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace("\u2581", " ")


def test_old_text_keeps_its_ids_in_the_library_and_domain_text_gets_shorter(built, spm_base, english, chinese):
    before, after = processor(spm_base), processor(built.folder / "tokenizer")
    for text in english:
        assert after.encode(text) == before.encode(text)
    assert sum(map(len, after.encode(chinese))) < 0.6 * sum(map(len, before.encode(chinese)))


def test_a_piece_with_score_zero_would_move_old_text_and_ours_does_not(model):
    """Bug D05: the usual merge script's score of 0 wins over every old merge; a score below all old ones wins over none."""
    base, text = parse_model(model), "the parser returns the arguments"
    old = sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    lowest = min(each.score for each in base.pieces if each.kind == NORMAL)
    inside = sorted({text[start : start + 3] for start in range(len(text) - 2)} - {each.text for each in base.pieces})
    moved = {0.0: 0, falling_scores(lowest, 1)[0]: 0}
    for score in moved:
        for piece in (each for each in inside if " " not in each):
            extended = sentencepiece.SentencePieceProcessor(model_proto=extended_model(base, [Piece(piece, score, NORMAL)]))
            kept = [each for each in pairwise(old) if "".join(map(extended.id_to_piece, each)) == piece]
            moved[score] += not kept and extended.encode(text) != old
    with_zero, with_ours = moved.values()
    assert with_zero > 0
    assert with_ours == 0


def test_scores_fall_strictly_where_32_bit_numbers_are_far_apart():
    """Llama's runs of spaces have the score -1e9, where minus one changes nothing."""
    for above in (-31740.0, -1e9):
        scores = np.array([above, *falling_scores(above, 1000)], dtype=np.float32)
        assert (np.diff(scores) < 0).all()


def test_old_pieces_settings_and_bytes_stay_and_only_the_size_changes(built, model):
    old, new = parse_model(model), read_model(built.folder / "tokenizer" / "tokenizer.model")
    assert new.pieces[:NUM_BASE] == old.pieces
    assert new.num_ids == NUM_BASE + NUM_NEW
    assert {piece.text for piece in new.pieces if piece.kind == BYTE} == {f"<0x{byte:02X}>" for byte in range(256)}
    shortened = extended_model(new, [])
    assert shortened == new.data
    for field in ("byte_fallback", "split_digits", "normaliser_name", "add_dummy_prefix", "remove_extra_whitespaces", "max_piece_chars"):
        assert getattr(new, field) == getattr(old, field)
    head = model.index(b"\n", 1)  # every old piece stands in the new file, byte for byte and in its place
    assert new.data[:head] == model[:head]
    lowest = min(piece.score for piece in old.pieces if piece.kind == NORMAL)
    added = [piece.score for piece in new.pieces[NUM_BASE:]]
    assert added[0] < lowest
    assert all(before > after for before, after in pairwise(added))


def test_the_file_we_write_is_the_file_that_googles_own_message_writes(model):
    """The generated code is the reference where it can be imported (bug D56: on some protobuf releases it cannot)."""
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="generated code for another protobuf release")
    reference = pb2.ModelProto()
    reference.ParseFromString(model)
    for number in range(3):
        reference.pieces.add(piece=f"新{number}", score=-5000.0 - number)
    reference.trainer_spec.vocab_size = NUM_BASE + 3
    ours = pb2.ModelProto()
    ours.ParseFromString(extended_model(parse_model(model), [Piece(f"新{number}", -5000.0 - number, NORMAL) for number in range(3)]))
    assert ours == reference


def test_doubled_and_empty_pieces_are_refused_before_anything_is_written(model):
    known = parse_model(model)
    for pieces in (["\u2581the"], ["新", "新"], [""]):
        with pytest.raises(DataError, match="empty or already"):
            extended_model(known, [Piece(piece, -9e4, NORMAL) for piece in pieces])


def test_rows_without_a_piece_are_filled_so_that_ids_stay_places(tmp_path, model, sources):
    folder = folder_of(tmp_path / "base", model, num_rows=NUM_BASE + 4)
    result = build(tmp_path, folder, sources, num_new_pieces=20, document_separator="</s>")
    reference, tokenizer = processor(result.folder / "tokenizer"), plain(result.folder / "tokenizer")
    first = json.loads((result.folder / "new_pieces.jsonl").read_text().splitlines()[0])
    assert first["id"] == NUM_BASE + 4
    assert reference.id_to_piece(NUM_BASE + 4) == tokenizer.id_to_token(NUM_BASE + 4)
    assert all(reference.is_unused(number) for number in range(NUM_BASE, NUM_BASE + 4))
    assert f"<unused_row_{NUM_BASE}>" in reference.decode(reference.encode(f"a <unused_row_{NUM_BASE}> b"))
    assert NUM_BASE not in reference.encode(f"<unused_row_{NUM_BASE}>")


def test_characters_become_pieces_from_their_bytes_and_count_what_they_save(built, spm_base, chinese):
    reference = processor(spm_base)
    pieces = [json.loads(line) for line in (built.folder / "new_pieces.jsonl").read_text().splitlines()]
    text = "".join(chinese[:8])
    first = pieces[0]
    assert len(first["piece"]) == 1
    assert [reference.id_to_piece(number) for number in first["base_ids"]] == [f"<0x{byte:02X}>" for byte in first["piece"].encode()]
    assert first["count"] == text.count(first["piece"]) * (len(first["piece"].encode()) - 1)
    longer = [piece for piece in pieces if len(piece["piece"]) > 1]
    assert longer
    for piece in pieces:
        parts = [reference.id_to_piece(number) for number in piece["base_ids"]]
        spelt = b"".join(bytes([int(each[3:5], 16)]) if each.startswith("<0x") else each.replace("\u2581", " ").encode() for each in parts)
        assert spelt.decode() == piece["piece"]
        assert " " not in piece["piece"][1:]


def test_no_piece_breaks_the_rules_of_the_bases_trainer():
    rules = PieceRules(max_chars=6, digits_apart=True)
    assert rules.allows("\u2581合同法")
    assert not rules.allows("合\u2581同")
    assert not rules.allows("第1")
    assert not rules.allows("２0")
    assert not rules.allows("法，")  # another script
    assert not rules.allows("中华人民共和国")
    assert PieceRules(one_script=False).allows("法，")
    assert PieceRules.of(None, ["12", "a"]).digits_apart is False
    assert PieceRules.of(None, ["1", "a", "<0x11>"]).digits_apart is True


def test_a_tokenizer_json_alone_is_extended_too(tmp_path, spm_base, sources, english, chinese):
    """Gemma's form; its ids are those that the two forms together get."""
    folder = tmp_path / "base"
    shutil.copytree(spm_base, folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(read_model(folder / "tokenizer.model"))))
    (folder / "tokenizer.model").unlink()
    result = build(tmp_path, folder, sources, num_new_pieces=NUM_NEW, document_separator="</s>")
    assert not (result.folder / "tokenizer" / "tokenizer.model").exists()
    before, after = plain(folder), plain(result.folder / "tokenizer")
    for text in english:
        assert after.encode(text, add_special_tokens=False).ids == before.encode(text, add_special_tokens=False).ids
    assert sum(len(after.encode(text).ids) for text in chinese) < 0.6 * sum(len(before.encode(text).ids) for text in chinese)


def test_terms_are_forced_in_as_single_pieces(tmp_path, spm_base, sources):
    terms = tmp_path / "terms.txt"
    terms.write_text("民事法律关系\n善意取得\nthe\n两个 词\n", encoding="utf-8")
    result = build(tmp_path, spm_base, sources, num_new_pieces=NUM_NEW, document_separator="</s>", terms=str(terms))
    outcomes = {line["term"]: line for line in map(json.loads, (result.folder / "terms.jsonl").read_text().splitlines())}
    assert [outcomes[term]["outcome"] for term in ("民事法律关系", "善意取得", "两个 词")] == ["forced", "forced", "crosses words"]
    after = continuing(plain(result.folder / "tokenizer"))
    for term in ("民事法律关系", "善意取得"):
        assert len(after.encode(term, add_special_tokens=False).ids) == 1


@pytest.mark.parametrize("max_drift", [0.5, 1e-6])
def test_a_bound_lets_terms_change_so_many_general_documents_as_on_byte_level_bases(tmp_path, spm_base, sources, english, max_drift):
    """The word and the accented letter stand in general text: the one in several pieces, the other in bytes."""
    general = ("general", [*english[:-5], "a single caf\u00e9"], english[-5:])
    assert len(processor(spm_base).encode(" configuration")) > 2
    terms = tmp_path / "terms.txt"
    terms.write_text("configuration\ncaf\u00e9\n善意取得\n", encoding="utf-8")
    given = {**sources, "english": general, "law": ("domain", [*sources["law"][1], " the configuration " * 9], sources["law"][2])}
    result = build(tmp_path, spm_base, given, num_new_pieces=NUM_NEW, document_separator="</s>", terms=str(terms), max_drift=max_drift)
    outcomes = {line["term"]: line for line in map(json.loads, (result.folder / "terms.jsonl").read_text().splitlines())}
    taken = "forced" if max_drift == 0.5 else "changes general text"
    assert [outcomes[term]["outcome"] for term in ("configuration", "caf\u00e9", "善意取得")] == [taken, taken, "forced"]
    old, new = processor(spm_base), processor(result.folder / "tokenizer")
    changed = {text for text in [*general[1], *general[2]] if old.encode(text) != new.encode(text)}
    drift = read_json(result.folder / "contract.json")["drift"]
    assert drift == {"num_documents": len(english) + 1, "num_changed": len(changed), "max_share": max_drift}
    if max_drift == 0.5:
        after = continuing(plain(result.folder / "tokenizer"))
        assert len(after.encode(" configuration", add_special_tokens=False).ids) == 1
        assert len(after.encode("caf\u00e9", add_special_tokens=False).ids) == 1
        assert "a single caf\u00e9" in changed
        assert len(changed) <= outcomes["configuration"]["num_general_documents"] + outcomes["caf\u00e9"]["num_general_documents"]
    else:
        assert not changed


def test_a_text_that_goes_on_has_no_dummy_prefix(built):
    tokenizer = plain(built.folder / "tokenizer")
    after = continuing(tokenizer)
    whole = tokenizer.encode("the parser\n    returns", add_special_tokens=False).ids
    for cut in ("the parser", "the parser\n"):
        question, answer = cut, "the parser\n    returns"[len(cut) :]
        answer_ids = after.encode(answer, add_special_tokens=False).ids
        assert [*tokenizer.encode(question, add_special_tokens=False).ids, *answer_ids] == whole
        assert after.decode(answer_ids) == answer  # a body's indentation keeps its first space


@pytest.mark.parametrize("text", ["the parser", "   x", " ", "第一条　龘\n\t1", "a\u2581b"])
def test_a_whole_text_is_known_by_its_bytes(built, text):
    tokenizer = plain(built.folder / "tokenizer")
    codec = HfCodec(tokenizer, tokenizer.to_str().encode(), num_ids=NUM_BASE + NUM_NEW)
    ids, lengths = codec.exact.encode([text, text])
    sizes = np.array([len(text.encode())] * 2)
    assert codec.holds_whole([text, text], sizes, ids, lengths).tolist() == [True, True]
    assert codec.holds_whole([text, text], sizes, ids[:-1], lengths - [0, 1]).tolist() == [True, False]


def test_a_prefix_that_spares_leading_spaces_says_what_is_lost(spm_base):
    """Metaspace puts no mark before a text that begins with a space: one space of it is gone after decoding."""
    data = tokenizer_json(read_model(spm_base / "tokenizer.model"))
    data["normalizer"], data["pre_tokenizer"] = (
        None,
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
    )
    tokenizer = for_plain_text(Tokenizer.from_str(json.dumps(data)))
    for text in ("a b", " a", "  a"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == normal_form(tokenizer)(text)
    assert normal_form(tokenizer)(" a") == "a"


def test_other_kinds_of_model_are_refused_by_name(tmp_path, english, model):
    changed = {
        "SentencePiece Unigram model": {"model_type": "unigram"},
        "without byte fallback": {"byte_fallback": False},
        "rewrites text .normaliser nmt_nfkc": {"normalization_rule_name": "nmt_nfkc"},
        "drops spaces": {"remove_extra_whitespaces": True},
        "marks spaces otherwise": {"treat_whitespace_as_suffix": True},
    }
    for number, (reason, setting) in enumerate(changed.items()):
        with pytest.raises(DataError, match=reason):
            load_base(folder_of(tmp_path / str(number), train(english, **setting)))
    with pytest.raises(DataError, match="lacks byte pieces"):
        load_base(folder_of(tmp_path / "bytes", model.replace(b"<0x41>", b"<0xZZ>")))


@pytest.mark.parametrize("damage", [lambda m: b"", lambda m: m[:5000], lambda m: m[:-7], lambda m: m[100:], lambda m: b"\x00" * 50,
                                    lambda m: b"IQ== 0\nIg== 1\n" * 9])  # fmt: skip
def test_a_damaged_model_is_one_clear_error(tmp_path, model, damage):
    with pytest.raises(DataError, match=r"not a SentencePiece model|damaged|tiktoken"):
        load_base(folder_of(tmp_path / "base", damage(model)))


def test_two_forms_of_different_vocabularies_are_refused(tmp_path, spm_base, english):
    folder = tmp_path / "base"
    shutil.copytree(spm_base, folder)
    other = folder_of(tmp_path / "other", train(english[: len(english) // 2]))
    data = tokenizer_json(read_model(other / "tokenizer.model"))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="different vocabularies"):
        load_base(folder)
    data = tokenizer_json(read_model(folder / "tokenizer.model"))
    data["normalizer"], data["pre_tokenizer"] = (
        None,
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
    )
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="encode the same text differently"):
        load_base(folder)


def test_a_stale_model_beside_the_extended_file_breaks_the_contract(built, spm_base, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(built.folder / "tokenizer", folder)
    shutil.copyfile(spm_base / "tokenizer.model", folder / "tokenizer.model")
    check = forms_agree(load_base(spm_base), folder, plain(folder), [])
    assert check is not None
    assert not check.holds


def test_nothing_new_leaves_both_forms_as_they_are(tmp_path, spm_base, sources):
    result = build(tmp_path, spm_base, sources, num_new_pieces=0, document_separator="</s>")
    assert (result.folder / "tokenizer" / "tokenizer.model").read_bytes() == (spm_base / "tokenizer.model").read_bytes()
    base = read_json(result.folder / "base" / "tokenizer.json")
    assert base == read_json(result.folder / "tokenizer" / "tokenizer.json")


def test_user_defined_pieces_without_a_tokenizer_json_stay_whole_in_both_forms(tmp_path, sources, english):
    """SentencePiece never joins them to anything; the longest one that fits is taken, and the dummy prefix stands before it."""
    marks = ["<mark>", "<mark>er", "§", "a.b"]
    folder = folder_of(tmp_path / "base", train(english, user_defined_symbols=marks))
    terms = tmp_path / "terms.txt"
    terms.write_text("善意取得\n第§条\n", encoding="utf-8")
    law = ("domain", [*sources["law"][1], "第§条<mark>" * 20], sources["law"][2])
    result = build(tmp_path, folder, {**sources, "law": law}, num_new_pieces=NUM_NEW, document_separator="</s>", terms=str(terms))
    outcomes = {line["term"]: line["outcome"] for line in map(json.loads, (result.folder / "terms.jsonl").read_text().splitlines())}
    assert outcomes == {"善意取得": "forced", "第§条": "crosses words"}
    old, new, tokenizer = processor(folder), processor(result.folder / "tokenizer"), plain(result.folder / "tokenizer")
    texts = ["<mark>", " <mark>", "x<mark>erx", "<mark><mark>er", "第§条 民事<mark>主体", "a.b axb", "§§", *english]
    for text in texts:
        assert new.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
        assert new.decode(new.encode(text)) == text
    assert new.encode("x<mark>erx").count(old.piece_to_id("<mark>er")) == 1
    assert all(mark not in new.id_to_piece(number) for number in range(NUM_BASE, NUM_BASE + NUM_NEW) for mark in marks)
    again = tmp_path / "again"
    shutil.copytree(result.folder / "tokenizer", again)
    (again / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": NUM_BASE + NUM_NEW}))
    assert load_base(again).num_rows == NUM_BASE + NUM_NEW
