"""Boxes on images and sheets: where they belong, inside the picture, with legible names."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from retinanet.data.loader import Batch
from retinanet.data.transforms import Augment
from retinanet.matching import Matcher
from retinanet.tools.report import boxes, style, tensorboard
from retinanet.tools.report.boxes import (
    GAP,
    HEADER,
    MAX_HEIGHT,
    MAX_NAMED,
    PANEL_WIDTH,
    TITLE_LINE,
    Box,
    Panel,
    choose_images,
    class_names,
    draw_boxes,
    draw_detections,
    draw_predictions,
    draw_sheet,
    panels_of,
    write_sheets,
)
from retinanet.tools.report.style import class_color

BOX, CORNERS = (160.0, 120.0, 320.0, 240.0), [160.0, 120.0, 480.0, 360.0]


def rgb(label):
    return ImageColor.getrgb(class_color(label))


def draw(height, width, *drawn):
    """Pixels of a black image with boxes: (corners, label, caption, style ...)."""
    image = Image.new("RGB", (width, height))
    draw_boxes(image, [Box(corners, class_color(k), *more) for corners, k, *more in drawn])
    assert image.size == (width, height)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("size", "box", "colored", "black"),
    [
        (
            (480, 640),
            [200, 150, 401, 300],
            [(299, 300), (300, 300), (250, 199), (250, 200), (250, 400), (250, 401)],
            [(297, 300), (302, 300), (250, 197), (250, 203), (250, 398), (250, 403)],
        ),
        # The whole image, on all sides.
        *(
            ((h, w), [0, 0, w, h], [(-1, w // 2), (h // 2, -1), (-1, 0), (-1, -1)], [])
            for h, w in [(480, 640), (75, 100), (3000, 4000), (9, 7)]
        ),
        # The smallest boxes.
        ((75, 100), [10.2, 10.2, 10.4, 10.3], [(10, 10)], []),
        ((75, 100), [99.9, 74.9, 100, 75], [(74, 99)], []),
        ((75, 100), [0, 0, 0.1, 75], [(37, 0)], []),
        # Edges beyond the image are not drawn.
        *(
            ((75, 100), [-far, 30, 100 + far, 60], [(30, 0), (59, 99)], [(32, 0), (45, 99)])
            for far in (50.0, 1e30)
        ),
    ],
)
def test_lines_are_centered_on_the_edges_of_a_box_within_the_image(size, box, colored, black):
    pixels = draw(*size, (box, 3, "cat"))
    assert {tuple(pixels[at]) for at in colored} == {rgb(3)}
    assert not any(pixels[at].any() for at in black)


def test_lines_and_letters_grow_with_the_image():
    def patch(height, width):
        """Line width, and height of the caption's patch, of a box in the middle."""
        corners = [width / 4, height / 2, width / 2, height * 0.9]
        colored = (draw(height, width, (corners, 0, "cat")) == rgb(0)).all(axis=-1)
        line = colored[height * 3 // 4, : width * 3 // 8].sum()
        return line, height // 2 - np.flatnonzero(colored[:, width // 4])[0]

    small, large = patch(480, 640), patch(4800, 6400)
    assert small == (2, pytest.approx(16, abs=3))
    assert large == (pytest.approx(10 * small[0], abs=5), pytest.approx(10 * small[1], rel=0.15))


@pytest.mark.parametrize("box", [[0, 0, 60, 40], [580, 0, 640, 40], [600, 440, 640, 480]])
def test_captions_stay_in_the_picture(box):
    white = [
        (draw(480, 640, (corners, 0, "elephant")) > 200).all(axis=-1).sum()
        for corners in (box, [300, 200, 360, 240])
    ]
    assert white[0] == white[1] > 30


@pytest.mark.parametrize(("label", "ink"), [(0, 255), (4, 0)], ids=["blue", "yellow"])
def test_letters_are_black_on_bright_colors(label, ink):
    pixels = draw(100, 200, ([20, 50, 150, 90], label, "cat"))
    above = pixels[:48, 20:80].reshape(-1, 3)
    assert (above == rgb(label)).all(axis=1).any()
    assert (ink == above).all(axis=1).any()


def test_the_last_box_is_on_top_and_only_the_last_have_names():
    box = [100, 100, 200, 200]
    pixels = draw(480, 640, (box, 1, "dog"), (box, 0, "cat"))
    assert tuple(pixels[150, 100]) == rgb(0)
    many = draw(480, 640, ([400, 300, 500, 400], 0, "cat"), *[(box, 0, "cat")] * MAX_NAMED)
    assert not (many[250:297, 400:500] != 0).any()


def test_captions_leave_most_of_a_small_image_to_be_seen(monkeypatch):
    def share_covered():
        # Boxes of one pixel: nearly all that is filled are patches of captions.
        rows = [([0, 14 + 15 * i, 1, 15 + 15 * i], 0, "cat 0.90") for i in range(4)]
        return (draw(75, 100, *rows) != 0).any(axis=-1).mean()

    share = share_covered()
    assert 0.1 < share < boxes.MOST_COVERED + 0.02
    monkeypatch.setattr(boxes, "MOST_COVERED", 1.0)
    assert share_covered() > share + 0.05


@pytest.mark.parametrize(
    "name", ["", "$x^2", "_", "\u732b", "\U0001f9a9", "{%s}", "a\nb", "x" * 99, "\udcff"]
)
def test_any_name_can_be_drawn(name):
    assert draw(48, 64, ([5, 5, 40, 40], 0, name)).any()
    assert draw_sheet([[Panel(name, np.zeros((48, 64, 3), np.uint8), (48, 64), [])]]).any()


def test_a_name_is_drawn_by_the_first_font_with_its_letters_or_by_its_id(monkeypatch):
    latin, han = frozenset(map(ord, "abcdefghi 0")), frozenset(map(ord, "\u732b\u72ac"))
    for cached in (style.families, style.font_path):
        monkeypatch.setattr(style, cached.__name__, cached.__wrapped__)
    installed = [type("Font", (), {"name": name}) for name in ("SimHei", "Unheard Of")]
    monkeypatch.setattr(style.font_manager.fontManager, "ttflist", installed)
    monkeypatch.setattr(style.font_manager, "findfont", lambda name: name)
    letters = {style.BASE_FONT: latin, "SimHei": latin | han}
    monkeypatch.setattr(style, "_letters", letters.__getitem__)
    assert style.families() == (style.BASE_FONT, "SimHei")
    for text, font in {"abc": style.BASE_FONT, "\u732b a": "SimHei", "\u732b \u0643": None}.items():
        assert style.font_path(text) == font
    assert style.font_path("a\nb") == style.BASE_FONT  # what cannot be printed is not drawn

    installed.pop(0)
    names, ids = ["dad", "\u732b", "\u72ac"], [1, 17, 19]
    assert style.drawable_names(names, ids) == ["dad", "id 17", "id 19"]
    note = style.check_letters(names, ids)
    assert "letters of 2 of 3 class names; pictures show id 17 for \u732b, id 19 for" in note
    assert style.check_letters(["dad"], [1]) is None


def test_a_crowd_is_dashed_and_hatched():
    colored = (draw(400, 400, ([100, 100, 300, 300], 0, "", "crowd")) == rgb(0)).all(axis=-1)
    assert 0.3 < colored[100, 100:300].mean() < 0.7
    assert 0.05 < colored[110:290, 110:290].mean() < 0.3
    assert not colored[:95].any() and not colored[:, 305:].any()


def test_a_faint_box_lets_the_image_through_and_a_haloed_one_stands_out():
    half = draw(100, 100, ([20, 20, 80, 80], 0, "", "thin", 0.5))[50, 20]
    assert half.tolist() == pytest.approx([part / 2 for part in rgb(0)], abs=2)
    haloed = draw(100, 100, ([20, 20, 80, 80], 0, "", "haloed"))[50, 15:25].tolist()
    assert list(rgb(0)) in haloed and haloed.count([255, 255, 255]) == 2


def panel(width, height, title="title", reduce=1, drawn=()):
    image = np.zeros((height // reduce, width // reduce, 3), np.uint8)
    return Panel(title, image, (height, width), drawn)


def test_boxes_of_a_sheet_are_in_pixels_of_the_file():
    drawn = [Box([160, 120, 480, 360], class_color(0))]
    sheet = draw_sheet([[panel(640, 480), panel(640, 480, reduce=4, drawn=drawn)]])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (HEADER + 360 + GAP, 2 * PANEL_WIDTH + 3 * GAP, 3)
    left = PANEL_WIDTH + 2 * GAP
    assert tuple(sheet[HEADER + 180, left + 360]) == rgb(0)
    assert not sheet[HEADER + 180, left + 130 : left + 350].any()
    assert not sheet[HEADER + 180, GAP : GAP + PANEL_WIDTH].any()


def test_sheets_have_room_for_every_shape_title_and_legend():
    def ink(part):
        return (part < 128).any()

    rows = [
        [panel(100, 5000), panel(5000, 10)],  # a tower and a line
        [panel(640, 480, "first\n" + "W" * 999)],
    ]
    plain = draw_sheet(rows)
    height = HEADER + MAX_HEIGHT + GAP + HEADER + TITLE_LINE + 360 + GAP
    assert plain.shape == (height, 2 * PANEL_WIDTH + 3 * GAP, 3)
    second = plain[HEADER + MAX_HEIGHT + GAP :][: HEADER + TITLE_LINE]
    assert ink(second[:TITLE_LINE]) and ink(second[TITLE_LINE:, : PANEL_WIDTH + GAP])
    assert not ink(second[:, PANEL_WIDTH + GAP :])  # cut where the panel ends

    legend = {f"entry number {i}": class_color(0) for i in range(12)} | {"no color": None}
    with_legend = draw_sheet(rows, legend)
    above = with_legend.shape[0] - plain.shape[0]
    assert above > 2 * TITLE_LINE  # it takes more than one line
    np.testing.assert_array_equal(with_legend[above:], plain)
    assert (with_legend[:above] == rgb(0)).all(axis=-1).any()
    assert not ink(with_legend[:, -GAP:])


def test_sheets_are_written_whole_and_those_of_before_go(tmp_path):
    (tmp_path / "sample_7.png").write_text("")
    (tmp_path / "mine.png").write_text("")
    files, first = write_sheets([[panel(64, 48)]] * 5, tmp_path, "sample")
    assert files == [tmp_path / "sample_1.png", tmp_path / "sample_2.png"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine.png", *files]
    with Image.open(files[0]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), first)
    assert write_sheets([], tmp_path, "sample") == ([], None)


def test_panels_show_boxes_with_names_and_say_how_many(make_set, make_detections):
    data = make_set(1, [(1, 1, BOX), (1, 2, (0.0, 0.0, 99.0, 99.0), True)])
    rows = [(1, 2, BOX, 0.914), (1, 1, BOX, 0.6), (1, 1, BOX, 0.29)]
    ground_truth, detected = panels_of(data, make_detections(data, rows), 0, class_names(data))
    assert ground_truth.title == "1.jpg, ground truth: 1"
    assert ground_truth.boxes[0] == (CORNERS, class_color(0), "cat", "solid", 1.0)
    assert ground_truth.boxes[1][2:4] == ("crowd: dog", "crowd")
    assert detected.title == "predictions with score \u2265 0.3: 2"
    assert [box.caption for box in detected.boxes] == ["cat 0.60", "dog 0.91"]  # the best on top
    assert detected.boxes[1] == (CORNERS, class_color(1), "dog 0.91", "solid", 1.0)
    weak = panels_of(data, make_detections(data, [(1, 1, BOX, 0.12)]), 0, class_names(data))[1]
    assert weak.title.endswith(": 0, the best has 0.12") and not weak.boxes


@pytest.mark.parametrize(
    ("evaluated", "number", "chosen"),
    [
        (None, 2, [1, 5]),
        (None, 4, [1, 3, 5, 7]),
        (None, 99, [1, 3, 5, 7]),
        (None, 0, []),
        ([4, 5], 3, [3]),
        ([5, 7], 1, [4]),
    ],
)
def test_images_are_spread_over_those_with_objects(
    make_data, make_detections, evaluated, number, chosen
):
    data = make_data(10, [(i, 1, BOX) for i in (2, 4, 6, 8)])
    assert choose_images(data, make_detections(data, [], evaluated), number) == chosen


def test_predictions_are_written_and_the_first_sheet_is_returned(
    make_set, make_detections, tmp_path
):
    data = make_set(5, [(i, 1, BOX) for i in range(1, 6)])
    data.image_path(0).unlink()
    sheet = draw_predictions(data, make_detections(data, []), tmp_path / "plots", 5)
    with Image.open(tmp_path / "plots/predictions_1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), sheet)
    assert sheet[HEADER + 20, 2 * GAP + PANEL_WIDTH + 20].tolist() == [128, 128, 128]  # no file
    assert len(list((tmp_path / "plots").iterdir())) == 2
    assert draw_predictions(data, make_detections(data, []), tmp_path / "plots", 0) is None
    # A test set has no panel of ground truth.
    data = make_set(2, [], annotations=None)
    sheet = draw_predictions(data, make_detections(data, [(1, 1, BOX, 0.9)]), tmp_path, 2)
    assert sheet.shape == (2 * (360 + HEADER + GAP), PANEL_WIDTH + 2 * GAP, 3)


def test_detections_are_drawn_on_a_copy_with_the_best_on_top():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    before = image.copy()
    two = [CORNERS, CORNERS], [0, 1], ["cat", "dog"], [1, 2], [0.9, 0.5]
    assert tuple(np.asarray(draw_detections(image, *two))[240, 160]) == rgb(0)
    nothing = draw_detections(image, np.zeros((0, 4)), [], [], [], [])
    assert np.array_equal(np.asarray(nothing), before) and np.array_equal(image, before)


@pytest.fixture
def data(make_set):
    return make_set(2, [(1, 1, (0, 0, 40, 44)), (1, 2, (60, 60, 3, 3)), (2, 1, (60, 20, 30, 30))])


@pytest.mark.parametrize("with_objects", [True, False])
def test_images_of_a_batch_show_their_objects_and_matched_anchors(data, with_objects):
    objects = [[[0, 0, 40, 44], [60, 60, 63, 63]], [[60, 20, 90, 50], [0, 0, 0, 0]]]
    batch = Batch(
        images=torch.full((2, 3, 96, 128), 120, dtype=torch.uint8),
        sizes=torch.tensor([[96, 128], [80, 100]]),
        boxes=torch.tensor(objects, dtype=torch.float32),
        labels=torch.tensor([[0, 1], [0, -1]] if with_objects else [[-1, -1]] * 2),
        crowds=torch.zeros(2, 0, 4),
        image_ids=torch.tensor([1, 2]),
        original_sizes=torch.tensor([[480, 640], [480, 640]]),
    )
    # IoU with the first object: 1600 / 1760 and 1760 / 2400; nothing touches the second.
    anchors = torch.tensor([[0, 0, 40, 40], [0, 0, 40, 60], [60, 20, 90, 50], [100, 0, 110, 9.0]])
    matcher = Matcher(positive_iou=0.8, negative_iou=0.5)
    match = matcher(anchors, batch.boxes, batch.labels, batch.crowds)
    scores = torch.full((2, 4), 0.2)
    sheet = tensorboard.draw_anchors(batch, match, anchors, scores, data)
    assert sheet.shape[1] == 2 * PANEL_WIDTH + 3 * GAP
    first, second = tensorboard.anchor_panels(batch, match, anchors, scores, data)
    # Without the padding.
    assert (first.image.shape, second.image.shape) == ((96, 128, 3), (80, 100, 3))
    if not with_objects:
        assert first.title.endswith("0 objects, 0 positive anchors, 0 ignored")
        return
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
    assert [box.color for box in second.boxes] == [class_color(0)] * 2


def test_the_fixed_batch_is_the_same_and_none_where_there_is_none(data, make_data):
    augment = Augment(min_size=96, max_size=128)
    first, again = (tensorboard.fixed_batch(data, augment) for _ in range(2))
    assert first.image_ids.tolist() == [1, 2]
    assert torch.equal(first.images, again.images)
    (data.image_root / "2.jpg").unlink()
    assert tensorboard.fixed_batch(data, augment) is None
    assert tensorboard.fixed_batch(make_data(3, []), augment) is None
