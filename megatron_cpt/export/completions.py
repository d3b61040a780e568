"""Greedy completions of the same prompts by the base and by the exported model: something a person can look at before release.

No score is taken from them. Letters: S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.export.folder import folder_dtype, load_alone


@torch.no_grad()
def complete(folder: Path, prompts: Sequence[str], *, start_id: int, num_tokens: int) -> list[str]:
    """Return what the model of a folder adds to each prompt, greedily.

    Args:
        start_id: stands before each prompt, as before each document in training; it also ends a completion.
        num_tokens: most tokens that are added.
    """
    model, tokenizer = load_alone(folder, dtype=folder_dtype(folder))
    completions = []
    for prompt in prompts:
        ids = [start_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        ids_S = torch.tensor([ids])
        made = model.generate(
            ids_S,
            attention_mask=torch.ones_like(ids_S),
            max_new_tokens=num_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=start_id,
            pad_token_id=start_id,
        )
        # decoded on its own the answer would lose its first space where a tokenizer takes that for a dummy prefix
        head, whole = (tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False) for part in (ids, made[0]))
        completions.append(whole[len(head) :])
    return completions


def side_by_side(
    prompts: Sequence[str], *, base_folder: Path, continued_folder: Path, start_id: int, num_tokens: int
) -> list[dict[str, Any]]:
    """Return, for each prompt, what base and continued model make of it."""
    base = complete(base_folder, prompts, start_id=start_id, num_tokens=num_tokens)
    continued = complete(continued_folder, prompts, start_id=start_id, num_tokens=num_tokens)
    return [{"prompt": prompt, "base": old, "continued": new} for prompt, old, new in zip(prompts, base, continued, strict=True)]
