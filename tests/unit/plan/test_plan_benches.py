"""Benchmarks in the plan: everything that is wrong with them at once, and a copy that no later edit reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plan_examples import experiment, facts

from megatron_cpt.config.schema import BenchConfig, ExperimentConfig, GateRuleConfig
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.plan.benches import bench_inputs, copy_benches, read_benches
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_file

ROW = {"question": "Which court?", "choices": ["the first", "the second"], "answer": "B"}


def bench(folder: Path, name: str, *rows: dict[str, Any], **settings: Any) -> BenchConfig:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BenchConfig(path=str(path), **settings)


def with_benches(**benches: BenchConfig) -> ExperimentConfig:
    config = experiment()
    config.bench, config.eval.tasks = dict(benches), list(benches)
    return config


def plan_of(config: ExperimentConfig) -> RunPlan:
    return derive(config, **facts(), benches=read_benches(config))


def problems_of(config: ExperimentConfig) -> str:
    with pytest.raises(ConfigError) as error:
        plan_of(config)
    print(error.value)
    return str(error.value)


def test_a_task_is_in_the_plan_with_its_digest_and_what_it_measures(tmp_path: Path) -> None:
    rows = [{**ROW, "question": f"q{number}", "subgroup": "ab"[number % 2], "licence": "CC0-1.0"} for number in range(6)]
    config = with_benches(
        quiz=bench(tmp_path, "quiz", *rows, group="domain", source="written here", few_shot=1, max_items=3),
        code=bench(
            tmp_path, "code", {"prompt": "def f():", "tests": "f()", "group": "general"}, licence="MIT", source="s", num_samples=4,
            temperature=0.5, pass_at=[1, 4],
        ),
    )  # fmt: skip
    config.gate.rules.append(GateRuleConfig(of="quiz", metric="accuracy", kind="may_not_worsen", margin=0.05))
    plan = plan_of(config)
    quiz, code = plan.eval.tasks
    assert (quiz.metrics, quiz.num_items, quiz.group, quiz.licence) == (("accuracy", "accuracy_per_byte", "gap"), 3, "domain", "CC0-1.0")
    assert (quiz.template, quiz.separator, quiz.stop) == ("Question: {question}\nAnswer:", " ", ())
    assert quiz.sha256 == sha256_file(tmp_path / "quiz.jsonl")
    assert (code.metrics, code.template, code.group) == (("pass@1", "pass@4"), "{question}", "general")
    assert "\ndef" in code.stop
    assert RunPlan.load(plan.save(tmp_path)) == plan
    copy_benches(plan.eval, read_benches(config), tmp_path / "run" / "plan")
    assert sha256_file(tmp_path / "run" / quiz.path) == quiz.sha256


def test_a_plan_without_tasks_is_as_it_was(tmp_path: Path) -> None:
    assert plan_of(experiment()).eval.tasks == ()
    assert (
        plan_of(experiment()).fingerprint
        == plan_of(with_benches(quiz=bench(tmp_path, "q", ROW, group="bias", licence="a", source="b"))).fingerprint
    )


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    config = with_benches(
        one=bench(tmp_path, "one", ROW, {**ROW, "answer": "Z"}, group="domain", licence="CC0", source="s"),
        two=bench(tmp_path, "two", ROW),
        three=bench(
            tmp_path, "three", {**ROW, "group": "general"}, group="law", licence="a", source="b", few_shot=5, num_samples=3, pass_at=[4],
            template="no place", max_new_tokens=9000, stop=[""], temperature=-1, max_items=0,
        ),
        four=BenchConfig(path=str(tmp_path / "none.jsonl"), group="domain", licence="a", source="b"),
        law=bench(tmp_path, "law", {"stereotype": "a", "anti_stereotype": "b"}, group="bias", licence="a", source="b", few_shot=1),
    )  # fmt: skip
    config.eval.tasks += ["one", "five"]
    config.eval.contamination.words = 1
    config.eval.contamination.document_share = 0
    said = problems_of(config)
    for words in (
        "eval.tasks names 'one' twice", "names 'five', which is no benchmark. In bench: four, law, one, three, two", "row 2: answer",
        "bench.two.group is not given", "bench.two.licence is not given", "bench.two.source is not given", "bench.three.group='law'",
        "bench.three.template='no place' does not hold {question} once", "bench.three.max_new_tokens=9000 leaves no room",
        "bench.three.num_samples=3 needs temperature above 0", "bench.three.num_samples=3 is for code", "bench.three.pass_at=[4]",
        "bench.three.temperature=-1", "bench.three.max_items=0 is below 1", "bench.three.few_shot=5 leaves none of 1 items",
        "bench.three.stop holds an empty text", "the rows of three.jsonl say general", "bench.four: A benchmark file is missing",
        "eval.tasks and eval.texts both name 'law'", "bench.law.few_shot=1", "eval.contamination.words=1", "document_share=0",
    ):  # fmt: skip
        assert words in said, words


def test_a_file_that_changes_is_another_input_and_a_moved_one_is_the_same(tmp_path: Path) -> None:
    config = with_benches(quiz=bench(tmp_path, "quiz", ROW, group="domain", licence="a", source="b"))
    before = bench_inputs(config)
    (tmp_path / "quiz.jsonl").rename(tmp_path / "moved.jsonl")
    assert bench_inputs(config)["quiz"]["sha256"] == "missing"
    config.bench["quiz"].path = str(tmp_path / "moved.jsonl")
    assert bench_inputs(config) == before
    plan, benches = plan_of(config), read_benches(config)
    (tmp_path / "moved.jsonl").write_text(json.dumps({**ROW, "answer": "A"}) + "\n")
    assert bench_inputs(config) != before
    with pytest.raises(DataError, match="changed while the plan was made"):
        copy_benches(plan.eval, benches, tmp_path / "plan")


def test_planning_with_a_benchmark_loads_no_torch() -> None:
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    modules = "megatron_cpt.plan.benches, megatron_cpt.eval.contamination, megatron_cpt.eval.task_items"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
