"""Errors told apart and fixed: each kind by hand, all of them against loops of our own."""

import itertools

import numpy as np
import pytest

from retinanet.evaluation.coco import evaluate
from retinanet.evaluation.matched import match_detections
from retinanet.tools.diagnose.errors import KINDS, NO_ERROR, find_errors

BOX = (100.0, 100.0, 50.0, 40.0)
OTHER = (300.0, 100.0, 50.0, 40.0)
LOOSE = (125.0, 100.0, 50.0, 40.0)  # IoU 1/3 with BOX
NEAR = (105.0, 100.0, 50.0, 40.0)  # IoU 9/11 with BOX
FAR = (500.0, 300.0, 50.0, 40.0)
NAMES = ("cat", "dog")


@pytest.fixture
def errors_of(make_data, make_detections):
    """Errors of results in images with annotations."""

    def find(annotations, results, num_images=1, score=0.0):
        data = make_data(num_images, annotations, names=NAMES)
        found = make_detections(data, results)
        errors = find_errors(match_detections(data, found), score)
        assert evaluate(data, found, found.evaluated).metrics["AP50"] == errors.AP50
        return errors

    return find


def costs(errors):
    return {kind.name: pytest.approx(kind.cost) for kind in errors.kinds if kind.cost}


def counts(errors):
    return {kind.name: kind.count for kind in errors.kinds if kind.count}


