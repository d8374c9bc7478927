"""What each field of a COCO file must be, and a reader that names the records that are not so."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from retinanet.data.file_kinds import HEAD, STARTS, kind_of
from retinanet.data.issues import Issue, refusal

# Longer values are cut in messages, so that an error stays one line.
SHOWN_CHARACTERS = 60
# Coordinates beyond it have areas, or sums of these, that are not finite.
LARGEST = 1e100
# Areas that COCO's evaluator looks at, square pixels; it ignores objects outside.
MAX_AREA = 1e10


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file without its segmentations, and the file's SHA-256.

    Segmentations are nine tenths of COCO's files and nothing here needs them; each is
    dropped as soon as its record is read, so they never lie in memory together.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object in UTF-8.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"annotation file {path} {what}; check data.root and the data.*_annotations paths."
        )
    file_bytes = path.read_bytes()
    fingerprint, kind = hashlib.sha256(file_bytes).hexdigest(), kind_of(file_bytes[:HEAD])
    if kind:
        xml = re.search(rb"<(annotations?|dataset)[\s>]", file_bytes[:XML_HEAD])
        of_tool = f": {XML_TOOLS[xml[1]]}" if xml and kind == STARTS[b"<"] else ""
        raise ValueError(f"{path} is not JSON: {kind}{of_tool}.")
    try:
        text = file_bytes.decode("utf-8-sig")
        del file_bytes
        content = json.loads(text, object_pairs_hook=_without_segmentation)
    except UnicodeDecodeError as error:
        problem = f"is not text in UTF-8 ({error.reason}); save it as UTF-8."
        raise ValueError(f"{path} {problem}") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.pos and text[: error.pos].count("\n") == 1:
            what = "has one JSON object a line, as manifests of SageMaker Ground Truth and Labelbox"
            raise ValueError(f"{path} {what}; COCO's file is one object: export as COCO.") from None
        raise ValueError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; the "
            f"file may be cut short or of another format."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from None
    tool, fix = _tool_of(content)
    if tool:
        whose = f"in {tool}'s own format, not COCO's"
        if tool.startswith("COCO"):
            whose = f"a file of {tool}, without boxes"
        raise ValueError(f"{path} is {whose}; {fix}.")
    if not isinstance(content, dict):
        hint = " A list of detections is not an annotation file." if _has(content, "score") else ""
        raise ValueError(
            f"{path} must hold a JSON object with images, annotations and categories, got "
            f"{shown(content)}.{hint}"
        )
    return content, fingerprint


# Elements by which a tool's XML is known, so far from the beginning, and what to do.
XML_HEAD = 4096
XML_TOOLS = {
    b"annotation": "of Pascal VOC; `python -m scripts.convert_dataset --from voc --to coco` reads "
    "the folder",
    b"annotations": "of CVAT; export it as COCO there",
    b"dataset": "of dlib's imglab; write it as COCO",
}
# Keys by which a tool's own JSON is known, of the object or of the first one inside; tool; fix.
TOOLS = (
    ("shapes imagePath", "LabelMe", "`python -m scripts.convert_dataset --from labelme --to coco`"),
    ("filename regions", "VIA", "`python -m scripts.convert_dataset --from via --to coco`"),
    ("_via_img_metadata", "VIA", "`python -m scripts.convert_dataset --from via --to coco`"),
    ("metadata file attribute", "VIA 3", "export it as COCO there"),
    ("asset regions", "VoTT", "export it as Pascal VOC there"),
    ("assets tags", "VoTT", "export it as Pascal VOC there"),
    ("objects size", "Supervisely", "export it as COCO there"),
    ("data annotations", "Label Studio", "export it as COCO there"),
    ("data completions", "Label Studio", "export it as COCO there"),
    ("annotation_id lead_time", "Label Studio", "export it as COCO there"),
    ("items categories", "Datumaro", "export it as COCO there"),
    ("item annotations", "Darwin V7", "export it as COCO there"),
    ("image annotations", "CreateML", "export it as COCO there"),
    ("description tags objects", "Supervisely", "export it as COCO there"),
    ("data_row projects", "Labelbox", "export it as COCO there"),
    ("ID Label", "Labelbox", "export it as COCO there"),
    ("name labels", "BDD100K", "its own tools write COCO: python -m bdd100k.label.to_coco"),
    ("filename detection", "ODVG", "export it as COCO there"),
)


def _tool_of(content: Any) -> tuple[str, str]:
    """The annotation tool whose own format this is, and what to do; empty for any other."""
    others = ("annotations", "categories")
    if isinstance(content, dict) and any(_has(content, "images", other) for other in others):
        for key, kind in (("segments_info", "panoptic segments"), ("caption", "captions")):
            if _has(content.get("annotations"), key):
                return f"COCO's {kind}", "name the instances_*.json of the set"
        return "", ""
    inside = content[:1] if isinstance(content, list) else []
    inside = list(content.values())[:1] if isinstance(content, dict) else inside
    if isinstance(content, dict) and _has(content, "image", "annotations"):
        return "Segment Anything", "its masks have no classes"
    for keys, tool, fix in TOOLS:
        if any(_has(each, *keys.split()) for each in (content, *inside)):
            if fix.startswith("`"):
                fix += " reads it"
            return tool, fix
    return "", ""


def _has(content: Any, *keys: str) -> bool:
    """Whether an object, or the first of a list, has all of some keys."""
    first = content[0] if isinstance(content, list) and content else content
    return isinstance(first, dict) and first.keys() >= set(keys)


def _without_segmentation(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of the file. Of a key that stands twice JSON would drop the first value."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object; remove one")
    if record.pop("segmentation", None) and not record.get("bbox"):
        record["segmentation"] = True  # a box can be made of it
    return record


def shown(value: Any) -> str:
    """A value as it stands in a message: one line, cut when long."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def rotation(record: dict[str, Any]) -> float:
    """Degrees by which CVAT rotates a box about its center; 0 where it is upright."""
    attributes = record.get("attributes")
    degrees = attributes.get("rotation") if isinstance(attributes, dict) else None
    # After half a turn it is the same box.
    return degrees % 180 if type(degrees) in (int, float) and math.isfinite(degrees) else 0


