"""Composition by Hydra, once, in the parent process: files and overrides in, a typed `ExperimentConfig` out.

The only module that imports Hydra or omegaconf. Unknown keys are refused in files, in overrides and behind a `+`.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megatron_cpt.config.files import shipped_conf
from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import ConfigError, printable, raise_all

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_RULE = "letters, digits, dots, dashes and underscores; the first is a letter or digit"


def compose(overrides: Sequence[str], *, config_dir: Path | None = None) -> ExperimentConfig:
    """Return the typed configuration for Hydra overrides such as `experiment=quickstart blend.num_tokens=1000`.

    Args:
        overrides: in Hydra's grammar.
        config_dir: a folder of the user's own with the same groups as `conf/`; its files come before the shipped ones.

    Raises:
        ConfigError: a group, key or value is unknown or has the wrong type, or values are missing; all are listed.
    """
    ConfigStore.instance().store(name="schema", node=ExperimentConfig)
    extra = []
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError("The folder of --config-dir does not exist.", where=config_dir)
        extra = [f"hydra.searchpath=['file://{config_dir.resolve()}']"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(shipped_conf()), version_base="1.3"):
            composed = hydra_compose("config", overrides=[*extra, *overrides])
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
    text = re.sub(r"\n\s*(object_type|reference_type)=.*", "", str(error)).strip()
    known = _known_keys(OmegaConf.to_container(OmegaConf.structured(ExperimentConfig)))
    full_key = re.search(r"full_key: (\S+)", text)
    wrong = full_key.group(1) if full_key else next(iter(re.findall(r"[Cc]ould not override '([^']+)'", text)), None)
    options = re.search(r"Could not find '(\w+)/([^']+)'", text)
    next_step = "See the keys with --cfg job; conf/ holds the options of each group."
    if options:
        names = sorted(path.stem for path in (shipped_conf() / options.group(1)).glob("*.yaml"))
        near = difflib.get_close_matches(options.group(2), names, n=1)
        next_step = f"Did you mean {options.group(1)}={near[0]}?" if near else f"Known: {', '.join(names)}."
    elif wrong:
        near = difflib.get_close_matches(wrong, known, n=1)
        next_step = f"Did you mean {near[0]}?" if near else next_step
    elif "mismatched input" in text or "no viable alternative" in text or "token recognition error" in text or "sweep" in text.lower():
        next_step = """Quote a value that holds = , # : or spaces, inside and outside: 'key="value"'. A list of values needs -m."""
    head = "\n  ".join(line for line in text.splitlines()[:4] if line.strip())
    return ConfigError(f"The configuration is not valid: {head}", value=" ".join(overrides) or None, next_step=next_step)
