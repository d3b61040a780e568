"""How well a vocabulary fits a text and a list of terms: the same figures for every kind of tokenizer, all of them in one pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from megatron_cpt.record.tokenizer_file import continuing
from megatron_cpt.vocab.byte_level import is_utf8, piece_bytes
from megatron_cpt.vocab.merges import batches

Encode = Callable[[list[str]], list[list[int]]]
# One word: one CJK ideograph or kana, or a run of other characters without white space. So Chinese has a fertility too.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{CJK}]|[^\\s{CJK}]+")
NUM_CODE_POINTS = 0x110000
MAX_LENGTH = 12  # longer pieces are counted together
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_MARK = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary ready to be measured.

    Attributes:
        encode: a batch of texts to their ids.
        lengths: per id the characters of its piece; 0 where it is no valid UTF-8 on its own.
        fallbacks: per id, whether it is one byte that stands in for a character without a piece.
        characters: per code point, whether a piece is it or holds it.
        unknown_id: the id for what cannot be encoded, None where the vocabulary has none.
        first_new_id: ids from here on count as added.
        encode_inside: the same for texts that stand behind others: without the space that SentencePiece puts before a text.
    """

    encode: Encode
    lengths: npt.NDArray[np.int64]
    fallbacks: npt.NDArray[np.bool_]
    characters: npt.NDArray[np.bool_]
    unknown_id: int | None
    first_new_id: int | None = None
    encode_inside: Encode | None = None


@dataclass(frozen=True)
class Fit:
    """A vocabulary on a text.

    Attributes:
        fertility: tokens per word; a word is one CJK character or a run of other characters between spaces.
        unknown_rate: share of tokens that are the unknown token.
        byte_fragment_rate: share of tokens that are no valid UTF-8 on their own (a part of a character).
        byte_fallback_rate: share of tokens that are one byte in place of a character without a piece.
        character_coverage: share of the text's characters that are a piece or part of one, bytes left out;
            `distinct_coverage` the same of its distinct characters.
        ids_used: distinct ids that the text uses, and `new_ids_used` those of them that were added.
        token_lengths: tokens by the characters of their piece, from 0 (a part of a character) to 12 and more.
    """

    num_documents: int
    num_bytes: int
    num_chars: int
    num_tokens: int
    bytes_per_token: float
    tokens_per_char: float
    fertility: float
    unknown_rate: float
    byte_fragment_rate: float
    byte_fallback_rate: float
    character_coverage: float
    distinct_coverage: float
    num_ids: int
    ids_used: int
    new_ids_used: int
    token_lengths: list[int]


def vocabulary(
    encode: Encode, pieces: Sequence[bytes | None], byte_ids: Iterable[int], *, unknown_id: int | None, first_new_id: int | None = None
) -> Vocabulary:
    """Return a vocabulary from the bytes of its pieces, None for an id that stands for no text; `byte_ids` are the byte fallbacks."""
    texts = [piece.decode("utf-8") if piece is not None and is_utf8(piece) else "" for piece in pieces]
    fallbacks = np.zeros(len(pieces), dtype=bool)
    fallbacks[list(byte_ids)] = True
    characters = np.zeros(NUM_CODE_POINTS, dtype=bool)
    held = "".join(text for text, fallback in zip(texts, fallbacks.tolist(), strict=True) if not fallback)
    characters[code_points(held)] = True
    # an id without text of its own, a special token, is a whole: it is no part of a character
    lengths = [1 if piece is None else len(text) for piece, text in zip(pieces, texts, strict=True)]
    return Vocabulary(encode, np.array(lengths, dtype=np.int64), fallbacks, characters, unknown_id, first_new_id)


