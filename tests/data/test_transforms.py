"""Pixels and boxes move together, and what is drawn depends on seed, epoch and image alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from retinanet.data import draws
from retinanet.data.coco import read_coco
from retinanet.data.images import read_image
from retinanet.data.transforms import (
    Augment,
    Geometry,
    resize,
    resized_size,
    resized_sizes,
    transform_boxes,
)

NONE = torch.zeros(0, 4)


def augment(**changes):
    settings = {"min_size": 64, "max_size": 128, "flip": 0.5, "train": True}
    return Augment(**(settings | changes))


def detectron2_size(h, w, size, max_size):
    """ResizeShortestEdge.get_output_shape of detectron2, retyped."""
    scale = float(size) / min(h, w)
    newh, neww = (size, scale * w) if h < w else (scale * h, size)
    if max(newh, neww) > max_size:
        scale = max_size * 1.0 / max(newh, neww)
        newh, neww = newh * scale, neww * scale
    return int(newh + 0.5), int(neww + 0.5)


def test_sizes_by_hand():
    by_hand = {
        (480, 640): (800, 1067),
        (640, 480): (1067, 800),
        (300, 600): (667, 1333),  # the longer side decides
        (1, 10000): (1, 1333),  # never zero
    }
    assert {size: resized_size(*size, 800, 1333) for size in by_hand} == by_hand


@pytest.mark.parametrize(("min_size", "max_size"), [(800, 1333), (640, 1066), (192, 320)])
def test_sizes_are_those_of_detectron2(min_size, max_size):
    sizes = np.random.default_rng(0).integers(40, 3000, (20000, 2))
    sizes[:100, 0] = sizes[:100, 1]
    expected = [detectron2_size(h, w, min_size, max_size) for h, w in sizes.tolist()]
    assert resized_sizes(sizes, min_size, max_size).tolist() == [list(size) for size in expected]


def mmcv_size(h, w, size, max_size):
    """rescale_size of mmcv, retyped: one factor for both sides."""
    factor = min(max_size / max(h, w), size / min(h, w))
    return int(h * factor + 0.5), int(w * factor + 0.5)


def test_sizes_are_those_of_mmcv():
    sizes = np.random.default_rng(0).integers(40, 3000, (20000, 2))
    sizes[0] = (105, 310)  # detectron2 says 451 x 1333
    expected = [mmcv_size(h, w, 800, 1333) for h, w in sizes.tolist()]
    assert expected[0] == (452, 1333)
    found = resized_sizes(sizes, 800, 1333, "opencv")
    assert found.tolist() == [list(size) for size in expected]


def plain_bilinear(image, height, width):
    """Two points along each axis, edges repeated, no antialiasing: (3, H, W) float64."""
    for axis, wanted in ((1, height), (2, width)):
        given = image.shape[axis]
        place = np.clip((np.arange(wanted) + 0.5) * given / wanted - 0.5, 0, given - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, given - 1)
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


@pytest.mark.parametrize("size", [(20, 31), (37, 49), (90, 111)])
def test_pixels_without_antialiasing_by_hand(picture, size):
    expected = plain_bilinear(picture.double().numpy(), *size)
    rounded = resize(picture, size, "opencv").double().numpy()
    assert np.abs(rounded - expected).max() < 1.01
    exact = resize(picture, size, "torchvision").double().numpy()
    assert np.abs(exact - expected).max() < 1e-3
    if size < picture.shape[1:]:
        smooth = resize(picture, size, "antialias").double().numpy()
        assert np.abs(smooth - expected).max() > 2  # the two can be told apart


@pytest.fixture
def picture():
    y, x = np.mgrid[0:60, 0:80]
    channels = [3 * x, 4 * y, 127 + 120 * np.sin(x / 5) * np.cos(y / 7)]
    return torch.from_numpy(np.stack(channels).astype(np.uint8))


@pytest.mark.parametrize("size", [(30, 41), (120, 160), (61, 79), (1, 1), (50, 1), (1, 90)])
def test_resized_pixels_are_pillows_within_one_level(picture, size):
    resized = resize(picture, size)
    assert resized.dtype == torch.uint8
    theirs = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
        size[::-1], Image.Resampling.BILINEAR
    )
    difference = resized.permute(1, 2, 0).numpy().astype(int) - np.array(theirs)
    assert abs(difference).max() <= 1


def test_the_same_size_changes_nothing(picture):
    assert resize(picture, (60, 80)) is picture


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((1.0, 1.0, 1.0), [100, 150, 200]),
        ((1.2, 1.0, 1.0), [120, 180, 240]),
        ((1.0, 0.0, 1.0), [140, 140, 140]),  # its mean brightness: .299 R + .587 G + .114 B
        ((1.0, 1.0, 0.0), [140, 140, 140]),
    ],
)
def test_colors_by_hand(color, expected):
    image = torch.tensor([100, 150, 200], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    geometry = Geometry((4, 4), color=color)
    image, *_ = augment()(image, NONE, torch.zeros(0, dtype=torch.int64), NONE, geometry)
    assert image[:, 0, 0].tolist() == expected


BOXES = torch.tensor([[10.0, 20.0, 30.0, 50.0], [0.0, 0.0, 80.0, 60.0], [79.0, 59.0, 80.0, 60.0]])


@pytest.mark.parametrize(
    ("geometry", "expected", "visible"),
    [
        # The third of the scaled ones is half a pixel wide.
        (Geometry((120, 40)), [[5, 40, 15, 100], [0, 0, 40, 120]], [True, True, False]),
        (Geometry((60, 80), None, True), [[50, 20, 70, 50], [0, 0, 80, 60], [0, 59, 1, 60]], None),
        # Rows 40 to 100, columns 25 to 105 of the doubled image.
        (
            Geometry((120, 160), (40, 25, 60, 80)),
            [[0, 0, 35, 60], [0, 0, 80, 60]],
            [True, True, False],
        ),
    ],
    ids=["scaled", "flipped", "cropped"],
)
def test_boxes_move_by_hand(geometry, expected, visible):
    boxes, kept = transform_boxes(BOXES, (60, 80), geometry)
    assert boxes.tolist() == expected
    assert kept.tolist() == (visible or [True] * 3)


def test_a_side_of_exactly_one_pixel_is_kept():
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.999, 5.0]])
    _, kept = transform_boxes(box, (10, 10), Geometry((10, 10)))
    assert kept.tolist() == [True, False]


def test_no_boxes_stay_no_boxes(picture):
    geometry = Geometry((30, 40), (0, 0, 20, 20), True)
    none = torch.zeros(0, dtype=torch.int64)
    image, boxes, labels, crowds = augment()(picture, NONE, none, NONE, geometry)
    assert (image.shape, boxes.shape, crowds.shape) == ((3, 20, 20), (0, 4), (0, 4))
    assert labels.shape == (0,)


def torchvision_sample(image, boxes, geometry):
    """The same geometry by torchvision's own transforms of images with boxes."""
    boxes = tv_tensors.BoundingBoxes(
        boxes, format="XYXY", canvas_size=image.shape[1:], clamping_mode=None
    )
    steps = [v2.Resize(list(geometry.size), antialias=True)]
    if geometry.crop is not None:
        steps.append(v2.Lambda(lambda x: TF.crop(x, *geometry.crop)))
    if geometry.flip:
        steps.append(v2.RandomHorizontalFlip(p=1.0))
    image, boxes = v2.Compose([*steps, v2.ClampBoundingBoxes(clamping_mode="soft")])(
        tv_tensors.Image(image), boxes
    )
    return image.as_subclass(torch.Tensor), boxes.as_subclass(torch.Tensor)


