"""Read a tokenizer.json in a process of its own and print the ids that the texts of a probe get, as JSON.

    python reload_script.py <tokenizer.json> <probe.json>

It imports nothing of this package, so that any Python with the tokenizers library can run it: a fresh process, or an older release.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tokenizers


def ids_of(tokenizer_path: str, probe_path: str) -> list[list[int]]:
    texts = json.loads(Path(probe_path).read_text(encoding="utf-8"))["texts"]
    tokenizer = tokenizers.Tokenizer.from_file(tokenizer_path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


if __name__ == "__main__":
    print(json.dumps({"tokenizers": tokenizers.__version__, "ids": ids_of(sys.argv[1], sys.argv[2])}))
