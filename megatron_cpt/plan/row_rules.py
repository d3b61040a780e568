"""Which rules give new rows their first values: one for the embedding (input) and one for the output matrix; knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cpt.errors import ConfigError

# What each rule is stands in model/rows.py. `fitted` is of output rows: the input rows beside it are the mean.
ROW_RULES = ("mean", "mean_norm", "noise", "weighted", "gaussian", "fitted")
FITTED = "fitted"
READS_DOMAIN_TEXT = frozenset({"weighted", FITTED})
DRAWS = frozenset({"noise", "gaussian"})
PROBE = "probe"  # no rule, but the wish to try some and keep the best


@dataclass(frozen=True)
class RowPair:
    """The rules of input and output rows; the same one twice where the two matrices are tied."""

    input: str
    output: str

    @property
    def name(self) -> str:
        """The pair in the form that `row_pair` reads."""
        return self.input if self.input == self.output else f"{self.input}/{self.output}"

    @property
    def reads_domain_text(self) -> bool:
        return bool({self.input, self.output} & READS_DOMAIN_TEXT)

    @property
    def draws(self) -> bool:
        return bool({self.input, self.output} & DRAWS)


def row_pair(name: str, *, tied: bool) -> RowPair:
    """Return the pair that `input` or `input/output` names.

    Raises:
        ConfigError: a rule is not known, is none of input rows, or the matrices are tied and the rules differ.
    """
    first, slash, second = name.partition("/")
    for rule in (first, second) if slash else (first,):
        if rule not in ROW_RULES:
            raise ConfigError(
                "The rule for new rows is not known.", where="tokenizer.row_init", value=rule, rule=f"one of {', '.join(ROW_RULES)}"
            )
    output = second or first
    if tied and output != first:
        raise ConfigError(
            "Input and output rows of this model are the same rows, so that one rule makes both.",
            where="tokenizer.row_init_output",
            value=name,
            rule="tie_word_embeddings is true in config.json of the base",
            next_step=f"Leave tokenizer.row_init_output empty, and set tokenizer.row_init={output} if that is the rule you want.",
        )
    if first == FITTED and not tied:
        if output != FITTED:
            raise ConfigError(
                "Rows are fitted as output rows, not as input rows.",
                where="tokenizer.row_init",
                value=name,
                next_step="Set tokenizer.row_init to the rule of the input rows, and tokenizer.row_init_output=fitted.",
            )
        first = "mean"
    return RowPair(first, output)


def wanted_pair(row_init: str, row_init_output: str, *, tied: bool) -> RowPair | None:
    """Return the pair that the configuration names, None where a probe is to choose it.

    Raises:
        ConfigError: as `row_pair`, or a probe is asked for beside a rule of its own for output rows.
    """
    if PROBE not in (row_init, row_init_output):
        return row_pair(f"{row_init}/{row_init_output}" if row_init_output else row_init, tied=tied)
    if row_init != PROBE or row_init_output:
        raise ConfigError(
            "A probe chooses input and output rows together.",
            where="tokenizer.row_init_output",
            value=row_init_output,
            rule="tokenizer.row_init=probe and no tokenizer.row_init_output",
            next_step="Name pairs in tokenizer.row_probe.rules instead, e.g. mean/gaussian.",
        )
    return None


def candidates(names: Sequence[str], *, tied: bool) -> list[RowPair]:
    """Return the pairs that a probe tries, each once; all rules on both sides where none is named.

    Raises:
        ConfigError: as `row_pair`.
    """
    return list(dict.fromkeys(row_pair(name, tied=tied) for name in names or ROW_RULES))
