"""Batches made ahead: order, errors, and that the next one really is made while the caller works."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from megatron_cpt.train.prefetch import one_ahead


def test_items_come_in_order_and_end() -> None:
    assert list(one_ahead(iter(range(1, 6)))) == [1, 2, 3, 4, 5]
    assert list(one_ahead(iter([]))) == []


def test_the_next_item_is_made_while_the_caller_holds_the_last() -> None:
    second_made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second_made.set()
        yield 2

    batches = one_ahead(items())
    assert next(batches) == 1
    assert second_made.wait(timeout=30)  # nobody has asked for it
    assert next(batches) == 2


def test_an_error_comes_in_its_place_and_no_thread_is_left() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the index is gone")

    batches = one_ahead(items())
    assert next(batches) == 1
    with pytest.raises(OSError, match="the index is gone"):
        next(batches)
    closed = one_ahead(iter(range(1, 100)))
    next(closed)
    closed.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
