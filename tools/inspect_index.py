"""Show, verify, decode and merge Megatron `.bin/.idx` pairs.

python tools/inspect_index.py runs/my_run/index/china_law.train
python tools/inspect_index.py PREFIX --tokenizer runs/my_run/vocab/tokenizer --documents 2 --append-eod-id 0
python tools/inspect_index.py PREFIX --verify
python tools/inspect_index.py PREFIX PREFIX2 --merge-to BOTH
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from megatron_cpt.errors import ConfigError, CptError, printable
from megatron_cpt.index.merge import merge_indexes
from megatron_cpt.index.sidecar import check_digests, read_sidecar
from megatron_cpt.index.tokenizer_types import codec_of
from megatron_cpt.index.verify import verify_index
from megatron_cpt.record.index_pair import IndexPair, id_range, open_pair, sidecar_path


def show(pair: IndexPair) -> None:
    """Print an index's figures, and those of its record."""
    lengths, dtype = pair.lengths, pair.tokens.dtype
    print(f"{pair.prefix}: {pair.num_documents:,} documents, {lengths.size:,} sequences, {pair.num_tokens:,} tokens, {dtype}")
    if lengths.size and pair.num_tokens:
        span = f"least {lengths.min():,}, mean {lengths.mean():,.1f}, most {lengths.max():,}"
        print(f"tokens a sequence: {span}; largest id {id_range(pair)[1]:,}")
    if not sidecar_path(pair.prefix).is_file():
        print("no record beside it")
        return
    record = read_sidecar(pair.prefix)
    print(f"tokenizer sha256 {record['tokenizer']['sha256'][:16]}, end-of-document id {record['tokenizer']['end_of_document_id']}")
    print(f"encoded by {record['encoder']['name']}: {record['encoder'].get('reason', '')}")
    for group in ("by_source", "by_licence"):
        for label, counts in record[group].items():
            print(f"{group[3:]} {printable(label)}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    for reason, count in record["left_out"].items():
        print(f"left out: {reason} {count:,}")


def verify(pair: IndexPair, *, end_id: int | None, num_ids: int | None) -> None:
    """Check an index, and with its record every byte of it.

    Raises:
        DataError: saying what is wrong.
    """
    record = read_sidecar(pair.prefix) if sidecar_path(pair.prefix).is_file() else None
    if record:
        check_digests(pair.prefix, record)
        end_id = record["tokenizer"]["end_of_document_id"] if end_id is None else end_id
        num_ids = num_ids or record["tokenizer"]["num_ids"]
    num_ids = num_ids or 1 + np.iinfo(pair.tokens.dtype).max
    verify_index(pair.prefix, num_ids=num_ids, end_id=end_id, num_documents=record["documents"] if record else pair.num_documents)
    if end_id is not None:
        print(f"every document ends in one id {end_id}; every id is in range")
    print("both files are those of the record" if record else "sizes, lengths, offsets and documents agree")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefixes", type=Path, nargs="+", metavar="PREFIX", help="path without .bin or .idx")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with a tokenizer.json or a .model: decode documents, and check ids against it"
    )
    parser.add_argument("--documents", type=int, default=2, help="how many documents to show")
    parser.add_argument("--append-eod-id", type=int, help="check that each document ends in this id, once")
    parser.add_argument("--verify", action="store_true", help="check sizes, ids, end marks and, with a record, digests")
    parser.add_argument("--merge-to", type=Path, metavar="PREFIX", help="write the documents of all prefixes as one index")
    chosen = parser.parse_args(arguments)
    prefixes = [prefix.with_suffix("") if prefix.suffix in (".bin", ".idx") else prefix for prefix in chosen.prefixes]
    try:
        if chosen.merge_to:
            show(merge_indexes(prefixes, chosen.merge_to))
            return 0
        if len(prefixes) > 1:
            raise ConfigError("Several prefixes go with --merge-to.", where="PREFIX", value=", ".join(map(str, prefixes)))
        pair = open_pair(prefixes[0])
        codec = None
        if chosen.tokenizer:
            kind = "SentencePieceTokenizer" if chosen.tokenizer.suffix == ".model" else "HuggingFaceTokenizer"
            codec = codec_of(kind, model=str(chosen.tokenizer), vocab_file=None, merge_file=None)
        show(pair)
        if chosen.verify or chosen.append_eod_id is not None:
            verify(pair, end_id=chosen.append_eod_id, num_ids=codec.num_ids if codec else None)
        for number in range(min(chosen.documents, pair.num_documents)):
            ids = pair.document(number)
            text = codec.back(ids[:200].tolist()) if codec else " ".join(map(str, ids[:40]))
            print(f"[{number}] {ids.size:,} tokens: {printable(text)[:400]}")
    except CptError as error:
        print(f"inspect_index: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
