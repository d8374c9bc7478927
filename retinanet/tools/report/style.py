"""The look of all figures: colors, fonts, names that fit, and the files. Imports no torch."""

import colorsys
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from retinanet.atomic import write_whole

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

# Comes with matplotlib; Latin, Greek, Cyrillic and more.
BASE_FONT = "DejaVu Sans"
# Families that may be installed, for scripts that it lacks; the first ones cover most.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR"),
    *("Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC", "Source Han Sans CN"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC"),
    *("Hiragino Sans GB", "Hiragino Sans", "Heiti SC", "Apple SD Gothic Neo", "Microsoft YaHei"),
    *("SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Ethiopic", "Noto Sans"),
)


@functools.cache
def families() -> tuple[str, ...]:
    """The font families to draw with, in the order in which a letter is looked up."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return (BASE_FONT, *(name for name in OTHER_FONTS if name in installed))


@functools.cache
def font_path(text: str) -> str | None:
    """The first font file of the families with all letters of a text; None where there is none."""
    letters = {ord(letter) for letter in text if letter.isprintable()}
    paths = (font_manager.findfont(name) for name in families())
    return next((path for path in paths if letters <= _letters(path)), None)


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has."""
    return frozenset(font_manager.get_font(path).get_charmap())


def drawable_names(names: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Names of classes as they can be drawn: by category id where no font has the letters."""
    pairs = zip(names, ids, strict=True)
    return [f"id {number}" if font_path(name) is None else name for name, number in pairs]


def check_letters(names: Sequence[str], ids: Sequence[int]) -> str | None:
    """A sentence when names of classes cannot be drawn on this machine, else None."""
    missing = [(n, i) for n, i in zip(names, ids, strict=True) if font_path(n) is None]
    if not missing:
        return None
    shown = ", ".join(f"id {number} for {name}" for name, number in missing[:3])
    return (
        f"no font here has the letters of {len(missing)} of {len(names)} class names; pictures "
        f"show {shown}{', ...' if len(missing) > 3 else ''}. Noto Sans CJK or the like helps."
    )


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
