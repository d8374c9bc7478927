"""Fonts for names in any script: what this machine has, and an honest sign for what it lacks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from matplotlib import font_manager

# Comes with matplotlib; Latin, Greek, Cyrillic and more.
BASE = "DejaVu Sans"
# Families that may be installed, for scripts that it lacks; the first ones cover most.
OTHERS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Hiragino Sans",
    "Heiti SC",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "MS Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans",
)
# Stands for a letter that no font has.
LACKING = "\N{WHITE SQUARE}"


@functools.cache
def families() -> tuple[str, ...]:
    """The font families to draw with, in the order in which a letter is looked up."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return (BASE, *(name for name in OTHERS if name in installed))


@functools.cache
def _letters() -> frozenset[int]:
    """Code points that at least one of the families has."""
    paths = [font_manager.findfont(name) for name in families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def drawable(name: str) -> bool:
    """Whether every letter of a text can be drawn."""
    return all(ord(letter) in _letters() for letter in name)


def drawable_names(names: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Names as they can be drawn.

    Args:
        names: of the classes.
        ids: of their categories. A name with letters that no font has shows a square for each,
            and its id, by which it is found in the annotation file.

    Returns:
        As many names.
    """
    return [
        name if drawable(name) else f"id {number}: {_squared(name)}"
        for name, number in zip(names, ids, strict=True)
    ]


def _squared(name: str) -> str:
    """A name with squares for the letters that no font has; several in a row are one."""
    letters = [letter if ord(letter) in _letters() else LACKING for letter in name]
    kept = [
        letter
        for before, letter in zip(["", *letters], letters, strict=False)
        if not before == letter == LACKING
    ]
    return "".join(kept)
