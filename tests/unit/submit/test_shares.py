"""Which stages of a line are arrays, of how many elements, and what a share on the command line may be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.config.compose import compose, load_composed
from megatron_cpt.config.schema import EngineConfig, IndexEngineConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.tasks import TaskPlan
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.inputs import INPUTS
from megatron_cpt.line.run import Run
from megatron_cpt.line.shares import as_json, launcher, parse_share, prepared_corpus, shares_of
from megatron_cpt.submit.array import Shares


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two sources of 6 kB each that are trained on, and of one that is held out whole."""
    config = compose(["experiment=tiny", "run_name=r", f"runs_dir={tmp_path}/runs"])
    made = ProvenanceConfig("made here", "2026-11", "by this test")
    config.source, config.bench = {}, {}
    for name, test_fraction in (("b", 0.1), ("held", 1.0), ("a", 0.1)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name} {number} " + "word " * 10}) + "\n" for number in range(90)))
        config.source[name] = SourceConfig(str(path), "text", "domain", "MIT", made, "en", test_fraction=test_fraction)
    return Run(config)


def of_index(run: Run, kind: str, *, without: str = "") -> Shares | None:
    run.config.index.engine = IndexEngineConfig(kind)
    run.config.source = {name: source for name, source in run.config.source.items() if name != without}
    return shares_of(run, "index", {})


def of_corpus(run: Run, **engine: object) -> Shares | None:
    run.config.corpus.engine = replace(EngineConfig(), **engine)  # type: ignore[arg-type]
    return shares_of(run, "corpus", INPUTS["corpus"](run))


def test_the_index_has_an_element_for_each_source_that_may_be_trained_on(run: Run) -> None:
    assert of_index(run, "auto") == Shares(2, (0, 1))
    assert of_index(run, "local") is None
    assert of_index(run, "auto", without="a") is None
    assert of_index(run, "slurm") == Shares(1, (0,))
    with pytest.raises(ConfigError, match=r"index\.engine\.kind is 'ray'(.|\n)*auto, local, slurm"):
        of_index(run, "ray")


def test_a_corpus_of_one_tasks_worth_of_text_is_an_array_only_where_that_is_asked_for(run: Run) -> None:
    assert of_corpus(run) is None
    assert of_corpus(run, kind="slurm") == Shares(1, (0,))
    assert of_corpus(run, workers=3) == Shares(3, (0, 1, 2))
    assert of_corpus(run, task_mb=0.01) == Shares(2, (0, 1))  # 18 kB
    assert of_corpus(run, kind="local", workers=3) is None
    assert of_corpus(run, kind="ray", workers=3) is None
    with pytest.raises(ConfigError, match=r"corpus\.engine\.kind is 'slurn'"):
        of_corpus(run, kind="slurn")
    with pytest.raises(ConfigError, match=r"corpus\.engine\.task_mb is 0"):
        of_corpus(run, task_mb=0)


def test_no_other_stage_is_an_array(run: Run) -> None:
    assert [stage for stage in INPUTS if stage not in ("corpus", "index") and shares_of(run, stage, {}) is not None] == []


def refuse(scratch: Path) -> None:
    assert scratch.exists()
    raise ConfigError("refused")


def test_the_tasks_of_the_corpus_are_planned_at_submit_unless_slurm_refuses_the_line(run: Run) -> None:
    sources = INPUTS["corpus"](run)
    scratch = run.folder / ".corpus.scratch"
    with pytest.raises(ConfigError, match="refused"), prepared_corpus(run, sources):
        refuse(scratch)
    assert not scratch.exists()
    with prepared_corpus(run, sources):
        pass
    assert [task.source for task in TaskPlan.load(scratch).tasks] == ["a", "b", "held"]
    with pytest.raises(ConfigError, match="refused"), prepared_corpus(run, sources):
        refuse(scratch)
    assert scratch.exists()  # of the earlier submission


def test_a_stage_in_a_job_submits_no_array_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.config.corpus.engine.kind = run.config.index.engine.kind = "slurm"
    assert launcher(run, "corpus") is not None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert (launcher(run, "corpus"), launcher(run, "index")) == (None, None)


@pytest.mark.parametrize(("stage", "share"), [("index", "2/2"), ("index", "1"), ("corpus", "-1/2"), ("vocab", "0/2"), (None, "0/2")])
def test_what_is_no_share_is_refused(stage: str | None, share: str) -> None:
    with pytest.raises(ConfigError, match="share"):
        parse_share(stage, share)
    assert parse_share("index", "1/2") == (1, 2)


def test_the_configuration_that_elements_read_is_the_stages_own(tmp_path: Path) -> None:
    odd = ['tokenizer.document_separator="#end, 文=1"', 'model.provenance="1e-5"', "schedule.peak_lr=1e-5", "cluster.time_limit='10'"]
    config = compose(["experiment=tiny", *odd])
    (tmp_path / "config.yaml").write_text(as_json(config), encoding="utf-8")
    assert load_composed(tmp_path / "config.yaml") == config
