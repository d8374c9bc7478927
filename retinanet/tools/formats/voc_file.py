"""One XML file of PASCAL VOC."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from retinanet.data.images import BadImage
from retinanet.data.records import shown
from retinanet.tools.formats.annotations import (
    Box,
    Faults,
    Notes,
    Picture,
    leaves_folder,
    name_problem,
)
from retinanet.tools.formats.decimals import CORNERS, SIDES, Xywh, box_of_corners, read_number
from retinanet.tools.formats.images import Folder
from retinanet.tools.formats.texts import ID
from retinanet.tools.formats.xml import BadXml, Element, read_xml
from retinanet.tools.image_files import suffixes

# Files written here say in <source><annotation> what their corners are.
MARK = "corners are "
# Sides of images are below it: int32.
SIZE_LIMIT = 2**31


@dataclass(slots=True)
class VocReading:
    """What is known while the files of one folder are read."""

    folder: Folder
    corners: str | None  # what the user says
    faults: Faults
    allowed: set[str] | None  # class names
    names: set[str] = field(default_factory=set)  # met so far
    counted: Notes = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)  # places of boxes that begin at 0
    conventions: set[str] = field(default_factory=set)

    def tally(self, what: str) -> None:
        """Count something once more."""
        self.counted[what] = self.counted.get(what, 0) + 1


def read_file(annotations: Path, name: str, reading: VocReading) -> Picture | None:
    """One image, or None after a fault."""
    path = annotations / name
    before = reading.faults.count
    try:
        root = read_xml(path)
    except BadXml as error:
        reading.faults.add(f"{path}:{error.line}", str(error))
        return None
    except OSError as error:
        reading.faults.add(path, f"cannot be read: {error.strerror or error}.")
        return None
    if root.tag != "annotation":
        hint = " That is CVAT's own format: export as Pascal VOC or COCO." * (
            root.tag == "annotations"
        )
        reading.faults.add(
            f"{path}:{root.line}", f"must begin with <annotation>, got <{root.tag}>.{hint}"
        )
        return None
    image = _find_image(path, name, root, reading)
    if image is None:
        return None
    size = _read_size(path, root, image, reading)
    first = _convention(path, root, reading)
    boxes = [_read_object(path, item, first, reading) for item in root.all("object")]
    if size is None or reading.faults.count > before:
        return None
    number = root.text_of("image_id").strip()
    known = int(number) if ID.fullmatch(number) else None
    return Picture(image, *size, [box for box in boxes if box is not None], known)


def _find_image(path: Path, name: str, root: Element, reading: VocReading) -> str | None:
    """The image of an XML file, below the image folder."""
    element = root.first("filename")
    told = (element.text if element else "").replace("\\", "/")
    place = f"{path}:{(element or root).line}"
    if told and (leaves_folder(told) or name_problem(told)):
        reading.faults.add(
            place,
            f"filename must be a path below the image folder, neither absolute nor with '..', got "
            f"{shown(told)}.",
        )
        return None
    beside, stem = PurePosixPath(name).parent, PurePosixPath(name).with_suffix("")
    nearest = [str(beside / told), told, str(beside / PurePosixPath(told).name)] if told else []
    if reading.folder.ignored:
        if not told:
            reading.faults.add(place, "has no filename; add it.")
        return nearest[0] if told else None
    found = reading.folder.first(nearest)
    if found is not None:
        return found
    others = reading.folder.of_stem(str(stem))
    if told and not others and PurePosixPath(told).suffix.lower() not in suffixes():
        others = reading.folder.of_stem(str(beside / told))
    if len(others) == 1:
        reading.tally("image found by the name of the XML file, not by its filename")
        return others[0]
    which = f"; there are {', '.join(others)}" if others else ""
    reading.faults.add(
        place,
        f"no image {reading.folder.root / (nearest[0] if told else stem)}{which}. Give the folder "
        f"of the images with --image-folder.",
    )
    return None


def _read_size(
    path: Path, root: Element, image: str, reading: VocReading
) -> tuple[int, int] | None:
    """Width and height as the file says, else as the image is."""
    size = root.first("size")
    line = (size or root).line
    sides = []
    for side in ("width", "height"):
        number = read_number(root.text_of("size", side))
        if number is None or number != int(number) or not 0 < number < SIZE_LIMIT:
            break
        sides.append(int(number))
    if len(sides) == 2:
        return sides[0], sides[1]
    told = {side: root.text_of("size", side) for side in ("width", "height")}
    if any(text.strip() not in ("", "0") for text in told.values()):
        reading.faults.add(
            f"{path}:{line}", f"size must be whole numbers of pixels, got {shown(told)}."
        )
        return None
    if reading.folder.ignored:
        reading.faults.add(
            f"{path}:{line}",
            "has no size with width and height; leave out --images ignore, so that it is read "
            "from the image.",
        )
        return None
    try:
        found = reading.folder.size(image)
    except (BadImage, OSError) as error:
        reading.faults.add(
            f"{path}:{line}", f"has no size, and the image does not tell it: {error}"
        )
        return None
    reading.tally("size missing in the XML file, read from the image")
    return found


def _convention(path: Path, root: Element, reading: VocReading) -> int:
    """What the corners of a file are: as it says, else as the user says, else pixels."""
    told = root.text_of("source", "annotation")
    said = told.removeprefix(MARK) if told.startswith(MARK) else None
    if said in CORNERS and reading.corners not in (None, said):
        reading.faults.add(
            path, f"says that its corners are {said}; leave out --corners {reading.corners}."
        )
    known = said if said in CORNERS else None
    used = known or reading.corners or "pixels"
    reading.conventions.add(f"{used}, {'as the files say' if known else 'told'}")
    if used == "pixels" and known is None:
        reading.zeros += [
            f"{path}:{item.line}"
            for item in root.all("object")
            if any(_zero(item.text_of("bndbox", side)) for side in ("xmin", "ymin"))
        ]
    return CORNERS[used]


def _zero(text: str) -> bool:
    number = read_number(text)
    return number is not None and number == 0


def _read_object(path: Path, item: Element, first: int, reading: VocReading) -> Box | None:
    """One box, or None after a fault."""
    name = item.text_of("name")
    problem = name_problem(name)
    if problem:
        line = (item.first("name") or item).line
        reading.faults.add(f"{path}:{line}", f"the class name {shown(name)} {problem}.")
        return None
    if reading.allowed is not None and name not in reading.allowed:
        line = (item.first("name") or item).line
        reading.faults.add(
            f"{path}:{line}", f"the class {shown(name)} is not in the list of classes; add it."
        )
        return None
    reading.names.add(name)
    box = _read_corners(path, item, first, reading)
    if box is None:
        return None
    for extra in ("part", "pose", "truncated", "occluded"):
        text = item.text_of(extra).strip()
        if item.first(extra) and text not in ("0", "Unspecified", ""):
            reading.tally(f"value of {extra}, not kept")
    crowd, difficult = (item.text_of(tag).strip() == "1" for tag in ("iscrowd", "difficult"))
    if difficult and not crowd:
        reading.tally("object marked as difficult, taken as any other")
    area = read_number(item.text_of("area"))
    return Box(name, box, crowd, None if area is None else float(area), difficult and not crowd)


def _read_corners(path: Path, item: Element, first: int, reading: VocReading) -> Xywh | None:
    """The box of an object."""
    place = item.first("bndbox")
    if place is None:
        rotated = " A rotated box (robndbox) is no box of edges." * bool(item.first("robndbox"))
        reading.faults.add(f"{path}:{item.line}", f"the object has no bndbox.{rotated}")
        return None
    numbers = []
    for side in SIDES:
        number = read_number(place.text_of(side))
        if number is None:
            told = place.first(side)
            got = f"got {shown(told.text)}" if told else "which is missing"
            line = (told or place).line
            reading.faults.add(f"{path}:{line}", f"{side} must be a finite number, {got}.")
            return None
        numbers.append(number)
    box = box_of_corners(tuple(numbers), first)
    if min(box[2:]) < 0:
        reading.faults.add(
            f"{path}:{place.line}",
            f"xmax and ymax must not be below xmin and ymin, got "
            f"{', '.join(str(number) for number in numbers)}.",
        )
        return None
    if min(box[2:]) == 0:
        reading.tally("box without width or height, which training leaves out")
    return box
