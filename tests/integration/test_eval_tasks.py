"""Benchmarks of every kind on real ranks: against transformers, and the same whatever the layout."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from launch_ranks import free_port, launch_ranks
from tiny_run import END, TEXTS, make_layout, make_plan, make_run, sentences
from tokenizers import Tokenizer

from megatron_cpt.config.schema import BenchConfig
from megatron_cpt.errors import DataError
from megatron_cpt.eval.contamination import find_contaminated
from megatron_cpt.eval.sandbox import why_not_confined
from megatron_cpt.plan.benches import task_of
from megatron_cpt.plan.run_plan import EvalPlan, EvalTask, EvalText, RunPlan
from megatron_cpt.record.bench import read_bench
from megatron_cpt.text.units import units_of

pytestmark = pytest.mark.slow

WINDOW, NEW_TOKENS = 48, 6
CHOICES = [
    {"id": "c0", "question": "Who binds", "choices": ["the law", "an ant", "the court and the judge"], "answer": "A", "subgroup": "x"},
    {"id": "c1", "question": "Who sings", "choices": ["the moon", "inn"], "answer": "B", "subgroup": "y"},
    {"id": "c2", "question": "高炉", "choices": ["高炉炉", "iron"], "answer": 0, "subgroup": "y"},
    {"id": "c3", "question": "the act", "choices": ["and", "of the party in the land", "moon"], "answer": 2, "subgroup": "x"},
    {"id": "c4", "question": "the thin", "choices": ["land", "law"], "answer": "land", "subgroup": "x"},
]
JOINED = [
    {"id": "j0", "question": "the c", "choices": ["ourt", "at"], "answer": "A"},
    {"id": "j1", "question": "the ", "choices": ["law", "ant"], "answer": "A"},
    {"id": "j2", "question": "the", "choices": [" moon", " ant"], "answer": "A"},
]
PAIRS = [
    {"id": "p0", "stereotype": "He is the judge.", "anti_stereotype": "She is the judge."},
    {"id": "p1", "stereotype": "the thin ant sings", "anti_stereotype": "the thin land sings"},
    {"id": "p2", "stereotype": "她是护士。", "anti_stereotype": "他是护士。"},
]
CODE = [  # what is written stands in a comment, so that the tests decide
    {"id": "right", "prompt": "def one():\n    return 1\n# ", "tests": "def check(f):\n    assert f() == 1", "entry_point": "one"},
    {"id": "wrong", "prompt": "def one():\n    return 2\n# ", "tests": "assert one() == 1"},
]


def encode(folder: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def reference(folder: Path) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy_by_transformers(folder: Path, prompt: str) -> str:
    import torch

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(END), *encode(folder, prompt)]
    with torch.no_grad():
        made = reference(folder).generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ids[0], pad_token_id=0
        )
    return tokenizer.decode(made[0, len(ids) :].tolist(), skip_special_tokens=True).split("\n")[0]


def nats_by_transformers(folder: Path, context: str, answer: str) -> float:
    import torch
    from torch.nn import functional

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    before = [tokenizer.token_to_id(END), *(encode(folder, context) if context else [])]
    after = encode(folder, answer)
    with torch.no_grad():
        logits = reference(folder)(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
    return functional.cross_entropy(logits.double(), torch.tensor(after), reduction="sum").item()


def write_tasks(run_dir: Path) -> tuple[EvalTask, ...]:
    base = run_dir.parent / "run-base"
    generation = [
        {"id": "g0", "question": "the law and", "answer": greedy_by_transformers(base, "Question: the law and\nAnswer:").strip()},
        {"id": "g1", "question": "the moon", "answer": "never this"},
    ]
    shared: dict[str, Any] = {"licence": "CC0-1.0", "source": "this test"}
    wanted: dict[str, tuple[list[dict[str, Any]], BenchConfig]] = {
        "choice": (CHOICES, BenchConfig("", "domain", few_shot=1, **shared)),
        "joined": (JOINED, BenchConfig("", "domain", template="{question}", separator="", **shared)),
        "pairs": (PAIRS, BenchConfig("", "bias", **shared)),
        "generation": (generation, BenchConfig("", "general", max_new_tokens=NEW_TOKENS, **shared)),
        "code": (
            CODE,
            BenchConfig("", "general", max_new_tokens=NEW_TOKENS, stop=["\n"], num_samples=2, temperature=0.8, pass_at=[1, 2], **shared),
        ),
    }
    if why_not_confined() is not None:
        del wanted["code"]  # said by the sandbox's own tests
    tasks = []
    for name, (rows, config) in wanted.items():
        path = run_dir / "plan" / "bench" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        tasks.append(task_of(name, config, read_bench(path)))
    return tuple(tasks)


def evaluate(run_dir: Path, **layout: Any) -> dict[str, Any]:
    wanted = make_layout(**layout)
    plan_path = make_plan(run_dir, wanted, eval=EvalPlan(TEXTS, WINDOW, 2, tasks=write_tasks(run_dir)))
    out = run_dir / "eval" / "eval.json"
    in_loop = launch_ranks(_evaluate_rank, wanted.num_ranks, str(plan_path), str(out), free_port())
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {**report, "in_loop": in_loop}


def _evaluate_rank(plan_path: str, out: str, port: int) -> dict[str, Any]:
    """Write the evaluation, and return what the training loop would see of the initial model with `tasks_in_loop`."""
    from megatron_cpt.backend import choose
    from megatron_cpt.eval.in_loop import scores_of
    from megatron_cpt.eval.run import load_subject, run
    from megatron_cpt.eval.subjects import find_subject
    from megatron_cpt.model.parallel import ranks

    run(Path(plan_path), subjects=("base", "init"), checkpoint=None, out=Path(out))
    os.environ["MASTER_PORT"] = str(port)  # the store of the run before may still hold its own
    plan, run_dir = RunPlan.load(Path(plan_path)), Path(plan_path).parent.parent
    plan, backend = dataclasses.replace(plan, eval=dataclasses.replace(plan.eval, tasks_in_loop=True)), choose("cpu")
    with ranks(plan.layout, backend=backend, seed=plan.seed):
        return scores_of(plan, run_dir, load_subject(find_subject("init", plan, run_dir), plan, backend=backend))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def on_two_ranks(run_dir: Path) -> dict[str, Any]:
    return evaluate(run_dir, tensor=2)


def items_of(report: dict[str, Any], task: str, subject: str = "base") -> dict[str, dict[str, float]]:
    return {item["id"]: item["metrics"] for item in report["subjects"][subject]["tasks"][task]["items"]}


def test_choices_are_those_of_transformers(on_two_ranks: dict[str, Any], run_dir: Path) -> None:
    folder = run_dir.parent / "run-base"
    example = f"Question: {CHOICES[0]['question']}\nAnswer: {CHOICES[0]['choices'][0]}\n\n"
    scored = items_of(on_two_ranks, "choice")
    assert list(scored) == ["c1", "c2", "c3", "c4"]  # the first is the example
    for row, right in zip(CHOICES[1:], (1, 0, 2, 0), strict=True):
        context = example + f"Question: {row['question']}\nAnswer:"
        nats = [nats_by_transformers(folder, context, " " + choice) for choice in row["choices"]]
        rates = [value / len(choice.encode()) for value, choice in zip(nats, row["choices"], strict=True)]
        expected = {"accuracy": float(nats.index(min(nats)) == right), "accuracy_per_byte": float(rates.index(min(rates)) == right)}
        assert scored[row["id"]] == expected
    score = on_two_ranks["subjects"]["base"]["tasks"]["choice"]
    means = {group: [m["accuracy"] for i, m in scored.items() if i in ids] for group, ids in {"x": ("c3", "c4"), "y": ("c1", "c2")}.items()}
    assert score["metrics"]["accuracy"] == sum(metric["accuracy"] for metric in scored.values()) / 4
    assert score["metrics"]["gap"] == abs(sum(means["x"]) / 2 - sum(means["y"]) / 2)
    assert (score["group"], score["licence"], score["kind"]) == ("domain", "CC0-1.0", "choice")
    assert "UTF-8 bytes" in score["rule"]


def test_sentences_are_compared_whole(on_two_ranks: dict[str, Any], run_dir: Path) -> None:
    folder = run_dir.parent / "run-base"
    for row in PAIRS:
        likelier = nats_by_transformers(folder, "", row["stereotype"]) < nats_by_transformers(folder, "", row["anti_stereotype"])
        assert items_of(on_two_ranks, "pairs")[row["id"]] == {"stereotype": float(likelier)}


def test_boundaries_that_a_vocabulary_joins_are_counted_and_the_answer_keeps_its_bytes(on_two_ranks: dict[str, Any], run_dir: Path) -> None:
    """`co` and ` law` are pieces of the extended vocabulary alone; a question's last space goes to the answer: ` law` joins nothing."""
    joined = {name: on_two_ranks["subjects"][name]["tasks"]["joined"]["joined_boundaries"] for name in ("base", "init")}
    assert joined == {"base": 0, "init": 1}
    folder = run_dir.parent / "run-base"
    row, nats = JOINED[0], [nats_by_transformers(folder, "the c", choice) for choice in ("ourt", "at")]
    assert items_of(on_two_ranks, "joined")[row["id"]]["accuracy"] == float(nats[0] < nats[1])


