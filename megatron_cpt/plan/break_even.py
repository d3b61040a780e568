"""Whether an extended vocabulary pays in training: its break-even token count, from counted FLOPs and stated assumptions. Pure.

Text that the base cuts into N tokens costs N c0 with the base's vocabulary. With the extended one it is R N tokens, each of which costs c1
(more rows in the output layer), and the new rows must be learned first, which takes L tokens more: (R N + L) c1. Both are equal at

    N = L c1 / (c0 - R c1)

and there is no such N where R c1 >= c0: the wider output layer then costs more than the shorter text saves. R is q r_d + (1 - q) r_g: the
measured ratios of tokens on domain and general text, weighted by the domain's share q of the base's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cpt.record.unknown import Figure, Unavailable, combine

# Kim et al. 2024, arXiv 2402.14714 (EEVE), abstract: Korean learned within 2 billion tokens. EEVE-Korean-10.8B-v1.0 has 40,960 rows
# (vocab_size in the config.json of models made from it), of which 32,000 are its base's (its model card): 8,960 pieces were appended.
STATED_RELEARN_TOKENS, STATED_NEW_ROWS = 2e9, 8960
FORMULA = "N = L c1 / (c0 - R c1)"
SCALED = (
    "2 billion tokens for 8,960 appended pieces (Kim et al. 2024, arXiv 2402.14714), scaled by the number of new rows; that it is "
    "proportional is this project's assumption. Set tokenizer.compare.relearn_tokens to a measured figure"
)
MEASURED = "tokenizer.compare.relearn_tokens, as configured"


@dataclass(frozen=True)
class Tokens:
    """What the vocabulary stage measured on held-out text.

    Attributes:
        domain_ratio: tokens of the extended vocabulary over those of the base on domain text; `general_ratio` on general text.
    """

    num_new_rows: int
    domain_ratio: float
    general_ratio: float = 1.0


@dataclass(frozen=True)
class Training:
    """The training that the vocabulary is for.

    Attributes:
        flops_before, flops_after: of one token, with the base's rows and with the extended ones, padding counted.
        planned_tokens: tokens of the plan, in the extended vocabulary.
        domain_share: the domain's share of them.
        usd_per_flop: money for one model FLOP at the expected throughput.
        relearn_tokens: tokens that the new rows take, None for the stated figure.
    """

    flops_before: float
    flops_after: float
    planned_tokens: Figure
    domain_share: float
    usd_per_flop: Figure
    relearn_tokens: float | None = None


@dataclass(frozen=True)
class BreakEven:
    """The result with every input of the formula; tokens are of text in the base's vocabulary unless said.

    Attributes:
        step_saving: share of the training steps that the same text no longer takes (1 - R).
        compute_saving: share of the FLOPs, the wider output layer counted (1 - R c1 / c0).
        pays: whether the planned text reaches the break-even; None when it is unknown.
        usd_saved: on the planned text, after the price of learning the rows; negative is a loss.
    """

    break_even_tokens: Figure
    planned_tokens: Figure
    pays: bool | None
    step_saving: float
    compute_saving: float
    usd_saved: Figure
    relearn_tokens: float
    relearn_source: str
    flops_before: float
    flops_after: float
    domain_ratio: float
    general_ratio: float
    domain_share: float
    formula: str = FORMULA


def break_even(tokens: Tokens, training: Training) -> BreakEven:
    """Return the break-even of an extension (see the module)."""
    relearn = training.relearn_tokens
    if relearn is None:
        relearn = STATED_RELEARN_TOKENS * tokens.num_new_rows / STATED_NEW_ROWS
    # the plan counts extended tokens: the same text has more of the base's
    domain = training.domain_share / tokens.domain_ratio
    general = (1 - training.domain_share) / tokens.general_ratio
    ratio = 1 / (domain + general)  # = q r_d + (1 - q) r_g, with q = domain / (domain + general)
    saved_per_token = training.flops_before - ratio * training.flops_after
    if saved_per_token > 0:
        even: Figure = relearn * training.flops_after / saved_per_token
    else:
        even = Unavailable("never: the rows that it adds to the output layer cost more than the shorter text saves")
    planned = combine(lambda count: count / ratio, training.planned_tokens)
    pays = None
    if isinstance(even, Unavailable):
        pays = False
    elif not isinstance(planned, Unavailable):
        pays = planned >= even
    usd = combine(
        lambda count, price: (count * saved_per_token - relearn * training.flops_after) * price, planned, training.usd_per_flop
    )  # fmt: skip
    return BreakEven(
        break_even_tokens=even,
        planned_tokens=planned,
        pays=pays,
        step_saving=1 - ratio,
        compute_saving=saved_per_token / training.flops_before,
        usd_saved=usd,
        relearn_tokens=relearn,
        relearn_source=SCALED if training.relearn_tokens is None else MEASURED,
        flops_before=training.flops_before,
        flops_after=training.flops_after,
        domain_ratio=tokens.domain_ratio,
        general_ratio=tokens.general_ratio,
        domain_share=domain / (domain + general),
    )
