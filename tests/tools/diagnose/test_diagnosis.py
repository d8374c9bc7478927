import dataclasses
import json
import math

import numpy as np
import pytest
import small_runs
from worlds import (
    FAIR,
    GOOD,
    POOR,
    WEAK,
    as_centers,
    as_corners,
    as_fractions,
    as_rows_first,
    exchanged,
    framed,
    look,
    make_world,
    mirrored,
    renamed,
    scaled,
    without_boxes,
)

from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.data.coco import read_coco
from retinanet.evaluation.coco import evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.model.anchors import AnchorGenerator
from retinanet.terminal import DEFAULT_WIDTH
from retinanet.tools.anchor_coverage import objects_at
from retinanet.tools.anchor_search import propose_anchors
from retinanet.tools.diagnose.diagnosis import MOST_LINES, describe, diagnose, suspicious
from retinanet.tools.diagnose.evidence import Network, restrict
from retinanet.tools.diagnose.explain import history_of, network_of
from retinanet.tools.diagnose.history import History, constant_loss, too_early, training_causes
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.publish import publish
from retinanet.tools.report.run_record import Record


def rng_of(seed=0):
    return np.random.default_rng(seed)


def diagnosed(data, found, **known):
    return diagnose(data, found, evaluate(data, found, found.evaluated), **known)


def verdict(data, found, **known):
    diagnosis = diagnosed(data, found, **known)
    return None if diagnosis is None else diagnosis.verdict


def network(threshold=0.05, sizes=(32, 64, 128, 256, 512)):
    return Network(
        generator=AnchorGenerator(sizes=sizes),
        min_size=480,
        max_size=800,
        score_threshold=threshold,
    )


def history(losses, *, step=None, total=1000, lr=0.01, **changes):
    """A run whose rows lie 20 steps apart; of the built-in set's anchors and positives."""
    rows = [
        {"step": 1 + 20 * i, "loss/class": loss, "loss/box": 0.9, "lr": lr, "grad_norm": 2.0}
        | {"positives": 372.0, "bad_steps": 0}
        for i, loss in enumerate(losses)
    ]
    known = {
        "rows": rows,
        "step": rows[-1]["step"] if step is None else step,
        "total_steps": total,
        "optimizer": "sgd",
        "lr": lr,
        "warmup_steps": 20,
        "batch_size": 8,
        "anchors": 3454.0,
        "num_classes": 6,
        "prior": 0.01,
        "alpha": 0.25,
        "gamma": 2.0,
        "focal": True,
        "loaded": False,
    }
    return History(**known | changes)


def nothing_found(found):
    nothing = restrict(found, np.zeros(0, dtype=np.int64))
    return dataclasses.replace(nothing, evaluated=found.evaluated)


