"""The corpus stage's body: every record of every source is read once and ends in a train file, a test file or a reject file.

Three passes: the first over records, in tasks (`engine.py`, `blocks.py`); decisions over all survivors, on arrays (`decide.py`);
and the writing in corpus order (`write.py`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.config.schema import CorpusConfig, SelectConfig, SourceConfig
from megatron_cpt.corpus.card import Card, write_data_card
from megatron_cpt.corpus.compare_block import GRAMS_NAME
from megatron_cpt.corpus.contamination_report import ContaminationTally, write_contamination_report
from megatron_cpt.corpus.coverage import Yardstick, count_files
from megatron_cpt.corpus.coverage_report import coverage_report, write_coverage
from megatron_cpt.corpus.decide import DUPLICATE, KEPT, NEAR_DUPLICATE, Decisions, decide
from megatron_cpt.corpus.decontaminate import EvalGrams, decontaminate_problems
from megatron_cpt.corpus.dedup.bands import dedup_problems
from megatron_cpt.corpus.dedup.report import Shown, duplicates_report, write_duplicates_report
from megatron_cpt.corpus.engine import LaunchArray, engine_problems, run_first_pass
from megatron_cpt.corpus.filters import TextFilters
from megatron_cpt.corpus.scratch import Shard
from megatron_cpt.corpus.select.in_corpus import domain_samples
from megatron_cpt.corpus.select.target import select_problems, terms_of
from megatron_cpt.corpus.sources import other_files
from megatron_cpt.corpus.split import SIDES
from megatron_cpt.corpus.survivors import Survivors
from megatron_cpt.corpus.tasks import TaskPlan, plan_tasks
from megatron_cpt.corpus.worker import disk_error
from megatron_cpt.corpus.write import KeptIds, SourceWriter, Tally
from megatron_cpt.errors import ConfigError, DataError, printable, raise_all
from megatron_cpt.record.manifest import StageResult


def build_corpus(
    result: StageResult,
    *,
    sources: dict[str, SourceConfig],
    say: Callable[[str], None],
    settings: CorpusConfig | None = None,
    launch_array: LaunchArray | None = None,
    seed: int = 0,
    benches: Mapping[str, Path] | None = None,
    shares: Mapping[str, float] | None = None,
) -> None:
    """Write `<source>.train.jsonl`, `<source>.test.jsonl`, `rejects/`, `repairs/` and the data card into the stage's folder, and
    `<source>.valid.jsonl` for sources with a `valid_fraction`.

    Each line of the train and test files is `{"id", "text", "source"}`. Sources go by name, files by path, records by order; the
    first of several equal texts is kept. The side of a document is decided by the digest of its text alone.

    `coverage.json` and `.md` hold the training side against the target of the selection and the term list, where there is one.

    `duplicates.json` and `.md` tell of the copies, `contamination.json` and `.md` of the items of `benches` (files by name) that stood
    in training documents.

    Finished tasks are kept in `.<stage>.scratch` beside the stage's folder until the stage is done: a rerun goes on from those whose
    files and settings are the same by `result.inputs`.

    Args:
        seed: of the selection's noise.
        shares: planned shares of training samples by source, for the data card.

    Raises:
        DataError: a file cannot be read, or a source keeps nothing, or one of its sides is empty although it should not be.
        CptError: a worker died, or the disk is full.
    """
    settings = settings or CorpusConfig()
    problems = [*engine_problems(settings.engine), *dedup_problems(settings.dedup), *decontaminate_problems(settings.decontaminate)]
    raise_all(ConfigError, [*problems, *select_problems(settings.select, sources)], where="corpus")
    for name in sorted(sources):
        TextFilters(settings.filters, language=sources[name].language)  # refuses what a worker would stumble over
    terms = terms_of(settings.select)
    for remark in terms.remarks if terms else ():
        say(f"corpus: {remark}")
    plan = plan_tasks(sources, settings, inputs=result.inputs)
    for name in sorted(sources):
        if others := other_files(sources[name].path):
            say(f"corpus: {name}: {len(others)} files of other kinds are left alone (first: {printable(others[0].name)})")
    scratch = prepare_scratch(result.folder, plan)
    grams = prepare_grams(scratch, settings, benches or {})
    run_first_pass(scratch, plan, say=say, launch_array=launch_array)
    shards = [Shard.load(scratch, task) for task in plan.tasks]
    try:
        decisions = decide(shards, plan, scratch, seed=seed)
        survivors = Survivors(shards, decisions.first)
        tallies = write_sources(result.folder, plan, survivors, decisions, say=say)
    except OSError as error:
        raise disk_error(error, result.folder) from None
    raise_all(
        DataError,
        [problem for name in sorted(sources) for problem in split_problems(name, sources[name], tallies[name])],
        where="corpus",
        next_step="Correct the source, or its test_fraction or min_chars; the reasons say what happened to its records.",
    )
    if decisions.choice is not None:
        result.facts["selection"] = decisions.choice.facts
        say(f"corpus: {selection_in_words(settings.select, decisions.choice.facts)}")
    result.facts["sources"] = {name: facts_of(sources[name], tallies[name]) for name in sorted(sources)}
    result.facts["duplicates"] = report_duplicates(result.folder, plan, survivors, decisions)
    if grams is not None:
        result.facts["contamination"] = report_contamination(result.folder, plan, shards, grams, say=say)
    coverage = report_coverage(result.folder, plan, survivors, decisions, terms.terms if terms else (), say=say)
    if coverage is not None:
        result.facts["coverage"] = write_coverage(result.folder, coverage)
    card = Card(
        facts=result.facts, examples={name: tally.examples for name, tally in tallies.items()},
        lengths={name: tally.lengths for name, tally in tallies.items()}, shares=shares or {}, coverage=coverage,
    )  # fmt: skip
    write_data_card(result.folder, card)
    shutil.rmtree(scratch)


def prepare_first_pass(folder: Path, plan: TaskPlan, *, benches: Mapping[str, Path]) -> None:
    """Leave beside the stage's folder what shares of the first pass need, before the stage itself begins."""
    prepare_grams(prepare_scratch(folder, plan), plan.settings, benches)


