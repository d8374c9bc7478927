"""The command: what it refuses, what it leaves behind, and that its last line trains."""

import contextlib
import io
import json
import os
import re
import shlex

import pytest

from retinanet import build
from retinanet.cli.command import read_arguments
from retinanet.cli.main import composer
from retinanet.data.coco import read_coco
from retinanet.data.loader import BatchDataset, plan_batch
from scripts import convert_dataset

EXAMPLE = re.compile(r"^  python -m scripts\.convert_dataset ((?:.*\\\n)*.*)$", re.MULTILINE)


def coco(folder_of, n=10):
    return {
        "images": [
            {"id": i, "file_name": f"{folder_of}{i}.png", "width": 64, "height": 48}
            for i in range(n)
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 3, "bbox": [i, 1, 20, 30.5]} for i in range(n)
        ],
    }


@pytest.fixture
def source(draw, put):
    """One COCO file beside its images, in a folder whose name needs quotes."""
    draw("my data, it's", {f"i{i}.png": (64, 48) for i in range(10)})
    return put({"my data, it's/all.json": coco("i")}) / "my data, it's/all.json"


def words_of(printed, program):
    """The arguments of the last command printed, as a shell reads them."""
    command = printed[printed.index(program) :].replace("\\\n", "")
    assert command.count("\n") == 1, "the last line"
    return shlex.split(command)[len(program.split()) :]


def settings_of(printed):
    """The settings that the last line printed gives."""
    words = words_of(printed, "python train.py")
    with composer("train") as reader:
        return reader.command(read_arguments("train", words).overrides).settings


@pytest.mark.parametrize("images", ["leave", "link", "copy"])
def test_the_last_line_trains_on_what_was_written(convert, source, tmp_path, images):
    out = tmp_path / "out=1, 'new'"
    status, printed, _ = convert(
        "--from", "coco", "--to", "coco", source, out, "--val-share", "0.3", "--images", images
    )
    assert status == 0
    assert max(map(len, printed.splitlines())) <= 80 or str(tmp_path) in printed
    settings = settings_of(printed)
    train, val = build.build_splits(settings.data)
    assert (len(train), len(val)) == (7, 3)
    assert train.missing() == val.missing() == []
    assert settings.model.backbone == "resnet50"
    augment = build.build_augment(settings, train=False)
    dataset = BatchDataset(val, augment, settings.seed, settings.data.on_bad_image)
    assert dataset[plan_batch(val, augment, [0])].boxes.shape == (1, 1, 4)


def test_links_and_copies(convert, source, tmp_path):
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    args = ("--from", "coco", "--to", "voc", source)
    assert convert(*args, tmp_path / "link")[0] == 0
    assert convert(*args, tmp_path / "copy", "--images", "copy")[0] == 0
    assert convert(*args, tmp_path / "none", "--images", "leave")[0] == 0
    link, copy = (tmp_path / how / "JPEGImages/i3.png" for how in ("link", "copy"))
    assert link.is_symlink()
    assert link.resolve() == source.parent / "i3.png"
    assert not copy.is_symlink()
    assert link.read_bytes() == copy.read_bytes() == before["i3.png"]
    assert not (tmp_path / "none/JPEGImages").exists()
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before


@pytest.mark.parametrize("target", ["voc", "yolo", "csv"])
@pytest.mark.parametrize("images", ["leave", "link", "copy", "ignore"])
def test_the_way_back_that_is_printed_works(convert, source, tmp_path, target, images):
    sources = [f"val={source}", f"zero={source}", f"train={source}"]
    sources = sources if target != "voc" else [source]
    args = ["--from", "coco", "--to", target, *sources, tmp_path / "out", "--images", images]
    _, printed, _ = convert(*args)
    if target == "yolo" and images in ("leave", "ignore"):
        assert "put them into" in " ".join(printed.splitlines()[-2:])
        return
    assert convert(*words_of(printed, "python -m scripts.convert_dataset"))[0] == 0
    written = sorted(path.stem for path in (tmp_path / "out-coco").iterdir())
    assert written == (["all"] if target == "voc" else ["train", "val", "zero"])


