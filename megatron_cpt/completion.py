"""Shell completion of commands, options, groups of `conf/` with their options, and keys; no torch, no Hydra, so that a tab is quick.

`megatron-cpt completion bash` prints a script that asks `megatron-cpt complete -- WORDS...` for the candidates of the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from megatron_cpt.command_parser import Parser
from megatron_cpt.config.files import shipped_conf
from megatron_cpt.config.schema import ExperimentConfig

_ASK = "megatron-cpt complete -- "
SCRIPTS = {
    "bash": f"""_megatron_cpt() {{
  local word=${{COMP_LINE:0:COMP_POINT}}
  word=${{word##*[[:space:]]}}
  local IFS=$'\\n' skip=${{word%"${{COMP_WORDS[COMP_CWORD]}}"}}
  [[ ${{COMP_WORDS[COMP_CWORD]}} == = ]] && skip=$word # bash breaks words at =
  mapfile -t COMPREPLY < <({_ASK}"${{COMP_WORDS[@]:1:COMP_CWORD-1}}" "$word" 2>/dev/null)
  COMPREPLY=("${{COMPREPLY[@]#"$skip"}}")
  [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
}}
complete -o default -F _megatron_cpt megatron-cpt
""",
    "zsh": f"""#compdef megatron-cpt
_megatron_cpt() {{
  local -a found
  found=("${{(@f)$({_ASK}"${{words[@]:1:$((CURRENT-1))}}" 2>/dev/null)}}")
  compadd -S '' -a found
}}
compdef _megatron_cpt megatron-cpt
""",
}


def candidates(root: Parser, words: Sequence[str], *, conf: Path | None = None) -> list[str]:
    """Return the words that the last of `words` may become; the others stand before it, the program's name left out."""
    *before, last = words or [""]
    command = next((word for word in before if word in root.commands()), None)
    if command is None:
        return [word for word in [*root.commands(), *root.options()] if word.startswith(last)]
    chosen = root.commands()[command]
    if before and (choices := list(chosen.choices_of(before[-1]))):
        return [word for word in choices if word.startswith(last)]
    if last.startswith("-"):
        return [option for option in chosen.options() if option.startswith(last)]
    return [word for word in overrides(last, conf or shipped_conf(), own=_own_folder(before)) if word.startswith(last)]


def overrides(word: str, conf: Path, *, own: Path | None) -> Iterator[str]:
    """Yield groups and keys, each with `=`; once a group and its `=` are typed, its options, also behind `+` and with `@package`."""
    folders = [folder for folder in (own, conf) if folder is not None]
    groups = sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir() and any(path.glob("*.yaml"))})
    group, equals, _ = word.partition("=")
    if equals:
        option_of = group.partition("@")[0].lstrip("+")
        if option_of in groups:
            names = sorted({path.stem for folder in folders for path in (folder / option_of).glob("*.yaml")})
            yield from (f"{group}={name}" for name in names)
        return
    yield from (f"{name}=" for name in groups)
    yield from (f"{key}=" for key in keys_of(ExperimentConfig) if key not in groups)


def keys_of(schema: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration that take a value."""
    hints = get_type_hints(schema)
    for each in fields(schema):
        kind = hints[each.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from keys_of(kind, f"{prefix}{each.name}.")
        elif each.default is not MISSING or each.default_factory is not MISSING:
            yield f"{prefix}{each.name}"


def _own_folder(words: Sequence[str]) -> Path | None:
    if "--config-dir" in words[:-1]:
        folder = Path(words[list(words).index("--config-dir") + 1]).expanduser()
        return folder if folder.is_dir() else None
    return None
