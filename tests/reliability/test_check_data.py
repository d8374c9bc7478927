"""What check_data says of a data set is what training does with it, for every kind of fault."""

import copy
import json
import math
import random
import shutil
from pathlib import Path

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
    write_pictures,
)

from retinanet import build
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.data.loader import BatchDataset, plan_batch
from scripts.check_data import check, main, report

TYPED = [
    "data=custom",
    "model=tiny",
    "data.train_images=images",
    "data.train_annotations=train.json",
    "data.val_images=images",
    "data.val_annotations=val.json",
    "data.min_size=64",
    "data.max_size=96",
    "data.workers=0",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "images"
    write_pictures(folder)
    return folder


@pytest.fixture
def dataset(tmp_path, pictures) -> DataSet:
    shutil.copytree(pictures, tmp_path / "images")
    made = DataSet(tmp_path, split_of(10, 4), split_of(20, 3))
    made.write()
    return made


@pytest.fixture(scope="module")
def composed() -> TrainConfig:
    with composer("train") as reader:
        return reader.command([*TYPED, "data.root=."]).settings


@pytest.fixture
def settings(composed, dataset) -> TrainConfig:
    own = copy.deepcopy(composed)
    own.data.root = str(dataset.root)
    return own


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
                dataset.read(index, plan.geometries[0], plan, [])
            except (ValueError, OSError) as error:
                return None, str(error)
    return None, None


def test_a_healthy_set_has_nothing_to_tell(settings):
    for pixels in (False, True):
        verdict, _ = check(settings, pixels=pixels)
        assert verdict.findings == []
    assert training_says(settings) == (None, None)


def test_a_crowd_region_around_one_object_is_not_the_object_twice(dataset, settings):
    records = dataset.train["annotations"]
    records.append({**records[0], "id": len(records) + 1, "iscrowd": 1})
    dataset.write()
    verdict, _ = check(settings)
    assert not any("the same box" in finding.kind for finding in verdict.findings)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_alone_and_training_agrees(dataset, settings, name):
    fault = FAULTS[name]
    fault.seed(dataset)
    dataset.write()
    verdict, readings = check(settings, pixels=fault.pixels, keep=20)
    (found,) = (other for other in verdict.findings if other.kind not in fault.others)
    assert {other.kind for other in verdict.findings} == {fault.kind, *fault.others}
    assert (found.kind, found.effect, found.count) == (fault.kind, fault.effect, fault.count)
    for word in fault.place:
        assert any(word in place for place in found.places), found.places
    assert fault.remedy.lower() in found.remedy.lower()
    assert found.does
    assert report(settings, verdict, readings, pixels=fault.pixels)

    before, reading = training_says(settings)
    assert (before or reading is not None) if fault.effect is REFUSED else not (before or reading)
    if before:
        assert verdict.first == before
    if reading:
        assert fault.remedy.lower() in reading.lower()


def test_the_table_has_every_kind_that_a_user_asked_about():
    assert len(FAULTS) >= 60
    assert len({fault.kind for fault in FAULTS.values()}) >= 40


# Any damage

ODD_VALUES = [None, True, -1, 0, 2**70, 1.5, math.nan, math.inf, "", "x", [], {}, [1], "\0", -0.0]
ODD_VALUES += [10, 11, 1, 2, "10.png", "red cell", [0, 0, 1, 1], [1, 2, -3, 4], [0.1, 0.2, 0.3, 1]]
ODD_VALUES += [[1e300, 1, 1e300, 1], ["a", 1, 2, 3], "../x", "C:\\x.png", 1e300, "RED CELL"]


def damage(content: dict, choice: random.Random) -> None:
    """Change one thing of an annotation file."""
    kind = choice.choice(list(content)) if content else None
    if kind is None or not isinstance(content[kind], list) or choice.random() < 0.03:
        content[kind or "images"] = choice.choice(ODD_VALUES)
        return
    if not content[kind] or choice.random() < 0.03:
        del content[kind]
        return
    index = choice.randrange(len(content[kind]))
    record = content[kind][index]
    act = choice.random()
    if kind == "annotations" and isinstance(record, dict) and act > 0.6:
        record[choice.choice(["id", "area", "iscrowd"])] = choice.choice([None, 0, 1, -1, 1e9])
    elif act < 0.05 or not isinstance(record, dict) or not record:
        content[kind][index] = choice.choice(ODD_VALUES)
    elif act < 0.15:
        content[kind].append(copy.deepcopy(record))
    elif act < 0.2:
        del content[kind][index]
    elif act < 0.35:
        del record[choice.choice(list(record))]
    else:
        record[choice.choice(list(record))] = choice.choice(ODD_VALUES)


def test_random_damage_is_refused_exactly_where_training_refuses_it(
    dataset, settings, times, tally
):
    tries, refused, mended = times(300, 5000), 0, 0
    healthy = copy.deepcopy((dataset.train, dataset.val))
    for seed in range(tries):
        choice = random.Random(seed)
        dataset.train, dataset.val = copy.deepcopy(healthy)
        for _ in range(choice.randint(1, 2)):
            damage(choice.choice([dataset.train, dataset.val]), choice)
        dataset.write()
        verdict, readings = check(settings)
        before, reading = training_says(settings)
        assert bool(verdict.refused) == bool(before or reading), seed
        if before:
            assert verdict.first == before, seed
        refused += before is not None
        mended += not before and bool(verdict.findings)
        assert not any("\n" in place for f in verdict.findings for place in f.places)
        if seed % 20 == 0:
            assert report(settings, verdict, readings, pixels=False)
    assert refused > tries / 3
    assert mended > tries / 20
    tally(f"check_data: {tries} damaged data sets, {refused} refused as training refuses them")


# What the user sees


def run(root: Path, *more: str) -> int:
    return main([*TYPED, f"data.root={root}", *more])


def test_a_healthy_set_is_described(dataset, capsys):
    assert run(dataset.root) == 0
    said = capsys.readouterr().out
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
        assert words in said
    assert "WRONG" not in said
    assert "ODD" not in said


def test_all_problems_of_both_files_are_told_at_once(dataset, capsys):
    put("annotations", 4, bbox=[1, 2, 3])(dataset)
    put("annotations", 7, bbox=None)(dataset)
    put("annotations", 1, "val", bbox=[])(dataset)
    put("annotations", 2, "val", category_id=9)(dataset)
    put("annotations", 5, area=...)(dataset)
    on_image(Path.unlink, "val", 2)(dataset)
    dataset.write()
    assert run(dataset.root, "--show", "2") == 1
    said = capsys.readouterr().out
    for words in (
        f"annotations: bbox must be {BOX}: 3",
        "train.json: annotations[4] (id 5): got [1, 2, 3]",
        "... and 1 more (--show 3 names them all)",
        "val.json: annotations[2] (id 3): got 9",
        "images: the file is missing: 1",
        "MENDED",
        "takes width times height",
        "Mistakes: 5; kinds of mistakes: 3.",
    ):
        assert words in said
    assert str(dataset.root / "train.json") not in said  # names below data.root suffice


def test_files_that_cannot_be_read_do_not_hide_the_other_split(dataset, capsys):
    (dataset.root / "train.json").write_text("{")
    put("annotations", 1, "val", bbox=[])(dataset)
    (dataset.root / "val.json").write_text(json.dumps(dataset.val))
    assert run(dataset.root) == 1
    said = capsys.readouterr().out
    assert "train.json is not JSON" in said
    assert "val.json: annotations[1] (id 2): got []" in said


def test_a_missing_image_folder_is_one_problem(dataset, capsys):
    shutil.rmtree(dataset.root / "images")
    assert run(dataset.root) == 1
    said = capsys.readouterr().out
    assert "no image folder: 2" in said
    assert "Mistakes: 2; kinds of mistakes: 1." in said


def test_skipped_images_are_no_reason_to_stop(dataset, settings):
    on_image(Path.unlink)(dataset)
    on_image(lambda path: path.write_bytes(b""), "val")(dataset)
    settings.data.on_bad_image = "skip"
    verdict, _ = check(settings)
    kinds = {"images: the file is missing", UNREADABLE}
    assert {(f.kind, f.effect) for f in verdict.findings} == {(kind, NOTED) for kind in kinds}


def test_settings_that_leave_nothing_to_train_on_are_refused(dataset, settings):
    dataset.train["annotations"] = []
    dataset.write()
    settings.data.keep_empty = False
    verdict, _ = check(settings)
    assert [finding.kind for finding in verdict.refused] == [NOTHING]
    assert training_says(settings)[0] == verdict.first


def test_one_file_for_both_splits_is_read_once(dataset, settings):
    settings.data.val_annotations = "train.json"
    (dataset.root / "val.json").unlink()
    for i in (20, 21, 22):
        (dataset.root / f"images/{i}.png").unlink()
    put("annotations", 4, area=...)(dataset)
    (dataset.root / "train.json").write_text(json.dumps(dataset.train))
    verdict, _ = check(settings, pixels=True)
    found = {finding.kind: finding.count for finding in verdict.findings}
    assert found == {
        "annotations: area is missing": 1,
        "images: the same file in training and validation": 4,
    }


def test_a_mistyped_setting_is_one_line(dataset, capsys):
    assert run(dataset.root, "data.min_sice=3") == 1
    assert "data.min_sice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bccd", "coco_slice"])