def test_what_is_generated_is_compared_with_the_answers(on_two_ranks: dict[str, Any]) -> None:
    scored = items_of(on_two_ranks, "generation")
    assert scored["g0"]["exact_match"] == 1.0
    assert scored["g1"]["exact_match"] == 0.0


@pytest.mark.skipif(why_not_confined() is not None, reason=f"no namespaces here: {why_not_confined()}")
def test_programs_run_with_their_tests(on_two_ranks: dict[str, Any]) -> None:
    scored = items_of(on_two_ranks, "code")
    assert scored["right"]["pass@2"] == 1.0
    assert scored["wrong"] == {"pass@1": 0.0, "pass@2": 0.0}


def test_one_rank_says_the_same(on_two_ranks: dict[str, Any], tmp_path: Path) -> None:
    alone = evaluate(make_run(tmp_path))
    for name, subject in on_two_ranks["subjects"].items():
        assert alone["subjects"][name]["tasks"] == subject["tasks"]


def test_the_loop_scores_tasks_as_the_evaluation_does(on_two_ranks: dict[str, Any]) -> None:
    for seen in on_two_ranks["in_loop"]:  # by each rank
        assert {name for name, score in seen.items() if "bits_per_byte" in score} == {"law", "talk"}
        tasks = {name: score for name, score in seen.items() if "items" in score}
        assert json.loads(json.dumps(tasks)) == on_two_ranks["subjects"]["init"]["tasks"]


