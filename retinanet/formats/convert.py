"""From one format to another: read everything, say what is lost, write a new folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from retinanet.formats import coco, table, voc, yolo
from retinanet.formats.annotations import (
    Annotations,
    Box,
    Category,
    Faults,
    Notes,
    Picture,
    add_notes,
    name_problem,
)
from retinanet.formats.images import Folder, Placing, place
from retinanet.formats.splits import SPLIT_NAMES, split_name
from retinanet.formats.texts import numbered

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
        first = table.first_image(path, self.columns) if is_csv else _first_name(path)
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
    for text in (path.stem, path.resolve().parent.name):
        name = split_name(text)
        if name != text or name in SPLIT_NAMES:
            return name
    return path.name.partition(".")[0].strip("_") or "all"


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


def prepare(found: Annotations, target: str, *, keep_crowd: bool = False) -> Notes:
    """Take out what a format cannot hold, and refuse names that it cannot.

    Args:
        found: changed in place.
        target: one of ``FORMATS``.
        keep_crowd: YOLO gets crowd regions as objects.

    Returns:
        What was taken out.

    Raises:
        AnnotationError: names.
    """
    _check_names(found, target)
    if target == "coco":
        return {}
    notes = _take_out(found, "box without width or height, left out", _is_flat)
    if target == "yolo":
        if not keep_crowd:
            what = "crowd region, left out: YOLO has none (--crowd object writes them as objects)"
            notes |= _take_out(found, what, lambda box: box.crowd)
        notes |= _not_in_yolo(found)
    return notes


def _check_names(found: Annotations, target: str) -> None:
    """Refuse image names that a format cannot hold.

    Raises:
        AnnotationError: all of them.
    """
    faults = Faults()
    for picture in found.pictures():
        problem = name_problem(picture.name)
        if problem:
            faults.add(ascii(picture.name), f"{problem}; rename the file.")
    # One file for each image, of the same name but for the suffix.
    if target == "voc":
        _check_stems(found.pictures(), faults)
    if target == "yolo":
        for split in found.splits:
            _check_stems(split.pictures, faults)
    faults.stop()


def _is_flat(box: Box) -> bool:
    return min(box.xywh[2:]) <= 0


def _take_out(found: Annotations, what: str, is_lost: Callable[[Box], bool]) -> Notes:
    """Remove some boxes, and say how many."""
    number = sum(map(is_lost, found.boxes()))
    for picture in found.pictures() if number else ():
        picture.boxes = [box for box in picture.boxes if not is_lost(box)]
    return {what: number} if number else {}


def _not_in_yolo(found: Annotations) -> Notes:
    """What YOLO's rows do not hold."""
    counted = {
        "crowd region, written as an object": lambda box: box.crowd,
        "area other than width times height, not kept": lambda box: (
            box.area is not None and box.area != box.xywh[2] * box.xywh[3]
        ),
        "mark as difficult, not kept": lambda box: box.difficult,
    }
    numbers = {what: sum(map(holds, found.boxes())) for what, holds in counted.items()}
    notes = {what: number for what, number in numbers.items() if number}
    known = any(picture.id is not None for picture in found.pictures())
    return notes | ({"image ids are not kept": 0} if known else {})


def _check_stems(pictures: Iterable[Picture], faults: Faults) -> None:
    """Refuse two images that would have one annotation file."""
    seen: dict[str, Picture] = {}
    for picture in pictures:
        stem = str(PurePosixPath(picture.name).with_suffix(""))
        before = seen.setdefault(stem, picture)
        if before is not picture:
            faults.add(
                picture.name,
                f"would share its annotation file with {before.name}; rename one, or convert each "
                f"split into its own folder.",
            )


def write(
    found: Annotations,
    target: str,
    output: Path,
    *,
    images: Placing,
    corners: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items,
) -> Notes:
    """Write a folder, whole or not at all.

    Args:
        found: after :func:`prepare`.
        target: one of ``FORMATS``.
        output: the folder to make.
        images: what becomes of the image files.
        corners: of voc and csv; None: what is usual.
        overwrite: move a folder that is there aside.
        progress: wraps what takes long.

    Returns:
        What the format does not hold.

    Raises:
        OSError: it cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if target == "coco":
            notes = coco.write_coco(found, partial)
        elif target == "csv":
            notes = table.write_table(found, partial, corners=corners or "edges")
        elif target == "voc":
            notes = voc.write_voc(found, partial, corners=corners or "pixels", progress=progress)
        else:
            notes = yolo.write_yolo(found, partial, progress=progress)
        if images in ("link", "copy"):
            _place_all(found, target, partial, images, progress)
        if overwrite and output.exists() and any(output.iterdir()):
            aside = _aside(output)
            output.rename(aside)
            notes[f"the folder that was there is now {aside}"] = 0
        elif output.is_dir():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def _place_all(
    found: Annotations,
    target: str,
    output: Path,
    how: Placing,
    progress: Callable[[Sequence, str], Iterable],
) -> None:
    for split in found.splits:
        folder = output / image_place(target, split.name)
        for picture in progress(split.pictures, f"images of {split.name}"):
            place(split.folder.root / picture.name, folder / picture.name, how)


def image_place(target: str, split: str) -> str:
    """Where a format keeps the images of a split, below its folder."""
    return "JPEGImages" if target == "voc" else f"images/{split}"


def _aside(output: Path) -> Path:
    """A name beside it that is free."""
    numbers = (output.with_name(f"{output.name}.old{number}") for number in range(1, 10**6))
    return next(path for path in numbers if not path.exists())
