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
from retinanet.shapes import drawing
from retinanet.shapes.dataset import CATEGORY_IDS, ensure_shapes, write_shapes

# pycocotools 2.0 calls numpy the way numpy 1 expected.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = {"train_images": 3, "val_images": 2, "seed": 5}
FINGERPRINT = "shapes.json"


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


@pytest.fixture
def small(tmp_path) -> Path:
    write_shapes(tmp_path / "shapes", **SMALL)
    return tmp_path / "shapes"


def bytes_of(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_seed_decides_every_byte_and_the_number_of_images_changes_none(small, tmp_path):
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    for name, change in {"same": {}, "other": {"seed": 6}, "more": {"train_images": 5}}.items():
        write_shapes(tmp_path / name, **SMALL | change)
    assert np.random.random() == expected, "the global random state was touched"
    first, same, other, more = (
        bytes_of(tmp_path / name) for name in ("shapes", "same", "other", "more")
    )
    assert same == first and len(first) == 3 + 2 + 2 + 1
    images = {name for name in first if name.endswith(".jpg")}
    assert all(more[name] == first[name] for name in images)
    assert len({files[name] for files in (first, other) for name in images}) == 10


def test_the_images_are_those_of_this_version():
    # If it fails, the set has changed: raise shapes.VERSION, then update the numbers here.
    assert shapes.VERSION == 7
    drawn = [drawing.draw_image(np.random.default_rng([0, 0, index])) for index in range(8)]
    assert [[one.label for one in objects] for _, objects in drawn] == [
        [2, 3, 3, 5, 4, 2, 4, 5, 2],
        [0, 4, 2, 0, 4, 5, 5, 5],
        [0, 5, 2, 0],
        [4, 2, 1],
        [4, 0, 4],
        [],
        [2, 4, 0, 2, 3, 3, 0],
        [4, 3, 3, 2, 5, 1],
    ]
    areas = [1234, 8329, 466, 1978, 6738, 431, 2219, 2587, 1368]
    assert [int(one.mask.sum()) for one in drawn[0][1]] == pytest.approx(areas, abs=3)
    assert drawn[0][0].mean() == pytest.approx(91.5, abs=0.5)


def test_files_are_named_and_sized_as_the_annotations_say(root, content):
    sizes = [(image["width"], image["height"]) for image in content["images"]]
    for image, size in zip(content["images"], sizes, strict=True):
        with Image.open(root / "train2017" / image["file_name"]) as picture:
            assert (picture.size, picture.mode) == (size, "RGB")
    assert len(list((root / "train2017").iterdir())) == len(sizes) == 120
    # Landscape and portrait, of several shapes.
    assert min(map(min, sizes)) >= 138 and max(map(max, sizes)) <= 256
    assert any(w > h for w, h in sizes) and any(w < h for w, h in sizes)
    assert len({round(max(size) / min(size), 1) for size in sizes}) >= 4


def test_ids_are_unique_and_those_of_categories_have_gaps(root, content):
    val = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    images = [image["id"] for image in content["images"] + val["images"]]
    assert len(set(images)) == 140
    annotations = [annotation["id"] for annotation in content["annotations"]]
    assert annotations == list(range(1, len(annotations) + 1))
    ids = [category["id"] for category in content["categories"]]
    assert ids == sorted(set(CATEGORY_IDS)) == list(CATEGORY_IDS) != list(range(1, 7))
    assert [category["name"] for category in content["categories"]] == list(drawing.NAMES)


def test_areas_and_boxes_are_those_of_the_visible_pixels_which_no_two_objects_share(coco):
    for annotations in coco.imgToAnns.values():
        masks = [coco.annToMask(annotation) for annotation in annotations]
        assert np.sum(masks, axis=0).max() == 1
        for mask, annotation in zip(masks, annotations, strict=True):
            y, x = np.nonzero(mask)
            left, top = x.min(), y.min()
            assert annotation["bbox"] == [left, top, x.max() + 1 - left, y.max() + 1 - top]
            assert annotation["area"] == len(x) >= drawing.MIN_VISIBLE_PIXELS


def test_every_class_and_size_is_common_and_some_images_have_a_crowd_or_nothing(content):
    annotations = content["annotations"]
    objects = [one for one in annotations if not one["iscrowd"]]
    count = Counter(one["category_id"] for one in objects)
    assert set(count) == set(CATEGORY_IDS) and min(count.values()) > 0.5 * max(count.values())
    areas = np.array([one["area"] for one in objects])
    small, large = (areas < 32**2).mean(), (areas > 96**2).mean()
    assert small > 0.2 and large > 0.02 and 1 - small - large > 0.2
    assert 3 <= len(annotations) - len(objects) <= 20
    assert 1 <= 120 - len({one["image_id"] for one in annotations}) <= 15


def test_a_crowd_is_one_annotation_of_many_pieces(coco):
    crowd = next(one for one in coco.anns.values() if one["iscrowd"])
    mask = coco.annToMask(crowd)
    starts = (np.diff(mask.astype(int), axis=0, prepend=0) == 1).sum()
    assert starts > 50  # a single convex figure of this size would have about 50 columns
    assert crowd["area"] < 0.9 * crowd["bbox"][2] * crowd["bbox"][3]


@pytest.mark.parametrize("there_before", [True, False])
def test_an_interrupted_call_leaves_what_was_there(tmp_path, monkeypatch, there_before):
    if there_before:
        write_shapes(tmp_path / "shapes", **SMALL)
    before = bytes_of(tmp_path)

    def interrupt(rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "shapes", **SMALL | {"seed": 6})
    assert bytes_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"] * there_before


def test_a_complete_set_is_not_drawn_again(small, monkeypatch):
    monkeypatch.setattr(shapes, "draw_image", lambda rng: pytest.fail("drew again"))
    write_shapes(small, **SMALL)


@pytest.mark.parametrize("change", [{"seed": 6}, {"train_images": 4}, {"val_images": 1}, {}])
def test_a_set_made_otherwise_or_by_another_version_is_made_anew(small, tmp_path, change):
    if not change:
        fingerprint = json.loads((small / FINGERPRINT).read_text())
        (small / FINGERPRINT).write_text(json.dumps(fingerprint | {"version": 0}))
    write_shapes(small, **SMALL | change)
    write_shapes(tmp_path / "fresh", **SMALL | change)
    assert bytes_of(small) == bytes_of(tmp_path / "fresh")


def test_ensure_shapes_writes_the_standard_set_into_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN_IMAGES", 2)
    monkeypatch.setattr(shapes, "VAL_IMAGES", 1)
    ensure_shapes(tmp_path)
    fingerprint = json.loads((tmp_path / FINGERPRINT).read_text())
    numbers = {"train_images": 2, "val_images": 1, "seed": shapes.SEED}
    assert {name: fingerprint[name] for name in numbers} == numbers


@pytest.mark.parametrize("mine", ["photos", "photos/notes.txt", f"photos/{FINGERPRINT}"])
def test_a_file_or_folder_of_somebody_else_is_refused_and_kept(tmp_path, mine):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(ValueError, match=r"photos exists and was not made by .* data\.root"):
        ensure_shapes(tmp_path / "photos")
    assert (tmp_path / mine).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_linked_folder_stays_linked(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    write_shapes(tmp_path / "link", **SMALL)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "train2017").is_dir()


@pytest.mark.parametrize(("name", "least"), [("train_images", 1), ("val_images", 1), ("seed", 0)])
def test_numbers_out_of_range_are_refused(tmp_path, name, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        write_shapes(tmp_path / "shapes", **SMALL | {name: least - 1})
    assert list(tmp_path.iterdir()) == []
