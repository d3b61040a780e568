"""Finds what is evaluated in what is trained on: runs of words of items and held-out documents, looked for in the training index itself.

Runs are n words in normal form (n characters where a script has no spaces). The hashes of the evaluation's runs are held in memory; the
training data are decoded and streamed past them, so that memory does not grow with the corpus. No torch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from megatron_cpt.eval.subjects import extended_tokenizer
from megatron_cpt.eval.texts import read_text
from megatron_cpt.text.units import is_spaceless, units_of
from megatron_cpt.plan.run_plan import ContaminationPlan, EvalPlan, RunPlan
from megatron_cpt.record.bench import read_bench, split_examples
from megatron_cpt.record.bench_item import Item
from megatron_cpt.record.index_pair import open_pair
from megatron_cpt.record.tokenizer_file import load_tokenizer

Hashes = NDArray[np.uint64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost
BETWEEN_DOCUMENTS = np.uint64(0xD1B54A32D192ED03)  # the hash of no word
SHORTEST = 8 / 13  # of a run's length: shorter texts are like others by chance (Brown et al. 2020, appendix C: 8 words at least)
SLICE_TOKENS = 1 << 17
BATCH_TOKENS = 1 << 20
TOKENS_PER_UNIT = 32  # more than a word ever takes; slices of a long document overlap by a run of such words
MAX_CACHED_WORDS = 1 << 21
FILTER_BITS = 22
SECONDS_BETWEEN_REPORTS = 5.0
EXAMPLE_CHARACTERS = 160


@dataclass(frozen=True)
class Probe:
    """Something that is evaluated. `from_share` is the share of its runs above which it counts as seen (`or_equal`: at which)."""

    name: str
    id: str
    parts: tuple[str, ...]
    from_share: float
    or_equal: bool


@dataclass(frozen=True)
class Run:
    """A run of so many units, by its hash, and its beginning in the units of a part."""

    length: int
    hash: int
    part: int
    begin: int


class WordHashes(dict[str, int]):
    """Hashes of units, 64 bits of BLAKE2: the same in every process. Forgets everything when it has grown too large."""

    def __missing__(self, unit: str) -> int:
        if len(self) >= MAX_CACHED_WORDS:
            self.clear()
        found = int.from_bytes(hashlib.blake2b(unit.encode("utf-8"), digest_size=8).digest(), "little")
        self[unit] = found
        return found

    def of(self, units: Sequence[str]) -> Hashes:
        return np.fromiter(map(self.__getitem__, units), dtype=np.uint64, count=len(units))


def run_hashes(words: Hashes, length: int) -> Hashes:
    """Return the hash of each run of `length` units, by its beginning: a polynomial in the words' hashes modulo 2**64."""
    count = len(words) - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    total = words[:count].copy()
    for place in range(1, length):
        total *= MULTIPLIER
        total += words[place : place + count]
    return total


class Runs:
    """The runs of all probes, and which of them have been seen."""

    def __init__(self, probes: Sequence[Probe], plan: ContaminationPlan, words: WordHashes) -> None:
        self._plan, self._words = plan, words
        self.of_probe: list[list[Run]] = [self._runs(probe) for probe in probes]
        by_length: dict[int, set[int]] = {}
        for runs in self.of_probe:
            for run in runs:
                by_length.setdefault(run.length, set()).add(run.hash)
        self._hashes = {length: np.array(sorted(found), dtype=np.uint64) for length, found in by_length.items()}
        self._seen = {length: np.zeros(len(found), dtype=bool) for length, found in self._hashes.items()}
        self._filters = {length: self._filter(found) for length, found in self._hashes.items()}

    @property
    def longest(self) -> int:
        return max(self._hashes, default=0)

    def look_at(self, words: Hashes) -> None:
        """Mark the runs that stand in a row of units."""
        for length, known in self._hashes.items():
            found = run_hashes(words, length)
            found = found[self._filters[length][found >> np.uint64(64 - FILTER_BITS)]]
            if found.size:
                places = np.searchsorted(known, found)
                places[places == len(known)] = 0
                self._seen[length][places[known[places] == found]] = True

    def is_seen(self, run: Run) -> bool:
        place = int(np.searchsorted(self._hashes[run.length], np.uint64(run.hash)))
        return bool(self._seen[run.length][place])

    def _runs(self, probe: Probe) -> list[Run]:
        """Return the different runs of a probe; a part that is shorter than a run is one, unless it is too short to be told from others."""
        runs: dict[tuple[int, int], Run] = {}
        for number, part in enumerate(probe.parts):
            units = units_of(part)
            whole = self._plan.characters if is_spaceless(units) else self._plan.words
            length = min(whole, len(units))
            if length < max(2, int(whole * SHORTEST)):
                continue
            for begin, found in enumerate(run_hashes(self._words.of(units), length).tolist()):
                runs.setdefault((length, found), Run(length, found, number, begin))
        return list(runs.values())

    @staticmethod
    def _filter(hashes: Hashes) -> NDArray[np.bool_]:
        """Return which first bits occur, so that most runs of the training data are passed over with one look."""
        table = np.zeros(1 << FILTER_BITS, dtype=bool)
        table[hashes >> np.uint64(64 - FILTER_BITS)] = True
        return table


