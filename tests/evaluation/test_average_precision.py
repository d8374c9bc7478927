"""The evaluator's numbers: by hand, against the published ones, against stock pycocotools."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.data.coco import read_coco
from retinanet.evaluation.average_precision import NUMBERS, evaluate

BACKENDS = ("pycocotools", "arrays")
KEYS = ("image_id", "category_id", "bbox", "score")
BOX = (100.0, 100.0, 50.0, 40.0)  # 2000 square pixels: medium
OTHER = (300.0, 100.0, 50.0, 40.0)
SMALL = (10.0, 10.0, 20.0, 20.0)
CROWD = (300.0, 100.0, 200.0, 200.0)


def stock(annotations, results, max_dets=(1, 10, 100)):
    """The twelve numbers of pycocotools used as its demo does, None for -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(annotations))
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [None if value == -1 else value for value in evaluator.stats]


def random_set(seed):
    """Records with crowds, odd areas, ties of scores and overlaps, many boxes, empty images."""
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 9))
    ties = seed % 3 == 0
    records, results = [], []
    for image in range(1, num_images + 1):
        for _ in range(int(rng.choice([0, 1, 5, 20]))):
            box = np.array([*rng.uniform(0, 300, 2), *np.exp(rng.uniform(1, 5.5, 2))])
            box = np.round(box / 8) * 8 + 4 if ties else box
            category = int(rng.integers(1, 4))
            record = {"id": len(records) + 1, "image_id": image, "category_id": category}
            record |= {"bbox": box.tolist(), "iscrowd": int(rng.random() < 0.15)}
            records.append(record | {"area": box[2] * box[3] * rng.uniform(0.5, 1)})
            for _ in range(int(rng.integers(0, 4))):
                near = (box + rng.normal(0, 0.1, 4) * box[2]).clip(0.1)
                near = np.round(near / 8) * 8 + 4 if ties else near
                # Few different scores: ties are the rule.
                results.append((image, category, near.tolist(), rng.integers(1, 9) / 10))
        for _ in range(int(rng.choice([0, 3, 150]))):
            box = [*rng.uniform(0, 300, 2), *rng.uniform(1, 200, 2)]
            results.append((image, int(rng.integers(1, 3)), box, rng.random()))
    return num_images, records, results


