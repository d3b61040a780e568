"""Show, check and decode a Megatron `.bin/.idx` pair.

python tools/inspect_index.py runs/my_run/index/china_law.train
python tools/inspect_index.py PREFIX --tokenizer runs/my_run/vocab/tokenizer --documents 2 --append-eod-id 0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_cpt.errors import CptError, printable
from megatron_cpt.record.index_pair import open_pair
from megatron_cpt.index.verify import verify_index
from megatron_cpt.record.tokenizer_file import load_tokenizer


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path, help="path without .bin or .idx")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json: decode documents, and check ids against it")
    parser.add_argument("--documents", type=int, default=2, help="how many documents to show")
    parser.add_argument("--append-eod-id", type=int, help="check that each document ends in this id, once")
    chosen = parser.parse_args(arguments)
    prefix = chosen.prefix.with_suffix("") if chosen.prefix.suffix in (".bin", ".idx") else chosen.prefix
    try:
        index = open_pair(prefix)
        tokenizer = load_tokenizer(chosen.tokenizer / "tokenizer.json") if chosen.tokenizer else None
        lengths, tokens = index.lengths, index.tokens
        print(f"{prefix}: {index.num_documents:,} documents, {lengths.size:,} sequences, {tokens.size:,} tokens, {tokens.dtype}")
        print(
            f"tokens a sequence: least {lengths.min():,}, mean {lengths.mean():,.1f}, most {lengths.max():,}; largest id {tokens.max():,}"
        )
        if chosen.append_eod_id is not None:
            num_ids = 1 + max(tokenizer.get_vocab().values()) if tokenizer else 1 + int(tokens.max())
            verify_index(prefix, num_ids=num_ids, end_id=chosen.append_eod_id, num_documents=index.num_documents)
            print(f"every document ends in one id {chosen.append_eod_id}; every id is in range")
        for number in range(min(chosen.documents, index.num_documents)):
            ids = index.document(number)
            text = tokenizer.decode(ids[:200].tolist(), skip_special_tokens=False) if tokenizer else " ".join(map(str, ids[:40]))
            print(f"[{number}] {ids.size:,} tokens: {printable(text)[:400]}")
    except CptError as error:
        print(f"inspect_index: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
