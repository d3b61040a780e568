"""Tasks of lm-evaluation-harness on two tensor-parallel ranks score as under its own Hugging Face backend on the exported folder."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import free_port, launch_ranks
from test_eval_subjects import export_initial_model
from tiny_run import END, TEXTS, make_layout, make_plan, make_run

from megatron_cpt.plan.run_plan import EvalPlan, RunPlan

pytestmark = pytest.mark.slow

WINDOW = 64
NUM_NEW = 10
TASKS = ("law_choice", "law_fill")

CHOICE = """
task: law_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 1
fewshot_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
FILL = """
task: law_fill
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{reply}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: {num_new}, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
"""
QUESTIONS = [
    ("the court and the", ["law", "land in an act", "judge"], 0),
    ("an act of law in the", ["moon", "party and the judge"], 1),
    ("the thin inn", ["and the land", "sing", "hangs on the moon and the ant"], 2),
    ("law and", ["the law", "an ant", "。"], 0),
    ("the judge and the party bind the court in an act of law and the land " * 3, ["law", "moon"], 1),
    ("moon", ["the law", "the moon"], 0),
    ("the law ", ["binds", "sings"], 0),
]


BARE = [("", "the law"), ("", "l"), ("the law ", "of the land")]  # nothing before an answer, and a space that belongs to it


def write_tasks(folder: Path, replies: list[str], stop: str) -> None:
    folder.mkdir(exist_ok=True)
    rows = [
        {"question": question, "choices": choices, "answer": answer, "reply": reply}
        for (question, choices, answer), reply in zip(QUESTIONS, replies, strict=True)
    ]
    items = folder / "items.jsonl"
    items.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (folder / "choice.yaml").write_text(CHOICE.format(items=items), encoding="utf-8")
    (folder / "fill.yaml").write_text(FILL.format(items=items, stop=stop, num_new=NUM_NEW), encoding="utf-8")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Path:
    folder = run_dir.parent / "exported"
    launch_ranks(export_initial_model, 1, str(run_dir), str(make_plan(run_dir, make_layout())), str(folder))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


@pytest.fixture(scope="module")
def reference(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness says of the exported folder, and the folder of tasks: half of the replies are those that the model gives."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache"))}
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(exported), device="cpu", batch_size=1, dtype="float32", max_length=WINDOW)
    folder, stop = tmp_path_factory.mktemp("tasks"), "t"

    def results() -> Any:
        tasks = TaskManager(include_path=str(folder), include_defaults=False).load(list(TASKS))
        for task in tasks["tasks"].values():
            task.set_fewshot_seed(seed=1234)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return evaluate(lm=model, task_dict=tasks, bootstrap_iters=0, log_samples=True)

    write_tasks(folder, [""] * len(QUESTIONS), stop)
    replies = [sample["filtered_resps"][0] for sample in results()["samples"]["law_fill"]]
    write_tasks(folder, [reply if number % 2 else f"not {reply}" for number, reply in enumerate(replies)], stop)
    found = results()
    found["bare"] = model.loglikelihood([request(pair) for pair in BARE])
    texts = ["the law and the party" * 20, "moon"]
    found["rolling"] = [model.loglikelihood_rolling([request((text,))])[0] for text in texts]
    return {**found, "folder": folder, "texts": texts}


def request(arguments: tuple[Any, ...]) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0, ("a task", 0, 1))


