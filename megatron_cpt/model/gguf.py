"""Turns a GGUF file into a Hugging Face folder: weights dequantised by transformers, the tokenizer mended where its loader is not exact.

The 4- or 8-bit rounding of the file stays in the weights. Needs the packages `gguf` and `accelerate` (the extra `samples`).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import CheckpointError, ConfigError
from megatron_cpt.model.hf_folder import DEFAULT_SHARD_BYTES, write_tensors

MAGIC = b"GGUF"
NEEDED = ("gguf", "accelerate")
PRETOKENIZER_KEY = "tokenizer.ggml.pre"
# Pre-tokenizers that transformers' loader replaces by plain byte-level splitting, and what the name stands for.
DIGITS_APART = ("smollm",)
# Pre-tokenizers for which the loaded tokenizer cut all of llama.cpp's test texts as it should; `smollm` does so by construction.
EXACT = ("gpt-2", "qwen2", "smollm")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def gguf_to_folder(file: Path, folder: Path, *, dtype: str = "fp32", max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> dict[str, Any]:
    """Write config, weights, generation config and tokenizer of a GGUF file to `folder` and return what was found in it.

    Args:
        dtype: of the written weights. A quantised weight is exact in fp32 only.

    Raises:
        CheckpointError: the file is no GGUF file, or one that transformers cannot dequantise.
        ConfigError: a package is missing.
    """
    loaded = load_gguf(file, dtype=dtype)
    tokenizer = _from_gguf("AutoTokenizer", file)
    pre = mend_tokenizer(tokenizer, read_pretokenizer(file))
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""  # the file's internal training name, which is not a place to load from
    tied = bool(config.tie_word_embeddings)
    tensors = [(name, tensor) for name, tensor in loaded.state_dict().items() if not (tied and name == "lm_head.weight")]
    shards = write_tensors(
        folder,
        tensors,
        declared={name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors},
        max_shard_bytes=max_shard_bytes,
    )
    config.architectures = [type(loaded).__name__]
    config.dtype = TYPES[dtype]
    config.save_pretrained(folder)
    loaded.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"shards": shards, "num_rows": config.vocab_size, "dtype": dtype, "pretokenizer": pre, "tokenizer_proven": pre in EXACT}


def load_gguf(file: Path, *, dtype: str) -> Any:
    """Return transformers' model of a GGUF file, dequantised.

    Raises:
        CheckpointError, ConfigError: as `gguf_to_folder`.
    """
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            "Reading a GGUF file needs packages that are not installed.",
            value=", ".join(lacking),
            next_step="pip install 'megatron-cpt[samples]'",
        )
    if not file.is_file() or not _is_gguf(file):
        raise CheckpointError("The file is not a GGUF file.", where=file, rule="it begins with the bytes GGUF")
    return _from_gguf("AutoModelForCausalLM", file, dtype=TYPES[dtype])


def _is_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def _from_gguf(kind: str, file: Path, **arguments: Any) -> Any:
    import transformers  # noqa: PLC0415  # slow to load, needed here only

    try:
        return getattr(transformers, kind).from_pretrained(file.parent, gguf_file=file.name, **arguments)
    except Exception as error:  # the library raises what it meets in a stranger's file: ValueError, KeyError, NotImplementedError ...
        raise CheckpointError(
            "The GGUF file cannot be read by transformers.",
            where=file,
            value=str(error)[:500],
            next_step="Use a file of a supported architecture and quantisation, or the original weights.",
        ) from error


def read_pretokenizer(file: Path) -> str:
    """Return the name of the pre-tokenizer that a GGUF file asks for, or an empty text."""
    from gguf import GGUFReader  # noqa: PLC0415  # an extra

    field = GGUFReader(file).fields.get(PRETOKENIZER_KEY)
    return "" if field is None else bytes(field.parts[field.data[0]]).decode("utf-8", errors="replace")


def mend_tokenizer(tokenizer: Any, pretokenizer: str) -> str:
    """Give a tokenizer back the splitting that its file asks for and that transformers' loader drops; return its name."""
    from tokenizers import pre_tokenizers  # noqa: PLC0415

    if pretokenizer in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return pretokenizer
