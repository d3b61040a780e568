"""From `bench` in the configuration to the tasks of the plan: files read once, everything that is wrong with them said at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from megatron_cpt.config.schema import BenchConfig, ExperimentConfig
from megatron_cpt.errors import DataError, printable
from megatron_cpt.plan.run_plan import EvalPlan, EvalTask
from megatron_cpt.record.bench import GROUPS, Bench, read_bench, split_examples
from megatron_cpt.record.hashing import sha256_bytes, sha256_file
from megatron_cpt.record.store import write_text

COPIES = "bench"
QUESTION = "{question}"
TEMPLATES = {
    "choice": f"Question: {QUESTION}\nAnswer:",
    "generation": f"Question: {QUESTION}\nAnswer:",
    "code": QUESTION,
    "pairs": QUESTION,
}
# what ends a function's body: Chen et al. 2021, arXiv 2107.03374, section 2.1, and the fence of a chat's answer
STOPS = {"generation": ("\n",), "code": ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")}
MAX_SAMPLES = 1_000


@dataclass
class Benches:
    """The files of `eval.tasks` by name, and what is wrong with those that cannot be read."""

    found: dict[str, Bench] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_benches(config: ExperimentConfig) -> Benches:
    """Read the file of each task that the configuration has; a bad one becomes a problem, so that all are named together."""
    benches = Benches()
    for name in dict.fromkeys(config.eval.tasks):
        if name not in config.bench:
            continue
        try:
            benches.found[name] = read_bench(Path(config.bench[name].path).expanduser())
        except DataError as error:
            benches.problems.append(f"bench.{printable(name)}: {error}")
    return benches


def bench_inputs(config: ExperimentConfig) -> dict[str, Any]:
    """Return what decides the scores of each task: its settings and its file's digest, not its path."""
    inputs = {}
    for name in config.eval.tasks:
        if name not in config.bench:
            continue  # said when the plan is derived
        path = Path(config.bench[name].path).expanduser()
        settings = {key: value for key, value in asdict(config.bench[name]).items() if key != "path"}
        inputs[name] = {"settings": settings, "sha256": sha256_file(path) if path.is_file() else "missing"}
    return inputs


def copy_benches(plan: EvalPlan, benches: Benches, folder: Path) -> None:
    """Put a copy of each file beside the plan, so that every evaluation of the run reads what the plan was made with.

    Raises:
        DataError: a file changed while it was read.
    """
    for task in plan.tasks:
        data = benches.found[task.name].path.read_bytes()
        if sha256_bytes(data) != task.sha256:
            raise DataError(
                "A benchmark file changed while the plan was made.", where=benches.found[task.name].path, next_step="Run again."
            )
        write_text(folder / COPIES / Path(task.path).name, data.decode("utf-8"))


def task_problems(config: ExperimentConfig, benches: Benches, *, max_position: int) -> list[str]:
    """Say what is wrong with `eval.tasks`, the settings of their benchmarks, and the files."""
    tasks = config.eval.tasks
    problems = [f"eval.tasks names {name!r} twice." for name in sorted({name for name in tasks if tasks.count(name) > 1})]
    for name in dict.fromkeys(tasks):
        if name not in config.bench:
            known = ", ".join(sorted(config.bench)) or "none"
            problems.append(f"eval.tasks names {printable(name)!r}, which is no benchmark. In bench: {known}.")
            continue
        if name in config.eval.texts:
            problems.append(f"eval.tasks and eval.texts both name {name!r}: a rule could mean either. Call the benchmark otherwise.")
        label = f"bench.{name}"
        problems += [f"{label}.{problem}" for problem in settings_problems(config.bench[name], max_position=max_position)]
        if name in benches.found:
            problems += [f"{label}{problem}" for problem in file_problems(config.bench[name], benches.found[name])]
    return problems + benches.problems + contamination_problems(config)


