"""Every command in the documents is one that works: run where it takes seconds, otherwise read by its own parser and composed.

A command's first word decides how it is checked; a word that is not known here fails, so that no command stands untested.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from document_blocks import ROOT, Block, Command, blocks, commands
from document_workspace import make
from tool_parsers import read_command_line

from megatron_cpt import cli
from megatron_cpt.completion import SCRIPTS
from megatron_cpt.config.compose import compose, expand_sweep
from megatron_cpt.eval.__main__ import parse as parse_eval
from megatron_cpt.gate.null_experiment import KEYS

BLOCKS = blocks()
OF_OTHERS = ("user-guide/", "_pages/", "source/performance/", "performance-summary")  # pages of other projects, named as a source
SHELL = ("bash", "sh", "console", "shell")
COMMANDS = list({command.words: command for block in BLOCKS if block.language in SHELL for command in commands(block)}.values())
LANGUAGES = {*SHELL, "text", "yaml", "json", "jsonl", "python", "{toctree}"}
# commands of the site or the system: whether they exist is not this project's to say
SITE = {
    "sacct",
    "squeue",
    "sinfo",
    "scontrol",
    "salloc",
    "scancel",
    "ssh",
    "git",
    "cd",
    "export",
    "exec",
    "less",
    "cat",
    "head",
    "tail",
    "ls",
    "echo",
    "xdg-open",
    "wandb",
    "curl",
    "grep",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.line}")
def test_every_command_of_the_documents_is_one_that_works(command: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    head = command.words[0]
    if head not in SITE:
        check_of(head)(list(command.words), workspace)


def check_of(head: str) -> Callable[[list[str], Path], None]:
    known = {"megatron-cpt": megatron_cpt, "make": make_target, "python": python, "python3": python, "pip": pip, "source": source}
    known |= {"cp": really, "mkdir": really, "torchrun": torchrun}
    if head.startswith(("launch/", "tools/", "benchmarks/", ".ci/")):
        return script
    assert head in known, f"{head} is not a command that this test knows how to check"
    return known[head]


def megatron_cpt(words: list[str], workspace: Path) -> None:
    """Read the command line, compose what it sets, and run what takes seconds and starts nothing."""
    words = [without_brackets(word) for word in words[1:]]
    is_help = "--help" in words or "--version" in words
    if is_help or words[0] == "completion":
        with contextlib.suppress(SystemExit):
            assert printed(words)
        return
    arguments = cli._parse(words)
    if not getattr(arguments, "overrides", []) or arguments.command == "account":
        return
    config_dir = arguments.config_dir or workspace / "site"
    jobs = expand_sweep(arguments.overrides) if arguments.multirun else [arguments.overrides]
    configs = [compose(job, config_dir=config_dir) for job in jobs]
    assert all(config.run_name for config in configs)
    reads_what_is_there = Path(configs[0].model.path).is_dir() and not configs[0].eval.tasks
    if arguments.command == "corpus" and configs[0].run_name.startswith("mine"):  # the one stage that needs no torch
        # few texts may all fall on one side; and a corpus that another command has finished would refuse other settings
        number = sum(1 for _ in (workspace / "runs").glob("mine-corpus-*"))
        all_trained = ["source.mine.test_fraction=0", "source.war_and_peace.test_fraction=0", f"run_name=mine-corpus-{number}"]
        assert printed([*words, *all_trained, *([] if arguments.config_dir else ["--config-dir", str(config_dir)])])
    is_dry = arguments.command == "submit" and arguments.dry_run
    if reads_what_is_there and not arguments.multirun and (is_dry or arguments.command in ("plan", "search")):
        assert printed([*words, *([] if arguments.config_dir else ["--config-dir", str(config_dir)])])


def without_brackets(word: str) -> str:
    """Return a word of a synopsis without the brackets that say that it may be left out."""
    word = word.removeprefix("[")
    return word if "[" in word else word.removesuffix("]")


def printed(words: list[str]) -> str:
    """Run a command of the package in this process and return what it printed; it must end with 0."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(words)
    assert code == 0, err.getvalue()
    return out.getvalue()


