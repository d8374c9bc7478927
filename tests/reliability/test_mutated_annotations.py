"""Annotation files with mistakes are read exactly or refused in one line; AP never lies."""

import contextlib
import io
import json
import random
from contextlib import redirect_stdout

import numpy as np
import pytest
from mutations import box, good_file, mutated
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_runs import command

from retinanet.cli.main import main
from retinanet.data.coco import CocoData, images_of, read_coco
from retinanet.data.issues import raise_refused
from retinanet.data.splits import missing_issues
from retinanet.evaluation.average_precision import evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.numbers import NUMBERS
from retinanet.fast.coco_eval import AREAS

# pycocotools 2.0 calls numpy the way numpy 1 expected.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write_images(root):
    (root / "sub").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for image in good_file()["images"]:
        pixels = generator.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / image["file_name"])


def read(path, root) -> CocoData | str:
    """The data, or the one line that refuses it."""
    try:
        data = read_coco(path, root)
        raise_refused(missing_issues(data, "train"))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert str(path) in message
        assert "\n" not in message and message.isprintable() or not message.isascii(), message
        assert len(message) < 1000 or "no image" in message
        return message
    return data


def perfect(data: CocoData) -> DetectionArrays:
    """Detections that are the objects themselves."""
    rows = np.flatnonzero(data.usable & ~data.crowd)
    image_ids = data.image_ids[images_of(data)]
    rows = rows[np.argsort(image_ids[rows], kind="stable")]
    return DetectionArrays(
        image_ids=image_ids[rows],
        boxes=data.bbox[rows],
        scores=np.ones(len(rows)),
        labels=data.labels[rows],
        evaluated=np.sort(data.image_ids),
        num_capped=0,
    )


def cleaned(content: bytes) -> dict:
    """The file as pycocotools takes it: ids given anew, what may be left out filled in."""
    tree = json.loads(content.decode("utf-8-sig"))
    for number, record in enumerate(tree["annotations"], start=1):
        record["id"] = number
        record["iscrowd"] = int(record.get("iscrowd") or 0)
        x, y, width, height = record["bbox"]
        if record.get("area") is None:
            record["area"] = min(max(width, 0) * max(height, 0), 1e10)
        record.pop("segmentation", None)
    return tree


def stock_numbers(content: bytes, data: CocoData, found: DetectionArrays) -> list[float]:
    """pycocotools' twelve numbers, from the file itself."""
    columns = (found.image_ids, found.labels, found.boxes, found.scores)
    results = [
        {"id": i, "image_id": image, "category_id": data.category_ids[label], "bbox": bbox}
        | {"score": score, "area": bbox[2] * bbox[3], "iscrowd": 0}
        for i, (image, label, bbox, score) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), start=1
        )
    ]
    with redirect_stdout(io.StringIO()):
        ground_truth, theirs = COCO(), COCO()
        ground_truth.dataset = cleaned(content)
        theirs.dataset = ground_truth.dataset | {"annotations": results}
        ground_truth.createIndex()
        theirs.createIndex()
        evaluator = COCOeval(ground_truth, theirs, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


def check_the_score(content: bytes, data: CocoData) -> None:
    """Perfect detections are perfect to the evaluator, but for what ``repairs`` tells."""
    found = perfect(data)
    ours = evaluate(data, found, data.image_ids)
    dropped = sum(n for what, n in data.repairs.items() if what.startswith("boxes dropped"))
    assert dropped == (~data.usable).sum()
    objects = int((~data.crowd).sum())
    assert ours.num_gt == objects
    # Outside of these the evaluator would leave an object out, and tell nobody.
    low, high = AREAS[0]
    assert ((data.area >= low) & (data.area <= high)).all()
    assert len(data.usable) == len(json.loads(content.decode("utf-8-sig"))["annotations"])
    if not objects:
        assert ours.metrics["AP"] is None
    elif data.usable[~data.crowd].all():
        # Every object counts: none is outside of what the evaluator looks at.
        for name in ("AP", "AP50", "AP75", "AR100"):
            assert ours.metrics[name] == pytest.approx(1.0, abs=1e-12), name
        for name in ("APs", "APm", "APl", "ARs", "ARm", "ARl"):
            assert ours.metrics[name] in (None, pytest.approx(1.0, abs=1e-12)), name
    theirs = stock_numbers(content, data, found)
    for name, number in zip(NUMBERS, theirs, strict=True):
        expected = None if number == -1 else number
        assert ours.metrics[name] == (expected and pytest.approx(expected, abs=1e-12)), name


def test_a_mutated_file_is_read_exactly_or_refused_in_one_line(tmp_path, times, tally):
    write_images(tmp_path / "images")
    path, rng = tmp_path / "annotations.json", random.Random(0)
    accepted = repaired = 0
    count = times(500, 5000)
    for _ in range(count):
        content = mutated(rng)
        path.write_bytes(content)
        data = read(path, tmp_path / "images")
        if isinstance(data, str):
            continue
        accepted += 1
        repaired += bool(data.repairs)
        if data.annotated:
            check_the_score(content, data)
    assert count / 10 < accepted < 0.9 * count
    tally(
        f"mutated annotations: {count} files, {count - accepted} refused in one line, {accepted} "
        f"read ({repaired} with repairs told), AP of perfect detections right in each"
    )


def test_the_good_file_needs_no_repairs_and_scores_one(tmp_path):
    write_images(tmp_path / "images")
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(good_file()))
    data = read(path, tmp_path / "images")
    assert data.repairs == {}
    check_the_score(path.read_bytes(), data)
    assert evaluate(data, perfect(data), data.image_ids).metrics["AP"] == pytest.approx(1)


