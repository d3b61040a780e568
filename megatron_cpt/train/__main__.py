"""`torchrun -m megatron_cpt.train plan=<path>`: one rank of a training run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.launch_ranks import die_with_parent


def plan_argument(arguments: list[str]) -> Path:
    """Return the path of `plan=<path>`, the only argument.

    Raises:
        ConfigError: it is missing, or there is another.
    """
    if len(arguments) != 1 or not arguments[0].startswith("plan=") or arguments[0] == "plan=":
        raise ConfigError(
            "The arguments are not understood.",
            where="megatron_cpt.train",
            value=" ".join(arguments),
            rule="exactly one argument: plan=<run>/plan/plan.yaml",
        )
    return Path(arguments[0].removeprefix("plan="))


def main(arguments: list[str]) -> int:
    """Run one rank and return its exit code; a user's error is printed without a traceback."""
    try:
        plan_path = plan_argument(arguments)
        from megatron_cpt.eval.in_loop import scores_of  # noqa: PLC0415
        from megatron_cpt.train.run import run  # noqa: PLC0415

        return run(plan_path, evaluate=scores_of)
    except CptError as error:
        if os.environ.get("MEGATRON_CPT_DEBUG") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    die_with_parent()  # before torch is imported: a launcher that is killed in those seconds must leave no rank behind
    code = main(sys.argv[1:])
    if code:
        # after a lost rank the threads of the collectives may abort an interpreter that takes itself apart, and change the code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
