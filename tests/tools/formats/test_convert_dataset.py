"""The command: what it refuses, what it leaves behind, and that its last line trains."""

import contextlib
import io
import json
import re
import shlex

import pytest

from scripts import check_data, convert_dataset

EXAMPLE = re.compile(r"^  python -m scripts\.convert_dataset ((?:.*\\\n)*.*)$", re.MULTILINE)


def coco(n=10, **changes):
    return {
        "images": [
            {"id": i, "file_name": f"i{i}.png", "width": 64, "height": 48} for i in range(n)
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 3, "bbox": [i, 1, 20, 30.5]} for i in range(n)
        ],
    } | changes


@pytest.fixture
def source(draw, put):
    """One COCO file beside its images, in a folder whose name needs quotes."""
    draw("my data, it's", {f"i{i}.png": (64, 48) for i in range(10)})
    return put({"my data, it's/all.json": coco()})


@pytest.mark.parametrize("images", ["leave", "link", "copy"])
def test_the_last_line_trains_on_what_was_written(run, capsys, source, tmp_path, images):
    out = tmp_path / "out=1, 'new'"
    args = source, out, "--val-share", "0.3", "--images", images
    status, printed, _ = run("coco", "coco", *args)
    assert status == 0
    assert max(map(len, printed.splitlines())) <= 80 or str(tmp_path) in printed
    command = printed[printed.index("python train.py") :].replace("\\\n", "")
    assert command.count("\n") == 1
    python, program, *settings = shlex.split(command)
    assert settings[-1] == "model=resnet50"
    # It reads both splits as train.py does, and the images.
    assert check_data.main(["--images", *settings]) == 0
    report = capsys.readouterr().out
    assert re.search(r"train +7 images", report)
    assert re.search(r"val +3 images", report)


def test_home_is_expanded_where_a_shell_leaves_it(run, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(source.parent))
    status, _, _ = run("coco", "coco", "train=~/all.json", tmp_path / "out", "--image-folder=~")
    assert status == 0
    assert (tmp_path / "out/train.json").is_file()


@pytest.mark.parametrize("images", ["leave", "link", "copy", "ignore"])
def test_yolo_gets_images_as_asked(run, source, tmp_path, images):
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    out = tmp_path / "out"
    status, printed, _ = run("coco", "yolo", f"val={source}", out, "--images", images)
    assert status == 0
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
    image = out / "images/val/i3.png"
    assert image.exists() == (images in ("link", "copy"))
    assert image.is_symlink() == (images == "link")
    assert ("put them into" in printed) != image.exists()
    assert not image.exists() or image.read_bytes() == before["i3.png"]


