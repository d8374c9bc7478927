"""Annotation files with mistakes are read exactly or refused in one line; AP never lies."""

import contextlib
import copy
import io
import json
import math
import os
import random
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_runs import command

from retinanet.cli.main import main
from retinanet.data.coco import CocoData, read_coco
from retinanet.data.splits import check_images_exist
from retinanet.evaluation.coco import evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.numbers import NUMBERS
from retinanet.fast.coco_eval import AREAS

ROOT = Path(__file__).resolve().parents[2]
# pycocotools 2.0 calls numpy the way numpy 1 expected.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def box(number, image, category, bbox, **more):
    area = bbox[2] * bbox[3]
    record = {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
    return record | {"area": area, "iscrowd": 0} | more


def good_file():
    """Small, with everything a file may have: crowds, empty images, boxes over the edge."""
    names = ["a.png", "b.png", "c.png", "d.png", "sub/e.png"]
    return {
        "info": {"description": "x", "year": 2026},
        "images": [
            {"id": 10 * i + 3, "file_name": name, "height": 96, "width": 128}
            for i, name in enumerate(names)
        ],
        "annotations": [
            box(1, 3, 7, [10, 12, 40, 40]),
            box(2, 3, 2, [60.5, 30.25, 20, 12.5]),
            box(3, 3, 7, [12, 14, 40, 40]),
            box(4, 13, 2, [0, 0, 127, 95]),
            box(5, 13, 2, [100, 60, 60, 60]),
            box(6, 13, 7, [5, 5, 4, 4], segmentation=[[5, 5, 9, 5, 9, 9]]),
            box(7, 23, 90, [30, 30, 50, 40], iscrowd=1),
            box(8, 23, 90, [31, 31, 20, 20]),
            box(9, 43, 90, [1, 1, 30, 30], area=450.5),
            box(10, 43, 7, [1, 1, 30, 30]),
            box(11, 43, 7, [40, 40, 33.3, 17.7]),
        ],
        "categories": [
            {"id": number, "name": name} for number, name in ((7, "square"), (2, "bar"), (90, "u"))
        ],
    }


ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 90, 0.0, -0.0, 1.0, 1.5, -3.5, 1e-320, 1e9, 1e200,
    1.8e308, 2**31, 2**31 - 1, 2**63 - 1, 2**63, -(2**63), 10**400, math.nan, math.inf, -math.inf,
    10**15, "", " ", "x", "0", "7", "nan", "a.png", "A.PNG", "../a.png", "/etc/passwd",
    "..\\a.png", "C:a.png", "a\0.png", "a\nb", "\x1b[2J", "\ud800", "\udcff.png", "\u202e",
    "\u732b", "x" * 5000, "./a.png", [], [[]], [1], [1, 2, 3], {}, {"id": 1}, {"id": {}},
    [None] * 4, ["1", 2, 3, 4],
]  # fmt: skip
BOXES = [
    [1, 2, 3], [1, 2, 3, 4, 5], [10, 12, 50, 52], [0, 0, 0, 0], [5, 5, 0, 9], [5, 5, 9, -9],
    [-20, -20, 10, 10], [500, 500, 10, 10], [-50, -50, 500, 500], [127.99999999, 0, 1, 1],
    [0, 0, 1e-40, 5], [1e30, 0, 5, 5], [-1e99, -1e99, 1.7e99, 1.7e99], [-1e308, 0, 1.7e308, 9],
    [math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, 1, 10**400], [True, 0, 5, 5], [1, 1, 30, 30],
    [0, 0, 128, 96], [3, 3, 1e5, 1e6], ["1", 2, 3, 4], [[1], 2, 3, 4], [0.1, 0.2, 0.3, 0.4],
]  # fmt: skip
FIELDS = {
    "bbox": BOXES,
    "area": [0, -5, 1e10, 1e11, 5e-324, 1e300, None],
    "iscrowd": [0, 1, 2, True, 1.0, "1", None],
    "category_id": [2, 7, 90, 0, -1, 1, "7", 7.0, None],
    "image_id": [3, 13, 33, 0, -1, 14, "3", 3.0, None],
    "id": [0, 1, 2, 3, 10, -1, "1", 1.0, None],
    "height": [96, 128, 0, -1, 1, 2**31, 96.0, 96.5, "96"],
    "width": [96, 128, 0, -1, 1, 2**31 - 1, 128.0, "128"],
    "file_name": ["a.png", "b.png", "../a.png", "/a.png", "sub/../../a.png", ".", "sub", "e.png"],
    "name": ["square", "bar", "Square", "", " ", "_x", "$x$", "\ud800", "a\nb", "n/a"],
}


def containers(tree):
    """Every map and list below ``tree``, itself included."""
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(value)


def keys_of(container):
    return list(container) if isinstance(container, dict) else range(len(container))


