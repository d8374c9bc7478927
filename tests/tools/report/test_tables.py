"""Tables, files, and the way back: stock pycocotools on our detections.json."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.evaluation.average_precision import NUMBERS, evaluate
from retinanet.evaluation.thresholds import find_thresholds
from retinanet.tools.report.tables import class_table, summary, table, warnings_of, write_report

BOX = (100.0, 100.0, 50.0, 40.0)
SMALL = (10.0, 10.0, 20.0, 20.0)


@pytest.fixture
def one_of_two(make_data, make_detections):
    """Data and detections: the cat is found, the dog is missed, nothing is large."""
    data = make_data(2, [(1, 1, BOX), (2, 2, SMALL)], names=("cat", "dog", "unicorn"))
    return data, make_detections(data, [(1, 1, BOX, 0.9), (2, 1, BOX, 0.3)])


@pytest.fixture
def found(one_of_two):
    data, detections = one_of_two
    return evaluate(data, detections, data.image_ids)


def per_class(folder) -> dict[str, dict[str, str]]:
    """Name -> row of per_class.csv."""
    with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_the_summary_has_twelve_rows_with_the_detections_that_were_counted(one_of_two, found):
    lines = summary(found).splitlines()
    assert lines[0] == "2 images, 2 objects, 2 detections"
    rows = {line.split()[0]: line.split() for line in lines[3:]}
    assert list(rows) == list(NUMBERS)
    assert rows["AP"][-5:] == ["Precision", "0.50:0.95", "all", "100", "0.500"]
    assert rows["AP75"][-4:] == ["0.75", "all", "100", "0.500"]
    assert (rows["APs"][-1], rows["APl"][-1], rows["AR1"][-2:]) == ("0.000", "n/a", ["1", "0.500"])
    data, detections = one_of_two
    lines = summary(evaluate(data, detections, data.image_ids, max_dets=(1, 10, 300))).splitlines()
    assert lines[3].split()[-2:] == ["300", "0.500"]
    assert [line.split()[0] for line in lines[9:12]] == ["AR1", "AR10", "AR300"]


def test_the_table_of_classes_is_sorted_by_ap(found):
    rows = [line.split() for line in class_table(found).splitlines()[1:]]
    assert rows == [
        ["cat", "1", "2", "1.000", "1.000", "1.000", "1.000"],
        ["dog", "1", "0", "0.000", "0.000", "0.000", "0.000"],
        ["unicorn", "0", "0", "n/a", "n/a", "n/a", "n/a"],
    ]


def test_a_long_table_of_classes_shows_the_best_and_the_worst(make_data, make_detections):
    names = [f"class{i}" for i in range(1, 10)]
    data = make_data(9, [(i, i, BOX) for i in range(1, 9)], names=names)
    detections = make_detections(data, [(i, i, BOX, 0.9) for i in (3, 5)])
    lines = class_table(evaluate(data, detections, data.image_ids), max_classes=4).splitlines()
    assert [line.split()[0] for line in lines] == [
        *("class", "class3", "class5", "...", "class7", "class8", "..."),
    ]
    assert lines[-1] == "... 5 more in per_class.csv"


def test_every_line_fits_eighty_columns(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX)], names=("x" * 200, "two\nlines", "\u732b" * 30))
    found = make_detections(data, [(1, 1, BOX, 0.5)])
    evaluation = evaluate(data, found, data.image_ids, max_dets=(1, 10, 1000))
    text = table(evaluation, thresholds=find_thresholds(data, found))
    assert max(map(len, text.splitlines())) <= 80
    assert "xxx..." in text and "two?lines" in text


def test_stock_pycocotools_gives_our_numbers_from_our_file(make_data, make_detections, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        (i, int(rng.integers(1, 3)), tuple(rng.uniform(1, 200, 4).tolist())) for i in range(1, 9)
    ] * 2
    data = make_data(8, rows)
    results = [
        (image, category, np.float32(box + rng.normal(0, 6, 4)).clip(1), np.float32(rng.random()))
        for image, category, box in rows
    ]
    detections = make_detections(data, results)
    ours = evaluate(data, detections, data.image_ids)
    write_report(tmp_path / "eval", data, detections, ours)

    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(data.path))
        theirs = COCOeval(
            ground_truth, ground_truth.loadRes(str(tmp_path / "eval/detections.json")), "bbox"
        )
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    stats = [None if value == -1 else value for value in theirs.stats]
    assert 0.1 < stats[0] < 0.9
    assert list(ours.metrics.values()) == pytest.approx(stats, abs=1e-12)
    written = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert [written[name] for name in NUMBERS] == pytest.approx(stats, abs=1e-12)


def test_the_files_hold_detections_numbers_classes_and_what_the_caller_adds(
    one_of_two, found, tmp_path
):
    data, detections = one_of_two
    write_report(tmp_path, data, detections, found, {"step": 120, "checkpoint": "best.pt"})
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {"image_id": 1, "category_id": 1, "bbox": list(BOX), "score": 0.9},
        {"image_id": 2, "category_id": 1, "bbox": list(BOX), "score": 0.3},
    ]
    written = json.loads((tmp_path / "metrics.json").read_text())
    counts = dict.fromkeys(("num_images", "num_gt", "num_detections"), 2)
    about = {"max_dets": [1, 10, 100], "step": 120, "checkpoint": "best.pt", "APl": None}
    assert written.items() >= (found.metrics | counts | about).items()
    assert [row["name"] for row in written["classes"]] == ["cat", "dog", "unicorn"]
    # What is not defined is empty.
    rows = per_class(tmp_path)
    for result in found.per_class:
        row = rows[result.name]
        assert row["AP"] == ("" if result.AP is None else str(result.AP))
        assert (int(row["num_gt"]), int(row["category_id"])) == (result.num_gt, result.category_id)


def test_the_best_f1_stands_in_every_file_and_table(one_of_two, found, tmp_path):
    data, detections = one_of_two
    thresholds = find_thresholds(data, detections)
    write_report(tmp_path, data, detections, found, thresholds=thresholds)
    written = json.loads((tmp_path / "metrics.json").read_text())
    # The cat is right at 0.9; the dog is missed.
    best = {"F1": 2 / 3, "precision": 1.0, "recall": 0.5, "score_threshold": 0.9}
    assert written.items() >= best.items()
    assert [row["F1"] for row in written["classes"]] == [1.0, None, None]
    rows = per_class(tmp_path)
    assert [rows["cat"][name] for name in ("F1", "score_threshold")] == ["1.0", "0.9"]
    assert rows["dog"]["F1"] == ""
    lines = table(found, thresholds=thresholds).splitlines()
    assert "Best F1 0.667 with score >= 0.900: precision 1.000, recall 0.500 (IoU 0.50)" in lines
    last = [line.split()[-2:] for line in lines[-4:-1]]
    assert last == [["F1", "score"], ["1.000", "0.900"], ["n/a", "n/a"]]


def test_names_with_commas_quotes_and_letters_of_any_script_survive(
    make_data, make_detections, tmp_path
):
    names = ('cup, "big"', "\u732b", "caf\u00e9")
    data = make_data(1, [(1, 1, BOX)], names=names)
    detections = make_detections(data, [])
    write_report(tmp_path, data, detections, evaluate(data, detections, [1]))
    assert per_class(tmp_path).keys() == set(names)


@pytest.mark.parametrize("rows", [[(1, 2, BOX, 0.5)], []])
def test_a_test_set_gets_its_detections_alone(make_data, make_detections, tmp_path, rows):
    data = make_data(1, [], annotations=None)
    write_report(tmp_path / "eval", data, make_detections(data, rows), None)
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["detections.json"]
    assert len(json.loads((tmp_path / "eval/detections.json").read_text())) == len(rows)


def test_that_there_is_nothing_to_find_is_said(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX, 1)])  # a crowd region
    evaluation = evaluate(data, make_detections(data, []), data.image_ids)
    assert "no objects" in warnings_of(evaluation, make_detections(data, []), 100)


def test_a_cap_is_reported_above_one_percent_of_the_images(make_data, make_detections):
    data = make_data(200, [(1, 1, BOX)])
    assert warnings_of(None, make_detections(data, [], num_capped=2), 100) is None
    warning = warnings_of(None, make_detections(data, [], num_capped=3), 100)
    assert warning.startswith("3 of 200 images have 100 detections of score 0.3 or more")
    assert "postprocess.detections=100" in warning


def test_more_detections_than_the_evaluator_sees_are_reported(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX)])
    detections = make_detections(data, [(1, 1, BOX, 0.9)] * 4)
    few, enough = (
        evaluate(data, detections, data.image_ids, max_dets=(1, 2, most)) for most in (3, 4)
    )
    assert warnings_of(enough, detections, 100) is None
    assert "evaluation.max_dets=[1, 2, 3]" in warnings_of(few, detections, 100)