LEVELS = {"good": GOOD, "fair": FAIR, "weak": WEAK}
BOX_FAULTS = {
    "corners": (as_corners, "box format", "x1, y1, x2, y2"),
    "centers": (as_centers, "box format", "center x, center y"),
    "rows first": (as_rows_first, "box format", "y, x, height, width"),
    "fractions": (as_fractions, "normalized boxes", "fractions of the image"),
    "YOLO": (lambda d: as_fractions(as_centers(d)), "normalized boxes", "center x"),
    "half": (lambda d: scaled(d, 0.5), "box size", "x is multiplied by 2"),
    "framed": (lambda d: framed(d, 512), "box size", "boxes in images of 5"),
    "from below": (lambda d: mirrored(d, 1), "mirrored boxes", "y counts from the lower edge"),
    "mirrored": (lambda d: mirrored(d, 0), "mirrored boxes", "x counts from the right edge"),
    "turned": (lambda d: mirrored(mirrored(d, 0), 1), "mirrored boxes", "by 180 degrees"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_said_of_a_network_that_finds_what_is_there(level):
    data = make_world(rng_of())
    assert diagnosed(data, look(rng_of(1), data, LEVELS[level])) is None


@pytest.mark.parametrize("fault", BOX_FAULTS)
@pytest.mark.parametrize("level", LEVELS)
def test_boxes_in_another_form_are_recognized(level, fault):
    data = make_world(rng_of())
    found = look(rng_of(1), data, LEVELS[level])
    spoil, name, words = BOX_FAULTS[fault]
    diagnosis = diagnosed(spoil(data), found)
    assert diagnosis.verdict == name
    assert words in diagnosis.causes[0].verdict
    assert len(diagnosis.causes) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("classes", [2, 6, 20])
def test_renamed_classes_are_recognized(level, classes):
    data = make_world(rng_of(), num_images=150, num_classes=classes)
    found = look(rng_of(1), data, LEVELS[level])
    new = np.roll(np.arange(classes), 1)
    diagnosis = diagnosed(renamed(data, new), found)
    assert diagnosis.verdict == "label map"
    # What is called new[g] in the file is g to the network.
    expected = {data.category_names[new[g]]: data.category_names[g] for g in range(classes)}
    assert diagnosis.numbers["renaming"] == expected
    wanted = evaluate(data, found, found.evaluated).metrics["AP"]
    assert diagnosis.numbers["AP_renamed"] == pytest.approx(wanted)


def test_too_few_objects_to_see_a_renaming_are_undecided_but_not_denied():
    data = make_world(rng_of(), num_images=12, num_classes=80, objects=(2, 4))
    found = look(rng_of(1), data, GOOD)
    diagnosis = diagnosed(renamed(data, np.roll(np.arange(80), 1)), found)
    assert diagnosis.verdict == "undecided"
    assert "the boxes are right" in diagnosis.causes[0].verdict


def test_ids_that_have_slipped_by_one_are_called_so():
    data = make_world(rng_of())
    found = look(rng_of(1), data, GOOD)
    shifted = renamed(data, np.roll(np.arange(6), 1))
    assert "one too low" in diagnosed(shifted, found).causes[0].verdict
    shifted = renamed(data, np.roll(np.arange(6), -1))
    assert "one too high" in diagnosed(shifted, found).causes[0].verdict


def test_classes_numbered_by_name_are_called_so():
    data = make_world(rng_of())
    found = look(rng_of(1), data, GOOD)
    by_name = np.argsort(np.argsort(data.category_names))
    assert "by name" in diagnosed(renamed(data, by_name), found).causes[0].verdict


def test_two_exchanged_classes_of_many_are_found_although_ap_is_high():
    data = make_world(rng_of(), num_images=100)
    found = look(rng_of(1), data, GOOD)
    swapped = renamed(data, [1, 0, 2, 3, 4, 5])
    assert evaluate(swapped, found, found.evaluated).metrics["AP"] > 0.3
    diagnosis = diagnosed(swapped, found)
    assert diagnosis.verdict == "label map"
    assert set(diagnosis.numbers["renaming"]) == set(data.category_names[:2])


@pytest.mark.parametrize("order", ["slipped", "shuffled"])
@pytest.mark.parametrize("level", LEVELS)
def test_annotations_of_other_images_are_recognized(level, order):
    data = make_world(rng_of())
    orders = {"slipped": np.roll(np.arange(60), 1), "shuffled": rng_of(2).permutation(60)}
    found = exchanged(data, look(rng_of(1), data, LEVELS[level]), orders[order])
    expected = "wrong images" if level != "weak" else ("wrong images", "misplaced boxes")
    assert verdict(data, found) in expected


def test_two_faults_at_once_are_both_named():
    data = make_world(rng_of())
    found = look(rng_of(1), data, GOOD)
    both = as_corners(renamed(data, np.roll(np.arange(6), 1)))
    assert [cause.name for cause in diagnosed(both, found).causes] == ["box format", "label map"]


def test_a_set_learned_from_corners_shows_in_the_detections():
    data = make_world(rng_of())
    taught = as_corners(data)
    limits = np.repeat(data.sizes[:, ::-1], np.diff(data.first), axis=0)
    side = np.minimum(taught.bbox[:, :2] + taught.bbox[:, 2:], limits) - taught.bbox[:, :2]
    taught = dataclasses.replace(taught, bbox=np.concatenate([taught.bbox[:, :2], side], axis=1))
    diagnosis = diagnosed(data, look(rng_of(1), taught, GOOD))
    assert diagnosis.verdict == "box format"
    assert "training" in diagnosis.causes[0].fix


@pytest.mark.parametrize("seed", range(20))
def test_no_fault_is_seen_in_any_healthy_set(seed):
    """Few images or many, one class or eighty, one box each or ten, of one place or of any."""
    rng = rng_of(seed)
    data = make_world(
        rng,
        num_images=int(rng.choice([3, 12, 60])),
        num_classes=int(rng.choice([1, 2, 6, 80])),
        objects=(1, int(rng.choice([1, 4, 10]))),
        one_size=bool(rng.integers(2)),
        centered=bool(rng.integers(2)),
    )
    for skill in (GOOD, FAIR, WEAK, POOR):
        diagnosis = diagnosed(data, look(rng, data, skill))
        assert diagnosis is None or diagnosis.verdict in ("too early", "undecided")


@pytest.mark.parametrize("seed", range(10))
def test_a_network_that_tells_no_classes_apart_has_no_wrong_names(seed):
    """Early in training everything may be the most frequent class, or any."""
    rng = rng_of(seed)
    data = make_world(rng, num_classes=int(rng.choice([2, 6, 80])), skewed=bool(seed % 2))
    found = look(rng, data, GOOD)
    constant = dataclasses.replace(found, labels=np.full(len(found), seed % 2))
    anything = dataclasses.replace(found, labels=rng.permutation(found.labels))
    for labels in (constant, anything):
        assert verdict(data, labels) in (None, "undecided")


def test_tiny_objects_that_are_hard_to_find_are_no_fault():
    data = make_world(rng_of(), sides=(4, 12))
    found = look(rng_of(1), data, POOR)
    diagnosis = diagnosed(data, found)
    assert diagnosis is None or diagnosis.verdict == "undecided"
    found = look(rng_of(1), data, WEAK)
    assert 0.01 < evaluate(data, found, found.evaluated).metrics["AP"] < 0.1
    assert diagnosed(data, found, network=network()) is None


def test_anchors_that_fit_nothing_are_named_with_sizes_that_do():
    data = make_world(rng_of(), sides=(4, 12), num_images=10)
    diagnosis = diagnosed(data, nothing_found(look(rng_of(), data, POOR)), network=network())
    assert diagnosis.verdict == "anchors"
    assert "anchors.sizes=[" in diagnosis.causes[0].fix
    assert any("boxes have no anchor of IoU 0.5" in line for line in diagnosis.evidence)
    assert diagnosis.numbers["boxes_without_anchor"] == 1.0


def test_the_anchors_that_are_proposed_are_those_of_check_data():
    data, trained = make_world(rng_of(), sides=(4, 12), num_images=10), network()
    diagnosis = diagnosed(data, nothing_found(look(rng_of(), data, POOR)), network=trained)
    found = objects_at(data, min_size=trained.min_size, max_size=trained.max_size)
    first = propose_anchors(found, trained.generator, trained.positive_iou, 1.0)[0]
    assert first.uncovered < 0.7
    assert " ".join(first.typed) in diagnosis.causes[0].fix


def test_boxes_that_are_missing_in_most_images_are_missed():
    data = make_world(rng_of(), num_images=200)
    found = look(rng_of(1), data, GOOD)
    few = without_boxes(data, range(4, 200))
    run = history(FALLING, AP_before=0.7, AP_own=0.7)
    diagnosis = diagnosed(few, found, history=run)
    assert diagnosis.verdict == "images without boxes"
    assert "196 of 200 images" in diagnosis.causes[0].verdict
    kept = restrict(found, data.image_ids[:4])
    expected = evaluate(data, kept, kept.evaluated).metrics["AP"]
    assert diagnosis.numbers["AP_of_images_with_boxes"] == pytest.approx(expected)
    # To a network that has yet to learn what background is, empty images are no fault.
    assert verdict(few, found, history=history(FALLING)) in (None, "too early")
    empty = without_boxes(data, range(4))
    assert diagnosed(empty, look(rng_of(1), empty, FAIR), history=run) is None


def test_images_of_another_size_than_in_training_are_named():
    data = make_world(rng_of())
    found = nothing_found(look(rng_of(), data, POOR))
    for trained, expected in (((800, 1333), "untrained"), ((128, 213), "image size")):
        known = dataclasses.replace(network(), min_size=800, max_size=1333, trained_size=trained)
        assert verdict(data, found, network=known) == expected
    diagnosis = diagnosed(data, found, network=known)
    assert "data.min_size=128 data.max_size=213" in diagnosis.causes[0].fix
    # The longer side bounds both: these images get no larger.
    same = dataclasses.replace(known, min_size=1600, max_size=1000, trained_size=(800, 1000))
    assert verdict(data, found, network=same) == "untrained"
    # It had learned nothing at its own size either.
    run = history(FALLING, AP_before=0.0)
    assert verdict(data, found, network=known, history=run) == "too early"


def test_an_ap_far_below_that_of_the_run_before_is_not_too_too_early():
    data = make_world(rng_of())
    found = look(rng_of(), data, POOR)
    for before, expected in ((0.0, "too early"), (0.002, "too early"), (0.5, "undecided")):
        diagnosis = diagnosed(data, found, history=history(FALLING, AP_before=before))
        assert diagnosis.verdict == expected
    assert "the run had AP 0.500 before" in diagnosis.causes[0].verdict


def test_of_weights_that_were_good_the_training_is_not_blamed():
    data = make_world(rng_of())
    found = look(rng_of(), data, POOR)
    run = history([1.13] * 12, lr=1e-9, AP_before=0.5)
    assert verdict(data, found, history=run) == "learning rate too low"
    run = dataclasses.replace(run, AP_own=0.5)
    assert verdict(data, found, history=run) == "undecided"


def test_what_a_run_had_itself_comes_from_its_rows():
    with composer("train") as reader:
        settings = reader.command(["data=shapes"]).settings
    plain = dataclasses.asdict(settings)
    data = make_world(rng_of())
    rows = [{"step": 10 * i, "loss/class": 1.0, "lr": 0.01} for i in range(1, 5)]
    rows += [{"step": 20, "AP": 0.4}, {"step": 30, "AP": "0.9"}, {"step": 40, "AP": 0.3}]
    for step, before, own in ((10, None, None), (30, 0.4, None), (40, 0.4, 0.3)):
        run = history_of(plain, settings, data, rows, step)
        assert (run.AP_before, run.AP_own) == (before, own)
    assert network_of(settings, plain, None).trained_size == (
        settings.data.min_size,
        settings.data.max_size,
    )
    varied = plain | {"augment": plain["augment"] | {"min_sizes": [200, 300]}}
    assert network_of(settings, varied, None).trained_size is None
    assert network_of(settings, {}, None).trained_size is None


def test_a_threshold_that_hides_everything_is_named():
    data = make_world(rng_of())
    found = nothing_found(look(rng_of(), data, GOOD))
    diagnosis = diagnosed(data, found, network=network(threshold=0.9))
    assert diagnosis.verdict == "score threshold"
    assert "0.9" in diagnosis.causes[0].verdict
    assert verdict(data, found, network=network()) == "untrained"


def test_fractions_are_recognized_without_any_detection():
    data = as_fractions(make_world(rng_of()))
    assert verdict(data, nothing_found(look(rng_of(), data, POOR))) == "normalized boxes"


def test_scores_that_are_all_alike_are_of_an_untrained_network():
    data = make_world(rng_of())
    found = look(rng_of(), data, dataclasses.replace(POOR, found=0.0))
    alike = dataclasses.replace(found, scores=rng_of().uniform(0.0099, 0.0101, len(found)))
    assert verdict(data, alike) == "untrained"


def test_without_ground_truth_there_is_nothing_to_say():
    data = make_world(rng_of())
    found = look(rng_of(), data, POOR)
    assert diagnose(data, found, None) is None
    empty = dataclasses.replace(data, crowd=np.ones(len(data.crowd), dtype=bool))
    evaluation = evaluate(empty, found, found.evaluated)
    assert evaluation.metrics["AP"] is None
    assert not suspicious(evaluation)
    assert diagnose(empty, found, evaluation) is None


FALLING = [1.13 - 0.01 * i for i in range(12)]
FLAT = [1.13] + [0.695] * 11


def test_the_loss_of_one_score_for_all_anchors_is_the_lowest_there_is():
    assert constant_loss(history(FLAT)) == pytest.approx(0.692, abs=0.002)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (history([1.13] * 12, lr=1e-8), "learning rate too low"),
        (history([1.13] * 12, lr=1e-8, optimizer="adamw"), "learning rate too low"),
        (history([1.13, 0.9, 0.8, 1.5, 4.0, 7.5]), "learning rate too high"),
        (history(FLAT, lr=30.0), "learning rate too high"),
        (history(FLAT, lr=1.0, optimizer="adamw"), "learning rate too high"),
        (history(FLAT), "collapsed"),
        (history([65.0, 4.0, 1.1, 0.76, 0.70, 0.69], prior=0.5), "prior"),
        (history([0.005] * 12, alpha=0.001), "alpha"),
        (history([1e-6] * 12, alpha=0.0), "alpha"),
        (history([1.13], step=0), "untrained"),
        (history([1.13, 1.13], step=1), "untrained"),
    ],
)
def test_what_the_rows_of_a_training_show(run, name):
    data = make_world(rng_of())
    found = nothing_found(look(rng_of(), data, POOR))
    diagnosis = diagnosed(data, found, network=network(), history=run)
    assert diagnosis.verdict == name


