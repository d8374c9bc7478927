"""Where F1 is largest: by hand, and against pycocotools' matches at every possible score."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.evaluation.thresholds import NEVER, BestF1, best_f1, find_thresholds

BOX = (100.0, 100.0, 50.0, 40.0)
FAR = (300.0, 300.0, 50.0, 40.0)


def largest_f1(annotations, results, max_dets=100):
    """Category -> (F1, score) by pycocotools' matches at IoU 0.5; 0 for all together."""
    best = {}
    for score in sorted({row["score"] for row in results}, reverse=True):
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth = COCO(str(annotations))
            kept = ground_truth.loadRes([row for row in results if row["score"] >= score])
            evaluator = COCOeval(ground_truth, kept, "bbox")
            evaluator.params.iouThrs = np.array([0.5])
            evaluator.params.areaRng = [[0, 1e10]]
            evaluator.params.maxDets = [max_dets]
            evaluator.evaluate()
        counts = {category: np.zeros(3, dtype=int) for category in ground_truth.getCatIds()}
        for image in filter(None, evaluator.evalImgs):
            counted = ~image["dtIgnore"][0].astype(bool)
            right = (image["dtMatches"][0] > 0) & counted
            num_objects = (np.array(image["gtIgnore"]) == 0).sum()
            counts[image["category_id"]] += right.sum(), counted.sum(), num_objects
        counts[0] = sum(counts.values())
        for category, (right, kept, num_objects) in counts.items():
            F1 = 2 * right / max(kept + num_objects, 1)
            if best.get(category, (0.0, None))[0] < F1:
                best[category] = F1, score
    return best


def random_set(seed):
    """Annotations and results with crowds, equal scores, wrong classes, empty images."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, 7):
        for _ in range(int(rng.choice([0, 2, 6]))):
            box = (*rng.uniform(0, 200, 2), *np.exp(rng.uniform(2, 5, 2)))
            category = int(rng.integers(1, 4))
            annotations.append((image, category, box, rng.random() < 0.2))
            for _ in range(int(rng.integers(0, 4))):
                near = (np.array(box) + rng.normal(0, 0.12, 4) * box[2]).clip(0.1)
                results.append((image, category, near.tolist(), rng.integers(1, 12) / 12))
        for _ in range(int(rng.choice([0, 4]))):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(1, 200, 2)]
            results.append((image, int(rng.integers(1, 5)), box, rng.integers(1, 12) / 12))
    return annotations, results


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_dets", [100, 2])
def test_thresholds_are_the_best_of_all_scores_by_pycocotools(
    make_data, make_detections, seed, max_dets
):
    annotations, results = random_set(seed)
    data = make_data(6, annotations, names=("a", "b", "c", "never there"))
    found = make_detections(data, results)
    keys = ("image_id", "category_id", "bbox", "score")
    # In the order of our arrays, which decides between equal scores.
    rows = [
        dict(zip(keys, row, strict=True)) for row in sorted(results, key=lambda r: (r[0], -r[3]))
    ]
    expected = largest_f1(data.path, rows, max_dets)
    assert len(expected) >= 3
    ours = find_thresholds(data, found, max_dets)
    for category, best in enumerate((ours.overall, *ours.classes)):
        F1, score = expected.get(category, (None, None))
        assert (None if F1 is None else pytest.approx(F1)) == best.F1
        assert best.score == score


def test_three_detections_by_hand():
    # Right, wrong, right of two objects: F1 is 2/3, 1/2 and 4/5.
    best = best_f1(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    assert (best.score, best.F1) == (0.7, pytest.approx(0.8))
    assert (best.precision, best.recall) == (pytest.approx(2 / 3), 1.0)


def test_a_class_never_right_has_no_threshold(make_data, make_detections):
    names = ("found", "without objects", "without detections", "always wrong")
    data = make_data(2, [(1, 1, BOX), (1, 3, BOX), (2, 4, BOX)], names=names)
    results = [(1, 1, BOX, 0.75), (1, 2, BOX, 0.5), (2, 4, FAR, 0.25)]
    found = find_thresholds(data, make_detections(data, results))
    assert found.classes[1:] == (NEVER,) * 3
    assert found.plain() == {
        "iou": 0.5,
        "score": 0.75,
        "f1": 2 / 4,  # one right, two objects missed
        "classes": [0.75, None, None, None],
    }


def test_objects_of_images_that_were_not_looked_at_are_not_missed(make_data, make_detections):
    data = make_data(2, [(1, 1, BOX), (2, 1, BOX)], names=("cat",))
    found = make_detections(data, [(2, 1, BOX, 0.5)], evaluated=[2])
    assert find_thresholds(data, found).overall.recall == 1.0
    data = make_data(1, [], annotations=None)
    with pytest.raises(ValueError, match="has no annotations"):
        find_thresholds(data, make_detections(data, []))


def test_a_printed_threshold_still_keeps_the_best_detection():
    assert BestF1(0.99961, 1.0, 1.0, 1.0).shown_score() == "0.999"
    assert BestF1(0.5, 1.0, 1.0, 1.0).shown_score() == "0.500"