def change_a_field(rng, tree):
    """The commonest mistake: a value that the field must not, or may, have."""
    kind = rng.choice(["annotations"] * 6 + ["images", "categories"])
    if not isinstance(tree.get(kind), list) or not tree[kind]:
        return
    record = rng.choice(tree[kind])
    if isinstance(record, dict) and (fields := [key for key in record if key in FIELDS]):
        field = rng.choice(fields)
        record[field] = copy.deepcopy(rng.choice(FIELDS[field]))


def set_anything(rng, tree):
    container = rng.choice([found for found in containers(tree) if found])
    container[rng.choice(keys_of(container))] = copy.deepcopy(rng.choice(ODD))


def delete_anything(rng, tree):
    container = rng.choice([found for found in containers(tree) if found])
    del container[rng.choice(keys_of(container))]


def repeat_a_record(rng, tree):
    lists = [found for found in containers(tree) if isinstance(found, list) and found]
    if lists:
        found = rng.choice(lists)
        found.insert(rng.randrange(len(found) + 1), copy.deepcopy(rng.choice(found)))


def swap_two_values(rng, tree):
    records = [found for found in containers(tree) if isinstance(found, dict) and found]
    first, second = rng.choice(records), rng.choice(records)
    a, b = rng.choice(list(first)), rng.choice(list(second))
    first[a], second[b] = second[b], first[a]


def rename_a_key(rng, tree):
    record = rng.choice([found for found in containers(tree) if isinstance(found, dict) and found])
    key = rng.choice(list(record))
    new = rng.choice([key.upper(), key + "s", key[:-1], f" {key}", "id", "bbox", "segmentation"])
    record[new] = record.pop(key)


def add_a_key(rng, tree):
    record = rng.choice([found for found in containers(tree) if isinstance(found, dict)])
    record[rng.choice(["score", "ignore", "keypoints", "", "\ud800"])] = rng.choice(ODD)


CHANGES = [change_a_field] * 16 + [
    set_anything,
    delete_anything,
    repeat_a_record,
    swap_two_values,
    rename_a_key,
    add_a_key,
]


def repeat_a_key(rng, text):
    """An object that says the same key twice, with two values."""
    places = [i for i in range(len(text)) if text.startswith(('{"id": ', '{"info": '), i)]
    place = rng.choice(places or [0]) + 1
    key = rng.choice(['"id": 5', '"bbox": [1, 1, 2, 2]', '"images": []', '"annotations": []'])
    return f"{text[:place]}{key}, {text[place:]}"


def spell_a_number(rng, text):
    """Numbers that JSON has and Python reads in its own way, or not at all."""
    digits = [i for i in range(len(text)) if text[i].isdigit()]
    place = rng.choice(digits or [0])
    odd = [
        "1e400",
        "-1e400",
        "1e-400",
        "9" * 5000,
        "007",
        "0x10",
        "1_0",
        "NaN",
        "-Infinity",
        "1e5",
        "-0",
    ]
    return text[:place] + rng.choice(odd) + text[place + 1 :]  # fmt: skip


def nest_deeply(rng, text):
    depth = rng.choice([60, 300, 600, 800, 900, 940, 960, 970, 980, 990, 100_000])
    deep = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    places = [i for i in range(len(text)) if text.startswith(": ", i)]
    place = rng.choice(places or [0]) + 2
    # Instead of a number, or before it as another key.
    return rng.choice([f'{text[:place]}{deep}, "x": {text[place:]}', deep])


def change_a_character(rng, text):
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("{}[],:\"'\\0-.eENn\0\x01\u00e9 ") + text[place + 1 :]


def surround(rng, text):
    around = [f"\ufeff{text}", f"\ufeff\ufeff{text}", f"{text}x", f"{text},", f"[{text}]", text * 2]
    other = [f"//\n{text}", text.replace('"', "'"), text.replace(" ", "\r\n")]
    return rng.choice([*around, *other])


TEXT_CHANGES = [repeat_a_key, spell_a_number, nest_deeply, change_a_character, surround]


def cut(rng, content):
    return content[: rng.randrange(len(content))]


def random_bytes(rng, content):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 5, 50])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def another_encoding(rng, content):
    encoding = rng.choice(["utf-16", "utf-32", "utf-16-le", "cp1252", "utf-8-sig"])
    return content.decode("utf-8", "replace").encode(encoding, "replace")


BYTE_CHANGES = [cut, random_bytes, another_encoding]


