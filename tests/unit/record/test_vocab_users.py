"""Index, init, plan, train, eval and export each refuse a vocabulary whose contract is broken, and the last three another layout."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from vocab_folders import make_vocab

from megatron_cpt.errors import DataError
from megatron_cpt.eval.subjects import extended_tokenizer
from megatron_cpt.index.build import build_index
from megatron_cpt.line.exporting import export_body
from megatron_cpt.line.preparing import init_body, plan_body
from megatron_cpt.train.run import Attempt

STAGES = {
    "index": lambda run: build_index(
        SimpleNamespace(folder=run.folder), corpus_folder=run.folder, vocab_folder=run.of("vocab"), corpus_facts={}, say=print
    ),
    "init": lambda run: init_body(run, None, None),
    "plan": lambda run: plan_body(run, None, None),
    "train": lambda run: Attempt._check_inputs(SimpleNamespace(_plan=run.plan, _run_dir=run.folder)),
    "eval": lambda run: extended_tokenizer(run.plan, run.folder),
    "export": lambda run: export_body(run, None, None),
}


def run_with(tmp_path, **changed):
    layout = dataclasses.replace(make_vocab(tmp_path / "vocab"), **changed)
    plan = SimpleNamespace(vocab=layout, identity={"vocab": "of the line"}, gate=SimpleNamespace(limits=()))
    return SimpleNamespace(folder=tmp_path, plan=plan, of=lambda stage: tmp_path / stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_broken_contract_stops_the_stage(tmp_path, stage):
    run = run_with(tmp_path)
    data = json.loads((tmp_path / "vocab" / "contract.json").read_text())
    data["checks"][0].update(holds=False, detail="an id moved")
    (tmp_path / "vocab" / "contract.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="a clause: an id moved"):
        STAGES[stage](run)


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_contract_stops_the_stage(tmp_path, stage):
    run = run_with(tmp_path)
    (tmp_path / "vocab" / "contract.json").unlink()
    with pytest.raises(DataError, match=r"missing[\s\S]*contract.json"):
        STAGES[stage](run)


@pytest.mark.parametrize("stage", ["train", "eval", "export"])
def test_a_plan_for_other_rows_stops_the_stage(tmp_path, stage):
    run = run_with(tmp_path, num_padded_rows=512)
    with pytest.raises(DataError, match=r"num_padded_rows 256[\s\S]*num_padded_rows 512"):
        STAGES[stage](run)
