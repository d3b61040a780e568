"""The names beside the points of a still picture."""

from __future__ import annotations

import itertools
import re

import pytest

from megatron_cpt.charts.data import Axis, Series, XYChart
from megatron_cpt.charts.svg import xy_picture

TEXT = re.compile(r'<text class="value" x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">(run \d)</text>')
LETTER, TALL = 6.0, 10  # what a sans-serif letter of 12 px takes at least


def boxes(picture: str) -> dict[str, tuple[float, float, float, float]]:
    found = {}
    for x, y, anchor, text in TEXT.findall(picture):
        wide = LETTER * len(text)
        left = float(x) - (wide if anchor == "end" else 0)
        found[text] = (left, float(y) - TALL, left + wide, float(y))
    return found


def test_names_of_points_that_lie_close_do_not_cover_each_other() -> None:
    points = [(0.100, 0.20), (0.101, 0.201), (0.102, 0.199), (0.5, 0.8), (0.9, 0.9), (0.899, 0.905)]
    labels = [f"run {number}" for number in range(len(points))]
    halves = [
        Series("front", points[:3], "good", labels=labels[:3], mode="both"),
        Series("behind", points[3:], "c", labels=labels[3:], mode="points"),
    ]
    found = boxes(xy_picture(XYChart("all", halves, Axis("gain"), Axis("forgetting"))))
    assert sorted(found) == labels
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], f"{one} {a} covers {other} {b}"
        assert min(a[0], b[0]) >= 0
        assert max(a[2], b[2]) <= 460


@pytest.mark.parametrize("letters", [10, 36, 60])
def test_the_name_of_the_upright_axis_stays_within_the_picture(letters: int) -> None:
    picture = xy_picture(XYChart("all", [Series("a", [(0, 1), (1, 2)])], Axis("x"), Axis("y" * letters)))
    found = re.search(r'rotate\(-90\)" x="(-?[\d.]+)" y="12" text-anchor="middle"(?: textLength="(\d+)")?', picture)
    assert found
    middle, half = -float(found[1]), (float(found[2]) if found[2] else LETTER * letters) / 2
    assert middle - half >= 0
    assert middle + half <= 240  # the picture's height
