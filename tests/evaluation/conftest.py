"""Small data sets and detections for the tests of the evaluation."""

import json

import numpy as np
import pytest

from retinanet.data.coco import read_coco
from retinanet.evaluation.detect import DetectionArrays


@pytest.fixture
def make_data(tmp_path):
    """Writes an annotation file and reads it: ``make_data(3, [(0, 1, box), ...])``."""

    def make(num_images, rows, names=("cat", "dog"), **fields):
        """Rows are (image id, category id, xywh[, crowd]), ids from 1; fields replace lists."""
        found = {
            "images": [
                {"id": i + 1, "file_name": f"{i + 1}.jpg", "width": 640, "height": 480}
                for i in range(num_images)
            ],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int(bool(crowd)),
                }
                for i, (image, category, box, *crowd) in enumerate(rows)
            ],
        } | fields
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
        return read_coco(path, tmp_path)

    return make


@pytest.fixture
def make_detections():
    """Arrays from COCO results: ``make_detections(data, [(image, category, box, score)])``."""

    def make(data, results, evaluated=None, num_capped=0):
        rank = {number: label for label, number in enumerate(data.category_ids)}
        results = sorted(results, key=lambda r: (r[0], -r[3]))
        return DetectionArrays(
            image_ids=np.array([r[0] for r in results], dtype=np.int64),
            boxes=np.array([r[2] for r in results], dtype=np.float64).reshape(-1, 4),
            scores=np.array([r[3] for r in results], dtype=np.float64),
            labels=np.array([rank[r[1]] for r in results], dtype=np.int64),
            evaluated=np.unique(data.image_ids if evaluated is None else evaluated),
            num_capped=num_capped,
        )

    return make
