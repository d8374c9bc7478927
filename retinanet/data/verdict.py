"""What is wrong with a data set: the first problem as an error, or all of them, by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from retinanet.data.coco import CocoData

# Of every kind of finding, how many are kept to be looked at.
SIGHTS = 4


class Effect(Enum):
    """What becomes of it."""

    REFUSED = "refused"
    LOST = "lost"
    MENDED = "mended"
    NOTED = "noted"


class Sight(NamedTuple):
    """An image to look at."""

    data: CocoData
    index: int  # of the image
    box: int | None = None  # row of the annotation that it is about; None: all of the image


# What a record of a finding looks like: one image, or a pair to be compared.
Look = Callable[[int], tuple[Sight, ...]]


@dataclass(slots=True)
class Finding:
    """One kind of thing that is not as it should be, and where it was met."""

    kind: str
    effect: Effect
    does: str  # what training does about it
    remedy: str  # what the user can do
    count: int = 0
    out_of: int = 0  # annotations among which they were looked for; 0: not counted
    places: list[str] = field(default_factory=list)  # of the first ones
    sights: list[tuple[Sight, ...]] = field(default_factory=list)  # of the first ones


class Verdict:
    """Judges a data set while it is read.

    Args:
        stop: raise at the first problem. Otherwise keep them all and go on, without the records
            that have one.
        keep: of every kind, how many places are kept.

    Attributes:
        findings: kept, in the order in which their kinds were met.
        first: the message that stopping would have raised.
        left_out: files and lists of which records were left out.
    """

    def __init__(self, *, stop: bool = True, keep: int = 5) -> None:
        self.stop = stop
        self.keep = keep
        self.findings: list[Finding] = []
        self.first: str | None = None
        self.left_out: set[tuple[Path, str]] = set()

    @property
    def refused(self) -> list[Finding]:
        """What training would stop at."""
        return self.having(Effect.REFUSED)

    def having(self, effect: Effect) -> list[Finding]:
        """The findings of one effect."""
        return [finding for finding in self.findings if finding.effect is effect]

    def refuse(
        self,
        kind: str,
        rows: Sequence[int],
        place: Callable[[int], str],
        message: Callable[[int], str],
        remedy: str,
        error: type[Exception] = ValueError,
        does: str = "stops before the first step",
        look: Look | None = None,
    ) -> None:
        """Raise, or keep, what training cannot go on with.

        Args:
            kind: the rule that is broken.
            rows: of the records that break it; none: nothing happens.
            place: the record and its value, without what is common to the kind.
            message: the whole error of a record.
            remedy: what to do.
            error: its type.
            does: when training stops.
            look: the image of a record, where there is one to look at.

        Raises:
            Exception: of type ``error``, for the first row, when stopping.
        """
        if not len(rows):
            return
        if self.stop:
            raise error(message(rows[0]))
        if self.first is None:
            self.first = message(rows[0])
        self._add(Effect.REFUSED, kind, rows, place, does, remedy, look)

    def leave_out(self, path: Path, name: str) -> None:
        """Remember that records of a list are left out; what refers to them is not judged."""
        if not self.stop:
            self.left_out.add((path, name))

    def mend(
        self,
        kind: str,
        rows: Sequence[int],
        place: Callable[[int], str],
        does: str,
        remedy: str,
        look: Look | None = None,
    ) -> None:
        """Keep what training puts right in memory; arguments as in :meth:`refuse`."""
        self._add(Effect.MENDED, kind, rows, place, does, remedy, look)

    def lose(
        self,
        kind: str,
        rows: Sequence[int],
        place: Callable[[int], str],
        does: str,
        remedy: str,
        look: Look | None = None,
        out_of: int = 0,
    ) -> None:
        """Keep what training goes on without; ``out_of`` records, for the share of the lost."""
        self._add(Effect.LOST, kind, rows, place, does, remedy, look)
        for finding in self.having(Effect.LOST):
            if finding.kind == kind and len(rows):
                finding.out_of += out_of

    def note(
        self,
        kind: str,
        rows: Sequence[int],
        place: Callable[[int], str],
        does: str,
        remedy: str,
        look: Look | None = None,
    ) -> None:
        """Keep what training takes as it is; arguments as in :meth:`refuse`."""
        self._add(Effect.NOTED, kind, rows, place, does, remedy, look)

    def _add(
        self,
        effect: Effect,
        kind: str,
        rows: Sequence[int],
        place: Callable[[int], str],
        does: str,
        remedy: str,
        look: Look | None,
    ) -> None:
        if self.stop or not len(rows):
            return
        known = (f for f in self.findings if (f.effect, f.kind) == (effect, kind))
        finding = next(known, None)
        if finding is None:
            finding = Finding(kind, effect, does, remedy)
            self.findings.append(finding)
        finding.count += len(rows)
        missing = self.keep - len(finding.places)
        finding.places += [place(int(row)) for row in rows[: max(missing, 0)]]
        if look is not None:
            missing = SIGHTS - len(finding.sights)
            finding.sights += [look(int(row)) for row in rows[: max(missing, 0)]]


# Keeps nothing, so one serves everybody.
STOP = Verdict()
