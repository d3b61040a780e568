"""Fast paths cut a text into the same units, with the same hashes, as the one pattern that defines them."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.text.runs import Rows, RunHashes, TextHashes, UnitHashes
from megatron_cpt.text.units import SPACELESS, is_spaceless, spaceless_ranges, units_of

ALPHABET = "aZ9_ .,é\u0301ｅＡ第１条，公司Жßİ\u1d00한국ไทย\u3000\n\u0130𠀀"
TEXTS = st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=["Cs"])), max_size=60)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_units_and_hashes_are_those_of_the_definition(text: str) -> None:
    pattern = rf"[{SPACELESS}]|[^\W_{SPACELESS}]+"
    expected = re.findall(pattern, unicodedata.normalize("NFKC", text).lower())
    assert units_of(text) == expected
    hashes, spaceless = TEXT_HASHES.of(text)
    assert hashes.tolist() == UnitHashes().of(expected).tolist()
    assert spaceless == is_spaceless(expected)


TEXT_HASHES = TextHashes()


def test_ranges_are_those_of_the_pattern() -> None:
    assert spaceless_ranges()[0] == (0x0E00, 0x0E7F)
    assert spaceless_ranges()[-1] == (0x20000, 0x3FFFF)
    assert len(spaceless_ranges()) == SPACELESS.count("-")
    assert len(SPACELESS) == 3 * len(spaceless_ranges())


def test_rows_know_where_each_text_lies() -> None:
    rows = Rows.of(["one two", "", "公司law", "..."], TEXT_HASHES)
    assert (rows.ends - rows.begins).tolist() == [2, 0, 3, 0]
    assert rows.spaceless.tolist() == [False, False, False, False]  # two characters are not more than half of two and three
    assert rows.units[rows.begins[2] : rows.ends[2]].tolist() == UnitHashes().of(["公", "司", "law"]).tolist()
    assert len(Rows.of([], TEXT_HASHES)) == 0


def test_runs_of_any_length_are_polynomials_in_their_units() -> None:
    rng = np.random.default_rng(1)
    units = rng.integers(0, 2**64, size=500, dtype=np.uint64)
    base = 0x9E3779B97F4A7C15

    def by_hand(begin: int, length: int) -> int:
        total = 0
        for unit in units[begin : begin + length].tolist():
            total = (total * base + unit) % 2**64
        return total

    runs = RunHashes(units)
    assert runs.of_length(13).tolist() == [by_hand(begin, 13) for begin in range(488)]
    assert runs.at(np.array([0, 499, 7]), np.array([500, 1, 2])).tolist() == [by_hand(0, 500), by_hand(499, 1), by_hand(7, 2)]
