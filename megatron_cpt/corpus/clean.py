"""What is done to a text before it is kept: the least that makes it strict UTF-8 without control characters. No normal forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

# Tab, newline, carriage return, form feed (source code) and U+0085 (next line) are layout; the other C0 and C1 codes are not text.
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
BOM_CHARACTER = re.compile("\ufeff")
REPAIRS = (("control_characters", CONTROL, ""), ("lone_surrogate", SURROGATE, "\ufffd"), ("byte_order_mark", BOM_CHARACTER, ""))
ANY = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]"
)  # one search where nothing is to be done, as in most texts


@dataclass(frozen=True)
class Cleaned:
    """A text that may be kept, and how many characters each repair touched."""

    text: str
    repairs: dict[str, int] = field(default_factory=dict)


def clean_text(text: str) -> Cleaned:
    """Return the text with control characters and byte-order marks removed and lone surrogates replaced by U+FFFD.

    JSON escapes of a proper surrogate pair were joined by the parser before; what is left in that range stands alone.
    """
    if not ANY.search(text):
        return Cleaned(text)
    repairs = {}
    for reason, pattern, replacement in REPAIRS:
        text, count = pattern.subn(replacement, text)
        if count:
            repairs[reason] = count
    return Cleaned(text, repairs)


def text_of(fields: dict[str, object], text_keys: Sequence[str]) -> str:
    """Return the text of a record that has no `text_problem`; several texts are joined by a blank line."""
    return "\n\n".join(cast(str, fields[key]) for key in text_keys)


def text_problem(fields: dict[str, object], text_keys: Sequence[str]) -> tuple[str, str] | None:
    """Return `(reason, detail)` when a record lacks a usable text under any of the keys, None when it has all."""
    for key in text_keys:
        if key not in fields:
            keys = ", ".join(list(fields)[:20]) or "none"
            return "missing_text", f"no key {key!r}; keys present: {keys}"[:400]
        value = fields[key]
        if value is None:
            return "null_text", f"{key!r} is null"
        if not isinstance(value, str):
            return "text_not_a_string", f"{key!r} is {type(value).__name__}"
    return None
