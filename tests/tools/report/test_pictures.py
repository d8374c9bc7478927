"""What is drawn of a data set, of detections and of a batch: the boxes, their names, the titles."""

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.loader import Batch
from retinanet.data.transforms import Augment
from retinanet.matching import Matcher
from retinanet.tools.report import tensorboard
from retinanet.tools.report.boxes import GAP, HEADER, PANEL_WIDTH, draw_sheet
from retinanet.tools.report.pictures import (
    choose_images,
    draw_detections,
    draw_predictions,
    panels_of,
)
from retinanet.tools.report.style import class_color

BOX = (160.0, 120.0, 320.0, 240.0)
CORNERS = [160.0, 120.0, 480.0, 360.0]
ANCHORS = torch.tensor([[0, 0, 40, 40], [0, 0, 40, 60], [60, 20, 90, 50], [100, 0, 110, 9.0]])


def test_panels_show_boxes_with_names_and_say_how_many(make_set, make_detections):
    data = make_set(1, [(1, 1, BOX), (1, 2, (0.0, 0.0, 99.0, 99.0), True)])
    found = make_detections(data, [(1, 2, BOX, 0.914), (1, 1, BOX, 0.29)])
    truth, predicted = panels_of(data, found, 0)
    assert truth.title == "1.jpg, ground truth: 1"
    assert truth.boxes[0] == (CORNERS, class_color(0), "cat", "solid", 1.0)
    assert truth.boxes[1][2:4] == ("crowd: dog", "crowd")
    assert predicted.title == "predictions with score \u2265 0.3: 1"
    assert predicted.boxes == [(CORNERS, class_color(1), "dog 0.91", "solid", 1.0)]


def test_the_best_prediction_is_on_top_and_the_best_of_weak_ones_is_mentioned(
    make_set, make_detections
):
    data = make_set(1, [(1, 1, BOX)])
    found = make_detections(data, [(1, 1, BOX, 0.9), (1, 2, BOX, 0.4), (1, 2, BOX, 0.6)])
    captions = [box.caption for box in panels_of(data, found, 0)[1].boxes]
    assert captions == ["dog 0.40", "dog 0.60", "cat 0.90"]
    weak = panels_of(data, make_detections(data, [(1, 1, BOX, 0.12)]), 0)[1]
    assert weak.title.endswith(": 0, the best has 0.12") and not weak.boxes


def test_images_are_spread_over_those_with_objects(make_data, make_detections):
    data = make_data(10, [(i, 1, BOX) for i in (2, 4, 6, 8)])
    nothing = make_detections(data, [])
    assert choose_images(data, nothing, 2) == [1, 5]
    assert choose_images(data, nothing, 4) == choose_images(data, nothing, 99) == [1, 3, 5, 7]
    assert choose_images(data, nothing, 0) == []
    assert choose_images(data, make_detections(data, [], evaluated=[4, 5]), 3) == [3]
    assert choose_images(data, make_detections(data, [], evaluated=[5, 7]), 1) == [4]


def test_predictions_are_written_and_the_first_sheet_is_returned(
    make_set, make_detections, tmp_path
):
    data = make_set(5, [(i, 1, BOX) for i in range(1, 6)])
    sheet = draw_predictions(data, make_detections(data, []), tmp_path / "plots", 5)
    with Image.open(tmp_path / "plots/predictions_1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), sheet)
    assert len(list((tmp_path / "plots").iterdir())) == 2
    assert draw_predictions(data, make_detections(data, []), tmp_path / "plots", 0) is None
    # A test set has no panel of ground truth.
    data = make_set(2, [], annotations=None)
    sheet = draw_predictions(data, make_detections(data, [(1, 1, BOX, 0.9)]), tmp_path, 2)
    assert sheet.shape == (2 * (360 + HEADER + GAP), PANEL_WIDTH + 2 * GAP, 3)


def test_an_unreadable_image_is_gray(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX)])
    sheet = draw_sheet([panels_of(data, make_detections(data, []), 0)])
    assert sheet[HEADER + 20, 2 * GAP + PANEL_WIDTH + 20].tolist() == [128, 128, 128]


def test_detections_are_drawn_on_a_copy_with_the_best_on_top():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    before = image.copy()
    two = [CORNERS, CORNERS], [0, 1], ["cat", "dog"], [1, 2], [0.9, 0.5]
    pixels = np.asarray(draw_detections(image, *two))
    assert "#{:02x}{:02x}{:02x}".format(*pixels[240, 160]) == class_color(0)
    nothing = draw_detections(image, np.zeros((0, 4)), [], [], [], [])
    assert np.array_equal(np.asarray(nothing), before) and np.array_equal(image, before)


@pytest.fixture
def data(make_set):
    return make_set(2, [(1, 1, (0, 0, 40, 44)), (1, 2, (60, 60, 3, 3)), (2, 1, (60, 20, 30, 30))])


@pytest.fixture
def batch():
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


def test_images_of_a_batch_show_their_objects_and_matched_anchors(data, batch):
    # IoU with the first object: 1600 / 1760 and 1760 / 2400; nothing touches the second.
    matcher = Matcher(positive_iou=0.8, negative_iou=0.5)
    match = matcher(ANCHORS, batch.boxes, batch.labels, batch.crowds)
    scores = torch.full((2, 4), 0.2)
    first, second = tensorboard.anchor_panels(batch, match, ANCHORS, scores, data)
    ignored, positive, matched, unmatched = first.boxes
    assert (ignored.corners, ignored.style) == ([0, 0, 40, 60], "dashed")
    assert (positive.corners, positive.style) == ([0, 0, 40, 40], "thin")
    assert positive.opacity == pytest.approx(0.15 + 0.85 * 0.2)
    assert matched[:4] == ([0, 0, 40, 44], class_color(0), "cat", "haloed")
    assert unmatched[:4] == ([60, 60, 63, 63], tensorboard.UNMATCHED, "dog", "haloed")
    assert first.title == (
        "1.jpg\n2 objects, 1 positive anchors, 1 ignored, mean score of positives 0.20\n"
        "1 without a positive anchor"
    )
    # Without the padding.
    assert (first.image.shape, second.image.shape) == ((96, 128, 3), (80, 100, 3))
    assert [box.color for box in second.boxes] == [class_color(0)] * 2


def test_a_batch_without_objects_is_drawn(data, batch):
    batch = batch._replace(labels=torch.full((2, 2), -1))
    match = Matcher()(ANCHORS, batch.boxes, batch.labels, batch.crowds)
    panels = tensorboard.anchor_panels(batch, match, ANCHORS, torch.zeros(2, 4), data)
    assert panels[0].title.endswith("0 objects, 0 positive anchors, 0 ignored")
    assert draw_sheet([panels], tensorboard.LEGEND).shape[1] == 2 * PANEL_WIDTH + 3 * GAP


def test_the_fixed_batch_is_the_same_and_none_where_there_is_none(data, make_data):
    augment = Augment(min_size=96, max_size=128)
    first, again = (tensorboard.fixed_batch(data, augment) for _ in range(2))
    assert first.image_ids.tolist() == [1, 2]
    assert torch.equal(first.images, again.images)
    (data.image_root / "2.jpg").unlink()
    assert tensorboard.fixed_batch(data, augment) is None
    assert tensorboard.fixed_batch(make_data(3, []), augment) is None