@pytest.mark.parametrize("scale", [None, (0.3, 2.0)])
def test_real_samples_are_those_of_torchvision(real_data, scale):
    root = real_data("coco_slice")
    data = read_coco(root / "annotations/instances_train2017.json", root / "train2017")
    transform = augment(min_size=300, max_size=500, scale=scale)
    for i in range(0, len(data), 3):
        image = read_image(data.image_path(i))
        boxes, labels = data.boxes(i)
        key = (1, 2, int(data.image_ids[i]))
        geometry = transform.plan(*image.shape[1:], *key)
        ours, our_boxes, our_labels, _ = transform(image, boxes, labels, data.crowds(i), geometry)
        theirs, their_boxes = torchvision_sample(image, boxes, geometry)
        kept = (their_boxes[:, 2:] - their_boxes[:, :2] >= 1).all(1)
        assert torch.equal(ours, theirs)
        assert tuple(ours.shape[1:]) == geometry.valid
        torch.testing.assert_close(our_boxes, their_boxes[kept], atol=1e-3, rtol=1e-5)
        assert torch.equal(our_labels, labels[kept])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("window", [None, (30, 20, 60, 90)])
def test_a_painted_box_is_found_where_the_box_went(flip, window):
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 20:50, 10:40] = 255
    geometry = Geometry((120, 160), window, flip)
    box = torch.tensor([[10.0, 20.0, 40.0, 50.0]])
    image, boxes, _, crowds = augment()(image, box, torch.tensor([3]), box, geometry)
    rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert boxes[0].tolist() == [side.item() for side in found]
    assert torch.equal(crowds, boxes)


