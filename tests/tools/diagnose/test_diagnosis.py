"""Every fault of a made-up world has its verdict, and healthy worlds have none."""

import dataclasses
import json

import numpy as np
import pytest
import small_runs
from worlds import (
    FAIR,
    GOOD,
    POOR,
    WEAK,
    exchanged,
    in_form,
    look,
    make_world,
    renamed,
    without_boxes,
)

from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.data.coco import read_coco
from retinanet.evaluation.average_precision import evaluate
from retinanet.model.anchors import AnchorGenerator
from retinanet.terminal import DEFAULT_WIDTH
from retinanet.tools.anchor_coverage import objects_at
from retinanet.tools.anchor_search import propose_anchors
from retinanet.tools.diagnose.diagnosis import MOST_LINES, describe, diagnose, suspicious
from retinanet.tools.diagnose.evidence import History, Network, restrict
from retinanet.tools.diagnose.explain import history_of, network_of
from retinanet.tools.diagnose.results import read_results
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.publish import publish
from retinanet.tools.report.run_record import Record

LEVELS = {"good": GOOD, "fair": FAIR, "weak": WEAK}
# Form of the boxes in the file -> verdict, words of it.
FORMS = {
    "corners": ("box format", "x1, y1, x2, y2"),
    "centers": ("box format", "center x, center y"),
    "rows first": ("box format", "y, x, height, width"),
    "fractions": ("normalized boxes", "fractions of the image"),
    "YOLO": ("normalized boxes", "center x"),
    "half": ("box size", "x is multiplied by 2"),
    "framed": ("box size", "boxes in images of 5"),
    "from below": ("mirrored boxes", "y counts from the lower edge"),
    "mirrored": ("mirrored boxes", "x counts from the right edge"),
    "turned": ("mirrored boxes", "by 180 degrees"),
}
NETWORK = Network(generator=AnchorGenerator(), min_size=480, max_size=800, score_threshold=0.05)
FALLING = [1.13 - 0.01 * i for i in range(12)]
FLAT = [1.13] + [0.695] * 11
STILL = [1.13] * 12
SHIFTED = np.roll(np.arange(6), 1)


def rng_of(seed=0):
    return np.random.default_rng(seed)


def diagnosed(data, found, **known):
    return diagnose(data, found, evaluate(data, found, found.evaluated), **known)


def verdict(data, found, **known):
    diagnosis = diagnosed(data, found, **known)
    return None if diagnosis is None else diagnosis.verdict


def network(**changes):
    return dataclasses.replace(NETWORK, **changes)


def history(losses, *, step=None, total=1000, lr=0.01, columns=None, **changes):
    """A run whose rows lie 20 steps apart; of the built-in set's anchors and positives.

    ``columns`` are of all rows, or lists with a value for each.
    """
    rows = [
        {"step": 1 + 20 * i, "loss/class": loss, "loss/box": 0.9, "lr": lr, "grad_norm": 2.0}
        | {"positives": 372.0, "bad_steps": 0}
        for i, loss in enumerate(losses)
    ]
    for name, values in (columns or {}).items():
        for i, row in enumerate(rows):
            row[name] = values[i] if isinstance(values, list) else values
    step = rows[-1]["step"] if step is None else step
    known = {"rows": rows, "step": step, "total_steps": total, "optimizer": "sgd", "lr": lr}
    known |= {"warmup_steps": 20, "batch_size": 8, "anchors": 3454.0, "num_classes": 6}
    known |= {"prior": 0.01, "alpha": 0.25, "gamma": 2.0, "focal": True, "loaded": False}
    return History(**known | changes)


@pytest.fixture(scope="module")
def world():
    return make_world(rng_of())


@pytest.fixture(scope="module")
def good(world):
    return look(rng_of(1), world, GOOD)


@pytest.fixture(scope="module")
def poor(world):
    """Detections of which nothing is to be seen but that they are poor."""
    return look(rng_of(), world, POOR)


@pytest.fixture(scope="module")
def nothing(poor):
    """No detection in any of the images."""
    none = restrict(poor, np.zeros(0, dtype=np.int64))
    return dataclasses.replace(none, evaluated=poor.evaluated)


# The annotation file


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
def test_boxes_in_another_form_are_recognized(world, level, form):
    found = look(rng_of(1), world, LEVELS[level])
    name, words = FORMS[form]
    (cause,) = diagnosed(in_form(world, form), found).causes
    assert cause.name == name
    assert words in cause.verdict


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