def mixed(losses, positives, **changes):
    """A run in which some rows had no positive anchor."""
    run = history(losses, **changes)
    for row, count in zip(run.rows, positives, strict=True):
        row["positives"] = count
    return run


def test_steps_without_objects_do_not_make_a_healthy_loss_explode():
    levels = [0.008 if i % 3 else 1.13 - 0.01 * i for i in range(30)]
    run = mixed(levels, [0.0 if i % 3 else 40.0 for i in range(30)])
    assert run.level("loss/class").tolist() == levels[::3]
    assert training_causes(run) == []
    diverging = [0.008 if i % 3 else 1.13 + 0.2 * i for i in range(30)]
    run = mixed(diverging, [0.0 if i % 3 else 40.0 for i in range(30)])
    assert [cause.name for cause in training_causes(run)][:1] == ["learning rate too high"]


def test_a_row_is_as_high_as_its_steps_with_objects():
    run = mixed([0.1, 0.5, 1.0], [4.0, 20.0, 40.0])
    for row, share in zip(run.rows, (0.1, 0.5, 1.0), strict=True):
        row["with_objects"] = share
    assert run.level("loss/class").tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert run.level("positives").tolist() == pytest.approx([40.0, 40.0, 40.0])


def test_a_training_without_positives_is_named_before_anything_else():
    data = make_world(rng_of())
    found = nothing_found(look(rng_of(), data, POOR))
    run = mixed([0.006] * 12, [0.0] * 12)
    diagnosis = diagnosed(data, found, network=network(), history=run)
    assert [cause.name for cause in diagnosis.causes] == ["no positives"]
    assert "check_data" in diagnosis.causes[0].fix


