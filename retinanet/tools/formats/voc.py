"""PASCAL VOC: one XML file for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from retinanet.data.records import shown
from retinanet.terminal import count
from retinanet.tools.formats.annotations import (
    Annotations,
    Box,
    Faults,
    Notes,
    Picture,
    Split,
    add_notes,
    leaves_folder,
)
from retinanet.tools.formats.decimals import CORNERS, SIDES, corners_of_box
from retinanet.tools.formats.images import Folder, walk
from retinanet.tools.formats.splits import SPLIT_NAMES, split_name
from retinanet.tools.formats.texts import (
    CLASSES_FILE,
    classes_text,
    find_classes,
    numbered,
    read_lines,
)
from retinanet.tools.formats.voc_file import MARK, VocReading, read_file


def read_voc(
    source: Path,
    *,
    image_folder: Path | None = None,
    look: bool = True,
    corners: str | None = None,
    classes: Path | None = None,
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items,
) -> Annotations:
    """A folder of XML files.

    Args:
        source: with ``Annotations/``, ``JPEGImages/`` and perhaps ``ImageSets/Main/*.txt``; or
            with the folders ``train``, ``valid`` or ``val``, and ``test``, XML files beside
            images; or with XML files beside images.
        image_folder: where images are, if elsewhere.
        look: look for the images; otherwise XML must say all.
        corners: ``"pixels"`` or ``"edges"``; None: what the files say, else pixels.
        classes: list of classes; None: ``classes.csv`` in the folder, else all that occur.
        progress: wraps what takes long.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: no such folder, or no XML in it.
    """
    faults = Faults()
    declared = find_classes(classes, source, faults)
    faults.stop()
    allowed = {category.name for category in declared} if declared else None
    names: set[str] = set()
    splits: list[Split] = []
    notes: Notes = {}
    for part, files, images in _parts(source):
        folder = Folder(image_folder or images, ignored=not look)
        reading = VocReading(folder, corners, faults, allowed)
        found = {
            name: picture
            for name in progress(list(walk(files, (".xml",))), f"XML of {part}")
            if (picture := read_file(files, name, reading)) is not None
        }
        _check_zeros(reading)
        _check_repeated(files, found, faults)
        splits += _splits(source, part, files, found, reading)
        names |= reading.names
        add_notes(notes, _notes(reading))
    faults.stop()
    known = declared or numbered(names)
    return Annotations(splits, known, notes, invented=declared is None)


def _parts(source: Path) -> list[tuple[str, Path, Path]]:
    """Name, folder of XML files and folder of images of each part."""
    if (source / "Annotations").is_dir():
        beside = [source / name for name in ("JPEGImages", "images")]
        images = next((folder for folder in beside if folder.is_dir()), source)
        return [(source.resolve().name, source / "Annotations", images)]
    parts = [
        (split_name(name), source / name, source / name)
        for name in SPLIT_NAMES
        if next(walk(source / name, (".xml",)), None) is not None
    ]
    if not parts and next(walk(source, (".xml",)), None) is not None:
        parts = [(split_name(source.resolve().name), source, source)]
    if not parts:
        raise FileNotFoundError(
            f"no XML files in {source}; expected {source}/Annotations/*.xml with "
            f"{source}/JPEGImages, or train/ and valid/ with XML files beside images."
        )
    return parts


def _check_zeros(reading: VocReading) -> None:
    """Refuse to shift files that count from 0: PASCAL VOC's first pixel is 1."""
    if reading.zeros:
        reading.faults.add(
            reading.zeros[0],
            f"{count(len(reading.zeros), 'box')} begin at 0, but pixels are counted from 1 in "
            f"PASCAL VOC. CVAT, Label Studio, VoTT and LabelImg write edges counted from 0: "
            f"add --corners edges.",
        )


def _check_repeated(annotations: Path, found: dict[str, Picture], faults: Faults) -> None:
    """Refuse two files for one image."""
    seen: dict[str, str] = {}
    for name, picture in found.items():
        before = seen.setdefault(picture.name, name)
        if before != name:
            faults.add(
                annotations / name, f"is of the image {picture.name}, as {annotations / before} is."
            )


def _splits(
    source: Path, part: str, annotations: Path, found: dict[str, Picture], reading: VocReading
) -> list[Split]:
    """The lists of ``ImageSets/Main``; without one, all files."""
    lists: dict[str, list[str]] = {}
    for path in sorted((source / "ImageSets" / "Main").glob("*.txt")):
        names = _read_list(path, annotations, reading.faults)
        if names is not None:
            lists[split_name(path.stem)] = names
    if {"train", "val"} <= lists.keys():
        lists.pop("trainval", None)
    if not lists:
        return [Split(part, reading.folder, list(found.values()))]
    used = {name for names in lists.values() for name in names}
    for _ in range(len(found.keys() - used)):
        reading.tally("XML file in no list of ImageSets/Main, left out")
    return [
        Split(name, reading.folder, [found[entry] for entry in entries if entry in found])
        for name, entries in lists.items()
    ]


def _read_list(path: Path, annotations: Path, faults: Faults) -> list[str] | None:
    """XML files that a list names; None for a list of one class, which has marks."""
    entries = []
    for number, line in read_lines(path, faults):
        exact, name = f"{line}.xml", f"{line.strip()}.xml"
        name = exact if not leaves_folder(exact) and (annotations / exact).is_file() else name
        if leaves_folder(name):
            faults.add(f"{path}:{number}", f"must name a file of {annotations}, got {shown(line)}.")
            continue
        if not (annotations / name).is_file():
            words = line.rsplit(maxsplit=1)
            if len(words) == 2 and words[1] in ("-1", "0", "1"):
                return None
            faults.add(f"{path}:{number}", f"there is no {annotations / name}.")
            continue
        entries.append(name)
    for name in sorted({name for name in entries if entries.count(name) > 1}):
        faults.add(path, f"{name.removesuffix('.xml')} stands twice.")
    return entries


def _notes(reading: VocReading) -> Notes:
    notes = dict(reading.counted)
    if "pixels, told" in reading.conventions and reading.corners is None:
        what = (
            "corners are read as pixels counted from 1, as in PASCAL VOC; files of CVAT, Label "
            "Studio, VoTT and LabelImg need --corners edges"
        )
        notes[what] = 0
    return notes


def write_voc(
    found: Annotations,
    output: Path,
    *,
    corners: str = "pixels",
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items,
) -> Notes:
    """Write ``Annotations/``, ``ImageSets/Main/`` and ``classes.csv``.

    Args:
        found: whose image names, without suffix, are different.
        output: the new folder.
        corners: ``"pixels"`` or ``"edges"``, said in each file.
        progress: wraps what takes long.

    Returns:
        What the format does not hold.
    """
    for split in found.splits:
        stems = []
        for picture in progress(split.pictures, f"XML of {split.name}"):
            stem = str(PurePosixPath(picture.name).with_suffix(""))
            stems.append(stem)
            path = output / "Annotations" / f"{stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_xml_of(picture, corners), encoding="utf-8", newline="\n")
        listed = output / "ImageSets" / "Main" / f"{split.name}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{stem}\n" for stem in stems)
        listed.write_text(text, encoding="utf-8", newline="\n")
    text = classes_text(found.categories)
    (output / CLASSES_FILE).write_text(text, encoding="utf-8", newline="\n")
    return {}


def _xml_of(picture: Picture, corners: str) -> str:
    path = PurePosixPath(picture.name)
    number = "" if picture.id is None else f"\t<image_id>{picture.id}</image_id>\n"
    return (
        "<annotation>\n"
        f"\t<folder>{escape('' if path.parent == PurePosixPath() else str(path.parent))}</folder>\n"
        f"\t<filename>{escape(path.name)}</filename>\n"
        f"{number}"
        f"\t<source>\n\t\t<database>Unknown</database>\n"
        f"\t\t<annotation>{MARK}{corners}</annotation>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{picture.width}</width>\n\t\t<height>{picture.height}</height>\n"
        f"\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
        + "".join(_xml_of_box(box, CORNERS[corners]) for box in picture.boxes)
        + "</annotation>\n"
    )


def _xml_of_box(box: Box, first: int) -> str:
    sides = zip(SIDES, corners_of_box(box.xywh, first), strict=True)
    # Crowds are difficult: VOC's evaluation, too, wants neither found nor punishes it.
    more = "\t\t<iscrowd>1</iscrowd>\n" if box.crowd else ""
    if box.area is not None and box.area != box.xywh[2] * box.xywh[3]:
        more += f"\t\t<area>{box.area!r}</area>\n"
    return (
        f"\t<object>\n\t\t<name>{escape(box.name)}</name>\n\t\t<pose>Unspecified</pose>\n"
        f"\t\t<truncated>0</truncated>\n\t\t<difficult>{int(box.difficult or box.crowd)}"
        f"</difficult>\n{more}\t\t<bndbox>\n"
        + "".join(f"\t\t\t<{side}>{text}</{side}>\n" for side, text in sides)
        + "\t\t</bndbox>\n\t</object>\n"
    )
