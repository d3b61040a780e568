"""The vocabulary contract: checks on the written tokenizer, each with its result; the stage is refused when one fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from megatron_cpt.errors import DataError, printable
from megatron_cpt.record.tokenizer_file import normal_form
from megatron_cpt.vocab.base import BaseTokenizer
from megatron_cpt.vocab.family import Family
from megatron_cpt.vocab.merges import Merge, batches
from megatron_cpt.vocab.sentencepiece_base import differing_texts
from megatron_cpt.vocab.sentencepiece_bpe import MODEL_NAME

NASTY_TEXTS = (
    "全角标点：，。；：？！（）《》“”‘’、　全角数字：１２３ＡＢＣ",
    "two  spaces\tand\ttabs \n\n\n  and   newlines\r\n\r trailing   ",
    "\n", " ", "\t\t", "   leading", "a\u00a0b\u2003c\u3000d",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 end",
    "rare CJK 𠀀𪛖㐀龘 and 〇々〆",
    "混合mixed тест δοκιμή परीक्षण اختبار 시험 テスト",
    "line\u2028separator\u2029paragraph\u0085next",
    "combining e\u0301 n\u0303 a\u0323\u0302 vs é ñ ậ",
    "zero\u200bwidth\u200djoiners\u2060 and \u202ebidi\u202c",
    "第1条 第一百二十三条　１２３４，5678.90元",
    "def f(x):\n    return x['key']  # code\n\n\n",
    "https://例え.jp/パス?q=1&x=%20#frag", "\ufffd replacement \ue000 private", "don't CAN'T we'LL",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One clause: what was promised, whether it holds, on how many cases, and the first failure or a remark."""

    name: str
    holds: bool
    num_cases: int
    detail: str = ""


def changed_ids(base: BaseTokenizer, tokenizer: Tokenizer) -> Check:
    """Every base id has the same piece, and decodes to the same text, as before."""
    numbers = sorted(base.tokenizer.get_vocab(with_added_tokens=True).values())
    old = base.tokenizer.decode_batch([[number] for number in numbers], skip_special_tokens=False)
    new = tokenizer.decode_batch([[number] for number in numbers], skip_special_tokens=False)
    moved = [
        number
        for number, before, after in zip(numbers, old, new, strict=True)
        if before != after or base.tokenizer.id_to_token(number) != tokenizer.id_to_token(number)
    ]
    return Check("every old id decodes to the same bytes", not moved, len(numbers), first("id", moved))


def first(what: str, cases: Sequence[object]) -> str:
    return f"{len(cases)} fail; first: {what} {printable(str(cases[0]))[:200]}" if cases else ""


def drifting(base: BaseTokenizer, tokenizer: Tokenizer, texts: Iterable[str]) -> Check:
    """General text gets exactly the base's ids."""
    count, failed = 0, []
    for batch in batches(texts):
        old = base.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        new = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        for text, before, after in zip(batch, old, new, strict=True):
            count += 1
            if before.ids != after.ids:
                failed.append(text[:80])
    detail = first("document beginning", failed) or "the pairs of neighbouring ids in these documents were barred from new merges"
    return Check("general documents are encoded with exactly the same ids", not failed, count, detail)


def lossy(base: BaseTokenizer, tokenizer: Tokenizer, name: str, texts: Iterable[str]) -> Check:
    """decode(encode(x)) == x, compared with the normalised text where the base itself normalises."""
    normalise = normal_form(tokenizer)
    count, failed = 0, []
    for batch in batches(texts):
        encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        decoded = tokenizer.decode_batch([encoding.ids for encoding in encoded], skip_special_tokens=False)
        for text, back in zip(batch, decoded, strict=True):
            count += 1
            wanted = normalise(text)
            if back != wanted:
                place = next((i for i, (a, b) in enumerate(zip(wanted, back, strict=False)) if a != b), min(len(wanted), len(back)))
                failed.append(f"{wanted[place : place + 20]!r} at character {place}")
    remark = base.family.remark or ("against the base's own normal form" if tokenizer.normalizer else "")
    return Check(f"decode(encode(x)) == x on {name}", not failed, count, first("text", failed) or remark)