def scratch_of(folder: Path) -> Path:
    """Return the folder of the tasks, beside the stage's; a stage works in `.corpus-<random>.partial`."""
    return folder.parent / f".{folder.name.removeprefix('.').partition('-')[0]}.scratch"


def prepare_scratch(folder: Path, plan: TaskPlan) -> Path:
    """Return the folder of the tasks with this plan in it; tasks that are not in the plan are removed, the finished ones in it stay."""
    scratch = scratch_of(folder)
    wanted = {task.identity for task in plan.tasks}
    if (scratch / "tasks").is_dir():
        for found in (scratch / "tasks").iterdir():
            if found.name not in wanted:
                shutil.rmtree(found)
    plan.save(scratch)
    return scratch


def prepare_grams(scratch: Path, settings: CorpusConfig, benches: Mapping[str, Path]) -> EvalGrams | None:
    """Write the runs of what is evaluated into the scratch folder, where the tasks find them; None where nothing is looked for."""
    path, wanted = scratch / GRAMS_NAME, settings.decontaminate
    if wanted.action == "off" or not (benches or wanted.texts):
        path.unlink(missing_ok=True)
        return None
    grams = EvalGrams.of_files(benches, [Path(text) for text in wanted.texts], wanted)
    grams.save(path)
    return grams


def report_duplicates(folder: Path, plan: TaskPlan, survivors: Survivors, decisions: Decisions) -> dict[str, Any]:
    """Write the report on duplicates; return its numbers."""
    kept_ids, names = KeptIds(survivors, decisions), sorted(plan.sources)
    source_of = np.concatenate(
        [np.full(shard.counts.kept, names.index(task.source)) for task, shard in zip(plan.tasks, survivors.shards, strict=True)]
    )

    def shown_of(rows: np.ndarray) -> list[Shown]:
        records = survivors.records(rows)
        return [Shown(kept_ids.id_of(row, record), record["source"], record["text"]) for row, record in zip(rows, records, strict=True)]

    copies = np.where(np.isin(decisions.reason, (DUPLICATE, NEAR_DUPLICATE)), decisions.kept_of, np.arange(len(decisions.kept_of)))
    report = duplicates_report(
        copies, equal=decisions.reason == DUPLICATE, source_of=source_of, sources=names, shown_of=shown_of
    )  # fmt: skip
    write_duplicates_report(folder, report)
    return {key: report[key] for key in ("dropped_equal", "dropped_near", "clusters", "between_sources")}


