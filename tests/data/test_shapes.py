"""The built-in data set: what is written, that it is a COCO set, and that it is whole or absent."""

import contextlib
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from retinanet.shapes import dataset as shapes
from retinanet.shapes import drawing, figures
from retinanet.shapes.dataset import CATEGORY_IDS, ensure_shapes, write_shapes

# pycocotools 2.0 calls numpy the way numpy 1 expected.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = {"train_images": 3, "val_images": 2, "seed": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data" / "shapes"
    write_shapes(folder, train_images=120, val_images=20, seed=0)
    return folder


@pytest.fixture(scope="module")
def content(root) -> dict:
    return json.loads((root / "annotations" / "instances_train2017.json").read_text())


@pytest.fixture(scope="module")
def coco(root) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(root / "annotations" / "instances_train2017.json")


def bytes_of(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_bytes_depend_on_the_seed_and_the_index_alone(tmp_path):
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    for name, changes in {"a": {}, "same": {}, "more": {"train_images": 5}}.items():
        write_shapes(tmp_path / name, **SMALL | changes)
    write_shapes(tmp_path / "other", **SMALL | {"seed": 6})
    assert np.random.random() == expected  # the global state is not touched
    first, same, more, other = (bytes_of(tmp_path / n) for n in ("a", "same", "more", "other"))
    assert first == same
    assert len(first) == 3 + 2 + 2 + 1
    jpegs = [name for name in first if name.endswith(".jpg")]
    assert all(more[name] == first[name] for name in jpegs)
    # Neither the splits nor the seeds share an image.
    assert len({digest[name] for digest in (first, other) for name in jpegs}) == 10


def test_the_pictures_are_those_of_this_version():
    # If it fails, the set has changed: raise shapes.VERSION, then update the numbers here.
    assert shapes.VERSION == 7
    drawn = [drawing.draw_picture(np.random.default_rng([0, 0, index])) for index in range(8)]
    labels = ["".join(str(one.label) for one in objects) for _, objects in drawn]
    assert labels == ["233542452", "04204555", "0520", "421", "404", "", "2402330", "433251"]
    areas = [int(one.mask.sum()) for one in drawn[0][1]]
    golden = [1234, 8329, 466, 1978, 6738, 431, 2219, 2587, 1368]
    assert areas == pytest.approx(golden, abs=3)
    assert drawn[0][0].mean() == pytest.approx(91.5, abs=0.5)


def test_files_are_named_and_sized_as_the_annotations_say(root, content):
    assert len(content["images"]) == 120
    for image in content["images"]:
        with Image.open(root / "train2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.mode == "RGB"
    assert len(list((root / "train2017").iterdir())) == 120


def test_sides_and_aspect_ratios_vary(content):
    sizes = [(image["width"], image["height"]) for image in content["images"]]
    assert min(map(min, sizes)) >= 138 and max(map(max, sizes)) <= 256
    assert any(w > h for w, h in sizes) and any(w < h for w, h in sizes)
    assert len({round(max(size) / min(size), 1) for size in sizes}) >= 4


def test_ids_are_unique_and_those_of_categories_have_gaps(root, content):
    ids = [category["id"] for category in content["categories"]]
    assert ids == sorted(set(CATEGORY_IDS)) == list(CATEGORY_IDS)
    assert ids != list(range(1, len(ids) + 1))
    assert [category["name"] for category in content["categories"]] == list(figures.NAMES)
    val = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    images = [image["id"] for image in content["images"] + val["images"]]
    annotations = [annotation["id"] for annotation in content["annotations"]]
    assert len(set(images)) == len(images) == 140
    assert len(set(annotations)) == len(annotations) and min(annotations) == 1


def test_masks_have_the_area_and_the_box_that_is_listed_and_do_not_overlap(coco):
    for image_id in coco.imgs:
        masks = []
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation)
            y, x = np.nonzero(mask)
            left, top = x.min(), y.min()
            assert mask.sum() == annotation["area"] >= figures.MIN_VISIBLE_PIXELS
            assert annotation["bbox"] == [left, top, x.max() + 1 - left, y.max() + 1 - top]
            masks.append(mask)
        assert np.sum(masks, axis=0).max() <= 1


def test_every_class_is_common_and_objects_are_small_medium_and_large(content):
    objects = [one for one in content["annotations"] if not one["iscrowd"]]
    count = Counter(one["category_id"] for one in objects)
    assert set(count) == set(CATEGORY_IDS)
    assert min(count.values()) > 0.5 * max(count.values())
    areas = np.array([one["area"] for one in objects])
    assert (areas < 32**2).mean() > 0.2
    assert ((areas >= 32**2) & (areas <= 96**2)).mean() > 0.2
    assert (areas > 96**2).mean() > 0.02


def test_some_images_hold_a_crowd_and_some_hold_nothing(content):
    crowds = [one for one in content["annotations"] if one["iscrowd"]]
    assert 3 <= len(crowds) <= 20
    annotated = {one["image_id"] for one in content["annotations"]}
    assert 1 <= 120 - len(annotated) <= 15


def test_a_crowd_is_one_annotation_of_many_pieces(coco):
    crowd = next(one for one in coco.anns.values() if one["iscrowd"])
    mask = coco.annToMask(crowd)
    starts = (np.diff(mask.astype(int), axis=0, prepend=0) == 1).sum()
    assert starts > 50  # a single convex figure of this size would have about 50 columns
    assert crowd["area"] < 0.9 * crowd["bbox"][2] * crowd["bbox"][3]


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_set(tmp_path, monkeypatch):
    write_shapes(tmp_path / "shapes", **SMALL)
    before = bytes_of(tmp_path / "shapes")
    monkeypatch.setattr(shapes, "_annotation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_shapes(tmp_path / "shapes", **SMALL | {"seed": 6})
    assert bytes_of(tmp_path / "shapes") == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_complete_set_is_not_drawn_again(tmp_path, monkeypatch):
    write_shapes(tmp_path / "shapes", **SMALL)
    monkeypatch.setattr(shapes, "draw_picture", lambda rng: pytest.fail("drew again"))
    write_shapes(tmp_path / "shapes", **SMALL)


@pytest.mark.parametrize("change", [{"seed": 6}, {"train_images": 4}, {"val_images": 1}])
def test_a_set_made_otherwise_is_made_anew(tmp_path, change):
    write_shapes(tmp_path / "shapes", **SMALL)
    write_shapes(tmp_path / "shapes", **SMALL | change)
    write_shapes(tmp_path / "fresh", **SMALL | change)
    assert bytes_of(tmp_path / "shapes") == bytes_of(tmp_path / "fresh")


def test_a_set_of_another_version_is_made_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "VERSION", 0)
        write_shapes(tmp_path / "shapes", **SMALL)
    write_shapes(tmp_path / "shapes", **SMALL)
    fingerprint = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert fingerprint["version"] == shapes.VERSION


def test_ensure_shapes_writes_the_standard_set(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN_IMAGES", 2)
    monkeypatch.setattr(shapes, "VAL_IMAGES", 1)
    ensure_shapes(tmp_path / "shapes")
    fingerprint = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert (fingerprint["train_images"], fingerprint["val_images"]) == (2, 1)
    assert fingerprint["seed"] == shapes.SEED


@pytest.mark.parametrize("name", ["notes.txt", "shapes.json"])
def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path, name):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_text("mine")
    with pytest.raises(ValueError, match=r"photos exists and was not made by .* data\.root"):
        ensure_shapes(tmp_path / "photos")
    assert (tmp_path / "photos" / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "shapes").write_text("mine")
    with pytest.raises(ValueError, match="was not made by data=shapes"):
        ensure_shapes(tmp_path / "shapes")


def test_a_linked_folder_stays_linked(tmp_path):
    (tmp_path / "disk").mkdir()  # empty: it is filled
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    write_shapes(tmp_path / "link", **SMALL)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "train2017").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": 0}, "train_images must be at least 1, got 0"),
        ({"val_images": -1}, "val_images must be at least 1, got -1"),
        ({"seed": -3}, "seed must be at least 0, got -3"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_shapes(tmp_path / "shapes", **SMALL | change)
    assert list(tmp_path.iterdir()) == []
