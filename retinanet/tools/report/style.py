"""The look of all figures: colors, fonts, names that fit. Imports no torch."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from retinanet.atomic import write_whole
from retinanet.tools.report.fonts import families

# Figures are made without pyplot: no window, no global state, nothing to close.
STYLE = {
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,  # a category may be named $x$
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "axes.labelcolor": "#444444",
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
COLORS = ("#1f6fb4", "#e4572e", "#2a9d5c", "#8e44ad", "#e0a100", "#17a2b8", "#c2185b", "#6d4c41")
GRAY = "#b5b5b5"
BLACK = "#222222"


@contextmanager
def house_style() -> Iterator[None]:
    """Our look inside, the caller's before and after; letters that the font lacks are boxes."""
    style = STYLE | {"font.family": list(families())}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=150)
    write_whole(path, memory.getvalue())


def plain_text(text: str, most: int) -> str:
    """A name as it may stand in a figure: one line, cut, and never hidden from a legend."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return f" {text}" if text.startswith("_") else text
