"""What was found in photos, as files that annotation tools, spreadsheets and people read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text

# Every folder of predictions has it: what made them, and which files are its own.
RECORD = "predict.json"
RESULTS = ("detections.json", "coco.json", "detections.csv")
DRAWN = "drawn"
# Suffixes that a drawn photo keeps; others get one of these besides, as all are JPEGs.
JPEG = (".jpg", ".jpeg")
# File systems allow 255 bytes; a temporary name is longer than the last one.
NAME_BYTES = 200
CSV_COLUMNS = ("file", "class", "category_id", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """What was found in one photo, the best first."""

    image_id: int
    name: str  # below the folder of all photos, with /
    size: tuple[int, int]  # height, width as displayed, pixels
    boxes: np.ndarray  # (D, 4) float64 x1, y1, x2, y2 in pixels
    scores: np.ndarray  # (D,) float64
    labels: np.ndarray  # (D,) int64 in [0, K)


@dataclass(frozen=True, slots=True)
class Classes:
    """What labels mean."""

    names: Sequence[str]
    ids: Sequence[int]  # category ids


def is_ours(folder: Path) -> bool:
    """Whether :func:`begin` made a folder."""
    return _record(folder) is not None


def check_output(output: Path, photos: Iterable[Path]) -> None:
    """Refuse a folder that holds anything but earlier predictions; nothing is changed yet.

    Args:
        output: where predictions are to go.
        photos: that are predicted on.

    Raises:
        ValueError: the folder holds other files, or a photo.
    """
    if output.exists() and not is_ours(output) and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"{output} exists and holds no predictions; choose another --output, or remove it."
        )
    inside = output.resolve()
    for photo in photos:
        if photo.resolve().is_relative_to(inside):
            raise ValueError(
                f"the photo {photo} lies in {output}, whose files are replaced; choose another "
                f"--output."
            )


def begin(output: Path, about: dict[str, Any], drawn: Iterable[str]) -> None:
    """Make the folder, or remove what :func:`begin` promised in it before.

    Args:
        output: passed :func:`check_output`.
        about: entries of the record.
        drawn: files below the folder that are going to be written.

    Raises:
        OSError: it cannot be made or written.
    """
    old = _record(output)
    inside = output.resolve()
    for file in [] if old is None else [output / name for name in old["files"]]:
        if file.parent.resolve().is_relative_to(inside) and not file.is_dir():
            file.unlink(missing_ok=True)
    try:
        record(output, about | {"finished": False}, [*RESULTS, *drawn])
    except OSError as error:
        raise OSError(
            f"cannot write into --output {output} ({error.strerror}); choose another."
        ) from error


def record(output: Path, about: dict[str, Any], files: Sequence[str]) -> None:
    """Write what is known about the predictions of a folder."""
    content = {"made_by": "scripts.predict", **about, "files": list(files)}
    write_whole(output / RECORD, json.dumps(content, indent=1) + "\n")


def write_results(output: Path, results: Sequence[PhotoResult], classes: Classes) -> None:
    """Write detections.json, coco.json and detections.csv, each whole or not at all.

    Args:
        output: their folder.
        results: of photos, in any order.
        classes: what the labels mean.
    """
    results = sorted(results, key=lambda result: result.image_id)
    lists = (_list(_results(results, classes)), _coco(results, classes))
    for name, content in zip(RESULTS, (*lists, _csv(results, classes)), strict=True):
        # Names of files that are not UTF-8 keep their bytes.
        write_whole(output / name, content.encode(errors="surrogateescape"))


def drawn_names(names: Sequence[str]) -> list[str]:
    """Where each photo is drawn, below the folder of predictions: no two in one file.

    Args:
        names: of photos, as in :attr:`PhotoResult.name`.
    """
    taken: set[str] = set()
    found = []
    for name in names:
        path = PurePosixPath(name)
        last = path.name if path.suffix.lower() in JPEG else f"{path.name}.jpg"
        if len(last.encode(errors="surrogateescape")) > NAME_BYTES:
            digest = hashlib.sha256(last.encode(errors="surrogateescape")).hexdigest()[:8]
            last = f"{last[: NAME_BYTES // 8]},{digest}.jpg"
        place, number = path.with_name(last), 1
        # Also apart on file systems that do not tell small letters from capitals.
        while str(place).casefold() in taken:
            number += 1
            place = path.with_name(f"{Path(last).stem}_{number}{Path(last).suffix}")
        taken.add(str(place).casefold())
        found.append(f"{DRAWN}/{place}")
    return found


def _record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder of predictions; None where there is none, or somebody else's."""
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(found, dict) and found.get("made_by") == "scripts.predict"
    files = found.get("files") if ours else None
    return found if isinstance(files, list) and {*map(type, files)} <= {str} else None


def _results(results: Sequence[PhotoResult], classes: Classes) -> Iterator[dict[str, Any]]:
    """Rows of COCO's results format, with all digits."""
    for result in results:
        corners = result.boxes
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rows = zip(boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True)
        for box, score, label in rows:
            yield {
                "image_id": result.image_id,
                "category_id": classes.ids[label],
                "bbox": box,
                "score": score,
            }


def _coco(results: Sequence[PhotoResult], classes: Classes) -> str:
    """A whole annotation file, whose annotations have scores."""
    images = (
        {"id": r.image_id, "file_name": r.name, "width": r.size[1], "height": r.size[0]}
        for r in results
    )
    annotations = (
        {
            "id": number,
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": row["bbox"],
            "area": row["bbox"][2] * row["bbox"][3],
            "iscrowd": 0,
            "segmentation": [],
            "score": row["score"],
        }
        for number, row in enumerate(_results(results, classes), start=1)
    )
    pairs = zip(classes.ids, classes.names, strict=True)
    categories = ({"id": number, "name": name} for number, name in pairs)
    parts = {"images": images, "categories": categories, "annotations": annotations}
    lists = ",\n".join(f'"{key}": {_list(rows).rstrip()}' for key, rows in parts.items())
    return "{\n" + lists + "\n}\n"


def _list(rows: Iterable[dict[str, Any]]) -> str:
    """JSON, one row a line."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


def _csv(results: Sequence[PhotoResult], classes: Classes) -> str:
    """One row for each detection: scores with four digits, pixels with two behind the point."""
    return csv_text(CSV_COLUMNS, _cells(results, classes))


def _cells(results: Sequence[PhotoResult], classes: Classes) -> Iterator[list[Any]]:
    for result in results:
        rows = zip(result.boxes.tolist(), result.scores.tolist(), result.labels, strict=True)
        for box, score, label in rows:
            what = result.name, classes.names[label], classes.ids[label]
            yield [*what, f"{score:.4f}", *(f"{side:.2f}" for side in box)]
