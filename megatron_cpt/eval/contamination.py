"""Finds what is evaluated in what is trained on: runs of words of items and held-out documents, looked for in the training index itself.

Runs are n words in normal form (n characters where a script has no spaces). The hashes of the evaluation's runs are held in memory; the
training data are decoded and streamed past them, so that memory does not grow with the corpus. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from megatron_cpt.eval.subjects import extended_tokenizer
from megatron_cpt.eval.texts import read_text
from megatron_cpt.plan.run_plan import EvalPlan, RunPlan
from megatron_cpt.record.bench import read_bench, split_examples
from megatron_cpt.record.index_pair import open_pair
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.text.known_runs import KnownRuns, Probe, parts_of
from megatron_cpt.text.runs import Hashes, Rows, TextHashes
from megatron_cpt.text.units import is_spaceless, units_of

SLICE_TOKENS = 1 << 17
BATCH_TOKENS = 1 << 20
TOKENS_PER_UNIT = 32  # more than a word ever takes; slices of a long document overlap by a run of such words
SECONDS_BETWEEN_REPORTS = 5.0
EXAMPLE_CHARACTERS = 160


class SeenRuns:
    """Which of the known runs have been seen."""

    def __init__(self, runs: KnownRuns) -> None:
        self.runs = runs
        self._seen = {length: np.zeros(len(mine.known), dtype=bool) for length, mine in runs.by_length.items()}

    def look_at(self, units: Hashes) -> None:
        """Mark the runs that stand in a row of units."""
        for length, (_, places) in self.runs.find(units).items():
            self._seen[length][places] = True

    def shares(self) -> NDArray[np.float64]:
        """Return for each probe the share of its runs that have been seen; NaN for one without runs."""
        seen = np.zeros(len(self.runs.num_runs))
        for length, mine in self.runs.by_length.items():
            seen += np.bincount(mine.probe[self._seen[length][mine.key]], minlength=len(seen))
        with np.errstate(invalid="ignore"):
            return seen / self.runs.num_runs

    def first_of(self) -> dict[int, tuple[int, int, int]]:
        """Return for each probe the first of its runs that has been seen: part, beginning and length."""
        first: dict[int, tuple[int, int, int]] = {}
        for length, mine in self.runs.by_length.items():
            seen = self._seen[length][mine.key]
            for probe, part, begin in zip(mine.probe[seen].tolist(), mine.part[seen].tolist(), mine.begin[seen].tolist(), strict=True):
                first[probe] = min(first.get(probe, (part, begin, length)), (part, begin, length))
        return first


def find_contaminated(plan: RunPlan, run_dir: Path, *, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Return, by text or task, the documents and items that stand in the training index: `{id, share, example}`.

    All of the index of every source of the blend is read, also where training will not come to its end.

    Raises:
        DataError: a held-out text, a benchmark, the tokenizer or an index is missing or damaged.
    """
    probes = probes_of(plan.eval, run_dir)
    hashes, lengths = TextHashes(), plan.eval.contamination
    runs = SeenRuns(KnownRuns.of(probes, words=lengths.words, characters=lengths.characters, hashes=hashes))
    if longest := runs.runs.longest:
        tokenizer = load_tokenizer(extended_tokenizer(plan, run_dir))
        prefixes = [run_dir / entry.prefix for entry in plan.blend]
        for units in training_units(prefixes, tokenizer, hashes, longest=longest, say=say):
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


def training_units(
    prefixes: Sequence[Path], tokenizer: Tokenizer, hashes: TextHashes, *, longest: int, say: Callable[[str], None]
) -> Iterator[Hashes]:
    """Yield the hashes of the training data's units, many documents at a time with a mark between them; says rate and time left."""
    pairs = [open_pair(prefix) for prefix in prefixes]
    total, done = sum(pair.num_tokens for pair in pairs), 0
    started = told = time.monotonic()
    for pair in pairs:
        for slices in _batches(pair.lengths, overlap=longest * TOKENS_PER_UNIT):
            texts = tokenizer.decode_batch([pair.tokens[begin:end].tolist() for begin, end in slices], skip_special_tokens=True)
            yield Rows.of(texts, hashes).units
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


def _report(probes: Sequence[Probe], runs: SeenRuns, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys(probe.name for probe in probes)}
    counts = dict.fromkeys(found, 0)
    short = dict.fromkeys(found, 0)
    first = runs.first_of()
    for number, (probe, share) in enumerate(zip(probes, runs.shares().tolist(), strict=True)):
        counts[probe.name] += 1
        short[probe.name] += int(runs.runs.num_runs[number] == 0)
        if probe.counts(share):
            found[probe.name].append({"id": probe.id, "share": share, "example": _words_of(probe, *first[number])})
    for name, items in found.items():
        line = f"{name}: {len(items)} of {counts[name]} overlap with the training data"
        line += f", so the gate leaves {'it' if len(items) == 1 else 'them'} out" if items else ""
        say(line + (f"; {short[name]} too short to tell" if short[name] else ""))
    return {name: items for name, items in found.items() if items}


def _words_of(probe: Probe, part: int, begin: int, length: int) -> str:
    units = units_of(probe.parts[part])[begin : begin + length]
    return ("" if is_spaceless(units) else " ").join(units)[:EXAMPLE_CHARACTERS]
