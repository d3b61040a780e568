"""SentencePiece BPE with byte fallback (Llama-2, Mistral, Baichuan, Gemma style): how its texts are cut, and how it is extended.

SentencePiece joins any two neighbours whose concatenation is a piece, best score first. So general text keeps its ids when no new
piece is the concatenation of two neighbours in it and every new score lies below all old ones: an old text is then first cut exactly
as before. A tokenizer.json says the same with one merge for each split of a piece into two pieces, in the order of the scores.
"""

from __future__ import annotations

import json
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, pre_tokenizers

from megatron_cpt.record.store import write_bytes, write_json
from megatron_cpt.record.tokenizer_file import BYTE_PIECE, SPACE_MARK
from megatron_cpt.vocab.family import Barred
from megatron_cpt.vocab.forced import Outcome
from megatron_cpt.vocab.merges import END, FIRST_CHARACTER, Character, Merge, WordTable, batches, neighbour_pairs, word_table
from megatron_cpt.vocab.sentencepiece_file import NORMAL, UNUSED, USER_DEFINED, Piece, SentencePieceModel, extended_model
from megatron_cpt.vocab.sentencepiece_terms import force_terms, splits

MODEL_NAME = "tokenizer.model"
CONFIG_NAME = "tokenizer_config.json"
PLAIN_CLASS = "PreTrainedTokenizerFast"
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PieceRules:
    """Which strings the base's own trainer would take for a piece (trainer_spec of the model; SentencePiece's defaults without one)."""

    max_chars: int = 16
    one_script: bool = True
    one_word: bool = True
    digits_apart: bool = False

    @classmethod
    def of(cls, model: SentencePieceModel | None, pieces: Iterable[str]) -> PieceRules:
        """Return a model's rules; without one, digits stand apart where no piece joins two of them."""
        if model is None:
            return cls(digits_apart=not any(sum(map(is_digit, piece)) > 1 for piece in pieces if not BYTE_PIECE.fullmatch(piece)))
        return cls(model.max_piece_chars, model.split_by_unicode_script, model.split_by_whitespace, model.split_digits)

    def allows(self, piece: str) -> bool:
        text = piece.removeprefix(SPACE_MARK)
        if len(piece) > self.max_chars or (self.digits_apart and len(text) > 1 and any(map(is_digit, text))):
            return False
        if self.one_word and SPACE_MARK in text:
            return False
        return not self.one_script or all(same_script(pair) for pair in pairwise(text))


_SCRIPTS = pre_tokenizers.UnicodeScripts()  # cuts where SentencePiece's trainer sees another script
_SAME: dict[tuple[str, str], bool] = {}


def same_script(pair: tuple[str, str]) -> bool:
    if (known := _SAME.get(pair)) is None:
        if len(_SAME) > 1 << 20:
            _SAME.clear()
        known = _SAME[pair] = SPACE_MARK in pair or len(_SCRIPTS.pre_tokenize_str("".join(pair))) == 1
    return known


def is_digit(character: str) -> bool:
    return unicodedata.category(character) == "Nd"


