"""Parameter names of other projects and ours: one table for both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

# A pair of templates: (ours, theirs). "{}" stands for a number, the same ones in the same order on
# both sides; a template that ends in "." stands for all names that begin so.
Pairs = Sequence[tuple[str, str]]


class Renaming:
    """Names of one project into those of another; the first pair that fits counts."""

    def __init__(self, pairs: Pairs) -> None:
        """Compile.

        Args:
            pairs: (from, to).
        """
        self._rules = [(_pattern(given), wanted) for given, wanted in pairs]

    def __call__(self, name: str) -> str | None:
        """The other name, or None where no pair fits."""
        for pattern, wanted in self._rules:
            found = pattern.fullmatch(name)
            if found:
                *numbers, rest = found.groups()
                return wanted.format(*numbers) + rest
        return None


def _pattern(template: str) -> re.Pattern:
    rest = "(.*)" if template.endswith(".") else "()"
    return re.compile(r"(\d+)".join(map(re.escape, template.split("{}"))) + rest)


def to_ours(pairs: Pairs) -> Renaming:
    """Their names into ours."""
    return Renaming([(theirs, ours) for ours, theirs in pairs])


def to_theirs(pairs: Pairs) -> Renaming:
    """Our names into theirs."""
    return Renaming(pairs)


def rename(weights: dict[str, Tensor], renaming: Renaming) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under their other names, and the names that have none."""
    renamed, left_over = {}, []
    for name, value in weights.items():
        other = renaming(name)
        if other is None:
            left_over.append(name)
        else:
            renamed[other] = value
    return renamed, left_over
