"""The confusion matrix, AP by size, the worst images and suspicious annotations: by hand."""

import numpy as np
import pytest

from retinanet.evaluation.average_precision import evaluate
from retinanet.evaluation.matched import match_detections
from retinanet.tools.diagnose.analyze import analyze
from retinanet.tools.diagnose.confusion import find_confusion

BOX = (100.0, 100.0, 50.0, 40.0)
OTHER = (300.0, 100.0, 50.0, 40.0)
THIRD = (500.0, 100.0, 50.0, 40.0)
NEAR = (105.0, 100.0, 50.0, 40.0)
FAR = (500.0, 300.0, 50.0, 40.0)


def confusion_of(data, found, score=0.0):
    return find_confusion(match_detections(data, found), data.category_names, score)


# Annotations, results with a score of at least 0.5, rows of: cat, dog, nothing there.
CELLS = {
    "every cell": (
        [(1, 1, BOX), (1, 2, OTHER), (1, 2, THIRD)],
        [(1, 1, BOX, 0.9), (1, 1, OTHER, 0.8), (1, 2, FAR, 0.7), (1, 1, FAR, 0.1)],
        [[1, 0, 0], [1, 0, 1], [0, 1, 0]],
    ),
    "an object is what the best detection says": (
        [(1, 1, BOX)],
        [(1, 2, NEAR, 0.9), (1, 1, BOX, 0.8)],
        [[0, 1, 0], [0, 0, 0], [1, 0, 0]],
    ),
    "detections of crowds are left out": (
        [(1, 1, BOX, True)],
        [(1, 1, BOX, 0.9), (1, 1, BOX, 0.8)],
        [[0] * 3] * 3,
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_by_hand(make_data, make_detections, name):
    annotations, results, expected = CELLS[name]
    data = make_data(1, annotations)
    found = confusion_of(data, make_detections(data, results), 0.5)
    assert found.counts.tolist() == expected
    if name == "every cell":
        assert found.worst() == [("dog", "cat", 1)]
        assert found.shares()[1].tolist() == [0.5, 0.0, 0.5]


def test_rows_are_the_objects_and_the_last_row_what_is_left(make_data, make_detections):
    rng = np.random.default_rng(0)
    annotations = [
        (int(rng.integers(1, 5)), int(rng.integers(1, 4)), rng.uniform(1, 90, 4).tolist())
        for _ in range(30)
    ]
    results = [(i, int(rng.integers(1, 4)), box, rng.random()) for i, _, box in annotations * 2]
    data = make_data(4, annotations, names=("a", "b", "c"))
    found = make_detections(data, results)
    counts = confusion_of(data, found, 0.4).counts
    assert counts[:-1].sum(axis=1).tolist() == np.bincount(data.labels, minlength=3).tolist()
    shown = found.labels[found.scores >= 0.4]
    assert counts[:, :-1].sum(axis=0).tolist() == np.bincount(shown, minlength=3).tolist()
    assert counts[-1, -1] == 0


def test_sizes_are_those_of_coco(make_data, make_detections):
    small, medium, large = (0, 0, 10, 10), (100, 100, 50, 50), (200, 200, 100, 100)
    edge = (400.0, 0.0, 32.0, 32.0)  # on the bound: both small and medium
    data = make_data(1, [(1, 1, small), (1, 1, medium), (1, 1, large), (1, 2, edge)])
    found = make_detections(data, [(1, 1, medium, 0.9), (1, 2, edge, 0.8)])
    evaluation = evaluate(data, found, [1])
    rows = {(row.name, row.size): row for row in evaluation.per_size}
    assert [rows["cat", size].num_gt for size in ("small", "medium", "large")] == [1, 1, 1]
    assert [rows["dog", size].num_gt for size in ("small", "medium", "large")] == [1, 1, 0]
    numbers = [rows["cat", "small"].AP, rows["cat", "medium"].AP50, rows["cat", "medium"].AR]
    assert numbers == [0.0, pytest.approx(1.0), 1.0]
    assert rows["dog", "large"].AP is None
    defined = [row.AP for row in evaluation.per_size if row.size == "medium"]
    assert evaluation.metrics["APm"] == pytest.approx(np.mean(defined))


def test_images_cost_the_scores_of_what_is_wrong_and_one_for_what_is_missed(
    make_data, make_detections
):
    data = make_data(3, [(1, 1, BOX), (2, 1, BOX), (2, 1, OTHER), (3, 1, BOX)])
    results = [(1, 1, BOX, 0.9), (1, 1, FAR, 0.75), (2, 1, BOX, 0.9), (3, 1, BOX, 0.9)]
    results += [(1, 1, THIRD, 0.25)]
    worst = analyze(data, make_detections(data, results), score=0.5).worst
    assert [(image.image_id, image.cost) for image in worst] == [(2, 1.0), (1, 0.75)]
    assert [image.counts for image in worst] == [(0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 1, 0)]
    assert [image.file_name for image in worst] == ["2.jpg", "1.jpg"]


def test_images_are_named_in_any_order_of_the_file(make_data, make_detections):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (9, 2, 5)]
    data = make_data(0, [(5, 1, BOX), (9, 1, BOX)], images=images)
    found = make_detections(data, [(9, 1, BOX, 0.9), (2, 1, BOX, 0.8)])
    analysis = analyze(data, found, score=0.0)
    assert [(w.image_id, w.index, w.file_name) for w in analysis.worst] == [
        (5, 2, "5.jpg"),
        (2, 1, "2.jpg"),
    ]


def test_suspects_are_what_a_forgotten_or_wrong_annotation_would_look_like(
    make_data, make_detections
):
    data = make_data(1, [(1, 1, BOX), (1, 1, OTHER), (1, 1, THIRD)])
    results = [(1, 1, BOX, 0.9), (1, 2, FAR, 0.95), (1, 2, OTHER, 0.8), (1, 1, OTHER, 0.6)]
    suspects = analyze(data, make_detections(data, results), score=0.5).suspects
    assert [(s.reason, s.box, s.found, s.annotated) for s in suspects] == [
        ("unlabelled", FAR, "dog", None),
        ("other_class", OTHER, "dog", "cat"),
        ("not_seen", THIRD, None, "cat"),
    ]
    # Once its own class has the better score, nothing is odd.
    results[2] = (1, 2, OTHER, 0.55)
    suspects = analyze(data, make_detections(data, results), score=0.5).suspects
    assert [s.reason for s in suspects] == ["unlabelled", "not_seen"]


def test_the_advice_names_the_costliest_kind(make_data, make_detections):
    data = make_data(1, [(1, 1, BOX), (1, 2, OTHER)])
    confused = analyze(data, make_detections(data, [(1, 2, BOX, 0.9), (1, 1, OTHER, 0.9)]))
    assert confused.advice.startswith("Look at class first (1.000 AP50)")
    perfect = analyze(data, make_detections(data, [(1, 1, BOX, 0.9), (1, 2, OTHER, 0.9)]))
    assert perfect.advice == "No error costs any AP50."
    nothing = make_data(1, [])
    empty = analyze(nothing, make_detections(nothing, []))
    assert "no objects" in empty.advice