def report_contamination(
    folder: Path, plan: TaskPlan, shards: list[Shard], grams: EvalGrams, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the report on what of the evaluation was found; return its numbers."""
    tally = ContaminationTally()
    for task, shard in zip(plan.tasks, shards, strict=True):
        tally.add(task.source, shard.json_rows("contaminated.jsonl"))
    report = tally.report(action=plan.settings.decontaminate.action, num_items=grams.num_items, too_short=grams.too_short)
    write_contamination_report(folder, report)
    found = sum(tally.documents.values())
    if found:
        say(f"corpus: {found:,} training documents hold {len(tally.items):,} items of the evaluation (contamination.md)")
    return {key: report[key] for key in ("action", "documents", "files")}


def report_coverage(
    folder: Path, plan: TaskPlan, survivors: Survivors, decisions: Decisions, terms: Sequence[str], *, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Hold the training side against the target and the term list; None where there is neither."""
    settings = plan.settings
    if not (terms or settings.select.target):
        return None
    target, others = domain_samples(plan, survivors, decisions.reason == KEPT, decisions.choice)
    yardstick = Yardstick.of(settings, terms=terms, target=target, others=others)
    # a local process is as good as any: this pass reads what was kept, once
    workers = settings.engine.workers if settings.engine.kind in ("auto", "local") else None
    paths = {name: folder / f"{name}.train.jsonl" for name in sorted(plan.sources)}
    report = coverage_report(yardstick, count_files(paths, yardstick, workers=workers), target=settings.select.target)
    if report["num_terms"]:
        say(f"corpus: {report['terms_seen']:,} of {report['num_terms']:,} terms of the domain are seen in the training side (coverage.md)")
    return report


def write_sources(
    folder: Path, plan: TaskPlan, survivors: Survivors, decisions: Decisions, *, say: Callable[[str], None]
) -> dict[str, Tally]:
    """Write each source's files from the survivors of all tasks; return the balance sheets."""
    kept_ids = KeptIds(survivors, decisions)
    for name in ("rejects", "repairs"):
        (folder / name).mkdir()
    tallies = {}
    for name in sorted(plan.sources):
        tasks = [(rank, task, survivors.shards[rank]) for rank, task in enumerate(plan.tasks) if task.source == name]
        tallies[name] = tally = SourceWriter(folder, name, plan.sources[name], decisions, kept_ids).run(tasks)
        say(
            f"corpus: {name}: {tally.read:,} read, {sides_in_words(tally)},"
            f" {tally.rejected.total():,} rejected{reasons_in_words(tally.rejected)}"
        )
    return tallies


def selection_in_words(settings: SelectConfig, facts: dict[str, Any]) -> str:
    """Say what the selection took, and whether the pool was smaller than what was asked for."""
    is_short = facts["is_whole_pool"] and (settings.max_documents is not None or settings.max_bytes is not None)
    return (
        f"{facts['chosen_documents']:,} of the pool's {facts['pool_documents']:,} documents were chosen"
        f" ({facts['chosen_bytes'] / 1e6:.2f} of {facts['pool_bytes'] / 1e6:.2f} MB)"
        + ("; that is all of them: the pool holds no more than was asked for" if is_short else "")
    )


def sides_in_words(tally: Tally) -> str:
    return ", ".join(f"{tally.documents[side]:,} {side}" for side in SIDES if side != "valid" or tally.documents[side])


def reasons_in_words(reasons: Counter[str]) -> str:
    return f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons.most_common())})" if reasons else ""


def split_problems(name: str, source: SourceConfig, tally: Tally) -> list[str]:
    """Return why a source cannot be used after reading, if it cannot. A selection may leave little of a source, or nothing."""
    if tally.rejected["not_selected"]:
        return []
    if tally.kept == 0:
        return [f"source {name}: none of its {tally.read} records was kept{reasons_in_words(tally.rejected)}"]
    if source.test_fraction > 0 and tally.documents["test"] == 0:
        return [
            f"source {name}: no test document among {tally.kept} kept ones at test_fraction {source.test_fraction}; "
            "the side follows from each text's digest, so a few documents can all fall on one side: raise test_fraction or add documents"
        ]
    if source.valid_fraction > 0 and tally.documents["valid"] == 0:
        return [
            f"source {name}: no validation document among {tally.kept} kept ones at valid_fraction {source.valid_fraction}; "
            "raise it or add documents"
        ]
    if source.test_fraction + source.valid_fraction < 1 and tally.documents["train"] == 0:
        return [
            f"source {name}: all {tally.kept} kept documents were held out at test_fraction {source.test_fraction}"
            f" and valid_fraction {source.valid_fraction}"
        ]
    return []


def facts_of(source: SourceConfig, tally: Tally) -> dict[str, Any]:
    by_side = {
        f"{side}_{what}": counts[side]
        for what, counts in (("documents", tally.documents), ("bytes", tally.num_bytes), ("chars", tally.num_chars))
        for side in SIDES
    }
    return {
        "role": source.role, "licence": source.licence, "language": source.language, "provenance": asdict(source.provenance),
        "read": tally.read, "kept": tally.kept, "rejected": dict(sorted(tally.rejected.items())),
        "repaired": dict(sorted(tally.repaired.items())), **noted_facts(tally), **by_side,
    }  # fmt: skip


def noted_facts(tally: Tally) -> dict[str, dict[str, int]]:
    """Return what the filters counted: `found` by kind, `languages` in documents; only what was looked for."""
    facts: dict[str, dict[str, int]] = {}
    for what, count in sorted(tally.noted.items()):
        group, _, kind = what.partition(" ")
        facts.setdefault({"found": "found", "language": "languages"}[group], {})[kind] = count
    return facts
