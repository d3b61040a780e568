"""How texts are cut and which tasks of lm-evaluation-harness are run, as the plan decides it."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_examples import experiment, facts

from megatron_cpt.config.schema import GateRuleConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import HarnessPlan, RunPlan
from megatron_cpt.record.hashing import sha256_folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stride_tokens": 8193}, r"eval\.stride_tokens=8193 is longer than eval\.window_tokens=8192"),
        ({"stride_tokens": 0}, r"eval\.stride_tokens"),
        ({"harness": ["bar_exam"]}, r"eval\.harness needs task files, and eval\.harness_tasks_path=None"),
        ({"harness": ["bar_exam"], "harness_tasks_path": "."}, "holds no .yaml file"),
        ({"harness": ["law", "a", "a"], "harness_tasks_path": "tasks"}, r"(?s)'a' twice.*'law', which is also a text's name"),
        ({"harness_tasks_path": "tasks"}, r"eval\.harness names no task"),
        ({"harness_max_items": 0, "harness": ["a"], "harness_tasks_path": "tasks"}, r"eval\.harness_max_items"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], words: str
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("task: a\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if changes.get("harness_tasks_path") == "." else tmp_path)
    config = experiment()
    for key, value in changes.items():
        setattr(config.eval, key, value)
    with pytest.raises(ConfigError, match=words):
        derive(config, **facts())


def test_the_harness_is_in_the_plan_with_its_files_digest_and_a_rule_may_be_on_its_task(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: bar_exam\n")
    config = experiment()
    config.eval.harness, config.eval.harness_tasks_path, config.eval.stride_tokens = ["bar_exam"], str(tmp_path), 4096
    config.gate.rules.append(GateRuleConfig(of="bar_exam", metric="acc", kind="may_not_worsen", margin=0.02, group="domain"))
    plan = derive(config, **facts())
    assert plan.eval.harness == HarnessPlan(str(tmp_path), sha256_folder(tmp_path), ("bar_exam",))
    assert (plan.eval.stride_tokens, plan.eval.cache) == (4096, True)
    assert (plan.gate.rules[-1].of, plan.gate.rules[-1].metric) == ("bar_exam", "acc")
    assert RunPlan.load(plan.save(tmp_path)) == plan


def test_how_texts_are_scored_changes_nothing_of_what_training_is() -> None:
    config = experiment()
    before = derive(config, **facts())
    config.eval.stride_tokens, config.eval.cache = 4096, False
    assert derive(config, **facts()).fingerprint == before.fingerprint
