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
BOX = (100.0, 100.0, 50.0, 40.0)  # 2000 square pixels: medium


def stock(annotations, results, max_dets=(1, 10, 100)):
    """The twelve numbers of pycocotools used as its demo does, None for -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [None if value == -1 else value for value in evaluator.stats]


def random_set(seed):
    """Annotations and results with crowds, ties, empty images and more boxes than 100."""
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 9))
    annotations, results = [], []
    for image in range(1, num_images + 1):
        for _ in range(int(rng.choice([0, 1, 5, 20]))):
            box = (*rng.uniform(0, 300, 2), *np.exp(rng.uniform(1, 5.5, 2)))
            category = int(rng.integers(1, 4))
            annotations.append((image, category, box, rng.random() < 0.15))
            for _ in range(int(rng.integers(0, 4))):
                near = np.array(box) + rng.normal(0, 0.1, 4) * box[2]
                # Few different scores: ties are the rule.
                results.append((image, category, near.clip(0.1), rng.integers(1, 9) / 10))
        for _ in range(int(rng.choice([0, 3, 150]))):
            box = (*rng.uniform(0, 300, 2), *rng.uniform(1, 200, 2))
            results.append((image, int(rng.integers(1, 3)), box, rng.random()))
    return num_images, annotations, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_published_numbers_of_the_coco_api(real_data, make_detections, backend, tmp_path):
    root = real_data("cocoapi_fixture")
    data = read_coco(root / "instances_val2014_100.json", tmp_path)
    results = json.loads((root / "instances_val2014_fakebbox100_results.json").read_text())
    found = make_detections(
        data, [(r["image_id"], r["category_id"], r["bbox"], r["score"]) for r in results]
    )
    expected = json.loads((root / "expected.json").read_text())["bbox"]
    metrics = evaluate(data, found, data.image_ids, backend).metrics
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
    found = make_detections(data, rows)
    keys = ("image_id", "category_id", "bbox", "score")
    results = [dict(zip(keys, row, strict=True)) for row in rows]
    expected = stock(path, results)
    assert 0.1 < expected[0] < 0.9
    for backend in BACKENDS:
        metrics = evaluate(data, found, data.image_ids, backend).metrics
        assert list(metrics.values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(25))
def test_both_backends_equal_stock_pycocotools(make_data, make_detections, seed):
    num_images, annotations, results = random_set(seed)
    data = make_data(num_images, annotations, names=("a", "b", "c", "never there"))
    found = make_detections(data, results)
    slow, fast = (evaluate(data, found, data.image_ids, backend) for backend in BACKENDS)

    assert list(fast.metrics.values()) == pytest.approx(list(slow.metrics.values()), abs=1e-12)
    np.testing.assert_allclose(fast.precision, slow.precision, rtol=0, atol=1e-12)
    for one, other in zip(slow.per_class, fast.per_class, strict=True):
        assert dataclasses.asdict(other) == pytest.approx(dataclasses.asdict(one), abs=1e-12)
    if results:
        rows = [
            {"image_id": r[0], "category_id": r[1], "bbox": list(r[2]), "score": r[3]}
            for r in sorted(results, key=lambda r: (r[0], -r[3]))
        ]
        assert list(slow.metrics.values()) == pytest.approx(stock(data.path, rows), abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detections_score_one(make_data, make_detections, backend):
    small = (10.0, 10.0, 20.0, 20.0)
    data = make_data(2, [(1, 1, BOX), (2, 2, BOX), (2, 1, small)])
    found = make_detections(data, [(1, 1, BOX, 0.9), (2, 2, BOX, 0.8), (2, 1, small, 0.7)])
    result = evaluate(data, found, data.image_ids, backend)
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert result.metrics["APs"] == result.metrics["APm"] == pytest.approx(1.0)
    assert result.metrics["APl"] is None
    assert [row.num_gt for row in result.per_class] == [2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotation_id_zero_spoils_nothing(make_data, make_detections, backend):
    record = {"image_id": 1, "category_id": 1, "bbox": BOX, "area": 2000, "iscrowd": 0}
    other = record | {"image_id": 2, "bbox": (5.0, 5.0, 90.0, 90.0), "area": 8100}
    data = make_data(2, [], annotations=[record | {"id": 0}, other | {"id": 1}])
    found = make_detections(data, [(1, 1, BOX, 0.9), (2, 1, other["bbox"], 0.8)])
    assert evaluate(data, found, data.image_ids, backend).metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_iscrowd_and_area_are_ordinary(make_data, make_detections, backend):
    record = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX}
    data = make_data(1, [], annotations=[record])
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    metrics = evaluate(data, found, data.image_ids, backend).metrics
    assert metrics["APm"] == pytest.approx(1.0)
    assert metrics["APs"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_is_the_area_of_the_file_not_of_the_box(make_data, make_detections, backend):
    # A thin mask in a large box counts as small.
    record = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 100, "iscrowd": 0}
    data = make_data(1, [], annotations=[record])
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    metrics = evaluate(data, found, data.image_ids, backend).metrics
    assert metrics["APs"] == pytest.approx(1.0)
    assert metrics["APm"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_of_the_objects_found(make_data, make_detections, backend):
    # Recall reaches 0.5 at precision 1: 51 of the 101 recall points have precision 1.
    data = make_data(2, [(1, 1, BOX), (2, 1, BOX)], names=("cat",))
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    metrics = evaluate(data, found, data.image_ids, backend).metrics
    assert metrics["AP"] == pytest.approx(51 / 101)
    assert metrics["AR100"] == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_that_were_not_evaluated_do_not_count(make_data, make_detections, backend):
    data = make_data(2, [(1, 1, BOX), (2, 1, BOX)], names=("cat",))
    found = make_detections(data, [(1, 1, BOX, 0.9)], evaluated=[1])
    result = evaluate(data, found, [1], backend)
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert (result.num_images, result.num_gt) == (1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_detections_count(make_data, make_detections, backend):
    data = make_data(2, [(1, 1, BOX), (2, 1, BOX)], names=("cat",))
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    assert evaluate(data, found, [1, 2], backend).metrics["AR100"] == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_give_zero(make_data, make_detections, backend):
    data = make_data(2, [(1, 1, BOX)])
    result = evaluate(data, make_detections(data, []), data.image_ids, backend)
    assert result.metrics["AP"] == 0
    assert result.metrics["AR100"] == 0
    assert result.metrics["APl"] is None
    assert result.per_class[1].AP is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("annotations", [[], [(1, 1, BOX, True)]], ids=["nothing", "only crowd"])
def test_without_ground_truth_every_number_is_undefined(
    make_data, make_detections, annotations, backend
):
    data = make_data(2, annotations)
    for results in ([], [(1, 1, BOX, 0.9)]):
        result = evaluate(data, make_detections(data, results), data.image_ids, backend)
        assert set(result.metrics.values()) == {None}
        assert np.isnan(result.precision).all()
        assert result.num_gt == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images_give_undefined_numbers(make_data, make_detections, backend):
    data = make_data(2, [(1, 1, BOX)])
    result = evaluate(data, make_detections(data, []), [], backend)
    assert set(result.metrics.values()) == {None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_detection_on_a_crowd_costs_nothing(make_data, make_detections, backend):
    crowd = (300.0, 100.0, 200.0, 200.0)
    data = make_data(1, [(1, 1, BOX), (1, 1, crowd, True)], names=("cat",))
    inside = (320.0, 120.0, 50.0, 50.0)
    found = make_detections(data, [(1, 1, BOX, 0.5), (1, 1, inside, 0.9)])
    assert evaluate(data, found, data.image_ids, backend).metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ap_is_defined_at_any_max_dets(make_data, make_detections, backend):
    # 150 objects in one image, all found: 100 detections reach 2 of 3, 300 reach them all.
    boxes = [(12.0 * (i % 50), 12.0 * (i // 50), 10.0, 10.0) for i in range(150)]
    data = make_data(1, [(1, 1, box) for box in boxes], names=("cat",))
    found = make_detections(data, [(1, 1, box, 0.9) for box in boxes])
    at_100 = evaluate(data, found, data.image_ids, backend)
    at_300 = evaluate(data, found, data.image_ids, backend, max_dets=(1, 10, 300))
    assert at_100.metrics["AR100"] == pytest.approx(100 / 150)
    assert at_300.metrics["AP"] == pytest.approx(1.0)
    assert (at_100.num_over_max_dets, at_300.num_over_max_dets) == (1, 0)
    assert at_300.metrics["AR10"] == pytest.approx(10 / 150)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_evaluators_print_nothing(make_data, make_detections, backend, capfd):
    data = make_data(1, [(1, 1, BOX)])
    evaluate(data, make_detections(data, [(1, 1, BOX, 0.9)]), data.image_ids, backend)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_category_ids_with_gaps_stay_apart(make_data, make_detections, backend):
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 90, "bbox": BOX},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": BOX},
    ]
    data = make_data(2, [], categories=categories, annotations=annotations)
    found = make_detections(data, [(1, 90, BOX, 0.9)])
    rows = evaluate(data, found, data.image_ids, backend).per_class
    assert [(row.name, row.category_id, row.AP) for row in rows] == [
        ("car", 3, 0.0),
        ("toothbrush", 90, pytest.approx(1.0)),
    ]


def test_unknown_images_are_refused(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX)])
    with pytest.raises(ValueError, match=r"images \[7\] are not in .*annotations.json"):
        evaluate(data, make_detections(data, []), [1, 7])


def test_a_test_set_cannot_be_scored(make_data, make_detections):
    data = make_data(1, [], annotations=None)
    with pytest.raises(ValueError, match="has no annotations"):
        evaluate(data, make_detections(data, []), [1])


@pytest.mark.parametrize(
    ("name", "value"), [("backend", "torchmetrics"), ("max_dets", [100, 10, 1])]
)
def test_settings_out_of_range_are_refused(make_data, make_detections, name, value):
    data = make_data(1, [(1, 1, BOX)])
    with pytest.raises(ValueError, match=f"evaluation.{name} must"):
        evaluate(data, make_detections(data, []), [1], **{name: value})
