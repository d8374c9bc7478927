"""What check_data says of a data set is what training does with it, for every kind of fault."""

import copy
import json
import random
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_sets import (
    BOX,
    FAULTS,
    NOTED,
    NOTHING,
    REFUSED,
    UNREADABLE,
    VANISHED,
    DataSet,
    on_image,
    put,
    split_of,
    write_images,
)
from mutations import CHANGES
from PIL import Image

from retinanet import build
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.data.issues import Issue
from retinanet.data.loader import BatchDataset, BatchLoader, plan_batch
from retinanet.tools.check_data.check import check
from retinanet.tools.check_data.summary import report
from scripts.check_data import main
from scripts.convert_dataset import main as convert

SMALL = ["data=custom", "model=tiny", "data.min_size=64", "data.max_size=96", "data.workers=0"]


def paths_of(paths: str = "images images train.json val.json") -> list[str]:
    keys = ("train_images", "val_images", "train_annotations", "val_annotations")
    return [f"data.{key}={path}" for key, path in zip(keys, paths.split(), strict=True)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "images"
    write_images(folder)
    return folder


@pytest.fixture
def dataset(tmp_path, images) -> DataSet:
    shutil.copytree(images, tmp_path / "images")
    made = DataSet(tmp_path, split_of(10, 4), split_of(20, 3))
    made.write()
    return made


@pytest.fixture(scope="module")
def composed() -> TrainConfig:
    with composer("train") as reader:
        return reader.command([*SMALL, *paths_of(), "data.root=."]).settings


@pytest.fixture
def settings(composed, dataset) -> TrainConfig:
    own = copy.deepcopy(composed)
    own.data.root = str(dataset.root)
    return own


@pytest.fixture
def run(dataset, capsys):
    """The exit status of a command, and what it prints."""

    def run_and_read(*more: str, paths: str = "images images train.json val.json"):
        status = main([*SMALL, *paths_of(paths), f"data.root={dataset.root}", *more])
        captured = capsys.readouterr()
        assert not (captured.out and captured.err)
        return status, captured.out or captured.err

    return run_and_read


# What a fix tells people to type; the rest is for hands.
COMMAND = re.compile(r"`python -m scripts\.convert_dataset ([^`]*)`")
SETTING = re.compile(r"\bset (data\.\w+)=([\w./-]+)", re.IGNORECASE)


@pytest.mark.parametrize("name", FAULTS)
def test_a_remedy_leads_on_where_it_is_printed(run, dataset, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    FAULTS[name].seed(dataset)
    dataset.write()
    printed = " ".join(run("--images")[1].split())
    for number, command in enumerate(sorted(set(COMMAND.findall(printed)))):
        typed = shlex.split(command.removesuffix(" OUT"))
        if "train=" not in command:
            typed += ["train=train.json", "val=val.json"]
        assert convert([*typed, f"out{number}", "--image-folder", "images"]) == 0
        written = f"out{number}/train.json out{number}/val.json"
        status, again = run(paths=f"images images {written}")
        assert status == 0
        assert not COMMAND.search(" ".join(again.split()))
    for key, value in SETTING.findall(printed):
        typed = [word for word in paths_of() if not word.startswith(f"{key}=")]
        assert main([*SMALL, *typed, f"data.root={dataset.root}", f"{key}={value}"]) == 0


def refused_of(issues: list[Issue]) -> list[Issue]:
    return [issue for issue in issues if issue.effect is REFUSED]


def training_says(settings: TrainConfig) -> tuple[str | None, str | None]:
    """The error of train.py before its first step, and the one on reading every image."""
    try:
        splits = build.build_splits(settings.data)
        train_data = build.drop_unseen(settings, splits[0])
        build.build_loader(settings, train_data, torch.device("cpu"))
    except (ValueError, OSError) as error:
        return str(error), None
    for data in splits:
        augment = build.build_augment(settings, train=False)
        dataset = BatchDataset(data, augment, 0, settings.data.on_bad_image)
        for index in range(len(data)):
            try:
                plan = plan_batch(data, augment, [index], (96, 96))
                dataset.read_or_replace(index, plan.geometries[0], plan, [])
            except (ValueError, OSError) as error:
                return None, str(error)
    return None, None


def test_a_healthy_set_has_no_issue(settings):
    for pixels in (False, True):
        assert check(settings, pixels=pixels)[0] == []
    assert training_says(settings) == (None, None)


def test_a_crowd_region_around_one_object_is_not_the_object_twice(dataset, settings):
    records = dataset.train["annotations"]
    records.append({**records[0], "id": len(records) + 1, "iscrowd": 1})
    dataset.write()
    assert not any("the same box" in issue.kind for issue in check(settings)[0])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_alone_and_training_agrees(dataset, settings, name):
    """Its words are those of test_golden."""
    fault = FAULTS[name]
    fault.seed(dataset)
    dataset.write()
    issues, readings = check(settings, pixels=fault.pixels, keep=20)
    assert issues[0].effect is fault.effect
    assert all(issue.does for issue in issues)
    assert report(settings, issues, readings, pixels=fault.pixels)

    before, reading = training_says(settings)
    assert (before or reading is not None) if fault.effect is REFUSED else not (before or reading)
    if before:
        assert str(refused_of(issues)[0].error) == before
    if reading:
        assert re.split("[,;]", issues[0].fix.lower())[0] in reading.lower()


def test_the_table_has_every_kind_that_a_user_asked_about():
    assert len(FAULTS) >= 78


def test_random_damage_is_refused_exactly_where_training_refuses_it(
    dataset, settings, times, tally
):
    tries, refused, taken = times(300, 5000), 0, 0
    healthy = copy.deepcopy((dataset.train, dataset.val))
    for seed in range(tries):
        choice = random.Random(seed)
        dataset.train, dataset.val = copy.deepcopy(healthy)
        for _ in range(choice.randint(1, 2)):
            choice.choice(CHANGES)(choice, choice.choice([dataset.train, dataset.val]))
        dataset.write()
        issues, readings = check(settings)
        before, reading = training_says(settings)
        assert bool(refused_of(issues)) == bool(before or reading), seed
        if before:
            assert str(refused_of(issues)[0].error) == before, seed
        refused += before is not None
        taken += not before and bool(issues)
        assert not any("\n" in place for issue in issues for place in issue.places)
        if seed % 20 == 0:
            assert report(settings, issues, readings, pixels=False)
    assert refused > tries / 3
    assert taken > tries / 20
    tally(f"check_data: {tries} damaged data sets, {refused} refused as training refuses them")


# What the user sees


def test_a_healthy_set_is_described(run):
    status, printed = run()
    assert status == 0
    for words in (
        "train     4 images (0 without objects)\n",
        "            12 boxes, at most 3 in an image, 0 crowd regions\n",
        "at 64 px: 12 small (100 %), 0 medium",
        "8  66.7 %         6  red cell",
        "most frequent 2 times as often as the rarest",
        "training boxes have none of IoU 0.5",
        "train.py takes this data",
        "--images",
    ):
        assert words in printed
    assert "WRONG" not in printed
    assert "ODD" not in printed


def test_all_problems_of_both_files_are_listed_at_once(dataset, run):
    put("annotations", 4, bbox=[1, 2, 3])(dataset)
    put("annotations", 7, bbox=None)(dataset)
    put("annotations", 1, "val", bbox=[])(dataset)
    put("annotations", 2, "val", category_id=9)(dataset)
    put("annotations", 5, area=...)(dataset)
    on_image(Path.unlink, "val", 2)(dataset)
    dataset.write()
    status, printed = run("--show", "2")
    assert status == 1
    for words in (
        f"annotations: bbox {BOX}: 3",
        "train.json: annotations[4] (id 5): got [1, 2, 3]",
        "... and 1 more (--show 3 names them all)",
        "val.json: annotations[2] (id 3): got 9",
        "images: the file is missing: 1",
        "REPAIRED",
        "takes width times height",
        "Mistakes: 5; kinds of mistakes: 3.",
    ):
        assert words in printed
    assert str(dataset.root / "train.json") not in printed  # names below data.root suffice


def test_what_cannot_be_read_does_not_hide_the_rest(dataset, run):
    put("annotations", 1, "val", bbox=[])(dataset)
    dataset.write()
    healthy = (dataset.root / "train.json").read_text()
    (dataset.root / "train.json").write_text("{")
    pictures = ("--pictures", str(dataset.root / "out"))
    status, printed = run(*pictures)
    assert status == 1
    assert "train.json is not JSON" in printed
    assert "val.json: annotations[1] (id 2): got []" in printed
    assert list((dataset.root / "out").iterdir()) == []
    # A missing folder is one problem of each split, not one of each image.
    (dataset.root / "train.json").write_text(healthy)
    shutil.rmtree(dataset.root / "images")
    status, printed = run(*pictures)
    assert status == 1
    assert "no image folder: 2" in printed
    assert "Mistakes: 3; kinds of mistakes: 2." in printed
    assert (dataset.root / "out/sample_1.png").is_file()


def test_skipped_images_are_no_reason_to_stop(dataset, settings):
    on_image(Path.unlink)(dataset)
    on_image(lambda path: path.write_bytes(b""), "val")(dataset)
    settings.data.on_bad_image = "skip"
    kinds = {"images: the file is missing", UNREADABLE}
    issues, _ = check(settings)
    assert {(issue.kind, issue.effect) for issue in issues} == {(kind, NOTED) for kind in kinds}


def test_too_many_missing_images_are_refused_before_the_first_step_of_skipping_too(
    dataset, settings
):
    settings.data.on_bad_image = "skip"
    on_image(Path.unlink)(dataset)
    on_image(Path.unlink, index=2)(dataset)
    (issue,) = refused_of(check(settings)[0])
    assert str(issue.error).endswith("(2 of 4 images are missing); complete the folder.")
    assert training_says(settings)[0] == str(issue.error)


def test_missing_and_unreadable_images_are_counted_together(dataset, settings):
    settings.data.on_bad_image = "skip"
    on_image(Path.unlink)(dataset)
    on_image(lambda path: path.write_bytes(b""), index=2)(dataset)
    (issue,) = refused_of(check(settings)[0])
    assert "2 of 4 images are missing or unreadable, more than 10%" in str(issue.error)
    data, _ = build.build_splits(settings.data)
    augment = build.build_augment(settings, train=False)
    plans = [plan_batch(data, augment, [index], (96, 96)) for index in range(len(data))]
    with pytest.raises(ValueError, match="2 of 4 images are unreadable, more than 10%"):
        list(BatchLoader(data, augment, plans, on_bad_image="skip"))


def test_settings_that_leave_nothing_to_train_on_are_refused(dataset, settings):
    dataset.train["annotations"] = []
    dataset.write()
    settings.data.keep_empty = False
    (issue,) = refused_of(check(settings)[0])
    assert issue.kind == NOTHING
    assert training_says(settings)[0] == str(issue.error)


def test_one_file_for_both_splits_is_read_once(dataset, settings):
    settings.data.val_annotations = "train.json"
    for path in ("val.json", *(f"images/{i}.png" for i in (20, 21, 22))):
        (dataset.root / path).unlink()
    put("annotations", 4, area=...)(dataset)
    (dataset.root / "train.json").write_text(json.dumps(dataset.train))
    assert {issue.kind: issue.count for issue in check(settings, pixels=True)[0]} == {
        "annotations: area is missing": 1,
        "images: the same file in training and validation": 4,
    }


@pytest.mark.parametrize("layout", ["beside the annotations", "in many folders"])
def test_images_may_lie_anywhere(dataset, run, layout):
    root, paths = dataset.root, "images images train.json val.json"
    if layout == "in many folders":
        for number, image in enumerate(dataset.train["images"] + dataset.val["images"]):
            folder = f"camera {number % 3}/{number}/nested"
            (root / "images" / folder).mkdir(parents=True)
            shutil.move(root / "images" / image["file_name"], root / "images" / folder)
            image["file_name"] = f"{folder}/{image['file_name']}"
        dataset.write()
    else:
        paths = "train val train/_annotations.coco.json val/_annotations.coco.json"
        for split in ("train", "val"):
            (root / split).mkdir()
            for image in getattr(dataset, split)["images"]:
                shutil.move(root / "images" / image["file_name"], root / split)
            shutil.move(root / f"{split}.json", root / split / "_annotations.coco.json")
    status, printed = run("--images", "--pictures", str(root / "out"), paths=paths)
    assert status == 0
    assert "ODD" not in printed
    assert "train     4 images" in printed
    assert (root / "out/sample_1.png").is_file()


def test_pictures_are_written_and_named(dataset, run):
    put("annotations", 0, bbox=[50, 5, 40, 10])(dataset)
    dataset.write()
    folder = dataset.root / "a/b"
    status, printed = run("--pictures", str(folder))
    assert status == 0
    names = {"sample_1.png", "findings_1.png", "box_sizes.png", "classes.png"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert name in printed
        with Image.open(folder / name) as picture:
            assert np.asarray(picture).std() > 5


def test_what_cannot_be_done_is_one_line(dataset, run):
    (dataset.root / "file").write_text("")
    for typed, words in (
        (["--pictures", str(dataset.root / "file")], "choose another --pictures"),
        (["data.min_sice=3"], "data.min_sice"),
    ):
        status, printed = run(*typed)
        assert status == 1
        assert words in printed
        assert printed.count("\n") == 1


def test_settings_that_fit_more_boxes_are_printed_and_work(run):
    status, printed = run()
    assert "worst hit: " in printed
    assert "With init_from= keep the anchors" in printed
    other = " ".join(run("init_from=other.pt")[1].split())
    assert "init_from=other.pt was trained with its own anchors" in other
    before = float(printed.split("  anchors ")[1].split("%")[0])
    start = printed.index("9 anchors per cell, as now")
    share = float(printed[:start].rsplit("\n", 1)[1].split("%")[0])
    lines = printed[start:].split("\n\n")[0].splitlines()[1:]
    typed = [text.strip("'") for line in lines for text in line.split() if text != "\\"]
    assert share < before
    status, after = run(*typed)
    assert status == 0
    assert float(after.split("  anchors ")[1].split("%")[0]) == share
    assert all(len(line) <= 80 for line in printed.splitlines()[1:] if "/" not in line)


BCCD = paths_of("train val annotations/train.json annotations/val.json")


@pytest.mark.parametrize(
    ("name", "typed"), [("bccd", ["data=custom", *BCCD]), ("coco_slice", ["data=coco"])]
)
def test_real_data_has_nothing_wrong(real_data, name, typed, capsys):
    root = real_data(name)
    assert main([*typed, "model=tiny", f"data.root={root}", "data.workers=0"]) == 0
    assert "WRONG" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "change"),  # of a box, and of width and height of its image
    [
        ("looks like two corners", lambda x, y, w, h, *_: [x, y, x + w, y + h]),
        ("lies in [0, 1]", lambda x, y, w, h, a, b: [x / a, y / b, w / a, h / b]),
        ("looks like a center", lambda x, y, w, h, *_: [x + w / 2, y + h / 2, w, h]),
    ],
)
def test_real_boxes_of_another_format_are_recognised(real_data, settings, kind, change):
    folder = real_data("coco_slice")
    content = json.loads((folder / "annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for record in content["annotations"]:
        record["bbox"] = change(*record["bbox"], *sizes[record["image_id"]])
    path = Path(settings.data.root) / "changed.json"
    path.write_text(json.dumps(content))
    settings.data.root = str(folder)
    settings.data.train_images, settings.data.val_images = "train2017", "val2017"
    settings.data.train_annotations = str(path)
    settings.data.val_annotations = "annotations/instances_val2017.json"
    kinds = [issue.kind for issue in check(settings)[0] if "bbox" in issue.kind]
    (found,) = (what for what in kinds if what != f"annotations: {VANISHED}")
    assert kind in found
