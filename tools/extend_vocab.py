"""Extend a byte-level BPE tokenizer by domain pieces, prove the contract and report: the vocab stage on plain files.

    python tools/extend_vocab.py --base path/to/hf_folder --domain law.jsonl --general english.jsonl \\
        --num-new-pieces 512 --document-separator '<|endoftext|>' --output extended/

The output folder holds `tokenizer/`, `report.md`, `contract.json`, `new_pieces.jsonl` and `vocab_layout.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from megatron_cpt.config.schema import SourceConfig, TokenizerConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.record.manifest import StageResult, build_stage
from megatron_cpt.vocab.build import build_vocab


def source(path: str, role: str, test_fraction: float) -> SourceConfig:
    here = "not recorded (tools/extend_vocab.py)"
    return SourceConfig(path=path, role=role, licence=here, provenance=here, language=here, test_fraction=test_fraction)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base model (config.json, tokenizer.json)")
    parser.add_argument("--domain", required=True, help="file, folder or glob of domain text")
    parser.add_argument("--general", required=True, help="file, folder or glob of general text, whose encoding stays as it is")
    parser.add_argument("--num-new-pieces", type=int, required=True)
    parser.add_argument("--document-separator", required=True)
    parser.add_argument("--pad-rows-to-multiple", type=int, default=128)
    parser.add_argument("--sample-bytes", type=int, default=8_000_000)
    parser.add_argument("--test-fraction", type=float, default=0.05, help="share of documents that is held out for the report")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    chosen = parser.parse_args(arguments)
    settings = TokenizerConfig(
        num_new_pieces=chosen.num_new_pieces,
        document_separator=chosen.document_separator,
        pad_rows_to_multiple=chosen.pad_rows_to_multiple,
        sample_bytes=chosen.sample_bytes,
    )
    sources = {role: source(getattr(chosen, role), role, chosen.test_fraction) for role in ("domain", "general")}
    try:
        if chosen.output.exists():
            raise ConfigError("The output folder exists already.", where=chosen.output, next_step="Name another one, or remove it.")
        with tempfile.TemporaryDirectory() as scratch:
            corpus = StageResult(Path(scratch))
            build_corpus(corpus, sources=sources, say=print)
            build_stage(
                chosen.output,
                {"base": chosen.base.name, "settings": vars(settings)},
                lambda result: build_vocab(
                    result,
                    settings=settings,
                    base_folder=chosen.base,
                    corpus_folder=corpus.folder,
                    corpus_facts=corpus.facts,
                    say=print,
                ),
            )
    except CptError as error:
        print(f"extend_vocab: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {chosen.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