def vocabulary_of(tokenizer: Tokenizer, num_ids: int, *, first_new_id: int | None = None) -> Vocabulary:
    """Return the vocabulary of a byte-level or byte-fallback BPE of the `tokenizers` library with `num_ids` rows."""
    is_sentencepiece = bool(getattr(tokenizer.model, "byte_fallback", False))
    pieces: list[bytes | None] = [None] * num_ids
    byte_ids = []
    for piece, number in tokenizer.get_vocab(with_added_tokens=True).items():
        byte = BYTE_PIECE.fullmatch(piece) if is_sentencepiece else None
        if byte:
            pieces[number] = bytes.fromhex(byte[1])
        elif is_sentencepiece:
            pieces[number] = piece.replace(SPACE_MARK, " ").encode("utf-8")
        else:
            pieces[number] = piece_bytes(piece)
        data = pieces[number]
        if byte or (not is_sentencepiece and data is not None and len(data) == 1 and data[0] >= 0x80):
            byte_ids.append(number)
    for number, token in tokenizer.get_added_tokens_decoder().items():
        if token.special:
            pieces[number] = None  # it stands for no text
    unknown = getattr(tokenizer.model, "unk_token", None)
    inside = continuing(tokenizer)
    found = vocabulary(
        lambda batch: [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)],
        pieces,
        byte_ids,
        unknown_id=tokenizer.token_to_id(unknown) if unknown else None,
        first_new_id=first_new_id,
    )
    return replace(
        found, encode_inside=lambda batch: [encoding.ids for encoding in inside.encode_batch_fast(batch, add_special_tokens=False)]
    )


def code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def measure(vocabularies: dict[str, Vocabulary], texts: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Return the figures of each vocabulary on the texts (`Fit` as plain data), None when they hold nothing; they are read once."""
    uses = {name: np.zeros(each.lengths.size, dtype=np.int64) for name, each in vocabularies.items()}
    counts = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
    documents = num_bytes = words = 0
    for batch in batches(texts):
        joined = "".join(batch)
        counts += np.bincount(code_points(joined), minlength=NUM_CODE_POINTS)
        documents += len(batch)
        num_bytes += len(joined.encode("utf-8"))
        words += sum(1 for text in batch for _ in WORD.finditer(text))
        for name, each in vocabularies.items():
            use = uses[name]
            for ids in each.encode(batch):
                use += np.bincount(np.array(ids, dtype=np.int64), minlength=use.size)
    if not words:
        return dict.fromkeys(vocabularies)
    size = {"num_documents": documents, "num_bytes": num_bytes, "num_chars": int(counts.sum())}
    return {name: asdict(_fit(each, uses[name], counts, num_words=words, size=size)) for name, each in vocabularies.items()}


def _fit(each: Vocabulary, use: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], *, num_words: int, size: dict[str, int]) -> Fit:
    tokens, chars = int(use.sum()), size["num_chars"]
    lengths = np.bincount(np.minimum(each.lengths, MAX_LENGTH), weights=use, minlength=MAX_LENGTH + 1)
    return Fit(
        **size,
        num_tokens=tokens,
        bytes_per_token=size["num_bytes"] / tokens,
        tokens_per_char=tokens / chars,
        fertility=tokens / num_words,
        unknown_rate=0.0 if each.unknown_id is None else int(use[each.unknown_id]) / tokens,
        byte_fragment_rate=int(use[each.lengths == 0].sum()) / tokens,
        byte_fallback_rate=int(use[each.fallbacks].sum()) / tokens,
        character_coverage=int(counts[each.characters].sum()) / chars,
        distinct_coverage=np.count_nonzero(counts[each.characters]) / np.count_nonzero(counts),
        num_ids=use.size,
        ids_used=int(np.count_nonzero(use)),
        new_ids_used=0 if each.first_new_id is None else int(np.count_nonzero(use[each.first_new_id :])),
        token_lengths=lengths.astype(np.int64).tolist(),
    )


def measure_terms(vocabularies: dict[str, Vocabulary], terms: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return per vocabulary the share of terms that are one token and the mean tokens of a term.

    A term is cut as it stands inside a text, without and with a space before it; the shorter of both counts.
    """
    found = {}
    for name, each in vocabularies.items():
        encode = each.encode_inside or each.encode
        alone, spaced = encode(list(terms)), encode([f" {term}" for term in terms])
        tokens = [min(len(a), len(b)) for a, b in zip(alone, spaced, strict=True)]
        found[name] = {"share_of_one_token": sum(count == 1 for count in tokens) / len(terms), "tokens_per_term": sum(tokens) / len(terms)}
    return found
