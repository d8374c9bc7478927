"""Errors told apart and mended: each kind by hand, all of them against an account of our own."""

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
    """Errors of results in images with annotations, by kind: ``(count, cost)``."""

    def find(annotations, results, num_images=1, score=0.0):
        data = make_data(num_images, annotations, names=NAMES)
        found = make_detections(data, results)
        errors = find_errors(match_detections(data, found), score)
        assert before(errors) == evaluate(data, found, found.evaluated).metrics["AP50"]
        return errors

    return find


def before(errors):
    """AP50 before anything is mended."""
    return errors.AP50


def costs(errors):
    return {kind.name: (kind.count, pytest.approx(kind.cost)) for kind in errors.kinds if kind.cost}


def counts(errors):
    return {kind.name: kind.count for kind in errors.kinds if kind.count}


def test_ground_truth_as_predictions_has_no_error(errors_of):
    annotations = [(1, 1, BOX), (1, 2, OTHER), (2, 1, BOX)]
    errors = errors_of(annotations, [(*row, 0.9) for row in annotations], num_images=2)
    assert before(errors) == pytest.approx(1.0)
    for kind in (*errors.kinds, errors.false_positives, errors.false_negatives):
        assert (kind.count, kind.count_at_score) == (0, 0)
        assert kind.cost == pytest.approx(0.0, abs=1e-12)


def test_a_right_box_of_another_class_is_an_error_of_class(errors_of):
    # The dog is found as a cat: cat has half its precision, dog nothing. Mended, both are whole.
    annotations = [(1, 1, OTHER), (1, 2, BOX)]
    errors = errors_of(annotations, [(1, 1, BOX, 0.9), (1, 1, OTHER, 0.8)])
    assert before(errors) == pytest.approx(0.25)
    assert costs(errors) == {"class": (1, 0.75)}
    assert counts(errors) == {"class": 1}  # the dog is not missed: mending the class finds it
    assert errors.false_positives.cost == pytest.approx(0.25)
    # The dog is not asked for any more, and its class leaves the mean.
    assert errors.false_negatives.cost == pytest.approx(0.25)


def test_a_loose_box_is_an_error_of_localization(errors_of):
    errors = errors_of([(1, 1, BOX)], [(1, 1, LOOSE, 0.9)])
    assert errors.AP50 == 0
    assert costs(errors) == {"localization": (1, 1.0)}
    assert errors.iou[0] == pytest.approx(1 / 3)
    assert errors.false_positives.cost == 0


def test_a_loose_box_of_another_class_is_both_and_only_goes_away(errors_of):
    errors = errors_of([(1, 1, BOX), (2, 2, BOX)], [(1, 2, LOOSE, 0.9), (2, 2, BOX, 0.8)], 2)
    # Dog: one wrong before one right. Cat: never found.
    assert before(errors) == pytest.approx(0.25)
    assert errors.kinds[KINDS.index("both")].cost == pytest.approx(0.25)
    assert counts(errors) == {"both": 1, "missed": 1}


def test_a_second_box_on_an_object_is_a_duplicate(errors_of):
    annotations = [(1, 1, BOX), (1, 1, OTHER)]
    results = [(1, 1, BOX, 0.9), (1, 1, NEAR, 0.8), (1, 1, OTHER, 0.7)]
    errors = errors_of(annotations, results)
    # Precision 1 up to a recall of 0.5, 51 of 101 points, then 2/3.
    assert costs(errors) == {"duplicate": (1, 50 / 101 / 3)}
    assert errors.kind.tolist() == [NO_ERROR, KINDS.index("duplicate"), NO_ERROR]


def test_a_box_on_nothing_is_background(errors_of):
    errors = errors_of([(1, 1, BOX)], [(1, 1, FAR, 0.9), (1, 1, BOX, 0.8)])
    assert costs(errors) == {"background": (1, 0.5)}
    assert errors.false_positives.cost == pytest.approx(0.5)
    assert errors.target.tolist() == [-1, -1]


def test_a_detection_in_an_image_without_objects_is_background(errors_of):
    errors = errors_of([(1, 1, BOX)], [(1, 1, BOX, 0.8), (2, 1, BOX, 0.9)], num_images=2)
    assert counts(errors) == {"background": 1}


def test_an_object_that_nothing_finds_is_missed(errors_of):
    errors = errors_of([(1, 1, BOX), (1, 1, OTHER)], [(1, 1, BOX, 0.9)])
    assert before(errors) == pytest.approx(51 / 101)
    assert costs(errors) == {"missed": (1, 50 / 101)}
    assert errors.false_negatives.cost == pytest.approx(50 / 101)
    assert errors.missed.tolist() == [False, True]


def test_with_everything_missed_nothing_is_left_to_be_wrong(errors_of):
    errors = errors_of([(1, 1, BOX)], [])
    assert costs(errors) == {"missed": (1, 1.0)}


def test_a_duplicate_of_its_own_class_that_lies_on_another_is_an_error_of_class(errors_of):
    # Two annotated boxes lie on each other; the second cat is a dog found as a cat.
    errors = errors_of([(1, 1, BOX), (1, 2, NEAR)], [(1, 1, BOX, 0.9), (1, 1, NEAR, 0.8)])
    assert counts(errors) == {"class": 1}


def test_a_loose_box_on_its_class_comes_before_a_right_one_on_another(errors_of):
    errors = errors_of([(1, 1, LOOSE), (1, 2, BOX)], [(1, 1, BOX, 0.9)])
    assert errors.kind.tolist() == [KINDS.index("localization")]


def test_one_object_is_mended_once(errors_of):
    # Two loose boxes: one becomes right, the other goes away.
    errors = errors_of([(1, 1, BOX)], [(1, 1, LOOSE, 0.9), (1, 1, LOOSE, 0.8)])
    assert costs(errors) == {"localization": (2, 1.0)}


def test_a_loose_box_beside_a_right_one_only_goes_away(errors_of):
    errors = errors_of([(1, 1, BOX)], [(1, 1, LOOSE, 0.9), (1, 1, BOX, 0.8)])
    assert costs(errors) == {"localization": (1, 0.5)}


def test_an_overlap_of_half_is_right_and_of_a_tenth_is_loose(errors_of):
    half, tenth = (100.0, 100.0, 25.0, 40.0), (100.0, 100.0, 5.0, 40.0)
    below = (100.0, 100.0, 4.9, 40.0)
    found = [errors_of([(1, 1, BOX)], [(1, 1, box, 0.9)]).kind[0] for box in (half, tenth, below)]
    assert found == [NO_ERROR, KINDS.index("localization"), KINDS.index("background")]


def test_detections_of_crowds_are_no_errors_and_crowds_are_not_missed(errors_of):
    annotations = [(1, 1, BOX), (1, 1, OTHER, True)]
    inside = (310.0, 110.0, 10.0, 10.0)
    errors = errors_of(annotations, [(1, 1, inside, 0.9), (1, 1, BOX, 0.8)])
    assert counts(errors) == {}
    assert before(errors) == pytest.approx(1.0)


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


def test_no_mending_ever_costs(make_data, make_detections):
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