def test_an_output_that_is_there_is_not_touched(convert, source, tmp_path):
    out = tmp_path / "out"
    args = ("--from", "coco", "--to", "csv", source, out)
    assert convert(*args)[0] == 0
    (out / "mine.txt").write_text("mine")
    status, _, err = convert(*args)
    assert status == 1
    assert "out is there already; choose another folder, or let --overwrite" in err
    status, printed, _ = convert(*args, "--overwrite")
    assert status == 0
    assert "is now" in printed
    assert (tmp_path / "out.old1/mine.txt").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == ["all.csv", "classes.csv"]
    (tmp_path / "file").write_text("")
    status, _, err = convert("--from", "coco", "--to", "csv", source, tmp_path / "file")
    assert (status, "is a file" in err) == (1, True)


def test_an_empty_folder_is_taken(convert, source, tmp_path):
    (tmp_path / "out").mkdir()
    assert convert("--from", "coco", "--to", "voc", source, tmp_path / "out")[0] == 0


def test_an_output_around_its_source_is_refused(convert, source):
    args = ("--from", "coco", "--to", "csv", source, source.parent, "--overwrite")
    status, _, err = convert(*args)
    assert (status, "holds the source" in err) == (1, True)
    assert source.is_file()


@pytest.mark.parametrize("output", [".", "..", "../..", "/"])
def test_an_output_that_is_no_new_folder_is_refused(convert, source, monkeypatch, output):
    monkeypatch.chdir(source.parent)
    status, _, err = convert("--from", "coco", "--to", "csv", source, output, "--overwrite")
    assert (status, "name a folder to make" in err) == (1, True)


def test_a_test_set_is_refused(refused, source, put):
    found = coco("i")
    del found["annotations"]
    put({"my data, it's/all.json": found})
    lines = refused("--from", "coco", "--to", "coco", source)
    assert "has no list of annotations" in lines[0]


def test_a_screen_that_lacks_a_letter(source, put, tmp_path):
    found = coco("i")
    found["categories"][0]["name"] = "\u732b"
    put({"my data, it's/all.json": found})
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(screen):
        args = ["--from", "coco", "--to", "csv", str(source), str(tmp_path / "out")]
        assert convert_dataset.main(args) == 0
    assert b"\\u732b" in screen.buffer.getvalue()
    assert "\u732b" in (tmp_path / "out/all.csv").read_text(encoding="utf-8")


