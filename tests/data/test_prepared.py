"""Photos of every kind become the same pixels, and batches depend on the photos alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.images import read_image
from retinanet.tools.predict.prepared import (
    WAITING_BATCHES,
    Prepared,
    Preparer,
    Unreadable,
    in_batches,
    pad_together,
    pixels_of,
    prepare_all,
)


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_a_file_an_image_an_array_and_a_tensor_are_the_same_photo(tmp_path, rgb):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(rgb).save(path, exif=exif)
    expected = read_image(path)
    assert expected.shape == (3, 32, 24)
    with Image.open(path) as image:
        turned = np.rot90(rgb, -1)  # strides are negative
        photos = [str(path), image, turned, torch.from_numpy(turned.copy()).permute(2, 0, 1)]
        for photo in photos:
            assert torch.equal(pixels_of(photo), expected)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"array \(H, W, 3\) of uint8 .* got \(4, 5\) of uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\) of uint8"),
        (np.zeros((4, 5, 3)), r"got \(4, 5, 3\) of float64"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"tensor \(3, H, W\) .* got \(4, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"got \(3, 4, 5\) of torch.float32"),
    ],
)
def test_other_arrays_are_refused(photo, message):
    with pytest.raises(ValueError, match=message):
        pixels_of(photo)


def test_what_is_no_photo_at_all_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match="a path, an image of Pillow, an array or a tensor"):
        pixels_of(7)


def prepared(index, height, width):
    image = torch.full((3, height, width), index, dtype=torch.uint8)
    return Prepared(index, image, (2 * height, 2 * width))


def test_batches_have_one_padded_size_and_hold_every_photo_once():
    sizes = [(20, 30), (40, 30), (32, 32), (33, 20), (1, 1), (20, 31)]
    photos = [prepared(i, *size) for i, size in enumerate(sizes)]
    photos.insert(2, Unreadable(9, ValueError("no")))
    groups = list(in_batches(photos, 2))
    assert [[p.index for p in g] if isinstance(g, list) else g.index for g in groups] == [
        9,
        [0, 2],
        [1, 3],
        [4, 5],
    ]


def test_a_rare_size_does_not_wait_for_ever():
    photos = [prepared(0, 50, 20), *(prepared(i, 20 + 32 * (i % 7), 20) for i in range(1, 100))]
    told = []
    for group in in_batches(iter(photos), 3):
        told += [photo.index for photo in group]
        assert len(group) <= 3
    assert sorted(told) == list(range(100))
    assert told.index(0) <= 3 * WAITING_BATCHES


def test_a_batch_is_padded_at_right_and_bottom():
    images, sizes, originals = pad_together([prepared(5, 20, 30), prepared(6, 32, 1)])
    assert images.shape == (2, 3, 32, 32)
    assert images.sum().item() == 3 * (5 * 20 * 30 + 6 * 32)
    assert (images[0, :, :20, :30] == 5).all()
    assert sizes.tolist() == [[20, 30], [32, 1]]
    assert originals.tolist() == [[40, 60], [64, 2]]


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_read_the_same_in_the_same_order(tmp_path, rgb, workers):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("no photo")
    photos = [tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "gone.jpg", rgb[:, ::-1]]
    preparer = Preparer(photos, 48, 60, "antialias")
    found = list(prepare_all(preparer, workers))
    assert [one.index for one in found] == [0, 1, 2, 3]
    for one, other in zip(found, map(preparer.__getitem__, range(4)), strict=True):
        if isinstance(other, Unreadable):
            assert type(one.error) is type(other.error)
            assert str(one.error) == str(other.error)
        else:
            assert torch.equal(one.image, other.image)
            assert one.original == other.original == (24, 32)
            assert one.image.shape == (3, 45, 60)