def leaves_folder(name: str) -> bool:
    """Whether a file name is absolute or climbs, to POSIX or to Windows."""
    if name[:1] not in "/\\" and ".." not in name and ":" not in name:
        return False  # nearly all: paths are slow
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.anchor) or ".." in windows.parts


class Rule(NamedTuple):
    """What a field must be."""

    allowed: str
    admits: Callable[[Any], Any]  # whether a value is so; a missing one is None
    harmless: Any  # stands in for a refused value, so that reading can go on
    fix: str = "Correct it."


# Types are compared exactly: true and false are integers to isinstance.


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_area(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= MAX_AREA)


def _is_box(value: Any) -> bool:
    if type(value) is not list or len(value) != 4:
        return False
    for number in value:  # half the time of all()
        if type(number) not in (int, float) or not -LARGEST <= number <= LARGEST:
            return False
    return True


# Half of a pair of UTF-16 is no text. In a path Python has some for bytes that are not UTF-8.
HALF, CONTROL = re.compile("[\ud800-\udfff]"), re.compile(r"[\x00-\x1f\x7f]")
# A command as messages quote it; options may follow, and the closing quote.
CONVERTER = "`python -m scripts.convert_dataset --from coco --to coco"
SIZE_FIX = (
    f"Correct it: write the size of the image as it is displayed. {CONVERTER}` reads it from the "
    f"image."
)
ROOT_FIX = (
    f"Point data.*_images at the folder that the names start from; {CONVERTER} --base-names` takes "
    f"folders off the names."
)
BOX_FIX = "Correct the box or remove the record."

OUTLINE_FIX = f"{CONVERTER}` makes it from the polygon or mask."

