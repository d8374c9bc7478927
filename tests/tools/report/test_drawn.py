"""Boxes on photos: where they belong, inside the picture, in the colors of the sheets."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from retinanet.tools.report import draw_boxes as drawn
from retinanet.tools.report.draw_boxes import draw_boxes
from retinanet.tools.report.pictures import MAX_NAMED, class_color

BLACK = (0, 0, 0)


def rgb(label):
    return tuple(round(255 * part) for part in to_rgb(class_color(label)))


def draw(height, width, boxes, labels=None, names=None, scores=None):
    labels = range(len(boxes)) if labels is None else labels
    names = names or ["cat"] * len(boxes)
    scores = scores or np.linspace(0.9, 0.5, len(boxes))
    image = np.zeros((height, width, 3), np.uint8)
    picture = draw_boxes(image, boxes, labels, names, range(len(boxes)), scores)
    assert picture.size == (width, height)
    assert not image.any()  # the caller's pixels stay
    return np.asarray(picture)


def test_lines_are_centered_on_the_edges_of_a_box():
    pixels = draw(480, 640, [[200, 150, 401, 300]], [3])
    for row, column in [(299, 300), (300, 300), (250, 199), (250, 200), (250, 400), (250, 401)]:
        assert tuple(pixels[row, column]) == rgb(3)
    for row, column in [(297, 300), (302, 300), (250, 197), (250, 203), (250, 398), (250, 403)]:
        assert tuple(pixels[row, column]) == BLACK


@pytest.mark.parametrize(("height", "width"), [(480, 640), (75, 100), (3000, 4000), (9, 7)])
def test_a_box_of_the_whole_photo_is_seen_on_all_sides(height, width):
    pixels = draw(height, width, [[0, 0, width, height]])
    edges = [pixels[-1, width // 2], pixels[height // 2, -1], pixels[-1, 0], pixels[-1, -1]]
    assert {tuple(edge) for edge in edges} == {rgb(0)}


@pytest.mark.parametrize("box", [[10.2, 10.2, 10.4, 10.3], [99.9, 74.9, 100, 75], [0, 0, 0.1, 75]])
def test_the_smallest_box_is_drawn(box):
    assert (draw(75, 100, [box]) == rgb(0)).all(axis=-1).any()


def test_lines_and_letters_grow_with_the_photo():
    def patch(height, width):
        """Line width, and height of the caption's patch, of a box in the middle."""
        pixels = draw(height, width, [[width / 4, height / 2, width / 2, height * 0.9]])
        colored = (pixels == rgb(0)).all(axis=-1)
        column = colored[:, width // 4]
        line = colored[height * 3 // 4, : width * 3 // 8].sum()
        return line, height // 2 - np.flatnonzero(column)[0]

    small, large = patch(480, 640), patch(4800, 6400)
    assert small == (2, pytest.approx(17, abs=3))
    assert large[0] == pytest.approx(10 * small[0], abs=5)
    assert large[1] == pytest.approx(10 * small[1], rel=0.15)


@pytest.mark.parametrize("box", [[0, 0, 60, 40], [580, 0, 640, 40], [600, 440, 640, 480]])
def test_captions_stay_in_the_picture(box):
    shown = draw(480, 640, [box], [0], ["elephant"], [0.5])
    inside = draw(480, 640, [[300, 200, 360, 240]], [0], ["elephant"], [0.5])
    white = [(pixels == 255).all(axis=-1).sum() for pixels in (shown, inside)]
    assert white[0] == white[1] > 30


def test_letters_are_black_on_bright_colors():
    for label, ink in ((0, 255), (4, 0)):  # blue, yellow
        pixels = draw(100, 200, [[20, 50, 150, 90]], [label])
        above = pixels[:48, 20:80].reshape(-1, 3)
        assert (above == rgb(label)).all(axis=1).any()
        assert (ink == above).all(axis=1).any()


def test_the_best_is_on_top_and_only_the_best_have_names():
    box = [100, 100, 200, 200]
    pixels = draw(480, 640, [box, box], [0, 1])
    assert tuple(pixels[150, 100]) == rgb(0)
    many = draw(480, 640, [[100, 100, 200, 200]] * MAX_NAMED + [[400, 300, 500, 400]])
    assert not (many[250:297, 400:500] != 0).any()


def test_captions_leave_most_of_a_small_photo_to_be_seen(monkeypatch):
    def share_covered():
        # Boxes of one pixel: nearly all that is filled are patches of captions.
        pixels = draw(75, 100, [[0, 14 + 15 * i, 1, 15 + 15 * i] for i in range(4)], [0] * 4)
        return (pixels != 0).any(axis=-1).mean()

    drawn_share = share_covered()
    assert 0.1 < drawn_share < drawn.MOST_COVERED + 0.02
    monkeypatch.setattr(drawn, "MOST_COVERED", 1.0)
    assert share_covered() > drawn_share + 0.05


@pytest.mark.parametrize("name", ["", "$x^2", "\U0001f9a9", "{%s}", "a\nb", "x" * 99, "\udcff"])
def test_a_class_may_have_any_name(name):
    assert draw(48, 64, [[5, 5, 40, 40]], [0], [name]).any()


def test_nothing_found_leaves_the_photo_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = draw_boxes(image, np.zeros((0, 4)), [], [], [], [])
    assert isinstance(picture, Image.Image)
    assert np.array_equal(np.asarray(picture), image)
