"""Errors told apart and fixed: each kind by hand, all of them against loops of our own."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from retinanet.evaluation.average_precision import evaluate
from retinanet.evaluation.matched import match_detections
from retinanet.tools.diagnose.errors import KINDS, NO_ERROR, find_errors

BOX = (100.0, 100.0, 50.0, 40.0)
OTHER = (300.0, 100.0, 50.0, 40.0)
LOOSE = (125.0, 100.0, 50.0, 40.0)  # IoU 1/3 with BOX
NEAR = (105.0, 100.0, 50.0, 40.0)  # IoU 9/11 with BOX
FAR = (500.0, 300.0, 50.0, 40.0)
INSIDE = (310.0, 110.0, 10.0, 10.0)  # of OTHER
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


# A sentence; then [image] class and box of the annotations | the same with scores of the
# detections | AP50 | kind, count and cost of the errors.
BY_HAND = """
A right box of another class is an error of class, and its object is not missed.
cat OTHER, dog BOX | cat BOX .9, cat OTHER .8 | 1/4 | class 1 3/4
A loose box is an error of localization.
cat BOX | cat LOOSE .9 | 0 | localization 1 1
A loose box of another class is both, and only goes away: dog has one wrong before one right.
cat BOX, 2 dog BOX | dog LOOSE .9, 2 dog BOX .8 | 1/4 | both 1 1/4, missed 1 1/4
A second box is a duplicate: precision 1 up to a recall of 0.5, 51 of 101 points, then 2/3.
cat BOX, cat OTHER | cat BOX .9, cat NEAR .8, cat OTHER .7 | 253/303 | duplicate 1 50/303
A box on nothing is background.
cat BOX | cat FAR .9, cat BOX .8 | 1/2 | background 1 1/2
A box in an image without objects is background.
cat BOX | cat BOX .8, 2 cat BOX .9 | 1/2 | background 1 1/2
An object that nothing detects is missed.
cat BOX, cat OTHER | cat BOX .9 | 51/101 | missed 1 50/101
With everything missed nothing is left to be wrong.
cat BOX | | 0 | missed 1 1
A duplicate that lies on an object of another class is an error of class.
cat BOX, dog NEAR | cat BOX .9, cat NEAR .8 | 1/2 | class 1 1/2
A loose box on its class comes before a right one on another, whose class leaves the mean.
cat LOOSE, dog BOX | cat BOX .9 | 0 | localization 1 1/2, missed 1 0
Of two loose boxes one becomes right, and the other goes away.
cat BOX | cat LOOSE .9, cat LOOSE .8 | 0 | localization 2 1
A loose box beside a right one only goes away.
cat BOX | cat LOOSE .9, cat BOX .8 | 1/2 | localization 1 1/2
Detections of crowds are no errors, and crowds are not missed.
cat BOX, cat OTHER crowd | cat INSIDE .9, cat BOX .8 | 1 |
Ground truth as predictions has no error.
cat BOX, dog OTHER, 2 cat BOX | cat BOX .9, dog OTHER .9, 2 cat BOX .9 | 1 |
"""
SENTENCES = BY_HAND.strip().splitlines()[::2]


def case(words):
    """Annotations, results, AP50, errors of the case whose sentence begins with some words."""
    lines = BY_HAND.strip().splitlines()
    (row,) = [row for name, row in zip(lines[::2], lines[1::2], strict=True) if words in name]

    def parts(cell):
        return [part.split() for part in cell.split(",") if part.strip()]

    def boxes(cell):
        for part in parts(cell):
            image = int(part.pop(0)) if part[0].isdigit() else 1
            name, box, *rest = part
            yield image, 1 + NAMES.index(name), globals()[box], *rest

    annotations, results, AP50, errors = row.split("|")
    return (
        [(*box, bool(crowd)) for *box, crowd in (([*row, ""])[:4] for row in boxes(annotations))],
        [(*box, float(score)) for *box, score in boxes(results)],
        float(Fraction(AP50.strip())),
        {kind: (int(n), float(Fraction(cost))) for kind, n, cost in parts(errors)},
    )


@pytest.mark.parametrize("sentence", SENTENCES)
def test_kinds_and_costs_by_hand(errors_of, sentence):
    annotations, results, AP50, expected = case(sentence)
    errors = errors_of(annotations, results, num_images=2)
    assert pytest.approx(AP50) == errors.AP50
    for kind in errors.kinds:
        assert (kind.count, pytest.approx(kind.cost)) == expected.get(kind.name, (0, 0))


def test_all_wrong_detections_and_all_missed_objects_cost_by_hand(errors_of):
    errors = errors_of(*case("A right box")[:2])
    assert errors.false_positives.cost == pytest.approx(0.25)
    # The dog is not asked for any more, and its class leaves the mean.
    assert errors.false_negatives.cost == pytest.approx(0.25)
    errors = errors_of(*case("A loose box is")[:2])
    assert (errors.false_positives.cost, errors.false_negatives.cost) == (0, 1)
    assert errors.iou[0] == pytest.approx(1 / 3)
    errors = errors_of(*case("An object that")[:2])
    assert errors.missed.tolist() == [False, True]
    errors = errors_of(*case("A box on nothing")[:2])
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
    assert [kind.count for kind in errors.kinds] == [0, 0, 0, 0, 1, 0]


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
        for row, kind in zip(matched.detection_row, errors.kind, strict=True)
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
