"""Images of every type become the same pixels, and batches depend on the images alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet import Detector, build
from retinanet.cli.main import composer
from retinanet.data.images import read_image
from retinanet.tools.predict.detector import (
    WAITING_BATCHES,
    Resized,
    Unreadable,
    in_batches,
    pad_together,
    read_pixels,
)


def test_a_file_an_image_an_array_and_a_tensor_have_the_same_pixels(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(rgb).save(path, exif=exif)
    expected = read_image(path)
    assert expected.shape == (3, 32, 24)
    with Image.open(path) as image:
        turned = np.rot90(rgb, -1)  # strides are negative
        tensor = torch.from_numpy(turned.copy()).permute(2, 0, 1)
        for same in (str(path), image, turned, tensor):
            assert torch.equal(read_pixels(same), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"array \(H, W, 3\) of uint8 .* got \(4, 5\) of uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\) of uint8"),
        (np.zeros((4, 5, 3)), r"got \(4, 5, 3\) of float64"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"tensor \(3, H, W\) .* got \(4, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"got \(3, 4, 5\) of torch.float32"),
        (7, "a path, an image of Pillow, an array or a tensor"),
    ],
)
def test_other_arrays_and_types_are_refused(image, message):
    with pytest.raises(TypeError if isinstance(image, int) else ValueError, match=message):
        read_pixels(image)


def resized(index, height, width):
    pixels = torch.full((3, height, width), index, dtype=torch.uint8)
    return Resized(index, pixels, (2 * height, 2 * width))


def test_batches_have_one_padded_size_and_hold_every_image_once():
    sizes = [(20, 30), (40, 30), (32, 32), (33, 20), (1, 1), (20, 31)]
    images = [resized(i, *size) for i, size in enumerate(sizes)]
    images.insert(2, Unreadable(9, ValueError("no")))
    groups = list(in_batches(images, 2))
    indices = [[i.index for i in g] if isinstance(g, list) else g.index for g in groups]
    assert indices == [9, [0, 2], [1, 3], [4, 5]]


def test_a_rare_size_does_not_wait_for_ever():
    images = [resized(0, 50, 20), *(resized(i, 20 + 32 * (i % 7), 20) for i in range(1, 100))]
    groups = list(in_batches(iter(images), 3))
    assert max(map(len, groups)) == 3
    indices = [image.index for group in groups for image in group]
    assert sorted(indices) == list(range(100))
    assert indices.index(0) <= 3 * WAITING_BATCHES


def test_a_batch_is_padded_at_right_and_bottom():
    images, sizes, originals = pad_together([resized(5, 20, 30), resized(6, 32, 1)])
    assert images.shape == (2, 3, 32, 32)
    assert images.sum().item() == 3 * (5 * 20 * 30 + 6 * 32)
    assert (images[0, :, :20, :30] == 5).all()
    assert sizes.tolist() == [[20, 30], [32, 1]]
    assert originals.tolist() == [[40, 60], [64, 2]]


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_read_ahead_change_nothing(tmp_path, workers):
    typed = ["model=tiny", "model.fpn_channels=16", "model.head_channels=16", "model.head_depth=1"]
    with composer("train") as reader:
        settings = reader.command([*typed, "data.min_size=48", "data.max_size=60"]).settings
    detector = Detector(build.build_model(settings, 2).eval(), settings, ["a", "b"], [1, 2])
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("no image")
    images = [tmp_path / name for name in ("b.jpg", "gone.jpg", "a.png")] + [rgb[:, ::-1]]
    alone = dict(detector.outcomes(images, score=0))
    ahead = dict(detector.outcomes(images, score=0, workers=workers))
    assert alone.keys() == ahead.keys() == {0, 1, 2, 3}
    assert isinstance(alone[0], ValueError)
    assert isinstance(alone[1], FileNotFoundError)
    for i in (0, 1):
        assert type(alone[i]) is type(ahead[i])
        assert str(alone[i]) == str(ahead[i])
    for i in (2, 3):
        assert alone[i].size == ahead[i].size == (24, 32)
        assert torch.equal(alone[i].boxes, ahead[i].boxes)
        assert len(alone[i].scores)
