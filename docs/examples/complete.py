"""Complete a text with an exported model, as anyone would who has transformers and has never heard of this project.

python docs/examples/complete.py runs/mine/export/hf "textwrap.wrap(text, width=70)"
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, text: str) -> None:
    """Print the text and its likeliest continuation of 40 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    ids = tokenizer(text, return_tensors="pt")
    print(tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:3])
