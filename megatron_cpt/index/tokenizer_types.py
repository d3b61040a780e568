"""Megatron-LM's tokenizer types, as `--tokenizer-type` names them, to codecs; the others are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.index.codec import Codec, HfCodec, SentencePieceCodec
from megatron_cpt.record.store import read_json
from megatron_cpt.record.tokenizer_file import for_plain_text

SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
TYPES = ("HuggingFaceTokenizer", "GPT2BPETokenizer", *SENTENCEPIECE_TYPES)
REFUSED_TYPES = {
    "BertWordPieceLowerCase": "WordPiece vocabularies are not indexed here: use a byte-level or SentencePiece BPE",
    "BertWordPieceCase": "WordPiece vocabularies are not indexed here: use a byte-level or SentencePiece BPE",
    "TikTokenizer": "a tiktoken file holds neither its split pattern nor its special tokens: convert it to a tokenizer.json first",
    "NullTokenizer": "it reads texts of numbers, for tests of Megatron-LM itself",
    "MultimodalTokenizer": "images are not indexed here",
}
GPT2_END = "<|endoftext|>"


def codec_of(kind: str, *, model: str | None, vocab_file: str | None, merge_file: str | None) -> Codec:
    """Return the codec of a tokenizer.

    Args:
        kind: one of `TYPES`.
        model: a `tokenizer.json` or a folder that holds one, or a SentencePiece `.model`.
        vocab_file, merge_file: GPT-2's two files.

    Raises:
        ConfigError: the type is refused, or the flag for its files is missing.
        DataError: a file is missing or cannot be loaded.
    """
    if kind not in TYPES:
        raise ConfigError(
            "This tokenizer type is refused.", where="--tokenizer-type", value=kind,
            rule=REFUSED_TYPES.get(kind, f"known: {', '.join(TYPES)}"),
        )  # fmt: skip
    if kind == "GPT2BPETokenizer":
        if not vocab_file or not merge_file:
            raise ConfigError("GPT2BPETokenizer reads two files, and fetches none.", where="--vocab-file, --merge-file")
        return _gpt2(Path(vocab_file), Path(merge_file))
    if not model:
        raise ConfigError(f"{kind} reads a file.", where="--tokenizer-model")
    path = Path(model)
    if kind in SENTENCEPIECE_TYPES:
        return SentencePieceCodec(path / "tokenizer.model" if path.is_dir() else path)
    if path.is_dir() and not (path / "tokenizer.json").is_file() and (path / "tokenizer.model").is_file():
        raise ConfigError(
            "The folder holds a SentencePiece model and no tokenizer.json.", where=path, next_step="--tokenizer-type SentencePieceTokenizer"
        )
    if not path.exists():
        raise DataError(
            "There is no such tokenizer.",
            where="--tokenizer-model",
            value=model,
            rule="a folder or file on this machine; nothing is fetched",
        )
    return HfCodec.from_file(path / "tokenizer.json" if path.is_dir() else path)


def end_id_of(codec: Codec, *, kind: str, model: str | None, named: str | None) -> tuple[int, str]:
    """Return the id and the name of the end-of-document token: the one that was named, else the tokenizer's own.

    Raises:
        ConfigError: the tokenizer names none.
        DataError: it is not one id of this tokenizer.
    """
    token = named or _own_end(codec, kind, model)
    if token is None:
        raise ConfigError(
            "The tokenizer does not say which token ends a document.", where="--eod-token", rule=f"special tokens: {_listed(codec)}",
            next_step="Name it with --eod-token.",
        )  # fmt: skip
    number = codec.id_of(token)
    if number is None:
        raise DataError(
            "The end-of-document token is not one token of this tokenizer.", where="--eod-token", value=token,
            rule=f"special tokens: {_listed(codec)}",
        )  # fmt: skip
    return number, token


def _listed(codec: Codec) -> str:
    return ", ".join(codec.special_texts()[:20]) or "none"


def _own_end(codec: Codec, kind: str, model: str | None) -> str | None:
    if isinstance(codec, SentencePieceCodec):
        return codec.end_token
    if kind == "GPT2BPETokenizer":
        return GPT2_END
    path = Path(model or "")
    settings = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    if not settings.is_file():
        return None
    data = read_json(settings)
    token = data.get("eos_token") if isinstance(data, dict) else None
    if isinstance(token, dict):  # an AddedToken in plain form
        token = token.get("content")
    return token if isinstance(token, str) else None


def _gpt2(vocab_file: Path, merge_file: Path) -> HfCodec:
    """GPT-2's byte-level BPE from its `vocab.json` and `merges.txt`."""
    for path in (vocab_file, merge_file):
        if not path.is_file():
            raise DataError("A tokenizer's file is missing.", where=path)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab_file), str(merge_file)))
    except Exception as error:  # the Rust library raises bare Exception for any damaged content
        raise DataError("The tokenizer's files cannot be loaded.", where=vocab_file, value=str(error)[:300]) from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(GPT2_END) is not None:
        tokenizer.add_special_tokens([AddedToken(GPT2_END, special=True)])
    data = json.loads(tokenizer.to_str())
    return HfCodec(for_plain_text(tokenizer), json.dumps(data, ensure_ascii=False, sort_keys=True).encode("utf-8"))