# Annotations, results, AP50, count of each kind, cost of each kind.
BY_HAND = {
    # The dog is detected as a cat: cat has half its precision, dog nothing. It is not missed.
    "a right box of another class is an error of class": (
        [(1, 1, OTHER), (1, 2, BOX)],
        [(1, 1, BOX, 0.9), (1, 1, OTHER, 0.8)],
        (0.25, {"class": 1}, {"class": 0.75}),
    ),
    "a loose box is an error of localization": (
        [(1, 1, BOX)],
        [(1, 1, LOOSE, 0.9)],
        (0, {"localization": 1}, {"localization": 1}),
    ),
    # Dog: one wrong before one right. Cat: never detected.
    "a loose box of another class is both, and only goes away": (
        [(1, 1, BOX), (2, 2, BOX)],
        [(1, 2, LOOSE, 0.9), (2, 2, BOX, 0.8)],
        (0.25, {"both": 1, "missed": 1}, {"both": 0.25, "missed": 0.25}),
    ),
    # Precision 1 up to a recall of 0.5, 51 of 101 points, then 2/3.
    "a second box on an object is a duplicate": (
        [(1, 1, BOX), (1, 1, OTHER)],
        [(1, 1, BOX, 0.9), (1, 1, NEAR, 0.8), (1, 1, OTHER, 0.7)],
        (1 - 50 / 101 / 3, {"duplicate": 1}, {"duplicate": 50 / 101 / 3}),
    ),
    "a box on nothing is background": (
        [(1, 1, BOX)],
        [(1, 1, FAR, 0.9), (1, 1, BOX, 0.8)],
        (0.5, {"background": 1}, {"background": 0.5}),
    ),
    "a box in an image without objects is background": (
        [(1, 1, BOX)],
        [(1, 1, BOX, 0.8), (2, 1, BOX, 0.9)],
        (0.5, {"background": 1}, {"background": 0.5}),
    ),
    "an object that nothing detects is missed": (
        [(1, 1, BOX), (1, 1, OTHER)],
        [(1, 1, BOX, 0.9)],
        (51 / 101, {"missed": 1}, {"missed": 50 / 101}),
    ),
    "with everything missed nothing is left to be wrong": (
        [(1, 1, BOX)],
        [],
        (0, {"missed": 1}, {"missed": 1}),
    ),
    # Two annotated boxes lie on each other; the second cat is a dog detected as a cat.
    "a duplicate that lies on another class is an error of class": (
        [(1, 1, BOX), (1, 2, NEAR)],
        [(1, 1, BOX, 0.9), (1, 1, NEAR, 0.8)],
        (0.5, {"class": 1}, {"class": 0.5}),
    ),
    "a loose box on its class comes before a right one on another": (
        [(1, 1, LOOSE), (1, 2, BOX)],
        [(1, 1, BOX, 0.9)],
        (0, {"localization": 1, "missed": 1}, {"localization": 0.5}),
    ),
    # One becomes right, the other goes away.
    "of two loose boxes one is fixed": (
        [(1, 1, BOX)],
        [(1, 1, LOOSE, 0.9), (1, 1, LOOSE, 0.8)],
        (0, {"localization": 2}, {"localization": 1}),
    ),
    "a loose box beside a right one only goes away": (
        [(1, 1, BOX)],
        [(1, 1, LOOSE, 0.9), (1, 1, BOX, 0.8)],
        (0.5, {"localization": 1}, {"localization": 0.5}),
    ),
    "detections of crowds are no errors, and crowds are not missed": (
        [(1, 1, BOX), (1, 1, OTHER, True)],
        [(1, 1, (310.0, 110.0, 10.0, 10.0), 0.9), (1, 1, BOX, 0.8)],
        (1, {}, {}),
    ),
    "ground truth as predictions has no error": (
        [(1, 1, BOX), (1, 2, OTHER), (2, 1, BOX)],
        [(1, 1, BOX, 0.9), (1, 2, OTHER, 0.9), (2, 1, BOX, 0.9)],
        (1, {}, {}),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_kinds_and_costs_by_hand(errors_of, name):
    annotations, results, (AP50, num_errors, cost) = BY_HAND[name]
    errors = errors_of(annotations, results, num_images=2)
    assert pytest.approx(AP50) == errors.AP50
    assert counts(errors) == num_errors
    found = {name: value for name, value in costs(errors).items() if value != pytest.approx(0)}
    assert found == cost


def test_all_wrong_detections_and_all_missed_objects_cost_by_hand(errors_of):
    errors = errors_of(*BY_HAND["a right box of another class is an error of class"][:2])
    assert errors.false_positives.cost == pytest.approx(0.25)
    # The dog is not asked for any more, and its class leaves the mean.
    assert errors.false_negatives.cost == pytest.approx(0.25)
    errors = errors_of(*BY_HAND["a loose box is an error of localization"][:2])
    assert (errors.false_positives.cost, errors.false_negatives.cost) == (0, 1)
    assert errors.iou[0] == pytest.approx(1 / 3)
    errors = errors_of(*BY_HAND["an object that nothing detects is missed"][:2])
    assert errors.missed.tolist() == [False, True]
    errors = errors_of(*BY_HAND["a box on nothing is background"][:2])
    assert errors.target.tolist() == [-1, -1]


def test_an_overlap_of_half_is_right_and_of_a_tenth_is_loose(errors_of):
    half, tenth = (100.0, 100.0, 25.0, 40.0), (100.0, 100.0, 5.0, 40.0)
    below = (100.0, 100.0, 4.9, 40.0)
    found = [errors_of([(1, 1, BOX)], [(1, 1, box, 0.9)]).kind[0] for box in (half, tenth, below)]
    assert found == [NO_ERROR, KINDS.index("localization"), KINDS.index("background")]


def test_weak_detections_count_at_no_higher_score(errors_of):
    annotations = [(1, 1, BOX), (1, 1, OTHER)]
    results = [(1, 1, BOX, 0.9), (1, 1, FAR, 0.8), (1, 1, OTHER, 0.2), (1, 1, FAR, 0.1)]
    errors = errors_of(annotations, results, score=0.5)
    background, missed = (errors.kinds[KINDS.index(name)] for name in ("background", "missed"))
    assert (background.count, background.count_at_score) == (2, 1)
    assert (missed.count, missed.count_at_score) == (0, 1)
    assert errors.false_negatives.count_at_score == 1


def test_without_objects_nothing_costs_anything(errors_of):
    errors = errors_of([], [(1, 1, BOX, 0.9)])
    assert errors.AP50 is None
    assert {kind.cost for kind in errors.kinds} == {None}
    assert counts(errors) == {"background": 1}


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def kinds_by_loops(annotations, results):
    """Kind of every result, best first in its image: one detection and object after the other."""
    found, taken = {}, set()
    for number in sorted(range(len(results)), key=lambda n: -results[n][3]):
        image, category, box, _ = results[number]
        overlap = [(iou(box, a[2]), i) for i, a in enumerate(annotations) if a[0] == image]
        own = [(value, i) for value, i in overlap if annotations[i][1] == category]
        other = max([value for value, i in overlap if annotations[i][1] != category], default=0)
        free = [(value, i) for value, i in own if i not in taken and value >= 0.5]
        best = max(own, default=(0, None))[0]
        if free:
            taken.add(max(free)[1])
            found[number] = None
        elif 0.1 <= best < 0.5:
            found[number] = "localization"
        elif other >= 0.5:
            found[number] = "class"
        elif best >= 0.5:
            found[number] = "duplicate"
        else:
            found[number] = "background" if max(best, other) < 0.1 else "both"
    return found


@pytest.mark.parametrize("seed", range(6))
def test_every_detection_has_the_kind_that_loops_give_it(make_data, make_detections, seed):
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image, _ in itertools.product(range(1, 9), range(4)):
        box = np.array([*rng.uniform(0, 150, 2), *rng.uniform(20, 80, 2)])
        category = int(rng.integers(1, 4))
        annotations.append((image, category, box.tolist()))
        for _ in range(int(rng.integers(1, 7))):
            near = (box + rng.normal(0, 0.2, 4) * box[[2, 3, 2, 3]]).clip(1).tolist()
            as_found = category if rng.random() < 0.7 else int(rng.integers(1, 4))
            results.append((image, as_found, near, rng.random()))
        results.append((image, category, [400.0, 300.0, 20.0, 20.0], rng.random()))
    data = make_data(8, annotations, names=("a", "b", "c"))
    results.sort(key=lambda r: (r[0], -r[3]))
    matched = match_detections(data, make_detections(data, results))
    errors = find_errors(matched, 0.0)
    expected = kinds_by_loops(annotations, results)
    ours = {
        int(row): None if kind == NO_ERROR else KINDS[kind]
        for row, kind in zip(matched.found_row, errors.kind, strict=True)
    }
    assert ours == expected
    assert set(KINDS[:-1]) <= set(ours.values())


def test_no_fix_ever_costs(make_data, make_detections):
    rng = np.random.default_rng(7)
    for _ in range(20):
        annotations = [
            (int(rng.integers(1, 4)), int(rng.integers(1, 3)), rng.uniform(1, 60, 4).tolist())
            for _ in range(12)
        ]
        results = [
            (int(rng.integers(1, 4)), int(rng.integers(1, 3)), rng.uniform(1, 60, 4).tolist(), s)
            for s in rng.random(40)
        ]
        data = make_data(3, annotations)
        errors = find_errors(match_detections(data, make_detections(data, results)), 0.5)
        for kind in (*errors.kinds, errors.false_positives, errors.false_negatives):
            assert kind.cost >= -1e-12