def harness_rank(
    plan_path: str, tasks_path: str, arguments: list[tuple[str, str]], texts: list[str], out: str, port: int
) -> dict[str, Any]:
    """Write the report of the tasks by the command line, then ask the model for single log-likelihoods."""
    from tokenizers import Tokenizer

    from megatron_cpt.backend import choose
    from megatron_cpt.eval.__main__ import main
    from megatron_cpt.eval.run import load_subject

    assert main([f"plan={plan_path}", "subjects=init", f"harness={','.join(TASKS)}", f"tasks_path={tasks_path}", f"out={out}"]) == 0
    os.environ["MASTER_PORT"] = str(port)  # the store of the ranks before may still hold its own

    from megatron_cpt.eval.harness_model import RanksLM
    from megatron_cpt.eval.subjects import find_subject
    from megatron_cpt.model.parallel import ranks

    plan, backend = RunPlan.load(Path(plan_path)), choose("cpu")
    subject = find_subject("init", plan, Path(plan_path).parent.parent)
    with ranks(plan.layout, backend=backend, seed=1):
        model = RanksLM(
            load_subject(subject, plan, backend=backend), Tokenizer.from_file(str(subject.tokenizer_path)),
            end_id=plan.vocab.end_of_document_id, window_tokens=WINDOW, micro_batch_size=3, seed=1, torch_device=backend.device,
            progress=lambda _: None,
        )  # fmt: skip
        found = model.loglikelihood([request(each) for each in arguments])
        rolling = model.loglikelihood_rolling([request((text,)) for text in texts])
        joined = model.loglikelihood([request(("a l", "aw")), request(("an", "d")), request(("the", " law"))])
        bare = model.loglikelihood([request(pair) for pair in BARE])
    return {
        "found": found,
        "bare": bare,
        "rolling": rolling,
        "joined": joined,
        "num_joined": {name: len(ids) for name, ids in model.joined.items()},
    }


@pytest.fixture(scope="module")
def ours(run_dir: Path, reference: dict[str, Any]) -> dict[str, Any]:
    plan_path = make_plan(run_dir, make_layout(tensor=2), eval=EvalPlan(TEXTS, WINDOW, 3))
    arguments = [tuple(pair) for sample in reference["samples"]["law_choice"] for pair in sample["arguments"]]
    out = run_dir / "eval" / "eval.json"
    answers = launch_ranks(harness_rank, 2, str(plan_path), str(reference["folder"]), arguments, reference["texts"], str(out), free_port())
    assert answers[0] == answers[1]
    return {**answers[0], "tasks": json.loads(out.read_text(encoding="utf-8"))["subjects"]["init"]["tasks"]}


def test_choices_and_generations_score_as_under_the_hugging_face_backend(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    results = reference["results"]
    choice, fill = ours["tasks"]["law_choice"], ours["tasks"]["law_fill"]
    assert choice["metrics"] == {name: results["law_choice"][f"{name},none"] for name in ("acc", "acc_norm")}
    assert fill["metrics"] == {"exact_match": results["law_fill"]["exact_match,none"]}  # bleu is no mean over items
    assert fill["metrics"]["exact_match"] == pytest.approx(3 / 7)  # three of the replies are what the model gives
    for name, task in ours["tasks"].items():
        for item, sample in zip(task["items"], reference["samples"][name], strict=True):
            assert item["id"] == f"{sample['doc_id']}-{sample['doc_hash'][:12]}"
            assert item["metrics"] == {metric: sample[metric] for metric in item["metrics"]}
    assert len({item["metrics"]["acc"] for item in choice["items"]}) == 2  # neither all right nor all wrong
    assert "0.4.1" in choice["source"]
    assert choice["kind"] == "multiple_choice"


def test_log_likelihoods_are_those_of_the_hugging_face_backend(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    expected = [answer for sample in reference["samples"]["law_choice"] for (answer,) in sample["resps"]]
    for found, said in ((ours["found"], expected), (ours["bare"], reference["bare"])):
        assert [value for value, _ in found] == pytest.approx([value for value, _ in said], rel=1e-5)
        assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in said]
    assert ours["rolling"] == pytest.approx(reference["rolling"], rel=1e-5)


def test_an_answer_that_the_tokenizer_joins_with_its_question_is_scored_and_counted(ours: dict[str, Any]) -> None:
    assert all(value < 0.0 for value, _ in ours["joined"])
    assert ours["num_joined"]["a task"] == 1  # one document: "an" + "d" is one piece
    assert ours["tasks"]["law_choice"]["joined_boundaries"] == 0
