"""The shipped sweeps plan as their files say they are run, and tools/sweep_table.py says of runs what their documents' scores are."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from megatron_cpt.config.compose import compose, expand_sweep
from megatron_cpt.config.files import shipped_conf
from megatron_cpt.line.expecting import expected_plan
from megatron_cpt.line.inputs import plan_settings
from megatron_cpt.plan.derive import derive
from megatron_cpt.record.manifest import write_manifest
from megatron_cpt.record.store import write_json
from tests.unit.gate.gate_examples import SIZES, record
from tests.unit.plan.plan_examples import experiment, facts

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import sweep_table  # noqa: E402

SWEEPS = sorted(path.stem for path in (shipped_conf() / "experiment").glob("sweep_*.yaml"))
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip


def command_of(name: str) -> list[str]:
    """Return the command at the head of a sweep's file, in words."""
    lines = (shipped_conf() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("#   megatron-cpt"))
    text = lines[begin].removeprefix("#")
    while text.endswith("\\"):
        begin += 1
        text = text[:-1] + lines[begin].removeprefix("#")
    return shlex.split(text)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_plans_every_job_of_the_command_in_its_file_and_in_the_docs(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    words = command_of(name)
    assert words[:5] == ["megatron-cpt", "run", "-m", "--until", "gate"]
    assert f"experiment={name}" in words
    plans = []
    for overrides in expand_sweep(words[5:]):
        config = compose([*overrides, f"model.path={tmp_path}"])
        plan = expected_plan(config)
        assert (plan.num_tokens, plan.num_steps) == (16_384, 32)
        plans.append((plan_settings(config), config.tokenizer))
    assert all(plans.count(each) == 1 for each in plans), "two jobs of a sweep are the same run"
    assert len(plans) > 1
    docs = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").replace("\\\n", " ")
    assert any(line.startswith("megatron-cpt") and shlex.split(line) == words for line in docs.splitlines())


def swept_run(folder: Path, *, peak_lr: float, law: list[float], news: list[float], seen: str = "") -> Path:
    """Write what the table reads of a run whose documents have these bits per byte; the base has 2 everywhere, the start 3."""
    config = experiment()
    config.schedule.peak_lr = peak_lr
    plan = derive(config, **facts())
    tokenizer = {"num_new_pieces": 0, "document_separator": "<eod>"}
    inputs = {
        "vocab": {"tokenizer": tokenizer},
        "init": {"row_init": "mean"},
        "plan": {"settings": plan_settings(config), "seed": config.seed},
    }
    for stage, each in inputs.items():
        (folder / stage).mkdir(parents=True)
        if stage == "plan":
            plan.save(folder / stage)
        write_manifest(folder / stage, stage, each, {})
    two, three = [2.0] * len(law), [3.0] * len(law)
    scores = {who: record(who, {"law": values, "news": values}) for who, values in (("base", two), ("init", three))}
    baseline = {"subjects": {**scores["base"]["subjects"], **scores["init"]["subjects"]}}
    if seen:
        baseline["contaminated"] = {"law": [{"id": seen, "share": 0.9}]}
    candidate = record("train", {"law": law, "news": news})
    candidate["subjects"]["train"]["texts"]["law"] |= {"bytes": 900, "tokens": 300}
    for stage, scored in (("baseline", baseline), ("eval", candidate)):
        write_json(folder / stage / "eval.json", scored)
    return folder


def test_the_table_names_what_differs_and_weighs_documents_by_their_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low = swept_run(tmp_path / "low", peak_lr=1e-5, law=[1.0, 2.0, 9.0], news=[2.0, 2.0, 2.0], seen="law-2")
    high = swept_run(tmp_path / "high", peak_lr=2e-5, law=[1.0, 1.0, 9.0], news=[3.0, 3.0, 3.0], seen="law-2")
    assert sweep_table.main([str(low), str(high)]) == 0
    head, _, first, second, *rest = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert head[0] == "peak_lr"
    a, b, _ = SIZES[:3]  # the third document is one that training may have seen
    change = -a / (a + b)
    assert first[:5] == ["1e-05", "3.00", "2.0000", "3.0000", f"{2 + change:.4f}"]
    assert first[5].split()[0] == f"{change:+.4f}"
    assert (second[0], second[5], second[7]) == ("2e-05", "-1.0000 (-1.0000 to -1.0000)", "not judged")
    assert second[6] == "+1.0000 (+1.0000 to +1.0000)"
    (names, _, difference) = rest
    assert (names, difference[0], difference[2]) == (["minus 1e-05", "law", "news"], "2e-05", "+1.0000 (+1.0000 to +1.0000)")
    assert float(difference[1].split()[0]) == pytest.approx(-b / (a + b), abs=5e-5)


def test_runs_that_score_other_documents_are_not_set_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = swept_run(tmp_path / "one", peak_lr=1e-5, law=[1.0, 2.0, 2.0], news=[2.0] * 3)
    two = swept_run(tmp_path / "two", peak_lr=2e-5, law=[1.0, 2.0], news=[2.0] * 2)
    assert sweep_table.main([str(one), str(two)]) == 2
    assert "other documents" in capsys.readouterr().err
    other = swept_run(tmp_path / "other", peak_lr=2e-5, law=[1.0, 2.0, 2.0], news=[2.0] * 3)
    baseline = json.loads((other / "baseline" / "eval.json").read_text())
    baseline["subjects"]["base"]["weights_sha256"] = "another"
    write_json(other / "baseline" / "eval.json", baseline)
    assert sweep_table.main([str(one), str(other)]) == 2
    assert "another base model" in capsys.readouterr().err


def test_a_run_without_an_evaluation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = swept_run(tmp_path / "run", peak_lr=1e-5, law=[1.0, 2.0], news=[2.0] * 2)
    (run / "eval" / "eval.json").unlink()
    assert sweep_table.main([str(run)]) != 0
    assert "eval.json" in capsys.readouterr().err
