"""Train SentencePiece BPE and Unigram vocabularies on a text and compare their fit to held-out text.

    python tools/train_tokenizer.py --input law.jsonl --num-pieces 1000 4000 8000

Prints one line for each kind and size. To extend a base model's vocabulary use tools/extend_vocab.py: replacing it would lose the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from megatron_cpt.config.schema import SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import CptError
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.vocab.candidates import sentences, train_candidate
from megatron_cpt.vocab.documents import sampled
from megatron_cpt.vocab.measure import measure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="file, folder or glob of text")
    parser.add_argument("--num-pieces", type=int, nargs="+", required=True)
    parser.add_argument("--kind", nargs="+", choices=["bpe", "unigram"], default=["bpe", "unigram"])
    parser.add_argument("--sample-bytes", type=int, default=8_000_000)
    parser.add_argument("--test-fraction", type=float, default=0.05)
    chosen = parser.parse_args(arguments)
    here = "not recorded (tools/train_tokenizer.py)"
    source = SourceConfig(
        path=chosen.input, role="domain", licence=here, provenance=here, language=here, test_fraction=chosen.test_fraction
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            corpus = StageResult(Path(scratch))
            build_corpus(corpus, sources={"input": source}, say=print)
            sample = sentences(sampled(corpus.folder, corpus.facts, ["input"], sides=["train"], max_bytes=chosen.sample_bytes))
            for num_pieces in chosen.num_pieces:
                for kind in chosen.kind:
                    candidate = train_candidate(kind, sample, num_pieces=num_pieces)
                    held_out = sampled(corpus.folder, corpus.facts, ["input"], sides=["test"], max_bytes=chosen.sample_bytes)
                    fit = measure(
                        candidate.encode, held_out, fragments=candidate.fragments, unknown_id=candidate.unknown_id, first_new_id=None
                    )
                    assert fit is not None, "the corpus stage refuses an empty test side"
                    print(
                        f"{kind} {candidate.num_pieces:,} pieces: {fit.bytes_per_token:.3f} bytes per token, "
                        f"{fit.tokens_per_char:.4f} tokens per character, {fit.byte_fragment_rate:.2%} byte fragments, "
                        f"{fit.ids_used:,} of {fit.num_ids:,} ids used"
                    )
    except CptError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
