"""The look of all figures: colors, fonts, names that fit, and the files. Imports no torch."""

import colorsys
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from retinanet.atomic import write_whole
from retinanet.tools.report.fonts import families

COLORS = ("#1f6fb4", "#e4572e", "#2a9d5c", "#8e44ad", "#e0a100", "#17a2b8", "#c2185b", "#6d4c41")
GRAY = "#b5b5b5"
# Letters, and lines as dark as they; in a page they take the color of its text.
BLACK = "#222222"

# Figures are made without pyplot: no window, no global state, nothing to close.
STYLE = {
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,  # a category may be named $x$
    "text.color": BLACK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "axes.labelcolor": BLACK,
    "grid.color": "#888888",
    "grid.alpha": 0.2,  # pale on white as on black
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "svg.fonttype": "none",  # text stays text: the browser has fonts for every script
    "svg.hashsalt": "retinanet",  # the same figure has the same ids
}


@contextmanager
def house_style() -> Iterator[None]:
    """Our look inside, the caller's before and after; letters that the font lacks are boxes.

    As a decorator, ``@house_style()``, it holds for a whole function.
    """
    style = STYLE | {"font.family": list(families())}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


@house_style()
def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=150)
    write_whole(path, memory.getvalue())


@house_style()
def as_svg(figure: Figure) -> str:
    """A figure as ``<svg>`` element to embed in a page, the same text for the same figure.

    It has no background, and what is BLACK takes the color of the text around it, so that it can
    be read on light and on dark pages. No id in it occurs in the element of another figure.
    """
    memory = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(memory, format="svg", dpi=200, transparent=True, metadata=no_metadata)
    svg = memory.getvalue()
    svg = svg[svg.index("<svg ") :].replace(BLACK, "currentColor")
    # Letters in the page's own font, and no rule that would hold for the whole page.
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin: round" ', 1)
    prefix = "figure-" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def class_color(label: int) -> str:
    """The color of a class in every figure and picture, ``#rrggbb``; neighbors are far apart."""
    if label < len(COLORS):
        return COLORS[label]
    # Steps of the golden ratio never come back to a hue.
    return to_hex(colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.75))


def plain_text(text: str, most: int) -> str:
    """A name as it may stand in a figure: one line, cut, and never hidden from a legend."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return f" {text}" if text.startswith("_") else text
