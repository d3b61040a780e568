"""What an answer is worth: exact match, F1, patterns, and pass@k. Pure, and the same whatever the tokenizer."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from megatron_cpt.text.units import units_of

PATTERN_SECONDS = 1.0
NUMBER_SIGNS = "%‰"
EXACT_RULE = "equal after NFKC, lower case, punctuation as spaces except signs, points and commas of numbers, and spaces joined"
F1_RULE = "F1 of words, of characters in scripts without spaces, against the best of the answers (Rajpurkar et al. 2016, arXiv 1606.05250)"
REGEX_RULE = "the pattern is found anywhere in the answer"
PROGRAMS_RULE = "1 - C(n - c, k) / C(n, k) of n programs of which c pass (Chen et al. 2021, arXiv 2107.03374, equation 1)"


def normalise_answer(text: str) -> str:
    """Return an answer in the form in which two are compared; a number keeps its sign, point, commas and percent sign."""
    text = unicodedata.normalize("NFKC", text).lower().replace("−", "-")
    kept = [
        character if not unicodedata.category(character).startswith("P") or _belongs_to_number(text, place) else " "
        for place, character in enumerate(text)
    ]
    return " ".join("".join(kept).split())


def _belongs_to_number(text: str, place: int) -> bool:
    character, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if character in NUMBER_SIGNS:
        return before.isdigit() or before == " "
    if character in ".,":
        return before.isdigit() and after.isdigit()
    return character == "-" and after.isdigit() and not before.isalnum()


def exact_match(answer: str, right: Sequence[str]) -> float:
    """Return 1 when the answer equals one of the right ones in normal form."""
    return float(normalise_answer(answer) in {normalise_answer(text) for text in right})


def f1(answer: str, right: Sequence[str]) -> float:
    """Return the best F1 of the answer's units against those of a right one; an answer of nothing but punctuation has 0."""
    given = Counter(units_of(answer))
    best = 0.0
    for text in right:
        wanted = Counter(units_of(text))
        common = (given & wanted).total()
        if common:
            best = max(best, 2 * common / (given.total() + wanted.total()))
    return best


def pattern_found(answer: str, patterns: Sequence[str]) -> float:
    """Return 1 when one of the patterns is found in the answer; a pattern that searches for longer than a second is not found."""
    for pattern in patterns:
        with contextlib.suppress(TimeoutError), _time_limit(PATTERN_SECONDS):
            if re.search(pattern, answer):
                return 1.0
    return 0.0


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what is inside when it takes too long: `re` looks for signals while it searches. In the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signal: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k programs passes, from `num_samples` of which `num_passed` did.

    Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    assert 0 <= num_passed <= num_samples
    assert 1 <= k <= num_samples
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of the stops."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
