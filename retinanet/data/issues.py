"""What is wrong or odd about a data set: one record for each kind of problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple


class Effect(Enum):
    """What training does about an issue, as the heading over such issues."""

    REFUSED = "WRONG: train.py stops"
    LOST = "LOST: train.py drops it and goes on without"
    REPAIRED = "REPAIRED: train.py puts it right in memory and goes on"
    NOTED = "ODD: train.py goes on"


class Sight(NamedTuple):
    """An image that shows an issue."""

    data: Any  # the CocoData that lists it
    index: int  # of the image
    box: int | None = None  # row of the annotation that the issue is about; None: the whole image


@dataclass(frozen=True, slots=True)
class Issue:
    """One kind of problem, and the records that have it.

    A million records may have it, of which few are shown: ``places`` and ``sights`` may be
    generators.
    """

    kind: str  # the broken rule, after its list: "annotations: iscrowd is missing"
    count: int  # records that break it; 0: no issue
    places: Iterable[str]  # file, record and value of each
    does: str  # what training does about it
    fix: str  # what the user can do
    effect: Effect = Effect.NOTED
    sights: Iterable[tuple[Sight, ...]] = ()  # of each record one image, or two to be compared
    out_of: int = 0  # records that were looked at, for the share that is lost; 0: not counted
    error: Exception | None = None  # what training raises, about the first record; if refused


def refusal(
    kind: str,
    places: Iterable[str],
    error: Exception,
    fix: str,
    *,
    count: int = 1,
    does: str = "stops before the first step",
    sights: Iterable[tuple[Sight, ...]] = (),
) -> Issue:
    """An issue that training cannot go on with; arguments as in :class:`Issue`."""
    return Issue(kind, count, places, does, fix, Effect.REFUSED, sights, error=error)


def raise_refused(issues: Iterable[Issue]) -> None:
    """Raise the error of the first issue that training cannot go on with.

    Raises:
        Exception: of the issue, mostly a ValueError: file, record, value, what is allowed, fix.
    """
    for issue in issues:
        if issue.error is not None:
            raise issue.error