def test_the_rule_behind_a_renaming_is_named(world, good):
    by_name = np.argsort(np.argsort(world.category_names))
    rules = {"one too low": SHIFTED, "one too high": np.roll(np.arange(6), -1), "by name": by_name}
    for words, new in rules.items():
        assert words in diagnosed(renamed(world, new), good).causes[0].verdict


def test_two_exchanged_classes_of_many_are_found_although_ap_is_high():
    data = make_world(rng_of(), num_images=100)
    found = look(rng_of(1), data, GOOD)
    swapped = renamed(data, [1, 0, 2, 3, 4, 5])
    assert evaluate(swapped, found, found.evaluated).metrics["AP"] > 0.3
    diagnosis = diagnosed(swapped, found)
    assert diagnosis.verdict == "label map"
    assert set(diagnosis.numbers["renaming"]) == set(data.category_names[:2])


def test_too_few_objects_to_see_a_renaming_are_undecided_but_not_denied():
    data = make_world(rng_of(), num_images=12, num_classes=80, objects=(2, 4))
    found = look(rng_of(1), data, GOOD)
    diagnosis = diagnosed(renamed(data, np.roll(np.arange(80), 1)), found)
    assert diagnosis.verdict == "undecided"
    assert "the boxes are right" in diagnosis.causes[0].verdict


@pytest.mark.parametrize("order", [np.roll(np.arange(60), 1), rng_of(2).permutation(60)])
@pytest.mark.parametrize("level", LEVELS)
def test_annotations_of_other_images_are_recognized(world, level, order):
    found = exchanged(world, look(rng_of(1), world, LEVELS[level]), order)
    expected = ["wrong images"] if level != "weak" else ["wrong images", "misplaced boxes"]
    assert verdict(world, found) in expected


def test_two_faults_at_once_are_both_named(world, good):
    causes = diagnosed(in_form(renamed(world, SHIFTED), "corners"), good).causes
    assert [cause.name for cause in causes] == ["box format", "label map"]


def test_a_set_learned_from_corners_shows_in_the_detections(world):
    taught = in_form(world, "corners")
    limits = np.repeat(world.sizes[:, ::-1], np.diff(world.first), axis=0)
    side = np.minimum(taught.bbox[:, :2] + taught.bbox[:, 2:], limits) - taught.bbox[:, :2]
    taught = dataclasses.replace(taught, bbox=np.concatenate([taught.bbox[:, :2], side], axis=1))
    diagnosis = diagnosed(world, look(rng_of(1), taught, GOOD))
    assert diagnosis.verdict == "box format"
    assert "training" in diagnosis.causes[0].fix


def test_faults_that_need_no_detection_are_recognized_without_any(world, poor, nothing):
    assert verdict(in_form(world, "fractions"), nothing) == "normalized boxes"
    flat = dataclasses.replace(
        world,
        bbox=np.zeros_like(world.bbox),
        usable=np.zeros_like(world.usable),
        repairs={"boxes dropped: width or height not positive": len(world.bbox)},
    )
    assert verdict(flat, poor) == verdict(flat, nothing) == "no ground truth"


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


# No false alarms


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
        expected = (None, "undecided") if skill in (WEAK, POOR) else (None,)
        assert verdict(data, look(rng, data, skill)) in expected


@pytest.mark.parametrize("seed", range(10))
def test_a_network_that_tells_no_classes_apart_has_no_wrong_names(seed):
    """Early in training everything may be the most frequent class, or any."""
    rng = rng_of(seed)
    data = make_world(rng, num_classes=int(rng.choice([2, 6, 80])), skewed=bool(seed % 2))
    found = look(rng, data, GOOD)
    for labels in (np.full(len(found), seed % 2), rng.permutation(found.labels)):
        assert verdict(data, dataclasses.replace(found, labels=labels)) in (None, "undecided")


def test_classes_taken_for_others_that_are_not_there_are_no_wrong_names(world):
    data = renamed(world, np.arange(6) % 2)
    found = look(rng_of(1), data, GOOD)
    found = dataclasses.replace(found, labels=(found.labels + 2) % 6)
    assert verdict(data, found) == "undecided"


@pytest.mark.parametrize("seed", range(3))
def test_images_whose_boxes_fit_by_luck_are_not_exchanged(seed):
    """Among 200 images of one object, every random detection fits some object."""
    rng = rng_of(seed)
    kinds = {"num_classes": 1, "objects": (1, 1), "one_size": True, "sides": (100, 160)}
    data = make_world(rng, num_images=200, **kinds)
    anywhere = dataclasses.replace(POOR, found=0.0, false=1.0)
    assert verdict(data, look(rng, data, anywhere)) == "undecided"