def test_real_data_has_nothing_wrong(real_data, name, capsys):
    root = real_data(name)
    own = [
        f"data.{split}_{part}" for split in ("train", "val") for part in ("images", "annotations")
    ]
    paths = ["train", "annotations/train.json", "val", "annotations/val.json"]
    coco = ["data=coco", "model=tiny"]
    cells = ["data=custom", "model=tiny", *map("=".join, zip(own, paths, strict=True))]
    typed = coco if name == "coco_slice" else cells
    assert main([*typed, f"data.root={root}", "data.workers=0"]) == 0
    assert "WRONG" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", ["looks like two corners", "lies in [0, 1]", "looks like a center"]
)
def test_real_boxes_of_another_format_are_recognised(real_data, composed, tmp_path, kind):
    root = real_data("coco_slice")
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        width, height = sizes[record["image_id"]]
        record["bbox"] = {
            "looks like two corners": [x, y, x + w, y + h],
            "lies in [0, 1]": [x / width, y / height, w / width, h / height],
            "looks like a center": [x + w / 2, y + h / 2, w, h],
        }[kind]
    (tmp_path / "train.json").write_text(json.dumps(content))
    own = copy.deepcopy(composed)
    own.data.root = str(root)
    own.data.train_images, own.data.val_images = "train2017", "val2017"
    own.data.train_annotations = str(tmp_path / "train.json")
    own.data.val_annotations = "annotations/instances_val2017.json"
    kinds = [finding.kind for finding in check(own)[0].findings]
    found = [what for what in kinds if "bbox" in what and what != VANISHED]
    assert len(found) == 1
    assert kind in found[0]
