"""All filters of a source's texts in order of their cost: line rules first, then words, runs of words, language, private data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import NamedTuple

from megatron_cpt.config.filter_schema import FilterConfig, TextRulesConfig, UnicodeConfig
from megatron_cpt.corpus.filters.found import Found
from megatron_cpt.corpus.filters.language import LanguageGuess
from megatron_cpt.corpus.filters.lines import C4Rules, LineRules
from megatron_cpt.corpus.filters.private import ACTIONS, PrivateData
from megatron_cpt.corpus.filters.quality import QualityRules
from megatron_cpt.corpus.filters.repetition import repeated_lines, repeated_ngrams
from megatron_cpt.corpus.filters.unicode import UnicodeRepair
from megatron_cpt.corpus.filters.words import WORD_PATTERN, Words
from megatron_cpt.errors import ConfigError, raise_all

WHERE = "corpus.filters"
ANY = "any"  # rules for languages that have none of their own


class Verdict(NamedTuple):
    """What the filters say of a text.

    Attributes:
        text: the text to keep, with repairs and masks.
        reason: why it is dropped; None when it is kept.
        detail: the rule, the measured value and its threshold; never a part of the text.
        counts: what was found or changed in it, by kind.
        language: the identified language; `und` where the model is not sure; None where it was not asked or the text is too short.
    """

    text: str
    reason: str | None
    detail: str
    counts: dict[str, int]
    language: str | None


class TextFilters:
    """The filters for texts of one language: `filters(text)` returns a `Verdict`.

    Raises:
        ConfigError: a setting is no rule, action or language that there is; all are named.
    """

    def __init__(self, settings: FilterConfig, *, language: str) -> None:
        language = re.split("[-_]", language.lower())[0]
        raise_all(
            ConfigError,
            list(_problems(settings)),
            where=WHERE,
            next_step="conf/filter/ holds examples; docs/reference/corpus.md says what each means.",
        )
        self.unicode = UnicodeRepair(settings.unicode) if settings.unicode != UnicodeConfig() else None
        rules = settings.rules.get(language) or settings.rules.get(ANY)
        self.rules = Rules(rules) if rules is not None else None
        self.language = LanguageGuess(settings.language, language=language) if settings.language.identify else None
        self.private = PrivateData(settings.private)

    def __call__(self, text: str) -> Verdict:
        """Return what is to be done with a text. Nothing is said about a text by the steps behind the one that drops it."""
        counts: dict[str, int] = {}
        guessed: str | None = None
        if self.unicode is not None:
            text, counts = self.unicode(text)
        if self.rules is not None:
            text, found, num_removed = self.rules(text)
            if num_removed:
                counts["removed_lines"] = num_removed
            if found:
                return Verdict(text, *found, counts, None)
        if self.language is not None:
            guessed, confidence = self.language(text)
            if problem := self.language.problem(guessed, confidence):
                return Verdict(text, "language", problem, counts, guessed)
        if self.private.asked:
            private = self.private(text)
            text = private.text
            counts.update(private.counts)
            if private.dropped_for is not None:
                number = private.counts[private.dropped_for]
                return Verdict(text, "private_data", f"{private.dropped_for}: {number} found", counts, guessed)
        return Verdict(text, None, "", counts, guessed)

    def changes(self, counts: dict[str, int]) -> dict[str, int]:
        """Return of a verdict's counts those of what was changed in the text, rather than only found there."""
        return {kind: count for kind, count in counts.items() if self.private.actions.get(kind, "mask") == "mask"}


class Rules:
    """The rules for one language, cheapest first. What C4's rules leave is what FineWeb's judge; Gopher's judge the text as it was."""

    def __init__(self, rules: TextRulesConfig) -> None:
        self.mode = rules.words
        self.c4, self.lines = C4Rules(rules.c4), LineRules(rules.lines)
        self.quality, self.repetition = QualityRules(rules.quality, mode=self.mode), rules.repetition
        words_asked = asdict(rules.quality) | {
            "top": rules.repetition.max_top_ngram_chars,
            "runs": rules.repetition.max_duplicate_ngram_chars,
        }
        self.words_asked = any(words_asked.values())

    def __call__(self, text: str) -> tuple[str, tuple[str, str] | None, int]:
        """Return the text without the lines that C4's rules take out, `(reason, detail)` if it is dropped, and how many lines went."""
        if not text or text.isspace():
            return text, ("empty_text", "nothing but white space"), 0
        kept, found, num_removed = self.c4(text)
        if found:
            return text, ("c4", found.detail), 0
        for reason, found in self._findings(text, kept):
            if found:
                return text, (reason, found.detail), 0
        return kept, None, num_removed

    def _findings(self, text: str, kept: str) -> Iterator[tuple[str, Found | None]]:
        yield "line_quality", self.lines(kept)
        yield "repetition", repeated_lines(text, self.repetition)
        words = Words(text, mode=self.mode) if self.words_asked else None
        yield "line_quality", self._newlines(text, kept, words)
        if words is not None:
            yield "quality", self.quality(text, words)
            yield "repetition", repeated_ngrams(len(text), words, self.repetition)

    def _newlines(self, text: str, kept: str, words: Words | None) -> Found | None:
        if self.lines.rules.max_newlines_per_word is None:
            return None
        if words is None or kept != text:
            words = Words(kept, mode=self.mode)
        return self.lines.newlines(kept, words.num)


def _problems(settings: FilterConfig) -> Iterator[str]:
    for key, value, allowed in (
        ("unicode.mojibake", settings.unicode.mojibake, ("keep", "repair")),
        ("unicode.normal_form", settings.unicode.normal_form, ("", "NFC", "NFKC")),
        ("unicode.format_characters", settings.unicode.format_characters, ("keep", "remove")),
        ("unicode.line_ends", settings.unicode.line_ends, ("keep", "lf")),
        *((f"private.{kind}", action, ACTIONS) for kind, action in asdict(settings.private).items()),
        *((f"rules.{language}.words", rules.words, tuple(WORD_PATTERN)) for language, rules in settings.rules.items()),
    ):
        if value not in allowed:
            yield f"{key}={value!r} is not one of: {', '.join(repr(choice) for choice in allowed)}."
    if not 0 <= settings.language.min_confidence <= 1:
        yield f"language.min_confidence={settings.language.min_confidence} is not between 0 and 1."
    for language, rules in settings.rules.items():
        yield from _rule_problems(f"rules.{language}", rules)


def _rule_problems(where: str, rules: TextRulesConfig) -> Iterator[str]:
    for group in (rules.quality, rules.repetition, rules.lines, rules.c4):
        for item in fields(group):
            value = getattr(group, item.name)
            if isinstance(value, int | float) and value < 0:
                yield f"{where}: {item.name}={value} is below 0."
    for key in ("max_top_ngram_chars", "max_duplicate_ngram_chars"):
        limits = getattr(rules.repetition, key)
        yield from (f"{where}: {key} has n={limit.n} with share={limit.share}." for limit in limits if limit.n < 1 or limit.share < 0)
        if len({limit.n for limit in limits}) < len(limits):
            yield f"{where}: {key} has an n twice."
    if rules.quality.min_stop_words and len(set(rules.quality.stop_words)) < rules.quality.min_stop_words:
        yield f"{where}: min_stop_words={rules.quality.min_stop_words} is more than there are stop_words."
