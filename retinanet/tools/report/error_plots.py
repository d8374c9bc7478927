"""What a detector gets wrong, as plots: the cost of the kinds of error, confused classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from retinanet.tools.diagnose.confusion import Confusion
from retinanet.tools.diagnose.errors import KINDS, Errors
from retinanet.tools.report.style import BLACK, GRAY, house_style, plain_text, save_figure

KIND_COLORS = dict(
    zip(KINDS, ("#8e44ad", "#1f6fb4", "#6d4c41", "#17a2b8", "#e4572e", "#e0a100"), strict=True)
)
RIGHT_COLOR = "#2a9d5c"

# Side of a cell of the confusion matrix in inches, and the size of its number, by classes: up to
# so many. Beyond the last there are no numbers.
CELLS = ((12, 0.62, 8.0), (32, 0.34, 6.0))
SMALL_CELL = 0.14
LEAST_WIDTH = 5.5  # inches; the title needs it
# The shade of a share: with its root, one object in a hundred is still to be seen.
SHADE_POWER = 0.5


def plot_errors(errors: Errors, out: Path) -> None:
    """What each kind of error costs, as bars.

    Args:
        errors: of an analysis.
        out: PNG to write.
    """
    kinds = [*errors.kinds, errors.false_positives, errors.false_negatives]
    costs = [kind.cost or 0.0 for kind in kinds]
    colors = [KIND_COLORS.get(kind.name, GRAY) for kind in kinds]
    with house_style():
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.set_title("AP50 that mending one kind of error would gain")
        bars = axes.barh(range(len(kinds)), costs, color=colors)
        axes.set_yticks(range(len(kinds)), [kind.name for kind in kinds])
        axes.invert_yaxis()
        axes.bar_label(bars, [f"{cost:.3f}" for cost in costs], padding=3, color=BLACK)
        axes.set_xlim(0, max(1.15 * max(costs), 0.01))
        axes.grid(axis="y", visible=False)
        axes.axhline(len(KINDS) - 0.5, color=GRAY, linewidth=0.8)
        save_figure(figure, out)


def plot_confusion(confusion: Confusion, out: Path) -> None:
    """The matrix: rows are objects, columns what they were found as.

    Args:
        confusion: of an analysis; any number of classes.
        out: PNG to write.
    """
    count = len(confusion.counts)
    fits = [(side, font) for most, side, font in CELLS if count <= most]
    side, font = fits[0] if fits else (SMALL_CELL, None)
    names = [plain_text(name, 24) for name in confusion.names]
    with house_style():
        width = max(count * side + 2.4, LEAST_WIDTH)
        figure = Figure(figsize=(width, count * side + 2.2), layout="constrained")
        axes = figure.subplots()
        title = f"Objects (rows) as found (columns), score \u2265 {confusion.score:.2f}"
        figure.suptitle(title, fontsize=10, fontweight="bold")
        axes.set_xlabel("darker: a larger share of the row")
        shown = axes.imshow(confusion.shares(), cmap="Blues", norm=PowerNorm(SHADE_POWER, 0, 1))
        small = {"fontsize": 8 if font else 5}
        axes.set_xticks(range(count), [*names, "not found"], rotation=90, **small)
        axes.set_yticks(range(count), [*names, "nothing there"], **small)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="#e8e8e8", linewidth=0.4)
        axes.tick_params(which="both", length=0)
        if font:
            _write_counts(axes, confusion, font)
        else:
            figure.colorbar(shown, ax=axes, shrink=0.3, pad=0.02, label="share of the row")
        save_figure(figure, out)


def _write_counts(axes: Axes, confusion: Confusion, font: float) -> None:
    shares = confusion.shares()
    for row, column in zip(*np.nonzero(confusion.counts), strict=True):
        color = "white" if shares[row, column] > 0.35 else BLACK
        text = str(confusion.counts[row, column])
        axes.text(column, row, text, fontsize=font, color=color, ha="center", va="center")