def test_a_few_steps_of_which_one_had_objects_are_too_too_early():
    data = make_world(rng_of())
    run = mixed([0.006, 1.13], [0.0, 40.0], step=2, total=2)
    diagnosis = diagnosed(data, look(rng_of(), data, POOR), history=run)
    assert diagnosis.verdict == "too early"
    assert "has made 2 of 2 steps; its log has too few" in diagnosis.causes[0].verdict


def test_ground_truth_that_nothing_can_match_is_no_fraction():
    data = make_world(rng_of())
    found = look(rng_of(), data, POOR)
    none = dataclasses.replace(
        data,
        bbox=np.zeros_like(data.bbox),
        usable=np.zeros_like(data.usable),
        repairs={"boxes dropped: width or height not positive": len(data.bbox)},
    )
    assert verdict(none, found) == "no ground truth"
    assert verdict(none, nothing_found(found)) == "no ground truth"


def test_boxes_below_a_pixel_are_named():
    data = make_world(rng_of())
    found = nothing_found(look(rng_of(), data, POOR))
    tiny = dataclasses.replace(network(), min_size=4, max_size=8)
    diagnosis = diagnosed(data, found, network=tiny, history=history(FLAT))
    assert diagnosis.verdict == "vanishing boxes"
    assert "data.min_size" in diagnosis.causes[0].fix


