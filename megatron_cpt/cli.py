"""The command line: `megatron-cpt <stage> [overrides]`, `run` for the whole line, and the exit code of each kind of end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import megatron_cpt
from megatron_cpt.errors import EXIT_FINISHED, ConfigError, CptError
from megatron_cpt.meter.account_command import DESCRIPTION, EXAMPLES, add_arguments, run_account
from megatron_cpt.stage_names import STAGES, StageInfo

if TYPE_CHECKING:
    from megatron_cpt.config.schema import ExperimentConfig
    from megatron_cpt.plan.run_plan import RunPlan

EXIT_CODES = (
    "exit codes: 0 finished, 2 config, 3 data, 4 checkpoint, 5 rolled back, 6 budget reached, 75 stopped with a checkpoint (run again)"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser; everything that is not an option is a Hydra override."""
    root = argparse.ArgumentParser(
        prog="megatron-cpt",
        description="Continued pretraining on Megatron-core: counted first, watched, and rolled back when it fails.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=megatron_cpt.__version__)
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    walk = commands.add_parser("run", help="walk the line: " + " ".join(stage.name for stage in STAGES), epilog=EXIT_CODES)
    names = [stage.name for stage in STAGES]
    walk.add_argument("--until", choices=names, metavar="STAGE", help="stop after this stage")
    walk.add_argument(
        "--from", dest="start", choices=names, metavar="STAGE", help="begin at this stage; the earlier ones must have finished"
    )
    walk.add_argument("--only", choices=names, metavar="STAGE", help="this stage alone")
    rounds = walk.add_mutually_exclusive_group()
    rounds.add_argument(
        "--new-round", action="store_true", help="after a verdict: put this round's records away and go on from the good checkpoint"
    )
    rounds.add_argument("--retry", action="store_true", help="after a rollback: begin the next round of gate.retries")
    _common(walk)
    for stage in STAGES:
        example = f"megatron-cpt {stage.name} experiment=quickstart"
        command = commands.add_parser(
            stage.name,
            help=stage.does,
            description=f"{stage.does.capitalize()}.\n\nreads:   {stage.reads}\nwrites:  {stage.writes}\nrefuses: {stage.refuses}",
            epilog=f"examples:\n  {example}\n  {example} run_name=second\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if stage.name == "plan":
            command.add_argument(
                "--deepspeed", type=Path, metavar="DIR", help="also write the nearest ds_config.json and accelerate launch for DeepSpeed"
            )
        _common(command)
    _common(commands.add_parser("audit", help="check that the verdict was carried out and that no record is missing", epilog=EXIT_CODES))
    drill = commands.add_parser(
        "drill",
        help="continue a judged run badly, in a copy, and show that the gate catches it and the rollback undoes it",
        description="Continue a judged run badly, in a copy that shares its files, and test every promise of the gate and the rollback.",
        epilog=EXIT_CODES + "\nA broken promise of a drill ends with 3.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    drill.add_argument("--only", choices=["rate", "blend"], help="only the drill with a huge rate, or only that with a poisoned blend")
    _common(drill)
    account = commands.add_parser(
        "account",
        help="print what runs took, planned against actual, with the reasons of the difference",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(account)
    account.add_argument("--debug", action="store_true", help="show tracebacks")
    search = commands.add_parser(
        "search",
        help="rank the layouts of the ranks, batch and sequence of a configuration by predicted time, and compare its own",
        description="Rank every legal layout that fits by predicted time, and say why the configuration's own is slower if it is.\n\n"
        "reads:   the configuration and the base model's config.json; no stage need have run, no GPU is used\n"
        "refuses: a device whose rates are not known",
        epilog=f"example:\n  megatron-cpt search experiment=medical cluster=h100_8 gpu=h100_sxm\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    search.add_argument("--count", type=int, default=10, metavar="N", help="how many to print (10)")
    _common(search)
    calibrate = commands.add_parser(
        "calibrate",
        help="measure this machine, and how far the plan's estimate was from a run on it",
        description="Measure matrix rate, memory bandwidth and the link between two ranks, write them as a gpu group for --config-dir,\n"
        "and print the measured time of a finished run over its plan's estimate. Nothing is corrected by it.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("--out", type=Path, metavar="FILE", help="where to write the measured device, e.g. mine/gpu/this_host.yaml")
    _common(calibrate)
    submit = commands.add_parser(
        "submit",
        help="send the line to Slurm as a chain of jobs",
        description="Plan here, freeze code and configuration into the run's folder, and send the line to Slurm as a chain of jobs.",
        epilog=EXIT_CODES,
    )
    submit.add_argument("--until", choices=names, metavar="STAGE", help="submit the line up to this stage")
    submit.add_argument("--dry-run", action="store_true", help="print every job body and sbatch line, and submit nothing")
    _common(submit)
    _common(commands.add_parser("status", help="show a submitted line: its jobs, last step, loss, rate and spend", epilog=EXIT_CODES))
    _common(commands.add_parser("preflight", help="in a Slurm job: look at its nodes before training on them", epilog=EXIT_CODES))
    cancel = commands.add_parser("cancel", help="end a submitted line, training with a checkpoint", epilog=EXIT_CODES)
    cancel.add_argument("--wait", type=float, default=600.0, metavar="SECONDS", help="how long to wait for the checkpoint (600)")
    _common(cancel)
    return root


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. experiment=quickstart blend.num_tokens=100000")
    command.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="a folder of your own with the groups of conf/, e.g. DIR/experiment/mine.yaml"
    )
    command.add_argument(
        "--composed", type=Path, metavar="FILE", help="run a composed configuration, as --cfg job prints it, in the place of overrides"
    )
    command.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    command.add_argument("-m", "--multirun", action="store_true", help="run once for each combination of comma-separated values")
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; overrides may stand after options too, which argparse alone refuses of a subcommand."""
    root = parser()
    arguments, rest = root.parse_known_args(argv)
    if any(argument.startswith("-") for argument in rest):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "account":
        arguments.run_dir += map(Path, rest)
    else:
        arguments.overrides += rest
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parse(argv)
    if arguments.debug:
        os.environ["MEGATRON_CPT_DEBUG"] = "1"  # the ranks are other processes
    else:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # libraries' deprecations, once a rank, bury what a user must read
    logging.basicConfig(level=logging.DEBUG if arguments.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _dispatch(arguments)
    except CptError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to go on from the last finished stage.", file=sys.stderr)
        return 130
    except OSError as error:
        if arguments.debug:
            traceback.print_exc()
        print(
            f"OSError: {error.strerror or error}\n  where: {error.filename}\n  next:  free space or mend permissions, then run again.",
            file=sys.stderr,
        )
        return 1


def _dispatch(arguments: argparse.Namespace) -> int:  # noqa: PLR0912  # one branch a command
    if arguments.command == "account":
        run_account(arguments)
        return EXIT_FINISHED
    from megatron_cpt.config.compose import (  # noqa: PLC0415  # hydra loads only when it is needed
        as_yaml,
        compose,
        expand_sweep,
        load_composed,
    )

    if arguments.composed and (arguments.overrides or arguments.config_dir or arguments.multirun):
        raise ConfigError("--composed is a whole configuration: it goes with no override, --config-dir or -m.")
    jobs = expand_sweep(arguments.overrides) if arguments.multirun else [list(arguments.overrides)]
    code = EXIT_FINISHED
    for number, overrides in enumerate(jobs):
        config = load_composed(arguments.composed) if arguments.composed else compose(overrides, config_dir=arguments.config_dir)
        if len(jobs) > 1:
            config.run_name += f"-{number}"
            print(f"== job {number + 1} of {len(jobs)}: {' '.join(overrides)}")
        if arguments.cfg:
            print(as_yaml(config), end="")
            continue
        if arguments.command == "plan" and _is_told_beforehand(config, deepspeed=arguments.deepspeed):
            continue
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
            stages.walk(config, _chosen(arguments), begin=_begins(arguments))
            if arguments.command == "plan" and arguments.deepspeed is not None:
                from megatron_cpt.line.run import Run  # noqa: PLC0415

                _write_deepspeed(Run.of_round(config).plan, arguments.deepspeed)
    return code


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
