"""Tokenise jsonl files to Megatron's `.bin/.idx`, with the flags of Megatron-LM's own tool.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model path/to/hf_folder --append-eod

Writes `<output-prefix>_<key>_document.bin` and `.idx` for each of `--json-keys`. Records that cannot be used (no such key, null, not a
string, empty, not UTF-8) are left out and counted; the counts are printed. Texts themselves are indexed as they are: cleaning,
deduplication and splitting belong to the corpus stage of `megatron-cpt`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cpt.corpus.clean import SURROGATE, text_problem
from megatron_cpt.corpus.readers import Unreadable, read_records
from megatron_cpt.corpus.sources import files_of
from megatron_cpt.errors import CptError, DataError

if TYPE_CHECKING:
    from megatron_cpt.index.encode import Document


def usable_documents(pattern: str, key: str, left_out: Counter[str]) -> Iterator[Document]:
    """Yield the texts of one key in order; count what is left out by its reason."""
    from megatron_cpt.index.encode import Document  # noqa: PLC0415 - RAYON_NUM_THREADS is set before tokenizers is imported

    number = 0
    for relative, path in files_of("input", pattern):
        for record in read_records(path, text_key=key):
            number += 1
            if isinstance(record, Unreadable):
                left_out[record.reason] += 1
            elif problem := text_problem(record.fields, key):
                left_out[problem[0]] += 1
            elif not record.fields[key].strip():
                left_out["empty_text"] += 1
            elif SURROGATE.search(record.fields[key]):
                left_out["lone_surrogate"] += 1
            else:
                yield Document(number, f"{relative}:{record.line}", record.fields[key])


def run(chosen: argparse.Namespace) -> None:
    import numpy as np  # noqa: PLC0415

    from megatron_cpt.index.encode import Faithful, encode  # noqa: PLC0415
    from megatron_cpt.index.format import IndexWriter  # noqa: PLC0415
    from megatron_cpt.record.tokenizer_file import load_tokenizer  # noqa: PLC0415

    folder = Path(chosen.tokenizer_model)
    tokenizer = load_tokenizer(folder / "tokenizer.json" if folder.is_dir() else folder)
    num_ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    faithful = Faithful(tokenizer, num_ids)
    end: list[int] = []
    if chosen.append_eod:
        end_id = tokenizer.token_to_id(chosen.eod_token)
        if end_id is None:
            special = ", ".join(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
            raise DataError(
                "The end-of-document token is not one token of this tokenizer.", where="--eod-token", value=chosen.eod_token,
                rule=f"special tokens: {special or 'none'}",
            )  # fmt: skip
        end = [end_id]
    for key in chosen.json_keys:
        left_out: Counter[str] = Counter()
        prefix = Path(f"{chosen.output_prefix}_{key}_document")
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with IndexWriter(prefix, num_ids=num_ids) as writer:
            for document, ids in encode(tokenizer, usable_documents(chosen.input, key, left_out)):
                if faithful(document.text, ids):
                    writer.add(np.append(ids, end).astype(np.int64))
                else:
                    left_out["not_encodable"] += 1
            writer.finish()
            print(f"{prefix}: {len(writer.lengths):,} documents, {sum(writer.lengths):,} tokens, {writer.dtype.name}")
        for reason, count in left_out.most_common():
            print(f"  left out: {reason} {count:,}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a file, folder or glob of .jsonl, .jsonl.gz, .jsonl.zst")
    parser.add_argument("--output-prefix", required=True)
    parser.add_argument("--json-keys", nargs="+", default=["text"])
    parser.add_argument("--tokenizer-type", choices=["HuggingFaceTokenizer"], default="HuggingFaceTokenizer")
    parser.add_argument("--tokenizer-model", required=True, help="a folder with a byte-level BPE tokenizer.json, or that file")
    parser.add_argument("--append-eod", action="store_true", help="end each document with --eod-token")
    parser.add_argument("--eod-token", default="<|endoftext|>")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="encoding threads")
    chosen = parser.parse_args(arguments)
    os.environ["RAYON_NUM_THREADS"] = str(max(1, chosen.workers))
    try:
        run(chosen)
    except CptError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
