"""Rules on lines: FineWeb's, which drop a text, and C4's, which take lines out of it.

They decide as datatrove's `FineWebQualityFilter` and `C4QualityFilter`; sentences are counted by `num_sentences`.
"""

from __future__ import annotations

import re

from datatrove.utils.text import TERMINAL_PUNCTUATION

from megatron_cpt.config.filter_schema import C4RulesConfig, LineRulesConfig
from megatron_cpt.corpus.filters.found import Found
from megatron_cpt.corpus.filters.repetition import repeated

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
C4_TERMINALS = (".", "?", "!", '"', "'")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
# A sentence ends at a full stop, question or exclamation mark before white space, and at a Chinese one anywhere; closing marks go along.
SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*")


class LineRules:
    """FineWeb's rules with their terminal marks."""

    def __init__(self, rules: LineRulesConfig) -> None:
        self.rules = rules
        self.terminals = frozenset(rules.terminal_marks or TERMINAL_PUNCTUATION)
        self.asked = any(
            value is not None
            for value in (rules.min_terminal_lines, rules.max_short_lines, rules.max_duplicate_line_chars, rules.max_newlines_per_word)
        )

    def __call__(self, text: str) -> Found | None:
        """Return what the rules on the lines themselves find in a text, if anything. The order is datatrove's."""
        rules = self.rules
        if not self.asked:
            return None
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        number = len(lines)
        if number == 0:
            return Found("min_lines", 0, 1)
        if rules.min_terminal_lines is not None:
            share = sum([line[-1] in self.terminals for line in lines]) / number
            if share < rules.min_terminal_lines and not (share == 0 and rules.spare_markless):
                return Found("min_terminal_lines", share, rules.min_terminal_lines)
        if rules.max_short_lines is not None:
            limit = rules.short_line_chars
            share = sum([length <= limit for length in map(len, lines)]) / number
            if share > rules.max_short_lines:
                return Found("max_short_lines", share, rules.max_short_lines)
        if rules.max_duplicate_line_chars is not None:
            share = repeated(lines)[1] / (len(text) - text.count("\n"))
            if share > rules.max_duplicate_line_chars:
                return Found("max_duplicate_line_chars", share, rules.max_duplicate_line_chars)
        return None

    def newlines(self, text: str, num_words: int) -> Found | None:
        """Return what the rule on line ends per word finds."""
        threshold = self.rules.max_newlines_per_word
        if threshold is not None and (share := text.count("\n") / max(num_words, 1)) > threshold:
            return Found("max_newlines_per_word", share, threshold)
        return None


def num_sentences(line: str) -> int:
    """Return how many sentences a line holds; what follows its last end is one more."""
    ends = [match.end() for match in SENTENCE_END.finditer(line)]
    return len(ends) + (not ends or bool(line[ends[-1] :].strip()))


class C4Rules:
    """C4's rules; a text is walked through line by line only when one of them is asked for."""

    def __init__(self, rules: C4RulesConfig) -> None:
        self.rules = rules
        self.asked = rules != C4RulesConfig()
        self.long_word = re.compile(rf"\S{{{rules.max_word_chars + 1}}}") if rules.max_word_chars is not None else None

    def __call__(self, text: str) -> tuple[str, Found | None, int]:
        """Return the text of the lines that stay, why it is dropped if it is, and how many lines were taken out."""
        rules = self.rules
        if not self.asked:
            return text, None, 0
        lower = text.lower()
        # What the whole text does not hold no line holds: most texts need none of the costly tests.
        long_word = self.long_word if self.long_word and self.long_word.search(text) else None
        citations = rules.remove_citations and "[" in text
        javascript = rules.remove_javascript_lines and "javascript" in lower
        policies = [phrase for phrase in POLICIES if phrase in lower] if rules.remove_policy_lines else []
        brackets = rules.drop_curly_brackets and "{" in text
        lorem = rules.drop_lorem_ipsum and "lorem ipsum" in lower
        kept: list[str] = []
        sentences = 0
        lines = text.splitlines()
        for line in map(str.strip, lines):
            if long_word and long_word.search(line):
                continue
            shown = CITATION.sub("", line) if citations else line
            if rules.terminal_lines_only and (not shown.endswith(C4_TERMINALS) or shown.endswith("...")):
                continue
            if rules.min_words_per_line is not None and len(line.split()) < rules.min_words_per_line:
                continue
            if lorem or javascript or policies:
                lower_line = shown.lower()
                if lorem and "lorem ipsum" in lower_line:
                    return text, Found("drop_lorem_ipsum", 1, 0), 0
                if javascript and "javascript" in lower_line:
                    continue
                if policies and any(phrase in lower_line for phrase in policies) and not (brackets and "{" in shown):
                    continue
            if brackets and "{" in shown:
                return text, Found("drop_curly_brackets", 1, 0), 0
            if rules.min_sentences is not None and sentences < rules.min_sentences:
                sentences += num_sentences(shown)
            kept.append(shown)
        if rules.min_sentences is not None and sentences < rules.min_sentences:
            return text, Found("min_sentences", sentences, rules.min_sentences), 0
        return "\n".join(kept).strip(), None, len(lines) - len(kept)
