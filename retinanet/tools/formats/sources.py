"""Sources on the command line, of any format, as one data set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from retinanet.tools.formats import coco, table, voc, yolo
from retinanet.tools.formats.annotations import Annotations, Category, Notes, add_notes
from retinanet.tools.formats.columns import first_image
from retinanet.tools.formats.images import Folder, Placing
from retinanet.tools.formats.splits import SPLIT_NAMES, split_name
from retinanet.tools.formats.texts import numbered

FORMATS = ("coco", "voc", "yolo", "csv")
# A file name near the beginning of a COCO file.
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(slots=True, kw_only=True)
class Reader:
    """How sources are read; the options of the command line."""

    format: str
    image_folders: Sequence[Path] = ()  # none, one for all sources, or one for each
    images: Placing = "leave"
    corners: str | None = None  # of voc and csv; None: what is usual
    classes: Path | None = None
    columns: Sequence[str] | None = None  # of csv
    polygons: bool = False  # of yolo
    base_names: bool = False  # of coco
    drop_unused: bool = False  # of coco
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items

    def read(self, sources: Sequence[str]) -> Annotations:
        """All sources as one data set.

        Args:
            sources: paths; ``NAME=PATH`` names the split of a file.

        Raises:
            AnnotationError: everything that is wrong.
            FileNotFoundError: a source, or the folder of its images, is not there.
            ValueError: two sources give the same split, or the same class other ids.
        """
        if len(self.image_folders) not in (0, 1, len(sources)):
            raise ValueError(
                f"--image-folder must be given once, or once for each source, got "
                f"{len(self.image_folders)} for {len(sources)}."
            )
        named = [_named(source) for source in sources]
        used = None
        if self.drop_unused:
            used = set().union(*(coco.used_ids(path) for _, path in named))
        found = [
            self._read_one(name, path, self._folder_of(row), used)
            for row, (name, path) in enumerate(named)
        ]
        return merge(found)

    def _folder_of(self, row: int) -> Path | None:
        """The image folder that was given for a source."""
        if not self.image_folders:
            return None
        folder = self.image_folders[row if len(self.image_folders) > 1 else 0]
        if not folder.is_dir() and self.images != "ignore":
            raise FileNotFoundError(f"there is no image folder {folder}.")
        return folder

    def _read_one(
        self, name: str | None, path: Path, given: Path | None, used: set[Any] | None
    ) -> Annotations:
        if self.format in ("coco", "csv"):
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "does not exist"
                raise FileNotFoundError(f"{path} {what}; --from {self.format} takes files.")
            folder = self._find_folder(path, given)
            part = name or file_split(path)
            if self.format == "coco":
                return coco.read_coco_file(
                    path, part, folder, base_names=self.base_names, used=used
                )
            return table.read_table(
                path,
                part,
                folder,
                corners=self.corners or "edges",
                classes=self.classes,
                columns=self.columns,
            )
        if self.format == "voc":
            if not path.is_dir():
                raise FileNotFoundError(f"there is no folder {path}; --from voc takes folders.")
            found = voc.read_voc(
                path,
                image_folder=given,
                look=self.images != "ignore",
                corners=self.corners,
                classes=self.classes,
                progress=self.progress,
            )
        else:
            found = yolo.read_yolo(
                path, classes=self.classes, polygons=self.polygons, progress=self.progress
            )
        if name is not None and len(found.splits) == 1:
            found.splits[0].name = name
        return found

    def _find_folder(self, path: Path, given: Path | None) -> Folder:
        """Where the images of a file are: as told, else where its first image is found."""
        if self.images == "ignore":
            return Folder(given or path.parent, ignored=True)
        if given is not None:
            return Folder(given)
        is_csv = self.format == "csv"
        first = first_image(path, self.columns) if is_csv else _first_name(path)
        name = first.replace("\\", "/")
        name = PurePosixPath(name).name if self.base_names else name
        tried = guesses(path)
        for root in tried:
            if name and Folder(root).holds(name):
                return Folder(root)
        if not name:  # the reader says what is wrong with the file
            return Folder(path.parent)
        raise FileNotFoundError(
            f"no image {name} of {path} in {', '.join(map(str, tried))}; give the folder that "
            f"names start from with --image-folder."
        )


def _named(source: str) -> tuple[str | None, Path]:
    """Split and path of a source."""
    name, mark, path = source.partition("=")
    if mark and re.fullmatch(r"[\w-]+", name) and not Path(source).exists():
        return split_name(name), Path(path)
    return None, Path(source)


def file_split(path: Path) -> str:
    """The split that a file holds by its name, or by that of its folder."""
    name = split_name(path.stem)
    if name != path.stem or name in SPLIT_NAMES:
        return name
    above = path.resolve().parent.name.lower()
    return split_name(above) if above in SPLIT_NAMES else path.name.partition(".")[0].strip("_")


def guesses(path: Path) -> list[Path]:
    """Folders in which tools keep the images of an annotation file, the likeliest first."""
    here, above = path.parent, path.parent.parent
    plain = path.stem.removeprefix("instances_")
    tried = [here, here / "images", above / "images"]
    for name in dict.fromkeys([plain, file_split(path), "valid"]):
        tried += [above / "images" / name, above / name, here / name, here / "images" / name]
    return list(dict.fromkeys([*tried, above]))


def _first_name(path: Path) -> str:
    """A file name of a COCO file, without reading all of it as JSON."""
    found = FILE_NAME.search(path.read_bytes())
    try:
        return json.loads(found[1].decode("utf-8")) if found else ""
    except ValueError:
        return ""


def merge(parts: Sequence[Annotations]) -> Annotations:
    """Several sources as one data set.

    Raises:
        ValueError: two splits of one name, or one class with two ids.
    """
    splits = [split for part in parts for split in part.splits]
    names = [split.name for split in splits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two sources give the split {name}; name them as in train=a.json val=b.json."
            )
    notes: Notes = {}
    for part in parts:
        add_notes(notes, part.notes)
    if all(part.invented for part in parts):
        known = numbered({category.name for part in parts for category in part.categories})
        return Annotations(splits, known, notes, invented=True)
    ids: dict[str, int] = {}
    for category in (category for part in parts for category in part.categories):
        if ids.setdefault(category.name, category.id) != category.id:
            raise ValueError(
                f"the class {category.name!a} has id {ids[category.name]} in one source and "
                f"{category.id} in another; correct one list of classes."
            )
    if len(set(ids.values())) < len(ids):
        twice = next(i for i in ids.values() if list(ids.values()).count(i) > 1)
        same = [name for name, number in ids.items() if number == twice]
        raise ValueError(f"the classes {same} have the same id {twice}; correct one list.")
    known = sorted((Category(i, name) for name, i in ids.items()), key=lambda c: c.id)
    return Annotations(splits, known, notes)
