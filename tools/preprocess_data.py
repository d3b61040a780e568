"""Tokenise JSON lines to Megatron's `.bin/.idx`, with the flags of Megatron-LM's own tool.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model path/to/hf_folder --append-eod --workers 8

Writes `<output-prefix>_<key>_document.bin`, `.idx` and a record of both, `.json`, for each of `--json-keys`. Records that cannot be used
(no such key, null, not a string, blank, not UTF-8) are left out and counted. Texts themselves are indexed as they are: cleaning,
deduplication and splitting belong to the corpus stage of `megatron-cpt`. docs/reference/token-index.md says which flags are refused,
and why.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_cpt.corpus.readers import Row, ZstdDamage, is_readable, open_stream, read_records
from megatron_cpt.corpus.sources import files_of
from megatron_cpt.errors import ConfigError, CptError, DataError
from megatron_cpt.record.hashing import sha256_file, sha256_plain

if TYPE_CHECKING:
    from megatron_cpt.index.batches import Batch

RECORDS_AT_ONCE = 256  # of parquet and text files
SENTENCES = "sentences are split by a pickle that NLTK downloads; BERT and T5 need them, continued pretraining does not"
WORKERS = "one process encodes on all threads: give --workers their number"
REFUSED = {
    "--split-sentences": SENTENCES, "--keep-newlines": SENTENCES, "--lang": SENTENCES,
    "--find-optimal-num-workers": WORKERS, "--workers-to-check": WORKERS, "--max-documents": WORKERS, "--performance-dir": WORKERS,
    "--trust-remote-code": "nothing that a tokenizer's folder brings along is executed",
    "--tokenizer-hf-include-special-tokens": "documents begin with their text, as training windows are cut anywhere",
    "--tokenizer-sentencepiece-legacy": "ids are those of the library itself",
    "--tokenizer-special-tokens": "a vocabulary that grows here has no rows in the model: extend it by the vocab stage",
    "--vocab-extra-ids": "a vocabulary that grows here has no rows in the model: extend it by the vocab stage",
    "--tokenizer-metadata": "it names classes to be executed",
    "--tiktoken-pattern": "tiktoken files are not read", "--tiktoken-num-special-tokens": "tiktoken files are not read",
    "--tiktoken-special-tokens": "tiktoken files are not read", "--vocab-size": "the size is the tokenizer's own",
}  # fmt: skip


def input_files(pattern: str) -> list[tuple[str, Path]]:
    """Return the files of a path, folder or glob; a file of another name is read as JSON lines, as Megatron-LM's tool does."""
    path = Path(pattern).expanduser()
    if path.is_file() and not is_readable(path):
        return [(path.name, path)]
    return files_of("input", pattern)


def batches_of(files: list[tuple[str, Path]], key: str) -> Iterator[Batch]:
    """Yield the texts of one key in the order of files and lines.

    Raises:
        DataError: a file cannot be read, or its compressed stream is cut or damaged.
    """
    from megatron_cpt.index.batches import batch_of, read_batches  # noqa: PLC0415 - threads are set before tokenizers is imported

    for _, path in files:
        if path.name.lower().endswith((".txt", ".txt.gz", ".txt.zst", ".parquet")):
            records = (
                (record.line, record.fields if isinstance(record, Row) else record.reason) for record in read_records(path, text_keys=[key])
            )
            while some := [record for _, record in zip(range(RECORDS_AT_ONCE), records, strict=False)]:
                yield batch_of(some, key=key)
            continue
        try:
            with open_stream(path) as stream:
                yield from read_batches(stream, key=key)
        except (EOFError, zlib.error, gzip.BadGzipFile, ZstdDamage) as error:
            raise DataError(
                "A compressed file is cut or damaged.", where=path, value=str(error) or type(error).__name__,
                rule="an incomplete file is never taken for a whole one",
            ) from None  # fmt: skip
        except OSError as error:
            raise DataError("A file cannot be read.", where=path, value=error.strerror or str(error)) from None


class Progress:
    """Megatron-LM's line on stderr, about every `interval` documents."""

    def __init__(self, interval: int) -> None:
        self._interval, self._next, self._begun = interval, interval, time.monotonic()

    def __call__(self, records: int, num_bytes: int) -> None:
        if records >= self._next:
            self._next = records - records % self._interval + self._interval
            seconds = max(time.monotonic() - self._begun, 1e-9)
            rates = f"({records / seconds:.0f} docs/s, {num_bytes / seconds / 2**20:.1f} MB/s)."
            print(f"Processed {records} documents {rates}", file=sys.stderr)


