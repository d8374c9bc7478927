"""The lists of a COCO file, read column by column, with errors that name the record."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retinanet import limits
from retinanet.data.verdict import STOP, Verdict

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
        verdict: gets what is wrong. Where it does not stop, a refused value is replaced by a
            harmless one, and its record is no longer :meth:`sound`.
    """

    def __init__(
        self, path: Path, name: str, found: dict[str, Any], verdict: Verdict = STOP
    ) -> None:
        self.path = path
        self.name = name
        self.verdict = verdict
        self.bad: dict[str, set[int]] = defaultdict(set)  # field -> records refused for it
        self.repeated: set[int] = set()  # refused for what another record has too
        self.complete = True  # what is not in the list is nowhere
        items = found.get(name)
        if not isinstance(items, list):
            got = f"got {shown(items)}" if name in found else "which is missing"
            message = f"{path} must have a list '{name}', {got}; is this a COCO detection file?"
            self._refuse_list(f"{name}: no such list", got, message, "Choose a COCO JSON file.")
            items = []
        if set(map(type, items)) - {dict}:
            items = self._refuse_others(items)
        else:
            self.places: Sequence[int] = range(len(items))  # in the list of the file
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def sound(self) -> np.ndarray:
        """(N,) bool: records of which nothing was refused so far."""
        sound = np.ones(len(self), dtype=bool)
        for rows in (*self.bad.values(), self.repeated):
            sound[list(rows)] = False
        return sound

    def where(self, index: int) -> str:
        """The record as messages name it: ``annotations[17] (id 4711)``."""
        record = self.items[index]
        number = f" (id {shown(record['id'])})" if "id" in record else ""
        return f"{self.name}[{self.places[index]}]{number}"

    def place(self, index: int, found: str = "") -> str:
        """A record and what is odd about it, as a list of findings shows it."""
        return f"{self.path}: {self.where(index)}" + (f": {found}" if found else "")

    def got(self, index: int, field: str) -> str:
        """The value of a field, or that there is none."""
        record = self.items[index]
        return f"got {shown(record[field])}" if field in record else "which is missing"

    def refuse(self, rows: Iterable[int], field: str, allowed: str, remedy: str) -> None:
        """Refuse a field of some records: file, record, value, what is allowed, what to do.

        Args:
            rows: of the records, ascending; those refused for this field before are left out.
            field: whose value is wrong or missing.
            allowed: what it must be.
            remedy: what to do about a wrong one.
        """
        rows = [row for row in map(int, rows) if row not in self.bad[field]]
        self._mark(self.bad[field], rows)
        # Told apart, in the order of the file.
        while rows:
            missing = field not in self.items[rows[0]]
            same = [row for row in rows if (field not in self.items[row]) == missing]
            rows = [row for row in rows if (field not in self.items[row]) != missing]
            todo = "Add it." if missing else remedy
            self.verdict.refuse(
                f"{self.name}: {field} {'is missing' if missing else f'must be {allowed}'}",
                same,
                lambda row, missing=missing: self.place(
                    row, "" if missing else self.got(row, field)
                ),
                lambda row, todo=todo: (
                    f"{self.path}: {self.where(row)}: {field} must be {allowed}, "
                    f"{self.got(row, field)}. {todo}"
                ),
                todo,
            )

    def refuse_empty(self, reason: str, remedy: str) -> None:
        """Refuse a list without a record, unless more than that was wrong with it."""
        if not len(self) and self.complete:
            message = f"{self.path}: {self.name} must not be empty; {reason}."
            self._refuse_list(f"{self.name}: must not be empty", "got []", message, remedy)

    def column(self, field: str) -> list[Any]:
        """The field of every record, None where it is missing."""
        return [item.get(field) for item in self.items]

    def integers(self, field: str) -> np.ndarray:
        """(N,) int64: a field that must be an integer in every record."""
        remedy = (
            "Write it without quotes, or let `python -m scripts.convert_dataset --from coco --to "
            "coco` do it."
        )
        values = self._checked(field, {int}, _is_int64, 0, "an integer", remedy)
        return np.array(values, dtype=np.int64)

    def numbers(self, field: str, remedy: str = "Correct it.") -> np.ndarray:
        """(N,) float64: a field of finite numbers."""
        values = self._checked(field, {int, float}, is_finite, 1, "a finite number", remedy)
        return np.array(values, dtype=np.float64)

    def texts(self, field: str) -> list[str]:
        """A field that must be a text in every record."""
        return self._checked(field, {str}, bool, "?", "a text that is not empty", "Correct it.")

    def boxes(self, field: str) -> np.ndarray:
        """(N, 4) float64: a field of four finite numbers, none beyond ``LARGEST``."""
        allowed = "four finite numbers [x, y, width, height] in pixels"
        remedy = "Correct the box or remove the record."
        some = [0, 0, 1, 1]
        values = self._checked(field, {list}, lambda value: len(value) == 4, some, allowed, remedy)
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) - {int, float} or not _all_bounded(flat):
            bad = [row for row, box in enumerate(values) if not all(map(_is_bounded, box))]
            self.refuse(bad, field, allowed, remedy)
            for row in bad:
                flat[4 * row : 4 * row + 4] = some
        return np.array(flat, dtype=np.float64).reshape(-1, 4)

    def unique(
        self,
        field: str,
        values: list[Any] | np.ndarray,
        remedy: str = "Remove or rename one of them.",
    ) -> None:
        """Refuse a column in which a value occurs twice: both records and the value."""
        values = values.tolist() if isinstance(values, np.ndarray) else values
        if len(set(values)) == len(values):
            return
        seen: dict[Any, int] = {}
        before: dict[int, int] = {}  # record -> the first one with its value
        for index, value in enumerate(values):
            if index not in self.bad[field] and seen.setdefault(value, index) != index:
                before[index] = seen[value]
        self._mark(self.repeated, list(before))

        def found(row: int) -> str:
            value = shown(values[row])
            return f"{field} {value} occurs before, in {self.where(before[row])}"

        self.verdict.refuse(
            f"{self.name}: {field} must be unique",
            list(before),
            lambda row: self.place(row, found(row)),
            lambda row: (
                f"{self.path}: {self.where(row)}: {found(row)}; it must be unique. {remedy}"
            ),
            remedy,
        )

    def _checked(
        self,
        field: str,
        kinds: set[type],
        admits: Callable[[Any], bool],
        harmless: Any,
        allowed: str,
        remedy: str,
    ) -> list[Any]:
        """A column without values of another type or not admitted: they are refused."""
        values = self.column(field)
        # Types first, and exactly: true and false are integers to isinstance.
        if set(map(type, values)) - kinds or not all(map(admits, values)):
            bad = [i for i, v in enumerate(values) if type(v) not in kinds or not admits(v)]
            self.refuse(bad, field, allowed, remedy)
            for index in bad:
                values[index] = harmless
        return values

    def _refuse_list(self, kind: str, got: str, message: str, remedy: str) -> None:
        """Refuse the list as a whole."""
        self.complete = False
        self.verdict.leave_out(self.path, self.name)
        self.verdict.refuse(kind, [0], lambda _: f"{self.path}: {got}", lambda _: message, remedy)

    def _refuse_others(self, items: list[Any]) -> list[dict[str, Any]]:
        """The objects of the list, without what is none."""
        others = [row for row, item in enumerate(items) if type(item) is not dict]
        self.places = [row for row, item in enumerate(items) if type(item) is dict]
        self.complete = False
        self.verdict.leave_out(self.path, self.name)
        self.verdict.refuse(
            f"{self.name}: must be objects",
            others,
            lambda row: f"{self.path}: {self.name}[{row}]: got {shown(items[row])}",
            lambda row: (
                f"{self.path}: {self.name}[{row}] must be an object in braces, got "
                f"{shown(items[row])}."
            ),
            "Write each record in braces, or remove it.",
        )
        return [items[row] for row in self.places]

    def _mark(self, refused: set[int], rows: list[int]) -> None:
        refused.update(rows)
        if rows:
            self.verdict.leave_out(self.path, self.name)


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number that float64 holds."""
    return type(value) in (int, float) and limits.is_finite(value)


def _is_bounded(value: Any) -> bool:
    return is_finite(value) and abs(value) <= LARGEST


def _all_bounded(values: list[int | float]) -> bool:
    try:  # nan is not below anything
        return bool((np.abs(np.array(values, dtype=np.float64)) <= LARGEST).all())
    except OverflowError:
        return False


def _is_int64(value: int) -> bool:
    return -(2**63) <= value < 2**63
