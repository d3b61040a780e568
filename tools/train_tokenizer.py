"""Train vocabularies on a text, compare their fit to held-out text with a base's, and save models and report.

    python tools/train_tokenizer.py --domain law.jsonl --general english.jsonl --sizes 1000 4000 8000 --output candidates/

For each kind and size the output folder holds a folder with `tokenizer.model` (SentencePiece) or `tokenizer.json` (byte-level BPE), and
beside them `report.json`, `report.md` and `report.html`. To extend a base model's vocabulary use tools/extend_vocab.py: replacing it
would lose the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from megatron_cpt.config.schema import CompareConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.record.manifest import StageResult, build_stage
from megatron_cpt.record.term_list import read_terms
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.vocab.base import load_base
from megatron_cpt.vocab.candidates import KINDS, NORMALISERS
from megatron_cpt.vocab.compare import Texts, check_compare, write_comparison
from megatron_cpt.vocab.documents import sampled

ROLES = ("domain", "general")


def source(path: str, role: str, test_fraction: float) -> SourceConfig:
    here = "not recorded (tools/train_tokenizer.py)"
    return SourceConfig(
        path=path, role=role, licence=here, provenance=ProvenanceConfig(here, here, here), language=here, test_fraction=test_fraction
    )


def base_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a base: any tokenizer.json, or an older form that can be extended."""
    path = folder / "tokenizer.json"
    return load_tokenizer(path) if path.is_file() else load_base(folder).tokenizer


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", required=True, help="file, folder or glob of the text to train on")
    parser.add_argument("--general", help="file, folder or glob of other text, to measure on only")
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="pieces beside single bytes and marks")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds to train")
    parser.add_argument("--base", type=Path, help="Hugging Face folder whose tokenizer is measured beside the candidates")
    parser.add_argument("--terms", type=Path, help="UTF-8 file of terms, one a line, whose coverage is measured")
    parser.add_argument("--normaliser", choices=NORMALISERS, default="identity", help="what is done to the text first")
    parser.add_argument("--sample-bytes", type=int, default=8_000_000, help="how much of the text is trained on")
    parser.add_argument("--held-out-bytes", type=int, default=2_000_000, help="how much of each role is measured on")
    parser.add_argument("--test-fraction", type=float, default=0.05, help="share of documents that is held out")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    chosen = parser.parse_args(arguments)
    settings = CompareConfig(kinds=chosen.kinds, sizes=chosen.sizes, sample_bytes=chosen.sample_bytes, normaliser=chosen.normaliser)
    try:
        if chosen.output.exists():
            raise ConfigError("The output folder exists already.", where=chosen.output, next_step="Name another one, or remove it.")
        check_compare(settings)
        terms = read_terms(chosen.terms) if chosen.terms else None
        base = base_tokenizer(chosen.base) if chosen.base else None
        with tempfile.TemporaryDirectory() as scratch:
            corpus = StageResult(Path(scratch))
            roles = [role for role in ROLES if getattr(chosen, role)]
            build_corpus(corpus, sources={role: source(getattr(chosen, role), role, chosen.test_fraction) for role in roles}, say=print)

            def take(role: str, side: str, max_bytes: int) -> Texts:
                def texts() -> Iterator[str]:
                    return sampled(corpus.folder, corpus.facts, [role], sides=[side], max_bytes=max_bytes)

                return texts

            build_stage(
                chosen.output,
                {"settings": vars(settings)},
                lambda result: write_comparison(
                    result.folder,
                    settings,
                    take("domain", "train", chosen.sample_bytes),
                    {role: take(role, "test", chosen.held_out_bytes) for role in roles},
                    base=base,
                    terms=terms,
                    say=print,
                ),
            )
    except CptError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {chosen.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
