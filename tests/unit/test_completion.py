"""What a shell completes, in a real bash, and what a misspelt word is answered with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cpt.command_parser import parser
from megatron_cpt.completion import candidates

EXPERIMENTS = sorted(path.stem for path in Path(__file__).parents[2].glob("conf/experiment/*.yaml"))


def words_of(*words: str) -> list[str]:
    return candidates(parser(), words)


def test_commands_options_choices_groups_options_of_groups_and_keys_are_completed() -> None:
    assert words_of("pl") == ["plan"]
    assert words_of("run", "--unt") == ["--until"]
    assert words_of("run", "--until", "v") == ["vocab"]
    assert words_of("plan", "experi") == ["experiment="]
    assert {"experiment=tiny", "experiment=quickstart"} <= set(words_of("plan", "experiment="))
    assert words_of("plan", "experiment=tiny", "blend.num_t") == ["blend.num_tokens="]
    assert words_of("plan", "+source@source.mine=china") == ["+source@source.mine=china_law"]


def test_options_of_a_users_own_folder_are_completed_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("run_name: mine\n")
    assert words_of("plan", "--config-dir", str(tmp_path), "experiment=mi") == ["experiment=mine"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "words", "wanted"),
    [
        ("megatron-cpt pl", ["megatron-cpt", "pl"], ["plan"]),
        ("megatron-cpt plan experiment=ti", ["megatron-cpt", "plan", "experiment", "=", "ti"], ["tiny"]),
        ("megatron-cpt plan experiment=", ["megatron-cpt", "plan", "experiment", "="], EXPERIMENTS),
    ],
)
def test_bash_completes_what_is_typed_although_it_breaks_words_at_equals_signs(
    tmp_path: Path, line: str, words: list[str], wanted: list[str]
) -> None:
    command = tmp_path / "megatron-cpt"
    command.write_text(f'#!/bin/bash\nexec {sys.executable} -m megatron_cpt "$@"\n')
    command.chmod(0o755)
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f"PATH={tmp_path}:$PATH\nsource <(megatron-cpt completion bash)\n"
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}\n"
        f'COMP_WORDS=({quoted})\n_megatron_cpt\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == wanted


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["rnu"], "Did you mean run?"),
        (["run", "--untill", "vocab", "experiment=tiny"], "Did you mean --until?"),
        (["run", "--until", "vocb", "experiment=tiny"], "Did you mean vocab?"),
        (["plan", "experiment=tinny"], "Did you mean experiment=tiny?"),
        (["plan", "experimnet=tiny"], "Did you mean experiment=tiny?"),
        (["plan", "experiment=tiny", "blend.num_tokes=3"], "Did you mean blend.num_tokens?"),
        (["plan", "experiment=tiny", "parallel=dp"], "Did you mean parallel=dp2?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_one_that_was_meant_and_2(typed: list[str], meant: str) -> None:
    answer = subprocess.run([sys.executable, "-m", "megatron_cpt", *typed], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert meant in answer.stderr
    assert "Traceback" not in answer.stderr