def test_tiny_objects_that_are_hard_to_find_are_no_fault():
    data = make_world(rng_of(), sides=(4, 12))
    assert verdict(data, look(rng_of(1), data, POOR)) in (None, "undecided")
    found = look(rng_of(1), data, WEAK)
    assert 0.01 < evaluate(data, found, found.evaluated).metrics["AP"] < 0.1
    assert diagnosed(data, found, network=NETWORK) is None


def test_without_ground_truth_there_is_nothing_to_say(world, poor):
    assert diagnose(world, poor, None) is None
    empty = dataclasses.replace(world, crowd=np.ones(len(world.crowd), dtype=bool))
    evaluation = evaluate(empty, poor, poor.evaluated)
    assert evaluation.metrics["AP"] is None
    assert not suspicious(evaluation)
    assert diagnose(empty, poor, evaluation) is None


# The network


def test_anchors_that_fit_nothing_are_named_with_those_that_check_data_proposes():
    data = make_world(rng_of(), sides=(4, 12), num_images=10)
    none = look(rng_of(), data, dataclasses.replace(POOR, found=0.0, false=0.0))
    diagnosis = diagnosed(data, none, network=NETWORK)
    assert diagnosis.verdict == "anchors"
    objects = objects_at(data, min_size=NETWORK.min_size, max_size=NETWORK.max_size)
    first = propose_anchors(objects, NETWORK.generator, NETWORK.positive_iou, 1.0)[0]
    assert first.uncovered < 0.7
    assert "anchors.sizes=[" in " ".join(first.typed)
    assert " ".join(first.typed) in diagnosis.causes[0].fix
    assert any("boxes have no anchor of IoU 0.5" in line for line in diagnosis.evidence)
    assert diagnosis.numbers["boxes_without_anchor"] == 1.0


LARGE = {"min_size": 800, "max_size": 1333}
SMALLER = {"trained_size": (128, 213)}


@pytest.mark.parametrize(
    ("known", "run", "name", "words"),
    [
        (LARGE | {"trained_size": (800, 1333)}, None, "untrained", ""),
        (LARGE | SMALLER, None, "image size", "data.min_size=128 data.max_size=213"),
        # The longer side bounds both: these images get no larger.
        (
            {"min_size": 1600, "max_size": 1000, "trained_size": (800, 1000)},
            *(None, "untrained", ""),
        ),
        # It had learned nothing at its own size either.
        (LARGE | SMALLER, history(FALLING, AP_before=0.0), "too early", ""),
        ({"min_size": 4, "max_size": 8}, history(FLAT), "vanishing boxes", "data.min_size"),
        ({"score_threshold": 0.9}, None, "score threshold", "postprocess.score_threshold=0.05"),
        ({}, None, "untrained", "train.log"),
    ],
)
def test_settings_that_hide_all_objects_are_named(world, nothing, known, run, name, words):
    diagnosis = diagnosed(world, nothing, network=network(**known), history=run)
    assert diagnosis.verdict == name
    assert words in diagnosis.causes[0].fix


def test_scores_that_are_all_alike_are_of_an_untrained_network(world):
    found = look(rng_of(), world, dataclasses.replace(POOR, found=0.0))
    alike = dataclasses.replace(found, scores=rng_of().uniform(0.0099, 0.0101, len(found)))
    assert verdict(world, alike) == "untrained"


def test_ids_that_differ_from_the_training_are_evidence(world, good):
    known = network(train_ids=(2, 1, 3, 4, 5, 6))
    diagnosis = diagnosed(in_form(world, "corners"), good, network=known)
    (line,) = [line for line in diagnosis.evidence if "category ids" in line]
    assert line == "category ids in training differ: q0 2, here 1; w1 1, here 2"


# The training


def test_the_loss_of_one_score_for_all_anchors_is_the_lowest_there_is():
    assert history(FLAT).constant_loss == pytest.approx(0.692, abs=0.002)


