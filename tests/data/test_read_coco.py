"""An annotation file is read exactly, repaired where it can be, and refused by name elsewhere."""

import copy
import hashlib
import json
import math

import pytest
import torch
from pycocotools.coco import COCO
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from retinanet.data.coco import read_coco
from retinanet.data.issues import raise_refused
from retinanet.data.splits import class_issues, missing_issues


def box(number, image, category, bbox, area, **more):
    record = {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
    return record | {"area": area, "iscrowd": 0} | more


GOOD = {
    "images": [
        {"id": 30, "file_name": "b.jpg", "height": 40, "width": 60},
        {"id": 7, "file_name": "sub/a.jpg", "height": 50, "width": 20},
        {"id": 8, "file_name": "empty.jpg", "height": 10, "width": 10},
    ],
    "annotations": [
        box(1, 7, 17, [1, 2, 3, 4], 5),
        box(2, 30, 3, [50.5, 10, 20, 5.5], 7.5, segmentation=[[1, 2, 3, 4, 5, 6]]),
        box(3, 7, 3, [0, 0, 9, 9], 81, iscrowd=1),
        box(9, 7, 3, [2, 2, 2, 2], 4),
    ],
    "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
}


@pytest.fixture
def read(tmp_path):
    """Write content as an annotation file and read it."""

    def write_and_read(content, name="a.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_coco(path, tmp_path)

    return write_and_read


def changed(kind, index, **fields):
    """The good file with fields of one record replaced; ``...`` removes a field."""
    content = copy.deepcopy(GOOD)
    record = content[kind][index] | fields
    content[kind][index] = {field: value for field, value in record.items() if value is not ...}
    return content


def test_the_good_file_by_hand(read, tmp_path):
    data = read(GOOD)
    assert len(data) == 3
    assert data.image_ids.tolist() == [30, 7, 8]
    assert data.sizes.tolist() == [[40, 60], [50, 20], [10, 10]]
    assert [data.file_name(i) for i in range(3)] == ["b.jpg", "sub/a.jpg", "empty.jpg"]
    assert data.image_path(1) == tmp_path / "sub" / "a.jpg"
    assert data.category_ids == (3, 17)
    assert data.category_names == ("car", "cat")
    assert data.first.tolist() == [0, 1, 4, 4]
    # Of each image in the order of the file; xywh untouched.
    assert data.bbox.tolist() == [[50.5, 10, 20, 5.5], [1, 2, 3, 4], [0, 0, 9, 9], [2, 2, 2, 2]]
    assert data.labels.tolist() == [0, 1, 0, 0]
    assert data.area.tolist() == [7.5, 5, 81, 4]
    assert data.crowd.tolist() == [False, False, True, False]
    assert data.usable.all()
    assert data.annotated
    assert data.repairs == {}
    content = (tmp_path / "a.json").read_bytes()
    assert data.fingerprint == hashlib.sha256(content).hexdigest()


def test_boxes_are_clipped_and_crowds_apart(read):
    data = read(GOOD)
    boxes, labels = data.boxes(0)
    assert (boxes.tolist(), labels.tolist()) == ([[50.5, 10, 60, 15.5]], [0])
    assert data.crowds(0).shape == (0, 4)
    boxes, labels = data.boxes(1)
    assert (boxes.tolist(), labels.tolist()) == ([[1, 2, 4, 6], [2, 2, 4, 4]], [1, 0])
    assert data.crowds(1).tolist() == [[0, 0, 9, 9]]
    large = read(changed("annotations", 0, bbox=[-1e99, -1e99, 1.7e99, 1.7e99]))
    assert large.boxes(1)[0][0].tolist() == [0, 0, 20, 50]
    boxes, labels = data.boxes(2)
    assert (boxes.shape, boxes.dtype) == ((0, 4), torch.float32)
    assert (labels.shape, labels.dtype) == ((0,), torch.int64)
    assert data.num_boxes().tolist() == [1, 2, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_annotations_are_those_of_pycocotools(real_data, split, capsys):
    root = real_data("coco_slice")
    path = root / "annotations" / f"instances_{split}2017.json"
    data = read_coco(path, root / f"{split}2017")
    theirs = COCO(str(path))
    assert data.category_ids == tuple(sorted(theirs.getCatIds()))
    assert data.repairs == {}
    assert data.missing() == []
    for i, image_id in enumerate(data.image_ids.tolist()):
        listed = theirs.loadAnns(theirs.getAnnIds(imgIds=[image_id]))
        rows = slice(*data.first[i : i + 2])
        assert data.bbox[rows].tolist() == [a["bbox"] for a in listed]
        assert data.area[rows].tolist() == [a["area"] for a in listed]
        ids = [data.category_ids[label] for label in data.labels[rows]]
        assert ids == [a["category_id"] for a in listed]
        assert data.crowd[rows].tolist() == [a["iscrowd"] == 1 for a in listed]
        assert data.file_name(i) == theirs.imgs[image_id]["file_name"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_boxes_are_those_of_torchvision(real_data, split):
    root = real_data("bccd")
    data = read_coco(root / "annotations" / f"{split}.json", root / split)
    for i in range(len(data)):
        size = tuple(data.sizes[i].tolist())
        rows = slice(*data.first[i : i + 2])
        theirs = tv_tensors.BoundingBoxes(
            torch.from_numpy(data.bbox[rows]), format="XYWH", canvas_size=size
        )
        theirs = TF.clamp_bounding_boxes(TF.convert_bounding_box_format(theirs, new_format="XYXY"))
        assert data.usable[rows].all()
        torch.testing.assert_close(data.boxes(i)[0], theirs.as_subclass(torch.Tensor).float())


def test_missing_iscrowd_and_area_are_filled_in_and_counted(read):
    content = copy.deepcopy(GOOD)
    for annotation in content["annotations"]:
        del annotation["area"]
    content["annotations"][2].pop("iscrowd")
    content["annotations"][3]["iscrowd"] = None
    data = read(content)
    assert data.area.tolist() == [110, 12, 81, 4]
    assert not data.crowd.any()
    assert data.repairs == {"iscrowd filled in": 2, "area filled in": 4}


@pytest.mark.parametrize(
    ("ids", "count"),
    [
        ([0, 1, 2, 3], 1),
        ([5, 5, 5, 6], 2),
        (["a", None, 1, 2], 2),
        ([1] * 4, 3),
        ([..., 1, 2, 3], 1),
    ],
)
def test_useless_annotation_ids_are_counted(read, ids, count):
    content = copy.deepcopy(GOOD)
    for annotation, new in zip(content["annotations"], ids, strict=True):
        annotation["id"] = new
        if new is ...:
            del annotation["id"]
    assert read(content).repairs == {"annotation ids renumbered": count}


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([1, 1, 5, 0], "width or height not positive"),
        ([9, 9, 0, -3], "width or height not positive"),
        ([9, 9, -3, -3], "drawn from right to left or from bottom to top"),
        ([20, 0, 5, 5], "outside the image"),
        ([-5, 0, 5, 5], "outside the image"),
        ([1e30, 0, 5, 5], "outside the image"),
    ],
)
def test_boxes_without_area_in_the_image_are_never_trained_on(read, bbox, reason):
    data = read(changed("annotations", 0, bbox=bbox))
    assert data.repairs == {f"boxes dropped: {reason}": 1}
    assert data.usable.tolist() == [True, False, True, True]
    assert data.bbox[1].tolist() == bbox  # as the evaluator is to see it
    assert data.boxes(1)[0].tolist() == [[2, 2, 4, 4]]


def test_without_a_list_of_annotations_it_is_a_test_set(read):
    content = {key: GOOD[key] for key in ("images", "categories")}
    data = read(content)
    assert not data.annotated
    assert data.bbox.shape == (0, 4)
    assert data.boxes(0)[0].shape == (0, 4)
    assert data.num_boxes().tolist() == [0, 0, 0]
    assert read(GOOD | {"annotations": []}).annotated


def test_bytes_before_and_instead_of_a_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert len(read_coco(path, tmp_path)) == 3  # a byte order mark is read over
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match="UTF-8"):
        read_coco(path, tmp_path)


# More of them, one for each rule at least, are in tests/reliability/broken_sets.py.
BOX = "bbox must be four finite numbers"
WHOLE = "must be a whole number of pixels, at least 1"
BAD_RECORDS = [
    ("annotations", {"bbox": [1, 2, 3, 4, 5]}, BOX),
    ("annotations", {"bbox": [1, 2, 10**400, 4]}, BOX),
    ("annotations", {"bbox": [-1e308, 0, 1.7e308, 9]}, BOX),
    ("annotations", {"bbox": [True, 2, 3, 4]}, f"{BOX} [x, y, width, height] in pixels, got [True"),
    ("annotations", {"bbox": {"x": 1}}, BOX),
    ("annotations", {"image_id": 2**70}, f"image_id must be an integer, got {2**70}"),
    ("annotations", {"category_id": 3.0}, "category_id must be an integer, got 3.0"),
    ("annotations", {"category_id": True}, "category_id must be an integer, got True"),
    ("annotations", {"iscrowd": "no"}, "iscrowd must be 0 or 1, got 'no'"),
    ("annotations", {"area": math.nan}, "area must be a finite number of pixels, from 0 to 1e10"),
    ("annotations", {"area": -5}, "area must be a finite number of pixels, from 0 to 1e10, got -5"),
    ("annotations", {"area": 1e11}, "area must be a finite number"),
    ("annotations", {"area": 10**400}, "area must be a finite number"),
    ("images", {"id": 30}, "id 30 occurs before, in images[0] (id 30); it must be unique"),
    ("images", {"id": 2**63}, "id must be an integer"),
    ("images", {"width": 2.5}, f"width {WHOLE}, got 2.5"),
    ("images", {"width": 2**31}, f"width {WHOLE}"),
    ("images", {"width": math.nan}, "width must be a finite number, got nan"),
    ("images", {"height": ...}, "height must be a finite number, which is missing. Add it."),
    ("images", {"file_name": 5}, "file_name must be a text that is not empty, got 5"),
    ("images", {"file_name": "a/../../b.jpg"}, "neither absolute nor with '..'"),
    ("images", {"file_name": "a\\..\\b.jpg"}, "neither absolute nor with '..'"),
    ("images", {"file_name": "C:\\a.jpg"}, "neither absolute nor with '..'"),
    ("images", {"file_name": "\\\\host\\a.jpg"}, "neither absolute nor with '..'"),
    ("images", {"file_name": "a\0.jpg"}, "a path without control characters, got 'a\\x00.jpg'"),
    ("images", {"file_name": "a\nb\x1b[2J.jpg"}, "a path without control characters"),
    ("categories", {"name": ""}, "name must be a text that is not empty, got ''"),
    ("categories", {"name": "\ud800"}, "name must be a text of whole characters, got '\\ud800'"),
]


@pytest.mark.parametrize(("kind", "fields", "words"), BAD_RECORDS)
def test_a_bad_record_is_refused_by_name(read, tmp_path, kind, fields, words):
    with pytest.raises(ValueError) as caught:
        read(changed(kind, 1, **fields))
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: {kind}[1]")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a..b.jpg", "..hidden.jpg", "10:30.jpg", "a b/c'd.jpg", "\u00e4 \u732b.jpg"]
)
def test_harmless_names_are_kept(read, name):
    data = read(changed("images", 0, file_name=name))
    assert [data.file_name(0), data.file_name(1)] == [name, "sub/a.jpg"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "is not JSON: it is empty"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("<!DOCTYPE html>", "it is a web page or XML"),
        ("\x1f\x08", "line 1"),
        ('{"images": [', "not JSON"),
        ('[{"image_id": 1, "score": 1}]', "list of detections"),
        ("3", "JSON object"),
        ("[" * 100000, "cannot be read"),
        ('{"images": [], "images": []}', "the key 'images' stands twice in one object"),
        ({"annotations": [], "categories": []}, "'images', which is missing"),
        (GOOD | {"images": {}}, "'images', got {}"),
        (GOOD | {"images": []}, "no image at all"),
        (GOOD | {"categories": []}, "list every class"),
        (GOOD | {"annotations": None}, "'annotations', got None"),
        (GOOD | {"annotations": [7]}, "annotations[0] must be an object"),
        ({k: v for k, v in GOOD.items() if k != "categories"}, "'categories', which is missing"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(read, content, word):
    with pytest.raises(ValueError, match=r"a\.json") as caught:
        read(content)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotation file .*gone\.json does not exist"):
        read_coco(tmp_path / "gone.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_coco(tmp_path, tmp_path)
    read(GOOD)
    with pytest.raises(FileNotFoundError, match="image folder .*gone does not exist"):
        read_coco(tmp_path / "a.json", tmp_path / "gone")


def test_a_long_value_is_cut_in_the_message(read):
    with pytest.raises(ValueError, match=r"\.\.\.") as caught:
        read(changed("annotations", 0, bbox=list(range(1000))))
    assert len(str(caught.value)) < 400


def test_the_missing_images_are_found(read, tmp_path):
    data = read(GOOD)
    (tmp_path / "b.jpg").touch()
    assert data.missing() == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"no image .*sub/a\.jpg, .*\(2 of 3 images"):
        raise_refused(missing_issues(data, "train"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "empty.jpg").touch()
    raise_refused(missing_issues(data, "train"))


def classes(read, name, *pairs):
    categories = [{"id": number, "name": name} for number, name in pairs]
    return read(GOOD | {"annotations": [], "categories": categories}, name)


def test_the_same_classes_in_another_order_are_the_same(read):
    one = classes(read, "one.json", (3, "car"), (17, "cat"))
    assert class_issues(one, classes(read, "two.json", (17, "cat"), (3, "car"))) == []


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(3, "Car"), (17, "cat")], ["'car' is only in", "one.json (the other has 'Car')"]),
        ([(3, "car"), (17, "cats")], ["'cat' is only in", "(the other has 'cats')"]),
        (
            [(3, "c\N{CYRILLIC SMALL LETTER A}r"), (17, "cat")],
            ["with CYRILLIC SMALL LETTER A for LATIN SMALL LETTER A)"],
        ),
        ([(3, "car")], ["'cat' is only in", "one.json"]),
        ([(3, "car"), (17, "cat"), (18, "zebra")], ["'zebra' is only in", "two.json"]),
        ([(3, "cat"), (17, "car")], ["'car' has id 3", "and 17 in"]),
    ],
)
def test_other_classes_are_refused_with_the_difference(read, pairs, words):
    one = classes(read, "one.json", (3, "car"), (17, "cat"))
    two = classes(read, "two.json", *pairs)
    with pytest.raises(ValueError, match="same categories") as caught:
        raise_refused(class_issues(one, two))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
