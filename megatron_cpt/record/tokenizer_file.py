"""Opens a `tokenizer.json` in the one way in which every stage encodes documents."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from megatron_cpt.errors import DataError


def for_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """Set a tokenizer to encode documents: nothing cut or padded, and a special token's name inside a text stays plain text.

    So the end-of-document id stands only where a stage puts it, and index and evaluation see the same ids.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Return a tokenizer for plain text.

    Raises:
        DataError: the file is missing or cannot be loaded.
    """
    if not path.is_file():
        raise DataError("A tokenizer.json is missing.", where=path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception for any damaged content
        raise DataError("A tokenizer.json cannot be loaded.", where=path, value=str(error)[:300]) from None
    return for_plain_text(tokenizer)
