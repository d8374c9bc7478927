"""To another format and back: the same images, classes and boxes, to the bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.coco import read_coco

REAL = {
    "bccd": [("annotations/train.json", "train"), ("annotations/val.json", "val")],
    "coco_slice": [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_val2017.json", "val2017"),
    ],
}
NAMES = [
    "\u7ea2\u8840\u7403",  # Chinese
    "\u062e\u0644\u064a\u0629",  # Arabic
    "\U0001f98a fox",
    "traffic light",
    "<b>&amp;'\"]]>",
    'a, "b"; c',
    " ends with a space ",
    "no",  # a boolean of YAML
    "1.0",
    "null",
    "# none",
    "a: b",
    "c\u2028d",  # a line break to Python, not to text files
]


def to_and_back(convert, tmp_path, target, files, folders):
    """``there``, ``back``: the folder in the other format, and COCO JSON made of it."""
    there, back = tmp_path / "there", tmp_path / "back"
    options = [f"--image-folder={folder}" for folder in folders]
    status, out, err = convert("--from", "coco", "--to", target, *files, there, *options)
    assert (status, err) == (0, "")
    sources, options = [there], []
    if target == "csv":
        sources = [there / "train.csv", there / "val.csv"]
        options = [f"--image-folder={folder}" for folder in folders]
    status, _, err = convert("--from", target, "--to", "coco", *sources, back, *options)
    assert (status, err) == (0, "")
    placed = {
        "voc": [there / "JPEGImages"] * 2,
        "yolo": [there / "images/train", there / "images/val"],
        "csv": folders,
    }
    return there, back, placed[target], out


def assert_same(old, new, crowds):
    """Every image has its boxes; those of crowds only where the format has them."""
    names = [new.file_name(i) for i in range(len(new))]
    assert sorted(names) == sorted(old.file_name(i) for i in range(len(old)))
    assert (new.category_ids, new.category_names) == (old.category_ids, old.category_names)
    assert new.missing() == []
    for i in range(len(old)):
        j = names.index(old.file_name(i))
        assert old.sizes[i].tolist() == new.sizes[j].tolist()
        mine = np.arange(*old.first[i : i + 2])
        mine = mine if crowds else mine[~old.crowd[mine]]
        theirs = np.arange(*new.first[j : j + 2])
        assert old.bbox[mine].tobytes() == new.bbox[theirs].tobytes()
        assert old.labels[mine].tolist() == new.labels[theirs].tolist()
        if crowds:
            assert old.crowd[mine].tolist() == new.crowd[theirs].tolist()
            assert old.area[mine].tolist() == new.area[theirs].tolist()
            assert old.image_ids[i] == new.image_ids[j]


@pytest.mark.parametrize("target", ["voc", "yolo", "csv"])
@pytest.mark.parametrize("name", list(REAL))
def test_real_data_come_back(real_data, convert, tmp_path, name, target):
    root = real_data(name)
    files = [root / file for file, _ in REAL[name]]
    folders = [root / folder for _, folder in REAL[name]]
    _, back, placed, out = to_and_back(convert, tmp_path, target, files, folders)
    crowds = 0
    for split, file, folder, place in zip(("train", "val"), files, folders, placed, strict=True):
        old, new = read_coco(file, folder), read_coco(back / f"{split}.json", place)
        assert_same(old, new, crowds=target != "yolo")
        crowds += int(old.crowd.sum())
    # What is lost is said.
    said = " ".join(out.split())
    if name == "coco_slice":
        assert crowds == 14
        assert "1160 x segmentation, not kept" in said
        assert ("14 x crowd region, left out" in said) == (target == "yolo")


def odd_set(draw, put):
    """Names of classes and images that formats could stumble over."""
    sizes = {
        "a/same.png": (60, 40),
        "b/same.png": (30, 50),
        '\u732b \U0001f98a/it\'s, <1> & "2".png': (34, 38),
        " b .png": (40, 44),
        "empty.png": (10, 10),
        "dots.in.name.png": (64, 64),
    }
    for split in ("train", "val"):
        draw(
            split,
            {
                f"{split}{name}" if "/" not in name else f"{split}/{name}": size
                for name, size in sizes.items()
            },
        )
        names = [f"{split}{name}" if "/" not in name else f"{split}/{name}" for name in sizes]
        images = [
            {"id": 7 * i + 3, "file_name": name, "width": size[0], "height": size[1]}
            for i, (name, size) in enumerate(zip(names, sizes.values(), strict=True))
        ]
        annotations = [
            {
                "id": i + 1,
                "image_id": images[i % 4]["id"],
                "category_id": 5 * (i % len(NAMES)) - 10,
                "bbox": [0.1 * i, i / 7, 1 + i / 3, 2.5],
                "iscrowd": int(i % 9 == 8),
                "area": 2.25 + i / 3,
            }
            for i in range(4 * len(NAMES))
        ]
        put(
            {
                f"{split}.json": {
                    "images": images,
                    "annotations": annotations,
                    "categories": [
                        {"id": 5 * i - 10, "name": n} for i, n in enumerate([*NAMES, "none"])
                    ],
                }
            }
        )


@pytest.mark.parametrize("target", ["voc", "yolo", "csv"])
def test_odd_names_and_fractions_come_back(draw, put, convert, tmp_path, target):
    odd_set(draw, put)
    files = [tmp_path / "train.json", tmp_path / "val.json"]
    folders = [tmp_path / "train", tmp_path / "val"]
    _, back, placed, _ = to_and_back(convert, tmp_path, target, files, folders)
    for split, folder, place in zip(("train", "val"), folders, placed, strict=True):
        old = read_coco(tmp_path / f"{split}.json", folder)
        assert_same(old, read_coco(back / f"{split}.json", place), crowds=target != "yolo")


def test_coco_to_coco_changes_nothing(real_data, convert, tmp_path):
    root = real_data("coco_slice")
    file, folder = REAL["coco_slice"][1]
    status, _, _ = convert("--from", "coco", "--to", "coco", root / file, tmp_path / "out")
    assert status == 0
    old = read_coco(root / file, root / folder)
    new = read_coco(tmp_path / "out/val.json", root / folder)
    assert_same(old, new, crowds=True)


VOC = """<annotation>
\t<folder>VOC2007</folder>
\t<filename>{name}</filename>
\t<source><database>The VOC2007 Database</database></source>
\t<size><width>60</width><height>40</height><depth>3</depth></size>
\t<segmented>0</segmented>
{objects}</annotation>
"""
OBJECT = """\t<object>
\t\t<name>{}</name>
\t\t<difficult>{}</difficult>
\t\t<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
\t</object>
"""


def xml_boxes(folder: Path):
    """name -> (class, difficult, xmin, ymin, xmax, ymax) of every object, by another parser."""
    from xml.etree import ElementTree

    return {
        path.stem: [
            (
                item.findtext("name"),
                item.findtext("difficult"),
                *(item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")),
            )
            for item in ElementTree.parse(path).getroot().iter("object")
        ]
        for path in folder.rglob("*.xml")
    }


@pytest.mark.parametrize("corners", ["pixels", "edges"])
def test_voc_to_coco_to_voc_gives_the_same_numbers(draw, put, convert, tmp_path, corners):
    rows = [("cat", 0, 1, 1, 60, 40), ("dog", 1, 5, 7, 5, 9), ("cat", 0, "2.5", 3, "17.25", 4)]
    draw("old/JPEGImages", {"a.png": (60, 40), "b.png": (60, 40)})
    old = put(
        {
            "old/Annotations/a.xml": VOC.format(
                name="a.png", objects="".join(OBJECT.format(*row) for row in rows)
            ),
            "old/Annotations/b.xml": VOC.format(name="b.png", objects=""),
            "old/ImageSets/Main/train.txt": "b\na\n",
            "old/ImageSets/Main/cat_train.txt": "a  1\nb -1\n",
        }
    )
    old = tmp_path / "old"
    option = ["--corners", corners]
    assert convert("--from", "voc", "--to", "coco", old, tmp_path / "coco", *option)[0] == 0
    found = json.loads((tmp_path / "coco/train.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["b.png", "a.png"]
    shift = 1 if corners == "pixels" else 0
    assert found["annotations"][0]["bbox"] == [1 - shift, 1 - shift, 59 + shift, 39 + shift]
    assert found["annotations"][1]["bbox"] == [5 - shift, 7 - shift, 0 + shift, 2 + shift]
    back = ["--image-folder", old / "JPEGImages"]
    file = tmp_path / "coco/train.json"
    out = tmp_path / "voc"
    assert convert("--from", "coco", "--to", "voc", file, out, *option, *back)[0] == 0
    texts = {
        "a": [tuple(map(str, row)) for row in rows if corners == "pixels" or row[0] == "cat"],
        "b": [],
    }
    assert xml_boxes(out / "Annotations") == texts
    assert (out / "ImageSets/Main/train.txt").read_text() == "b\na\n"


def test_yolo_to_coco_to_yolo_gives_the_same_texts(draw, put, convert, tmp_path):
    labels = {
        "train/a": "0 0.5 0.5 1 1\n1 0.234375 0.123457 0.333333 0.1\n",
        "train/sub/b": "1 0.999999 0.000001 0.000002 0.000002\n",
        "train/c": "",
        "val/a": "0 0.1 0.2 0.05 0.3333333333\n",
    }
    draw("old/images", {f"{name}.png": (640, 427) for name in labels})
    put({f"old/labels/{name}.txt": text for name, text in labels.items()})
    put({"old/data.yaml": "train: images/train\nval: images/val\nnames: [cat, 'no']\n"})
    old = tmp_path / "old"
    assert convert("--from", "yolo", "--to", "coco", old, tmp_path / "coco")[0] == 0
    files = [tmp_path / "coco/train.json", tmp_path / "coco/val.json"]
    folders = [f"--image-folder={old / 'images' / split}" for split in ("train", "val")]
    assert convert("--from", "coco", "--to", "yolo", *files, tmp_path / "yolo", *folders)[0] == 0
    for name, text in labels.items():
        assert (tmp_path / "yolo/labels" / f"{name}.txt").read_text() == text
