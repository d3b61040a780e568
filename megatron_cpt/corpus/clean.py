"""What is done to a text before it is kept: the least that makes it strict UTF-8 without control characters. No normal forms."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Tab, newline, carriage return, form feed (source code) and U+0085 (next line) are layout; the other C0 and C1 codes are not text.
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
BOM_CHARACTER = "\ufeff"


@dataclass(frozen=True)
class Cleaned:
    """A text that may be kept, and how many characters each repair touched."""

    text: str
    repairs: dict[str, int] = field(default_factory=dict)


def clean_text(text: str) -> Cleaned:
    """Return the text with control characters and byte-order marks removed and lone surrogates replaced by U+FFFD.

    JSON escapes of a proper surrogate pair were joined by the parser before; what is left in that range stands alone.
    """
    repairs = {}
    for reason, pattern, replacement in (
        ("control_characters", CONTROL, ""),
        ("lone_surrogate", SURROGATE, "\ufffd"),
        ("byte_order_mark", re.compile(BOM_CHARACTER), ""),
    ):
        text, count = pattern.subn(replacement, text)
        if count:
            repairs[reason] = count
    return Cleaned(text, repairs)


def text_problem(fields: dict[str, object], text_key: str) -> tuple[str, str] | None:
    """Return `(reason, detail)` when a record has no usable text, None when it has."""
    value = fields.get(text_key)
    if text_key not in fields:
        keys = ", ".join(list(fields)[:20]) or "none"
        return "missing_text", f"no key {text_key!r}; keys present: {keys}"[:400]
    if value is None:
        return "null_text", f"{text_key!r} is null"
    if not isinstance(value, str):
        return "text_not_a_string", f"{text_key!r} is {type(value).__name__}"
    return None
