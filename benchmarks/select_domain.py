"""Does the selection find a domain? Precision by size of the target, with the paper's weights and with the prior, on real text.

    python benchmarks/select_domain.py        # after: python tools/fetch_samples.py china_law war_and_peace us_history surgery

Prints the share of the wanted domain among as many chosen passages as a quarter of what the pool holds of it, and megabytes a CPU second.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import time
from pathlib import Path

import numpy as np
from bench_figures import note  # beside this script

from megatron_cpt.config.schema import SelectConfig
from megatron_cpt.corpus.select.choose import Documents, Features, Selector, choose, count_buckets
from megatron_cpt.record.hashing import sha256_text

SIZES = (2, 8, 40, 200)  # passages of the target
SAMPLES = ("china_law", "war_and_peace", "surgery", "us_history")
PASSAGE_CHARS, PASSAGES_OF_A_DOCUMENT, DOCUMENTS_OF_A_SOURCE = 600, 3, 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=Path, default=Path("data/samples"))
    texts = read_texts(parser.parse_args().samples)
    num_bytes = sum(len(text.encode()) for those in texts.values() for text in those)
    started = time.process_time()
    for those in texts.values():
        features_of(those, SelectConfig())
    rate = num_bytes / 1e6 / (time.process_time() - started)
    note("selection's features", rate, "MB a CPU second", detail=f"{num_bytes / 1e6:.1f} MB")
    print(f"features: {rate:.1f} MB a CPU second over {num_bytes / 1e6:.1f} MB")
    print("| target | passages in it | paper's weights | prior 1.0 | at random |\n| --- | ---: | ---: | ---: | ---: |")
    for domain in ("surgery", "us_history", "china_law"):
        for size in SIZES:
            found, at_random = precision(texts, domain, size)
            if size == SIZES[-1]:
                note(f"share of {domain} among the chosen, {size} passages as target", found[1], "", detail=f"at random {at_random:.2f}")
            print(f"| {domain} | {size} | {found[0]:.2f} | {found[1]:.2f} | {at_random:.2f} |")


def read_texts(folder: Path) -> dict[str, list[str]]:
    texts = {name: [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").open(encoding="utf-8")] for name in SAMPLES}
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return {**texts, "python": [path.read_text(encoding="utf-8", errors="replace") for path in library]}


def precision(texts: dict[str, list[str]], domain: str, size: int) -> tuple[list[float], float]:
    """Return the domain's share among the chosen without and with the prior, and its share in the pool."""
    draw = random.Random(size)  # noqa: S311 - a fixed draw, for the same table each time
    pool: list[str] = []
    labels: list[str] = []
    target: list[str] = []
    for name, documents in texts.items():
        starts = range(0, PASSAGE_CHARS * PASSAGES_OF_A_DOCUMENT, PASSAGE_CHARS)
        found = [text[start : start + PASSAGE_CHARS] for text in documents[:DOCUMENTS_OF_A_SOURCE] for start in starts if start < len(text)]
        draw.shuffle(found)
        if name == domain:
            target, found = found[:size], found[size:]
        pool += found
        labels += [name] * len(found)
    is_domain = np.array([label == domain for label in labels])
    counts = count_buckets([features_of(target, SelectConfig())], np.ones(len(target), bool), SelectConfig().num_buckets)
    parts, documents_of = [features_of(pool, SelectConfig())], described(pool)
    shares = []
    for prior in (0.0, 1.0):
        settings = SelectConfig(max_documents=int(is_domain.sum()) // 4, prior_per_bucket=prior)
        choice = choose(parts, documents_of, target_counts=counts, settings=settings, seed=1)
        shares.append(float(is_domain[choice.is_chosen].mean()))
    return shares, float(is_domain.mean())


def features_of(texts: list[str], settings: SelectConfig) -> Features:
    selector = Selector(settings, ())
    found = [selector.features(text)[0] for text in texts]
    return Features(np.concatenate(found), np.array([len(buckets) for buckets in found], np.int64), np.zeros(len(found), np.int64))


def described(texts: list[str]) -> Documents:
    digests = [sha256_text(text) for text in texts]
    return Documents(
        np.array([int(digest[:16], 16) for digest in digests], np.uint64),
        np.array([int(digest[16:32], 16) for digest in digests], np.uint64),
        np.array([len(text.encode()) for text in texts], np.int64),
        np.ones(len(texts), bool),
    )


if __name__ == "__main__":
    main()