@pytest.mark.parametrize("seed", range(30))
def test_both_backends_are_equal_to_the_bit_and_equal_stock_pycocotools(
    make_data, make_detections, seed
):
    num_images, records, results = random_set(seed)
    names = ("a", "b", "c", "never there")
    data = make_data(num_images, [], names=names, annotations=records)
    detections = make_detections(data, results)
    max_dets = ((1, 10, 100), (1, 2, 5))[seed % 2]
    slow, fast = (evaluate(data, detections, data.image_ids, b, max_dets) for b in BACKENDS)
    for field in dataclasses.fields(slow):
        if field.name != "backend":
            ours, theirs = getattr(fast, field.name), getattr(slow, field.name)
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
    if results and max_dets[2] == 100:  # stock summarizes no other limit
        rows = sorted(results, key=lambda row: (row[0], -row[3]))
        expected = stock(data.path, [dict(zip(KEYS, row, strict=True)) for row in rows])
        assert list(slow.metrics.values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_published_numbers_of_the_coco_api(real_data, make_detections, backend, tmp_path):
    root = real_data("cocoapi_fixture")
    data = read_coco(root / "instances_val2014_100.json", tmp_path)
    results = json.loads((root / "instances_val2014_fakebbox100_results.json").read_text())
    detections = make_detections(data, [[row[key] for key in KEYS] for row in results])
    expected = json.loads((root / "expected.json").read_text())["bbox"]
    metrics = evaluate(data, detections, data.image_ids, backend).metrics
    assert list(metrics) == list(NUMBERS)
    assert list(metrics.values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "annotations"),
    [("coco_slice", "annotations/instances_val2017.json"), ("bccd", "annotations/val.json")],
)
def test_real_sets_equal_stock_pycocotools_on_the_users_file(
    real_data, make_detections, tmp_path, name, annotations
):
    path = real_data(name) / annotations
    data = read_coco(path, tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for row, image in enumerate(data.image_ids.repeat(np.diff(data.first))):
        for _ in range(int(rng.integers(0, 3))):
            box = (data.bbox[row] + rng.normal(0, 0.08, 4) * data.bbox[row, 2]).clip(1)
            category = data.category_ids[data.labels[row]]
            rows.append((int(image), category, box.tolist(), float(rng.random())))
    detections = make_detections(data, rows)
    expected = stock(path, [dict(zip(KEYS, row, strict=True)) for row in rows])
    assert 0.1 < expected[0] < 0.9
    for backend in BACKENDS:
        metrics = evaluate(data, detections, data.image_ids, backend).metrics
        assert list(metrics.values()) == pytest.approx(expected, abs=1e-12)


# Sentence -> annotations (image, category, box[, crowd]), results, some of the numbers.
BY_HAND = {
    "perfect detections score one": (
        [(1, 1, BOX), (2, 2, BOX), (2, 1, SMALL)],
        [(1, 1, BOX, 0.9), (2, 2, BOX, 0.8), (2, 1, SMALL, 0.7)],
        {"AP": 1, "APs": 1, "APm": 1, "APl": None},
    ),
    # Recall reaches 0.5 at precision 1: 51 of the 101 recall points have precision 1.
    "half of the objects, and images without detections count": (
        [(1, 1, BOX), (2, 1, BOX)],
        [(1, 1, BOX, 0.9)],
        {"AP": 51 / 101, "AR100": 0.5},
    ),
    "no detections give zero": ([(1, 1, BOX)], [], {"AP": 0, "AR100": 0, "APl": None}),
    # Right at every threshold, wrong, and right up to an IoU of 0.6. At 0.5: precision 1 up to a
    # recall of one half, beyond it 2/3; at 0.65 and above the third is wrong too.
    "two objects and three detections": (
        [(1, 1, BOX), (1, 1, OTHER)],
        [(1, 1, BOX, 0.9), (1, 1, SMALL, 0.8), (1, 1, (300, 100, 30, 40), 0.7)],
        {
            "AP50": (51 + 50 * 2 / 3) / 101,
            "AP75": 51 / 101,
            "AP": (51 + 0.3 * 50 * 2 / 3) / 101,
            "AR1": 0.5,
            "AR10": 0.3 * 1 + 0.7 * 0.5,
            "APs": None,
        },
    ),
    "a detection on a crowd costs nothing": (
        [(1, 1, BOX), (1, 1, CROWD, True)],
        [(1, 1, BOX, 0.5), (1, 1, (320, 120, 50, 50), 0.9), (1, 1, (400, 200, 50, 50), 0.8)],
        {"AP": 1},
    ),
    "nothing to detect is undefined": ([], [], dict.fromkeys(NUMBERS)),
    "nor are detections of nothing": ([], [(1, 1, BOX, 0.9)], dict.fromkeys(NUMBERS)),
    "nor a crowd alone": ([(1, 1, BOX, True)], [(1, 1, BOX, 0.9)], dict.fromkeys(NUMBERS)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sentence", BY_HAND)
def test_numbers_by_hand(make_data, make_detections, sentence, backend, capfd):
    annotations, results, expected = BY_HAND[sentence]
    data = make_data(2, annotations)
    result = evaluate(data, make_detections(data, results), data.image_ids, backend)
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected)
    counts = [0, 0]
    for _, category, _, *crowd in annotations:
        counts[category - 1] += not any(crowd)
    assert ([row.num_gt for row in result.per_class], result.num_gt) == (counts, sum(counts))
    assert [row.AP is None for row in result.per_class] == [not count for count in counts]
    assert bool(np.isnan(result.precision).all()) == (not sum(counts))
    assert capfd.readouterr() == ("", "")  # pycocotools prints what it does


RECORD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX}
# Sentence -> fields of an annotation file of one image, some of the numbers.
FILES = {
    "annotation id zero spoils nothing": (
        [RECORD | {"id": 0}, RECORD | {"id": 1, "bbox": OTHER}],
        {"AP": 1},
    ),
    "missing iscrowd and area are ordinary": ([RECORD], {"APm": 1, "APs": None}),
    # A thin mask in a large box counts as small.
    "size is the area of the file": ([RECORD | {"area": 100}], {"APs": 1, "APm": None}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sentence", FILES)
def test_annotations_are_taken_as_the_file_has_them(make_data, make_detections, sentence, backend):
    records, expected = FILES[sentence]
    data = make_data(1, [], annotations=records)
    detections = make_detections(data, [(1, 1, row["bbox"], 0.9) for row in records])
    metrics = evaluate(data, detections, data.image_ids, backend).metrics
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_that_were_not_evaluated_do_not_count(make_data, make_detections, backend):
    data = make_data(2, [(1, 1, BOX), (2, 1, BOX)], names=("cat",))
    detections = make_detections(data, [(1, 1, BOX, 0.9)], evaluated=[1])
    result = evaluate(data, detections, [1], backend)
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert (result.num_images, result.num_gt) == (1, 1)
    none = evaluate(data, make_detections(data, []), [], backend)
    assert set(none.metrics.values()) == {None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_ap_is_defined_at_any_max_dets(make_data, make_detections, backend):
    # 150 objects in one image, all detected: 100 detections reach 2 of 3, 300 reach them all.
    boxes = [(12.0 * (i % 50), 12.0 * (i // 50), 10.0, 10.0) for i in range(150)]
    data = make_data(1, [(1, 1, box) for box in boxes], names=("cat",))
    detections = make_detections(data, [(1, 1, box, 0.9) for box in boxes])
    at_100 = evaluate(data, detections, data.image_ids, backend)
    at_300 = evaluate(data, detections, data.image_ids, backend, max_dets=(1, 10, 300))
    assert at_100.metrics["AR100"] == pytest.approx(100 / 150)
    assert at_300.metrics["AP"] == pytest.approx(1.0)
    assert (at_100.num_over_max_dets, at_300.num_over_max_dets) == (1, 0)
    assert at_300.metrics["AR10"] == pytest.approx(10 / 150)


@pytest.mark.parametrize("backend", BACKENDS)
def test_category_ids_with_gaps_stay_apart(make_data, make_detections, backend):
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
    records = [RECORD | {"category_id": 90}, RECORD | {"id": 2, "image_id": 2, "category_id": 3}]
    data = make_data(2, [], categories=categories, annotations=records)
    detections = make_detections(data, [(1, 90, BOX, 0.9)])
    rows = evaluate(data, detections, data.image_ids, backend).per_class
    assert [(row.name, row.category_id, row.AP) for row in rows] == [
        ("car", 3, 0.0),
        ("toothbrush", 90, pytest.approx(1.0)),
    ]


@pytest.mark.parametrize(
    ("fields", "call", "message"),
    [
        ({}, {"image_ids": [1, 7]}, r"images \[7\] are not in .*annotations.json"),
        ({"annotations": None}, {}, "has no annotations"),
        ({}, {"backend": "torchmetrics"}, "evaluation.backend must"),
        ({}, {"max_dets": [100, 10, 1]}, "evaluation.max_dets must"),
    ],
)
def test_what_cannot_be_scored_is_refused(make_data, make_detections, fields, call, message):
    data = make_data(1, [(1, 1, BOX)], **fields)
    with pytest.raises(ValueError, match=message):
        evaluate(data, make_detections(data, []), **{"image_ids": [1]} | call)
