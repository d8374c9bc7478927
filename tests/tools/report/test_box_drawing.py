"""Boxes on images and sheets: where they belong, inside the picture, with legible names."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from retinanet.tools.report import boxes
from retinanet.tools.report.boxes import (
    GAP,
    HEADER,
    MAX_HEIGHT,
    MAX_NAMED,
    PANEL_WIDTH,
    TITLE_LINE,
    Box,
    Panel,
    draw_boxes,
    draw_sheet,
    write_sheets,
)
from retinanet.tools.report.style import class_color

BLACK = (0, 0, 0)


def rgb(label):
    return ImageColor.getrgb(class_color(label))


def draw(height, width, *drawn):
    """Pixels of a black image with boxes: (corners, label, caption, style ...)."""
    image = Image.new("RGB", (width, height))
    draw_boxes(image, [Box(corners, class_color(k), *more) for corners, k, *more in drawn])
    assert image.size == (width, height)
    return np.asarray(image)


def test_lines_are_centered_on_the_edges_of_a_box():
    pixels = draw(480, 640, ([200, 150, 401, 300], 3))
    for row, column in [(299, 300), (300, 300), (250, 199), (250, 200), (250, 400), (250, 401)]:
        assert tuple(pixels[row, column]) == rgb(3)
    for row, column in [(297, 300), (302, 300), (250, 197), (250, 203), (250, 398), (250, 403)]:
        assert tuple(pixels[row, column]) == BLACK


@pytest.mark.parametrize(("height", "width"), [(480, 640), (75, 100), (3000, 4000), (9, 7)])
def test_a_box_of_the_whole_image_is_seen_on_all_sides(height, width):
    pixels = draw(height, width, ([0, 0, width, height], 0))
    edges = [pixels[-1, width // 2], pixels[height // 2, -1], pixels[-1, 0], pixels[-1, -1]]
    assert {tuple(edge) for edge in edges} == {rgb(0)}


@pytest.mark.parametrize("box", [[10.2, 10.2, 10.4, 10.3], [99.9, 74.9, 100, 75], [0, 0, 0.1, 75]])
def test_the_smallest_box_is_drawn(box):
    assert (draw(75, 100, (box, 0)) == rgb(0)).all(axis=-1).any()


@pytest.mark.parametrize("far", [50.0, 1e30])
def test_an_edge_beyond_the_image_is_not_drawn(far):
    pixels = draw(75, 100, ([-far, 30, 100 + far, 60], 0, "cat"))
    assert (pixels[[30, 59]] == rgb(0)).all()
    assert not pixels[32:58].any()


def test_lines_and_letters_grow_with_the_image():
    def patch(height, width):
        """Line width, and height of the caption's patch, of a box in the middle."""
        corners = [width / 4, height / 2, width / 2, height * 0.9]
        colored = (draw(height, width, (corners, 0, "cat")) == rgb(0)).all(axis=-1)
        line = colored[height * 3 // 4, : width * 3 // 8].sum()
        return line, height // 2 - np.flatnonzero(colored[:, width // 4])[0]

    small, large = patch(480, 640), patch(4800, 6400)
    assert small == (2, pytest.approx(16, abs=3))
    assert large[0] == pytest.approx(10 * small[0], abs=5)
    assert large[1] == pytest.approx(10 * small[1], rel=0.15)


@pytest.mark.parametrize("box", [[0, 0, 60, 40], [580, 0, 640, 40], [600, 440, 640, 480]])
def test_captions_stay_in_the_picture(box):
    white = [
        (draw(480, 640, (corners, 0, "elephant")) > 200).all(axis=-1).sum()
        for corners in (box, [300, 200, 360, 240])
    ]
    assert white[0] == white[1] > 30


def test_letters_are_black_on_bright_colors():
    for label, ink in ((0, 255), (4, 0)):  # blue, yellow
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


def test_a_crowd_is_dashed_and_hatched():
    pixels = draw(400, 400, ([100, 100, 300, 300], 0, "", "crowd"))
    colored = (pixels == rgb(0)).all(axis=-1)
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