def test_steps_that_were_not_finite_are_a_rate_too_high():
    run = history(FALLING)
    run.rows[-1]["bad_steps"] = 3
    (cause,) = training_causes(run)
    assert cause.name == "learning rate too high"
    assert "3 steps were not finite" in cause.verdict


def test_a_gradient_of_zero_is_a_network_that_is_frozen():
    run = history([1.13] * 12)
    for row in run.rows:
        row["grad_norm"] = 0.0
    assert [cause.name for cause in training_causes(run)] == ["frozen"]


def test_a_rate_that_is_still_rising_is_a_warm_up_that_is_not_over():
    run = history([1.13] * 12, warmup_steps=5000, total=90_000)
    for i, row in enumerate(run.rows):
        row["lr"] = 0.01 * (0.001 + i / 1000)
    assert [cause.name for cause in training_causes(run)] == ["warm-up"]


def test_a_loss_that_falls_is_too_early_and_no_fault():
    data = make_world(rng_of())
    found = look(rng_of(), data, POOR)
    diagnosis = diagnosed(data, found, network=network(), history=history(FALLING))
    assert diagnosis.verdict == "too early"
    assert len(describe(diagnosis)) <= 6


def test_a_loss_that_falls_to_the_end_wants_a_longer_run():
    cause = too_early(history(FALLING, total=221))
    assert "schedule.max_steps=884" in cause.fix
    assert too_early(history([1.13, *[0.4] * 11], total=221)) is None