# What was found so, each with its mistake alone.


@pytest.fixture
def read_text(tmp_path):
    """Read a text as the annotations of images that are there."""
    write_images(tmp_path / "images")

    def write_and_read(text: str) -> CocoData | str:
        (tmp_path / "a.json").write_text(text)
        return read(tmp_path / "a.json", tmp_path / "images")

    return write_and_read


def test_an_area_that_is_filled_in_counts(read_text):
    tree = good_file()
    tree["annotations"] = [box(1, 3, 7, [0, 0, 1e6, 1e6])]
    del tree["annotations"][0]["area"]
    data = read_text(json.dumps(tree))
    assert evaluate(data, perfect(data), data.image_ids).metrics["APl"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "d/" * 3000])
def test_a_name_that_no_disk_can_have_is_a_missing_image(read_text, name):
    tree = good_file()
    tree["images"][0]["file_name"] = name
    assert "no image" in read_text(json.dumps(tree))


def test_a_value_of_many_levels_is_shown_in_one_line(read_text):
    # Where reading it just succeeds, showing it may fail.
    text = json.dumps(good_file())
    for depth in range(800, 1000):
        deep = f'"height": {"[" * depth}{"]" * depth}'
        message = read_text(text.replace('"height": 96', deep, 1))
        assert "height must be" in message or "cannot be read as JSON" in message


# The same through train.py.

ONE_STEP = ["schedule.warmup_steps=1", "schedule.max_steps=1", "log_images=1"]
ONE_STEP.append("evaluation.backend=arrays")


def trained(monkeypatch, arguments):
    """Exit status and standard error of ``train.py``, in this process."""
    said = io.StringIO()
    with monkeypatch.context() as patched, contextlib.redirect_stderr(said):
        patched.setattr("sys.argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            main("train")
    return ended.value.code, said.getvalue()


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_train_py_says_one_line_or_trains(tmp_path, monkeypatch, times, tally):
    write_images(tmp_path / "images")
    rng, path = random.Random(2), tmp_path / "annotations.json"
    counts = {0: 0, 1: 0}
    for number in range(times(5, 50)):
        path.write_bytes(mutated(rng))
        # Most of those that are refused look alike: training is what else may fail.
        while number % 5 and isinstance(read(path, tmp_path / "images"), str):
            path.write_bytes(mutated(rng))
        both = [f"data.{split}_annotations=annotations.json" for split in ("train", "val")]
        typed = command(tmp_path, tmp_path / f"run{number}", *ONE_STEP, *both)
        if number % 3 == 0:
            typed.append("data.on_bad_image=skip")
        status, said = trained(monkeypatch, typed)
        assert "Traceback" not in said, said
        assert status in (0, 1)
        assert status == 0 or said.count("\n") == 1, said
        counts[status] += 1
    assert counts[0] >= number / 3
    tally(
        f"mutated annotations, train.py: {number + 1} commands, {counts[0]} trained, "
        f"{counts[1]} ended with one line, 0 tracebacks"
    )
