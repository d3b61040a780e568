"""Base, extension and candidates side by side: the corpus is read once to train them and once for each held-out role to measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_cpt.config.schema import CompareConfig
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.store import write_json, write_text
from megatron_cpt.record.term_list import Terms
from megatron_cpt.vocab.candidates import KINDS, Candidate, refuse_rewriting, save_candidate, train_candidate
from megatron_cpt.vocab.measure import Vocabulary, measure, measure_terms, vocabulary_of
from megatron_cpt.vocab.report import report_markdown
from megatron_cpt.vocab.report_page import report_page
from megatron_cpt.vocab.sample import write_sample

Texts = Callable[[], Iterator[str]]


def check_compare(settings: CompareConfig) -> None:
    """Raise for settings that make no comparison.

    Raises:
        ConfigError: an unknown kind, a size that is not positive, two kinds or sizes alike, no sample, or relearn_tokens below 0.
    """
    for kind in settings.kinds:
        if kind not in KINDS:
            raise wrong("kinds", kind, f"of {', '.join(KINDS)}")
    for size in settings.sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise wrong("sizes", size, "whole numbers from 1 on")
    for key in ("kinds", "sizes"):
        values = getattr(settings, key)
        twice = [value for number, value in enumerate(values) if value in values[:number]]
        if twice:
            raise wrong(key, twice[0], "each once")
    if isinstance(settings.sample_bytes, bool) or not isinstance(settings.sample_bytes, int) or settings.sample_bytes < 1:
        raise wrong("sample_bytes", settings.sample_bytes, "a whole number from 1 on")
    if settings.relearn_tokens is not None and not settings.relearn_tokens >= 0:
        raise wrong("relearn_tokens", settings.relearn_tokens, "a number of tokens from 0 on, or null")


def wrong(key: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"tokenizer.compare.{key} is not usable.", where=f"tokenizer.compare.{key}", value=value, rule=rule)


def train_candidates(
    settings: CompareConfig, texts: Texts, scratch: Path, *, like: Tokenizer | None, default_size: int, say: Callable[[str], None]
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates and remarks on them, in words. The texts are read once, into a file in the folder `scratch`.

    Args:
        like: a byte-level candidate cuts words as this tokenizer does.
        default_size: the size where none is set; a text that does not give it is then a remark.

    Raises:
        DataError: the text is empty, does not give one of the sizes that were asked for, or the normaliser would rewrite it.
    """
    sizes = settings.sizes or ([default_size] if default_size else [])
    if not sizes or not settings.kinds:
        return [], ["No comparison: no pieces were asked for."]
    sample = write_sample(texts(), scratch / "sample.txt")
    remarks = [
        f"Candidates were trained on {sample.chars_trained:,} of {sample.chars_in:,} characters of a domain sample; the others are "
        f"{sample.line_breaks:,} line breaks, where SentencePiece splits, and {sample.reserved:,} of its own marks."
    ]
    candidates: list[Candidate] = []
    try:
        refuse_rewriting(sample, settings.normaliser)
        for kind in settings.kinds:
            for size in sizes:
                say(f"vocab: training {KINDS[kind]} of {size:,} pieces for comparison")
                try:
                    candidate = train_candidate(kind, sample, num_pieces=size, like=like)
                except DataError as error:
                    if settings.sizes:
                        raise
                    remarks.append(" ".join(str(error).split()))
                    continue
                if candidate.name in {other.name for other in candidates}:
                    remarks.append(f"{KINDS[kind]}: {size:,} pieces would be {candidate.num_pieces:,} again, which this script needs.")
                    continue
                candidates.append(candidate)
                remarks.append(remark_on(candidate))
    finally:
        sample.path.unlink()
    return candidates, remarks


def remark_on(candidate: Candidate) -> str:
    words = [f"{candidate.name}: trained on {candidate.sample.num_bytes / 1e6:.2f} MB"]
    if candidate.character_coverage < 1.0:
        words.append(f"{candidate.character_coverage:.2%} of characters may be pieces, others are bytes")
    if candidate.sample.left_out:
        words.append(f"{candidate.sample.left_out:,} characters of the sample were left out to bound the trainer's memory")
    return f"{'; '.join(words)}."


def side_by_side(
    vocabularies: dict[str, Vocabulary], held_out: dict[str, Texts], terms: Terms | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return `{role: {vocabulary: figures}}`, and the same vocabularies on the list of terms, None without one."""
    fits = {role: measure(vocabularies, texts()) for role, texts in held_out.items()}
    if terms is None:
        return fits, None
    found = {"num_terms": len(terms.terms), "remarks": list(terms.remarks), "of": measure_terms(vocabularies, terms.terms)}
    return fits, found


def tokens_against(fits: dict[str, Any], name: str) -> float | None:
    """Return tokens of a vocabulary over those of the base on the same text; None where there is no text."""
    if not fits.get("base") or not fits.get(name):
        return None
    return float(fits[name]["num_tokens"]) / float(fits["base"]["num_tokens"])


def gain_curve(counts: list[int], *, sample_tokens: int, asked: int, num_points: int = 200) -> dict[str, Any]:
    """Return how many tokens of the sample the first so many merges save, at about `num_points` places and at the size asked for."""
    wanted = {round(place * len(counts) / num_points) for place in range(1, num_points + 1)} | {min(asked, len(counts)), len(counts)}
    points, saved = [[0, 0]], 0
    for number, count in enumerate(counts, 1):
        saved += count
        if number in wanted:
            points.append([number, saved])
    return {"sample_tokens": sample_tokens, "asked": asked, "points": points}


def write_comparison(
    folder: Path,
    settings: CompareConfig,
    domain: Texts,
    held_out: dict[str, Texts],
    *,
    base: Tokenizer | None,
    terms: Terms | None,
    say: Callable[[str], None],
) -> None:
    """Write each candidate into a folder of its own, and `report.json`, `report.md` and `report.html` on all of them.

    Raises:
        DataError: the text does not give the candidates, see `train_candidates`.
    """
    candidates, remarks = train_candidates(settings, domain, folder, like=base, default_size=0, say=say)
    vocabularies = {} if base is None else {"base": vocabulary_of(base, 1 + max(base.get_vocab(with_added_tokens=True).values()))}
    vocabularies |= {candidate.name: candidate.vocabulary for candidate in candidates}
    fits, on_terms = side_by_side(vocabularies, held_out, terms)
    report = {**fits, "comparison": remarks, "terms": on_terms}
    for candidate in candidates:
        save_candidate(folder / f"{candidate.kind}_{candidate.num_pieces}", candidate)
        fit = fits["domain"][candidate.name]
        if fit is not None:
            say(f"{candidate.name}: {fit['tokens_per_char']:.4f} tokens per character of held-out domain text")
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", report_markdown(report, [], []))
    write_text(folder / "report.html", report_page(report, [], []))
