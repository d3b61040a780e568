"""Composition by Hydra, once, in the parent process: files and overrides in, a typed `ExperimentConfig` out.

The only module that imports Hydra or omegaconf. Unknown keys are refused in files, in overrides and behind a `+`.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megatron_cpt.config.files import shipped_conf
from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import ConfigError, printable, raise_all

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_RULE = "letters, digits, dots, dashes and underscores; the first is a letter or digit"


class _OwnFilesFirst(SearchPathPlugin):
    """Puts the user's folder before the shipped one: `hydra.searchpath`, which can only follow it, would leave an own tiny.yaml unread."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend(provider="user", path=f"file://{self.folder}", anchor="main")


def compose(overrides: Sequence[str], *, config_dir: Path | None = None) -> ExperimentConfig:
    """Return the typed configuration for Hydra overrides such as `experiment=quickstart blend.num_tokens=1000`.

    Args:
        overrides: in Hydra's grammar.
        config_dir: a folder of the user's own with the same groups as `conf/`; its files come before the shipped ones.

    Raises:
        ConfigError: a group, key or value is unknown or has the wrong type, or values are missing; all are listed.
    """
    ConfigStore.instance().store(name="schema", node=ExperimentConfig)
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError("The folder of --config-dir does not exist.", where=config_dir)
    if config_dir is not None and (config_dir / "config.yaml").exists():
        raise ConfigError("A folder of your own holds groups, and no root.", where=config_dir / "config.yaml", next_step="Rename the file.")
    _OwnFilesFirst.folder = None if config_dir is None else config_dir.resolve()
    Plugins.instance().register(_OwnFilesFirst)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(shipped_conf()), version_base="1.3"):
            composed = hydra_compose("config", overrides=list(overrides))
        checked = OmegaConf.merge(OmegaConf.structured(ExperimentConfig), OmegaConf.to_container(composed))
        assert isinstance(checked, DictConfig)
        missing = sorted(OmegaConf.missing_keys(checked))
        raise_all(ConfigError, [f"{key} has no value." for key in missing], next_step="Set it in the experiment file or as key=value.")
        config = OmegaConf.to_object(checked)
    except (HydraException, OmegaConfBaseException) as error:
        raise _readable(error, overrides) from None
    assert isinstance(config, ExperimentConfig)
    _check_names(config)
    return config


def load_composed(path: Path) -> ExperimentConfig:
    """Return the configuration that `as_yaml` wrote to a file: what a job of a submitted line runs, whatever conf/ says by then.

    Raises:
        ConfigError: it is not such a file.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ExperimentConfig), OmegaConf.load(path)))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError("The composed configuration cannot be read.", where=path, value=str(error).splitlines()[0]) from None
    assert isinstance(config, ExperimentConfig)
    _check_names(config)
    return config


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return one list of overrides per job of a `-m` sweep, in the order that Hydra runs them."""
    try:
        choices = [
            [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [text]
            for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True)
        ]
    except HydraException as error:
        raise _readable(error, overrides) from None
    return [list(job) for job in itertools.product(*choices)]


def as_yaml(config: ExperimentConfig) -> str:
    """Return the composed configuration as YAML text, for `--cfg job`."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _check_names(config: ExperimentConfig) -> None:
    problems = []
    if not RUN_NAME.fullmatch(config.run_name):
        problems.append(f"run_name {printable(config.run_name)!r} is not a plain name ({NAME_RULE}).")
    for group, names in (("source", config.source), ("bench", config.bench)):
        problems += [
            f"{group} name {printable(name)!r} is not a plain name ({NAME_RULE})." for name in names if not RUN_NAME.fullmatch(name)
        ]
    raise_all(ConfigError, problems)


def _known_keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _known_keys(value, f"{prefix}{key}.")
    return keys


def _readable(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Return a `ConfigError` for what Hydra or omegaconf said: its first lines, and the nearest known key or option."""
    said = str(error)
    if "Error merging override" in said and error.__cause__ is not None:  # the reason is in what omegaconf said below
        said = f"{said}: {error.__cause__}"
    text = re.sub(r"\n\s*(object_type|reference_type|full_key).*", "", said).strip()
    shown = " ".join(overrides) or None
    options = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if options:
        group, name = options.groups()
        names = _options_of(group)
        near = difflib.get_close_matches(name, names, n=1)
        next_step = (
            f"Did you mean {group}={near[0]}?" if near else f"Write {group}/{printable(name)}.yaml in a folder of your own (--config-dir)."
        )
        return ConfigError(
            f"There is no {group}={printable(name)}.", value=shown, rule=f"{group} is one of {', '.join(names)}", next_step=next_step
        )
    if "You must specify 'experiment'" in text:
        return ConfigError(
            "An experiment must be chosen.", value=shown, rule=f"experiment is one of {', '.join(_options_of('experiment'))}",
            next_step=_meant(overrides) or "Add experiment=<name>.",
        )  # fmt: skip
    full_key = re.search(r"full_key: (\S+)", said)
    wrong = full_key.group(1) if full_key else next(iter(re.findall(r"[Cc]ould not override '([^']+)'", text)), None)
    next_step = "See the keys with --cfg job; conf/ holds the options of each group."
    if re.search(r"source\S*provenance\b(?!\.)|ProvenanceConfig", said):
        next_step = "A source's provenance has three parts: {origin: ..., date: ..., obtained: ...} (docs/reference/corpus.md)."
    elif wrong:
        known = _all_keys()
        near = [] if wrong in known else difflib.get_close_matches(wrong, known, n=1)
        next_step = f"Did you mean {near[0]}?" if near else next_step
        if "ould not override" in text:
            return ConfigError(f"There is no key {printable(wrong)}.", value=shown, next_step=next_step)
    elif "mismatched input" in text or "no viable alternative" in text or "token recognition error" in text or "sweep" in text.lower():
        next_step = """Quote a value that holds = , # : or spaces, inside and outside: 'key="value"'. A list of values needs -m."""
    head = "\n  ".join(line for line in text.splitlines()[:4] if line.strip())
    return ConfigError(f"The configuration is not valid: {head}", value=shown, next_step=next_step)


def _all_keys() -> list[str]:
    return _known_keys(OmegaConf.to_container(OmegaConf.structured(ExperimentConfig)))


def _options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (shipped_conf() / group).glob("*.yaml"))


def _meant(overrides: Sequence[str]) -> str | None:
    """Return the nearest known key of the first override whose key is not one, as `Did you mean key=value?`."""
    keys = [*_all_keys(), *(path.name for path in shipped_conf().iterdir() if path.is_dir())]
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.lstrip("+~").partition("@")[0] not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            return f"Did you mean {near[0]}{equals}{printable(value)}?" if near else None
    return None
