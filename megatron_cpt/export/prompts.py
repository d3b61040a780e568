"""Where the prompts of the completions come from when the configuration names none."""

from __future__ import annotations

from collections.abc import Sequence

PROMPT_CHARS = 120
MAX_PROMPTS = 4


def beginnings(texts: Sequence[str]) -> list[str]:
    """Return a prompt of each text: its first characters, up to the end of a word where it has any."""
    prompts = []
    for text in texts[:MAX_PROMPTS]:
        start = text.strip()[:PROMPT_CHARS]
        cut = start.rfind(" ")
        prompts.append(start[:cut] if len(text.strip()) > PROMPT_CHARS and cut > PROMPT_CHARS // 2 else start)
    return [prompt for prompt in prompts if prompt]
