"""Figures of a vocabulary on a text, counted by hand on vocabularies that fit on a line."""

from __future__ import annotations

import io
import json

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_cpt.errors import ConfigError
from megatron_cpt.line.run import indented
from megatron_cpt.record.term_list import read_terms
from megatron_cpt.vocab.advice import advice, economy_rows
from megatron_cpt.vocab.facts import say_wrapped
from megatron_cpt.vocab.measure import measure, measure_terms, vocabulary, vocabulary_of
from megatron_cpt.vocab.report import report_markdown
from megatron_cpt.vocab.report_page import report_page


def byte_level(*merges):
    """Return a byte-level BPE of the 256 bytes and the merges, each a pair of texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = {"ab": "ab", "中": "ä¸Ń"}
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    assert letters["中"] == "".join(alphabet_of("中"))
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def alphabet_of(text):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def test_every_figure_as_counted_by_hand():
    first, second, third = alphabet_of("中")
    tokenizer = byte_level(("a", "b"), (first, second), (first + second, third))
    # ab | ab | 中 | a | two bytes of 国 and one more | e-acute in two bytes: "国" shares its first byte with nothing merged
    text = "abab中a国"
    fit = measure({"it": vocabulary_of(tokenizer, 259, first_new_id=256)}, [text])["it"]
    assert fit["num_tokens"] == 4 + 3
    assert fit["num_chars"] == 7
    assert fit["num_bytes"] == 5 + 3 + 3
    assert fit["tokens_per_char"] == pytest.approx(7 / 7)
    assert fit["bytes_per_token"] == pytest.approx(11 / 7)
    assert fit["fertility"] == pytest.approx(7 / 4)  # abab, 中, a, 国
    assert fit["byte_fragment_rate"] == pytest.approx(3 / 7)
    assert fit["byte_fallback_rate"] == pytest.approx(3 / 7)
    assert fit["character_coverage"] == pytest.approx(6 / 7)  # all but 国
    assert fit["distinct_coverage"] == pytest.approx(3 / 4)
    assert fit["unknown_rate"] == 0.0
    assert fit["new_ids_used"] == 2
    assert fit["ids_used"] == 3 + 3
    assert fit["token_lengths"][:3] == [3, 2, 2]


def test_a_fragment_of_two_bytes_is_no_fallback():
    first, second, _ = alphabet_of("中")
    fit = measure({"it": vocabulary_of(byte_level((first, second)), 257)}, ["中"])["it"]
    assert fit["byte_fragment_rate"] == 1.0
    assert fit["byte_fallback_rate"] == 0.5
    assert fit["character_coverage"] == 0.0


def test_sentencepiece_bytes_are_fallbacks_and_both_libraries_give_the_same_figures():
    """A SentencePiece model and its twin in the tokenizers library are one vocabulary."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab ab abc bc ca"] * 20), model_writer=written, vocab_size=259 + 8, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    names = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in names[259:] for cut in range(1, len(piece))
        if piece[:cut] in names and piece[cut:] in names
    ]  # fmt: skip
    twin = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    twin.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    twin.add_special_tokens(["<unk>", "<s>", "</s>"])
    pieces = [
        None if number < 3 else bytes([number - 3]) if number < 259 else piece.replace("▁", " ").encode()
        for number, piece in enumerate(names)
    ]  # fmt: skip
    ours = vocabulary(processor.encode, pieces, range(3, 259), unknown_id=0)
    text = "ab bc 中 abc\n"
    fits = measure({"a": ours, "b": vocabulary_of(twin, len(names))}, [text])
    assert fits["a"] == fits["b"]
    assert fits["a"]["byte_fallback_rate"] == pytest.approx(4 / fits["a"]["num_tokens"])  # 中 and the newline
    assert fits["a"]["character_coverage"] == pytest.approx((len(text) - 2) / len(text))


def test_no_text_has_no_figures():
    assert measure({"it": vocabulary_of(byte_level(), 256)}, []) == {"it": None}
    assert measure({"it": vocabulary_of(byte_level(), 256)}, [" \n"]) == {"it": None}


def test_terms_are_cut_alone_and_after_a_space_and_the_shorter_counts():
    tokenizer = byte_level(("Ġ", "a"), ("Ġa", "b"))
    found = measure_terms({"it": vocabulary_of(tokenizer, 258)}, ["ab", "ba", "ac"])
    assert found["it"] == {"share_of_one_token": pytest.approx(1 / 3), "tokens_per_term": pytest.approx((1 + 2 + 2) / 3)}