def test_a_benchmark_that_changed_since_the_plan_is_refused(run_dir: Path, tmp_path: Path) -> None:
    from megatron_cpt.eval.task_items import read_tasks

    tasks = write_tasks(run_dir)
    plan = EvalPlan(TEXTS, WINDOW, 2, tasks=tasks[:1])
    path = run_dir / tasks[0].path
    path.write_text(path.read_text(encoding="utf-8").replace('"answer": "A"', '"answer": "B"'), encoding="utf-8")
    with pytest.raises(DataError, match="changed since the plan was made"):
        read_tasks(plan, run_dir)


def test_a_run_s_own_index_is_searched_for_its_documents_and_items(tmp_path: Path) -> None:
    """The talk source's held-out text gets a document that was trained on; a benchmark asks for a trained sentence."""
    run_dir = make_run(tmp_path)
    long = next(text for text in sentences("talk", 60, seed=0) if len(text.split()) > 30)
    rows = [{"id": "seen", "text": long}, {"id": "new", "text": " ".join(f"x{number}" for number in range(50))}]
    (run_dir / "corpus" / "talk.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = run_dir / "plan" / "bench" / "quiz.jsonl"
    path.parent.mkdir(parents=True)
    words = long.split()
    questions = [
        {"id": "leaked", "question": " ".join(words[5:20]).upper() + "?", "choices": ["yes", "no"], "answer": "A"},
        {"id": "leaked answer", "question": "And?", "choices": ["no", " ".join(words[3:17])], "answer": "B"},
        {"id": "wrong choice", "question": "And then?", "choices": ["no", " ".join(words[3:17])], "answer": "A"},
        {"id": "fresh", "question": " ".join(f"y{number}" for number in range(20)), "choices": ["yes", "no"], "answer": "A"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    task = task_of("quiz", BenchConfig("", "general", licence="CC0", source="a test"), read_bench(path))
    texts = (EvalText("talk", "general", "corpus/talk.test.jsonl", 100_000),)
    plan = RunPlan.load(make_plan(run_dir, make_layout(), eval=EvalPlan(texts, 48, 2, tasks=(task,))))
    said: list[str] = []
    found = find_contaminated(plan, run_dir, say=said.append)
    assert {name: [item["id"] for item in items] for name, items in found.items()} == {
        "talk": ["seen"],
        "quiz": ["leaked", "leaked answer"],
    }
    assert found["talk"][0]["share"] == 1.0
    assert len(units_of(found["quiz"][0]["example"])) == 13
    assert found["quiz"][0]["example"] in " ".join(units_of(long))
    assert "quiz: 2 of 4 overlap with the training data, so the gate leaves them out; 1 too short to tell" in said
