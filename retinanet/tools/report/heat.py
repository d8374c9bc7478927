"""A matrix of counts of a page, colored by the share of their row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retinanet.tools.report.markup import escape

# Shades of the page's style, `heat-1` the palest.
SHADES = 10
# A larger matrix is drawn small, without names and numbers; the pointer tells them.
MOST_NAMED = 16


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Counts as a table, or as a picture when there are many."""

    counts: np.ndarray  # (R, C) int
    shares: np.ndarray  # (R, C) of the row, 0 to 1
    rows: Sequence[str]
    columns: Sequence[str]
    corner: str  # what rows and columns are

    def html(self) -> str:
        """As markup."""
        return self._table() if max(self.counts.shape) <= MOST_NAMED else self._picture()

    def _table(self) -> str:
        head = "".join(f'<th scope="col"><bdi>{escape(name)}</bdi></th>' for name in self.columns)
        body = "\n".join(
            f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>'
            + "".join(
                f'<td class="number heat-{_shade(share)}" title="{share:.1%}">{count}</td>'
                for count, share in zip(counts.tolist(), shares.tolist(), strict=True)
            )
            + "</tr>"
            for name, counts, shares in zip(self.rows, self.counts, self.shares, strict=True)
        )
        corner = escape(self.corner)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{corner}">'
            f'<table class="heat"><thead><tr><th>{corner}</th>{head}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div>"
        )

    def _picture(self) -> str:
        """One square for each pair that occurs."""
        R, C = self.counts.shape
        squares = "".join(
            f'<rect class="heat-{max(_shade(self.shares[r, c]), 1)}" x="{c}" y="{r}" width="1" '
            f'height="1"><title>{escape(self.rows[r])} \u2192 {escape(self.columns[c])}: '
            f"{self.counts[r, c]} ({self.shares[r, c]:.1%})</title></rect>"
            for r, c in np.argwhere(self.counts).tolist()
        )
        return (
            f'<figure class="heat-picture"><svg viewBox="0 0 {C} {R}" role="img" '
            f'aria-label="{escape(self.corner)}"><rect class="frame" width="{C}" height="{R}"/>'
            f"{squares}</svg><figcaption>{R - 1} classes from top to bottom as they are, from left "
            "to right as found, in the order of the annotation file; the pointer names a square."
            "</figcaption></figure>"
        )


def _shade(share: float) -> int:
    """0 for nothing, then 1 to SHADES."""
    return int(np.ceil(share * SHADES))
