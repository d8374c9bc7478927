"""Fonts for names in any script: what this machine has, and what is shown where it has none."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from matplotlib import font_manager

# Comes with matplotlib; Latin, Greek, Cyrillic and more.
BASE = "DejaVu Sans"
# Families that may be installed, for scripts that it lacks; the first ones cover most.
OTHERS = (
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
    return (BASE, *(name for name in OTHERS if name in installed))


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
    """Names as they can be drawn.

    Args:
        names: of the classes.
        ids: of their categories, by which a name with letters that no font has is shown.

    Returns:
        As many names.
    """
    pairs = zip(names, ids, strict=True)
    return [f"id {number}" if font_path(name) is None else name for name, number in pairs]


def check_letters(names: Sequence[str], ids: Sequence[int]) -> str | None:
    """A sentence when names of classes cannot be drawn on this machine, else None.

    Args:
        names: of the classes.
        ids: their category ids.
    """
    missing = [(n, i) for n, i in zip(names, ids, strict=True) if font_path(n) is None]
    if not missing:
        return None
    shown = ", ".join(f"id {number} for {name}" for name, number in missing[:3])
    return (
        f"no font here has the letters of {len(missing)} of {len(names)} class names; pictures "
        f"show {shown}{', ...' if len(missing) > 3 else ''}. Noto Sans CJK or the like helps."
    )