def settings_problems(bench: BenchConfig, *, max_position: int) -> list[str]:
    """Check what can be checked without the file."""
    least = {"few_shot": (bench.few_shot, 0), "max_new_tokens": (bench.max_new_tokens, 1), "num_samples": (bench.num_samples, 1)}
    if bench.max_items is not None:
        least["max_items"] = (bench.max_items, 1)
    problems = [f"{key}={value} is below {low}." for key, (value, low) in least.items() if value < low]
    if bench.group is not None and bench.group not in GROUPS:
        problems.append(f"group={printable(bench.group)!r} is not one of {', '.join(GROUPS)}.")
    if bench.template is not None and bench.template.count(QUESTION) != 1:
        problems.append(f"template={printable(bench.template)!r} does not hold {QUESTION} once.")
    if bench.max_new_tokens >= max_position:
        problems.append(f"max_new_tokens={bench.max_new_tokens} leaves no room for a prompt in the model's {max_position} positions.")
    if bench.num_samples > MAX_SAMPLES:
        problems.append(f"num_samples={bench.num_samples} is above {MAX_SAMPLES}.")
    if not (math.isfinite(bench.temperature) and bench.temperature >= 0):
        problems.append(f"temperature={bench.temperature} is not 0 or more.")
    if bench.num_samples > 1 and not bench.temperature > 0:
        problems.append(f"num_samples={bench.num_samples} needs temperature above 0: without one all samples are the same.")
    if not bench.pass_at or any(not 1 <= k <= bench.num_samples for k in bench.pass_at) or len(set(bench.pass_at)) != len(bench.pass_at):
        problems.append(f"pass_at={bench.pass_at} are not different numbers from 1 to num_samples={bench.num_samples}.")
    if bench.stop is not None and not all(bench.stop):
        problems.append("stop holds an empty text, which would end every answer before it begins.")
    return problems


def file_problems(config: BenchConfig, bench: Bench) -> list[str]:
    """Check the settings against what is in the file; each sentence goes on after `bench.<name>`."""
    problems = []
    if config.group is None and bench.group is None:
        problems.append(f".group is not given, nor in the rows. Use one of {', '.join(GROUPS)}.")
    if config.group is not None and bench.group not in (None, config.group):
        problems.append(f".group={config.group}, and the rows of {bench.path.name} say {bench.group}.")
    problems += [
        f".{key} is not given, nor in the rows: a benchmark without it cannot be used."
        for key, value, rows in (("licence", config.licence, bench.licences), ("source", config.source, bench.sources))
        if not (value or "").strip() and not rows
    ]
    if config.few_shot >= len(bench.items):
        problems.append(f".few_shot={config.few_shot} leaves none of {len(bench.items)} items to score.")
    if config.few_shot and bench.kind == "pairs":
        problems.append(f".few_shot={config.few_shot} has no meaning for sentence pairs. Use 0.")
    if config.num_samples > 1 and bench.kind != "code":
        problems.append(f".num_samples={config.num_samples} is for code; {bench.path.name} is of the kind {bench.kind}. Use 1.")
    if config.temperature > 0 and bench.kind != "code":
        problems.append(f".temperature={config.temperature} is for code; {bench.path.name} is of the kind {bench.kind}. Use 0.")
    return problems


def contamination_problems(config: ExperimentConfig) -> list[str]:
    found, key = config.eval.contamination, "eval.contamination"
    problems = [
        f"{key}.{name}={value} is below 2." for name, value in (("words", found.words), ("characters", found.characters)) if value < 2
    ]
    if not 0 <= found.task_share < 1:
        problems.append(f"{key}.task_share={found.task_share} is not from 0 to below 1.")
    if not 0 < found.document_share <= 1:
        problems.append(f"{key}.document_share={found.document_share} is not above 0 and at most 1.")
    return problems


def task_of(name: str, config: BenchConfig, bench: Bench) -> EvalTask:
    """Return the task of a benchmark that has passed its checks."""
    stop = STOPS.get(bench.kind, ()) if config.stop is None else tuple(config.stop)
    return EvalTask(
        name=name,
        path=f"plan/{COPIES}/{name}.jsonl",
        sha256=bench.sha256,
        kind=bench.kind,
        group=cast(Literal["domain", "general", "bias", "safety"], config.group or bench.group),
        licence=config.licence or ", ".join(bench.licences),
        source=config.source or ", ".join(bench.sources),
        metrics=metrics_of(bench, config.pass_at),
        num_items=len(split_examples(bench, few_shot=config.few_shot, max_items=config.max_items)[1]),
        template=TEMPLATES[bench.kind] if config.template is None else config.template,
        separator=config.separator,
        few_shot=config.few_shot,
        max_items=config.max_items,
        max_new_tokens=config.max_new_tokens,
        stop=stop,
        num_samples=config.num_samples,
        temperature=config.temperature,
    )


def metrics_of(bench: Bench, pass_at: Sequence[int]) -> tuple[str, ...]:
    """Return what a task measures, the main metric first; a spread over subgroups where there are at least two."""
    metrics = tuple(f"pass@{k}" for k in pass_at) if bench.kind == "code" else bench.metrics
    return (*metrics, "gap") if len(bench.subgroups) > 1 else metrics
