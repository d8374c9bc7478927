"""Photos as people name them: files, folders, patterns and lists."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# Formats of photos and drawings that :func:`retinanet.data.images.read_image` takes. Pillow opens
# others too, such as icons and films: files of those are read where they are named one by one.
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "AVIF",
    "JPEG2000",
    "TIFF",
    "BMP",
    "DIB",
    "GIF",
    "PPM",
    "TGA",
)
# What makes a name a pattern, as in a shell.
MAGIC = re.compile(r"[*?[]")
# Kinds of other files that are named where photos were looked for.
SHOWN_KINDS = 4

Skip = Callable[[Path], bool]


@dataclass(slots=True)
class Photos:
    """What was found."""

    paths: list[Path]  # as named, in the natural order of their absolute names, each file once
    root: Path  # absolute; all of them are below it
    left_out: Counter[str]  # suffix -> files in the folders that are no photos

    @property
    def names(self) -> list[str]:
        """Each path below ``root``, with ``/``, as annotation files name images."""
        return [Path(os.path.relpath(path, self.root)).as_posix() for path in self.paths]


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Ends of file names, in small letters, by which photos are known in folders."""
    return tuple(sorted(s for s, kind in Image.registered_extensions().items() if kind in FORMATS))


def find_photos(arguments: Sequence[str], skip: Skip = lambda _: False) -> Photos:
    """The photos that arguments of a command line name.

    A file is taken whatever its suffix. Folders are searched with all folders below them, links to
    folders followed; hidden files and folders are left out, and so are files whose suffix is not
    that of a photo. A pattern such as ``"day*/**/*.jpg"`` stands for what it matches, ``@FILE``
    for the lines of a text file.

    Args:
        arguments: at least one.
        skip: tells of a folder, below those that are named, that it is not searched.

    Raises:
        FileNotFoundError: one of them names nothing.
        ValueError: one of them names no photo.
    """
    found: dict[str, Path] = {}
    roots: list[Path] = []
    left_out: Counter[str] = Counter()
    for argument, origin in _lines(arguments):
        paths, root, others = _resolve(argument, origin, skip)
        if not paths:
            raise ValueError(_nothing(argument, origin, others))
        roots.append(root)
        left_out += others
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    paths = sorted(found.values(), key=lambda path: natural_key(_absolute(path)))
    return Photos(paths, Path(os.path.commonpath(roots)), left_out)


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorts ``2.jpg`` before ``10.jpg``, and small and capital letters together."""
    numbers = tuple(
        tuple((int(x), "") if x.isdecimal() else (-1, x) for x in re.split(r"(\d+)", p.casefold()))
        for p in path.parts
    )
    return numbers, path.parts


def describe_kinds(counts: Counter[str]) -> str:
    """``12 .heic, 3 .txt``: suffixes and how many files have them, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count} {suffix or 'without suffix'}" for suffix, count in ranked[:SHOWN_KINDS]]
    return ", ".join(kinds) + (", ..." if len(ranked) > SHOWN_KINDS else "")


def _lines(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The arguments, lists replaced by their lines, and where each line stands."""
    for argument in arguments:
        if not argument.startswith("@") or os.path.lexists(argument):
            yield argument, ""
            continue
        file = Path(argument[1:])
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}; @FILE is a text file with a photo per line.")
        # Names that are not UTF-8 go through, as they do on a command line.
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = [(line.strip(), n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not lines:
            raise ValueError(f"{file} is empty; @FILE is a text file with a photo per line.")
        yield from ((line, f" (line {number} of {file})") for line, number in lines)


def _resolve(argument: str, origin: str, skip: Skip) -> tuple[list[Path], Path, Counter[str]]:
    """Photos of one argument, the absolute folder they are below, and suffixes left out."""
    path = Path(argument)
    if path.is_dir():
        return _search(path, skip, path)
    if os.path.lexists(path):
        return [path], _absolute(path.parent), Counter()
    magic = MAGIC.search(argument)
    if magic is None:
        raise FileNotFoundError(
            f"no photo or folder {argument}{origin}; a pattern has * or ?, in quotes."
        )
    return _match(argument, Path(argument[: magic.start()] + "x").parent, skip)


def _match(pattern: str, base: Path, skip: Skip) -> tuple[list[Path], Path, Counter[str]]:
    """What a pattern stands for; folders that it matches are searched."""
    paths: list[Path] = []
    left_out: Counter[str] = Counter()
    for match in map(Path, glob.glob(pattern, recursive=True)):  # noqa: PTH207 - no hidden files
        above = [match, *match.parents]
        if any(skip(folder) for folder in above[: len(match.parts) - len(base.parts)]):
            continue
        if match.is_dir():
            found, _, others = _search(match, skip, base)
            paths += found
            left_out += others
        elif match.suffix.lower() in suffixes():
            paths.append(match)
        else:
            left_out[match.suffix.lower()] += 1
    return paths, _absolute(base), left_out


def _search(top: Path, skip: Skip, root: Path) -> tuple[list[Path], Path, Counter[str]]:
    """Photos of a folder and those below it; ``root`` is handed through, absolute."""
    paths: list[Path] = []
    left_out: Counter[str] = Counter()
    for file in walk(top, skip):
        if file.suffix.lower() in suffixes():
            paths.append(file)
        else:
            left_out[file.suffix.lower()] += 1
    return paths, _absolute(root), left_out


def walk(top: Path, skip: Skip = lambda _: False) -> Iterator[Path]:
    """Files of a folder and of all below it, links to folders followed, without hidden ones.

    Args:
        top: the folder.
        skip: tells of a folder below it that it is not searched.

    Raises:
        OSError: a folder cannot be read; it must not look as if it were empty.
    """
    seen = {os.path.realpath(top)}

    def refuse(error: OSError) -> None:
        raise error

    def is_new(folder: Path) -> bool:
        """Whether it is to be searched: links may lead back to where they are."""
        real = os.path.realpath(folder)
        if folder.name.startswith(".") or real in seen or skip(folder):
            return False
        seen.add(real)
        return True

    for name, folders, files in os.walk(top, followlinks=True, onerror=refuse):
        here = Path(name)
        folders[:] = [folder for folder in sorted(folders) if is_new(here / folder)]
        yield from (here / file for file in files if not file.startswith("."))


def _absolute(path: Path) -> Path:
    """Without ``..``; links stay what they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _nothing(argument: str, origin: str, left_out: Counter[str]) -> str:
    """Why an argument that exists names no photo."""
    others = f"; it has {describe_kinds(left_out)}" if left_out else ""
    known = " ".join(suffixes())
    what = "folder" if Path(argument).is_dir() else "pattern"
    return f"no photo in the {what} {argument}{origin}{others}. Photos end in {known}."
