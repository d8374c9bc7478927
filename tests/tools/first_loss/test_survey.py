"""The survey of a training set: counts by hand, anchors as training will match them."""

import json
from pathlib import Path

import pytest

from retinanet.data.coco import CocoData, read_coco
from retinanet.data.loader import DIVISOR
from retinanet.matching import NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.first_loss.survey import describe_survey, survey


def write_set(root: Path, boxes: list[list[tuple]], names: tuple[str, ...]) -> CocoData:
    """Images of 100 x 200 with boxes of (category, x, y, w, h, crowd)."""
    annotations = [
        {"image_id": i, "category_id": category, "bbox": box, "iscrowd": crowd, "area": 1}
        for i, of_image in enumerate(boxes)
        for category, *box, crowd in of_image
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 200}
            for i in range(len(boxes))
        ],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }
    (root / "a.json").write_text(json.dumps(content))
    return read_coco(root / "a.json", root)


def look(data: CocoData, min_size: int = 100) -> tuple:
    found = survey(data, AnchorGenerator(), Matcher(), min_size=min_size, max_size=1000)
    return found, "\n".join(describe_survey(found, data.category_names))


@pytest.fixture
def data(tmp_path) -> CocoData:
    objects = [
        [(1, 10, 10, 60, 60, 0), (2, 100, 20, 5, 5, 0)],
        [],
        [(1, 0, 0, 200, 100, 1), (1, 20, 20, 40, 40, 0), (1, 20, 20, 0, 40, 0)],
    ]
    return write_set(tmp_path, objects, ("cat", "dog", "cow"))


def test_counts_by_hand(data):
    found, said = look(data)
    assert (found.num_images, found.num_empty, found.num_boxes, found.num_crowds) == (3, 1, 3, 1)
    assert found.class_counts == (2, 1, 0)
    assert "3 (1 without objects), 3 boxes, 1 crowd" in said
    assert "3: cat 2, dog 1, cow 0" in said
    assert "1 classes have no box to learn from: cow" in said


def test_anchors_are_counted_as_training_matches_them(data):
    found, _ = look(data)
    padded = [-(-side // DIVISOR) * DIVISOR for side in (100, 200)]
    anchors = AnchorGenerator()(*padded)
    positives = background = 0
    for i in range(3):
        boxes, labels = data.boxes(i)
        match = Matcher()(anchors, boxes[None], labels[None], data.crowds(i)[None])
        positives += int((match.label >= 0).sum())
        background += int((match.label == NEGATIVE).sum())
    assert found.anchors == len(anchors)
    assert found.positives == pytest.approx(positives / 3)
    assert found.background == pytest.approx(background / 3)
    assert positives > 0


def test_boxes_without_a_good_anchor_depend_on_the_training_size(data):
    # Of three boxes the one of 5 px has none; eight times as large, it has.
    assert look(data)[0].uncovered == pytest.approx(1 / 3)
    assert look(data, min_size=800)[0].uncovered == 0
    assert "33.3 % of the boxes" in look(data)[1]


def test_boxes_that_vanish_at_the_training_size_have_no_positives(tmp_path):
    data = write_set(tmp_path, [[(1, 10, 10, 5, 5, 0), (1, 50, 50, 0.9, 9, 0)]], ("cat",))
    assert look(data, min_size=32)[0].positives > 0  # 5 px are 1.6 px
    assert look(data, min_size=16)[0].positives == 0  # 5 px are 0.8 px


def test_a_set_without_objects_can_be_described(tmp_path):
    found, said = look(write_set(tmp_path, [[], []], ("cat",)))
    assert (found.num_boxes, found.positives, found.uncovered) == (0, 0, 0)
    assert "2 without objects" in said


def test_large_sets_are_sampled_and_many_classes_cut_short(tmp_path, monkeypatch):
    names = tuple(f"class_{i}" for i in range(12))
    data = write_set(tmp_path, [[(3, 10, 10, 60, 60, 0)]] * 40, names)
    monkeypatch.setattr("retinanet.tools.first_loss.survey.SAMPLED_IMAGES", 5)
    seen = []
    boxes = CocoData.boxes
    monkeypatch.setattr(CocoData, "boxes", lambda self, i: seen.append(i) or boxes(self, i))
    found, said = look(data)
    assert sorted(seen) == [0, 9, 19, 29, 39]
    assert found.num_boxes == 40
    assert "and 4 more" in said
