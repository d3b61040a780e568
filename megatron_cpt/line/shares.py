"""Shares of a stage's work, by elements of an array: of the corpus every N-th task, of the index every N-th source.

A share is done when what it leaves in the run's folder is whole. A share holds no lock of the run: tasks of the corpus are renamed into
place, and a source of the index is under the lock of its writer. The stage's own process gathers the shares, and does what is left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import ConfigError, CptError, raise_all
from megatron_cpt.line.inputs import INPUTS
from megatron_cpt.line.run import Run, indented, say
from megatron_cpt.meter.here import slurm_job
from megatron_cpt.meter.ledger import Attempt
from megatron_cpt.meter.slurm import note_jobs
from megatron_cpt.record.index_pair import sidecar_path
from megatron_cpt.record.manifest import MANIFEST_NAME, resumed_folder, run_lock
from megatron_cpt.record.typed import to_plain
from megatron_cpt.submit.array import Shares, array_argv, submit_and_wait
from megatron_cpt.submit.frozen import freeze
from megatron_cpt.submit.slurm import Place

INDEX_KINDS = ("auto", "local", "slurm")
LaunchArray = Callable[[int, Sequence[int]], None]


def parse_share(stage: str | None, share: str) -> tuple[int, int]:
    """Return the number of a share and how many there are, of the text `I/N`.

    Raises:
        ConfigError: it is no such text, or the stage has no shares.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", share)
    if stage not in SHARES:
        raise ConfigError(
            "Only some stages have shares.", where="--share", value=stage or "no --only", rule=f"--only {' or '.join(SHARES)}"
        )
    if found is None or int(found[1]) >= int(found[2]):
        raise ConfigError("Not a share.", where="--share", value=share, rule="I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])


def shares_of(run: Run, stage: str, sources: Mapping[str, Any]) -> Shares | None:
    """Return the shares in which an array does a stage in a submitted line; None where the stage's own job does all.

    Args:
        sources: the inputs of the corpus stage, with the digests of all files.

    Raises:
        ConfigError: the engine's kind is not known.
    """
    if stage == "corpus":
        return _shares_of_corpus(run, sources)
    return _shares_of_index(run) if stage == "index" else None


def _shares_of_corpus(run: Run, sources: Mapping[str, Any]) -> Shares | None:
    from megatron_cpt.corpus.build import scratch_of  # noqa: PLC0415
    from megatron_cpt.corpus.engine import engine_problems, num_shares, pending_shares  # noqa: PLC0415
    from megatron_cpt.corpus.tasks import plan_tasks  # noqa: PLC0415

    raise_all(ConfigError, engine_problems(run.config.corpus.engine))
    kind = run.config.corpus.engine.kind
    if kind not in ("auto", "slurm"):
        return None
    plan = plan_tasks(run.config.source, run.config.corpus, inputs=sources)
    count = num_shares(plan)
    if kind == "auto" and count == 1:
        return None
    return Shares(count, pending_shares(scratch_of(run.of("corpus")), plan, count))


@contextmanager
def prepared_corpus(run: Run, sources: Mapping[str, Any]) -> Iterator[None]:
    """Leave in the run's folder what the shares of the corpus need, unless the block fails: then nothing is left that was not there."""
    from megatron_cpt.corpus.build import prepare_first_pass, scratch_of  # noqa: PLC0415
    from megatron_cpt.corpus.tasks import plan_tasks  # noqa: PLC0415

    plan = plan_tasks(run.config.source, run.config.corpus, inputs=sources)
    scratch = scratch_of(run.of("corpus"))
    was_there = scratch.exists()
    try:
        with run_lock(run.folder):
            prepare_first_pass(run.of("corpus"), plan, benches={name: Path(bench.path) for name, bench in run.config.bench.items()})
        yield
    except BaseException:
        if not was_there:
            shutil.rmtree(scratch, ignore_errors=True)
        raise


def corpus_share(run: Run, share: int, num_shares: int, _: Attempt) -> None:
    """Do a share of the first pass.

    Raises:
        DataError: nobody has planned the tasks, or files of the share are damaged.
    """
    from megatron_cpt.corpus.build import scratch_of  # noqa: PLC0415
    from megatron_cpt.corpus.worker import do_share  # noqa: PLC0415

    say(f"corpus: {do_share(scratch_of(run.of('corpus')), share, num_shares)} tasks done")


def _shares_of_index(run: Run) -> Shares | None:
    kind = run.config.index.engine.kind
    if kind not in INDEX_KINDS:
        raise ConfigError(f"index.engine.kind is {kind!r}.", rule=f"use {', '.join(INDEX_KINDS)}")
    if kind == "local":
        return None
    names = _indexed_names(run)
    if kind == "auto" and len(names) < 2:
        return None
    return Shares(len(names), _pending_sources(run, names))


def _indexed_names(run: Run) -> list[str]:
    """Return the sources that get an index, in order; before the corpus is there those that may get one."""
    if (run.of("corpus") / MANIFEST_NAME).exists():
        from megatron_cpt.index.build import names_with_text  # noqa: PLC0415

        return names_with_text(run.manifest("corpus").facts)
    return [name for name, source in sorted(run.config.source.items()) if source.test_fraction < 1.0]


def _pending_sources(run: Run, names: Sequence[str]) -> tuple[int, ...]:
    """Return which sources have no finished pair where the stage gathers them; the stage looks at their digests itself."""
    if not all((run.of(stage) / MANIFEST_NAME).exists() for stage in ("corpus", "vocab")):
        return tuple(range(len(names)))
    folder = resumed_folder(run.of("index"), INPUTS["index"](run))
    return tuple(number for number, name in enumerate(names) if not sidecar_path(folder / f"{name}.train").is_file())


def index_share(run: Run, share: int, num_shares: int, entry: Attempt) -> None:
    """Write the pairs of every `num_shares`-th source where the stage will gather them; whole ones of equal inputs are left alone.

    Raises:
        CptError: as the stage does.
    """
    from megatron_cpt.index.build import build_parts  # noqa: PLC0415

    parts = build_parts(
        resumed_folder(run.of("index"), INPUTS["index"](run)),
        corpus_folder=run.of("corpus"),
        vocab_folder=run.of("vocab"),
        corpus_facts=run.manifest("corpus").facts,
        say=say,
        share=(share, num_shares),
    )
    entry.tokens = sum(part.tokens_now for part in parts.values())


SHARES: dict[str, Callable[[Run, int, int, Attempt], None]] = {"corpus": corpus_share, "index": index_share}


def launcher(run: Run, stage: str) -> LaunchArray | None:
    """Return what submits an array for shares of a stage that runs here, and waits for its end.

    None where the engine's kind is not `slurm`, and in a job: there the line has had its array, and the job does what that left.
    """
    kinds = {"corpus": run.config.corpus.engine.kind, "index": run.config.index.engine.kind}
    if kinds[stage] != "slurm" or slurm_job() is not None:
        return None

    def launch(num_shares: int, pending: Sequence[int]) -> None:
        cluster = run.config.cluster
        place = Place(run.folder, freeze(run.folder, config_yaml=as_json(run.config), env_file=cluster.env_file), Path.cwd())
        shares = Shares(num_shares, tuple(pending))
        argv = array_argv(stage, cluster=cluster, run_name=run.config.run_name, place=place, shares=shares)
        submit_and_wait(argv, environment=os.environ, submitted=lambda job_id: note_jobs(run.folder, {stage: job_id}))

    return launch


def as_json(config: ExperimentConfig) -> str:
    """Return a configuration as text that `--composed` reads: JSON is YAML in which no text can be taken for a number."""
    return json.dumps(to_plain(config), ensure_ascii=False, indent=1) + "\n"


def index_by_array(run: Run, launch_array: LaunchArray) -> None:
    """Have the sources' pairs written by an array and wait for it.

    Raises:
        CptError: elements ended before their sources were done; each source is named.
    """
    names = _indexed_names(run)
    pending = _pending_sources(run, names)
    if pending:
        launch_array(len(names), pending)
        indented(f"index: an array of {len(pending)} elements has ended")
    left = _pending_sources(run, names)
    if left:
        raise CptError(
            "Elements of the array ended before their sources were indexed.",
            where=", ".join(names[number] for number in left),
            next_step=f"See {run.folder / 'slurm'}/index-tasks-*.out. Run again: finished sources stay.",
        )
