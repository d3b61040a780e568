"""Whether the fast encoder may stand in for the reference: equal ids on hard texts, on this corpus before, and through the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_cpt.index.codec import Codec, Encoder, Ids, Lengths

RECHECK_EVERY = 8  # batches
RECHECK_BYTES = 64_000  # of text a recheck: 0.2 % of what is read between two of them
CUT_CHARS = 16_000  # a longer document is compared by a piece of it
HARD_TEXTS = [
    "", " ", "\n", "\r\n", "\t\t x", "a", "  two  spaces  ", "\n\n\n\n\tx\n \n", "x" * 600, "ab " * 300, " " * 300, "\n" * 70 + "x",
    "I'll we've they'RE don't It'S o'clock 'tis ''", "0 12 345 6789 1234567890 3.14159 1,000,000 0x1F 1e-9", "_snake_case camelCase HTTP",
    "!!! ??? ... --- *** ###### ===== ((())) {[<>]}", "na\u00efve caf\u00e9 e\u0301 \ufb01 \u00bd \u00c5 \u212b \u2126",
    "第一条　为了规范行为，根据宪法，制定本法。", "これは日本語 한국어 ไทย", "Привет мир שלום مرحبا नमस्ते",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f1e8\U0001f1f3 e\u0300\u0316", "\U00020000\U0010ffff\ufffd\ue000",
    "\u2028line\u2029sep\u0085nel\u200bzero\ufeffbom\u00a0nbsp\u3000wide", "\x00\x01\x7f\x1b[0m", "\u2581 \u2581\u2581x",
    "<|endoftext|> <s> </s> <unk> <0x0A> [INST]", "def f(x):\n    return x  # \u00e9\n\n\nclass A:\n\tpass\n",
    "http://example.com/a?b=c&d=%20#e user@example.com", "supercalifragilisticexpialidocious" * 8,
]  # fmt: skip


@dataclass
class Parity:
    """Which encoder runs and why; kept for the sidecar.

    Attributes:
        encoder: the one that runs: the fast one while every comparison was equal, else the reference.
        reason: why, in one sentence.
        num_texts, num_bytes: what was compared so far.
    """

    codec: Codec
    encoder: Encoder
    reason: str
    num_texts: int = 0
    num_bytes: int = 0
    _batches: int = field(default=0)

    @property
    def is_fast(self) -> bool:
        return self.encoder is not self.codec.exact

    def plain(self) -> dict[str, Any]:
        return {
            "name": self.encoder.name, "version": self.encoder.version, "reason": self.reason,
            "texts_compared": self.num_texts, "bytes_compared": self.num_bytes,
        }  # fmt: skip

    def recheck(self, texts: Sequence[str], ids: Ids, lengths: Lengths) -> None:
        """Compare some documents of every 8th batch with the reference.

        Raises:
            Mismatch: the fast ids differ.
        """
        turn, self._batches = self._batches, self._batches + 1
        if not self.is_fast or turn % RECHECK_EVERY or not texts:
            return
        begins = np.cumsum(lengths) - lengths
        whole, left = [], RECHECK_BYTES
        start = turn * 7919 % len(texts)  # another place of each batch, the same in each run
        for number in [*range(start, len(texts)), *range(start)][:256]:
            if len(texts[number]) > CUT_CHARS:
                middle = len(texts[number]) // 2
                self._compare([texts[number][middle : middle + CUT_CHARS]])
                left -= CUT_CHARS
            else:
                whole.append(number)
                left -= len(texts[number])
            if left <= 0:
                break
        fast = [ids[begins[number] : begins[number] + lengths[number]] for number in whole]
        self._compare([texts[number] for number in whole], fast)

    def _compare(self, texts: list[str], fast: list[Ids] | None = None) -> None:
        if fast is None:
            fast = split(*self.encoder.encode(texts))
        for text, ours, theirs in zip(texts, fast, split(*self.codec.exact.encode(texts)), strict=True):
            if not np.array_equal(ours, theirs):
                raise Mismatch(self.encoder.name, self.codec.exact.name, text, ours, theirs)
            self.num_texts += 1
            self.num_bytes += len(text.encode("utf-8"))


class Mismatch(Exception):
    """The fast encoder gave other ids than the reference."""

    def __init__(self, fast: str, exact: str, text: str, ours: Ids, theirs: Ids) -> None:
        shared = min(len(ours), len(theirs))
        differing = np.flatnonzero(ours[:shared] != theirs[:shared])
        place = int(differing[0]) if differing.size else shared
        super().__init__(
            f"{fast} gave other ids than {exact} from token {place} on: "
            f"{ours[place : place + 4].tolist()} for {theirs[place : place + 4].tolist()}, in a text that begins {text[:40]!r}"
        )


def split(ids: Ids, lengths: Lengths) -> list[Ids]:
    return np.split(ids, np.cumsum(lengths)[:-1]) if lengths.size else []


def reference_only(codec: Codec, reason: str) -> Parity:
    return Parity(codec, codec.exact, reason)


def choose_encoder(codec: Codec, samples: Sequence[str]) -> Parity:
    """Return the fast encoder when its ids equal the reference's on hard texts, special tokens' names and samples of the corpus."""
    try:
        fast = codec.fast()
    except ImportError:
        return reference_only(codec, "gigatoken is not installed")
    except BaseException as error:  # the library's Rust code panics outside Exception
        reraise_if_ours(error)
        return reference_only(codec, f"gigatoken does not load this tokenizer: {first_line(error)}")
    special = codec.special_texts()
    named = [f"before{name}after {name} end" for name in (*special[:40], *special[-10:])]
    parity = Parity(codec, fast, "")
    texts = [*HARD_TEXTS, *named, "".join(special[:200]), *samples]
    try:
        parity._compare(texts)
    except Mismatch as error:
        return reference_only(codec, f"the probe before the run: {error}")
    except BaseException as error:
        reraise_if_ours(error)
        return reference_only(codec, f"gigatoken failed in the probe before the run: {first_line(error)}")
    parity.reason = (
        f"ids equal to those of {codec.exact.name} on {len(texts)} texts before the run and on documents of every {RECHECK_EVERY}th batch"
    )
    return parity


def reraise_if_ours(error: BaseException) -> None:
    """Let interrupts and exits through."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
        raise error


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
