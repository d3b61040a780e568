"""The vocabulary contract: checks on the written tokenizer, each with its result; the stage is refused when one fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from megatron_cpt.errors import DataError, printable
from megatron_cpt.record.tokenizer_file import normal_form
from megatron_cpt.record.vocab_contract import PROBE_NAME, TOKENIZER_NAME, Check, Drift, Probe, installed_libraries, probe_of
from megatron_cpt.vocab import reload_script
from megatron_cpt.vocab.base import BaseTokenizer, tokenizer_from
from megatron_cpt.vocab.family import Family
from megatron_cpt.vocab.merges import Merge, batches
from megatron_cpt.vocab.sentencepiece_base import differing_texts
from megatron_cpt.vocab.sentencepiece_bpe import MODEL_NAME

NASTY_TEXTS = (
    "全角标点：，。；：？！（）《》“”‘’、　全角数字：１２３ＡＢＣ",
    "two  spaces\tand\ttabs \n\n\n  and   newlines\r\n\r trailing   ",
    "\n", " ", "\t\t", "   leading", "a\u00a0b\u2003c\u3000d", " " * 67, "\u3000\u3000段首缩进两格",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 end",
    "rare CJK 𠀀𪛖㐀龘 and 〇々〆",
    "混合mixed тест δοκιμή परीक्षण اختبار 시험 テスト",
    "line\u2028separator\u2029paragraph\u0085next",
    "combining e\u0301 n\u0303 a\u0323\u0302 vs é ñ ậ", "\u0301 alone, after a space x \u0308y and \u1112\u1161\u11ab",
    "compatibility ½ ﬁ ㎏ Å Ω ① Ⅳ ％ ＋ ￥ ﾃｽﾄ",
    "zero\u200bwidth\u200djoiners\u2060 and \u202ebidi\u202c",
    "第1条 第一百二十三条　１２３４，5678.90元",
    "def f(x):\n    return x['key']  # code\n\n\n", "\tif a:\r\n\t\tb  =  {  }\n",
    "https://例え.jp/パス?q=1&x=%20#frag", "\ufffd replacement \ue000 private", "don't CAN'T we'LL", "a" * 300,
)  # fmt: skip
PROBE_DOCUMENTS = 16  # of each role, beside the nasty texts
PROBE_CHARS = 400
RELOAD_SECONDS = 300


def changed_ids(base: BaseTokenizer, tokenizer: Tokenizer) -> Check:
    """Every base id has the same piece, hence the same bytes, and decodes to the same text as before."""
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


def drifting(base: BaseTokenizer, tokenizer: Tokenizer, texts: Iterable[str], *, max_share: float = 0.0) -> tuple[Check, Drift]:
    """General text gets exactly the base's ids, but for a share of documents that the settings allow."""
    count, failed = 0, []
    for batch in batches(texts):
        old = base.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        new = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        for text, before, after in zip(batch, old, new, strict=True):
            count += 1
            if before.ids != after.ids:
                failed.append(text[:80])
    drift = Drift(count, len(failed), max_share)
    detail = first("document beginning", failed) or "the pairs of neighbouring ids in these documents were barred from new merges"
    name = "general documents are encoded with exactly the same ids"
    if max_share:
        name += f", but for at most {max_share:.2%} of them"
    return Check(name, drift.share <= max_share, count, detail), drift


def lossy(tokenizer: Tokenizer, name: str, texts: Iterable[str], *, remark: str = "") -> Check:
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
    remark = remark or ("against the base's own normal form" if tokenizer.normalizer else "")
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


def unreachable(base: BaseTokenizer, tokenizer: Tokenizer, merges: Sequence[Merge]) -> Check:
    """The merges build every new piece; a model that looks whole words up (ignore_merges) must build them inside longer words too."""
    by_merges = Tokenizer.from_str(tokenizer.to_str()).model
    by_merges.ignore_merges = False
    whole = Tokenizer(by_merges)  # no pre-tokenizer: a piece is one word
    encoded = whole.encode_batch_fast([merge.piece for merge in merges], add_special_tokens=False)
    failed = [merge.piece for merge, encoding in zip(merges, encoded, strict=True) if encoding.ids != [merge.new_id]]
    old = [(piece, number) for piece, number in base.tokenizer.get_vocab(with_added_tokens=False).items() if piece not in base.added]
    built = whole.encode_batch_fast([piece for piece, _ in old], add_special_tokens=False)
    never = sum(encoding.ids != [number] for (_, number), encoding in zip(old, built, strict=True))
    detail = f"{never} of the base's own {len(old):,} pieces are built by no merge" if never else ""
    return Check("every new piece can be produced", not failed, len(merges), first("piece", failed) or detail)


