"""Files of predictions: read back by others they hold what was detected."""

import csv
import json
import os

import pytest
import torch
from pycocotools.coco import COCO

from retinanet.data.coco import read_coco
from retinanet.tools.predict.detector import ImageDetections
from retinanet.tools.predict.files import (
    RECORD,
    begin,
    check_output,
    drawn_names,
    is_ours,
    write_results,
)

CATEGORIES = {17: "cat", 90: 'a, "b"\n\u732b'}


def detections(boxes=(), scores=(), labels=()):
    return ImageDetections(
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float64),
        labels=torch.tensor(labels, dtype=torch.int64),
        category_ids=tuple(list(CATEGORIES)[label] for label in labels),
        names=tuple(list(CATEGORIES.values())[label] for label in labels),
        size=(48, 64),
    )


@pytest.fixture
def output(tmp_path):
    boxes = [[1, 2, 11, 22], [0.1, 0.2, 0.4, 48]]
    results = {2: detections(), 0: detections(boxes, [0.9, 1 / 3], [1, 0])}
    write_results(tmp_path, ["b/1.jpg", "unreadable.jpg", "b/2.jpg"], results, CATEGORIES)
    return tmp_path


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_json_is_a_whole_annotation_file(output, capsys):
    data = read_coco(output / "coco.json", output)
    assert [data.file_name(i) for i in range(2)] == ["b/1.jpg", "b/2.jpg"]
    assert data.sizes.tolist() == [[48, 64], [48, 64]]
    assert list(data.category_ids) == [17, 90]
    assert data.category_names[0] == "cat"
    assert data.bbox.tolist() == [[1, 2, 10, 20], [0.1, 0.2, pytest.approx(0.3), 47.8]]
    assert data.labels.tolist() == [1, 0]
    ground_truth = COCO(output / "coco.json")
    results = ground_truth.loadRes(str(output / "detections.json"))
    assert ground_truth.getImgIds() == [1, 3]
    for i, score in ((1, 0.9), (2, 1 / 3)):
        assert ground_truth.anns[i]["score"] == results.anns[i]["score"] == score
        assert ground_truth.anns[i]["bbox"] == results.anns[i]["bbox"]
    assert ground_truth.anns[1]["area"] == 200
    assert [results.anns[i]["category_id"] for i in (1, 2)] == [90, 17]


def test_the_csv_has_corners_in_pixels(output):
    with (output / "detections.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "class", "category_id", "score", "x1", "y1", "x2", "y2"],
        ["b/1.jpg", CATEGORIES[90], "90", "0.9000", "1.00", "2.00", "11.00", "22.00"],
        ["b/1.jpg", "cat", "17", "0.3333", "0.10", "0.20", "0.40", "48.00"],
    ]


def test_no_detections_and_names_that_are_not_utf8_make_valid_files(tmp_path):
    write_results(tmp_path, [], {}, CATEGORIES)
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    whole = json.loads((tmp_path / "coco.json").read_text())
    assert (whole["images"], whole["annotations"], len(whole["categories"])) == ([], [], 2)
    name = os.fsdecode(b"\xff.jpg")
    write_results(tmp_path, [name], {0: detections([[0, 0, 1, 1]], [0.5], [0])}, CATEGORIES)
    assert b"\xff.jpg,cat" in (tmp_path / "detections.csv").read_bytes()
    assert json.loads((tmp_path / "coco.json").read_text())["images"][0]["file_name"] == name


def test_no_two_images_are_drawn_in_one_file():
    names = ["a/1.jpg", "b/1.jpg", "1.png", "1.jpg", "1.PNG", "1.png.jpg", "1.JPEG", "x" * 240]
    drawn = drawn_names(names)
    assert drawn[:4] == ["drawn/a/1.jpg", "drawn/b/1.jpg", "drawn/1.png.jpg", "drawn/1.jpg"]
    assert len({name.casefold() for name in drawn}) == len(names)
    assert all(name.lower().endswith((".jpg", ".jpeg")) for name in drawn)
    cat = "\u732b" * 84 + "."
    longest = drawn_names([cat + "png", cat + "gif"])
    assert len(set(longest)) == 2
    assert all(len(name.encode()) < 200 for name in longest)


def test_a_folder_is_replaced_only_if_it_holds_predictions(tmp_path):
    output = tmp_path / "new/deep"
    check_output(output, [])
    begin(output, {"score": 0.5}, ["drawn/a/1.jpg"])
    assert is_ours(output)
    for name in ("drawn/a/1.jpg", "detections.csv", "mine.txt"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("old")
    check_output(output, [])
    begin(output, {"score": 0.6}, ["drawn/2.jpg"])
    left = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    assert left == {"mine.txt", RECORD}
    record = json.loads((output / RECORD).read_text())
    assert (record["score"], record["finished"]) == (0.6, False)
    assert record["files"][-1] == "drawn/2.jpg"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"made_by": "scripts.predict"}', None])
def test_other_folders_are_refused(tmp_path, content):
    if content is None:
        (tmp_path / "photo.jpg").touch()
    else:
        (tmp_path / RECORD).write_text(content)
    with pytest.raises(ValueError, match="exists and holds no predictions; choose another --out"):
        check_output(tmp_path, [])
    with pytest.raises(ValueError, match="exists and holds no predictions"):
        check_output(next(tmp_path.iterdir()), [])


def test_nothing_outside_is_removed_and_no_image_inside_is_taken(tmp_path):
    (tmp_path / "mine.jpg").touch()
    output = tmp_path / "out"
    begin(output, {}, ["../mine.jpg", str(tmp_path / "mine.jpg")])
    begin(output, {}, [])
    assert (tmp_path / "mine.jpg").exists()
    (tmp_path / "link").symlink_to(output)
    with pytest.raises(ValueError, match=r"image .*1\.jpg lies in .*link, whose files"):
        check_output(tmp_path / "link", [output / "drawn/1.jpg"])
    check_output(tmp_path / "link", [tmp_path / "1.jpg"])