def all_geometry(transform, *, seed=0, epoch=0, sizes=None, ids=None):
    ids = np.arange(1, 2001) if ids is None else ids
    sizes = np.tile([[480, 640]], (len(ids), 1)) if sizes is None else sizes
    return transform.plan_all(sizes, seed, epoch, ids)


JITTER = {"scale": (0.5, 2.0), "min_sizes": (48, 64, 80), "color": 0.4}


def test_one_plan_is_the_row_of_all_plans():
    transform = augment(**JITTER)
    ids = np.array([5, 139, 581929, 2**62, -3])
    sizes = np.array([[480, 640], [640, 480], [100, 1000], [33, 32], [500, 500]])
    together = all_geometry(transform, seed=3, epoch=4, sizes=sizes, ids=ids)
    for i, (height, width) in enumerate(sizes.tolist()):
        assert together[i] == transform.plan(height, width, 3, 4, int(ids[i]))


def test_plans_differ_between_seeds_epochs_and_images():
    transform = augment(**JITTER)
    plans = [transform.plan(480, 640, *key) for key in [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]]
    assert len(set(plans)) == 4


def test_global_generators_neither_matter_nor_change(picture):
    transform = augment(**JITTER)

    def sample():
        geometry = transform.plan(60, 80, 1, 2, 3)
        return transform(picture, BOXES, torch.arange(3), NONE, geometry)

    first = sample()
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    second = sample()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_the_share_of_flips_is_the_probability(flip):
    share = all_geometry(augment(flip=flip)).flip.mean()
    assert share == pytest.approx(flip, abs=0.03)


def test_min_sizes_are_drawn_equally():
    sizes = all_geometry(augment(min_sizes=(48, 64, 80))).size.min(axis=1)
    values, counts = np.unique(sizes, return_counts=True)
    assert values.tolist() == [48, 64, 80]
    assert (abs(counts / 2000 - 1 / 3) < 0.04).all()


def test_scale_jitter_stays_within_its_range_and_frame():
    geometry = all_geometry(augment(scale=(0.5, 2.0)))
    factor = geometry.size[:, 0] / 64
    assert factor.min() < 0.53
    assert factor.max() > 1.97
    top, left, height, width = geometry.window.T
    assert (height <= 64).all()
    assert (width <= 85).all()
    assert ((top >= 0) & (left >= 0)).all()
    assert (top + height <= geometry.size[:, 0]).all()
    assert (left + width <= geometry.size[:, 1]).all()
    larger = factor > 1.1
    assert (height[larger] == 64).all()
    # Crops reach both edges.
    assert (top[larger] == 0).any()
    assert (top + height == geometry.size[:, 0])[larger].any()


def test_a_crop_of_everything_is_no_crop():
    assert augment(scale=(0.5, 0.5)).plan(480, 640, 0, 0, 1).crop is None


def test_evaluation_only_resizes(picture):
    transform = augment(train=False, **JITTER)
    geometry = transform.plan(60, 80, 0, 0, 1)
    assert geometry == Geometry((64, 85), None, False)
    image, _, _, _ = transform(picture, BOXES, torch.arange(3), NONE, geometry)
    assert torch.equal(image, resize(picture, (64, 85)))


def test_colors_change_within_their_strength():
    transform = augment(color=0.2)
    factors = all_geometry(transform).color
    assert factors.min() >= 0.8
    assert factors.max() <= 1.2
    assert (abs(factors.mean(axis=0) - 1) < 0.03).all()
    assert abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, r"augment\.flip must lie in \[0, 1\], got 1\.5"),
        ({"scale": (2.0, 1.0)}, r"augment\.scale must not decrease"),
        ({"color": 1.0}, r"augment\.color"),
        ({"min_sizes": ()}, r"augment\.min_sizes must not be empty"),
        ({"rule": "nearest"}, r"data\.resize"),
        ({"min_size": 0}, r"data\.min_size must lie in \[1, 65536\], got 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        augment(**changes)


def test_draws_are_uniform_and_unrelated():
    ids = np.arange(50_000)
    columns = [draws.uniform(0, epoch, ids, purpose) for epoch in (0, 1) for purpose in range(5)]
    columns.append(draws.uniform(1, 0, ids, 0))
    for column in columns:
        assert ((column >= 0) & (column < 1)).all()
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        # Chi square with 19 degrees of freedom exceeds 50 once in 7000 columns.
        assert ((counts - 2500) ** 2 / 2500).sum() < 50
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.02
    correlation = np.corrcoef(columns)
    assert abs(correlation - np.eye(len(columns))).max() < 0.02


def test_draws_are_the_same_for_ever():
    # Golden: another value changes every run that anybody wants to repeat or continue.
    golden = [0.6116131227424615, 0.8647817916905968]
    assert draws.uniform(7, 3, np.array([139, 285]), draws.FLIP).tolist() == golden