def make_target(words: list[str], workspace: Path) -> None:
    """Let make itself say what it would run, and check the commands of the package in that."""
    done = subprocess.run(["make", "-n", *words[1:]], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\\\n", " ", done.stdout)
    for found in re.findall(r"\.venv/bin/(megatron-cpt [^;|&\n]*)", text):
        for inner in commands(Block("Makefile", 1, "bash", found)):
            megatron_cpt(list(inner.words), workspace)


def python(words: list[str], workspace: Path) -> None:
    """Read the command line of a script by its own parser; of a module by what it knows."""
    words = [without_brackets(word) for word in words[1:]]
    if words[0] != "-m":
        path = ROOT / words[0]
        assert path.is_file(), path
        if path.parent.name == "examples":
            compile(path.read_text(encoding="utf-8"), str(path), "exec")
        elif "ArgumentParser" in path.read_text(encoding="utf-8"):
            read_command_line(path, words[1:])
        else:
            assert len(words) == 1, f"{path.name} reads no arguments"
        return
    module, *rest = words[1:]
    if module == "pytest":
        assert all((ROOT / word.partition("::")[0]).exists() for word in rest if not word.startswith("-"))
    elif module == "megatron_cpt.gate.null_experiment":
        assert {word.partition("=")[0] for word in rest} <= set(KEYS)
    elif module.startswith("megatron_cpt.tools."):
        read_command_line(ROOT / "tools" / f"{module.rpartition('.')[2]}.py", rest)
    elif module == "megatron_cpt.eval":
        parse_eval(rest)
    else:
        assert module == "venv", f"python -m {module} is not a command that this test knows how to check"


def torchrun(words: list[str], workspace: Path) -> None:
    """Hand what torchrun would start to the module's own parser."""
    module = words.index("-m")
    python(["python", *words[module:]], workspace)


def pip(words: list[str], workspace: Path) -> None:
    """Every extra that is named must exist."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^    "([a-z]+)": ', text, flags=re.MULTILINE))
    assert words[1] == "install"
    for word in words[2:]:
        named = re.search(r"(?:^\.|megatron-cpt)\[(.*)\]", word)
        assert named is None or set(named[1].split(",")) <= extras, word


def source(words: list[str], workspace: Path) -> None:
    """What is sourced is a script that the package prints, a file of the repository, or a virtual environment."""
    inner = words[1].removeprefix("process:").split()
    if inner[0] == "megatron-cpt":
        assert inner[1] == "completion"
        assert inner[2] in SCRIPTS
    else:
        assert words[1].endswith("bin/activate") or (workspace / words[1]).is_file()


def script(words: list[str], workspace: Path) -> None:
    """A shell script of the repository can be started and is one that bash can read."""
    path = ROOT / words[0]
    assert path.stat().st_mode & 0o111, path
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", str(path)], check=True)
    else:
        read_command_line(path, words[1:])


def really(words: list[str], workspace: Path) -> None:
    """Do it, in the reader's folder."""
    subprocess.run(words, cwd=workspace, check=True)


CHEAP = ("tools/estimate_cost.py", "--dry-run", "--help")  # what these print depends on no clock and no machine
SHOWN = [
    (command, block)
    for before, block in pairwise(BLOCKS)
    if block.language == "text" and before.page == block.page and before.language in SHELL
    for command in [*commands(before)][-1:]
    if set(CHEAP) & set(command.words)
]


@pytest.mark.parametrize(("command", "block"), SHOWN, ids=lambda value: f"{value.page}:{value.line}" if isinstance(value, Block) else "")
def test_output_that_is_shown_is_what_the_command_prints(
    command: Command, block: Block, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    if command.words[0] == "megatron-cpt":
        out = printed([*command.words[1:], "--config-dir", "site"])
    else:
        done = subprocess.run([sys.executable, *command.words[1:]], capture_output=True, text=True, check=True)
        out = done.stdout
    squeezed = "".join(out.replace(f"{workspace}/", "").split())
    for part in re.split(r"(?<!\S)(?:\.\.\.|\u2026)(?!\S)", block.text):  # dots say that something is left out
        assert "".join(part.split()) in squeezed, out


def test_every_block_names_its_language() -> None:
    assert [f"{block.page}:{block.line} {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES] == []


def test_no_command_hides_in_a_block_of_text_or_in_an_indented_one() -> None:
    from document_blocks import FENCE, pages  # noqa: PLC0415

    hidden = [
        f"{block.page}:{block.line}"
        for block in BLOCKS
        if block.language == "text" and re.match(r"(megatron-cpt|python|make|pip) \S", block.text)
    ]
    for page, text in pages():
        outside = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
        hidden += [f"{page}: {line.strip()}" for line in re.findall(r"^\n    ((?:megatron-cpt|python|make|pip) .*)", outside, re.MULTILINE)]
    assert hidden == []


def test_commands_within_the_prose_name_commands_targets_and_scripts_that_exist() -> None:
    from document_blocks import pages  # noqa: PLC0415

    known = set(cli.parser().commands())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    wrong = []
    for page, text in pages():
        wrong += [f"{page}: {name}" for name in re.findall(r"`megatron-cpt ([a-z]+)\b", text) if name not in known]
        scripts = re.findall(r"(?<![\w/.-])(?:tools|benchmarks|launch|slurm)/(?:env/)?\w+\.(?:py|sh|sbatch)\b", text)
        wrong += [f"{page}: {script}" for script in scripts if not (ROOT / script).is_file()]
        wrong += [f"{page}: make {name}" for name in re.findall(r"`make ([a-z-]+)", text) if name not in targets]
    assert wrong == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: f"{block.page}:{block.line}")
def test_yaml_in_the_documents_sets_keys_that_exist(block: Block) -> None:
    data = yaml.safe_load(block.text)
    assert unknown_keys(data) == []


def unknown_keys(data: dict[str, object]) -> list[str]:
    """Return the keys that neither the root nor a group has; a block is part of an experiment, or an option of one group."""
    from configuration_pages import parts_of  # noqa: PLC0415

    from megatron_cpt.config.schema import ExperimentConfig  # noqa: PLC0415

    def wrong(kind: type, value: object, where: str) -> list[str]:
        if not isinstance(value, dict):
            return []
        parts = {re.sub(r"\W.*", "", name): (name, part) for name, part in parts_of(kind).items()}
        found = [f"{where}{key}" for key in value if key not in kind.__dataclass_fields__]
        for key, inner in value.items():
            name, part = parts.get(key, ("", None))
            if part is None:
                continue
            nested = (
                list(inner.values()) if name.endswith(">") and isinstance(inner, dict) else inner if isinstance(inner, list) else [inner]
            )
            found += [problem for each in nested for problem in wrong(part, each, f"{where}{key}.")]
        return found

    data = {key: value for key, value in data.items() if key != "defaults"}
    if set(data) & set(ExperimentConfig.__dataclass_fields__) - {"source"} or all(isinstance(value, dict) for value in data.values()):
        return wrong(ExperimentConfig, data, "")
    kinds = [part for part in parts_of(ExperimentConfig).values() if set(data) <= set(part.__dataclass_fields__)]
    return [] if kinds else list(data)


def test_tables_made_from_records_are_what_the_records_hold() -> None:
    done = subprocess.run([sys.executable, "docs/figures.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_page_that_is_named_anywhere_exists() -> None:
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout.split("\n")
    missing = []
    for name in names:
        if name.endswith((".md", ".py", ".yaml", ".sh", ".toml")) and not name.startswith("tests/data") and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            for page in re.findall(r"(?<![\w/.:(-])\(?docs/((?:[\w-]+/)*[\w-]+\.md)\b", text):
                if not (ROOT / "docs" / page).is_file() and not page.startswith(("reference/generated/", *OF_OTHERS)):
                    missing.append(f"{name}: docs/{page}")
    assert missing == []
