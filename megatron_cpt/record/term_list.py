"""Reading a user's list of terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import ConfigError, printable

MAX_TERMS_BYTES = 16 * 1024 * 1024
NUM_NAMED = 5


@dataclass(frozen=True)
class Terms:
    """Distinct terms in the order of the file, and what was passed over, in words."""

    terms: tuple[str, ...]
    remarks: tuple[str, ...]


def read_terms(path: Path, *, key: str = "tokenizer.terms") -> Terms:
    """Return the terms of a UTF-8 file, one a line; blank lines and repeated terms are passed over and told.

    Args:
        key: the setting that names the file, for messages.

    Raises:
        ConfigError: the file cannot be read, is no UTF-8, is too large or holds no term.
    """
    try:
        if path.stat().st_size > MAX_TERMS_BYTES:
            raise ConfigError("The list of terms is too large.", where=path, rule=f"at most {MAX_TERMS_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            "The list of terms cannot be read.", where=path, value=error.strerror, next_step=f"Set {key} to a text file."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "The list of terms is not UTF-8.", where=path, value=f"byte {error.start}", next_step="Save the file as UTF-8, one term a line."
        ) from None
    lines = [line.strip() for line in text.split("\n")]  # not splitlines: U+2028 does not end a line here
    if lines and not lines[-1]:
        lines.pop()  # what follows the last newline
    named = [line for line in lines if line]
    if not named:
        raise ConfigError("The list of terms holds no term.", where=path, next_step=f"Write one term a line, or unset {key}.")
    distinct = dict.fromkeys(named)
    remarks = []
    if len(named) < len(lines):
        remarks.append(f"{len(lines) - len(named)} blank lines of the term list were passed over")
    if len(distinct) < len(named):
        seen: set[str] = set()
        twice = dict.fromkeys(term for term in named if term in seen or seen.add(term))  # type: ignore[func-returns-value]  # add gives None
        shown = ", ".join(map(printable, list(twice)[:NUM_NAMED])) + (", ..." if len(twice) > NUM_NAMED else "")
        remarks.append(f"{len(named) - len(distinct)} repeated terms were passed over: {shown}")
    return Terms(tuple(distinct), tuple(remarks))