def run(chosen: argparse.Namespace) -> None:
    from megatron_cpt.index.shards import spread_samples  # noqa: PLC0415 - threads are set before tokenizers is imported
    from megatron_cpt.index.tokenizer_types import codec_of, end_id_of  # noqa: PLC0415
    from megatron_cpt.index.write import Job, write_index  # noqa: PLC0415

    files = input_files(chosen.input)
    codec = codec_of(chosen.tokenizer_type, model=chosen.tokenizer_model, vocab_file=chosen.vocab_file, merge_file=chosen.merge_file)
    end_id, end_token = None, None
    if chosen.append_eod:
        end_id, end_token = end_id_of(codec, kind=chosen.tokenizer_type, model=chosen.tokenizer_model, named=chosen.eod_token)
    with ThreadPoolExecutor(1) as aside:
        digests: Future[dict[str, str]] = aside.submit(lambda: {name: sha256_file(path) for name, path in files})
        for key in chosen.json_keys:
            prefix = Path(f"{chosen.output_prefix}_{key}_document")
            prefix.parent.mkdir(parents=True, exist_ok=True)

            def inputs(key: str = key) -> dict[str, Any]:
                tokenizer = sha256_plain([codec.sha256, end_id])
                return {"texts": digests.result(), "key": key, "tokenizer_fingerprint": tokenizer, "end_of_document_id": end_id}

            plain = [path for _, path in files if not path.name.lower().endswith((".gz", ".zst", ".parquet", ".txt"))]
            job = Job(
                prefix, codec, lambda key=key: batches_of(files, key), end_id, inputs,  # type: ignore[misc]
                labels={name: value for name, value in (("source", chosen.source), ("licence", chosen.licence)) if value},
                samples=[text for path in plain[:: max(1, len(plain) // 8)] for text in spread_samples(path, key=key)],
                tokenizer={"type": chosen.tokenizer_type, "end_of_document_token": end_token},
                progress=Progress(chosen.log_interval), fast=not chosen.no_fast,
            )  # fmt: skip
            record = write_index(job, say=lambda line: print(line, file=sys.stderr))
            encoder = record["encoder"]
            print(f"{prefix}: {record['documents']:,} documents, {record['tokens']:,} tokens, {record['dtype']}")
            print(f"  encoded by {encoder['name']} {encoder['version']}: {encoder['reason']}")
            for reason, count in sorted(record["left_out"].items(), key=lambda pair: -pair[1]):
                print(f"  left out: {reason} {count:,}")


def check_flags(chosen: argparse.Namespace) -> None:
    """Refuse what cannot be honoured, by name.

    Raises:
        ConfigError: a flag is refused, or values do not go together.
    """
    for flag, reason in REFUSED.items():
        if getattr(chosen, flag[2:].replace("-", "_")) is not None:
            raise ConfigError("This flag is refused.", where=flag, rule=reason)
    if chosen.workers < 1 or chosen.partitions < 1 or chosen.log_interval < 1:
        raise ConfigError("A number below 1 is refused.", where="--workers, --partitions, --log-interval")
    if chosen.partitions > 1 and not chosen.keep_sequential_samples:
        raise ConfigError(
            "Partitions would deal the documents out in turn and so change their order.", where="--partitions", value=chosen.partitions,
            next_step="Leave it out, or add --keep-sequential-samples; the speed does not depend on it.",
        )  # fmt: skip
    repeated = {key for key in chosen.json_keys if chosen.json_keys.count(key) > 1}
    if repeated:
        raise ConfigError("A key is named twice.", where="--json-keys", value=", ".join(sorted(repeated)))


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--input", required=True, help="a file, folder or glob of .jsonl, .jsonl.gz, .jsonl.zst")
    flags.add_argument("--output-prefix", required=True, help="path of what is written, without an ending")
    flags.add_argument("--json-keys", nargs="+", default=["text"], help="fields that hold text, an index each")
    flags.add_argument(
        "--tokenizer-type", default="HuggingFaceTokenizer", help="HuggingFaceTokenizer, GPT2BPETokenizer, SentencePieceTokenizer"
    )
    flags.add_argument("--tokenizer-model", help="a folder with a tokenizer.json, that file, or a SentencePiece .model")
    flags.add_argument("--vocab-file", help="GPT-2's vocab.json")
    flags.add_argument("--merge-file", help="GPT-2's merges.txt")
    flags.add_argument("--append-eod", action="store_true", help="end each document with the tokenizer's end token, or --eod-token")
    flags.add_argument("--eod-token", help="the end-of-document token, where it is not the tokenizer's own")
    flags.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="encoding threads (default: all cores)")
    flags.add_argument("--log-interval", type=int, default=1000, help="documents between lines of progress")
    flags.add_argument("--partitions", type=int, default=1, help="more than 1 only with --keep-sequential-samples; changes nothing")
    flags.add_argument("--keep-sequential-samples", action="store_true", help="the order of the input is always kept")
    flags.add_argument("--dataset-impl", choices=["mmap"], default="mmap", help="the one format that there is")
    flags.add_argument("--tokenizer-hf-use-fast", action="store_true", help="always so")
    flags.add_argument("--make-vocab-size-divisible-by", type=int, help="changes nothing in an index")
    flags.add_argument("--source", help="label of documents whose record has no `source`")
    flags.add_argument("--licence", help="label of documents whose record has no `licence`")
    flags.add_argument("--no-fast", action="store_true", help="encode with the reference library alone")
    for flag in REFUSED:
        flags.add_argument(flag, nargs="*", help=argparse.SUPPRESS)
    return flags


def main(arguments: list[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    os.environ["RAYON_NUM_THREADS"] = str(max(1, chosen.workers))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        check_flags(chosen)
        run(chosen)
    except CptError as error:
        print(f"preprocess_data: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; freeing a vocabulary piece by piece would take another tenth of a second
