"""Keeps what is evaluated out of the training texts: looks in every document for runs of words of benchmarks and held-out texts.

The evaluation looks for the same runs in the index afterwards (eval/contamination.py); here documents are found before they are trained on.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cpt.config.schema import DecontaminateConfig
from megatron_cpt.corpus.readers import Unreadable, read_records
from megatron_cpt.errors import DataError
from megatron_cpt.record.bench import read_bench
from megatron_cpt.record.store import write_bytes
from megatron_cpt.text.known_runs import KnownRuns, Probe, RunLength, parts_of
from megatron_cpt.text.runs import Rows, TextHashes
from megatron_cpt.text.units import is_spaceless, units_of

ACTIONS = ("drop", "report", "off")
COLUMNS = ("known", "key", "probe", "part", "begin")
SHOWN_CHARACTERS = 160
SHOWN_MATCHES = 5


@dataclass(frozen=True)
class Match:
    """An item or held-out text that stands in a document: `share` of the runs of one of its parts; `run` is the first in the document."""

    bench: str
    item: str
    share: float
    run: str


class EvalGrams:
    """The runs of what is evaluated: each question, each right answer and each held-out text for itself.

    Made once from the files; `save` and `load` hand it to the workers.
    """

    def __init__(self, probes: Sequence[Probe], runs: KnownRuns, hashes: TextHashes | None = None) -> None:
        self.probes, self._runs = list(probes), runs
        self._hashes = TextHashes() if hashes is None else hashes

    @classmethod
    def of_files(
        cls, benches: Mapping[str, Path], texts: Sequence[Path], settings: DecontaminateConfig, hashes: TextHashes | None = None
    ) -> EvalGrams:
        """Read benchmarks, by name, and files of held-out documents.

        Raises:
            DataError: a file is missing, damaged or holds no document.
        """
        probes: list[Probe] = []
        for name, path in benches.items():
            bench = read_bench(path)
            for item in bench.items:
                probes += [Probe(name, item.id, (part,), settings.item_share, or_equal=True) for part in parts_of(item, bench.kind)]
        for path in texts:
            probes += held_out_probes(path, settings)
        hashes = TextHashes() if hashes is None else hashes
        return cls(probes, KnownRuns.of(probes, words=settings.words, characters=settings.characters, hashes=hashes), hashes)

    @property
    def num_items(self) -> dict[str, int]:
        """How many items or texts each file has."""
        return dict(Counter(name for name, _ in {(probe.name, probe.id) for probe in self.probes}))

    @property
    def too_short(self) -> dict[str, int]:
        """How many items of each file are too short, in all of their parts, to be told from other texts."""
        judged = {(probe.name, probe.id) for probe, runs in zip(self.probes, self._runs.num_runs.tolist(), strict=True) if runs}
        left = Counter(name for name, _ in judged)
        return {name: count - left[name] for name, count in self.num_items.items()}

    def matches(self, text: str) -> list[Match]:
        """Return what stands in a text, the largest shares first."""
        return self.matches_of_rows(Rows.of([text], self._hashes), [text])[0]

    def matches_of_rows(self, rows: Rows, texts: Sequence[str]) -> list[list[Match]]:
        """Return what stands in each of several texts that have been cut into units before."""
        found: dict[tuple[int, int], _Seen] = {}
        for length, (begins, keys) in self._runs.find(rows.units).items():
            mine = self._runs.by_length[length]
            first = np.searchsorted(mine.key, keys, side="left").tolist()
            last = np.searchsorted(mine.key, keys, side="right").tolist()
            row_of = (np.searchsorted(rows.begins, begins, side="right") - 1).tolist()
            for row, begin, key, entries in zip(row_of, begins.tolist(), keys.tolist(), zip(first, last, strict=True), strict=True):
                for probe in mine.probe[slice(*entries)].tolist():
                    seen = found.setdefault((row, probe), _Seen(begin - int(rows.begins[row]), length))
                    seen.keys.add((length, key))
                    if begin - int(rows.begins[row]) < seen.begin:
                        seen.begin, seen.length = begin - int(rows.begins[row]), length
        matches: list[dict[tuple[str, str], Match]] = [{} for _ in texts]
        units: dict[int, list[str]] = {}
        for (row, number), seen in found.items():
            probe, share = self.probes[number], len(seen.keys) / int(self._runs.num_runs[number])
            before = matches[row].get((probe.name, probe.id))
            if probe.counts(share) and (before is None or before.share < share):  # of an item's parts the one that is there most
                run = (units.get(row) or units.setdefault(row, units_of(texts[row])))[seen.begin : seen.begin + seen.length]
                matches[row][probe.name, probe.id] = Match(probe.name, probe.id, share, shown_run(run))
        return [sorted(mine.values(), key=lambda match: (-match.share, match.bench, match.item)) for mine in matches]

    def save(self, path: Path) -> None:
        """Write everything but the texts of the probes as one npz file without pickles."""
        arrays = {f"{length}.{name}": getattr(runs, name) for length, runs in self._runs.by_length.items() for name in COLUMNS}
        probes = [[probe.name, probe.id, probe.from_share, probe.or_equal] for probe in self.probes]
        file = io.BytesIO()
        np.savez(file, probes=np.frombuffer(json.dumps(probes).encode("utf-8"), dtype=np.uint8), **arrays)
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: Path, hashes: TextHashes | None = None) -> EvalGrams:
        with np.load(path, allow_pickle=False) as arrays:
            probes = [Probe(name, item, (), share, or_equal) for name, item, share, or_equal in json.loads(arrays["probes"].tobytes())]
            lengths = sorted({int(name.partition(".")[0]) for name in arrays.files if name != "probes"})
            by_length = {length: RunLength(*(arrays[f"{length}.{name}"] for name in COLUMNS)) for length in lengths}
        return cls(probes, KnownRuns(by_length, len(probes)), hashes)


@dataclass
class _Seen:
    """Where the first run of a probe in a document begins, its length, and the different runs that are there."""

    begin: int
    length: int

    def __post_init__(self) -> None:
        self.keys: set[tuple[int, int]] = set()


def decontaminate_problems(settings: DecontaminateConfig) -> list[str]:
    """Return one sentence for each setting that is not allowed."""
    key = "corpus.decontaminate"
    lengths = {"words": settings.words, "characters": settings.characters}
    problems = [f"{key}.{name} is {length}: use 2 or more" for name, length in lengths.items() if length < 2]
    problems += [
        f"{key}.{name} is {value}: use a share above 0 and up to 1"
        for name, value in (("item_share", settings.item_share), ("document_share", settings.document_share))
        if not 0 < value <= 1
    ]
    if settings.action not in ACTIONS:
        problems.append(f"{key}.action is {settings.action!r}: use {', '.join(ACTIONS)}")
    problems += [f"{key}.texts names {path}, which is no file" for path in settings.texts if not Path(path).is_file()]
    return problems


def held_out_probes(path: Path, settings: DecontaminateConfig) -> list[Probe]:
    """Return the documents of a file as what is looked for; anything that a source can be made of may be such a file."""
    probes: list[Probe] = []
    for number, record in enumerate(read_records(path, text_keys=[settings.text_key]), 1):
        text = None if isinstance(record, Unreadable) else record.fields.get(settings.text_key)
        if not isinstance(text, str):
            raise DataError(
                "A held-out text cannot be read.",
                where=f"{path}, record {number}",
                value=record.detail if isinstance(record, Unreadable) else f"no text under {settings.text_key!r}",
                next_step="Mend corpus.decontaminate.texts or text_key: what is not read is not kept out of training.",
            )
        probes.append(Probe(path.name, str(number), (text,), settings.document_share, or_equal=True))
    if not probes:
        raise DataError("A file of held-out texts holds none.", where=path)
    return probes


def shown_run(units: list[str]) -> str:
    return ("" if is_spaceless(units) else " ").join(units)[:SHOWN_CHARACTERS]


def matches_in_words(matches: Sequence[Match]) -> str:
    """Return a reject's detail: the items that matched, and the run of the first."""
    names = ", ".join(f"{match.bench} {match.item} ({match.share:.0%})" for match in matches[:SHOWN_MATCHES])
    more = f" and {len(matches) - SHOWN_MATCHES} more" if len(matches) > SHOWN_MATCHES else ""
    return f"holds {names}{more}: {matches[0].run}"
