"""The settings of a run as its stages froze them in their manifests, by the keys that a user types; and which differ between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cpt.record.hashing import canonical_json, sha256_plain
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.unknown import Unavailable

NOT_SET = "not set"
MODEL = "model (digest of its files)"
SHOWN_DIGITS = 12  # of a digest
Value = str | Unavailable


def settings_of(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return what a run's finished stages were given, flat: `{"schedule.peak_lr": 0.001, "source.law.files.law.jsonl": "1415e9..."}`.

    What a stage was given by an earlier stage is left out: it follows from that one's settings.
    """
    inputs = {stage: manifest.inputs for stage, manifest in manifests.items()}
    corpus, init, plan = (inputs.get(stage, {}) for stage in ("corpus", "init", "plan"))
    nested: dict[str, Any] = {
        "source": {
            name: {**_map(_map(source).get("settings")), "files": _map(source).get("files")}
            for name, source in _map(corpus.get("sources")).items()
        },
        "corpus": {key: value for key, value in corpus.items() if key not in ("sources", "seed")},
        "tokenizer": {
            **_map(inputs.get("vocab", {}).get("tokenizer")),
            **{key: init[key] for key in ("row_init", "row_init_output", "row_probe") if key in init},
        },
        **_map(plan.get("settings")),
        **({"seed": plan["seed"]} if "seed" in plan else {}),
        **({"round": plan["round"]["number"]} if "round" in plan else {}),
        **({MODEL: sha256_plain(init["base"])[:SHOWN_DIGITS]} if "base" in init else {}),
    }
    made = manifests.get("train") or manifests.get("plan")
    if made is not None:
        nested |= {"version": made.versions, "commit": made.commit[:SHOWN_DIGITS]}
    return dict(_flat(nested))


def stage_of(key: str) -> str:
    """Return the stage without which a setting is not known."""
    head = key.partition(".")[0]
    if head in ("source", "corpus"):
        return "corpus"
    if key.startswith("tokenizer.row_") or key == MODEL:
        return "init"
    return "vocab" if head == "tokenizer" else "plan"


@dataclass(frozen=True)
class Differing:
    """Settings of runs: `apart` has a value a run, in the order of the runs, and `equal` the value that all have."""

    runs: tuple[str, ...]
    apart: dict[str, list[Value]]
    equal: dict[str, str]

    def of(self, run: str) -> list[Value]:
        """Return a run's values of the settings that differ."""
        return [values[self.runs.index(run)] for values in self.apart.values()]

    @property
    def set_and_equal(self) -> dict[str, str]:
        return {key: value for key, value in self.equal.items() if value != NOT_SET}


def differing(names: Sequence[str], runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Manifest]]]) -> Differing:
    """Return the settings that differ between runs, and those that are equal in all runs that have decided them.

    A value is unknown where the run's stage has not finished. A list of one run differs from none: all its settings are equal.
    """
    runs = [(_without(_sources_of_some(runs), settings), manifests) for settings, manifests in runs]
    keys = dict.fromkeys(key for settings, _ in runs for key in settings)
    apart: dict[str, list[Value]] = {}
    equal: dict[str, str] = {}
    for key in keys:
        values = [_value(key, settings, manifests) for settings, manifests in runs]
        known = {value for value in values if not isinstance(value, Unavailable)}
        if len(known) > 1:
            apart[key] = values
        elif known:
            equal[key] = known.pop()
    return Differing(tuple(names), apart, equal)


def _sources_of_some(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Manifest]]]) -> set[str]:
    """Return the sources that a run has and another, whose corpus has finished too, has not: that they differ says all of it."""
    each = [{_source(key) for key in settings if key.startswith("source.")} for settings, manifests in runs if "corpus" in manifests]
    return each[0].union(*each) - each[0].intersection(*each) if each else set()


def _without(names: set[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which `there` stands for all that is set of the sources of these names."""
    kept = {key: value for key, value in settings.items() if not (key.startswith("source.") and _source(key) in names)}
    mine = sorted({_source(key) for key in settings if key.startswith("source.")} & names)
    return kept | {f"source.{name}": "there" for name in mine}


def _source(key: str) -> str:
    """Return the name in a key such as `source.law.files.law.jsonl`; a name may have dots, and then its first part stands for it."""
    return key.split(".")[1]


def _value(key: str, settings: Mapping[str, Any], manifests: Mapping[str, Manifest]) -> Value:
    if key in settings:
        return _text(settings[key])
    stage = stage_of(key)
    return NOT_SET if stage in manifests else Unavailable(f"the stage {stage} has not finished")


def _text(value: Any) -> str:
    if value is None:
        return NOT_SET
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else canonical_json(value)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            yield from _flat({f"{key}[{number}]": each for number, each in enumerate(value)}, prefix)
        else:
            yield f"{prefix}{key}", value


def _map(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
