"""Gopher's quality rules: does a text read like prose. Decides as datatrove's `GopherQualityFilter`; a rule on Han characters is added."""

from __future__ import annotations

import re

from megatron_cpt.config.filter_schema import QualityRulesConfig
from megatron_cpt.corpus.filters.found import Found
from megatron_cpt.corpus.filters.words import Words

BULLETS = ("\u2022", "-")
ELLIPSES = ("...", "\u2026")


class QualityRules:
    """The rules with their stop words compiled."""

    def __init__(self, rules: QualityRulesConfig, *, mode: str) -> None:
        self.rules = rules
        self.stop_words = [stop_word_pattern(word, mode) for word in dict.fromkeys(rules.stop_words)]

    def __call__(self, text: str, words: Words) -> Found | None:
        """Return what the rules find in a text, if anything. The order is datatrove's."""
        return self._words(words) or self._symbols(text, words) or self._lines(text) or self._language(text, words)

    def _words(self, words: Words) -> Found | None:
        rules, number = self.rules, words.num_with_content
        if rules.min_words and number < rules.min_words:
            return Found("min_words", number, rules.min_words)
        if rules.max_words and number > rules.max_words:
            return Found("max_words", number, rules.max_words)
        if number and (rules.min_mean_word_length or rules.max_mean_word_length):
            mean = words.content_chars / number
            if rules.min_mean_word_length and mean < rules.min_mean_word_length:
                return Found("min_mean_word_length", mean, rules.min_mean_word_length)
            if rules.max_mean_word_length and mean > rules.max_mean_word_length:
                return Found("max_mean_word_length", mean, rules.max_mean_word_length)
        return None

    def _symbols(self, text: str, words: Words) -> Found | None:
        rules, number = self.rules, max(words.num, 1)
        if rules.max_hashes_per_word and (share := text.count("#") / number) > rules.max_hashes_per_word:
            return Found("max_hashes_per_word", share, rules.max_hashes_per_word)
        if rules.max_ellipses_per_word:
            share = sum(map(text.count, ELLIPSES)) / number
            if share > rules.max_ellipses_per_word:
                return Found("max_ellipses_per_word", share, rules.max_ellipses_per_word)
        return None

    def _lines(self, text: str) -> Found | None:
        rules = self.rules
        if not (rules.max_bullet_lines or rules.max_ellipsis_lines):
            return None
        lines = text.splitlines()
        number = max(len(lines), 1)
        # The marks in the whole text bound the lines that have them at an end.
        if rules.max_bullet_lines and sum(map(text.count, BULLETS)) / number > rules.max_bullet_lines:
            share = sum(line.lstrip().startswith(BULLETS) for line in lines) / number
            if share > rules.max_bullet_lines:
                return Found("max_bullet_lines", share, rules.max_bullet_lines)
        if rules.max_ellipsis_lines and sum(map(text.count, ELLIPSES)) / number > rules.max_ellipsis_lines:
            share = sum(line.rstrip().endswith(ELLIPSES) for line in lines) / number
            if share > rules.max_ellipsis_lines:
                return Found("max_ellipsis_lines", share, rules.max_ellipsis_lines)
        return None

    def _language(self, text: str, words: Words) -> Found | None:
        rules = self.rules
        if rules.min_alphabetic_words and (share := words.num_alphabetic / max(words.num, 1)) < rules.min_alphabetic_words:
            return Found("min_alphabetic_words", share, rules.min_alphabetic_words)
        if rules.min_han_share and words.han_share < rules.min_han_share:
            return Found("min_han_share", words.han_share, rules.min_han_share)
        if rules.min_stop_words:
            found = 0
            for pattern in self.stop_words:
                found += pattern.search(text) is not None
                if found >= rules.min_stop_words:
                    return None
            return Found("min_stop_words", found, rules.min_stop_words)
        return None


def stop_word_pattern(word: str, mode: str) -> re.Pattern[str]:
    """Return a pattern that finds a stop word where it is a word of its own (`words.py`), or anywhere among single characters."""
    if mode == "characters":
        return re.compile(re.escape(word))
    joiner = "['\u2019\\-]"
    return re.compile(rf"(?<!\w)(?<!\w{joiner}){re.escape(word)}(?!\w|{joiner}\w)")
