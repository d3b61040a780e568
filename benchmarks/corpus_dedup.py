"""Near-duplicates of real texts: the corpus stage against datatrove's stock MinHash pipeline, in time, recall and precision.

    pip install spacy orjson "xxhash<4"      # what the stock pipeline cuts English into words with, reads and hashes by
    pip download --no-deps -d data/downloads scancode-toolkit-mini==32.5.0
    python benchmarks/corpus_dedup.py --runs 3

The texts are the licence rules of that wheel without their YAML heads, in two jsonl files. Both sides use runs of 5 words and 14 bands of
8 minima, one worker, and start as a process of their own, by turns. Theirs is Signature, Buckets, Cluster and Filter. Ours is the whole
corpus stage from jsonl to jsonl, in two forms: `plain` with their rule, one document stays of all that hang together by shared bands
(`corpus.dedup.near.verify: false`), and `verified`, our default, each candidate counted exactly (similarity 0.8). Medians of wall and
CPU time.

Recall: of the pairs of a random sample whose exact Jaccard similarity is at least 0.8 (runs of 5 words in lower case, without
punctuation, counted here with Python's own sets), the share of which at most one document is kept. Precision: of the documents that
went, the share that are so similar to the document that is kept in their place.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from bench_figures import note  # beside this script

WHEEL = "scancode_toolkit_mini-32.5.0-cp311-none-any.whl"
RULE = re.compile(r"licensedcode/data/rules/[^/]+\.RULE")
WORD = re.compile(r"[^\W_]+")
NGRAM, BANDS, ROWS, SIMILAR = 5, 14, 8, 0.8
SEED = 1


def rules(wheel: Path) -> list[str]:
    """Return the licence rules without their YAML heads, by name."""
    with zipfile.ZipFile(wheel) as archive:
        texts = [archive.read(name).decode("utf-8") for name in sorted(archive.namelist()) if RULE.fullmatch(name)]
    return [re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip() for text in texts]


def ours(folder: Path, *, verify: bool) -> None:
    from megatron_cpt.config.schema import (  # noqa: PLC0415
        CorpusConfig,
        DedupConfig,
        EngineConfig,
        NearDedupConfig,
        ProvenanceConfig,
        SourceConfig,
    )
    from megatron_cpt.corpus.build import build_corpus  # noqa: PLC0415
    from megatron_cpt.record.manifest import StageResult  # noqa: PLC0415

    near = NearDedupConfig(enabled=True, num_bands=BANDS, rows_per_band=ROWS, ngram=NGRAM, threshold=SIMILAR, verify=verify, seed=SEED)
    source = SourceConfig(
        path=str(folder / "in"), role="general", licence="CC-BY-4.0", language="en", test_fraction=0.0,
        provenance=ProvenanceConfig(origin="scancode-toolkit-mini 32.5.0", date="2026", obtained="pip"),
    )  # fmt: skip
    result = StageResult(folder / "ours")
    result.folder.mkdir()
    settings = CorpusConfig(engine=EngineConfig(workers=1), dedup=DedupConfig(near=near))
    build_corpus(result, sources={"rules": source}, settings=settings, say=lambda line: None)


def stock(folder: Path) -> None:
    from datatrove.executor.local import LocalPipelineExecutor  # noqa: PLC0415
    from datatrove.pipeline.dedup import (  # noqa: PLC0415
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig  # noqa: PLC0415
    from datatrove.pipeline.readers import JsonlReader  # noqa: PLC0415
    from datatrove.pipeline.writers import JsonlWriter  # noqa: PLC0415

    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS, seed=SEED)
    standard = MinhashConfig()
    assert (standard.n_grams, standard.num_buckets, standard.hashes_per_bucket) == (NGRAM, BANDS, ROWS), "these are its own defaults"
    out = folder / "stock"
    sigs, buckets, clusters = (str(out / name) for name in ("sigs", "buckets", "clusters"))
    reader = JsonlReader(str(folder / "in"), glob_pattern="*.jsonl")
    for name, tasks, pipeline in (
        ("1", 2, [reader, MinhashDedupSignature(sigs, config=config)]),
        ("2", BANDS, [MinhashDedupBuckets(sigs, buckets, config=config)]),
        ("3", 1, [MinhashDedupCluster(buckets, clusters, config=config, save_cluster_id=True)]),
        ("4", 2, [reader, MinhashDedupFilter(clusters), JsonlWriter(str(out / "kept"), compression=None)]),
    ):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / f"logs{name}"), start_method="fork").run()


def timed(side: str, folder: Path) -> tuple[float, float]:
    """Run one side as a process of its own; return wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, __file__, "--side", side, "--folder", str(folder)], check=False, capture_output=True, text=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours_kept(folder: Path, lines: list[int]) -> dict[int, int]:
    """Return for each document that went the one that is kept in its place, by number."""
    first_line = {"0.jsonl": 0, "1.jsonl": lines[0]}
    kept = {}
    for line in (folder / "ours/rejects/rules.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["reason"] in ("duplicate", "near_duplicate"):
            kept[first_line[row["file"]] + row["line"] - 1] = int(row["detail"].rpartition("rules: ")[2])
    return kept


def stock_kept(folder: Path, lines: list[int]) -> dict[int, int]:
    cluster_of: dict[int, int] = {}
    removed: set[int] = set()
    for file, first in enumerate((0, lines[0])):
        pairs = (folder / f"stock/clusters/{file:06d}.clusters").read_bytes()
        cluster_of.update((first + document, cluster) for document, cluster in struct.iter_unpack("<2I", pairs))
        gone = (folder / f"stock/clusters/{file:06d}.remove").read_bytes()
        removed |= {first + document for (document,) in struct.iter_unpack("<I", gone)}
    stays = {cluster: document for document, cluster in cluster_of.items() if document not in removed}
    return {document: stays[cluster_of[document]] for document in removed}


def shingles_of(text: str) -> frozenset[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return frozenset(tuple(words[begin : begin + NGRAM]) for begin in range(max(1, len(words) - NGRAM + 1))) if words else frozenset()


def similar_pairs(shingles: dict[int, frozenset[tuple[str, ...]]]) -> list[tuple[int, int]]:
    """Return all pairs of at least `SIMILAR`, by counting what each document has in common with each."""
    numbers = [number for number, mine in shingles.items() if mine]
    holders = defaultdict(list)
    for place, number in enumerate(numbers):
        for shingle in shingles[number]:
            holders[shingle].append(place)
    arrays = {shingle: np.array(places) for shingle, places in holders.items()}
    sizes = np.array([len(shingles[number]) for number in numbers])
    pairs = []
    for place, number in enumerate(numbers):
        common = np.bincount(np.concatenate([arrays[shingle] for shingle in shingles[number]]), minlength=len(numbers))
        similar = np.flatnonzero(common >= SIMILAR * (sizes + sizes[place] - common))
        pairs += [(number, numbers[other]) for other in similar.tolist() if other > place]
    return pairs


def quality(kept: dict[int, int], pairs: list[tuple[int, int]], texts: list[str]) -> str:
    found = sum(one in kept or two in kept for one, two in pairs)
    right = 0
    for gone, stays in kept.items():
        one, two = shingles_of(texts[gone]), shingles_of(texts[stays])
        right += len(one & two) >= SIMILAR * len(one | two)
    return f"{len(kept):,} went, recall {found / max(1, len(pairs)):.3f}, precision {right / max(1, len(kept)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, default=Path("data/downloads") / WHEEL)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sample", type=int, default=4000, help="documents all of whose pairs are counted exactly")
    parser.add_argument("--documents", type=int, help="the first so many of a fixed shuffle instead of all")
    parser.add_argument("--side", choices=("plain", "verified", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        if chosen.side == "stock":
            stock(chosen.folder)
        else:
            ours(chosen.folder, verify=chosen.side == "verified")
        return
    texts = [text for text in rules(chosen.wheel) if text]
    random.Random(SEED).shuffle(texts)  # noqa: S311
    texts = texts[: chosen.documents]
    half = len(texts) // 2
    sides = ("plain", "stock", "verified")
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    kept = {}
    for run in range(chosen.runs):
        for side in sides if run % 2 == 0 else sides[::-1]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "in").mkdir()
                for file, part in enumerate((range(half), range(half, len(texts)))):
                    lines = (json.dumps({"id": str(number), "text": texts[number]}) + "\n" for number in part)
                    (folder / f"in/{file}.jsonl").write_text("".join(lines), encoding="utf-8")
                times[side].append(timed(side, folder))
                kept[side] = (stock_kept if side == "stock" else ours_kept)(folder, [half])
            print(f"run {run + 1}: {side}: {times[side][-1][0]:.1f} s, {times[side][-1][1]:.1f} CPU s", flush=True)
    sample = random.Random(SEED).sample(range(len(texts)), min(chosen.sample, len(texts)))  # noqa: S311
    pairs = similar_pairs({number: shingles_of(texts[number]) for number in sample})
    wall, cpu = ({side: statistics.median(run[which] for run in runs) for side, runs in times.items()} for which in (0, 1))
    size = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    print(f"near-dedup of {len(texts):,} documents, {size:.1f} MB; {len(pairs):,} similar pairs among {len(sample):,}")
    for side in sides:
        print(
            f"  {side:<8} {wall[side]:.1f} s ({cpu[side]:.1f} CPU s), datatrove's time over it {wall['stock'] / wall[side]:.1f} "
            f"({cpu['stock'] / cpu[side]:.1f} in CPU time): {quality(kept[side], pairs, texts)}"
        )
        if side != "stock":
            detail = f"{len(texts):,} documents, {wall[side]:.1f} s against {wall['stock']:.1f} s; {quality(kept[side], pairs, texts)}"
            rule = "same rule" if side == "plain" else "each candidate counted exactly"
            note(f"near-duplicates against datatrove's MinHash, {rule}", wall["stock"] / wall[side], "times", detail=detail)


if __name__ == "__main__":
    main()