# 30 rows of which every third has positive anchors, as batches of few images have.
SOME = [40.0 if i % 3 == 0 else 0.0 for i in range(30)]
WARMING = {"lr": [0.01 * (0.001 + i / 1000) for i in range(12)]}
BAD = {"bad_steps": [0] * 11 + [3]}
FEW = {"step": 2, "total": 2, "columns": {"positives": [0.0, 40.0]}}
# Losses and settings of a run, the verdict, words of it or of its fix.
RUNS = [
    (STILL, {"lr": 1e-8}, "learning rate too low", "optim.lr"),
    (STILL, {"lr": 1e-8, "optimizer": "adamw"}, "learning rate too low", ""),
    ([1.13, 0.9, 0.8, 1.5, 4.0, 7.5], {}, "learning rate too high", "rose from 0.8 to 5.75"),
    (FLAT, {"lr": 30.0}, "learning rate too high", "stayed at 0.695"),
    (FLAT, {"lr": 1.0, "optimizer": "adamw"}, "learning rate too high", ""),
    (FALLING, {"columns": BAD}, "learning rate too high", "3 steps were not finite"),
    ([], {"step": 221, "lr": 30.0}, "learning rate too high", "no loss is recorded"),
    (FLAT, {}, "collapsed", "same score"),
    ([65.0, 4.0, 1.1, 0.76, 0.70, 0.69], {"prior": 0.5}, "prior", "model.prior=0.01"),
    ([0.005] * 12, {"alpha": 0.001}, "alpha", "cannot tell them apart"),
    ([1e-6] * 12, {"alpha": 0.0}, "alpha", "Nothing pulls"),
    ([1.13], {"step": 0}, "untrained", "after step 0"),
    ([1.13, 1.13], {"step": 1}, "untrained", "after step 1"),
    (STILL, {"columns": {"grad_norm": 0.0}}, "frozen", "model.frozen_stages"),
    (STILL, {"warmup_steps": 5000, "total": 90_000, "columns": WARMING}, "warm-up", "4500"),
    # Nothing else is looked at without positives.
    ([0.006] * 12, {"columns": {"positives": 0.0}}, "no positives", "check_data"),
    # Steps without objects have next to no loss: they are no minimum to rise from.
    (
        [0.008 if i % 3 else 1.13 - 0.01 * i for i in range(30)],
        *({"columns": {"positives": SOME}}, "too early", ""),
    ),
    (
        [0.008 if i % 3 else 1.13 + 0.2 * i for i in range(30)],
        *({"columns": {"positives": SOME}}, "learning rate too high", ""),
    ),
    # Two steps differ by as much, and show nothing.
    ([1.13, 2.9], {"step": 2, "lr": 30.0}, "too early", "has made 2 of"),
    ([0.006, 1.13], FEW, "too early", "has made 2 of 2 steps; its log has too few"),
    # Columns of older versions.
    (FALLING, {"columns": {"grad_norm": None, "positives": None}}, "too early", ""),
    (FALLING, {}, "too early", "and still falls"),
    (FALLING, {"total": 221}, "too early", "schedule.max_steps=884"),
    ([1.13, *[0.4] * 11], {"total": 221}, "undecided", ""),
    # An AP far below that of the run before is no lack of training.
    (FALLING, {"AP_before": 0.002}, "too early", ""),
    (FALLING, {"AP_before": 0.5}, "undecided", "the run had AP 0.500 before"),
    # Of weights that were good the training is not blamed.
    (STILL, {"lr": 1e-9, "AP_before": 0.5}, "learning rate too low", ""),
    (STILL, {"lr": 1e-9, "AP_before": 0.5, "AP_own": 0.5}, "undecided", ""),
]


@pytest.mark.parametrize(("losses", "settings", "name", "words"), RUNS)
def test_what_the_rows_of_a_training_show(world, poor, losses, settings, name, words):
    run = history(losses, **settings)
    cause = diagnosed(world, poor, network=NETWORK, history=run).causes[0]
    assert cause.name == name
    assert words in cause.verdict + cause.fix


def test_a_row_is_as_high_as_its_steps_with_objects():
    columns = {"positives": [4.0, 20.0, 40.0], "with_objects": [0.1, 0.5, 1.0]}
    run = history([0.1, 0.5, 1.0], columns=columns)
    assert run.level("loss/class").tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert run.level("positives").tolist() == pytest.approx([40.0, 40.0, 40.0])


def test_what_a_run_had_itself_comes_from_its_rows(world):
    with composer("train") as reader:
        settings = reader.command(["data=shapes"]).settings
    plain = dataclasses.asdict(settings)
    rows = [{"step": 10 * i, "loss/class": 1.0, "lr": 0.01} for i in range(1, 5)]
    rows += [{"step": 20, "AP": 0.4}, {"step": 30, "AP": "0.9"}, {"step": 40, "AP": 0.3}]
    for step, before, own in ((10, None, None), (30, 0.4, None), (40, 0.4, 0.3)):
        run = history_of(plain, settings, world, rows, step)
        assert (run.AP_before, run.AP_own) == (before, own)
    size = settings.data.min_size, settings.data.max_size
    assert network_of(settings, plain, None).trained_size == size
    varied = plain | {"augment": plain["augment"] | {"min_sizes": [200, 300]}}
    assert network_of(settings, varied, None).trained_size is None
    assert network_of(settings, {}, None).trained_size is None


