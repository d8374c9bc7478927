"""Numbers of boxes as text, in decimal arithmetic, so that no format changes a box by a bit.

A box of float64 is written as the shortest decimals that mean it. Corners are sums of those,
which decimals hold exactly; reading subtracts exactly and rounds once. Shares of the image, which
decimals cannot hold exactly, get as many digits as reading needs to find the same box.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal

# x, y, width, height in pixels.
Xywh = tuple[float, float, float, float]

# Where counting begins -> what xmin and xmax mean.
EDGES, PIXELS = 0, 1
CORNERS = {"edges": EDGES, "pixels": PIXELS}
SIDES = ("xmin", "ymin", "xmax", "ymax")

# Digits of a sum of any two float64: from 1e308 to 5e-324.
EXACT = Context(prec=700)
HALF = Decimal("0.5")
# Digits of a share before it is cut to those that are needed.
SHARES = Context(prec=60)
# Decimal places that are tried for a share: 6 is what YOLO's tools write.
PLACES = (6, 8, 10, 12, 14, *range(16, 41))

# Python's own reading also takes nan, inf, 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
MAX_CHARACTERS = 800


def read_number(text: str) -> Decimal | None:
    """The finite number that a text is, or None."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS or not NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    return number if abs(number) <= Decimal("1e100") else None


def number_text(number: Decimal) -> str:
    """Without exponent, and without zeros at the end."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def shortest(value: float) -> Decimal:
    """The shortest decimal number that is read as this float64."""
    return Decimal(repr(float(value)))


def box_of_corners(corners: tuple[Decimal, ...], first: int) -> Xywh:
    """The box between two corners.

    Args:
        corners: xmin, ymin, xmax, ymax.
        first: ``EDGES``: where the box begins and ends, from 0. ``PIXELS``: the first and the
            last pixel inside, counted from 1, as in PASCAL VOC.
    """
    left, top, right, bottom = corners
    width = EXACT.add(EXACT.subtract(right, left), Decimal(first))
    height = EXACT.add(EXACT.subtract(bottom, top), Decimal(first))
    x, y = (EXACT.subtract(edge, Decimal(first)) for edge in (left, top))
    return float(x), float(y), float(width), float(height)


def corners_of_box(xywh: Xywh, first: int) -> tuple[str, str, str, str]:
    """Inverse of :func:`box_of_corners`, to the bit."""
    x, y, width, height = map(shortest, xywh)
    left, top = (EXACT.add(start, Decimal(first)) for start in (x, y))
    numbers = left, top, EXACT.add(x, width), EXACT.add(y, height)
    return tuple(map(number_text, numbers))  # type: ignore[return-value]


def box_of_shares(shares: tuple[Decimal, ...], width: int, height: int) -> Xywh:
    """A box of YOLO.

    Args:
        shares: center x, center y, width and height, in shares of the image.
        width: of the image, pixels.
        height: of the image, pixels.
    """
    sides = Decimal(width), Decimal(height)
    starts, sizes = [], []
    for center, size, side in zip(shares[:2], shares[2:], sides, strict=True):
        start = EXACT.subtract(center, EXACT.multiply(size, HALF))
        starts.append(float(EXACT.multiply(start, side)))
        sizes.append(float(EXACT.multiply(size, side)))
    return starts[0], starts[1], sizes[0], sizes[1]


def shares_of_box(xywh: Xywh, width: int, height: int) -> tuple[tuple[str, ...], bool]:
    """Inverse of :func:`box_of_shares`.

    Returns:
        Four numbers with as few decimal places as give the same box to the bit; and whether
        they do. With 40 places they always did, for boxes of at least a millionth of a pixel.
    """
    sides = Decimal(width), Decimal(height)
    x, y, w, h = map(shortest, xywh)
    starts = [SHARES.divide(start, side) for start, side in zip((x, y), sides, strict=True)]
    sizes = [SHARES.divide(size, side) for size, side in zip((w, h), sides, strict=True)]
    for places in PLACES:
        rounded = _rounded(starts, sizes, places)
        if box_of_shares(rounded, width, height) == tuple(xywh):
            return tuple(map(number_text, rounded)), True
    return tuple(map(number_text, rounded)), False


def _rounded(starts: list[Decimal], sizes: list[Decimal], places: int) -> tuple[Decimal, ...]:
    """Centers and sizes with so many places."""
    step = Decimal(1).scaleb(-places)
    sizes = [size.quantize(step, context=EXACT) for size in sizes]
    # Of the rounded sizes, and with the place that half of one needs: a box at 0 stays there.
    centers = [
        EXACT.add(start, EXACT.multiply(size, HALF)).quantize(step / 10, context=EXACT)
        for start, size in zip(starts, sizes, strict=True)
    ]
    return *centers, *sizes
