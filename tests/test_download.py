"""download_coco: curl continues, checksums decide, only whole files appear."""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import pytest

from retinanet.cli.main import composer
from scripts.download_coco import PARTS, SOURCE, main

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def zipped(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return memory.getvalue()


@pytest.fixture
def source(tmp_path):
    """A folder with three small archives, as a mirror has them."""
    root = tmp_path / "source"
    for folder in ("zips", "annotations"):
        (root / folder).mkdir(parents=True)
    for name in ("train", "val"):
        images = {f"{name}/{i}.jpg": bytes([i]) * 5000 for i in (1, 2)}
        (root / f"zips/{name}.zip").write_bytes(zipped(images))
    names = ["annotations/instances_val.json", "annotations/captions_val.json"]
    (root / "annotations/all.zip").write_bytes(zipped(dict.fromkeys(names, b"{}")))
    return root


@pytest.fixture
def download(source, tmp_path):
    paths = {"train": "zips/train.zip", "val": "zips/val.zip", "annotations": "annotations/all.zip"}
    files = {"train": ("*.jpg", 2), "val": ("*.jpg", 2), "annotations": ("instances_*.json", 1)}
    parts = {
        name: (path, hashlib.md5((source / path).read_bytes()).hexdigest(), *files[name])
        for name, path in paths.items()
    }
    return lambda *typed: main(
        [str(tmp_path / "coco"), "--source", source.as_uri() + "/", *typed], parts
    )


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_everything_is_downloaded_and_unpacked_then_skipped(download, source, tmp_path, capsys):
    root = tmp_path / "coco"
    assert download() == 0
    assert names_in(root) == ["all.zip", "annotations", "train", "train.zip", "val", "val.zip"]
    assert (root / "train/2.jpg").read_bytes() == bytes([2]) * 5000
    source.rename(tmp_path / "gone")  # nothing is asked for again
    capsys.readouterr()
    assert download() == 0
    assert capsys.readouterr().out.split() == [
        word for name in ("train", "val", "annotations") for word in (f"{name}:", "complete")
    ]


def test_parts_are_chosen_and_archives_removed(download, tmp_path):
    assert download("--parts", "val", "--remove-archives") == 0
    assert names_in(tmp_path / "coco") == ["val"]


def test_half_an_archive_is_continued(download, source, tmp_path):
    whole = (source / "zips/val.zip").read_bytes()
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/val.zip").write_bytes(whole[:4000])
    # What is there already is not read again: of the source only the rest is right.
    (source / "zips/val.zip").write_bytes(b"x" * 4000 + whole[4000:])
    assert download("--parts", "val") == 0
    assert names_in(tmp_path / "coco/val") == ["1.jpg", "2.jpg"]


def test_what_was_not_unpacked_is_unpacked_without_downloading(download, tmp_path):
    assert download("--parts", "val") == 0
    val = tmp_path / "coco/val"
    (val / "2.jpg").unlink()
    (tmp_path / "coco/unpacking/val").mkdir(parents=True)  # of an interrupted call
    (tmp_path / "coco/unpacking/val/2.jpg").write_bytes(b"half")
    assert download("--parts", "val") == 0
    assert (val / "2.jpg").read_bytes() == bytes([2]) * 5000
    assert names_in(tmp_path / "coco") == ["val", "val.zip"]


def test_another_file_than_the_published_one_is_removed(download, source, tmp_path, capsys):
    (source / "zips/val.zip").write_bytes(zipped({"val/1.jpg": b"please log in"}))
    assert download("--parts", "val") == 1
    error = capsys.readouterr().err
    assert "val.zip had md5" in error
    assert error.count("\n") == 1
    assert names_in(tmp_path / "coco") == ["val"]
    assert names_in(tmp_path / "coco/val") == []


def test_a_failed_download_is_one_line_and_leaves_what_came(download, source, tmp_path, capfd):
    (source / "zips/train.zip").unlink()
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/train.zip").write_bytes(b"half")
    assert download() == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "curl ended with status 37; the same command continues." in error
    assert (tmp_path / "coco/train.zip").read_bytes() == b"half"


def test_the_published_parts_are_those_of_data_coco():
    with composer("train") as reader:
        data = reader.command(["data=coco"]).settings.data
    assert {data.train_images, data.val_images, "annotations"} == set(PARTS)
    for file in (data.train_annotations, data.val_annotations):
        assert file.startswith("annotations/instances_")
        assert file.endswith("2017.json")


def test_the_commands_by_hand_have_the_same_files_and_checksums():
    text = (Path(__file__).parent.parent / "data/README.md").read_text()
    for path, md5, *_ in PARTS.values():
        assert f"curl -L -C - -O {SOURCE}/{path}\n" in text
        assert f"{md5}  {Path(path).name}\n" in text
        assert f"unzip -q {Path(path).name}" in text
