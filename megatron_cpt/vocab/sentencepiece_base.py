"""Which SentencePiece bases can be extended, their tokenizer.json where they have none, and whether both forms say the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_cpt.errors import DataError, printable
from megatron_cpt.record.tokenizer_file import SPACE_MARK, parts_of
from megatron_cpt.vocab.sentencepiece_file import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SentencePieceModel
from megatron_cpt.vocab.sentencepiece_terms import splits

ROUTES = (
    "byte-level BPE in a tokenizer.json (GPT-2, Llama-3, Qwen, SmolLM style), or SentencePiece BPE with byte fallback and no normaliser "
    "as tokenizer.model, tokenizer.json or both (Llama-2, Mistral, Baichuan, Gemma style)"
)
SPACE_RULE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
PREFIX_RULE = {"type": "Prepend", "prepend": SPACE_MARK}


def unsupported(path: Path, kind: str) -> DataError:
    return DataError(
        f"This version cannot extend {kind}.",
        where=path,
        rule=ROUTES,
        next_step="Use such a base model. A domain vocabulary of another kind cannot be merged in; give its text as a source instead.",
    )


def refuse_other_models(path: Path, model: SentencePieceModel) -> None:
    """Raise for every SentencePiece model whose extension could not keep old text as it is, saying why."""
    if model.model_type != "BPE":
        raise unsupported(path, f"a SentencePiece {model.model_type} model")
    if not model.byte_fallback:
        raise unsupported(path, "a SentencePiece BPE without byte fallback (characters without a piece are unknown)")
    if model.has_charsmap:
        raise unsupported(path, f"a SentencePiece model that rewrites text (normaliser {printable(model.normaliser_name)})")
    if model.remove_extra_whitespaces:
        raise unsupported(path, "a SentencePiece model that drops spaces (remove_extra_whitespaces)")
    if not model.escape_whitespaces or model.whitespace_as_suffix:
        raise unsupported(path, "a SentencePiece model that marks spaces otherwise than by a U+2581 before a word")
    pieces = [piece.text for piece in model.pieces]
    if len(set(pieces)) < len(pieces) or "" in pieces:
        raise DataError("A SentencePiece model has an empty piece, or one piece twice.", where=path, rule="each piece once")
    bytes_there = {piece.text for piece in model.pieces if piece.kind == BYTE}
    if missing := [byte for byte in range(256) if f"<0x{byte:02X}>" not in bytes_there]:
        raise DataError(
            "A SentencePiece model lacks byte pieces, so some text would be unknown.",
            where=path,
            value=f"{len(missing)} missing, first <0x{missing[0]:02X}>",
            rule="all 256 byte pieces",
        )


def refuse_other_files(path: Path, data: dict[str, Any], model: SentencePieceModel | None = None) -> None:
    """Raise for a tokenizer.json with byte fallback that rewrites text or cuts it otherwise than SentencePiece does."""
    whole = user_defined_rule(model) if model is not None else None
    for part in parts_of(data.get("normalizer")):
        if part not in (SPACE_RULE, PREFIX_RULE):
            raise unsupported(path, f"a SentencePiece-style BPE that rewrites text (normaliser {printable(str(part.get('type')))})")
    for part in parts_of(data.get("pre_tokenizer")):
        at_spaces = part.get("type") == "Split" and part.get("pattern") == {"String": " "}  # Gemma: after its normaliser there is none
        if part.get("type") != "Metaspace" and not at_spaces and part != whole:
            raise unsupported(path, f"a SentencePiece-style BPE with a pre-tokenizer {printable(str(part.get('type')))}")
    if not any(part.get("type") == "ByteFallback" for part in parts_of(data.get("decoder"))):
        raise unsupported(path, "a SentencePiece-style BPE whose decoder does not join bytes")
    vocab = data["model"]["vocab"]
    if missing := [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab]:
        raise DataError(
            "The base tokenizer lacks byte pieces, so some text would be unknown.",
            where=path,
            value=f"{len(missing)} missing, first <0x{missing[0]:02X}>",
            rule="all 256 byte pieces",
        )


def tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """Return a SentencePiece model as the content of a tokenizer.json with the same ids.

    Pieces that the user defined are words of their own, found by a pattern and taken whole: as added tokens they would be cut out before
    the text gets its dummy prefix. The whole-word look-up takes other words too, so a model with a piece that no merges build is refused
    by the comparison of both forms (`texts_on_pieces`).
    """
    whole = user_defined_rule(model)
    vocab = {piece.text: number for number, piece in enumerate(model.pieces)}
    normal = sorted((piece for piece in model.pieces if piece.kind == NORMAL), key=lambda piece: -piece.score)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    unknown = next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None)
    prefix, strip = ([PREFIX_RULE], [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]) if model.add_dummy_prefix else ([], [])
    marks = [{"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": number, "content": piece.text, **special}
            for number, piece in enumerate(model.pieces) if piece.kind in (UNKNOWN, CONTROL)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, SPACE_RULE]},
        "pre_tokenizer": whole,
        "post_processor": _begin_mark(vocab),
        "decoder": {"type": "Sequence", "decoders": [*marks, *strip]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": whole is not None, "vocab": vocab,
            "merges": [list(pair) for piece in normal for pair in splits(piece.text, vocab)],
        },
    }  # fmt: skip


def user_defined_rule(model: SentencePieceModel) -> dict[str, Any] | None:
    """Return the pre-tokenizer that makes each user-defined piece a word, the longest first; None without any."""
    pieces = sorted((piece.text for piece in model.pieces if piece.kind == USER_DEFINED), key=lambda text: (-len(text), text))
    pattern = {"Regex": "|".join(map(re.escape, pieces))}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False} if pieces else None


def texts_on_pieces(model: SentencePieceModel) -> list[str]:
    """Return texts that show whether both forms take user-defined pieces, and every other piece alone, in the same way."""
    own = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    others = [piece.text.replace(SPACE_MARK, " ") for piece in model.pieces if piece.kind == NORMAL] if own else []
    return [form.format(text) for text in own for form in ("{}", "a{}b", " {} ", "{0}{0}")] + [each.removeprefix(" ") for each in others]


def _begin_mark(vocab: dict[str, int]) -> dict[str, Any] | None:
    """Return the rule that puts <s> before a text where special tokens are asked for, as the Llama tokenizers do."""
    if "<s>" not in vocab:
        return None
    mark = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing", "single": [mark, first], "pair": [mark, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}},
    }  # fmt: skip


def refuse_other_pieces(folder: Path, model: SentencePieceModel, vocab: dict[str, int]) -> None:
    """Raise when tokenizer.model and tokenizer.json give a piece different ids (npm's "llama2" carries Mistral's vocabulary, say)."""
    moved = [(piece.text, number) for number, piece in enumerate(model.pieces) if vocab.get(piece.text) != number]
    if moved:
        text, number = moved[0]
        raise DataError(
            "tokenizer.model and tokenizer.json are different vocabularies.",
            where=folder,
            value=f"{len(moved)} pieces differ; first {printable(text)}: id {number} and {vocab.get(text)}",
            rule="both forms give each piece the same id",
            next_step="Take both from the same release of the model, or remove the one that is not its own.",
        )


def differing_texts(model: bytes, tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, list[str]]:
    """Return how many texts were encoded in both forms, and those that got different ids."""
    import sentencepiece  # noqa: PLC0415 - only a base with a tokenizer.model needs it

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    count, differing = 0, []
    for text in texts:
        count += 1
        if processor.encode(text) != tokenizer.encode(text, add_special_tokens=False).ids:
            differing.append(text)
    return count, differing


def refuse_other_ids(folder: Path, model: SentencePieceModel, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raise when the two forms of a base encode a text differently.

    Raises:
        DataError: naming the first such text, or that sentencepiece cannot load the file.
    """
    try:
        _, differing = differing_texts(model.data, tokenizer, texts)
    except RuntimeError as error:  # the C++ library's one kind of error
        raise DataError("sentencepiece cannot load the model.", where=folder / "tokenizer.model", value=str(error)[:300]) from None
    if differing:
        raise DataError(
            "tokenizer.model and tokenizer.json encode the same text differently.",
            where=folder,
            value=f"{len(differing)} of {len(texts)} texts, first {printable(differing[0])[:80]!r}",
            rule="both forms give the same ids",
            next_step="Remove tokenizer.json: it is then made from tokenizer.model."
            if (folder / "tokenizer.json").exists()
            else "Give a tokenizer.json of the same release beside tokenizer.model.",
        )
