"""Two splits beside each other: images in both are found, however they are named."""

import json
import shutil

from retinanet.data.coco import read_coco
from retinanet.data.splits import describe_missing, describe_shared, shared_images


def read(root, name, folder, names):
    images = [{"id": i, "file_name": n, "height": 9, "width": 9} for i, n in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (root / f"{name}.json").write_text(json.dumps(content))
    for path in (root / folder / image for image in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return read_coco(root / f"{name}.json", root / folder)


def test_the_same_names_in_other_folders_are_other_images(tmp_path):
    train = read(tmp_path, "train", "train", ["a.jpg", "b.jpg"])
    val = read(tmp_path, "val", "val", ["a.jpg", "b.jpg"])
    assert shared_images(train, val) == []
    assert describe_shared(train, val) == []


def test_one_folder_by_two_paths(tmp_path):
    train = read(tmp_path, "train", "images", ["sub/a.jpg", "sub/b.jpg"])
    val = read(tmp_path, "val", "images/sub", ["c.jpg", "b.jpg", "d.jpg"])
    assert shared_images(train, val) == [1]
    (line,) = describe_shared(train, val)
    assert line.startswith("warning    1 of 3 validation images are training images too (b.jpg)")


def test_links_are_followed(tmp_path):
    train = read(tmp_path, "train", "pool", ["a.jpg", "b.jpg"])
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "x.jpg").symlink_to(tmp_path / "pool" / "b.jpg")
    val = read(tmp_path, "val", "val", ["x.jpg", "y.jpg"])
    (tmp_path / "again").symlink_to(tmp_path / "pool")
    again = read(tmp_path, "again", "again", ["a.jpg"])
    assert shared_images(train, val) == [0]
    assert shared_images(train, again) == [0]
    assert "every validation image" in describe_shared(train, again)[0]


def test_a_folder_that_is_gone_shares_nothing(tmp_path):
    train = read(tmp_path, "train", "train", ["a.jpg"])
    val = read(tmp_path, "val", "val", ["sub/a.jpg"])
    shutil.rmtree(tmp_path / "val/sub")
    assert shared_images(train, val) == []


def test_a_missing_file_names_the_one_that_was_meant(tmp_path):
    data = read(tmp_path, "a", "images", ["Cell_1.JPG", "sub/b.jpg"])
    (tmp_path / "images/Cell_1.JPG").rename(tmp_path / "images/cell_1.jpg")
    (tmp_path / "images/sub/b.jpg").unlink()
    assert describe_missing(data, 0).endswith(
        "images/Cell_1.JPG; there is " + str(data.image_root / "cell_1.jpg")
    )
    assert describe_missing(data, 1).endswith("images/sub/b.jpg")
