"""Repairs that are made only when asked for, because each changes what was written. `corpus/clean.py` owns those that are always made."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from megatron_cpt.config.filter_schema import UnicodeConfig
from megatron_cpt.errors import ConfigError

# Zero-width space, word joiner and invisible operators, soft hyphen, direction marks and embeddings, old format controls, annotations.
# The joiners U+200C and U+200D stay: they spell Persian and Indic words and hold emoji together.
FORMAT_CHARACTERS = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufff9-\ufffb]")
LINE_ENDS = re.compile("\r\n?")


class UnicodeRepair:
    """The repairs that the configuration asks for.

    Raises:
        ConfigError: mojibake is to be repaired and ftfy is not installed.
    """

    def __init__(self, settings: UnicodeConfig) -> None:
        self.settings = settings
        self.form: Literal["NFC", "NFKC"] = "NFKC" if settings.normal_form == "NFKC" else "NFC"
        self.fix_encoding: Callable[[str], str] | None = None
        if settings.mojibake == "repair":
            try:
                from ftfy import fix_encoding  # noqa: PLC0415 - optional, and only when asked for
            except ImportError:
                raise ConfigError(
                    "Mojibake is repaired by ftfy, which is not installed.",
                    where="corpus.filters.unicode.mojibake", value="repair", next_step="pip install 'megatron-cpt[mojibake]'",
                ) from None  # fmt: skip
            self.fix_encoding = fix_encoding

    def __call__(self, text: str) -> tuple[str, dict[str, int]]:
        """Return the repaired text and how many characters, or texts, each repair touched."""
        settings, counts = self.settings, {}
        if self.fix_encoding is not None and not text.isascii():
            repaired = self.fix_encoding(text)
            if repaired != text:
                text, counts["mojibake"] = repaired, 1
        if settings.line_ends == "lf" and "\r" in text:
            text, counts["line_ends"] = LINE_ENDS.subn("\n", text)
        if settings.format_characters == "remove" and not text.isascii():
            text, number = FORMAT_CHARACTERS.subn("", text)
            if number:
                counts["format_characters"] = number
        if settings.normal_form and not unicodedata.is_normalized(self.form, text):
            text, counts["normal_form"] = unicodedata.normalize(self.form, text), 1
        return text, counts
