"""Pictures of a data set: every class is seen, findings where they are, names of any script."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageColor

from retinanet.data.issues import Issue, Sight
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.anchor_coverage import objects_at
from retinanet.tools.check_data import samples
from retinanet.tools.check_data.box_sizes import plot_box_sizes, plot_classes
from retinanet.tools.check_data.samples import choose_images, draw_findings, draw_samples
from retinanet.tools.report.boxes import GAP, HEADER, PANEL_WIDTH
from retinanet.tools.report.style import COLORS

BOX = (160.0, 120.0, 320.0, 240.0)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def has_color(sheet, color, x, y, width=640):
    """Whether a color is near the pixel (x, y) of the first panel, of so wide an image."""
    left, top = (round(n * PANEL_WIDTH / width) for n in (x, y))
    part = sheet[HEADER + top - 3 : HEADER + top + 4, GAP + left - 3 : GAP + left + 4]
    return bool((part == ImageColor.getrgb(color)).all(axis=-1).any())


def issues_of(*sights) -> list[Issue]:
    return [
        Issue(f"annotations: kind {number}", 1, ["a.json"], "goes on", "", sights=[sight])
        for number, sight in enumerate(sights)
    ]


def test_every_class_is_seen_on_few_images(make_data):
    # Image 12 alone shows three classes; the fourth is on image 5 only, the fifth on none.
    rows = [(i, 1, BOX) for i in range(1, 20)]
    rows += [(12, 2, BOX), (12, 3, BOX), (5, 4, BOX)]
    chosen, unseen = choose_images(make_data(20, rows, names=("a", "b", "c", "d", "e")))
    assert {4, 11} <= set(chosen) and 19 not in chosen
    assert (len(chosen), unseen) == (samples.LEAST_IMAGES, 0)
    assert choose_images(make_data(3, [])) == ([0, 1, 2], 0)


def test_more_classes_than_there_is_room_for_are_counted(make_data, monkeypatch):
    monkeypatch.setattr(samples, "MOST_IMAGES", 3)
    monkeypatch.setattr(samples, "LEAST_IMAGES", 0)
    names = tuple(f"class {i}" for i in range(9))
    data = make_data(9, [(i, i, BOX) for i in range(1, 10)], names=names)
    chosen, unseen = choose_images(data)
    assert (len(chosen), unseen) == (3, 6)


def test_a_sample_shows_all_boxes_and_a_finding_its_own(make_set, tmp_path):
    data = make_set(1, [(1, 1, BOX), (1, 2, (10.0, 10.0, 60.0, 400.0))])
    (sample,) = draw_samples(data, "train", tmp_path)[0]
    (finding,) = draw_findings(issues_of((Sight(data, 0, 0),)), tmp_path)
    assert (sample.name, finding.name) == ("sample_1.png", "findings_1.png")
    for path, both in ((sample, True), (finding, False)):
        sheet = read(path)
        assert has_color(sheet, COLORS[0], 480, 240)
        assert not has_color(sheet, COLORS[0], 320, 240)
        assert has_color(sheet, COLORS[1], 70, 300) == both


def test_a_box_outside_is_seen_beside_the_image(make_set, tmp_path):
    data = make_set(1, [(1, 1, (600.0, 100.0, 120.0, 100.0))])
    (path,) = draw_findings(issues_of((Sight(data, 0, 0),)), tmp_path)
    for color, x, y in ((COLORS[0], 660, 200), ("#d2d2d2", 690, 300), ("#000000", 620, 300)):
        assert has_color(read(path), color, x, y, 720)  # 80 pixels of gray at the right


@pytest.mark.parametrize("box", [(1e30, 0.0, 1e30, 5.0), (-1e30, -1e30, 1.0, 1.0)])
def test_absurd_boxes_make_no_absurd_pictures(make_set, tmp_path, box):
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(box), "area": 1, "iscrowd": 0}
    data = make_set(1, [], annotations=[row])
    (path,) = draw_findings(issues_of((Sight(data, 0, 0),)), tmp_path)
    assert max(read(path).shape) < 2000


def test_pairs_stand_side_by_side_and_singles_two_in_a_row(make_set, tmp_path):
    data = make_set(3, [(1, 1, BOX), (2, 2, BOX)])
    one, two, three = (Sight(data, i) for i in range(3))
    (path,) = draw_findings(issues_of((one, two), (three,), (one,), (two,)), tmp_path)
    assert read(path).shape[0] == 3 * (PANEL_WIDTH * 480 // 640 + HEADER + GAP)
    assert draw_findings(issues_of(), tmp_path) == []


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
