"""The array evaluator beside stock pycocotools: every value of every curve, to the bit."""

import numpy as np
import pytest

from retinanet.fast.coco_eval import Objects, precision_recall
from scripts.benchmark_stages import pycocotools_curves

SIDE = 400.0  # pixels; where boxes begin


def random_objects(rng, num_images, num_classes, num_objects, num_detections, *, ties):
    """Ground truth with crowds and odd areas, detections of which half lie near an object."""

    def boxes(count):
        xy, sides = rng.uniform(0, SIDE, (count, 2)), np.exp(rng.uniform(1.5, 5.5, (count, 2)))
        return np.concatenate([xy, sides], axis=1)

    image = np.sort(rng.integers(0, num_images, num_objects))
    label, box = rng.integers(0, num_classes, num_objects), boxes(num_objects)
    near, of = rng.random(num_detections) < 0.5, rng.integers(0, num_objects, num_detections)
    shaken = box[of] * rng.uniform(0.85, 1.15, (num_detections, 4))
    found = np.where(near[:, None], shaken, boxes(num_detections))
    scores = rng.random(num_detections)
    if ties:  # of scores, and of overlaps
        box, found, scores = np.round(box / 8) * 8 + 4, np.round(found / 8) * 8 + 4, scores.round(1)
    truth = Objects(image, label, box, box[:, 2:].prod(axis=1) * rng.uniform(0.5, 1, num_objects))
    detections = Objects(
        np.where(near, image[of], rng.integers(0, num_images, num_detections)),
        np.where(near, label[of], rng.integers(0, num_classes, num_detections)),
        found,
        found[:, 2] * found[:, 3],
    )
    return truth, rng.random(num_objects) < 0.1, detections, scores


@pytest.mark.parametrize("seed", range(30))
def test_every_curve_is_that_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    num_images, K = int(rng.integers(1, 8)), int(rng.integers(1, 5))
    num_objects, num_detections = int(rng.integers(1, 40)), int(rng.integers(0, 150))
    max_dets = ((1, 10, 100), (1, 2, 5))[seed % 2]
    found = random_objects(rng, num_images, K, num_objects, num_detections, ties=seed % 3 == 0)
    expected = pycocotools_curves(*found, num_images, K, max_dets)
    for ours, theirs in zip(precision_recall(*found, K, max_dets), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_objects_and_three_detections_by_hand():
    def objects(*boxes):
        box = np.array(boxes, dtype=float).reshape(-1, 4)
        zeros = np.zeros(len(box), dtype=int)
        return Objects(zeros, zeros, box, box[:, 2] * box[:, 3])

    truth = objects((0, 0, 40, 50), (100, 0, 40, 50))  # medium, both
    # Right at every threshold, wrong, and right up to an IoU of 0.6.
    found = objects((0, 0, 40, 50), (300, 300, 40, 50), (100, 0, 24, 50))
    scores, crowd = np.array([0.9, 0.8, 0.7]), np.zeros(2, dtype=bool)
    precision, recall = precision_recall(truth, crowd, found, scores, 1, (1, 10, 100))
    # At 0.5: up to a recall of one half nothing is wrong; beyond, two of three are right.
    np.testing.assert_allclose(precision[0, :51, 0, 0], 1.0, rtol=1e-12)
    np.testing.assert_allclose(precision[0, 51:, 0, 0], 2 / 3, rtol=1e-12)
    # At 0.65 the third is wrong too.
    np.testing.assert_allclose(precision[3, :51, 0, 0], 1.0, rtol=1e-12)
    np.testing.assert_array_equal(precision[3, 51:, 0, 0], 0.0)
    np.testing.assert_array_equal(recall[:, 0, 0, 1], [1.0] * 3 + [0.5] * 7)
    np.testing.assert_array_equal(recall[:, 0, 0, 0], 0.5)  # one detection of an image alone
    np.testing.assert_array_equal(precision[:, :, 0, [1, 3]], -1.0)  # no small, no large object


def test_a_crowd_alone_can_be_matched_often():
    crowd_box = np.array([[0.0, 0.0, 100.0, 100.0], [200.0, 0.0, 100.0, 100.0]])
    zero = np.zeros(2, dtype=int)
    truth = Objects(zero, zero, crowd_box, crowd_box[:, 2:].prod(axis=1))
    box = np.array([[0.0, 0, 50, 50], [50.0, 50, 50, 50], [200.0, 0, 100, 100]])
    three = np.zeros(3, dtype=int)
    found = Objects(three, three, box, box[:, 2:].prod(axis=1))
    crowd = np.array([True, False])
    precision, _ = precision_recall(truth, crowd, found, np.array([0.9, 0.8, 0.7]), 1, (1, 10, 100))
    np.testing.assert_allclose(precision[:, :, 0, 0], 1.0, rtol=1e-12)
