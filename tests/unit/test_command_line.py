"""What a user types reaches the composed configuration, in whatever order it was typed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from megatron_cpt.cli import _parse, main
from megatron_cpt.command_parser import parser
from megatron_cpt.config.compose import compose
from megatron_cpt.stage_names import STAGES, StageInfo


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "experiment=tiny", "run_name=mine", "--cfg", "job"],
        ["run", "--cfg", "job", "experiment=tiny", "run_name=mine"],
        ["run", "experiment=tiny", "--cfg", "job", "run_name=mine"],
        ["plan", "experiment=tiny", "--cfg", "job", "run_name=mine"],
    ],
)
def test_overrides_may_stand_before_between_and_after_options(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert "run_name: mine" in capsys.readouterr().out


def test_an_unknown_option_is_no_override(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "experiment=tiny", "--cfg", "job", "--untill", "plan"])
    assert ended.value.code == 2
    assert "--untill" in capsys.readouterr().err


COMMANDS = parser().commands()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_help_of_every_stage_says_what_it_reads_writes_and_refuses_with_two_examples(
    stage: StageInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([stage.name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word, text in (("reads:   ", stage.reads), ("writes:  ", stage.writes), ("refuses: ", stage.refuses)):
        assert text
        assert f"\n{word}{text}\n" in said
    assert len(re.findall(rf"^  megatron-cpt {stage.name} ", said, flags=re.MULTILINE)) == 2


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"complete"} - {stage.name for stage in STAGES}))
def test_the_help_of_every_other_command_says_so_too(name: str) -> None:
    said = COMMANDS[name].format_help()
    for word in ("reads:", "writes:", "refuses:"):
        assert f"\n{word}" in said, word
    assert said.count(f"megatron-cpt {name}") >= 3  # the usage, and two examples


def examples() -> list[str]:
    found = (re.findall(r"^  .*?(megatron-cpt [^)\n]*)", command.epilog or "", flags=re.MULTILINE) for command in COMMANDS.values())
    return sorted({re.split(r" {2,}| > ", example)[0] for part in found for example in part})


def test_every_example_of_the_helps_is_understood() -> None:
    """Each is parsed, and every override in them composes."""
    assert len(examples()) >= 2 * len(STAGES)
    overrides = set()
    for example in examples():
        found = _parse(shlex.split(example)[1:])
        if not (getattr(found, "composed", None) or getattr(found, "multirun", False)):
            overrides.add(tuple(getattr(found, "overrides", ())))
    for each in overrides - {()}:
        compose(list(each))


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["run", "experiment=tiny", "--untill", "plan"], "--until"),
        (["plann"], "plan"),
        (["submit", "--dryrun"], "--dry-run"),
        (["completion", "bsh"], "bash"),
        (["run", "--until", "trian"], "train"),
        (["dashboard", "--sav", "a/b", "--sve"], "--save"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(argv: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_help_starts_in_half_a_second_and_loads_nothing_heavy() -> None:
    """CPU seconds of the process, the best of three: a busy machine makes no difference to what the command itself needs."""
    code = (
        "import sys, time\nfrom megatron_cpt.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'megatron', 'hydra', 'transformers', 'numpy', 'wandb', 'plotly'} & set(sys.modules)\n"
        "print(time.process_time(), *heavy, file=sys.stderr)"
    )
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split() for _ in range(3)]
    assert [heavy for _, *heavy in said] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in said) < 0.5
