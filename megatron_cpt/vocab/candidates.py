"""SentencePiece BPE and Unigram vocabularies trained on the domain sample, for comparison with the extension."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.errors import DataError
from megatron_cpt.vocab.byte_level import is_utf8
from megatron_cpt.vocab.measure import Encode

MAX_SENTENCE_BYTES = 4096
LEAST_COVERAGE = 0.98  # the library refuses a smaller character coverage
NUM_META_PIECES = 256 + 3  # byte pieces, <unk>, <s>, </s>
# the library drops a sentence that holds its own marks: space (U+2581), unknown (U+2585)
RESERVED = ("\u2581", "\u2585")


@dataclass(frozen=True)
class Candidate:
    """A trained SentencePiece vocabulary, ready to be measured."""

    kind: str
    num_pieces: int
    character_coverage: float
    encode: Encode
    fragments: npt.NDArray[np.bool_]
    unknown_id: int


@dataclass(frozen=True)
class Sentences:
    """A sample cut to the trainer's line limit, with the account of its characters."""

    lines: list[str]
    chars_in: int
    chars_trained: int
    newlines: int
    reserved: int


def cut(line: str) -> Iterator[str]:
    """Yield a line in parts of at most `MAX_SENTENCE_BYTES` bytes; longer ones would be dropped by the trainer."""
    while len(line.encode("utf-8")) > MAX_SENTENCE_BYTES:
        part = line[: MAX_SENTENCE_BYTES // 4]  # a character has at most 4 bytes
        yield part
        line = line[len(part) :]
    if line:
        yield line


def sentences(texts: Iterable[str]) -> Sentences:
    """Split texts at newlines and at the line limit; every character is trained on, is a newline, or is one of the trainer's marks."""
    lines: list[str] = []
    chars_in = newlines = reserved = 0
    for text in texts:
        chars_in += len(text)
        newlines += text.count("\n")
        reserved += sum(text.count(mark) for mark in RESERVED)
        for mark in RESERVED:
            text = text.replace(mark, "")  # noqa: PLW2901
        for line in text.split("\n"):
            lines += cut(line)
    trained = sum(map(len, lines))
    assert chars_in == trained + newlines + reserved, "a character was lost on the way to the trainer"
    return Sentences(lines, chars_in, trained, newlines, reserved)


def plan_size(lines: list[str], num_pieces: int) -> tuple[int, float]:
    """Return `(pieces, character coverage)` for a fair comparison at about `num_pieces`.

    At most half of the pieces go to single characters; the rest of a script goes to byte pieces. The trainer wants 98 % of the text's
    characters covered, so a script that needs more than that half for it gets more pieces.
    """
    counts = Counter("".join(lines))
    total, covered, kept = counts.total(), 0, 0
    for _, count in counts.most_common():
        if kept >= num_pieces // 2 and covered / total >= LEAST_COVERAGE:
            break
        covered, kept = covered + count, kept + 1
    # just below the exact share, so that rounding does not ask for one character more
    return max(num_pieces, 2 * kept), max(LEAST_COVERAGE, covered / total - 1e-7) if kept < len(counts) else 1.0


def train_candidate(kind: str, sample: Sentences, *, num_pieces: int) -> Candidate:
    """Train one vocabulary of about `num_pieces` pieces beside bytes and marks: identity normaliser, byte fallback, one thread.

    Raises:
        DataError: the sample does not allow such a vocabulary; the library's reason is given.
    """
    import sentencepiece  # noqa: PLC0415 - only the comparison needs it

    size, coverage = plan_size(sample.lines, num_pieces)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample.lines),
            model_writer=model,
            model_type=kind,
            vocab_size=size + NUM_META_PIECES,
            character_coverage=coverage,
            max_sentence_length=MAX_SENTENCE_BYTES,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece could not train a {kind} vocabulary of {size} pieces.", value=str(error)[:300]) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return Candidate(kind, size, coverage, processor.encode, fragments_of(processor), processor.unk_id())


def fragments_of(processor: Any) -> npt.NDArray[np.bool_]:
    """Return per id whether it is a byte piece above 0x7f: a part of a character."""
    return np.array(
        [
            processor.is_byte(number) and not is_utf8(bytes([int(processor.id_to_piece(number)[1:-1], 16)]))
            for number in range(processor.get_piece_size())
        ],
        dtype=bool,
    )
