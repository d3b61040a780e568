"""Extend a byte-level or SentencePiece BPE tokenizer by domain pieces, prove the contract and report: the vocab stage on plain files.

    python tools/extend_vocab.py --base path/to/hf_folder --domain law.jsonl --general english.jsonl \\
        --num-new-pieces 512 --document-separator '<|endoftext|>' --output extended/

The output folder holds `tokenizer/`, `report.md`, `contract.json`, `new_pieces.jsonl` and `vocab_layout.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from megatron_cpt.config.schema import ProvenanceConfig, SourceConfig, TokenizerConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.record.manifest import StageResult, build_stage
from megatron_cpt.vocab.build import build_vocab


def source(path: str, role: str, test_fraction: float) -> SourceConfig:
    here = "not recorded (tools/extend_vocab.py)"
    return SourceConfig(
        path=path, role=role, licence=here, provenance=ProvenanceConfig(here, here, here), language=here, test_fraction=test_fraction
    )


def refuse_model(role: str, given: str, base: Path) -> None:
    """Refuse a trained vocabulary where text is wanted: pieces are learned from text by the base's own kind of merges.

    Raises:
        ConfigError: it is one; the route for this base is named.
    """
    if Path(given).suffix not in {".model", ".vocab", ".tiktoken"} and Path(given).name not in {
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
    }:
        return
    kind = "a SentencePiece model" if Path(given).suffix == ".model" else "a tokenizer's file"
    of_base = "SentencePiece" if (base / "tokenizer.model").is_file() else "byte-level BPE"
    raise ConfigError(
        f"--{role} is {kind}, not text: two vocabularies are not merged here.",
        where=given,
        rule=f"the base is {of_base} and is extended by merges of its own kind, learned from text; another vocabulary has no such merges",
        next_step="Give the text that it was trained on (.jsonl, .txt, .parquet); to force its words in, list them in --terms.",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base: config.json, tokenizer.json or .model")
    parser.add_argument("--domain", required=True, help="file, folder or glob of domain text")
    parser.add_argument("--general", required=True, help="file, folder or glob of general text, whose encoding stays as it is")
    parser.add_argument("--num-new-pieces", type=int, required=True, help="how many pieces are added")
    parser.add_argument("--document-separator", required=True, help="the token that ends a document, as the base was trained")
    parser.add_argument("--terms", default="", help="UTF-8 file of terms to force in as pieces, one a line")
    parser.add_argument("--max-drift", type=float, default=0.0, help="share of general documents whose ids the terms may change")
    parser.add_argument("--pad-rows-to-multiple", type=int, default=128, help="padded rows are a multiple of this")
    parser.add_argument("--sample-bytes", type=int, default=8_000_000, help="how much domain text pieces are learnt from")
    parser.add_argument("--test-fraction", type=float, default=0.05, help="share of documents that is held out for the report")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    chosen = parser.parse_args(arguments)
    settings = TokenizerConfig(
        num_new_pieces=chosen.num_new_pieces,
        document_separator=chosen.document_separator,
        pad_rows_to_multiple=chosen.pad_rows_to_multiple,
        sample_bytes=chosen.sample_bytes,
        terms=chosen.terms,
        max_drift=chosen.max_drift,
    )
    sources = {role: source(getattr(chosen, role), role, chosen.test_fraction) for role in ("domain", "general")}
    try:
        for role in ("domain", "general"):
            refuse_model(role, getattr(chosen, role), chosen.base)
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