def test_a_term_list_keeps_its_order_and_says_what_it_passed_over(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_bytes("\ufeff人民法院\r\n\r\n habeas corpus \nline\u2028end\n人民法院\n".encode())
    terms = read_terms(path)
    assert terms.terms == ("人民法院", "habeas corpus", "line\u2028end")
    assert terms.remarks == ("1 blank lines of the term list were passed over", "1 repeated terms were passed over: 人民法院")


def test_a_term_list_that_cannot_be_used_is_one_clear_error(tmp_path):
    path = tmp_path / "terms.txt"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_terms(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_terms(tmp_path)
    for content, words in ((b"", "holds no term"), (b"\n \n", "holds no term"), ("法".encode("gbk"), "is not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            read_terms(path)


ECONOMY = {
    "break_even_tokens": 4.0e8, "planned_tokens": 1.0e8, "pays": False, "step_saving": 0.04, "compute_saving": 0.03,
    "usd_saved": {"unavailable": "set tariff.usd_per_device_hour"}, "relearn_tokens": 1.1e8, "relearn_source": "stated",
    "flops_before": 8e8, "flops_after": 8.1e8, "domain_ratio": 0.95, "general_ratio": 1.0, "domain_share": 0.8,
    "formula": "N = L c1 / (c0 - R c1)",
}  # fmt: skip


def test_below_the_break_even_the_advice_is_do_not_extend_with_the_figures():
    found = advice(0.05, 0.02, 500, ECONOMY)
    assert found["extend"] is False
    assert found["why"].startswith("do not extend: it saves only 5.0%")
    assert "100 million base tokens is below the break-even of 400 million" in found["why"]


def test_above_the_break_even_the_advice_is_extend():
    found = advice(0.05, 0.02, 500, ECONOMY | {"planned_tokens": 1.0e9, "pays": True})
    assert found["extend"] is True
    assert "1 billion base tokens reaches the break-even of 400 million" in found["why"]


def test_the_two_exceptions_are_named_and_training_is_told_beside_them():
    large, poor = advice(0.2, 0.02, 500, ECONOMY), advice(0.05, 0.5, 500, ECONOMY)
    assert large["extend"] is poor["extend"] is True
    assert "saves 20.0% of the tokens" in large["why"]
    assert "50.0% of the base's tokens there are parts of characters" in poor["why"]
    assert all("below the break-even of 400 million" in each["why"] for each in (large, poor))


def test_never_and_unknown_are_said_and_not_decided_by_a_number():
    never = advice(0.05, 0.0, 500, ECONOMY | {"break_even_tokens": {"unavailable": "never: rows cost more"}})
    assert never["extend"] is False
    assert "never pays in training (rows cost more)" in never["why"]
    unplanned = advice(0.05, 0.0, 500, ECONOMY | {"planned_tokens": {"unavailable": "set blend.num_tokens"}, "pays": None})
    assert "from 400 million tokens on; how many are planned is unknown (set blend.num_tokens)" in unplanned["why"]
    assert advice(None, None, 500, None)["extend"] is None
    assert advice(0.05, 0.0, 500, None)["extend"] is False
    assert advice(None, None, 0, None)["extend"] is False


def test_the_reports_show_every_input_of_the_formula_and_strangers_text_stays_text():
    first, second, third = alphabet_of("中")
    tokenizer = byte_level((first, second), (first + second, third))
    both = {"base": vocabulary_of(byte_level(), 256), "extended": vocabulary_of(tokenizer, 258, first_new_id=256)}
    report = {
        "domain": measure(both, ["中文 <script>"]), "general": measure(both, []), "comparison": ["remark <b>"], "economy": ECONOMY,
        "terms": {"num_terms": 1, "remarks": ["1 repeated <i>"], "of": measure_terms(both, ["中"])},
        "gain": {"sample_tokens": 10, "asked": 2, "points": [[0, 0], [1, 3], [2, 5], [4, 6]]},
        "advice": advice(0.05, 0.02, 2, ECONOMY),
    }  # fmt: skip
    pieces = [{"id": 256, "piece": "<script>|", "count": 3}]
    json.dumps(report, allow_nan=False)
    markdown, page = report_markdown(report, [], pieces), report_page(report, [], pieces)
    for _, value in economy_rows(ECONOMY):
        assert value in markdown
    assert "unknown (set tariff.usd_per_device_hour)" in page
    assert "unknown (no such text)" in markdown
    assert "&lt;script>\\|" in markdown
    assert page.count("<svg") == 3  # tokens per character, token lengths, gain; no general text, no bars
    assert "2 rows" in page
    assert not any(tag in page for tag in ("<script", "<b>", "<i>", "http://", "https://"))
    assert "Do not extend" in page


def test_what_the_stage_says_fits_a_terminal_of_eighty_columns(capsys):
    why = advice(0.42, 0.5, 512, ECONOMY)["why"]
    say_wrapped(indented, f"all 13 clauses of the contract hold; advice: {why}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == f"all 13 clauses of the contract hold; advice: {why}"