def doubled(data: dict[str, Any]) -> Check:
    """No piece is empty, and no two pieces share an id."""
    piece_of: dict[int, str] = {}
    failed = []
    for piece, number in data["model"]["vocab"].items():
        if not piece or piece_of.setdefault(number, piece) != piece:
            failed.append(f"{piece!r} with id {number}")
    return Check("no piece is empty and no two share an id", not failed, len(data["model"]["vocab"]), first("piece", failed))


def same_settings(base: BaseTokenizer, data: dict[str, Any]) -> Check:
    """Normaliser, pre-tokenizer, decoder and post-processor are the base's; so domain text is cut as the base was trained to."""
    parts = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
    failed = [part for part in parts if data.get(part) != base.data.get(part)]
    normaliser = base.data.get("normalizer")
    remark = f"normaliser {json.dumps(normaliser)[:120]}, on domain text too" if normaliser else "no normaliser, no dummy prefix"
    remark = base.family.remark or remark
    return Check("normaliser, prefix, pre-tokenizer and decoder are the base's", not failed, len(parts), first("", failed) or remark)


def longer(base: BaseTokenizer, tokenizer: Tokenizer, texts: Iterable[str]) -> Check:
    """No text needs more tokens than before."""
    count, failed = 0, []
    for batch in batches(texts):
        old = base.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        new = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        count += len(batch)
        failed += [text[:80] for text, a, b in zip(batch, old, new, strict=True) if len(b.ids) > len(a.ids)]
    return Check("no text needs more tokens than before", not failed, count, first("text beginning", failed))


def probe_texts(*texts: Iterable[str]) -> list[str]:
    """Return the nasty texts and the beginnings of some documents of each role."""
    taken = list(NASTY_TEXTS)
    for each in texts:
        taken += [text[:PROBE_CHARS] for _, text in zip(range(PROBE_DOCUMENTS), each, strict=False)]
    return taken


def reloads(folder: Path, probe: Probe) -> list[Check]:
    """A fresh process that knows nothing of this one reads the written folder and gives the probe's ids; transformers does so too.

    Args:
        folder: the vocabulary folder, with `tokenizer/` and the probe written.
    """
    return [
        _same_ids("the files reload in a fresh process with the same ids", "tokenizers", probe, lambda: _ids_elsewhere(folder)),
        _same_ids(
            "transformers.AutoTokenizer loads the folder and gives the same ids",
            "transformers",
            probe,
            lambda: _ids_in_transformers(folder / TOKENIZER_NAME, probe.texts),
        ),
    ]


def _same_ids(name: str, library: str, probe: Probe, read: Callable[[], list[list[int]]]) -> Check:
    try:
        found = read()
    except Exception as error:  # whatever a stranger's tokenizer_config.json makes a library raise is one failed clause
        return Check(name, False, len(probe.texts), f"{type(error).__name__}: {printable(str(error))[:300]}")
    failed = [text for text, before, after in zip(probe.texts, probe.ids, found, strict=True) if before != after]
    return Check(name, not failed, len(probe.texts), first("text", failed) or f"{library} {installed_libraries()[library]}")


def _ids_elsewhere(folder: Path) -> list[list[int]]:
    command = [sys.executable, "-I", str(Path(reload_script.__file__)), str(folder / TOKENIZER_NAME), str(folder / PROBE_NAME)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8", timeout=RELOAD_SECONDS)
    if answer.returncode:
        raise RuntimeError(answer.stderr.strip()[-300:])
    ids: list[list[int]] = json.loads(answer.stdout)["ids"]
    return ids


def _ids_in_transformers(path: Path, texts: Sequence[str]) -> list[list[int]]:
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import

    other = AutoTokenizer.from_pretrained(str(path.parent), trust_remote_code=False, local_files_only=True)
    return [other(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]


def older_files_agree(folder: Path, data: dict[str, Any], probe: Probe) -> Check | None:
    """Return whether vocab.json and merges.txt give the same ids as tokenizer.json; None where there are none."""
    paths = folder / "tokenizer" / "vocab.json", folder / "tokenizer" / "merges.txt"
    if not all(path.is_file() for path in paths):
        return None
    other = tokenizer_from(data, where=folder)
    other.model = models.BPE.from_file(*map(str, paths), ignore_merges=bool(data["model"].get("ignore_merges")))
    now = probe_of(other, probe.texts)
    failed = [text for text, a, b in zip(probe.texts, probe.ids, now.ids, strict=True) if a != b]
    return Check("vocab.json and merges.txt give the same ids as tokenizer.json", not failed, len(probe.texts), first("text", failed))


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
