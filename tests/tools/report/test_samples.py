"""Pictures of a data set: every class is seen, findings where they are, names of any script."""

import warnings

import numpy as np
import pytest
from PIL import Image

from retinanet.data.issues import Issue, Sight
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.anchor_coverage import objects_at
from retinanet.tools.check_data import samples
from retinanet.tools.check_data.box_sizes import plot_box_sizes, plot_classes
from retinanet.tools.check_data.samples import choose_images, draw_findings, draw_samples
from retinanet.tools.report.pictures import GAP, HEADER, PANEL_WIDTH
from retinanet.tools.report.style import COLORS

BOX = (160.0, 120.0, 320.0, 240.0)


@pytest.fixture
def make_set(make_data):
    """Like make_data, with black 640 x 480 files for the images."""

    def make(num_images, rows, **fields):
        data = make_data(num_images, rows, **fields)
        for index in range(len(data)):
            Image.new("RGB", (640, 480)).save(data.image_path(index))
        return data

    return make


def has_color(sheet: np.ndarray, color: str, x: float, y: float, scale: float, column=0) -> bool:
    """Whether a color is near the pixel (x, y) of a panel of the first row."""
    left, top = GAP + column * (PANEL_WIDTH + GAP) + x * scale, HEADER + y * scale
    part = sheet[round(top) - 3 : round(top) + 4, round(left) - 3 : round(left) + 4]
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(part.astype(int) - rgb).max(axis=-1) < 40).any())


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_every_class_is_seen_on_few_images(make_data):
    # Image 12 alone shows three classes; the fourth is on image 5 only, the fifth on none.
    rows = [(i, 1, BOX) for i in range(1, 20)]
    rows += [(12, 2, BOX), (12, 3, BOX), (5, 4, BOX)]
    data = make_data(20, rows, names=("a", "b", "c", "d", "e"))
    chosen, unseen = choose_images(data)
    assert {4, 11} <= set(chosen)
    assert len(chosen) == samples.LEAST_IMAGES
    assert 19 not in chosen
    assert unseen == 0


def test_more_classes_than_there_is_room_for_are_counted(make_data, monkeypatch):
    monkeypatch.setattr(samples, "MOST_IMAGES", 3)
    names = tuple(f"class {i}" for i in range(9))
    data = make_data(9, [(i, i, BOX) for i in range(1, 10)], names=names)
    monkeypatch.setattr(samples, "LEAST_IMAGES", 0)
    chosen, unseen = choose_images(data)
    assert (len(chosen), unseen) == (3, 6)


def test_a_set_without_boxes_shows_images(make_set, tmp_path):
    data = make_set(3, [])
    sheets, unseen = draw_samples(data, "train", tmp_path / "out")
    assert [path.name for path in sheets] == ["sample_1.png"]
    assert unseen == 0
    assert choose_images(data)[0] == [0, 1, 2]


def test_boxes_of_a_sample_are_where_they_are(make_set, tmp_path):
    data = make_set(1, [(1, 2, BOX)])
    (path,) = draw_samples(data, "train", tmp_path / "out")[0]
    sheet = read(path)
    assert has_color(sheet, COLORS[1], 480, 240, PANEL_WIDTH / 640)
    assert not has_color(sheet, COLORS[1], 320, 240, PANEL_WIDTH / 640)


def test_old_sheets_go(make_set, tmp_path):
    (tmp_path / "sample_7.png").write_text("")
    (tmp_path / "mine.png").write_text("")
    draw_samples(make_set(1, [(1, 1, BOX)]), "train", tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["mine.png", "sample_1.png"]


def issues_of(*sights) -> list[Issue]:
    return [
        Issue(f"annotations: kind {number}", 1, ["a.json"], "goes on", "", sights=[sight])
        for number, sight in enumerate(sights)
    ]


def test_a_finding_shows_its_box_alone(make_set, tmp_path):
    data = make_set(1, [(1, 1, BOX), (1, 2, (10.0, 10.0, 60.0, 400.0))])
    (path,) = draw_findings(issues_of((Sight(data, 0, 0),)), tmp_path / "out")
    sheet = read(path)
    assert has_color(sheet, COLORS[0], 480, 240, PANEL_WIDTH / 640)
    assert not has_color(sheet, COLORS[1], 70, 300, PANEL_WIDTH / 640)


def test_a_box_outside_is_seen_beside_the_image(make_set, tmp_path):
    data = make_set(1, [(1, 1, (600.0, 100.0, 120.0, 100.0))])
    (path,) = draw_findings(issues_of((Sight(data, 0, 0),)), tmp_path / "out")
    sheet = read(path)
    scale = PANEL_WIDTH / 720  # 80 pixels of gray at the right
    assert has_color(sheet, COLORS[0], 660, 200, scale)
    assert has_color(sheet, "#d2d2d2", 690, 300, scale)
    assert has_color(sheet, "#000000", 620, 300, scale)


@pytest.mark.parametrize("box", [(1e30, 0.0, 1e30, 5.0), (-1e30, -1e30, 1.0, 1.0)])
def test_absurd_boxes_make_no_absurd_pictures(make_set, tmp_path, box):
    data = make_set(
        1,
        [(1, 1, box)],
        annotations=[
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(box), "area": 1, "iscrowd": 0}
        ],
    )
    (path,) = draw_findings(issues_of((Sight(data, 0, 0),)), tmp_path / "out")
    assert max(read(path).shape) < 2000


def test_pairs_stand_side_by_side_and_singles_two_in_a_row(make_set, tmp_path):
    data = make_set(3, [(1, 1, BOX), (2, 2, BOX)])
    one, two, three = (Sight(data, i) for i in range(3))
    (path,) = draw_findings(issues_of((one, two), (three,), (one,), (two,)), tmp_path / "out")
    assert read(path).shape[0] == 3 * (PANEL_WIDTH * 480 // 640 + HEADER + GAP)
    assert draw_findings(issues_of(), tmp_path / "none") == []


def test_plots_of_sizes_and_classes_are_drawn_for_any_set(make_data, tmp_path):
    names = tuple(f"class {i}" for i in range(120))
    boxes = [(1, 1, BOX), (1, 2, (0.0, 0.0, 3.0, 3.0))] + [(2, 1, BOX)] * 60
    for number, rows in enumerate((boxes, [])):
        data = make_data(2, rows, names=names)
        found = objects_at(data, min_size=480, max_size=800)
        plot_box_sizes(found, AnchorGenerator(), 0.5, 480, tmp_path / f"sizes_{number}.png")
        plot_classes({"train": data, "val": data}, tmp_path / f"classes_{number}.png")
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert not np.array_equal(read(tmp_path / "sizes_0.png"), read(tmp_path / "sizes_1.png"))


@pytest.mark.parametrize("name", ["红细胞", "$x^2_1", "_", "😀 cell", "a\nb", "x" * 99, "{%s}"])
def test_names_of_any_script_are_drawn_without_a_warning(make_set, tmp_path, name):
    data = make_set(1, [(1, 1, BOX)], names=(name,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_samples(data, "train", tmp_path / "out")
        plot_classes({"train": data}, tmp_path / "classes.png")