def test_what_fails_on_the_way_leaves_nothing(convert, source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    args = ("--from", "coco", "--to", "yolo", source, tmp_path / "out", "--images", "copy")
    status, _, err = convert(*args)
    assert status == 1
    assert "No space left" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.parent.name]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(convert, source, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    status, _, err = convert("--from", "coco", "--to", "csv", source, closed / "out")
    assert (status, "Permission denied" in err) == (1, True)


def test_images_that_cannot_be_found_are_told(convert, source, refused, tmp_path):
    moved = tmp_path / "elsewhere"
    source.parent.rename(moved)
    (moved / "all.json").rename(tmp_path / "all.json")
    file = tmp_path / "all.json"
    lines = refused("--from", "coco", "--to", "yolo", file)
    assert lines[0].startswith("FileNotFoundError: no image i0.png of ")
    assert "--image-folder" in lines[0]
    (moved / "i4.png").unlink()
    options = ["--image-folder", moved]
    lines = refused("--from", "coco", "--to", "yolo", file, *options)
    assert "images[4] (id 4): no image " in lines[1]
    # Whoever has no images at hand.
    out = tmp_path / "out"
    assert convert("--from", "coco", "--to", "yolo", file, out, "--images", "ignore")[0] == 0
    assert not (out / "images").exists()


@pytest.mark.parametrize(
    ("source_format", "path", "said"),
    [
        ("coco", "nothing.json", "nothing.json does not exist"),
        ("coco", ".", "is a folder; --from coco takes files"),
        ("csv", "nothing.csv", "nothing.csv does not exist"),
        ("voc", "nothing", "there is no folder nothing"),
        ("voc", "empty", "no XML files in empty; expected empty/Annotations/*.xml"),
        ("yolo", "nothing", "no folder or YAML file nothing"),
        ("yolo", "empty", "empty: has no class names"),
    ],
)
def test_sources_that_are_not_there(refused, tmp_path, monkeypatch, source_format, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert said in "\n".join(refused("--from", source_format, "--to", "coco", path))


def test_splits_and_classes_of_two_sources(convert, source, refused, put, tmp_path):
    args = ("--from", "coco", "--to", "coco", f"train={source}", f"val={source}")
    status, printed, _ = convert(*args, tmp_path / "out")
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.json", "val.json"]
    lines = refused("--from", "coco", "--to", "coco", source, source)
    assert "two sources give the split all; name them as in train=a.json" in lines[0]
    other = coco("i")
    other["categories"][0]["id"] = 4
    other["annotations"] = []
    put({"my data, it's/val.json": other})
    lines = refused("--from", "coco", "--to", "coco", source, source.parent / "val.json")
    assert "the class 'cat' has id 3 in one source and 4 in another" in lines[0]
    other["categories"] = [{"id": 3, "name": "dog"}]
    put({"my data, it's/val.json": other})
    lines = refused("--from", "coco", "--to", "coco", source, source.parent / "val.json")
    assert "the classes ['cat', 'dog'] have the same id 3" in lines[0]


def test_a_share_for_validation(convert, source, refused, tmp_path):
    args = ("--from", "coco", "--to", "coco", source)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert convert(*args, tmp_path / out, "--val-share", "0.2", "--seed", seed)[0] == 0
    text = {out: (tmp_path / out / "val.json").read_text() for out in "abc"}
    assert text["a"] == text["b"]
    assert text["a"] != text["c"]
    assert "leaves one part empty" in refused(*args, "--val-share", "0.01")[0]
    two = ("--from", "coco", "--to", "coco", f"train={source}", f"val={source}")
    assert "--val-share divides one part" in refused(*two, "--val-share", "0.5")[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from", "coco", "--to", "csv", "--columns", "a"], "--columns says nothing from coco"),
        (["--from", "coco", "--to", "yolo", "--corners", "edges"], "--corners says nothing"),
        (["--from", "yolo", "--to", "coco", "--images", "ignore"], "do not say the sizes"),
        (["--from", "voc", "--to", "csv", "--corners", "edges"], "could mean either"),
        (["--from", "voc", "--to", "csv", "--val-share", "1"], "between 0 and 1"),
        (["--from", "xml", "--to", "csv"], "invalid choice"),
        (["--from", "voc"], "required: --to"),
    ],
)
def test_options_that_make_no_sense(capsys, options, said):
    with pytest.raises(SystemExit) as stopped:
        convert_dataset.main([*options, "a", "b"])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_examples_of_the_help_are_commands():
    text = convert_dataset.__doc__.replace("FORMAT", "coco").replace("SOURCE... OUTPUT", "a b")
    commands = [shlex.split(found[1].replace("\\\n", " ")) for found in EXAMPLE.finditer(text)]
    assert len(commands) == 12
    directions = set()
    for words in commands:
        args = convert_dataset.read_arguments(words)
        directions |= {(args.source_format, args.target)}
    assert {("voc", "coco"), ("yolo", "coco"), ("csv", "coco")} <= directions
    assert {("coco", "voc"), ("coco", "yolo"), ("coco", "csv"), ("coco", "coco")} <= directions


def test_help_fits_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        convert_dataset.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize(
    ("bbox", "area", "written"),
    [
        ([40, 35, -30, -25], 750, [10, 10, 30, 25]),
        ([40, 10, -30, 25], -750, [10, 10, 30, 25]),
        ([10, 35.5, 30, -25], 750, [10, 10.5, 30, 25]),
    ],
)
def test_boxes_drawn_from_any_corner_are_written_from_the_upper_left_one(
    convert, draw, put, tmp_path, bbox, area, written
):
    draw("images", {f"i{i}.png": (64, 48) for i in range(4)})
    content = coco("i", 4)
    content["annotations"][1] |= {"bbox": bbox, "area": area}
    source = put({"images/all.json": content}) / "images/all.json"
    status, printed, _ = convert("--from", "coco", "--to", "coco", source, tmp_path / "out")
    assert status == 0
    assert "1 x box drawn from right to left or from bottom to top" in printed
    assert "dropped" not in printed
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())["annotations"][1]
    assert (record["bbox"], record["area"]) == (written, 750)
    assert read_coco(path, source.parent).repairs == {}


def test_boxes_that_stay_unusable_are_counted_as_such(convert, draw, put, tmp_path):
    draw("images", {f"i{i}.png": (64, 48) for i in range(4)})
    content = coco("i", 4)
    content["annotations"][1]["bbox"] = [5, 5, 0, 5]
    content["annotations"][2]["bbox"] = [70, 5, 5, 5]
    source = put({"images/all.json": content}) / "images/all.json"
    _, printed, _ = convert("--from", "coco", "--to", "coco", source, tmp_path / "out")
    said = " ".join(printed.split())
    assert "1 x box without width or height, which train.py never trains on" in said
    assert "1 x box outside its image, which train.py never trains on" in said
