"""Vocabularies of their own, trained on the domain sample, for comparison with base and extension.

SentencePiece BPE and Unigram, and byte-level BPE of the `tokenizers` library. Sizes are pieces beside single bytes and marks, so that
all kinds of one size can spell equally much.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.store import write_bytes, write_json, write_text
from megatron_cpt.record.tokenizer_file import for_plain_text
from megatron_cpt.vocab.measure import BYTE_PIECE, SPACE_MARK, Vocabulary, vocabulary, vocabulary_of
from megatron_cpt.vocab.sample import MAX_LINE_BYTES, Counts, Sample
from megatron_cpt.vocab.sentencepiece_file import without_paths

KINDS = {"bpe": "SentencePiece BPE", "unigram": "SentencePiece Unigram", "byte_level": "byte-level BPE"}
NORMALISERS = ("identity", "nfkc")
LEAST_COVERAGE = 0.98  # SentencePiece refuses a smaller character coverage
NUM_META_PIECES = 256 + 3  # byte pieces, <unk>, <s>, </s>
NUM_THREADS = 16  # SentencePiece's own default; a fixed number, because its sums depend on it, so that every host trains the same
MIN_COUNT = 2  # a pair seen once is no pattern
# Bytes of memory that a trainer takes for an ASCII byte and for any other byte of its text, as benchmarks/vocab_train.py measures them:
# words of a script without spaces are long and seldom alike. A trainer gets no more text than fits into the budget.
MEMORY_OF_BYTE = {"bpe": (12, 34), "unigram": (24, 24), "byte_level": (4, 90)}
MEMORY_BUDGET = 1.6e9


@dataclass(frozen=True)
class Candidate:
    """A trained vocabulary.

    Attributes:
        num_pieces: pieces beside bytes and marks; above the size asked for where the script needs it (`plan_size`).
        model: the file that other programs load: a SentencePiece model, or a tokenizer.json.
        sample: what it was trained on.
    """

    kind: str
    num_pieces: int
    character_coverage: float
    vocabulary: Vocabulary
    model: bytes
    sample: Sample

    @property
    def name(self) -> str:
        return f"{KINDS[self.kind]} {self.num_pieces:,}"


def bound_of(kind: str, sample: Sample) -> int:
    """Return how many bytes of a sample a trainer may get, so that it stays within the budget of memory."""
    ascii_bytes = int(sample.characters[:0x80].sum())
    of_ascii, of_other = MEMORY_OF_BYTE[kind]
    need = of_ascii * ascii_bytes + of_other * (sample.num_bytes - ascii_bytes)
    return int(sample.num_bytes * min(1.0, MEMORY_BUDGET / need))


def plan_size(counts: Counts, num_pieces: int) -> tuple[int, float]:
    """Return `(pieces, character coverage)` for a fair comparison at about `num_pieces`.

    At most half of the pieces go to single characters; the rest of a script goes to byte pieces. SentencePiece wants 98 % of the text's
    characters covered, so a script that needs more than that half for it gets more pieces.
    """
    ordered = np.sort(counts[counts > 0])[::-1]
    covered = np.cumsum(ordered) / ordered.sum()
    kept = min(max(num_pieces // 2, int(np.searchsorted(covered, LEAST_COVERAGE)) + 1), ordered.size)
    # just below the exact share, so that rounding does not ask for one character more
    coverage = 1.0 if kept == ordered.size else max(LEAST_COVERAGE, float(covered[kept - 1]) - 1e-7)
    return max(num_pieces, 2 * kept), coverage


def refuse_rewriting(sample: Sample, normaliser: str) -> None:
    """Raise when a normaliser would change the sample: such pieces never meet the text as it is.

    Raises:
        ConfigError: the normaliser is unknown.
        DataError: it rewrites lines; the error has their number and the first example.
    """
    if normaliser not in NORMALISERS:
        raise ConfigError(
            "The normaliser is unknown.", where="tokenizer.compare.normaliser", value=normaliser, rule=f"one of {', '.join(NORMALISERS)}"
        )
    if normaliser == "identity":
        return
    import sentencepiece  # noqa: PLC0415 - only the comparison needs it

    change = sentencepiece.SentencePieceNormalizer(
        rule_name=normaliser, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    changed, example = 0, ""
    for number, line in enumerate(sample.lines(), 1):
        text = line[:-1].decode("utf-8")
        back = change.normalize(text)
        if back != text:
            changed += 1
            example = example or first_difference(text, back, number)
    if changed:
        raise DataError(
            f"The normaliser {normaliser} would rewrite the corpus.",
            where="tokenizer.compare.normaliser",
            value=f"{changed:,} of {sample.line_ends.size:,} lines; first: {example}",
            rule="a tokenizer gives back the text that it was given",
            next_step="Use identity, or normalise the corpus before the corpus stage.",
        )


def first_difference(text: str, back: str, number: int) -> str:
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"line {number}, character {place + 1}: {text[place : place + 10]!r} becomes {back[place : place + 10]!r}"


def train_candidate(kind: str, sample: Sample, *, num_pieces: int, like: Tokenizer | None = None) -> Candidate:
    """Train one vocabulary of about `num_pieces` pieces beside bytes and marks, on as much of the sample as memory allows.

    The identity normaliser, byte fallback and no dummy prefix: the text comes back as it was.

    Args:
        like: a byte-level candidate takes over this tokenizer's way of cutting words, where that is byte-level.

    Raises:
        DataError: the sample does not give so many pieces; the error names the most that it gives.
    """
    bounded = sample.bounded(bound_of(kind, sample))
    if kind == "byte_level":
        return _train_byte_level(bounded, num_pieces, like)
    return _train_sentencepiece(kind, bounded, num_pieces)


def too_many(kind: str, num_pieces: int, most: int) -> DataError:
    return DataError(
        f"The text does not give a {KINDS[kind]} vocabulary of that size.",
        where="tokenizer.compare.sizes",
        value=num_pieces,
        rule=f"at most {most} pieces beside bytes and marks",
        next_step=f"Ask for {most} or less, or for a larger sample.",
    )


def _train_sentencepiece(kind: str, sample: Sample, num_pieces: int) -> Candidate:
    import sentencepiece  # noqa: PLC0415 - only the comparison needs it

    size, coverage = plan_size(sample.characters, num_pieces)
    written = io.BytesIO()
    part = sample.path.with_name(f"{sample.path.name}.part")
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=[str(sample.for_sentencepiece(part))],  # it reads a file faster than it takes lines from Python
            model_writer=written,
            model_type=kind,
            vocab_size=size + NUM_META_PIECES,
            character_coverage=coverage,
            max_sentence_length=MAX_LINE_BYTES,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            hard_vocab_limit=False,
            num_threads=NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece could not train a {kind} vocabulary of {size} pieces.", value=str(error)[:300]) from None
    finally:
        part.unlink(missing_ok=True)
    model = without_paths(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    num_ids = processor.get_piece_size()
    if num_ids - NUM_META_PIECES < num_pieces:
        raise too_many(kind, num_pieces, num_ids - NUM_META_PIECES)
    pieces: list[bytes | None] = []
    for number in range(num_ids):
        byte = BYTE_PIECE.fullmatch(processor.id_to_piece(number)) if processor.is_byte(number) else None
        text = processor.id_to_piece(number).replace(SPACE_MARK, " ").encode("utf-8")
        is_mark = processor.is_control(number) or processor.is_unknown(number)
        pieces.append(None if is_mark else bytes.fromhex(byte[1]) if byte else text)
    fitted = vocabulary(processor.encode, pieces, filter(processor.is_byte, range(num_ids)), unknown_id=processor.unk_id())
    return Candidate(kind, num_ids - NUM_META_PIECES, coverage, fitted, model, sample)


def _train_byte_level(sample: Sample, num_pieces: int, like: Tokenizer | None) -> Candidate:
    tokenizer = Tokenizer(models.BPE())
    cutter = like.pre_tokenizer if like is not None and isinstance(like.decoder, decoders.ByteLevel) else None
    tokenizer.pre_tokenizer = cutter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_pieces,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=MIN_COUNT,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.blocks(), trainer)
    num_ids = tokenizer.get_vocab_size()
    if num_ids - 256 < num_pieces:
        raise too_many("byte_level", num_pieces, num_ids - 256)
    fitted = vocabulary_of(for_plain_text(tokenizer), num_ids)
    return Candidate("byte_level", num_ids - 256, 1.0, fitted, tokenizer.to_str(pretty=True).encode("utf-8"), sample)


def save_candidate(folder: Path, candidate: Candidate) -> None:
    """Write a candidate as other programs load it: `tokenizer.model`, or `tokenizer.json` with the configuration of transformers."""
    if candidate.kind != "byte_level":
        write_bytes(folder / "tokenizer.model", candidate.model)
        return
    write_text(folder / "tokenizer.json", json.dumps(json.loads(candidate.model), ensure_ascii=False, indent=2))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False})
