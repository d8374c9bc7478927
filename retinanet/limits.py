"""Ranges of settings, and the error of a value outside its range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Limit:
    """What a number, or each number of a list, may be; or which words are allowed.

    ``low`` and ``high`` are included unless ``open_low`` or ``open_high``. ``length`` is the
    number of items of a list (None: any but zero). ``word`` may stand instead of a number.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    length: int | None = None
    increasing: bool = False
    word: str | None = None

    def __str__(self) -> str:
        if self.choices:
            return "be one of " + ", ".join(self.choices)
        if self.word is not None:
            return f"{dataclasses.replace(self, word=None)} or {self.word}"
        if self.high == math.inf:
            return f"be above {self.low:.10g}" if self.open_low else f"be at least {self.low:.10g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"lie in {left}{self.low:.10g}, {self.high:.10g}{right}"

    def admits(self, value: float) -> bool:
        """Whether one finite number lies within the limit."""
        if not is_finite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


def is_finite(value: float) -> bool:
    """Whether a number is one that a float holds."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


FRACTION = Limit(0, 1)
PROBABILITY = Limit(0, 1, open_low=True, open_high=True)
COUNT = Limit(1, 2**31 - 1)
# More than any camera's; sides of images that fit in no memory are mistakes.
PIXELS = Limit(1, 2**16)
NOT_NEGATIVE = Limit(low=0)
POSITIVE = Limit(low=0, open_low=True)


def one_of(*choices: str) -> Limit:
    """A limit to a few words."""
    return Limit(choices=choices)


@dataclass(frozen=True, slots=True)
class When:
    """A condition on another setting: it has one of ``values``, or with ``other`` none of them."""

    key: str
    values: tuple[Any, ...]
    other: bool = False

    def holds(self, value: Any) -> bool:
        """Whether it does for this value of ``key``."""
        return (value in self.values) != self.other


def when(key: str, *values: Any) -> When:
    """The other setting has one of these values."""
    return When(key, values)


def unless(key: str, *values: Any) -> When:
    """The other setting has another value than these."""
    return When(key, values, other=True)


def setting(
    meaning: str, limit: Limit | None = None, *, read: Sequence[When] = (), train_only: bool = False
) -> Any:
    """A dataclass field without a value.

    Args:
        meaning: one line.
        limit: what is allowed.
        read: the setting has an effect only when one of these holds, and is refused where it is
            typed and none does; empty: it always has.
        train_only: eval.py has no use for it, and refuses it.
    """
    about = {"meaning": meaning, "limit": limit, "read": tuple(read), "train_only": train_only}
    return field(metadata=about)


def check_value(key: str, value: Any, limit: Limit) -> None:
    """Refuse a word, a number, a list or a map of numbers outside its limit.

    Raises:
        ValueError: key, value and what is allowed.
    """
    if limit.word is not None and value == limit.word:
        return
    if limit.choices:
        if value not in limit.choices:
            raise ValueError(f"{key} must {limit}, got {value!r}.")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_value(f"{key}[{name}]", item, limit)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if limit.length is None and not value:
            raise ValueError(f"{key} must not be empty; give at least one number.")
        if limit.length is not None and len(value) != limit.length:
            raise ValueError(f"{key} must have {limit.length} numbers, got {len(value)}: {value}.")
        for index, item in enumerate(value):
            check_value(f"{key}[{index}]", item, limit)
        if limit.increasing and any(a > b for a, b in pairwise(value)):
            raise ValueError(f"{key} must not decrease, got {value}.")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not limit.admits(value):
        raise ValueError(f"{key} must {limit}, got {value}.")


def value_text(value: Any) -> str:
    """One text for equal values, however they were typed: 1, 1.0 and 1e0 are ``1``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{value_text(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(value_text, value)) + "]"
    return str(value)
