"""Images that are there twice, and near-duplicates; strangers are neither."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from retinanet.data.coco import read_coco
from retinanet.data.images import read_image
from retinanet.tools.check_data.image_checks import (
    ImageFile,
    check_copies,
    check_leaks,
    near_duplicates,
    perceptual_hash,
    pixel_hash,
    read_files,
)


def pixels_of(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def blurred_noise(seed: int, size=(320, 240)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def hashed(index: int, pixels: torch.Tensor) -> ImageFile:
    hashes = {"pixel_hash": pixel_hash(pixels), "perceptual_hash": perceptual_hash(pixels)}
    return ImageFile(index, **hashes)


def files(*images: Image.Image) -> list[ImageFile]:
    return [hashed(index, pixels_of(image)) for index, image in enumerate(images)]


def jpeg(picture: Image.Image) -> Image.Image:
    memory = io.BytesIO()
    picture.save(memory, "jpeg", quality=40)
    return Image.open(memory)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.resize((160, 120)),
        lambda p: p.resize((900, 700)),
        jpeg,
        lambda p: ImageEnhance.Brightness(p).enhance(1.2),
        lambda p: p.crop((2, 2, 318, 238)),
    ],
    ids=["smaller", "larger", "jpeg", "brighter", "cropped"],
)
def test_copies_are_near_duplicates_and_strangers_are_not(change):
    originals = [blurred_noise(seed) for seed in range(20)]
    copies = [change(blurred_noise(seed)) for seed in (3, 7, 100)]
    assert near_duplicates(files(*originals), files(*copies)) == {0: 3, 1: 7}
    assert pixel_hash(pixels_of(copies[0])) != pixel_hash(pixels_of(originals[3]))


def test_images_with_little_in_them_are_not_compared():
    white, gray = Image.new("RGB", (99, 99), "white"), Image.new("RGB", (64, 99), "gray")
    assert perceptual_hash(pixels_of(white)) is None
    assert perceptual_hash(pixels_of(Image.new("RGB", (1, 1)))) is None
    spot = white.copy()
    spot.putpixel((50, 50), (0, 0, 0))
    assert near_duplicates(files(white, gray), files(gray, spot)) == {}
    assert near_duplicates([], files(blurred_noise(0))) == {}


def test_a_hash_of_pixels_does_not_depend_on_the_file(tmp_path):
    picture = blurred_noise(0)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.bmp")
    first, second = (pixel_hash(read_image(tmp_path / name)) for name in ("a.png", "a.bmp"))
    assert first == second
    turned = picture.transpose(Image.Transpose.ROTATE_180)
    assert pixel_hash(pixels_of(turned)) != first


@pytest.mark.parametrize("other_boxes", [False, True])
def test_an_image_under_two_names_is_listed_with_whether_its_boxes_agree(
    make_data, tmp_path, other_boxes
):
    box = (10.0, 10.0, 20.0, 20.0)
    images = [{"id": i, "file_name": f"{i}.png", "width": 320, "height": 240} for i in (1, 2, 3)]
    data = make_data(3, [(1, 1, box), (2, 1 + other_boxes, box), (3, 1, box)], images=images)
    for index, seed in enumerate((0, 0, 1)):
        blurred_noise(seed).save(data.image_path(index))
    issue = check_copies(data, list(read_files(data, pixels=True, workers=0)))
    assert issue.count == 1
    (place,) = issue.places
    end = "with other boxes" if other_boxes else "with the same boxes"
    assert place.endswith(f"1.png, {end}")
    assert "image id 2" in place
    # Headers alone find no copies.
    assert check_copies(data, list(read_files(data, pixels=False, workers=0))).count == 0


@pytest.mark.parametrize(
    ("name", "splits"),
    [("bccd", ("train", "val")), ("coco_slice", ("instances_train2017", "instances_val2017"))],
)
def test_no_false_alarm_on_real_photographs(real_data, name, splits):
    root = real_data(name)
    hashes, sets = [], []
    for split in splits:
        folder = root / split.removeprefix("instances_")
        data = read_coco(root / f"annotations/{split}.json", folder)
        chosen = range(0, len(data), 1 + len(data) // 60)
        made = [(i, read_image(data.image_path(i))) for i in chosen]
        hashes.append([hashed(index, pixels) for index, pixels in made])
        sets.append(data)
    assert [issue.count for issue in check_leaks(*sets, *hashes)] == [0, 0]
    assert [check_copies(*of).count for of in zip(sets, hashes, strict=True)] == [0, 0]
    compared = sum(file.perceptual_hash is not None for file in hashes[0])
    assert compared > 0.9 * len(hashes[0])
