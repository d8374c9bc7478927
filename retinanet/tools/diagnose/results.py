"""Detections from a file in COCO's results format, of any project."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.data.issues import raise_refused
from retinanet.data.records import Records, shown
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.evidence import index_of

# From this share of boxes on that would end outside their image but not as corners, they are
# corners; a fifth of it is enough where all boxes could be.
CORNERS_SHARE = 0.5


def read_results(path: Path, data: CocoData) -> DetectionArrays:
    """Read and check a list of detections.

    Args:
        path: JSON: a list of ``{"image_id", "category_id", "bbox", "score"}``.
        data: the ground truth that they belong to. All its images count as looked at.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such list, records that do not fit the data, or boxes that are corners.
    """
    records = Records(path, "detections", {"detections": _read_list(path)})
    image_ids = np.array(records.read("image_id"), dtype=np.int64)
    categories = np.array(records.read("category_id"), dtype=np.int64)
    boxes = np.array(records.read("bbox"), dtype=np.float64).reshape(-1, 4)
    scores = np.array(records.read("score"), dtype=np.float64)
    raise_refused(records.issues)
    ids = np.array(data.category_ids)
    unknown = ~np.isin(image_ids, data.image_ids)
    if unknown.any():
        raise ValueError(
            f"{path}: {unknown.sum()} of {len(image_ids)} detections are of images that "
            f"{data.path} does not list, such as image_id {image_ids[unknown].min()}; give the "
            f"annotations that the results were made for."
        )
    unknown = ~np.isin(categories, ids)
    if unknown.any():
        raise ValueError(
            f"{path}: {unknown.sum()} of {len(categories)} detections have a category_id that "
            f"{data.path} does not list, such as {categories[unknown][0]}; it lists {len(ids)} "
            f"categories with ids from {ids.min()} to {ids.max()}. Write the ids of the annotation "
            f"file rather than labels of the model."
        )
    # Boxes that are [x1, y1, x2, y2] match nothing, and nobody would know why. They show it by
    # where they end: as [x, y, width, height] outside the image, by more than rounding explains,
    # and as corners inside.
    size = data.sizes[index_of(data, image_ids)][:, ::-1]
    leaves = (boxes[:, :2] + boxes[:, 2:] > size * 1.05 + 1).any(axis=1)
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= size + 1).all(axis=1)
    share = (leaves & ordered).sum() / max(len(boxes), 1)
    if share > CORNERS_SHARE or (ordered.all() and share > CORNERS_SHARE / 5):
        raise ValueError(
            f"{path}: {100 * share:.0f} % of the boxes end outside their image as [x, y, width, "
            f"height] and fit into it as [x1, y1, x2, y2], so they seem to be corners; COCO's "
            f"results have width and height: write x2 - x1 and y2 - y1."
        )
    by_id = np.argsort(ids)
    labels = by_id[np.searchsorted(ids, categories, sorter=by_id)]
    order = np.lexsort((-scores, image_ids))
    columns = (column[order] for column in (image_ids, boxes, scores, labels))
    return DetectionArrays(*columns, evaluated=np.unique(data.image_ids), num_capped=0)


def _read_list(path: Path) -> list:
    """The JSON list in a file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"results file {path} {what}; eval.py writes one.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; the file may be cut short.") from None
    if isinstance(content, list):
        return content
    is_annotations = isinstance(content, dict) and "annotations" in content
    hint = " It is an annotation file; give it first, the results second."
    raise ValueError(
        f"{path} must hold a JSON list of detections with image_id, category_id, bbox and "
        f"score, got {shown(content)}.{hint if is_annotations else ''}"
    )