# Numbers and texts tell records apart, so that they can be numbered anew; null does not.
INTEGER, ID_FIX = "an integer", "Give it the id that it should have, or remove the record."
ID = [
    Rule(INTEGER, lambda value: type(value) in (int, float, str), 0, ID_FIX),
    Rule(INTEGER, _is_int64, 0, f"{CONVERTER}` writes integers instead."),
]
NUMBER = Rule("a finite number", _is_finite, 1)
TEXT = Rule("a text that is not empty", lambda value: type(value) is str and value, "?")
WHOLE = Rule("a text of whole characters", lambda text: not HALF.search(text), "?")
BELOW = "a path below the image folder, neither absolute nor with '..'"
PRINTED = "a path without control characters"
NAME = [
    TEXT,
    Rule(BELOW, lambda name: not leaves_folder(name), "?", ROOT_FIX),
    Rule(PRINTED, lambda name: not CONTROL.search(name), "?", "Rename the file."),
]
PIXELS = "a whole number of pixels, at least 1"
SIDE = [
    NUMBER._replace(fix=SIZE_FIX),
    Rule(PIXELS, lambda side: 1 <= side < 2**31 and side == int(side), 1, SIZE_FIX),
]
BOX = Rule("four finite numbers [x, y, width, height] in pixels", _is_box, [0, 0, 1, 1], BOX_FIX)
CROWD = Rule("0 or 1", lambda value: value in (None, 0, 1), 0, "Correct it, or leave it out for 0.")
AREA_RANGE = "a finite number of pixels, from 0 to 1e10"
AREA = Rule(AREA_RANGE, _is_area, 0, "Correct it, or leave it out.")

RESULT_ID = Rule(INTEGER, _is_int64, 0, "Write it as the annotation file does.")

# List -> field -> its rules, each of which looks at what those before it admit.
RULES: dict[str, dict[str, list[Rule]]] = {
    "images": {"id": ID, "height": SIDE, "width": SIDE, "file_name": NAME},
    "categories": {"id": ID, "name": [TEXT, WHOLE]},
    "annotations": {
        "image_id": ID,
        "category_id": ID,
        "bbox": [BOX],
        "iscrowd": [CROWD],
        "area": [AREA],
    },
    # A file of results is such a list.
    "detections": {
        "image_id": [RESULT_ID],
        "category_id": [RESULT_ID],
        "bbox": [BOX],
        "score": [NUMBER],
    },
}
# Lists that must not be empty -> why, fix.
NOT_EMPTY = {
    "images": ("it lists no image at all", "List the images."),
    "categories": ("list every class", "List every class."),
}


