"""The image files that annotations speak of: found, measured, linked or copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from retinanet.data.images import read_header, read_image
from retinanet.tools.image_files import suffixes

# leave: they must be there. link, copy: into the new folder. ignore: not even looked for.
Placing = Literal["leave", "link", "copy", "ignore"]


class Folder:
    """A folder of images, each of its folders listed once.

    Args:
        root: that names start from.
        ignored: nothing in it is looked for.
    """

    def __init__(self, root: Path, *, ignored: bool = False) -> None:
        self.root = root
        self.ignored = ignored
        self._listed: dict[Path, set[str]] = {}

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        path = self.root / name
        if path.parent not in self._listed:
            try:
                self._listed[path.parent] = set(os.listdir(path.parent))  # noqa: PTH208 - names
            except (OSError, ValueError):
                self._listed[path.parent] = set()
        return path.name in self._listed[path.parent]

    def first(self, names: Iterable[str]) -> str | None:
        """The first of some names that is there."""
        return next((name for name in names if self.holds(name)), None)

    def of_stem(self, stem: str) -> list[str]:
        """Images that have this path but for the suffix."""
        path = PurePosixPath(stem)
        self.holds(stem)  # lists the folder
        return sorted(
            str(path.parent / name)
            for name in self._listed[(self.root / stem).parent]
            if name.lower().endswith(suffixes()) and name[: name.rindex(".")] == path.name
        )

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of an image as it is displayed, after its EXIF orientation.

        Raises:
            FileNotFoundError: no such file.
            BadImage: the file is no image.
        """
        path = self.root / name
        header = read_header(path)
        if header.certain:
            return header.width, header.height
        height, width = read_image(path).shape[1:]
        return width, height


def walk(folder: Path, ends: tuple[str, ...]) -> Iterator[str]:
    """Files below a folder with some suffixes, ``ends``, as paths with "/" below it, in order.

    Links to folders are followed, but not in circles.
    """
    seen = set()
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        below = PurePosixPath(Path(where).relative_to(folder).as_posix())
        found += [str(below / name) for name in names if name.lower().endswith(ends)]
    yield from sorted(found)


def place(source: Path, target: Path, how: Placing) -> None:
    """Link or copy one image; the source is never changed.

    Raises:
        OSError: it cannot be done; where links are not allowed, that copying is possible.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "copy":
        shutil.copyfile(source, target)
        return
    try:
        target.symlink_to(source.resolve())
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot make a link {target}: {error.strerror or error}; use --images copy."
        ) from error