# Log, file, real data


def test_a_diagnosis_fits_a_terminal_and_json():
    data = make_world(rng_of(), num_classes=80)
    found = exchanged(data, look(rng_of(1), data, POOR), rng_of().permutation(60))
    for known in ({}, {"network": NETWORK, "history": history(FLAT)}):
        diagnosis = diagnosed(data, found, **known)
        lines = describe(diagnosis)
        assert 6 < len(lines) <= MOST_LINES
        assert max(map(len, lines)) <= DEFAULT_WIDTH
        assert lines[0].startswith("diagnosis  AP 0.0")
        written = json.loads(json.dumps(diagnosis.as_dict(), allow_nan=False))
        assert written["verdict"] == diagnosis.verdict
        assert set(written["causes"][0]) == {"name", "verdict", "remedy"}
        assert not any(value == -1 for value in written["numbers"].values())
    early = diagnosed(data, found, network=NETWORK, history=history(FALLING))
    assert early.verdict == "too early"
    assert len(describe(early)) <= 6


def test_large_sets_are_scored_on_a_part_of_them(world, good, monkeypatch):
    monkeypatch.setattr("retinanet.tools.diagnose.evidence.SAMPLED_IMAGES", 20)
    diagnosis = diagnosed(in_form(world, "corners"), good)
    assert diagnosis.verdict == "box format"
    assert diagnosis.numbers["sampled_images"] == 20


def test_faults_are_recognized_among_the_80_classes_of_coco(real_data):
    root = real_data("cocoapi_fixture")
    data = read_coco(root / "instances_val2014_100.json", root)
    # Results that the authors of COCO made up: AP 0.505.
    found = read_results(root / "instances_val2014_fakebbox100_results.json", data)
    assert diagnosed(data, found) is None
    for new in (np.roll(np.arange(80), 1), rng_of().permutation(80)):
        assert verdict(renamed(data, new), found) == "label map"
    for form, (name, words) in FORMS.items():
        diagnosis = diagnosed(in_form(data, form), found)
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


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "too early"),
        (["optim.lr=1e-8", "schedule.max_steps=24"], "learning rate too low"),
        (["loss.alpha=0", "schedule.max_steps=24"], "alpha"),
        (["anchors.sizes=[512,1024,2048,4096,8192]"], "anchors"),
    ],
)
def test_real_runs_report_in_log_and_file_what_is_wrong(squares, tmp_path, overrides, name):
    small_runs.train(squares, tmp_path / "run", *overrides)
    written = json.loads((tmp_path / "run/eval/diagnosis.json").read_text())
    assert written["verdict"] == name
    log = " ".join((tmp_path / "run/train.log").read_text().split())
    assert f": {name}. {written['causes'][0]['verdict'][:30]}" in log


def test_the_file_of_an_evaluation_before_does_not_stay(tmp_path):
    data = make_world(rng_of(), num_images=12)
    for spoiled, stays in ((in_form(data, "corners"), True), (data, False)):
        found = look(rng_of(1), data, GOOD)
        evaluation = evaluate(spoiled, found, found.evaluated)
        diagnosis = diagnose(spoiled, found, evaluation)
        scored = Scored(spoiled, found, evaluation, num_drawn=0, diagnosis=diagnosis)
        record = Record("Evaluation", "spoiled", "best.pt", None)
        publish(tmp_path, scored, about={}, record=record)
        assert (tmp_path / "eval/diagnosis.json").exists() == stays


def test_rows_of_another_program_are_left_out(squares, tmp_path):
    small_runs.train(squares, tmp_path / "run", "schedule.max_steps=1")
    metrics, file = tmp_path / "run/metrics.jsonl", tmp_path / "run/eval/diagnosis.json"
    typed = [f"checkpoint={tmp_path / 'run/checkpoints/best.pt'}", "device=cpu", "log_images=0"]
    for content in ("5\n", '{"step": "x", "loss/class": 1}\n', "{}\n", "[]", None):
        metrics.unlink()
        metrics.mkdir() if content is None else metrics.write_text(content)
        file.unlink()
        with composer("eval") as reader:
            jobs.evaluate(reader.command(typed).settings, typed)
        assert json.loads(file.read_text())["verdict"] == "untrained"
