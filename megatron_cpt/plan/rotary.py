"""The rotary block of a Hugging Face config: its base and how it is stretched, every field read or refused by name. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class RotaryScaling:
    """How the rotary frequencies of a base are stretched for longer texts; `model/frequencies.py` has the formulas.

    Attributes:
        factor: how much longer; `linear` divides every frequency by it.
        original_max_position: positions before the stretch (llama3, yarn).
        low_freq_factor, high_freq_factor: of llama3: wavelengths in units of the original positions between which it blends.
        beta_fast, beta_slow: of yarn: turns over the original positions between which it blends; `truncate` rounds the limits.
        attention_factor: of yarn: what cosine and sine are multiplied with.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_NEEDED = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings"},
}
_OPTIONAL = {"yarn": {"beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"}}


def read_rotary(config: Mapping[str, Any]) -> tuple[float, RotaryScaling | None, list[str]]:
    """Return base, scaling (None for none) and what is wrong. `rope_parameters` is the newer form, `rope_scaling` the older one."""
    newer, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    name = "rope_parameters" if newer or not older else "rope_scaling"
    block = newer or older
    problems = []
    if not isinstance(block, Mapping):
        return 0.0, None, [f"{name} is {block!r}, not a block of fields"]
    if newer and older and {**older, "rope_theta": None} != {**newer, "rope_theta": None}:
        problems.append("rope_parameters and rope_scaling say different things")
    base = block.get("rope_theta", config.get("rope_theta"))
    if not _is_number(base):
        problems.append("rope_theta is missing" if base is None else f"rope_theta is {base!r}; a number above 0 is needed")
    kind = block.get("rope_type", block.get("type", "default"))
    if kind not in _NEEDED:
        problems.append(f"{name}.rope_type is {kind!r}; only {', '.join(map(repr, _NEEDED))} are supported")
        return 0.0, None, problems
    if block.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"{name}.partial_rotary_factor is {block['partial_rotary_factor']!r}; only 1.0 is supported")
    needed, optional = _NEEDED[kind], _OPTIONAL.get(kind, set())
    problems += [f"{name}.{key} is not known for {kind!r}" for key in sorted(set(block) - _COMMON - needed - optional)]
    problems += [f"{name}.{key} is missing" for key in sorted(needed) if block.get(key) is None]
    numbers = (needed | optional) - {"truncate"}
    problems += [
        f"{name}.{key} is {block[key]!r}; a number above 0 is needed"
        for key in sorted(numbers)
        if block.get(key) is not None and not _is_number(block[key])
    ]
    if problems or kind == "default":
        return float(base or 0.0) if _is_number(base) else 0.0, None, problems
    return float(base), _scaling(kind, block), []


def read_two_rotaries(config: Mapping[str, Any]) -> tuple[float, RotaryScaling | None, float, list[str]]:
    """Return base and scaling of layers that see everything, the base of layers with a window, and what is wrong."""
    blocks = config.get("rope_parameters")
    if isinstance(blocks, Mapping) and set(blocks) == {"full_attention", "sliding_attention"}:
        far, near = ({"rope_parameters": blocks[kind]} for kind in ("full_attention", "sliding_attention"))
    elif blocks:
        return 0.0, None, 0.0, ["rope_parameters has no blocks full_attention and sliding_attention"]
    else:
        far = {key: config.get(key) for key in ("rope_theta", "rope_scaling")}
        near = {"rope_theta": config.get("rope_local_base_freq")}
    base, scaling, problems = read_rotary(far)
    near_base, near_scaling, of_near = read_rotary(near)
    if near_scaling is not None:
        of_near.append(f"rope_type is {near_scaling.kind!r}; only 'default' is supported")
    return base, scaling, near_base, problems + [f"of layers with a window: {problem}" for problem in of_near]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def _scaling(kind: Any, block: Mapping[str, Any]) -> RotaryScaling:
    original = int(block.get("original_max_position_embeddings", 0))
    if kind == "llama3":
        return RotaryScaling(
            kind, float(block["factor"]), original, low_freq_factor=float(block["low_freq_factor"]),
            high_freq_factor=float(block["high_freq_factor"]),
        )  # fmt: skip
    if kind == "yarn":
        return RotaryScaling(
            kind, float(block["factor"]), original, beta_fast=float(block.get("beta_fast") or 32),
            beta_slow=float(block.get("beta_slow") or 1), truncate=bool(block.get("truncate", True)),
            attention_factor=_attention_factor(block),
        )  # fmt: skip
    return RotaryScaling(kind, float(block["factor"]))


def _attention_factor(block: Mapping[str, Any]) -> float:
    """Return yarn's factor on cosine and sine: 0.1 ln(factor) + 1 (Peng et al. 2023, arXiv 2309.00071, equation 22), or the block's own."""
    if block.get("attention_factor") is not None:
        return float(block["attention_factor"])

    def concentration(weight: float) -> float:
        return 1.0 if block["factor"] <= 1 else 0.1 * weight * math.log(block["factor"]) + 1.0

    if block.get("mscale") and block.get("mscale_all_dim"):
        return concentration(float(block["mscale"])) / concentration(float(block["mscale_all_dim"]))
    return concentration(1.0)