class SentencePieceBpe:
    """The family; `model` is the base's tokenizer.model, None where it has a tokenizer.json only."""

    title = "SentencePiece BPE with byte fallback"

    def __init__(self, vocab: Mapping[str, int], model: SentencePieceModel | None, *, prefix: str) -> None:
        self.model = model
        self._vocab = vocab
        self._prefix = prefix
        self._rules = PieceRules.of(model, vocab)
        self._user_defined = frozenset(piece.text for piece in model.pieces if piece.kind == USER_DEFINED) if model else frozenset()

    @property
    def remark(self) -> str:
        """How texts and ids differ in this family."""
        prefix = {"": "no dummy prefix", "always": "one dummy prefix a document"}.get(
            self._prefix, "one dummy prefix a document that does not begin with a space, whose first space is lost"
        )
        return f"{prefix}, spaces kept as they are, as in the base; a U+2581 in a text comes back as a space"

    def piece_bytes(self, piece: str) -> bytes | None:
        """Return the bytes of text that a piece stands for."""
        if found := BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace(SPACE_MARK, " ").encode("utf-8")

    def missing_bytes(self, vocab: Mapping[str, int]) -> list[int]:
        """Return the bytes that have no piece of their own."""
        return [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab]

    # --- learning ---------------------------------------------------------------------------------------------------

    @cached_property
    def _byte_of(self) -> Ids:
        """The byte of each id, -1 where it is no byte piece."""
        table = np.full(max(self._vocab.values()) + 1, -1, dtype=np.int32)
        for piece, number in self._vocab.items():
            if found := BYTE_PIECE.fullmatch(piece):
                table[number] = int(found[1], 16)
        return table

    @cached_property
    def _begins_word(self) -> npt.NDArray[np.bool_]:
        """Whether a piece begins a word, by id: it holds the space mark, or nothing may be joined to it."""
        table = np.zeros(self._byte_of.size, dtype=bool)
        for piece, number in self._vocab.items():
            table[number] = (piece.startswith(SPACE_MARK) and self._rules.one_word) or self._stands_alone(piece)
        return table

    @cached_property
    def _alone(self) -> npt.NDArray[np.bool_]:
        table = np.zeros(self._byte_of.size, dtype=bool)
        for piece, number in self._vocab.items():
            table[number] = self._stands_alone(piece)
        return table

    def _stands_alone(self, piece: str) -> bool:
        """Nothing is joined to line ends, which SentencePiece's trainer never sees, to runs of spaces, to digits that stand apart, and to
        user-defined pieces.
        """
        if piece in self._user_defined:
            return True
        text = piece.removeprefix(SPACE_MARK)
        return "\n" in piece or SPACE_MARK in text or (self._rules.digits_apart and any(map(is_digit, text)))

    def barred(self, tokenizer: Tokenizer, texts: Iterable[str]) -> Barred:
        """Return every string that two neighbours in general text make, and its characters that have no piece of their own."""
        characters: set[str] = set()

        def watched() -> Iterable[str]:
            for text in texts:
                characters.update(text)
                yield text

        pairs, num_documents, num_bytes = neighbour_pairs(tokenizer, watched())
        left, right = pairs >> 32, pairs & 0xFFFFFFFF
        whole = (self._byte_of[left] < 0) & (self._byte_of[right] < 0)
        piece_of = {number: piece for piece, number in self._vocab.items()}
        joined = {piece_of[a] + piece_of[b] for a, b in zip(left[whole].tolist(), right[whole].tolist(), strict=True)}
        none = np.empty(0, dtype=np.int64)
        return Barred(none, frozenset(joined | (characters - self._vocab.keys())), num_documents, num_bytes)

    def words(self, tokenizer: Tokenizer, texts: Iterable[str]) -> WordTable:
        """Return the distinct words, cut before each space mark; a character that takes several byte pieces is one place in them."""
        counts: dict[bytes, int] = {}
        numbers: dict[str, int] = {}
        num_tokens = 0
        for batch in batches(texts):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                ids = np.array(encoding.ids, dtype=np.int32)
                num_tokens += ids.size
                if not ids.size:
                    continue
                ids = self._with_characters(ids, numbers)
                is_piece = ids >= 0
                begins = np.where(is_piece, self._begins_word[ids * is_piece], ids == END)
                alone = np.where(is_piece, self._alone[ids * is_piece], ids == END)
                cuts = [0, *(np.flatnonzero(begins[1:] | alone[:-1]) + 1).tolist(), ids.size]
                packed = ids.tobytes()
                for start, end in pairwise(cuts):
                    if end - start > 1 or ids[start] <= FIRST_CHARACTER:
                        word = packed[4 * start : 4 * end]
                        counts[word] = counts.get(word, 0) + 1
        id_of_byte = {byte: self._vocab[f"<0x{byte:02X}>"] for byte in range(256)}
        characters = {number: Character(text, tuple(map(id_of_byte.__getitem__, text.encode("utf-8")))) for text, number in numbers.items()}
        return word_table(counts, num_tokens, characters)

    def _with_characters(self, ids: Ids, numbers: dict[str, int]) -> Ids:
        """Replace each run of byte pieces by one number a character, and by `END` for a character of one byte."""
        is_byte = self._byte_of[ids] >= 0
        if not is_byte.any():
            return ids
        edges = np.flatnonzero(np.diff(is_byte.astype(np.int8), prepend=0, append=0)).tolist()
        parts, done = [], 0
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            text = bytes(self._byte_of[ids[start:end]].tolist()).decode("utf-8")
            named = [numbers.setdefault(each, FIRST_CHARACTER - len(numbers)) if each > "\x7f" else END for each in text]
            parts += [ids[done:start], np.array(named, dtype=np.int32)]
            done = end
        return np.concatenate([*parts, ids[done:]])

    def force(
        self,
        tokenizer: Tokenizer,
        terms: Sequence[str],
        *,
        first_new_id: int,
        barred: Barred,
        domain: Callable[[], Iterator[str]],
        general: Callable[[], Iterator[str]],
        max_share: float,
    ) -> tuple[list[Merge], list[Outcome]]:
        """Return the pieces for a user's terms, and what became of each term."""
        return force_terms(
            tokenizer,
            terms,
            vocab=self._vocab,
            first_new_id=first_new_id,
            in_general=barred.strings,
            refuses=self._builds_an_old_piece,
            crosses=lambda term, parts: (
                (" " in term and self._rules.one_word) or (len(parts) > 1 and not self._user_defined.isdisjoint(parts))
            ),
            domain=domain,
            general=general,
            max_share=max_share,
        )

    def refuses(self, barred: Barred) -> Callable[[str, set[str]], bool]:
        """Return the test whether a piece may not be added.

        It stands in general text, breaks the trainer's rules, or would build an old piece in a new way: for then an old merge could
        follow a new one, and the two forms of the vocabulary would have to rank it anew.
        """

        def refused(piece: str, taken: set[str]) -> bool:
            return piece in barred.strings or not self._rules.allows(piece) or self._builds_an_old_piece(piece, taken)

        return refused

    @cached_property
    def _sorted(self) -> tuple[list[str], list[str]]:
        return sorted(self._vocab), sorted(piece[::-1] for piece in self._vocab)

    def _builds_an_old_piece(self, piece: str, taken: set[str]) -> bool:
        """Say whether an old piece is this one and another."""
        forward, backward = self._sorted
        return any(whole[len(piece) :] in taken for whole in _beginning_with(piece, forward)) or any(
            whole[len(piece) :][::-1] in taken for whole in _beginning_with(piece[::-1], backward)
        )

    # --- writing ----------------------------------------------------------------------------------------------------

    def pairs(self, merge: Merge, piece_of: Mapping[int, str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
        return splits(merge.piece, vocab)

    def write_beside(self, folder: Path, base_folder: Path, data: dict[str, Any], merges: Sequence[Merge], *, num_base_ids: int) -> None:
        """Write tokenizer.model where the base has one, and a tokenizer_config.json that lets transformers take the files as they are."""
        if self.model is not None:
            write_bytes(folder / MODEL_NAME, self._extended_model(data, merges, num_base_ids) if merges else self.model.data)
        path = base_folder / CONFIG_NAME
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else self._config()
        # transformers 5's own Llama classes drop one leading space of a text, whatever the file says
        write_json(folder / CONFIG_NAME, {**config, "tokenizer_class": PLAIN_CLASS})

    def _extended_model(self, data: dict[str, Any], merges: Sequence[Merge], num_base_ids: int) -> bytes:
        """Return the model's file with the new pieces; an id of the base without a piece there gets one that is never used."""
        assert self.model is not None
        name_of = {number: piece for piece, number in data["model"]["vocab"].items()}
        lowest = min(piece.score for piece in self.model.pieces if piece.kind == NORMAL)
        filling = [
            Piece(name_of.get(number, f"<unused_row_{number}>"), 0.0, UNUSED) for number in range(len(self.model.pieces), num_base_ids)
        ]
        scores = falling_scores(lowest, len(merges))
        added = [Piece(merge.piece, score, NORMAL) for merge, score in zip(merges, scores, strict=True)]
        return extended_model(self.model, [*filling, *added])

    def _config(self) -> dict[str, Any]:
        """Return what transformers has to know of a base without a config of its own."""
        marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return {**{key: mark for key, mark in marks.items() if mark in self._vocab}, "clean_up_tokenization_spaces": False}


def falling_scores(above: float, count: int) -> list[float]:
    """Return scores that fall in steps of 1 below another, or of the next smaller 32-bit number where that step is lost.

    Llama's and Mistral's runs of spaces have a score of -1e9, where neighbouring 32-bit numbers are 64 apart.
    """
    scores, last = [], np.float32(above)
    for _ in range(count):
        last = min(np.float32(last - np.float32(1)), np.nextafter(last, np.float32(-np.inf)))
        scores.append(float(last))
    return scores


def _beginning_with(start: str, words: Sequence[str]) -> Iterable[str]:
    """Yield the longer ones of sorted words that begin with a string."""
    place = bisect_left(words, start)
    while place < len(words) and words[place].startswith(start):
        if words[place] != start:
            yield words[place]
        place += 1
