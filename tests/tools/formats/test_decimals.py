"""Numbers of boxes survive their text to the bit."""

import math
import random
from decimal import Decimal

import pytest

from retinanet.tools.formats.decimals import (
    EDGES,
    PIXELS,
    box_of_corners,
    box_of_shares,
    corners_of_box,
    read_number,
    shares_of_box,
)


def numbers(texts):
    return tuple(read_number(text) for text in texts)


def boxes(seed, n):
    """xywh in 640 x 427: whole, with two decimals, with all 53 bits, very small."""
    draw = random.Random(seed)
    kinds = [
        lambda most: float(draw.randrange(most)),
        lambda most: round(draw.uniform(0, most), 2),
        lambda most: draw.uniform(0, most),
        lambda most: draw.uniform(0, most) * 1e-6,
    ]
    for row in range(n):
        kind = kinds[row % len(kinds)]
        yield kind(320), kind(200), kind(320) or 1.0, kind(200) or 1.0


@pytest.mark.parametrize("first", [EDGES, PIXELS])
def test_corners_give_the_box_back(first):
    for box in boxes(0, 2000):
        assert box_of_corners(numbers(corners_of_box(box, first)), first) == box


@pytest.mark.parametrize("box", [(-0.5, 1e-300, 1e300, 5e-324), (1e100, -3.5, 0.1, 1e-17)])
def test_corners_of_extreme_boxes_too(box):
    texts = corners_of_box(box, PIXELS)
    read = tuple(map(Decimal, texts))  # beyond what read_number takes from a file
    assert box_of_corners(read, PIXELS) == box


def test_shares_give_the_box_back():
    for box in boxes(1, 2000):
        texts, exact = shares_of_box(box, 640, 427)
        assert exact
        assert box_of_shares(numbers(texts), 640, 427) == box


def test_floats_would_not():
    # What every decimal here is for: in float64 the corner of this box forgets its width.
    x, width = 0.1, 0.2
    assert (x + width) - x != width
    assert box_of_corners(numbers(corners_of_box((x, x, width, width), EDGES)), EDGES)[2] == width


def test_corners_by_hand():
    # The first pixel alone: 1 to 1 as pixels, 0 to 1 as edges.
    assert corners_of_box((0, 0, 1, 1), PIXELS) == ("1", "1", "1", "1")
    assert corners_of_box((0, 0, 1, 1), EDGES) == ("0", "0", "1", "1")
    assert corners_of_box((10.25, 20, 30.5, 40), PIXELS) == ("11.25", "21", "40.75", "60")


def test_shares_by_hand():
    # Center (20, 30) of 100 x 200, 10 wide and 20 high.
    assert shares_of_box((15, 20, 10, 20), 100, 200) == (("0.2", "0.15", "0.1", "0.1"), True)
    assert box_of_shares(numbers(["0.2", ".15", "1e-1", "+0.10"]), 100, 200) == (15, 20, 10, 20)


def test_six_places_come_back_as_they_were():
    draw = random.Random(2)
    for _ in range(500):
        width, height = (draw.randrange(1, 10**6) for _ in range(2))
        shares = [draw.randrange(10**6), draw.randrange(10**6), width, height]
        texts = tuple(f"{share / 1e6:.6f}".rstrip("0").rstrip(".") for share in shares)
        box = box_of_shares(numbers(texts), 1920, 1080)
        assert shares_of_box(box, 1920, 1080) == (texts, True)


@pytest.mark.parametrize(
    "text",
    ["nan", "inf", "-inf", "1_0", "", "1,5", "0x1", "\u0661", "1e", "--1", "1e101", "9" * 900],
)
def test_what_is_no_number(text):
    assert read_number(text) is None


@pytest.mark.parametrize(("text", "value"), [(" 1.50 ", 1.5), ("-3.", -3), (".5e1", 5), ("+2", 2)])
def test_what_is_one(text, value):
    assert math.isclose(float(read_number(text)), value, rel_tol=0)
