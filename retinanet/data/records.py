"""The lists of a COCO file, read column by column, with errors that name the record."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.issues import Issue, refusal

# Longer values are cut in messages, so that an error stays one line.
SHOWN_CHARACTERS = 60
# Beyond it areas and their sums would not be finite.
LARGEST = 1e100


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
    fingerprint = hashlib.sha256(file_bytes).hexdigest()
    try:
        text = file_bytes.decode("utf-8-sig")
        del file_bytes
        content = json.loads(text, object_pairs_hook=_record)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason}); save it as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; the "
            f"file may be cut short or of another format."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        is_list = isinstance(content, list)
        hint = " A list of detections is not an annotation file." if is_list else ""
        raise ValueError(
            f"{path} must hold a JSON object with images, annotations and categories, got "
            f"{shown(content)}.{hint}"
        )
    return content, fingerprint


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of the file. Of a key that stands twice JSON would drop the first value."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object; remove one")
    record.pop("segmentation", None)
    return record


def shown(value: Any) -> str:
    """A value as it stands in a message: one line, cut when long."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__} of too many levels"
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


class Records:
    """One list of objects of a COCO file, such as its annotations.

    What is wrong is kept in ``issues``, all of them refused; a column has a harmless value in
    its place, and the record is no longer :meth:`sound`.

    Args:
        path: the file, for messages.
        name: key of the list in the file.
        content: of the file.
    """

    def __init__(self, path: Path, name: str, content: dict[str, Any]) -> None:
        self.path = path
        self.name = name
        self.issues: list[Issue] = []
        self.refused: dict[str, set[int]] = defaultdict(set)  # field -> records refused for it
        self.repeated: set[int] = set()  # refused for what another record has too
        self.complete = True  # nothing that the file lists is left out of ``items``
        items = content.get(name)
        if not isinstance(items, list):
            got = f"got {shown(items)}" if name in content else "which is missing"
            error = f"{path} must have a list '{name}', {got}; is this a COCO detection file?"
            self._refuse_list("no such list", [got], error, "Choose a COCO JSON file.")
            items = []
        self.rows = [row for row, item in enumerate(items) if type(item) is dict]  # in the file
        self.items = [items[row] for row in self.rows]
        if len(self.items) < len(items):
            others = [(row, item) for row, item in enumerate(items) if type(item) is not dict]
            got = [f"{name}[{row}]: got {shown(item)}" for row, item in others]
            row, item = others[0]
            error = f"{path}: {name}[{row}] must be an object in braces, got {shown(item)}."
            fix = "Write each record in braces, or remove it."
            self._refuse_list("must be objects", got, error, fix)

    def __len__(self) -> int:
        return len(self.items)

    def refuse_empty(self, reason: str, fix: str) -> None:
        """Refuse a list without a record, unless more than that was wrong with it."""
        if not len(self) and self.complete:
            error = f"{self.path}: {self.name} must not be empty; {reason}."
            self._refuse_list("must not be empty", ["got []"], error, fix)

    def _refuse_list(self, rule: str, got: list[str], error: str, fix: str) -> None:
        self.complete = False
        places = [f"{self.path}: {what}" for what in got]
        kind = f"{self.name}: {rule}"
        self.issues.append(refusal(kind, places, ValueError(error), fix, count=len(got)))

    def sound(self) -> np.ndarray:
        """(N,) bool: records of which nothing was refused so far."""
        sound = np.ones(len(self), dtype=bool)
        for indices in (*self.refused.values(), self.repeated):
            sound[list(indices)] = False
        return sound

    def where(self, index: int) -> str:
        """The record as messages name it: ``annotations[17] (id 4711)``."""
        record = self.items[index]
        number = f" (id {shown(record['id'])})" if "id" in record else ""
        return f"{self.name}[{self.rows[index]}]{number}"

    def place(self, index: int, value: str = "") -> str:
        """A record and what is odd about it, as a list of issues shows it."""
        return f"{self.path}: {self.where(index)}" + (f": {value}" if value else "")

    def refuse(self, indices: Iterable[int], field: str, allowed: str, fix: str) -> None:
        """Refuse a field of some records: file, record, value, what is allowed, fix.

        Args:
            indices: of the records, ascending; those refused for this field before are left out.
            field: whose value is wrong or missing.
            allowed: what it must be.
            fix: what to do about a wrong one.
        """
        new = [index for index in map(int, indices) if index not in self.refused[field]]
        self.refused[field].update(new)
        missing = [index for index in new if field not in self.items[index]]
        wrong = [index for index in new if field in self.items[index]]
        for some in filter(None, sorted([missing, wrong])):  # in the order of the file
            gone = some is missing
            rule = f"{field} is missing" if gone else f"{field} must be {allowed}"
            got = "which is missing" if gone else f"got {shown(self.items[some[0]][field])}"
            todo = "Add it." if gone else fix
            error = f"{self.place(some[0])}: {field} must be {allowed}, {got}. {todo}"
            places = map(self.place, some) if gone else self._places(some, field)
            kind = f"{self.name}: {rule}"
            self.issues.append(refusal(kind, places, ValueError(error), todo, count=len(some)))

    def _places(self, indices: Iterable[int], field: str) -> Iterator[str]:
        for index in indices:
            yield self.place(index, f"got {shown(self.items[index][field])}")

    def unique(
        self, field: str, values: list[Any] | np.ndarray, fix: str = "Remove or rename one of them."
    ) -> None:
        """Refuse a column in which a value occurs twice: both records and the value."""
        values = values.tolist() if isinstance(values, np.ndarray) else values
        if len(set(values)) == len(values):
            return
        seen: dict[Any, int] = {}
        places = []
        for index, value in enumerate(values):
            if index in self.refused[field] or seen.setdefault(value, index) == index:
                continue
            self.repeated.add(index)
            before = self.where(seen[value])
            places.append(self.place(index, f"{field} {shown(value)} occurs before, in {before}"))
        if places:
            error = ValueError(f"{places[0]}; it must be unique. {fix}")
            kind = f"{self.name}: {field} must be unique"
            self.issues.append(refusal(kind, places, error, fix, count=len(places)))

    def column(self, field: str) -> list[Any]:
        """The field of every record, None where it is missing."""
        return [item.get(field) for item in self.items]

    def integers(self, field: str) -> np.ndarray:
        """(N,) int64: a field that must be an integer in every record."""
        fix = (
            "Write it without quotes, or let `python -m scripts.convert_dataset --from coco --to "
            "coco` do it."
        )
        values = self._checked(field, _is_int64, 0, "an integer", fix)
        return np.array(values, dtype=np.int64)

    def numbers(self, field: str, fix: str = "Correct it.") -> np.ndarray:
        """(N,) float64: a field of finite numbers."""
        return np.array(self._checked(field, is_finite, 1, "a finite number", fix), np.float64)

    def texts(self, field: str) -> list[str]:
        """A field that must be a text in every record."""
        return self._checked(field, _is_text, "?", "a text that is not empty", "Correct it.")

    def boxes(self, field: str) -> np.ndarray:
        """(N, 4) float64: a field of four finite numbers, none beyond ``LARGEST``."""
        boxes = _as_boxes(self.column(field))
        if boxes is None:
            allowed = "four finite numbers [x, y, width, height] in pixels"
            fix = "Correct the box or remove the record."
            boxes = _as_boxes(self._checked(field, _is_box, [0, 0, 1, 1], allowed, fix))
        return boxes

    def _checked(
        self, field: str, admits: Callable[[Any], bool], harmless: Any, allowed: str, fix: str
    ) -> list[Any]:
        """A column in which values that are not admitted are refused, and replaced."""
        values = self.column(field)
        bad = [index for index, value in enumerate(values) if not admits(value)]
        self.refuse(bad, field, allowed, fix)
        for index in bad:
            values[index] = harmless
        return values


# Types are compared exactly: true and false are integers to isinstance.


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number that float64 holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_text(value: Any) -> bool:
    return type(value) is str and value != ""


def _is_box(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) == 4
        and all(is_finite(number) and abs(number) <= LARGEST for number in value)
    )


def _as_boxes(values: list[Any]) -> np.ndarray | None:
    """(N, 4) float64; None unless :func:`_is_box` holds for all, found in a quarter of the time."""
    if set(map(type, values)) - {list} or set(map(len, values)) - {4}:
        return None
    numbers = list(chain.from_iterable(values))
    if set(map(type, numbers)) - {int, float}:
        return None
    try:
        boxes = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    except OverflowError:  # an integer beyond the largest float
        return None
    return boxes if (np.abs(boxes) <= LARGEST).all() else None  # nan is not below anything
