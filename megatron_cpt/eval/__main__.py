"""`torchrun -m megatron_cpt.eval plan=<path> subjects=base,init out=<path>`: one rank of an evaluation."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.launch_ranks import die_with_parent

KEYS = ("plan", "subjects", "checkpoint", "out")


@dataclass(frozen=True)
class Arguments:
    plan: Path
    subjects: tuple[str, ...]
    checkpoint: Path | None
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
    if missing or not {"subjects", "checkpoint"} & set(given):
        raise ConfigError(
            "Arguments are missing.",
            where="megatron_cpt.eval",
            value=" ".join(arguments),
            rule="plan=<path> out=<path> and subjects=base,init,train or checkpoint=<folder>",
        )
    subjects = tuple(name for name in given.get("subjects", "").split(",") if name)
    checkpoint = Path(given["checkpoint"]) if "checkpoint" in given else None
    return Arguments(Path(given["plan"]), subjects, checkpoint, Path(given["out"]))


def main(arguments: list[str]) -> int:
    """Run one rank and return its exit code; a user's error is printed without a traceback."""
    die_with_parent()
    try:
        wanted = parse(arguments)
        from megatron_cpt.eval.run import run  # noqa: PLC0415

        run(wanted.plan, subjects=wanted.subjects, checkpoint=wanted.checkpoint, out=wanted.out)
    except CptError as error:
        if os.environ.get("MEGATRON_CPT_DEBUG") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
