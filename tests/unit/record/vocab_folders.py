"""A small proven vocabulary folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.vocab_contract import Check, Drift, probe_of, write_contract
from megatron_cpt.record.vocab_layout import VocabLayout

TEXTS = ["one two", "第一条　民法"]


def make_vocab(folder: Path) -> VocabLayout:
    """Write a tokenizer of the 256 bytes with its layout, probe and contract."""
    (folder / "tokenizer").mkdir(parents=True)
    path = folder / "tokenizer" / "tokenizer.json"
    vocab = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(path))
    layout = VocabLayout(256, 256, 256, 0, hashlib.sha256(path.read_bytes()).hexdigest())
    (folder / "vocab_layout.json").write_text(json.dumps(dataclasses.asdict(layout)))
    probe = probe_of(load_tokenizer(path), TEXTS)
    write_contract(folder, layout, probe=probe, drift=Drift(10, 0, 0.0), checks=[Check("a clause", True, 3)])
    return layout