def test_an_output_that_is_there_is_not_touched(run, source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert run("coco", "coco", source, out)[0] == 0  # an empty folder is taken
    (out / "mine.txt").write_text("mine")
    status, _, err = run("coco", "coco", source, out)
    assert status == 1
    assert "out is there already; choose another folder, or let --overwrite" in err
    status, printed, _ = run("coco", "coco", source, out, "--overwrite")
    assert status == 0
    assert "is now" in printed
    assert (tmp_path / "out.old1/mine.txt").read_text() == "mine"
    assert [path.name for path in out.iterdir()] == ["all.json"]


@pytest.mark.parametrize("output", [".", "..", "../..", "/", "all.json", "{}"])
def test_an_output_that_is_no_new_folder_is_refused(run, source, monkeypatch, tmp_path, output):
    monkeypatch.chdir(source.parent if output != "{}" else tmp_path)
    status, _, err = run("coco", "coco", source, output.format(source.parent), "--overwrite")
    messages = {"all.json": "is a file", "{}": "holds the source"}
    assert (status, messages.get(output, "name a folder to make") in err) == (1, True)
    assert source.is_file()


def test_a_screen_that_lacks_a_letter_shows_its_code(source, put, tmp_path):
    put({source: coco(categories=[{"id": 3, "name": "\u732b"}])})
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(screen):
        args = ["--from", "coco", "--to", "coco", str(source), str(tmp_path / "out")]
        assert convert_dataset.main(args) == 0
    assert b"\\u732b" in screen.buffer.getvalue()
    assert "\u732b" in (tmp_path / "out/all.json").read_text(encoding="utf-8")


def test_what_fails_on_the_way_leaves_nothing(run, source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    status, _, err = run("coco", "yolo", source, tmp_path / "out", "--images", "copy")
    assert status == 1
    assert "No space left" in err
    assert [path.name for path in tmp_path.iterdir()] == [source.parent.name]


def test_images_that_cannot_be_found_are_reported(run, source, refused, tmp_path):
    moved = tmp_path / "elsewhere"
    source.parent.rename(moved)
    file = tmp_path / "all.json"
    (moved / "all.json").rename(file)
    line = refused("coco", file)[0]
    assert line.startswith("FileNotFoundError: no image i0.png of ")
    assert "--image-folder" in line
    (moved / "i4.png").unlink()
    assert "images[4] (id 4): no image " in refused("coco", file, "--image-folder", moved)[1]
    assert "no image folder" in refused("coco", file, "--image-folder", tmp_path / "no")[0]
    folders = ["--image-folder", moved] * 2
    assert "once, or once for each source, got 2 for 1" in refused("coco", file, *folders)[0]
    # Whoever has no images at hand.
    assert run("coco", "yolo", file, tmp_path / "out", "--images", "ignore")[0] == 0
    assert not (tmp_path / "out/images").exists()


@pytest.mark.parametrize(
    ("source_format", "path", "message"),
    [
        ("coco", "nothing.json", "nothing.json does not exist"),
        ("coco", ".", "is a folder; --from coco takes files"),
        ("csv", "nothing.csv", "nothing.csv does not exist"),
        ("voc", "nothing", "there is no folder nothing"),
        ("voc", "empty", "no XML files in empty; expected empty/Annotations/*.xml"),
        ("yolo", "nothing", "no folder or YAML file nothing"),
        ("yolo", "empty", "empty: has no class names"),
        ("yolo", "two", "two has several YAML files (a.yaml, b.yaml); give the one"),
        ("yolo", "bare", "no images in bare; expected data.yaml, or classes.txt"),
    ],
)
def test_sources_that_are_not_there_are_reported(
    refused, put, tmp_path, monkeypatch, source_format, path, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    put({"two/a.yaml": "", "two/b.yaml": "", "bare/classes.txt": "cat"})
    assert message in "\n".join(refused(source_format, path))


def test_sources_of_a_split_are_put_together_and_classes_go_by_name(run, draw, put, tmp_path):
    for folder, categories in (
        ("a", {1: "cell", 2: "dog"}),
        ("b", {1: "dog", 2: "cell", 3: "cat"}),
    ):
        draw(folder, {"1.png": (64, 48)})
        boxes = [
            {"id": i, "image_id": 1, "category_id": i, "bbox": [i, 1, 20, 30]} for i in categories
        ]
        image = {"id": 1, "file_name": "1.png", "width": 64, "height": 48}
        listed = [{"id": i, "name": name} for i, name in categories.items()]
        content = {"images": [image], "categories": listed, "annotations": boxes}
        put({f"{folder}.json": content, f"{folder}/more.json": content})
    sources = [f"train={tmp_path / 'a.json'}", f"train={tmp_path / 'b.json'}"]
    sources += [f"train={tmp_path / 'b/more.json'}", f"val={tmp_path / 'b.json'}"]
    folders = [word for f in "abbb" for word in ("--image-folder", tmp_path / f)]
    status, printed, _ = run("coco", "coco", *sources, tmp_path / "out", *folders)
    assert status == 0
    assert "1 x image that several sources have, there once with the boxes of all" in printed
    train, val = (json.loads((tmp_path / f"out/{s}.json").read_text()) for s in ("train", "val"))
    assert train["categories"] == val["categories"]
    names = {category["id"]: category["name"] for category in train["categories"]}
    assert names == {1: "cell", 2: "dog", 3: "cat"}
    assert [image["file_name"] for image in train["images"]] == ["a/1.png", "b/1.png"]
    found = [(a["image_id"], names[a["category_id"]], a["bbox"][0]) for a in train["annotations"]]
    # Boxes that both sources of b/1.png have are there once.
    wanted = [(1, "cell", 1), (1, "dog", 2), (2, "dog", 1), (2, "cell", 2), (2, "cat", 3)]
    assert found == wanted


def test_a_test_set_is_nothing_to_convert(refused, put):
    content = coco()
    del content["annotations"]
    line = refused("coco", put({"a.json": content}), "--images", "ignore")[0]
    assert "has no list of annotations: a test set" in line


def test_a_share_for_validation_is_the_same_for_a_seed(run, source, refused, tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        args = source, tmp_path / out, "--val-share", "0.2", "--seed", seed
        assert run("coco", "coco", *args)[0] == 0
    text = {out: (tmp_path / out / "val.json").read_text() for out in "abc"}
    assert text["a"] == text["b"]
    assert text["a"] != text["c"]
    assert "leaves one part empty" in refused("coco", source, "--val-share", "0.01")[0]
    line = refused("coco", f"train={source}", f"val={source}", "--val-share", "0.5")[0]
    assert "--val-share makes val, but there are train, val" in line


def test_a_share_for_validation_is_taken_from_train_or_from_all(source, converted, written):
    def names(split):
        return {name for name, *_ in written(split)[0]}

    converted("coco", f"train={source}", f"test={source}", "--val-share", "0.3")
    assert [len(names(split)) for split in ("train", "val", "test")] == [7, 3, 10]
    printed = converted("coco", f"one={source}", f"two={source}", "--val-share", "0.3")
    assert "10 x image that several sources have" in printed
    assert len(names("train")) == 7
    assert not names("train") & names("val")


def test_of_images_that_are_there_one_that_is_missing_is_named(source, refused):
    (source.parent / "i0.png").unlink()
    (line,) = refused("coco", source)[1:]
    assert f"images[0] (id 0): no image {source.parent / 'i0.png'}; add it, or give " in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--from coco --to voc", "--to voc: writes coco, for train.py, or yolo; others are only"),
        ("--from coco --to csv", "--to csv: writes coco, for train.py, or yolo; others are only"),
        ("--from coco --to coco --columns a", "--columns has no effect from coco to coco"),
        ("--from coco --to yolo --corners edges", "--corners has no effect"),
        ("--from voc --to coco --crowd object", "--crowd object has no effect"),
        ("--from yolo --to coco --images ignore", "do not hold the sizes"),
        ("--from yolo --to coco --image-folder a", "YOLO's images are found by data.yaml"),
        ("--from voc --to coco --val-share 1", "between 0 and 1"),
        ("--from voc --to coco --show 0", "--show must be at least 1"),
        ("--from xml --to coco", "invalid choice"),
        ("--from voc", "required: --to"),
    ],
)
def test_options_that_make_no_sense_are_refused(capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        convert_dataset.main([*options.split(), "a", "b"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_fits_the_screen_and_its_examples_are_commands(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        convert_dataset.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    text = convert_dataset.__doc__.replace("FORMAT", "coco").replace("SOURCE... OUTPUT", "a b")
    commands = [shlex.split(match[1].replace("\\\n", " ")) for match in EXAMPLE.finditer(text)]
    assert len(commands) == 7
    parsed = [convert_dataset.read_arguments(words) for words in commands]
    directions = {(args.source_format, args.target) for args in parsed}
    sources = {(source, "coco") for source in ("coco", "voc", "yolo", "csv", "labelme")}
    assert directions == sources | {("coco", "yolo")}
