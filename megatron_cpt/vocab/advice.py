"""Whether to extend, by which rule, and in words."""

from __future__ import annotations

from typing import Any

WORTHWHILE_SAVING = 0.10  # this project's own threshold
POOR_COVERAGE = 0.10  # this project's own: share of tokens that are parts of characters
RULE = (
    "Extend where the planned training reaches the break-even: from there on it costs fewer FLOPs than with the base's vocabulary, the "
    "learning of the new rows included. Below it do not extend, with two exceptions. They are this project's own and look beyond "
    f"training, at every later use of the model: more than {WORTHWHILE_SAVING:.0%} of the domain's tokens are saved, or the base covers "
    f"the script poorly (more than {POOR_COVERAGE:.0%} of its tokens there are parts of characters). For comparison: a tokenizer that was "
    "changed as a whole paid from about 50 billion tokens of training on (Dagan et al. 2024, arXiv 2402.01035)."
)


def advice(saving: float | None, base_fragment_rate: float | None, num_new_pieces: int, economy: dict[str, Any] | None) -> dict[str, Any]:
    """Return the rule, `extend` (None where it is unknown) and why.

    Args:
        saving: share of the domain's tokens that the extension saves.
        economy: the break-even as plain data, None where no model and plan are known.
    """
    if num_new_pieces == 0:
        return {"rule": RULE, "extend": False, "why": "not asked for: num_new_pieces is 0"}
    if saving is None or base_fragment_rate is None:
        return {"rule": RULE, "extend": None, "why": "unknown: there is no held-out domain text to measure on"}
    training = in_training(economy)
    if economy is not None and economy["pays"]:
        return {"rule": RULE, "extend": True, "why": f"extend: {training}"}
    grounds = []
    if saving > WORTHWHILE_SAVING:
        grounds.append(f"it saves {saving:.1%} of the tokens of held-out domain text")
    if base_fragment_rate > POOR_COVERAGE:
        grounds.append(f"{base_fragment_rate:.1%} of the base's tokens there are parts of characters")
    if grounds:
        return {"rule": RULE, "extend": True, "why": f"extend for later use: {'; '.join(grounds)}. By training alone: {training}"}
    return {"rule": RULE, "extend": False, "why": f"do not extend: it saves only {saving:.1%} of the tokens of domain text, and {training}"}


def in_training(economy: dict[str, Any] | None) -> str:
    """Say where the planned training stands to the break-even."""
    if economy is None:
        return "the break-even is unknown without a model and a plan"
    even, planned = economy["break_even_tokens"], economy["planned_tokens"]
    if isinstance(even, dict):
        return f"it never pays in training ({even['unavailable'].removeprefix('never: ')})"
    if isinstance(planned, dict):
        return f"it pays in training from {tokens(even)} tokens on; how many are planned is unknown ({planned['unavailable']})"
    where = "reaches" if economy["pays"] else "is below"
    return f"the planned text of {tokens(planned)} base tokens {where} the break-even of {tokens(even)}"


def tokens(count: float) -> str:
    """Return a number of tokens with three digits and its unit."""
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def figure(value: Any, pattern: str) -> str:
    """Return a figure of a plain record, or why it is unknown."""
    return f"unknown ({value['unavailable']})" if isinstance(value, dict) else pattern.format(value)


def economy_rows(economy: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the inputs and results of the break-even, for a table."""
    even, planned = economy["break_even_tokens"], economy["planned_tokens"]
    return [
        ("break-even, tokens of training text in the base's vocabulary", figure(even, "{:,.0f}")),
        ("planned, the same tokens, when this vocabulary was made", figure(planned, "{:,.0f}")),
        ("training steps saved on the same text (1 - R)", f"{economy['step_saving']:.2%}"),
        ("FLOPs saved on the same text (1 - R c1 / c0)", f"{economy['compute_saving']:.2%}"),
        ("money saved on the planned text, the learning of new rows paid", figure(economy["usd_saved"], "{:,.2f} USD")),
        ("formula", economy["formula"]),
        ("c0, model FLOPs of a token with the base's rows", f"{economy['flops_before']:.4g}"),
        ("c1, with the extended rows in the output layer", f"{economy['flops_after']:.4g}"),
        ("r_d, tokens on domain text against the base", f"{economy['domain_ratio']:.4f}"),
        ("r_g, on general text", f"{economy['general_ratio']:.4f}"),
        ("q, the domain's share of the base's tokens", f"{economy['domain_share']:.2%}"),
        ("R = q r_d + (1 - q) r_g", f"{1 - economy['step_saving']:.4f}"),
        ("L, tokens that the new rows take", f"{economy['relearn_tokens']:,.0f} ({economy['relearn_source']})"),
    ]