class Records:
    """One list of objects of a COCO file, such as its annotations.

    What is wrong is kept in ``issues``, each refused by training; in its column a harmless value
    stands in, and the record is no longer :meth:`sound`.

    Args:
        path: the file, for messages.
        name: key of the list in the file.
        content: of the file.
    """

    def __init__(self, path: Path, name: str, content: dict[str, Any]) -> None:
        self.path = path
        self.name = name
        self.issues: list[Issue] = []
        self.refused: dict[str, set[int]] = defaultdict(set)  # field, or "unique" -> records
        listed = content.get(name)
        items = listed if isinstance(listed, list) else []
        self.rows = [row for row, item in enumerate(items) if type(item) is dict]  # in the file
        self.items = [items[row] for row in self.rows]
        self.complete = isinstance(listed, list) and len(items) == len(self.items)
        if not isinstance(listed, list):
            got = [f"got {shown(listed)}" if name in content else "which is missing"]
            error = f"{path} must have a list '{name}', {got[0]}; is this a COCO detection file?"
            rule, fix = "no such list", "Choose a COCO JSON file."
        elif not self.complete:
            others = [row for row, item in enumerate(items) if type(item) is not dict]
            got = [f"{name}[{row}]: got {shown(items[row])}" for row in others]
            where, value = got[0].split(": ", 1)
            error = f"{path}: {where} must be an object in braces, {value}."
            rule, fix = "must be objects", "Write each record in braces, or remove it."
        elif not items and name in NOT_EMPTY:
            reason, fix = NOT_EMPTY[name]
            got, rule = ["got []"], "must not be empty"
            error = f"{path}: {name} {rule}; {reason}."
        else:
            return
        places = [f"{path}: {what}" for what in got]
        self.issues.append(
            refusal(f"{name}: {rule}", places, ValueError(error), fix, count=len(got))
        )

    def __len__(self) -> int:
        return len(self.items)

    def sound(self) -> np.ndarray:
        """(N,) bool: records of which nothing was refused so far."""
        sound = np.ones(len(self), dtype=bool)
        sound[[index for indices in self.refused.values() for index in indices]] = False
        return sound

    def where(self, index: int) -> str:
        """The record as messages name it: ``annotations[17] (id 4711)``."""
        record = self.items[index]
        number = f" (id {shown(record['id'])})" if "id" in record else ""
        return f"{self.name}[{self.rows[index]}]{number}"

    def place(self, index: int, value: str = "") -> str:
        """A record and what is odd about it, as a list of issues shows it."""
        return f"{self.path}: {self.where(index)}" + (f": {value}" if value else "")

    def column(self, field: str) -> list[Any]:
        """The field of every record as the file has it, None where it is missing."""
        return [item.get(field) for item in self.items]

    def read(self, field: str) -> list[Any]:
        """The field of every record, checked by the rules of the field."""
        values = self.column(field)
        for rule in RULES[self.name][field]:
            bad = [index for index, value in enumerate(values) if not rule.admits(value)]
            self.refuse(bad, field, rule.allowed, rule.fix)
            for index in bad:
                values[index] = rule.harmless
        return values

    def refuse(
        self, indices: Iterable[int], field: str, allowed: str, fix: str, add: str = "Add it."
    ) -> None:
        """Refuse a field of some records: file, record, value, what is allowed, fix.

        Args:
            indices: of the records, ascending; those refused for this field before are left out.
            field: whose value is wrong or missing.
            allowed: what it must be.
            fix: what to do about a wrong one.
            add: what to do about a missing one.
        """
        new = [index for index in map(int, indices) if index not in self.refused[field]]
        self.refused[field].update(new)
        missing = [index for index in new if field not in self.items[index]]
        wrong = [index for index in new if field in self.items[index]]

        def got(index: int) -> str:
            return f"got {shown(self.items[index][field])}"

        for some in filter(None, sorted([missing, wrong])):  # in the order of the file
            if some is missing:
                rule, value, todo = "is missing", "which is missing", add
                places: Iterable[str] = map(self.place, some)
            else:
                rule, value, todo = f"must be {allowed}", got(some[0]), fix
                places = (self.place(index, got(index)) for index in wrong)
            error = f"{self.place(some[0])}: {field} must be {allowed}, {value}. {todo}"
            kind = f"{self.name}: {field} {rule}"
            self.issues.append(refusal(kind, places, ValueError(error), todo, count=len(some)))

    def unique(
        self, field: str, values: Sequence[Any], fix: str = "Remove or rename one of them."
    ) -> None:
        """Refuse a column in which a value occurs twice: both records and the value."""
        seen: dict[Any, int] = {}
        places = []
        are_equal = True
        for index, value in enumerate(values):
            if index in self.refused[field] or seen.setdefault(value, index) == index:
                continue
            self.refused["unique"].add(index)
            before = self.where(seen[value])
            are_equal &= self.items[index] == self.items[seen[value]]
            places.append(self.place(index, f"{field} {shown(value)} occurs before, in {before}"))
        if places:
            fix = f"{CONVERTER}` keeps one of the equal records." if are_equal else fix
            error = ValueError(f"{places[0]}; it must be unique. {fix}")
            kind = f"{self.name}: {field} must be unique"
            self.issues.append(refusal(kind, places, error, fix, count=len(places)))
