"""The command line: `megatron-cpt <stage> [overrides]`, `run` for the whole line, and the exit code of each kind of end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_cpt.command_parser import parser
from megatron_cpt.errors import EXIT_FINISHED, ConfigError, CptError
from megatron_cpt.meter.account_command import run_account
from megatron_cpt.report.comparison.command import run_compare
from megatron_cpt.stage_names import STAGES, StageInfo
from megatron_cpt.sweep import ENDS_A_SWEEP, EXIT_INTERRUPTED, comparison_of, jobs_of, run_jobs

if TYPE_CHECKING:
    from megatron_cpt.config.schema import ExperimentConfig
    from megatron_cpt.plan.run_plan import RunPlan

JUDGED = ("gate", "export", "report")  # a run that goes so far can be compared


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; overrides may stand after options too, which argparse alone refuses of a subcommand."""
    root = parser()
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:1]) == ["complete"]:  # what is being typed is no command line yet
        return argparse.Namespace(command="complete", words=list(argv[2 if list(argv[1:2]) == ["--"] else 1 :]), debug=False)
    arguments, rest = root.parse_known_args(argv)
    if any(argument.startswith("-") for argument in rest):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "account":
        arguments.run_dir += map(Path, rest)
    elif arguments.command == "compare":
        arguments.run += rest
    elif "overrides" in arguments:
        arguments.overrides += rest
    elif rest:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parse(argv)
    if arguments.debug:
        os.environ["MEGATRON_CPT_DEBUG"] = "1"  # the ranks are other processes
    else:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # libraries' deprecations, once a rank, bury what a user must read
    logging.basicConfig(level=logging.DEBUG if arguments.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return _ended(lambda: _dispatch(arguments), is_debug=arguments.debug)


def _ended(do: Callable[[], int], *, is_debug: bool) -> int:
    """Return the exit code of what is done, and say on the terminal why it did not finish."""
    try:
        return do()
    except CptError as error:
        if is_debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on from the last finished stage.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if is_debug:
            traceback.print_exc()
        print(
            f"OSError: {error.strerror or error}\n  where: {error.filename}\n  next:  free space or mend permissions, then run again.",
            file=sys.stderr,
        )
        return 1


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.command == "account":
        run_account(arguments)
        return EXIT_FINISHED
    if arguments.command == "compare":
        run_compare(arguments)
        return EXIT_FINISHED
    if arguments.command == "doctor":
        return _doctor(arguments)
    if arguments.command in ("completion", "complete"):
        from megatron_cpt import completion  # noqa: PLC0415

        is_script = arguments.command == "completion"
        print(completion.SCRIPTS[arguments.shell] if is_script else "\n".join(completion.candidates(parser(), arguments.words)))
        return EXIT_FINISHED
    return _configured(arguments)


def _configured(arguments: argparse.Namespace) -> int:
    """Compose one configuration, or those of a sweep, and do what the command asks of each; return the exit code."""
    from megatron_cpt.config.compose import (  # noqa: PLC0415  # hydra loads only when it is needed
        as_yaml,
        compose,
        expand_sweep,
        load_composed,
    )

    if arguments.composed and (arguments.overrides or arguments.config_dir or arguments.multirun):
        raise ConfigError("--composed is a whole configuration: it goes with no override, --config-dir or -m.")

    def do(config: ExperimentConfig, siblings: Sequence[Path] = ()) -> int:
        if arguments.cfg:
            print(as_yaml(config), end="")
        elif arguments.command != "plan" or not _is_told_beforehand(config, deepspeed=arguments.deepspeed):
            _do(arguments, config, siblings)
        return EXIT_FINISHED

    if arguments.composed:
        return do(load_composed(arguments.composed))
    jobs = jobs_of(
        arguments.overrides,
        expand_sweep(arguments.overrides) if arguments.multirun else [arguments.overrides],
        lambda overrides: compose(overrides, config_dir=arguments.config_dir),
    )
    if len(jobs) == 1:
        return do(jobs[0].config)
    code = run_jobs(
        jobs,
        lambda job: _ended(lambda: do(job.config, job.siblings), is_debug=arguments.debug),
        say=lambda text: print(text, flush=True),
        is_fail_fast=arguments.fail_fast,
        sums_up=not arguments.cfg and arguments.command != "status",
    )
    if not arguments.cfg and (arguments.command == "submit" or (arguments.command == "run" and _chosen(arguments)[-1].name in JUDGED)):
        print(f"\n{comparison_of(jobs, is_over=arguments.command == 'run' and code not in ENDS_A_SWEEP)}", flush=True)
    return code


def _do(arguments: argparse.Namespace, config: ExperimentConfig, siblings: Sequence[Path] = ()) -> None:
    """Do what the command asks of one composed configuration."""
    from megatron_cpt import stages  # noqa: PLC0415

    if arguments.command in ("submit", "status", "cancel", "preflight"):
        _jobs(config, arguments)
    elif arguments.command == "audit":
        stages.audit(config)
    elif arguments.command == "drill":
        from megatron_cpt.drill.bad_plan import KINDS  # noqa: PLC0415
        from megatron_cpt.drill.run import drill  # noqa: PLC0415

        drill(config, [arguments.only] if arguments.only else KINDS)
    elif arguments.command == "search":
        from megatron_cpt.line.searching import search_layouts  # noqa: PLC0415

        print(search_layouts(config, count=arguments.count), end="")
    elif arguments.command == "calibrate":
        from megatron_cpt.line.calibrating import calibrate  # noqa: PLC0415

        print(calibrate(config, out=arguments.out), end="")
    else:
        stages.walk(config, _chosen(arguments), begin=_begins(arguments), siblings=siblings)
        if arguments.command == "plan" and arguments.deepspeed is not None:
            from megatron_cpt.line.run import Run  # noqa: PLC0415

            _write_deepspeed(Run.of_round(config).plan, arguments.deepspeed)


def _doctor(arguments: argparse.Namespace) -> int:
    """Look at this machine; without overrides no run is planned, and no configuration is composed."""
    from megatron_cpt.doctor.run import doctor  # noqa: PLC0415

    config = None
    if arguments.overrides:
        from megatron_cpt.config.compose import compose  # noqa: PLC0415

        config = compose(arguments.overrides, config_dir=arguments.config_dir)
    return doctor(config, is_json=arguments.json)


def _jobs(config: ExperimentConfig, arguments: argparse.Namespace) -> None:
    from megatron_cpt.config.compose import as_yaml  # noqa: PLC0415
    from megatron_cpt.line import jobs  # noqa: PLC0415

    if arguments.command == "submit":
        jobs.submit(config, config_yaml=as_yaml(config), dry_run=arguments.dry_run, until=arguments.until)
    elif arguments.command == "status":
        jobs.status(config)
    elif arguments.command == "preflight":
        jobs.preflight(config)
    else:
        jobs.cancel(config, patience_seconds=arguments.wait)


def _is_told_beforehand(config: ExperimentConfig, *, deepspeed: Path | None) -> bool:
    """Print what the plan would be where the stages before it have not run; False where they have, so that it can be made."""
    from megatron_cpt.line.expecting import expected_plan, is_before_the_plan  # noqa: PLC0415
    from megatron_cpt.plan.page import page  # noqa: PLC0415

    if not is_before_the_plan(config):
        return False
    plan = expected_plan(config)
    print(page(plan, is_expected=True), end="")
    if deepspeed is not None:
        _write_deepspeed(plan, deepspeed)
    return True


def _write_deepspeed(plan: RunPlan, folder: Path) -> None:
    from megatron_cpt.plan.deepspeed import write_deepspeed  # noqa: PLC0415

    print(write_deepspeed(plan, folder), end="")


def _begins(arguments: argparse.Namespace) -> Literal["new round", "retry"] | None:
    if arguments.command != "run":
        return None
    if arguments.new_round:
        return "new round"
    return "retry" if arguments.retry else None


def _chosen(arguments: argparse.Namespace) -> list[StageInfo]:
    if arguments.command != "run":
        return [stage for stage in STAGES if stage.name == arguments.command]
    if arguments.only and (arguments.until or arguments.start):
        raise ConfigError("--only goes with neither --from nor --until.")
    names = [stage.name for stage in STAGES]
    first = names.index(arguments.only or arguments.start or names[0])
    last = names.index(arguments.only or arguments.until or names[-1])
    if last < first:
        raise ConfigError(f"--until {names[last]} comes before --from {names[first]}.", rule="the line is " + " ".join(names))
    return list(STAGES[first : last + 1])
