"""Print a sweep's results as Markdown: what differs between its runs, their scores, and each run against one of them.

    python tools/sweep_table.py runs/sweep-schedule-*                 # the first is what the others are held against
    python tools/sweep_table.py runs/sweep-schedule-* --against runs/sweep-schedule-wsd

All figures are bits per byte of held-out text, from the runs' records. Two runs share their held-out documents, so what makes one
hard for both cancels in the interval of their difference; the gap between two intervals against the base says less.

Exit codes: 0 printed; 2 wrong arguments or runs that cannot be compared; 3 a record is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import ConfigError, CptError, DataError
from megatron_cpt.gate.pairs import contaminated
from megatron_cpt.gate.scores import NotComparableError, bits_per_byte, bootstrap_interval, documents_by_id, pair_up, weights_sha256
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest
from megatron_cpt.record.store import read_json


@dataclass(frozen=True)
class Compared:
    """The candidate's change on one text against another subject, with its paired interval, in bits per byte."""

    change: float
    low: float
    high: float
    num_documents: int

    def __str__(self) -> str:
        return f"{self.change:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep: its plan and the two records of scores.

    Attributes:
        settings: what decided the run, flat: the plan's settings, the tokenizer's, the rule of new rows and the seed.
    """

    folder: Path
    plan: RunPlan
    settings: Mapping[str, Any]
    baseline: Mapping[str, Any]
    candidate: Mapping[str, Any]
    verdict: Verdict | None

    @classmethod
    def read(cls, folder: Path) -> SweptRun:
        """Read a run that has been evaluated.

        Raises:
            DataError: it has not been, or a record is damaged.
        """
        of = {stage: Manifest.load(folder / stage).inputs for stage in ("vocab", "init", "plan")}
        tokenizer = {**of["vocab"]["tokenizer"], "row_init": of["init"]["row_init"]}
        if not tokenizer["num_new_pieces"]:
            del tokenizer["row_init"]  # there are no new rows
        settings = {**of["plan"]["settings"], "tokenizer": tokenizer, "seed": of["plan"]["seed"]}
        is_judged = (folder / "gate" / MANIFEST_NAME).exists()
        return cls(
            folder=folder,
            plan=RunPlan.load(folder / "plan" / PLAN_NAME),
            settings=dict(_flat(settings)),
            baseline=read_json(folder / "baseline" / "eval.json"),
            candidate=read_json(folder / "eval" / "eval.json"),
            verdict=Verdict.load(folder / "gate" / VERDICT_NAME) if is_judged else None,
        )

    def clean(self, record: Mapping[str, Any], subject: str, text: str) -> dict[str, tuple[int, float]]:
        """Return `{id: (bytes, nats)}` of a subject's documents, without those that this run's training may have seen."""
        seen = contaminated(self.baseline, text) | contaminated(self.candidate, text)
        return {name: score for name, score in documents_by_id(record, subject, text).items() if name not in seen}

    def bits(self, record: Mapping[str, Any], subject: str, text: str) -> float:
        """Return a subject's bits per byte over the clean documents of a text."""
        sizes, nats = zip(*self.clean(record, subject, text).values(), strict=True)
        return bits_per_byte(sum(nats), sum(sizes))

    def against(self, record: Mapping[str, Any], subject: str, text: str) -> Compared:
        """Return the candidate's change on the clean documents of a text against a subject of a record."""
        pairs = pair_up(self.clean(record, subject, text), self.clean(self.candidate, "train", text))
        low, high = bootstrap_interval(
            pairs, confidence=self.plan.gate.confidence, num_resamples=self.plan.gate.bootstrap_samples, seed=self.plan.gate.seed
        )
        change = bits_per_byte(float((pairs.candidate_N - pairs.base_N).sum()), float(pairs.bytes_N.sum()))
        return Compared(change, low, high, pairs.num_documents)

    @property
    def decision(self) -> str:
        return "not judged" if self.verdict is None else self.verdict.decision


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_settings(runs: Sequence[SweptRun]) -> list[str]:
    """Return the settings that are not the same in every run, except those that only repeat another one (the shape of an annealing)."""
    keys = sorted({key for run in runs for key in run.settings})
    differing = [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]
    return [key for key in differing if any(run.settings.get(key) is not None for run in runs)]


