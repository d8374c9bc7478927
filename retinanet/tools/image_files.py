"""Images as people name them: files, folders, patterns and lists."""

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

from retinanet.checks import expand_home

# Formats of photos and drawings that :func:`retinanet.data.images.read_image` takes. Pillow opens
# others too, such as icons and films: files of those are read where they are named one by one.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000"),
    *("TIFF", "BMP", "DIB", "GIF", "PPM", "TGA"),
)
# What makes a name a pattern, as in a shell.
MAGIC = re.compile(r"[*?[]")
# Suffixes of other files that are named where images were looked for.
SHOWN_SUFFIXES = 4

Skip = Callable[[Path], bool]


@dataclass(slots=True)
class ImageFiles:
    """The images that arguments of a command line name."""

    paths: list[Path]  # as named, in the natural order of their absolute names, each file once
    root: Path  # absolute; all of them are below it
    left_out: Counter[str]  # suffix -> files in the folders that are no images

    @property
    def names(self) -> list[str]:
        """Each path below ``root``, with ``/``, as annotation files name images."""
        return [Path(os.path.relpath(path, self.root)).as_posix() for path in self.paths]


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Ends of file names, in small letters, by which images are known in folders."""
    return tuple(sorted(s for s, kind in Image.registered_extensions().items() if kind in FORMATS))


def find_images(arguments: Sequence[str], skip: Skip = lambda _: False) -> ImageFiles:
    """The images that arguments of a command line name.

    A file is taken whatever its suffix. Folders are searched with all folders below them, links to
    folders followed; hidden files and folders are left out, and so are files whose suffix is not
    that of an image. A pattern such as ``"day*/**/*.jpg"`` stands for what it matches, ``@FILE``
    for the lines of a text file.

    Args:
        arguments: at least one.
        skip: tells of a folder, below those that are named, that it is not searched.

    Raises:
        FileNotFoundError: one of them names nothing.
        ValueError: one of them names no image.
    """
    images: dict[str, Path] = {}
    roots: list[Path] = []
    left_out: Counter[str] = Counter()
    for argument, origin in _lines(arguments):
        argument = expand_home(argument)  # a shell leaves patterns in quotes as they are
        path, magic = Path(argument), MAGIC.search(argument)
        if os.path.lexists(path) and not path.is_dir():
            base, files, kept = path.parent, [path], [path]
        else:
            if path.is_dir():
                what, base, files = "folder", path, list(walk(path, skip))
            elif magic:
                what, base = "pattern", Path(argument[: magic.start()] + "x").parent
                files = list(_match(argument, base, skip))
            else:
                if re.match(r"\w+://", argument):
                    fix = "an address is not read: download the image"
                elif argument.isdecimal():
                    fix = "cameras are not read: write their pictures as files"
                else:
                    fix = "a pattern has * or ?, in quotes"
                raise FileNotFoundError(f"no image or folder {argument}{origin}; {fix}.")
            kept = [file for file in files if file.suffix.lower() in suffixes()]
        others = Counter(file.suffix.lower() for file in files)
        others -= Counter(file.suffix.lower() for file in kept)
        if not kept:
            has = f"; it has {describe_suffixes(others)}" if others else ""
            raise ValueError(
                f"no image in the {what} {argument}{origin}{has}. Images end in "
                f"{' '.join(suffixes())}."
            )
        roots.append(_absolute(base))
        left_out += others
        for file in kept:
            images.setdefault(os.path.realpath(file), file)
    paths = sorted(images.values(), key=lambda path: natural_key(_absolute(path)))
    return ImageFiles(paths, Path(os.path.commonpath(roots)), left_out)


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorts ``2.jpg`` before ``10.jpg``, and small and capital letters together."""
    numbers = tuple(
        tuple((int(x), "") if x.isdecimal() else (-1, x) for x in re.split(r"(\d+)", p.casefold()))
        for p in path.parts
    )
    return numbers, path.parts


def describe_suffixes(counts: Counter[str]) -> str:
    """``12 .heic, 3 .txt``: suffixes and how many files have them, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{count} {suffix or 'without suffix'}" for suffix, count in ranked[:SHOWN_SUFFIXES]]
    return ", ".join(texts) + (", ..." if len(ranked) > SHOWN_SUFFIXES else "")


def _lines(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The arguments, lists replaced by their lines, and where each line stands."""
    for argument in arguments:
        if not argument.startswith("@") or os.path.lexists(argument):
            yield argument, ""
            continue
        file = Path(argument[1:])
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}; @FILE is a text file with an image per line.")
        # Names that are not UTF-8 go through, as they do on a command line.
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = [(line.strip(), n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not lines:
            raise ValueError(f"{file} is empty; @FILE is a text file with an image per line.")
        yield from ((line, f" (line {number} of {file})") for line, number in lines)


def _match(pattern: str, base: Path, skip: Skip) -> Iterator[Path]:
    """Files that a pattern stands for; folders that it matches are searched."""
    for match in map(Path, glob.glob(pattern, recursive=True)):  # noqa: PTH207 - no hidden files
        below = [match, *match.parents][: len(match.parts) - len(base.parts)]
        if not any(map(skip, below)):
            yield from walk(match, skip) if match.is_dir() else [match]


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
