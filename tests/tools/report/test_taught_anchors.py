"""Pictures of matched anchors: who is positive for what, by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.loader import Batch
from retinanet.data.transforms import Augment
from retinanet.matching import Matcher
from retinanet.tools.report.anchors import FORGOTTEN, describe, draw, fixed_batch, taught

ANCHORS = torch.tensor([[0, 0, 40, 40], [0, 0, 40, 60], [60, 20, 90, 50], [100, 0, 110, 9.0]])


@pytest.fixture
def data(make_data):
    found = make_data(2, [(1, 1, (0, 0, 40, 44)), (1, 2, (60, 60, 3, 3)), (2, 1, (60, 20, 30, 30))])
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (640, 480), (90, 120, 90)).save(found.image_root / name)
    return found


@pytest.fixture
def batch(data):
    boxes = torch.zeros(2, 2, 4)
    boxes[0] = torch.tensor([[0, 0, 40, 44], [60, 60, 63, 63.0]])
    boxes[1, 0] = torch.tensor([60, 20, 90, 50.0])
    return Batch(
        images=torch.full((2, 3, 96, 128), 120, dtype=torch.uint8),
        sizes=torch.tensor([[96, 128], [80, 100]]),
        boxes=boxes,
        labels=torch.tensor([[0, 1], [0, -1]]),
        crowds=torch.zeros(2, 0, 4),
        image_ids=torch.tensor([1, 2]),
        original_sizes=torch.tensor([[480, 640], [480, 640]]),
    )


def test_each_image_has_its_objects_and_anchors(data, batch):
    # IoU with the first object: 1600 / 1760 and 1760 / 2400; nothing touches the second.
    matcher = Matcher(positive_iou=0.8, negative_iou=0.5)
    match = matcher(ANCHORS, batch.boxes, batch.labels, batch.crowds)
    scores = torch.full((2, 4), 0.25)
    first, second = taught(batch, match, ANCHORS, scores, data)
    assert first.name == "1.jpg" and first.image.shape == (96, 128, 3)
    assert first.positives.tolist() == [[0, 0, 40, 40]]
    assert first.ignored.tolist() == [[0, 0, 40, 60]]
    assert first.forgotten.tolist() == [False, True]
    assert second.image.shape == (80, 100, 3)  # without the padding
    assert second.positives.tolist() == [[60, 20, 90, 50]] and not second.forgotten.any()
    said = "2 objects, 1 positive anchors, 1 ignored, mean score of positives 0.25"
    assert describe(first) == said


def test_a_forgotten_object_is_red_and_the_others_are_not(data, batch):
    match = Matcher()(ANCHORS, batch.boxes, batch.labels, batch.crowds)
    red = np.array([int(FORGOTTEN[i : i + 2], 16) for i in (1, 3, 5)])
    first, second = taught(batch, match, ANCHORS, None, data)
    with_red = draw([first], data.category_names)
    assert (with_red == red).all(axis=2).sum() > 50
    assert not (draw([second], data.category_names) == red).all(axis=2).any()
    both = draw([first, second, second], ["$x$", "\u767d"])
    assert both.dtype == np.uint8 and both.shape[1] > 900  # two columns
    nothing = dataclasses.replace(
        second, boxes=np.zeros((0, 4)), labels=np.zeros(0, int), forgotten=np.zeros(0, bool),
        positives=np.zeros((0, 4)), positive_labels=np.zeros(0, int), ignored=np.zeros((0, 4)),
    )  # fmt: skip
    assert draw([nothing], data.category_names).shape[2] == 3


def test_the_fixed_batch_is_the_same_and_none_where_there_is_none(data, make_data):
    augment = Augment(min_size=96, max_size=128)
    first, again = fixed_batch(data, augment), fixed_batch(data, augment)
    assert first.image_ids.tolist() == [1, 2]
    assert torch.equal(first.images, again.images)
    (data.image_root / "2.jpg").unlink()
    assert fixed_batch(data, augment) is None
    assert fixed_batch(make_data(3, []), augment) is None
