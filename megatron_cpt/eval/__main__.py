"""`torchrun -m megatron_cpt.eval plan=<path> subjects=base,init out=<path>`: one rank of an evaluation.

`checkpoint=<folder>` scores a training checkpoint and `hf=<folder>` a Hugging Face folder of the plan's family, beside the subjects or
alone. `harness=<task>,<task> tasks_path=<folder>` runs tasks of lm-evaluation-harness in the place of the plan's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.launch_ranks import die_with_parent
from megatron_cpt.plan.run_plan import HarnessPlan
from megatron_cpt.record.hashing import sha256_folder

KEYS = ("plan", "subjects", "checkpoint", "hf", "harness", "tasks_path", "out")
SCORED = ("subjects", "checkpoint", "hf")


@dataclass(frozen=True)
class Arguments:
    plan: Path
    subjects: tuple[str, ...]
    checkpoint: Path | None
    hf_folder: Path | None
    harness: tuple[str, ...]
    tasks_path: Path | None
    out: Path


def parse(arguments: list[str]) -> Arguments:
    """Return the typed arguments.

    Raises:
        ConfigError: one is unknown, repeated or missing.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or key not in KEYS or key in given or not value:
            raise ConfigError(
                "An argument is not understood.", where="megatron_cpt.eval", value=argument, rule=f"key=value of {KEYS}, once"
            )
        given[key] = value
    missing = [key for key in ("plan", "out") if key not in given]
    if missing or not set(SCORED) & set(given) or ("harness" in given) != ("tasks_path" in given):
        raise ConfigError(
            "Arguments are missing.",
            where="megatron_cpt.eval",
            value=" ".join(arguments),
            rule="plan=<path> out=<path>; one at least of subjects=base,init,train, checkpoint=<folder>, hf=<folder>; "
            "harness=<task>,<task> and tasks_path=<folder> together or not at all",
        )

    def names(key: str) -> tuple[str, ...]:
        return tuple(name for name in given.get(key, "").split(",") if name)

    def path(key: str) -> Path | None:
        return Path(given[key]) if key in given else None

    return Arguments(
        plan=Path(given["plan"]),
        subjects=names("subjects"),
        checkpoint=path("checkpoint"),
        hf_folder=path("hf"),
        harness=names("harness"),
        tasks_path=path("tasks_path"),
        out=Path(given["out"]),
    )


def main(arguments: list[str]) -> int:
    """Run one rank and return its exit code; a user's error is printed without a traceback."""
    die_with_parent()
    try:
        wanted = parse(arguments)
        from megatron_cpt.eval.run import run  # noqa: PLC0415

        harness = None
        if wanted.tasks_path is not None:
            folder = wanted.tasks_path.resolve()
            harness = HarnessPlan(path=str(folder), sha256=sha256_folder(folder), tasks=wanted.harness)
        run(
            wanted.plan,
            subjects=wanted.subjects,
            checkpoint=wanted.checkpoint,
            out=wanted.out,
            hf_folder=wanted.hf_folder,
            harness=harness,
        )
    except CptError as error:
        if os.environ.get("MEGATRON_CPT_DEBUG") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
