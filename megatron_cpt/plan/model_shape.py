"""The shape of a model, read from a Hugging Face `config.json`: every field known, kept or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, raise_all
from megatron_cpt.plan.families import FAMILIES, GEMMA_PATTERN, PLANNED_FAMILIES, Family, family_of
from megatron_cpt.plan.rotary import RotaryScaling, read_rotary, read_two_rotaries


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values grow out of one small vector a token.

    Attributes:
        query_rank: columns that queries are squeezed to; 0 for none.
        key_value_rank: columns that keys and values are squeezed to together.
        plain_dim: columns of a head's query and key that know no position.
        rotary_dim: further columns that do; those of the key are shared by all heads.
        value_dim: columns of a head's value.
    """

    query_rank: int
    key_value_rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        return self.plain_dim + self.rotary_dim


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        num_query_groups: key/value heads; equal to `num_attention_heads` for multi-head attention.
        head_dim: columns of one head.
        ffn_hidden_size: columns of the MLP's middle, or of one expert's.
        num_base_ids: rows of the base model's embedding.
        max_position: longest sequence, in tokens, that the base was trained for.
        rotary_base: 0 for a family with learned positions.
        family: a key of `FAMILIES`.
        num_experts: of every layer; 0 for a dense model.
        renormalise_experts: the weights of the chosen experts of a token are scaled to sum up to 1.
        window: tokens that attention sees, the own one among them; 0 for all.
        full_every: every so many layers one sees everything; 0 for none.
        window_rotary_base: of layers with a window, where they have their own; else 0.
        query_scalar: attention logits are divided by its root; 0 for `head_dim`.
        latent: sizes of multi-head latent attention; None for the usual one.
        num_dense_layers: first layers of a mixture of experts that have one MLP of `dense_ffn_hidden_size` in the experts' place.
        shared_ffn_hidden_size: columns of the middle of the expert that every token is sent to; 0 for none.
        num_mtp_layers: layers behind the last one, each of which predicts one token further (multi-token prediction).
    """

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    ffn_hidden_size: int
    num_base_ids: int
    max_position: int
    norm_epsilon: float
    rotary_base: float
    tied_embeddings: bool
    family: str = "llama"
    rotary_scaling: RotaryScaling | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    renormalise_experts: bool = True
    window: int = 0
    full_every: int = 0
    window_rotary_base: float = 0.0
    query_scalar: float = 0.0
    latent: LatentAttention | None = None
    num_dense_layers: int = 0
    dense_ffn_hidden_size: int = 0
    shared_ffn_hidden_size: int = 0
    num_mtp_layers: int = 0

    @property
    def traits(self) -> Family:
        """What the models of its family have in common."""
        return FAMILIES.get(self.family) or PLANNED_FAMILIES[self.family]

    def training_problems(self) -> list[str]:
        """Say what of this shape can be planned for and not trained."""
        parts = {
            "multi-head latent attention": self.latent is not None,
            "dense layers before layers of experts": self.num_dense_layers > 0,
            "a shared expert": self.shared_ffn_hidden_size > 0,
            "multi-token prediction": self.num_mtp_layers > 0,
            f"the family {self.family}": self.family not in FAMILIES,
        }
        return [f"{what} can be planned for, and is not trained yet" for what, is_there in parts.items() if is_there]

    @classmethod
    def from_hf_folder(cls, folder: Path) -> ModelShape:
        """Read `config.json` of a Hugging Face folder.

        Raises:
            CheckpointError: the folder is not one, or a field has a value that this project cannot keep.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                "The base model folder is not a Hugging Face folder.",
                where=folder,
                rule="it holds config.json, tokenizer.json or tokenizer.model, and *.safetensors",
                next_step="Set model.path to such a folder. `make samples`, or of an installed package"
                " `python -m megatron_cpt.tools.fetch_samples smollm2-135m`, makes the one of the quickstart.",
            )
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError("The base model's config.json is not JSON.", where=path, value=str(error)) from None
        return cls.from_hf_config(config, where=path)

    @classmethod
    def from_hf_config(cls, config: dict[str, Any], *, where: object) -> ModelShape:
        """Return the shape for a config of a supported family.

        Raises:
            CheckpointError: listing every field that is missing, unknown or has a value that cannot be kept.
        """
        next_step = "Use a base model of a supported family (docs/reference/models.md)."
        name = family_of(config.get("architectures"))
        if name is None:
            supported = ", ".join(family.architecture for family in FAMILIES.values())
            problem = f"architectures is {config.get('architectures')!r}; only one of {supported} is supported"
            raise_all(CheckpointError, [problem], where=where, next_step=next_step)
        assert name is not None
        family = FAMILIES[name]
        sizes, problems = _sizes(config, family)
        base, scaling, window_base, of_rotary = _rotary(config, family)
        full_every, of_layers = _full_every(config, family)
        problems += of_rotary + of_layers + _value_problems(config, family)
        window = sizes.get("window") or (config.get("sliding_window", family.window_by_default) if family.has_window else 0)
        if window is not None and not (isinstance(window, int) and window >= 0):
            problems.append(f"sliding_window is {window!r}; a number above 0, or null")
        raise_all(CheckpointError, problems, where=where, next_step=next_step)
        heads = sizes["num_attention_heads"]
        return cls(
            hidden_size=sizes["hidden_size"],
            num_layers=sizes["num_layers"],
            num_attention_heads=heads,
            num_query_groups=sizes.get("num_query_groups", heads),
            head_dim=sizes.get("head_dim", sizes["hidden_size"] // heads),
            ffn_hidden_size=sizes.get("ffn_hidden_size", 4 * sizes["hidden_size"]),  # only GPT-2's may be missing
            num_base_ids=sizes["num_base_ids"],
            max_position=sizes["max_position"],
            norm_epsilon=float(sizes["norm_epsilon"]),
            rotary_base=base,
            tied_embeddings=bool(config.get("tie_word_embeddings", family.tied_by_default)),
            family=name,
            rotary_scaling=scaling,
            num_experts=sizes.get("num_experts", 0),
            experts_per_token=sizes.get("experts_per_token", 0),
            renormalise_experts=bool(sizes.get("renormalise_experts", True)),
            window=window if window and window < sizes["max_position"] else 0,
            full_every=full_every,
            window_rotary_base=window_base,
            query_scalar=float(sizes.get("query_scalar", 0.0)),
        )


def _rotary(config: Mapping[str, Any], family: Family) -> tuple[float, RotaryScaling | None, float, list[str]]:
    if family.positions == "learned":
        return 0.0, None, 0.0, []
    if family.gemma:
        return read_two_rotaries(config)
    base, scaling, problems = read_rotary(config)
    return base, scaling, 0.0, problems


def _full_every(config: Mapping[str, Any], family: Family) -> tuple[int, list[str]]:
    """Return which layers see everything, as one in so many, and what is wrong; 0 where `layer_types` is not read."""
    layers = config.get("layer_types") or []
    if not family.gemma:
        others = sorted(set(map(str, layers)) - {"full_attention"})
        return 0, [f"layer_types names {kind!r}; only 'full_attention' is supported" for kind in others]
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or GEMMA_PATTERN
    if layers:
        every = layers.index("full_attention") + 1 if "full_attention" in layers else len(layers) + 1
    wanted = ["sliding_attention" if number % every else "full_attention" for number in range(1, len(layers) + 1)]
    return int(every), [] if layers == wanted else [f"layer_types is not one full_attention after every {every - 1} sliding_attention"]


def _sizes(config: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of ModelShape that the config gives, and what is missing or no size."""
    sizes: dict[str, Any] = {}
    problems = []
    for name, keys in family.sizes.items():
        key = next((key for key in keys if config.get(key) is not None), None)
        if key is None:
            problems += [] if name in family.optional else [f"{keys[0]} is missing"]
            continue
        value = config[key]
        flag = name == "renormalise_experts"
        if flag != isinstance(value, bool) or (not flag and not (isinstance(value, int | float) and value > 0)):
            problems.append(f"{key} is {value!r}; {'true or false' if flag else 'a number above 0'} is needed")
            continue
        sizes[name] = value
    if family.experts and sizes.get("experts_per_token") == 1 and sizes.get("renormalise_experts", True):
        problems.append("num_experts_per_tok is 1 with renormalised weights: the router would have no gradient")
    if "head_dim" not in sizes and sizes.get("hidden_size", 0) % sizes.get("num_attention_heads", 1):
        problems.append(f"num_attention_heads={sizes['num_attention_heads']} does not divide hidden_size={sizes['hidden_size']}")
    return sizes, problems


def _value_problems(config: Mapping[str, Any], family: Family) -> list[str]:
    problems = [f"{key} is not known" for key in sorted(set(config) - family.fields - {"layer_types"})]
    for key, allowed in family.required.items():
        value = config.get(key, allowed[0])
        if (tuple(value) if isinstance(value, list) else value) not in allowed:
            problems.append(f"{key} is {value!r}; only {' or '.join(map(repr, allowed))} is supported")
    return problems
