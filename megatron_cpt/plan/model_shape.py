"""The shape of a model, read from a Hugging Face `config.json`: every field known, kept or refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, raise_all

LLAMA_ARCHITECTURE = "LlamaForCausalLM"

# Fields of a Llama config that this project reads into ModelShape.
_READ = {
    "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_parameters",
    "hidden_act",
}  # fmt: skip
# Fields that must have this value, because the model that we build has no other form of it.
_REQUIRED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "rope_scaling": None, "pretraining_tp": 1,
}  # fmt: skip
# Fields that do not change the function of the model; export copies them from the base config.
_IGNORED = {
    "_name_or_path", "_model_name_or_path",
    "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "torch_dtype", "dtype", "transformers_version",
    "use_cache", "rope_interleaved", "is_llama_config", "transformers.js_config", "return_dict",
    "output_attentions", "output_hidden_states",
    "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type", "unk_token_id",
}  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        num_query_groups: key/value heads; equal to `num_attention_heads` for multi-head attention.
        head_dim: columns of one head.
        ffn_hidden_size: columns of the gated MLP's middle.
        num_base_ids: rows of the base model's embedding.
        max_position: longest sequence, in tokens, that the base was trained for.
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
                rule="it holds config.json, tokenizer.json and *.safetensors",
                next_step="Set model.path to such a folder; `make samples` makes the one of the quickstart.",
            )
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError("The base model's config.json is not JSON.", where=path, value=str(error)) from None
        return cls.from_hf_config(config, where=path)

    @classmethod
    def from_hf_config(cls, config: dict[str, Any], *, where: object) -> ModelShape:
        """Return the shape for a Llama-family config.

        Raises:
            CheckpointError: listing every field that is missing, unknown or has a value that cannot be kept.
        """
        problems = []
        if config.get("architectures") != [LLAMA_ARCHITECTURE]:
            problems.append(f"architectures is {config.get('architectures')!r}; only [{LLAMA_ARCHITECTURE!r}] is supported")
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            problems.append(f"rope_parameters.rope_type is {rope['rope_type']!r}; only 'default' is supported")
        problems += [f"rope_parameters.{key} is not known" for key in sorted(set(rope) - {"rope_type", "rope_theta"})]
        problems += [f"{key} is not known" for key in sorted(set(config) - _READ - set(_REQUIRED) - _IGNORED)]
        problems += [
            f"{key} is {config[key]!r}; only {value!r} is supported" for key, value in _REQUIRED.items() if config.get(key, value) != value
        ]
        needed = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
        )
        problems += [f"{key} is missing" for key in needed if key not in config]
        rotary_base = rope.get("rope_theta", config.get("rope_theta"))
        if rotary_base is None:
            problems.append("rope_theta is missing")
        raise_all(CheckpointError, problems, where=where, next_step="Use a base model of a supported family (docs/decisions.md).")
        heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_query_groups=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            ffn_hidden_size=config["intermediate_size"],
            num_base_ids=config["vocab_size"],
            max_position=config["max_position_embeddings"],
            norm_epsilon=float(config["rms_norm_eps"]),
            rotary_base=float(rotary_base or 0),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