def mutated(rng):
    """The bytes of the good file after one to three changes."""
    tree = good_file()
    for _ in range(rng.choice([1, 1, 1, 1, 2])):
        rng.choice(CHANGES)(rng, tree)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.15:
        text = rng.choice(TEXT_CHANGES)(rng, text)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        content = rng.choice(BYTE_CHANGES)(rng, content)
    return content


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
        check_images_exist(data)
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
    image_ids = data.image_ids.repeat(np.diff(data.first))[rows]
    order = np.argsort(image_ids, kind="stable")
    rows = rows[order]
    scores = np.ones(len(rows))
    evaluated = np.sort(data.image_ids)
    return DetectionArrays(
        image_ids[order], data.bbox[rows], scores, data.labels[rows], evaluated, 0
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
    results = [
        {"image_id": image, "category_id": data.category_ids[label], "bbox": bbox, "score": score}
        for image, label, bbox, score in zip(
            found.image_ids.tolist(),
            found.labels.tolist(),
            found.boxes.tolist(),
            found.scores.tolist(),
            strict=True,
        )
    ]
    with redirect_stdout(io.StringIO()):
        truth, theirs = COCO(), COCO()
        truth.dataset = cleaned(content)
        theirs.dataset = truth.dataset | {
            "annotations": [
                {**row, "id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                for i, row in enumerate(results, start=1)
            ]
        }
        truth.createIndex()
        theirs.createIndex()
        evaluator = COCOeval(truth, theirs, iouType="bbox")
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


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("area", -5, "area must be a finite number of pixels, from 0 to 1e10, got -5"),
        ("area", 1e11, "area must be a finite number of pixels, from 0 to 1e10"),
        ("bbox", [-1e308, 0, 1.7e308, 9], "bbox must be four finite numbers"),
    ],
)
def test_an_object_that_would_never_count_is_refused(tmp_path, field, value, says):
    tree = good_file()
    tree["annotations"][0][field] = value
    assert says in refused(tmp_path, json.dumps(tree))


def refused(tmp_path, text):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for image in good_file()["images"]:
        (tmp_path / "images" / image["file_name"]).touch()
    (tmp_path / "a.json").write_text(text)
    message = read(tmp_path / "a.json", tmp_path / "images")
    assert isinstance(message, str)
    return message


def test_an_area_that_is_filled_in_counts(tmp_path):
    tree = good_file()
    tree["annotations"] = [box(1, 3, 7, [0, 0, 1e6, 1e6])]
    del tree["annotations"][0]["area"]
    write_images(tmp_path / "images")
    (tmp_path / "a.json").write_text(json.dumps(tree))
    data = read(tmp_path / "a.json", tmp_path / "images")
    assert evaluate(data, perfect(data), data.image_ids).metrics["APl"] == pytest.approx(1)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    text = json.dumps(good_file())
    twice = text.replace('"annotations": [', '"annotations": [], "annotations": [')
    assert "the key 'annotations' stands twice in one object" in refused(tmp_path, twice)


def test_a_value_of_many_levels_is_shown_in_one_line(tmp_path):
    # Where reading it just succeeds, showing it may fail.
    text = json.dumps(good_file())
    refused(tmp_path, text.replace("96", "-1"))
    for depth in range(800, 1000):
        deep = f'"height": {"[" * depth}{"]" * depth}'
        (tmp_path / "a.json").write_text(text.replace('"height": 96', deep, 1))
        message = read(tmp_path / "a.json", tmp_path / "images")
        assert "height must be" in message or "cannot be read as JSON" in message


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[2J.png", "x" * 300 + ".png", "d/" * 3000])
def test_a_name_that_no_file_has_is_named(tmp_path, name):
    tree = good_file()
    tree["images"][0]["file_name"] = name
    message = refused(tmp_path, json.dumps(tree))
    assert "file_name must be" in message or "no image" in message


def test_half_a_character_is_no_class_name(tmp_path):
    tree = good_file()
    tree["categories"][0]["name"] = "\ud800"
    assert "name must be a text of whole characters, got '\\ud800'" in refused(
        tmp_path, json.dumps(tree)
    )


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


def trained_apart(arguments):
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_train_py_says_one_line_or_trains(tmp_path, monkeypatch, times, tally):
    write_images(tmp_path / "images")
    rng, path = random.Random(2), tmp_path / "annotations.json"
    counts, apart = {0: 0, 1: 0}, 0
    for number in range(times(5, 50)):
        path.write_bytes(mutated(rng))
        # Most of those that are refused look alike: training is what else may fail.
        while number % 5 and isinstance(read(path, tmp_path / "images"), str):
            path.write_bytes(mutated(rng))
        both = [f"data.{split}_annotations=annotations.json" for split in ("train", "val")]
        typed = command(tmp_path, tmp_path / f"run{number}", *ONE_STEP, *both)
        if number % 3 == 0:
            typed.append("data.on_bad_image=skip")
        in_process = number % 10 != 9
        status, said = trained(monkeypatch, typed) if in_process else trained_apart(typed)
        apart += not in_process
        assert "Traceback" not in said, said
        assert status in (0, 1)
        assert status == 0 or said.count("\n") == 1, said
        counts[status] += 1
    assert counts[0] >= number / 3
    tally(
        f"mutated annotations, train.py: {number + 1} commands, {apart} in a process of their own, "
        f"{counts[0]} trained, {counts[1]} ended with one line, 0 tracebacks"
    )