def find_contaminated(plan: RunPlan, run_dir: Path, *, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Return, by text or task, the documents and items that stand in the training index: `{id, share, example}`.

    All of the index of every source of the blend is read, also where training will not come to its end.

    Raises:
        DataError: a held-out text, a benchmark, the tokenizer or an index is missing or damaged.
    """
    probes = probes_of(plan.eval, run_dir)
    words = WordHashes()
    runs = Runs(probes, plan.eval.contamination, words)
    if runs.longest:
        tokenizer = load_tokenizer(extended_tokenizer(plan, run_dir))
        prefixes = [run_dir / entry.prefix for entry in plan.blend]
        for units in training_units(prefixes, tokenizer, words, longest=runs.longest, say=say):
            runs.look_at(units)
    return _report(probes, runs, say)


def probes_of(plan: EvalPlan, run_dir: Path) -> list[Probe]:
    """Return every document and item that is scored."""
    wanted = plan.contamination
    probes = [
        Probe(text.name, document.id, (document.text,), wanted.document_share, or_equal=True)
        for text in plan.texts
        for document in read_text(text, run_dir)
    ]
    for task in plan.tasks:
        _, items = split_examples(read_bench(run_dir / task.path), few_shot=task.few_shot, max_items=task.max_items)
        probes += [Probe(task.name, item.id, parts_of(item, task.kind), wanted.task_share, or_equal=False) for item in items]
    return probes


def parts_of(item: Item, kind: str) -> tuple[str, ...]:
    """Return the texts of an item whose sight in training would give its answer away: the question, and what is right; not the wrong."""
    if kind == "pairs":
        return item.choices
    right = (item.choices[item.right],) if item.choices else item.answers
    return (item.prompt, *right, *((item.tests,) if item.tests else ()))


def training_units(
    prefixes: Sequence[Path], tokenizer: Tokenizer, words: WordHashes, *, longest: int, say: Callable[[str], None]
) -> Iterator[Hashes]:
    """Yield the hashes of the training data's units, many documents at a time with a mark between them; says rate and time left."""
    pairs = [open_pair(prefix) for prefix in prefixes]
    total, done = sum(pair.num_tokens for pair in pairs), 0
    started = told = time.monotonic()
    for pair in pairs:
        for slices in _batches(pair.lengths, overlap=longest * TOKENS_PER_UNIT):
            texts = tokenizer.decode_batch([pair.tokens[begin:end].tolist() for begin, end in slices], skip_special_tokens=True)
            rows = [row for text in texts for row in (words.of(units_of(text)), np.array([BETWEEN_DOCUMENTS]))]
            yield np.concatenate(rows)
            done += sum(end - begin for begin, end in slices)
            if time.monotonic() - told > SECONDS_BETWEEN_REPORTS:
                told = time.monotonic()
                rate = done / (told - started)
                say(f"overlap with training: {done:,} of {total:,} tokens, {rate:,.0f} tokens/s, {max(0, total - done) / rate:.0f} s left")


def _batches(lengths: NDArray[Any], *, overlap: int) -> Iterator[list[tuple[int, int]]]:
    """Yield places of documents in the tokens, some at a time; a long document in slices that overlap."""
    batch: list[tuple[int, int]] = []
    size, begin = 0, 0
    for length in lengths.tolist():
        for first in range(0, max(1, length - overlap), SLICE_TOKENS):
            last = min(length, first + SLICE_TOKENS + overlap)
            batch.append((begin + first, begin + last))
            size += last - first
            if size >= BATCH_TOKENS:
                yield batch
                batch, size = [], 0
        begin += length
    if batch:
        yield batch


def _report(probes: Sequence[Probe], runs: Runs, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys(probe.name for probe in probes)}
    counts = dict.fromkeys(found, 0)
    short = dict.fromkeys(found, 0)
    for probe, mine in zip(probes, runs.of_probe, strict=True):
        counts[probe.name] += 1
        if not mine:
            short[probe.name] += 1
            continue
        seen = [run for run in mine if runs.is_seen(run)]
        share = len(seen) / len(mine)
        if seen and (share > probe.from_share or (probe.or_equal and share == probe.from_share)):
            found[probe.name].append({"id": probe.id, "share": share, "example": _words_of(probe, seen[0])})
    for name, items in found.items():
        line = f"{name}: {len(items)} of {counts[name]} overlap with the training data"
        line += f", so the gate leaves {'it' if len(items) == 1 else 'them'} out" if items else ""
        say(line + (f"; {short[name]} too short to tell" if short[name] else ""))
    return {name: items for name, items in found.items() if items}


def _words_of(probe: Probe, run: Run) -> str:
    units = units_of(probe.parts[run.part])[run.begin : run.begin + run.length]
    return ("" if is_spaceless(units) else " ").join(units)[:EXAMPLE_CHARACTERS]