def special_tokens(base: BaseTokenizer, tokenizer: Tokenizer) -> Check:
    """Special tokens keep their ids, and their names inside a document stay plain text."""
    failed = [content for content, number in base.added.items() if tokenizer.token_to_id(content) != number]
    special_ids = set(base.special.values())
    for content in base.special:
        for text in (content, f"x{content}y", f"第{content}条", f" {content} "):
            if special_ids & set(tokenizer.encode(text, add_special_tokens=False).ids):
                failed.append(text)
    detail = "documents are encoded with encode_special_tokens=True; the library's default would turn such a name into the special id"
    return Check("special tokens keep their ids and never come from plain text", not failed, len(base.added), first("", failed) or detail)


def unreachable(tokenizer: Tokenizer, merges: Sequence[Merge]) -> Check:
    """The merges build every new piece."""
    whole = Tokenizer(tokenizer.model)  # no pre-tokenizer: a piece is one word
    encoded = whole.encode_batch_fast([merge.piece for merge in merges], add_special_tokens=False)
    failed = [merge.piece for merge, encoding in zip(merges, encoded, strict=True) if encoding.ids != [merge.new_id]]
    return Check("every new piece can be produced", not failed, len(merges), first("piece", failed))


def longer(base: BaseTokenizer, tokenizer: Tokenizer, texts: Iterable[str]) -> Check:
    """No text needs more tokens than before."""
    count, failed = 0, []
    for batch in batches(texts):
        old = base.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        new = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        count += len(batch)
        failed += [text[:80] for text, a, b in zip(batch, old, new, strict=True) if len(b.ids) > len(a.ids)]
    return Check("no text needs more tokens than before", not failed, count, first("text beginning", failed))


def loads_elsewhere(folder: Path, tokenizer: Tokenizer) -> Check:
    """transformers loads the folder alone, without foreign code, and gives the same ids."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import

    name = "transformers.AutoTokenizer loads the folder and gives the same ids"
    try:
        other = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        failed = [
            text
            for text in NASTY_TEXTS
            if other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            != tokenizer.encode(text, add_special_tokens=False).ids
        ]
    except Exception as error:  # whatever a stranger's tokenizer_config.json makes the library raise is one failed clause
        return Check(name, False, len(NASTY_TEXTS), f"{type(error).__name__}: {printable(str(error))[:300]}")
    return Check(name, not failed, len(NASTY_TEXTS), first("text", failed))


def forms_agree(base: BaseTokenizer, folder: Path, tokenizer: Tokenizer, texts: Sequence[Iterable[str]]) -> Check | None:
    """The written tokenizer.model and tokenizer.json give the same ids; None for a base that has one form only."""
    path = folder / MODEL_NAME
    if not path.is_file():
        return None
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    new = [piece for piece, number in vocab.items() if number >= base.num_rows]
    name = "tokenizer.model and tokenizer.json give the same ids"
    try:
        count, differing = differing_texts(path.read_bytes(), tokenizer, chain(NASTY_TEXTS, new, *texts))
    except RuntimeError as error:  # sentencepiece refuses a model with a piece twice, for one
        return Check(name, False, 0, printable(str(error))[:300])
    return Check(name, not differing, count, first("text", differing) or "all new pieces among the texts")


def missing_byte_pieces(base: BaseTokenizer, tokenizer: Tokenizer) -> Check:
    """Which bytes the base has no piece for is told, not judged: the base was checked when it was read."""
    missing = base.family.missing_bytes(tokenizer.get_vocab(with_added_tokens=False))
    detail = (
        f"without a piece (the library drops them): {', '.join(f'0x{byte:02x}' for byte in missing)}" if missing else "all 256 have one"
    )
    return Check("each byte that assigned characters need has a piece", True, 256, detail)


def refuse_broken(checks: Sequence[Check]) -> None:
    """Raise when a clause does not hold.

    Raises:
        DataError: naming every broken clause with its first case.
    """
    broken = [check for check in checks if not check.holds]
    if broken:
        raise DataError(
            "The extended vocabulary breaks its contract:\n" + "\n".join(f"    - {check.name}: {check.detail}" for check in broken),
            rule="no old id or old text may change",
            next_step="Use tokenizer.num_new_pieces=0, or report the base tokenizer that does this.",
        )


def new_piece_bytes(family: Family, merge: Merge) -> bytes:
    data = family.piece_bytes(merge.piece)
    assert data is not None, "a new piece stands for text"
    return data