def check_comparable(runs: Sequence[SweptRun]) -> None:
    """Refuse runs that start from other weights or score other documents.

    Raises:
        ConfigError: naming the first of them.
    """
    first = runs[0]
    for run in runs[1:]:
        if weights_sha256(run.baseline, "base") != weights_sha256(first.baseline, "base"):
            raise ConfigError("Two runs have another base model.", where=run.folder, value=str(first.folder))
        if run.plan.eval != first.plan.eval:
            raise ConfigError("Two runs score other texts.", where=run.folder, value=str(first.folder), rule="one eval group for all")


def scores_table(runs: Sequence[SweptRun]) -> str:
    """Return a row a run: what differs, bytes a token, the domain at its three points, and both changes against the base."""
    differing = differing_settings(runs)
    head = [key.split(".")[-1] if key.count(".") < 2 else key.split(".", 1)[1] for key in differing] or ["run"]
    rows = []
    for run in runs:
        cells = [_cell(run.settings.get(key)) for key in differing] or [run.folder.name]
        for text in run.plan.eval.texts:
            if text.role == "domain":
                scored = run.candidate["subjects"]["train"]["texts"][text.name]
                cells.append(f"{scored['bytes'] / scored['tokens']:.2f}")
                points = ((run.baseline, "base"), (run.baseline, "init"), (run.candidate, "train"))
                cells += [f"{run.bits(record, subject, text.name):.4f}" for record, subject in points]
            cells.append(str(run.against(run.baseline, "base", text.name)))
        rows.append([*cells, run.decision])
    for text in runs[0].plan.eval.texts:
        if text.role == "domain":
            head += ["bytes a token", f"{text.name}: base", "extended", "trained"]
        head.append(f"{text.name}: change")
    return _markdown([*head, "verdict"], rows)


def differences_table(runs: Sequence[SweptRun], reference: SweptRun) -> str:
    """Return a row for each other run: its scores minus the reference's on the same documents."""
    differing = differing_settings(runs)
    texts = [text.name for text in reference.plan.eval.texts]
    rows = [
        [
            ", ".join(_cell(run.settings.get(key)) for key in differing) or run.folder.name,
            *(str(run.against(reference.candidate, "train", text)) for text in texts),
        ]
        for run in runs
        if run.folder != reference.folder
    ]
    against = ", ".join(_cell(reference.settings.get(key)) for key in differing) or reference.folder.name
    return _markdown([f"minus {against}", *texts], rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, in the order of the table")
    parser.add_argument("--against", type=Path, help="the run that the others are held against (the first)")
    chosen = parser.parse_args(arguments)
    try:
        runs = [SweptRun.read(folder) for folder in chosen.runs]
        reference = SweptRun.read(chosen.against or chosen.runs[0])
        check_comparable([reference, *runs])
        compared = runs[0].against(runs[0].baseline, "base", runs[0].plan.eval.texts[0].name)
        print(scores_table(runs))
        if len(runs) > 1:
            print(differences_table(runs, reference))
        print(f"{compared.num_documents} documents of {runs[0].plan.eval.texts[0].name}; intervals at {runs[0].plan.gate.confidence:.0%}")
    except NotComparableError as error:
        print(f"sweep_table: {error}", file=sys.stderr)
        return ConfigError.exit_code
    except (KeyError, TypeError) as error:
        print(f"sweep_table: {DataError('A record lacks a field.', value=repr(error))}", file=sys.stderr)
        return DataError.exit_code
    except CptError as error:
        print(f"sweep_table: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
