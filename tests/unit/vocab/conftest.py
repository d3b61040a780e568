"""A small base model folder: byte-level BPE trained here on English that every Python carries."""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import logging
import threading

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SEPARATOR = "<|endoftext|>"


def english_documents() -> list[str]:
    documents = []
    for module in (argparse, csv, inspect, json, logging, threading):
        inside = [member for _, member in sorted(inspect.getmembers(module)) if inspect.isclass(member) or inspect.isroutine(member)]
        documents += [text for text in map(inspect.getdoc, [module, *inside]) if text and len(text) > 100]
    return list(dict.fromkeys(documents))


CHINESE_DOCUMENTS = [
    "第一条　为了保护民事主体的合法权益，调整民事关系，维护社会和经济秩序，根据宪法，制定本法。",
    "第二条　民法调整平等主体的自然人、法人和非法人组织之间的人身关系和财产关系。",
    "第三条　民事主体的人身权利、财产权利以及其他合法权益受法律保护，任何组织或者个人不得侵犯。",
    "第四条　民事主体在民事活动中的法律地位一律平等。",
    "第五条　民事主体从事民事活动，应当遵循自愿原则，按照自己的意思设立、变更、终止民事法律关系。",
    "第六条　民事主体从事民事活动，应当遵循公平原则，合理确定各方的权利和义务。",
    "第七条　民事主体从事民事活动，应当遵循诚信原则，秉持诚实，恪守承诺。",
    "第八条　民事主体从事民事活动，不得违反法律，不得违背公序良俗。",
    "第九条　民事主体从事民事活动，应当有利于节约资源、保护生态环境。",
    "第十条　处理民事纠纷，应当依照法律；法律没有规定的，可以适用习惯，但是不得违背公序良俗。",
]


@pytest.fixture(scope="session")
def english() -> list[str]:
    return english_documents()


@pytest.fixture(scope="session")
def chinese() -> list[str]:
    return CHINESE_DOCUMENTS


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, english):
    """A folder like those of the hub: 600 ids, one special token at id 0, a post-processor that adds it before each text."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        english, trainers.BpeTrainer(vocab_size=600, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, 0)])
    assert tokenizer.get_vocab_size() == 600
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SEPARATOR}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 600}))
    return folder