def test_undefined_and_missing_columns_are_no_mistake():
    run = history(FALLING)
    for row in run.rows:
        row["grad_norm"], row["positives"] = None, None
        del row["bad_steps"]
    assert training_causes(run) == []
    assert (
        training_causes(dataclasses.replace(run, rows=[], lr=30.0))[0].name
        == "learning rate too high"
    )


def test_a_diagnosis_fits_a_terminal_and_json():
    data = make_world(rng_of(), num_classes=80)
    found = exchanged(data, look(rng_of(1), data, POOR), rng_of().permutation(60))
    for known in ({}, {"network": network(), "history": history(FLAT)}):
        diagnosis = diagnosed(data, found, **known)
        lines = describe(diagnosis)
        assert len(lines) <= MOST_LINES
        assert max(map(len, lines)) <= DEFAULT_WIDTH
        assert lines[0].startswith("diagnosis  AP 0.0")
        numbers = json.loads(json.dumps(diagnosis.as_dict(), allow_nan=False))
        assert numbers["verdict"] == diagnosis.verdict
        assert not any(value == -1 for value in numbers["numbers"].values())


def test_large_sets_are_scored_on_a_part_of_them(monkeypatch):
    monkeypatch.setattr("retinanet.tools.diagnose.evidence.SAMPLED_IMAGES", 20)
    data = make_world(rng_of())
    diagnosis = diagnosed(as_corners(data), look(rng_of(1), data, GOOD))
    assert diagnosis.verdict == "box format"
    assert diagnosis.numbers["sampled_images"] == 20


def test_ids_that_differ_from_the_training_are_evidence():
    data = make_world(rng_of())
    found = look(rng_of(1), data, GOOD)
    known = dataclasses.replace(network(), train_ids=(2, 1, 3, 4, 5, 6))
    diagnosis = diagnosed(as_corners(data), found, network=known)
    (line,) = [line for line in diagnosis.evidence if "category ids" in line]
    assert line == "category ids in training differ: q0 2, here 1; w1 1, here 2"


def test_numbers_of_the_evidence_are_finite():
    data = make_world(rng_of(), num_images=12, num_classes=1)
    diagnosis = diagnosed(as_rows_first(data), look(rng_of(1), data, GOOD))
    numbers = [v for v in diagnosis.numbers.values() if isinstance(v, float)]
    assert all(math.isfinite(value) for value in numbers)


