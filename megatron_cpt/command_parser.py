"""What may be typed: commands and their options, with errors that name the nearest one, and what a shell may complete."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import megatron_cpt
from megatron_cpt.errors import printable
from megatron_cpt.meter import account_command
from megatron_cpt.report.comparison import command as compare_command
from megatron_cpt.stage_names import STAGES

EXIT_CODES = (
    "exit codes: 0 finished, 2 config, 3 data, 4 checkpoint, 5 rolled back, 6 budget reached, 75 stopped with a checkpoint (run again)"
)


class Parser(argparse.ArgumentParser):
    """Says what was probably meant by a misspelt command, option or choice."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        unknown = re.search(r"unrecognized arguments: (.*)", message)
        near: list[str] = []
        if choice:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w.-]+", choice[2]), n=1)
        elif unknown:
            known = [*self.options(), *(option for command in self.commands().values() for option in command.options())]
            near = difflib.get_close_matches(unknown[1].split()[0].partition("=")[0], known, n=1)
        super().error(printable(message) + (f"\nDid you mean {near[0]}?" if near else ""))

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def commands(self) -> dict[str, Parser]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def choices_of(self, option: str) -> Iterable[str]:
        """Return the words that an option takes, none where it takes any."""
        return next((list(map(str, action.choices or ())) for action in self._actions if option in action.option_strings), [])


def parser() -> Parser:
    """Return the parser; everything that is not an option is a Hydra override."""
    root = Parser(
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
        description=account_command.DESCRIPTION,
        epilog=f"{account_command.EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    account_command.add_arguments(account)
    account.add_argument("--debug", action="store_true", help="show tracebacks")
    _compare(commands)
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine offers to a run, what each finding means, and the command that mends it",
        description="Look at Python, packages, memory, disk, clock, GPUs, links, meters and Slurm; with an experiment also at its\n"
        "files and its plan. Ends with 2 when the planned run could not start here.",
        epilog="examples:\n  megatron-cpt doctor\n  megatron-cpt doctor experiment=medical cluster=h100_8 gpu=h100_sxm --json\n\n"
        + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of a page")
    _common(doctor)
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
    completion = commands.add_parser(
        "completion", help="print a script that completes commands, options, groups and keys",
        epilog="examples:\n  source <(megatron-cpt completion bash)\n  megatron-cpt completion zsh > ~/.zfunc/_megatron-cpt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    completion.add_argument("shell", choices=["bash", "zsh"])
    completion.set_defaults(debug=False)
    complete = commands.add_parser(
        "complete", description="Print the words that the last of WORDS may become; the completion script asks for them."
    )
    complete.add_argument("words", nargs="*", metavar="WORDS")
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


def _compare(commands: argparse._SubParsersAction[Parser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="set runs against each other: settings that differ, gain, forgetting, their front, and what each took",
        description=compare_command.DESCRIPTION,
        epilog=f"{compare_command.EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare_command.add_arguments(compare)
    compare.add_argument("--debug", action="store_true", help="show tracebacks")


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
    command.add_argument("--fail-fast", action="store_true", help="with -m: begin no further job after one that failed")
    command.add_argument("--debug", action="store_true", help="show tracebacks")
