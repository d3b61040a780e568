"""Writing the extended tokenizer: merges and pieces go into the model itself, after the old ones; nothing old is touched."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.errors import DataError
from megatron_cpt.record.store import write_text
from megatron_cpt.vocab.base import BaseTokenizer
from megatron_cpt.vocab.merges import Merge

COPIED_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")


def extended_data(base: BaseTokenizer, merges: Sequence[Merge]) -> dict[str, Any]:
    """Return the base's tokenizer.json with the merges appended.

    Added tokens that stand outside the model's vocabulary are entered there under their own ids: the library numbers them after
    the vocabulary's end otherwise, and a longer vocabulary would move them.

    Raises:
        DataError: a new piece is empty or there already, or an id is taken.
    """
    data = copy.deepcopy(base.data)
    vocab: dict[str, int] = data["model"]["vocab"]
    as_pairs = not data["model"]["merges"] or isinstance(data["model"]["merges"][0], list)
    piece_of = {number: piece for piece, number in vocab.items()}
    for content, number in base.added.items():
        if vocab.setdefault(content, number) != number:
            raise DataError("An added token has another id in the vocabulary.", where=base.folder / "tokenizer.json", value=content)
        piece_of[number] = content
    for merge in merges:
        if not merge.piece or merge.piece in vocab or merge.new_id in piece_of:
            raise DataError("A new piece is empty or already in the vocabulary.", value=f"{merge.piece!r} as id {merge.new_id}")
        vocab[merge.piece], piece_of[merge.new_id] = merge.new_id, merge.piece
    for merge in merges:
        for pair in base.family.pairs(merge, piece_of, vocab):
            data["model"]["merges"].append(list(pair) if as_pairs else " ".join(pair))
    return data


def write_tokenizer(folder: Path, base: BaseTokenizer, data: dict[str, Any] | None, merges: Sequence[Merge] = ()) -> None:
    """Write a tokenizer folder: `data` as tokenizer.json (None: the base's own file, byte for byte) and what belongs to it."""
    folder.mkdir(parents=True)
    if data is None and not (base.folder / "tokenizer.json").is_file():
        data = base.data  # a tokenizer.model alone, or GPT-2's older form
    if data is None:
        shutil.copyfile(base.folder / "tokenizer.json", folder / "tokenizer.json")
    else:
        write_text(folder / "tokenizer.json", json.dumps(data, ensure_ascii=False, indent=2))
    for name in COPIED_FILES:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    base.family.write_beside(folder, base.folder, base.data if data is None else data, merges, num_base_ids=base.num_rows)