@pytest.fixture(scope="module")
def coco_results(real_data):
    """Ground truth of 100 images of COCO, and the results that its authors made up: AP 0.505."""
    root = real_data("cocoapi_fixture")
    data = read_coco(root / "instances_val2014_100.json", root)
    results = json.loads((root / "instances_val2014_fakebbox100_results.json").read_text())
    results.sort(key=lambda row: (row["image_id"], -row["score"]))
    label = {number: i for i, number in enumerate(data.category_ids)}
    return data, DetectionArrays(
        image_ids=np.array([row["image_id"] for row in results]),
        boxes=np.array([row["bbox"] for row in results], dtype=float),
        scores=np.array([row["score"] for row in results]),
        labels=np.array([label[row["category_id"]] for row in results]),
        evaluated=np.unique(data.image_ids),
        num_capped=0,
    )


def test_faults_are_recognized_among_the_80_classes_of_coco(coco_results):
    data, found = coco_results
    assert diagnosed(data, found) is None
    assert verdict(renamed(data, np.roll(np.arange(80), 1)), found) == "label map"
    assert verdict(renamed(data, rng_of().permutation(80)), found) == "label map"
    for spoil, name, words in BOX_FAULTS.values():
        diagnosis = diagnosed(spoil(data), found)
        assert diagnosis.verdict == name
        assert words in diagnosis.causes[0].verdict
    order = rng_of().permutation(len(data))
    assert verdict(data, exchanged(data, found, order)) == "wrong images"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    root = tmp_path_factory.mktemp("squares")
    small_runs.write_split(root, "train", range(1, 7))
    small_runs.write_split(root, "val", range(7, 10))
    return root


def test_a_healthy_start_is_too_early_in_the_log_and_in_a_file(squares, tmp_path):
    small_runs.train(squares, tmp_path / "run")
    written = json.loads((tmp_path / "run/eval/diagnosis.json").read_text())
    assert written["verdict"] == "too early"
    assert ": too early. The network has made 6 of 6 steps" in (
        " ".join((tmp_path / "run/train.log").read_text().split())
    )


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["schedule.max_steps=1"], "untrained"),
        (["optim.lr=1e-8", "schedule.max_steps=24"], "learning rate too low"),
        (["loss.alpha=0", "schedule.max_steps=24"], "alpha"),
        (["anchors.sizes=[512,1024,2048,4096,8192]"], "anchors"),
    ],
)
def test_real_runs_with_a_fault_say_so(squares, tmp_path, overrides, name):
    small_runs.train(squares, tmp_path / "run", *overrides)
    written = json.loads((tmp_path / "run/eval/diagnosis.json").read_text())
    assert written["verdict"] == name


def test_the_file_of_an_evaluation_before_does_not_stay(tmp_path):
    data = make_world(rng_of(), num_images=12)
    for spoiled, stays in ((as_corners(data), True), (data, False)):
        found = look(rng_of(1), data, GOOD)
        evaluation = evaluate(spoiled, found, found.evaluated)
        publish(
            tmp_path,
            Scored(
                spoiled,
                found,
                evaluation,
                num_drawn=0,
                diagnosis=diagnose(spoiled, found, evaluation),
            ),
            about={},
            record=Record("Evaluation", "spoiled", "best.pt", None),
        )
        assert (tmp_path / "eval/diagnosis.json").exists() == stays


@pytest.mark.parametrize("content", ["5\n", '{"step": "x", "loss/class": 1}\n', "{}\n", "[]", None])
def test_rows_of_another_program_are_left_out(squares, tmp_path, content):
    small_runs.train(squares, tmp_path / "run", "schedule.max_steps=1")
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.unlink()
    metrics.mkdir() if content is None else metrics.write_text(content)
    checkpoint = tmp_path / "run/checkpoints/best.pt"
    with composer("eval") as reader:
        typed = [f"checkpoint={checkpoint}", "device=cpu", "log_images=0"]
        jobs.evaluate(reader.command(typed).settings, typed)
    written = json.loads((tmp_path / "run/eval/diagnosis.json").read_text())
    assert written["verdict"] == "untrained"
