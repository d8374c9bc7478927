"""Sheets of predictions: pixels where they belong, and images that are always the same."""

import numpy as np
import pytest
from PIL import Image

from retinanet.tools.report.pictures import (
    GAP,
    HEADER,
    PANEL_WIDTH,
    choose_images,
    class_color,
    draw_predictions,
    draw_sheet,
    panels_of,
)
from retinanet.tools.report.style import COLORS

BOX = (160.0, 120.0, 320.0, 240.0)
BLUE = (0x1F, 0x6F, 0xB4)  # COLORS[0]
PANEL_HEIGHT = PANEL_WIDTH * 480 // 640


@pytest.fixture
def make_set(make_data):
    """Like make_data, with black 640 x 480 files for the images."""

    def make(num_images, rows, **fields):
        data = make_data(num_images, rows, **fields)
        for index in range(len(data)):
            Image.new("RGB", (640, 480)).save(data.image_path(index))
        return data

    return make


def color_at(sheet: np.ndarray, column: int, x: float, y: float) -> tuple[int, ...]:
    """Color at a pixel (x, y) of the file in a panel of the first row."""
    scale = PANEL_WIDTH / 640
    left = GAP + column * (PANEL_WIDTH + GAP)
    return tuple(sheet[round(HEADER + y * scale), round(left + x * scale)].tolist())


def test_boxes_are_drawn_where_they_are(make_set, make_detections, tmp_path):
    data = make_set(1, [(1, 1, BOX)])
    found = make_detections(data, [(1, 2, (32.0, 240.0, 64.0, 64.0), 0.9)])
    sheet = draw_sheet([panels_of(data, found, 0)])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (PANEL_HEIGHT + HEADER + GAP, 2 * PANEL_WIDTH + 3 * GAP, 3)
    right, middle = BOX[0] + BOX[2], BOX[1] + BOX[3] / 2
    assert color_at(sheet, 0, right, middle) == pytest.approx(BLUE, abs=12)
    assert color_at(sheet, 0, right - 20, middle) == (0, 0, 0)
    assert color_at(sheet, 1, right, middle) == (0, 0, 0)
    assert color_at(sheet, 1, 64, 304) == pytest.approx((0xE4, 0x57, 0x2E), abs=12)


def test_panels_name_what_they_show(make_set, make_detections):
    data = make_set(1, [(1, 1, BOX), (1, 2, (0.0, 0.0, 99.0, 99.0), True)])
    found = make_detections(data, [(1, 2, BOX, 0.914), (1, 1, BOX, 0.29)])
    truth, predicted = panels_of(data, found, 0)
    assert truth.title == "1.jpg, ground truth: 1"
    assert truth.captions == ["cat", "crowd: dog"]
    assert truth.crowd.tolist() == [False, True]
    assert predicted.title == "predictions with score \u2265 0.3: 1"
    assert predicted.captions == ["dog 0.91"]


def test_weak_predictions_are_mentioned_when_there_are_no_others(make_set, make_detections):
    data = make_set(1, [(1, 1, BOX)])
    predicted = panels_of(data, make_detections(data, [(1, 1, BOX, 0.12)]), 0)[1]
    assert predicted.title.endswith(": 0, the best has 0.12")
    assert len(predicted.boxes) == 0


def test_a_test_set_has_no_panel_of_ground_truth(make_set, make_detections, tmp_path):
    data = make_set(2, [], annotations=None)
    sheet = draw_predictions(data, make_detections(data, [(1, 1, BOX, 0.9)]), tmp_path, 2)
    assert sheet.shape == (2 * (PANEL_HEIGHT + HEADER + GAP), PANEL_WIDTH + 2 * GAP, 3)


def test_images_are_spread_over_those_with_objects(make_data, make_detections):
    data = make_data(10, [(i, 1, BOX) for i in (2, 4, 6, 8)])
    nothing = make_detections(data, [])
    assert choose_images(data, nothing, 2) == [1, 5]
    assert choose_images(data, nothing, 4) == [1, 3, 5, 7]
    assert choose_images(data, nothing, 99) == [1, 3, 5, 7]
    assert choose_images(data, nothing, 0) == []
    assert choose_images(data, make_detections(data, [], evaluated=[4, 5]), 3) == [3]
    assert choose_images(data, make_detections(data, [], evaluated=[5, 7]), 1) == [4]


def test_sheets_are_written_whole_and_the_first_is_returned(make_set, make_detections, tmp_path):
    data = make_set(5, [(i, 1, BOX) for i in range(1, 6)])
    folder = tmp_path / "plots"
    sheet = draw_predictions(data, make_detections(data, []), folder, 5)
    assert sorted(p.name for p in folder.iterdir()) == ["predictions_1.png", "predictions_2.png"]
    with Image.open(folder / "predictions_1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), sheet)
    assert draw_predictions(data, make_detections(data, []), folder, 0) is None


def test_an_unreadable_image_is_gray(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX)])
    sheet = draw_sheet([panels_of(data, make_detections(data, []), 0)])
    assert color_at(sheet, 1, 20, 20) == (128, 128, 128)


@pytest.mark.parametrize("name", ["$x^2", "_", "\u732b", "\U0001f9a9", "{%s}", "a\nb", "x" * 99])
def test_a_category_and_a_file_may_have_any_name(make_data, make_detections, name):
    images = [{"id": 1, "file_name": name.replace("\n", "") + ".jpg", "width": 64, "height": 48}]
    data = make_data(1, [(1, 1, (5.0, 5.0, 20.0, 20.0))], names=(name,), images=images)
    found = make_detections(data, [(1, 1, (5.0, 5.0, 20.0, 20.0), 0.9)])
    assert draw_sheet([panels_of(data, found, 0)]).ndim == 3


def test_classes_have_different_colors():
    assert class_color(0) == COLORS[0]
    assert len({class_color(label) for label in range(200)}) == 200


def test_the_best_prediction_is_drawn_last_on_top_of_the_others(make_set, make_detections):
    data = make_set(1, [(1, 1, BOX)])
    found = make_detections(data, [(1, 1, BOX, 0.9), (1, 2, BOX, 0.4), (1, 2, BOX, 0.6)])
    captions = panels_of(data, found, 0)[1].captions
    assert captions == ["dog 0.40", "dog 0.60", "cat 0.90"]
