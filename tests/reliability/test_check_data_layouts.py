"""check_data on other layouts of folders, with pictures, and with anchors that do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from broken_sets import DataSet, put, split_of, write_images
from PIL import Image

from scripts.check_data import main

SMALL = ["data=custom", "model=tiny", "data.min_size=64", "data.max_size=96", "data.workers=0"]


@pytest.fixture
def dataset(tmp_path) -> DataSet:
    write_images(tmp_path / "images")
    made = DataSet(tmp_path, split_of(10, 4), split_of(20, 3))
    made.write()
    return made


def run(root: Path, *more: str, paths: str = "images images train.json val.json") -> int:
    keys = ("train_images", "val_images", "train_annotations", "val_annotations")
    given = [f"data.{key}={path}" for key, path in zip(keys, paths.split(), strict=True)]
    return main([*SMALL, f"data.root={root}", *given, *more])


def test_annotations_may_lie_among_the_images(dataset, capsys):
    root = dataset.root
    for split in ("train", "val"):
        (root / split).mkdir()
        for image in getattr(dataset, split)["images"]:
            shutil.move(root / "images" / image["file_name"], root / split)
        shutil.move(root / f"{split}.json", root / split / "_annotations.coco.json")
    files = "train/_annotations.coco.json val/_annotations.coco.json"
    assert run(root, "--images", paths=f"train val {files}") == 0
    said = capsys.readouterr().out
    assert "ODD" not in said
    assert "train     4 images" in said


def test_images_may_lie_in_many_folders(dataset, tmp_path, capsys):
    for number, image in enumerate(dataset.train["images"] + dataset.val["images"]):
        folder = f"camera {number % 3}/{number}/nested"
        (tmp_path / "images" / folder).mkdir(parents=True)
        shutil.move(tmp_path / "images" / image["file_name"], tmp_path / "images" / folder)
        image["file_name"] = f"{folder}/{image['file_name']}"
    dataset.write()
    assert run(tmp_path, "--images", "--pictures", str(tmp_path / "out")) == 0
    assert "ODD" not in capsys.readouterr().out
    assert (tmp_path / "out/sample_1.png").is_file()


def test_pictures_are_written_and_named(dataset, tmp_path, capsys):
    put("annotations", 0, bbox=[50, 5, 40, 10])(dataset)
    dataset.write()
    assert run(tmp_path, "--pictures", str(tmp_path / "a/b")) == 0
    said = capsys.readouterr().out
    names = {"sample_1.png", "findings_1.png", "box_sizes.png", "classes.png"}
    assert {path.name for path in (tmp_path / "a/b").iterdir()} == names
    assert all(name in said for name in names)
    for name in names:
        with Image.open(tmp_path / "a/b" / name) as picture:
            assert np.asarray(picture).std() > 5


def test_pictures_are_drawn_of_what_can_be_read(dataset, tmp_path, capsys):
    (tmp_path / "train.json").write_text("{")
    assert run(tmp_path, "--pictures", str(tmp_path / "out")) == 1
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "train.json").write_text(json.dumps(dataset.train))
    shutil.rmtree(tmp_path / "images")
    assert run(tmp_path, "--pictures", str(tmp_path / "out")) == 1
    assert (tmp_path / "out/sample_1.png").is_file()
    assert capsys.readouterr().err == ""


def test_a_folder_for_pictures_that_cannot_be_made_is_one_line(dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path, "--pictures", str(tmp_path / "file")) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("FileExistsError")
    assert captured.out == ""


def test_settings_that_fit_more_boxes_are_told_and_work(dataset, tmp_path, capsys):
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "worst hit: " in said
    assert "With init_from= keep the anchors" in said
    before = float(said.split("  anchors ")[1].split("%")[0])
    start = said.index("9 anchors per cell, as now")
    share = float(said[:start].rsplit("\n", 1)[1].split("%")[0])
    lines = said[start:].split("\n\n")[0].splitlines()[1:]
    typed = [text.strip("'") for line in lines for text in line.split() if text != "\\"]
    assert share < before
    assert run(tmp_path, *typed) == 0
    after = capsys.readouterr().out
    assert float(after.split("  anchors ")[1].split("%")[0]) == share
    assert all(len(line) <= 80 for line in said.splitlines()[1:] if "/" not in line)


def test_a_checkpoint_to_start_from_is_named(dataset, tmp_path, capsys):
    assert run(tmp_path, "init_from=other.pt") == 0
    assert "init_from=other.pt was trained with its own anchors" in " ".join(
        capsys.readouterr().out.split()
    )
