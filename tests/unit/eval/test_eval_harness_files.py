"""Task files are text from outside: what they may not do, and what is made of the harness's samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.eval.__main__ import parse
from megatron_cpt.eval.harness import HarnessTasks, items_of
from megatron_cpt.eval.harness_files import refuse_code
from megatron_cpt.plan.run_plan import HarnessPlan
from megatron_cpt.record.hashing import sha256_folder

SAFE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
"""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("doc_to_text: !function utils.text", "names Python by a tag"),
        ("doc_to_text: !%66unction utils.text", "names Python by a tag"),
        ("doc_to_text: !!python/name:os.system", "names Python by a tag"),
        ("{a: b, class: mine.Task}", "names a Python class"),
        ("metric_list: [{hf_evaluate: true, metric: x}]", "a metric that is a script"),
        ("metric_list: [{metric: ./mine.py}]", "a metric that may be a script"),
        ("dataset_path: pandas", "takes data by pandas"),
        ("dataset_path: ./mine.py", "takes data by"),
        ("include: ../../outside.yaml", "is no .yaml file of the folder"),
        ("include: code.txt", "is no .yaml file of the folder"),
        ("a: [", "is not readable YAML"),
    ],
)
def test_a_task_file_that_would_run_python_is_refused_by_name_before_it_is_loaded(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bad.yaml").write_text(f"{line}\n")
    (tmp_path / "deep" / "utils.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "good.yaml").write_text('task: good\ninclude: base.yaml\ndataset_path: json\ndoc_to_text: "its class: A, !function"\n')
    with pytest.raises(ConfigError, match=f"deep/bad.yaml.*{reason}"):
        HarnessTasks.load(HarnessPlan(str(tmp_path), sha256_folder(tmp_path), ("good",)))
    (tmp_path / "deep" / "bad.yaml").unlink()
    refuse_code(tmp_path)


def test_files_that_changed_after_the_plan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a\n")
    plan = HarnessPlan(str(tmp_path), sha256_folder(tmp_path), ("a",))
    (tmp_path / "items.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="not those that the plan was made with"):
        HarnessTasks.load(plan)


def test_a_template_reaches_no_more_than_the_items_fields(tmp_path: Path) -> None:
    """The usual way out of a jinja template: from a text up to every class that Python has loaded."""
    (tmp_path / "items.jsonl").write_text('{"question": "Is water wet?"}\n')
    for name, text in (("good", "{{question}}"), ("bad", "{{question.__class__.__mro__[1].__subclasses__()}}")):
        (tmp_path / f"{name}.yaml").write_text(SAFE.format(name=name, items=tmp_path / "items.jsonl", text=text))
    digest = sha256_folder(tmp_path)
    task = HarnessTasks.load(HarnessPlan(str(tmp_path), digest, ("good",))).loaded["tasks"]["good"]
    assert [task.doc_to_text(doc) for doc in task.test_docs()] == ["Is water wet?"]
    with pytest.raises(ConfigError, match="access to attribute '__class__' of 'str' object is unsafe"):
        HarnessTasks.load(HarnessPlan(str(tmp_path), digest, ("bad",)))


def test_a_task_that_the_folder_lacks_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"question": "Is water wet?"}\n')
    (tmp_path / "a.yaml").write_text(SAFE.format(name="wet", items=tmp_path / "items.jsonl", text="{{question}}"))
    with pytest.raises(ConfigError, match=r"(?s)hellaswag.*of wet"):
        HarnessTasks.load(HarnessPlan(str(tmp_path), sha256_folder(tmp_path), ("wet", "hellaswag")))


@pytest.mark.parametrize(
    "line",
    ["subjects=base harness=wet", "subjects=base tasks_path=tasks", "harness=wet tasks_path=tasks", "hf=folder hf=folder", "checkpoint="],
)
def test_an_evaluation_says_what_is_missing_on_its_command_line(line: str) -> None:
    with pytest.raises(ConfigError):
        parse(["plan=plan.yaml", "out=eval.json", *line.split()])
    found = parse(["plan=plan.yaml", "out=eval.json", "hf=folder", "harness=wet,dry", "tasks_path=tasks"])
    assert (found.subjects, found.hf_folder, found.harness, found.tasks_path) == ((), Path("folder"), ("wet", "dry"), Path("tasks"))


def test_a_damaged_data_file_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"question": \n')
    (tmp_path / "a.yaml").write_text(SAFE.format(name="a", items=tmp_path / "items.jsonl", text="{{question}}"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        HarnessTasks.load(HarnessPlan(str(tmp_path), sha256_folder(tmp_path), ("a",)))


def test_items_keep_wanted_numbers_alone_and_name_the_filter() -> None:
    common = {"doc_id": 0, "doc_hash": "abcdefabcdefabcdef", "metrics": ["acc", "f1", "perplexity"]}
    samples = [
        {**common, "filter": "none", "acc": True, "f1": (1, 0), "perplexity": 3.0},
        {**common, "filter": "strict", "acc": 0.0, "f1": (1, 1), "perplexity": 3.0},
    ]
    (item,) = items_of(samples, wanted={"acc", "f1"})
    assert item.id == "0-abcdefabcdef"
    assert item.metrics == {"acc": 1.0, "acc,strict": 0.0}
