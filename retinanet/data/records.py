"""The lists of a COCO file, read column by column, with errors that name the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retinanet import limits

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
    content = path.read_bytes()
    fingerprint = hashlib.sha256(content).hexdigest()
    try:
        text = content.decode("utf-8-sig")
        del content
        found = json.loads(text, object_pairs_hook=_record)
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
    if not isinstance(found, dict):
        hint = " A list of detections is not an annotation file." if isinstance(found, list) else ""
        raise ValueError(
            f"{path} must hold a JSON object with images, annotations and categories, got "
            f"{shown(found)}.{hint}"
        )
    return found, fingerprint


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

    Args:
        path: the file, for messages.
        name: key of the list in the file.
        found: content of the file.
    """

    def __init__(self, path: Path, name: str, found: dict[str, Any]) -> None:
        self.path = path
        self.name = name
        self.items = found.get(name)
        if not isinstance(self.items, list):
            got = f"got {shown(self.items)}" if name in found else "which is missing"
            raise ValueError(
                f"{path} must have a list '{name}', {got}; is this a COCO detection file?"
            )
        if set(map(type, self.items)) - {dict}:
            index = next(i for i, item in enumerate(self.items) if type(item) is not dict)
            raise ValueError(
                f"{path}: {name}[{index}] must be an object in braces, got "
                f"{shown(self.items[index])}."
            )

    def __len__(self) -> int:
        return len(self.items)

    def where(self, index: int) -> str:
        """The record as messages name it: ``annotations[17] (id 4711)``."""
        record = self.items[index]
        return f"{self.name}[{index}]" + (f" (id {shown(record['id'])})" if "id" in record else "")

    def problem(self, index: int, field: str, allowed: str, remedy: str) -> ValueError:
        """The error of one record: file, record, field, value, what is allowed, what to do."""
        record = self.items[index]
        if field not in record:
            got, remedy = "which is missing", "Add it."
        else:
            got = f"got {shown(record[field])}"
        return ValueError(
            f"{self.path}: {self.where(index)}: {field} must be {allowed}, {got}. {remedy}"
        )

    def column(self, field: str) -> list[Any]:
        """The field of every record, None where it is missing."""
        return [item.get(field) for item in self.items]

    def integers(self, field: str) -> np.ndarray:
        """(N,) int64: a field that must be an integer in every record."""
        values = self.column(field)
        self._refuse(field, values, {int}, _is_int64, "an integer", "Write it without quotes.")
        return np.array(values, dtype=np.int64)

    def numbers(self, field: str) -> np.ndarray:
        """(N,) float64: a field of finite numbers."""
        values = self.column(field)
        self._refuse(field, values, {int, float}, is_finite, "a finite number", "Correct it.")
        return np.array(values, dtype=np.float64)

    def texts(self, field: str) -> list[str]:
        """A field that must be a text in every record."""
        values = self.column(field)
        self._refuse(field, values, {str}, bool, "a text that is not empty", "Correct it.")
        return values

    def boxes(self, field: str) -> np.ndarray:
        """(N, 4) float64: a field of four finite numbers, none above ``LARGEST``."""
        values = self.column(field)
        allowed = "four finite numbers [x, y, width, height] in pixels"
        remedy = "Correct the box or remove the record."
        self._refuse(field, values, {list}, lambda value: len(value) == 4, allowed, remedy)
        flat = list(chain.from_iterable(values))
        kinds = set(map(type, flat))
        if kinds - {int, float} or not _all_finite(flat):
            index = next(i for i, number in enumerate(flat) if not is_finite(number)) // 4
            raise self.problem(index, field, allowed, remedy)
        boxes = np.array(flat, dtype=np.float64).reshape(-1, 4)
        large = (np.abs(boxes) > LARGEST).any(axis=1)
        if large.any():
            raise self.problem(int(large.argmax()), field, allowed, remedy)
        return boxes

    def unique(self, field: str, values: list[Any] | np.ndarray) -> None:
        """Refuse a column in which a value occurs twice.

        Raises:
            ValueError: both records and the value.
        """
        values = values.tolist() if isinstance(values, np.ndarray) else values
        if len(set(values)) == len(values):
            return
        seen: dict[Any, int] = {}
        for index, value in enumerate(values):
            if value in seen:
                raise ValueError(
                    f"{self.path}: {self.where(index)}: {field} {shown(value)} occurs before, in "
                    f"{self.where(seen[value])}; it must be unique. Remove or rename one of them."
                )
            seen[value] = index

    def _refuse(
        self,
        field: str,
        values: list[Any],
        kinds: set[type],
        admits: Callable[[Any], bool],
        allowed: str,
        remedy: str,
    ) -> None:
        """Raise for the first value of another type or not admitted."""
        # Types first, and exactly: true and false are integers to isinstance.
        if set(map(type, values)) - kinds or not all(map(admits, values)):
            bad = (type(value) not in kinds or not admits(value) for value in values)
            raise self.problem(list(bad).index(True), field, allowed, remedy)


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number that float64 holds."""
    return type(value) in (int, float) and limits.is_finite(value)


def _all_finite(values: list[int | float]) -> bool:
    try:
        return bool(np.isfinite(np.array(values, dtype=np.float64)).all())
    except OverflowError:
        return False


def _is_int64(value: int) -> bool:
    return -(2**63) <= value < 2**63
