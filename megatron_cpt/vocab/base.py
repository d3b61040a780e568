"""Reading a base tokenizer from a stranger's Hugging Face folder, and saying which kinds can be extended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_cpt.errors import DataError, printable
from megatron_cpt.record.tokenizer_file import dummy_prefix, for_plain_text
from megatron_cpt.vocab.byte_level_bpe import ByteLevelBpe
from megatron_cpt.vocab.family import Family
from megatron_cpt.vocab.sentencepiece_base import (
    ROUTES,
    refuse_other_files,
    refuse_other_ids,
    refuse_other_models,
    refuse_other_pieces,
    texts_on_pieces,
    tokenizer_json,
    unsupported,
)
from megatron_cpt.vocab.sentencepiece_bpe import MODEL_NAME, SentencePieceBpe
from megatron_cpt.vocab.sentencepiece_file import SentencePieceModel, read_model

MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
# Bytes that assigned characters need. Left out: control codes, which the corpus stage removes; C0, C1 and F5-FF, which UTF-8 never
# uses; F1, F2 and F4, which lead to planes without assigned characters. SmolLM2 lacks a few of those and is a sound base all the same.
NEEDED_BYTES = frozenset([0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1), 0xF3])
SUPPORTED = ROUTES
# Where two forms of one vocabulary, or of one file in two libraries, come apart most easily.
FORM_TEXTS = (
    "", " ", "a", "   leading", "trailing   ", "two  spaces\tand\ttabs\n\n\n  and   newlines\r\n", "a\u2581b", "\u2581", "\n", "\t\t",
    "<s> </s> <unk> <0x41> [INST]", "全角：，。１２３　第一百二十三条", "rare 𠀀龘 and 😀👩\u200d👧", "e\u0301 é x\u2028y",
    "x" * 40,
    *(" " * length + "x" for length in (2, 3, 5, 7, 8, 11, 13, 16, 17, 31, 33, 40, 67)),
)  # fmt: skip


@dataclass(frozen=True)
class BaseTokenizer:
    """A base tokenizer of a kind that can be extended.

    Attributes:
        data: the parsed tokenizer.json, or what it would be for a base that is a tokenizer.model alone.
        tokenizer: the same, ready to encode as the index does.
        num_rows: rows of the base model's embedding (`vocab_size` in config.json); new ids start here.
    added: content to id of the added tokens; `special` holds those marked special.
    """

    folder: Path
    data: dict[str, Any]
    tokenizer: Tokenizer
    num_rows: int
    added: dict[str, int]
    special: dict[str, int]
    family: Family


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a stranger's JSON file.

    Raises:
        DataError: it is missing, too large, not JSON or no object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise DataError("A tokenizer file is too large.", where=path, value=f"{size} bytes", rule=f"at most {MAX_TOKENIZER_BYTES}")
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except FileNotFoundError:
        raise DataError(
            "The base model folder lacks a file.", where=path, next_step="Set model.path to a complete Hugging Face folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("A file of the base model is not readable JSON.", where=path, value=str(error)[:300]) from None
    if not isinstance(data, dict):
        raise DataError("A file of the base model is not a JSON object.", where=path, value=type(data).__name__)
    return data


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:place]))
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


def tokenizer_from(data: dict[str, Any], *, where: Path) -> Tokenizer:
    try:
        return for_plain_text(Tokenizer.from_str(json.dumps(data, ensure_ascii=False)))
    except Exception as error:  # the Rust library raises bare Exception for any damaged content
        raise DataError("A tokenizer.json cannot be loaded.", where=where, value=str(error)[:300]) from None


def load_base(folder: Path) -> BaseTokenizer:
    """Return the base tokenizer of a Hugging Face folder.

    Raises:
        DataError: files are missing or damaged, the tokenizer is of a kind that cannot be extended (named), or its ids do not fit
            the model's rows.
    """
    path, model = folder / "tokenizer.json", None
    if not path.exists() and (folder / MODEL_NAME).exists():
        model = model_of(folder)
        data = tokenizer_json(model)
    else:
        data = read_object(path) if path.exists() else older_form(folder)
        if (folder / MODEL_NAME).exists() and has_byte_fallback(data):
            model = model_of(folder)
        refuse_other_kinds(path, data, model)
        if model is not None:
            refuse_other_pieces(folder, model, data["model"]["vocab"])
    num_rows = read_object(folder / "config.json").get("vocab_size")
    if isinstance(num_rows, bool) or not isinstance(num_rows, int) or num_rows < 1:
        raise DataError("config.json does not say how many rows the embedding has.", where=folder / "config.json", value=num_rows)
    tokenizer = tokenizer_from(data, where=path)
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= num_rows:
        raise DataError(
            "The base tokenizer has ids that its model has no row for.",
            where=folder,
            value=f"largest id {largest} ({printable(str(tokenizer.id_to_token(largest)))})",
            rule=f"ids below vocab_size {num_rows} of config.json",
            next_step="Use the tokenizer that belongs to this model.",
        )
    if model is not None:
        refuse_other_ids(folder, model, tokenizer, [*FORM_TEXTS, *texts_on_pieces(model)])
    return BaseTokenizer(folder, data, tokenizer, num_rows, added, special, family_of(data, tokenizer, model))


def family_of(data: dict[str, Any], tokenizer: Tokenizer, model: SentencePieceModel | None) -> Family:
    if not data["model"].get("byte_fallback"):
        return ByteLevelBpe()
    return SentencePieceBpe(tokenizer.get_vocab(with_added_tokens=True), model, prefix=dummy_prefix(tokenizer))


def model_of(folder: Path) -> SentencePieceModel:
    """Return the folder's tokenizer.model.

    Raises:
        DataError: it is damaged, or of a kind that cannot be extended.
    """
    model = read_model(folder / MODEL_NAME)
    refuse_other_models(folder / MODEL_NAME, model)
    return model


def older_form(folder: Path) -> dict[str, Any]:
    """Return as tokenizer.json what a folder says in an older form: GPT-2's vocab.json and merges.txt.

    The two files do not say how text is cut into words. GPT-2's own rule is known; a model of another type is refused.

    Raises:
        DataError: there is no such pair of files, it is not GPT-2's, or it is damaged.
    """
    path, ranks = folder / "tokenizer.json", sorted(folder.glob("*.tiktoken"))
    if ranks:
        raise DataError(
            "This version cannot extend a tiktoken file: it holds no rule of how text is cut, and no special tokens.",
            where=ranks[0],
            rule=SUPPORTED,
            next_step="Convert it once to a tokenizer.json (transformers.TikTokenConverter, with the model's own pattern); check its ids.",
        )
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return read_object(path)
    kind = read_object(folder / "config.json").get("model_type")
    if kind != "gpt2":
        raise DataError(
            "vocab.json and merges.txt do not say how this model cuts text into words.",
            where=folder,
            value=f"model_type {printable(str(kind))}",
            rule="a tokenizer.json, or GPT-2's own pair of files",
            next_step="Save the folder once with transformers' fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    vocab = read_object(folder / "vocab.json")
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError("merges.txt cannot be read.", where=folder / "merges.txt", value=str(error)[:300]) from None
    merges = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    separator = "<|endoftext|>"
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": vocab[separator], "content": separator, **special}] if separator in vocab else [],
        "normalizer": None, "pre_tokenizer": cut, "post_processor": None, "decoder": cut,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def has_byte_fallback(data: dict[str, Any]) -> bool:
    return isinstance(data.get("model"), dict) and bool(data["model"].get("byte_fallback"))


def refuse_other_kinds(path: Path, data: dict[str, Any], sentencepiece: SentencePieceModel | None = None) -> None:
    """Raise for every tokenizer that is not a plain BPE with all of its bytes: byte-level, or SentencePiece's with byte fallback."""
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise DataError("A tokenizer.json has no model with a vocabulary.", where=path)
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise unsupported(path, f"a {printable(str(kind))} tokenizer")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise unsupported(path, f"a BPE tokenizer with a {key}")
    if '"add_prefix_space": true' in json.dumps(data.get("pre_tokenizer")):
        raise unsupported(path, "a tokenizer that puts a space before each text (add_prefix_space): decoding does not give the text back")
    pieces = model["vocab"]
    if isinstance(pieces, dict) and ("" in pieces or len(set(map(str, pieces.values()))) < len(pieces)):
        raise DataError(
            "The base tokenizer has an empty piece, or two pieces with one id.", where=path, rule="each id has one piece, and none is empty"
        )
    if model.get("dropout"):
        raise unsupported(path, "a BPE tokenizer with dropout (its encoding is random)")
    if model.get("byte_fallback"):
        refuse_other_files(path, data, sentencepiece)
        return
    if '"ByteLevel"' not in json.dumps([data.get("pre_tokenizer"), data.get("decoder")]):
        raise unsupported(path, "a BPE tokenizer that is neither byte-level nor has byte fallback")
    missing = [byte for byte in ByteLevelBpe().missing_bytes(model["vocab"]) if byte in NEEDED_BYTES]
    if missing:
        raise DataError(
            "The base tokenizer lacks pieces for single bytes, so some text would be unknown.",
            where=path,
            value=f"{len(missing)} missing, first 0x{missing[0]:02x}",
            rule="each byte that assigned characters need has a piece",
        )


def separator_id(base: BaseTokenizer, separator: str) -> int:
    """Return the one id of the document separator.

    Raises:
        DataError: it is not exactly one token of this tokenizer; the special tokens are listed.
    """
    number = base.added.get(separator)
    if number is None:
        shown = ", ".join(f"{printable(content)} ({number})" for content, number in list(base.special.items())[:20]) or "none"
        raise DataError(
            "The document separator is not one special token of this tokenizer.",
            where="tokenizer.document_separator",
            value=separator,
            rule=f"special tokens of {base.folder.name}: {shown}",
            next_step="Set tokenizer.document_separator to one of them: the one that stood between documents when the base was trained.",
        )
    return number
