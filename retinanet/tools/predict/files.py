"""A folder of predictions: detections as files that annotation tools and spreadsheets read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.tools.predict.detector import ImageDetections

# Every folder of predictions has it: what made them, and which files are its own.
RECORD = "predict.json"
RESULTS = ("detections.json", "coco.json", "detections.csv")
DRAWN = "drawn"
# Suffixes that a drawn image keeps; others get one of these besides, as all are JPEGs.
JPEG = (".jpg", ".jpeg")
# File systems allow 255 bytes; a temporary name is longer than the last one.
NAME_BYTES = 200
CSV_COLUMNS = ("file", "class", "category_id", "score", "x1", "y1", "x2", "y2")


def is_ours(folder: Path) -> bool:
    """Whether :func:`begin` made a folder."""
    return _files_of(folder) is not None


def _files_of(folder: Path) -> list[str] | None:
    """The files of a folder of predictions; None where it is none, or somebody else's."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("made_by") != "scripts.predict":
        return None
    files = record.get("files")
    return files if isinstance(files, list) and {*map(type, files)} <= {str} else None


def check_output(output: Path, images: Iterable[Path]) -> None:
    """Refuse a folder that holds anything but earlier predictions; nothing is changed yet.

    Args:
        output: where predictions are to go.
        images: that are predicted on.

    Raises:
        ValueError: the folder holds other files, or an image.
    """
    if output.exists() and not is_ours(output) and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"{output} exists and holds no predictions; choose another --output, or remove it."
        )
    inside = output.resolve()
    for image in images:
        if image.resolve().is_relative_to(inside):
            raise ValueError(
                f"the image {image} lies in {output}, whose files are replaced; choose another "
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
    inside = output.resolve()
    for file in [output / name for name in _files_of(output) or ()]:
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


def write_results(
    output: Path,
    image_names: Sequence[str],
    detections: Mapping[int, ImageDetections],
    categories: Mapping[int, str],
) -> None:
    """Write detections.json, coco.json and detections.csv, each whole or not at all.

    Args:
        output: their folder.
        image_names: below the folder of all images, with ``/``; ids are their numbers, from 1.
        detections: index of an image -> what was detected in it.
        categories: category id -> name of the class.
    """
    detections = dict(sorted(detections.items()))
    sizes = ((index, one.size) for index, one in detections.items())
    lists = {
        "images": (
            {"id": i + 1, "file_name": image_names[i], "width": width, "height": height}
            for i, (height, width) in sizes
        ),
        "categories": ({"id": number, "name": name} for number, name in categories.items()),
        "annotations": (
            {"id": number, **{key: result[key] for key in ("image_id", "category_id", "bbox")}}
            | {"area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0, "segmentation": []}
            | {"score": result["score"]}
            for number, result in enumerate(_coco_results(detections), start=1)
        ),
    }
    whole = ",\n".join(f'"{key}": {_json_list(rows)}' for key, rows in lists.items())
    # Scores with four digits, pixels with two behind the point.
    rows = (
        [image_names[i], name, number, f"{score:.4f}", *(f"{side:.2f}" for side in box)]
        for i, one in detections.items()
        for name, number, score, box in zip(
            one.names, one.category_ids, one.scores.tolist(), one.boxes.tolist(), strict=True
        )
    )
    contents = (
        _json_list(_coco_results(detections)) + "\n",
        "{\n" + whole + "\n}\n",
        csv_text(CSV_COLUMNS, rows),
    )
    for name, content in zip(RESULTS, contents, strict=True):
        # Names of files that are not UTF-8 keep their bytes.
        write_whole(output / name, content.encode(errors="surrogateescape"))


def _coco_results(detections: Mapping[int, ImageDetections]) -> Iterator[dict[str, Any]]:
    """Rows of COCO's results format, with all digits."""
    for index, one in detections.items():
        boxes, scores = one.boxes.double().tolist(), one.scores.tolist()
        for number, (x1, y1, x2, y2), score in zip(one.category_ids, boxes, scores, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            yield {"image_id": index + 1, "category_id": number, "bbox": bbox, "score": score}


def _json_list(rows: Iterable[dict[str, Any]]) -> str:
    """JSON, one row a line."""
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]"


def drawn_names(image_names: Sequence[str]) -> list[str]:
    """Where each image is drawn, below the folder of predictions: no two in one file.

    Args:
        image_names: below the folder of all images, with ``/``.
    """
    taken: set[str] = set()
    names = []
    for image_name in image_names:
        path = PurePosixPath(image_name)
        last = path.name if path.suffix.lower() in JPEG else f"{path.name}.jpg"
        content = last.encode(errors="surrogateescape")
        if len(content) > NAME_BYTES:
            last = f"{last[: NAME_BYTES // 8]},{hashlib.sha256(content).hexdigest()[:8]}.jpg"
        drawn, number = path.with_name(last), 1
        # Also apart on file systems that do not tell small letters from capitals.
        while str(drawn).casefold() in taken:
            number += 1
            drawn = path.with_name(f"{Path(last).stem}_{number}{Path(last).suffix}")
        taken.add(str(drawn).casefold())
        names.append(f"{DRAWN}/{drawn}")
    return names
