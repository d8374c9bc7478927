"""An annotation file is read exactly, repaired where it can be, and refused by name elsewhere."""

import copy
import hashlib
import json
import math
import pickle

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from retinanet.data.coco import read_coco
from retinanet.data.issues import raise_refused
from retinanet.data.splits import class_issues, missing_issues

GOOD = {
    "images": [
        {"id": 30, "file_name": "b.jpg", "height": 40, "width": 60},
        {"id": 7, "file_name": "sub/a.jpg", "height": 50, "width": 20},
        {"id": 8, "file_name": "empty.jpg", "height": 10, "width": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 17, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 0},
        {
            "id": 2,
            "image_id": 30,
            "category_id": 3,
            "bbox": [50.5, 10, 20, 5.5],
            "area": 7.5,
            "iscrowd": 0,
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        },
        {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1},
        {"id": 9, "image_id": 7, "category_id": 3, "bbox": [2, 2, 2, 2], "area": 4, "iscrowd": 0},
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
    for field, value in fields.items():
        if value is ...:
            del content[kind][index][field]
        else:
            content[kind][index][field] = value
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
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == [[50.5, 10, 60, 15.5]]
    assert labels.tolist() == [0]
    assert data.crowds(0).shape == (0, 4)
    boxes, labels = data.boxes(1)
    assert boxes.tolist() == [[1, 2, 4, 6], [2, 2, 4, 4]]
    assert labels.tolist() == [1, 0]
    assert data.crowds(1).tolist() == [[0, 0, 9, 9]]
    large = read(changed("annotations", 0, bbox=[-1e99, -1e99, 1.7e99, 1.7e99]))
    assert large.boxes(1)[0][0].tolist() == [0, 0, 20, 50]
    boxes, labels = data.boxes(2)
    assert (boxes.shape, labels.shape, labels.dtype) == ((0, 4), (0,), torch.int64)
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
        ([1, 1, 0, 5], "width or height not positive"),
        ([1, 1, 5, 0], "width or height not positive"),
        ([9, 9, -3, -3], "drawn from right to left or from bottom to top"),
        ([9, 9, 0, -3], "width or height not positive"),
        ([20, 0, 5, 5], "outside the image"),
        ([-5, 0, 5, 5], "outside the image"),
        ([0, 50, 5, 5], "outside the image"),
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


NUMBERS = "four finite numbers"
# More of them, one for each rule at least, are in tests/reliability/broken_sets.py.
BAD_RECORDS = [
    ("annotations", 1, {"bbox": [1, 2, 3, 4, 5]}, [NUMBERS]),
    ("annotations", 1, {"bbox": [1, 2, 10**400, 4]}, [NUMBERS]),
    ("annotations", 1, {"bbox": [True, 2, 3, 4]}, [NUMBERS, "True"]),
    ("annotations", 1, {"bbox": None}, [NUMBERS, "None"]),
    ("annotations", 1, {"bbox": {"x": 1}}, [NUMBERS]),
    ("annotations", 1, {"image_id": "30"}, ["image_id", "integer", "'30'"]),
    ("annotations", 1, {"image_id": ...}, ["image_id", "missing"]),
    ("annotations", 1, {"image_id": 2**70}, ["image_id", str(2**70)]),
    ("annotations", 1, {"category_id": 3.0}, ["category_id", "integer", "3.0"]),
    ("annotations", 1, {"category_id": True}, ["category_id", "integer", "True"]),
    ("annotations", 1, {"iscrowd": "no"}, ["iscrowd", "0 or 1", "'no'"]),
    ("annotations", 1, {"area": math.nan}, ["area", "finite number", "nan"]),
    ("annotations", 1, {"area": 10**400}, ["area", "finite number"]),
    ("images", 1, {"id": 30}, ["id 30", "unique", "images[0]"]),
    ("images", 1, {"id": 7.5}, ["id", "integer", "7.5"]),
    ("images", 1, {"id": 2**63}, ["id", "integer"]),
    ("images", 1, {"width": 2.5}, ["width", "whole number", "2.5"]),
    ("images", 1, {"width": 2**31}, ["width", "whole number"]),
    ("images", 1, {"width": math.nan}, ["width", "nan"]),
    ("images", 1, {"width": None}, ["width", "None"]),
    ("images", 1, {"height": ...}, ["height", "missing"]),
    ("images", 1, {"file_name": 5}, ["file_name", "5"]),
    ("images", 1, {"file_name": "a/../../b.jpg"}, ["file_name", "'..'"]),
    ("images", 1, {"file_name": "a\\..\\b.jpg"}, ["file_name", "'..'"]),
    ("images", 1, {"file_name": "C:\\a.jpg"}, ["file_name", "absolute"]),
    ("images", 1, {"file_name": "\\\\host\\a.jpg"}, ["file_name", "absolute"]),
    ("images", 1, {"file_name": "a\0.jpg"}, ["file_name", "\\x00"]),
    ("categories", 1, {"id": "3"}, ["id", "integer", "'3'"]),
    ("categories", 1, {"name": ""}, ["name", "not empty"]),
]


@pytest.mark.parametrize(("kind", "index", "fields", "words"), BAD_RECORDS)
def test_a_bad_record_is_refused_by_name(read, tmp_path, kind, index, fields, words):
    with pytest.raises(ValueError, match=r"a\.json: ") as caught:
        read(changed(kind, index, **fields))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "a.json"))
    assert f"{kind}[{index}]" in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "name", ["a..b.jpg", "..hidden.jpg", "10:30.jpg", "a b/c'd.jpg", "\u00e4 \u732b.jpg"]
)
def test_harmless_names_are_kept(read, name):
    data = read(changed("images", 0, file_name=name))
    assert [data.file_name(0), data.file_name(1)] == [name, "sub/a.jpg"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "line 1"),
        ('{"images": [', "not JSON"),
        ("[]", "list of detections"),
        ("3", "JSON object"),
        ("[" * 100000, "cannot be read"),
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
        raise_refused(missing_issues(data))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "empty.jpg").touch()
    raise_refused(missing_issues(data))


def with_categories(*pairs):
    categories = [{"id": number, "name": name} for number, name in pairs]
    return GOOD | {"annotations": [], "categories": categories}


def test_the_same_classes_in_another_order_are_the_same(read):
    one = read(with_categories((3, "car"), (17, "cat")), "one.json")
    two = read(with_categories((17, "cat"), (3, "car")), "two.json")
    raise_refused(class_issues(one, two))


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
    one = read(with_categories((3, "car"), (17, "cat")), "one.json")
    two = read(with_categories(*pairs), "two.json")
    with pytest.raises(ValueError, match="same categories") as caught:
        raise_refused(class_issues(one, two))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_data_holds_no_python_object_per_box(read):
    count = 20_000
    content = copy.deepcopy(GOOD)
    content["annotations"] = [
        {"id": i + 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], "area": 25}
        for i in range(count)
    ]
    data = read(content)
    # 4 + 1 + 1 numbers of 8 bytes and two of 1 byte for each box.
    assert len(pickle.dumps(data)) < count * 50 + 5000
    copied = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copied.bbox, data.bbox)
    assert copied.file_name(1) == data.file_name(1)
