"""YOLO: read in the layouts of the tools, with the line in errors; and written."""

import json
from pathlib import Path

import pytest

from retinanet.data.coco import read_coco
from retinanet.tools.formats.yolo import label_path

NAMES = "cat\ndog\n"


@pytest.fixture
def yolo(draw, put, tmp_path):
    """A folder with classes.txt and images a and b; files are below it."""
    draw("yolo/images", {"a.png": (100, 200), "b.png": (100, 200)})

    def write(files):
        put({"classes.txt": NAMES} | files, "yolo")
        return tmp_path / "yolo"

    return write


def test_boxes_by_hand(yolo, converted, written):
    source = yolo({"labels/a.txt": "\ufeff1 0.2 0.15 .1 1e-1\r\n\r\n0 0.5 0.5 1.000001 +1"})
    assert "1 x image without a label file" in converted("yolo", source)
    # Center (20, 30) of 100 x 200 pixels, 10 wide and 20 high. Rounding at the border is no error.
    expected = [("a.png", "dog", [15, 20, 10, 20]), ("a.png", "cat", [-5e-05, 0, 100.0001, 200])]
    assert written("yolo")[1] == expected


BAD = {
    "four": ("0 .1 .1 .1", "must have 5 numbers, class, center x, center y, width, height, got 4"),
    "a score": ("0 .1 .1 .1 .1 .9", "has 6 numbers, as detections with their score"),
    "rotated": (
        "0 0 0 0 1 1 1 1 0",
        "9 numbers, a rotated box or a polygon of 4 points; --polygons",
    ),
    "polygon": ("0 0 0 0 1 1 1", "7 numbers, a polygon of 3 points; --polygons"),
    "class too large": ("2 .1 .1 .1 .1", "the class must be an index from 0 to 1, got 2"),
    "class of a fraction": ("0.5 .1 .1 .1 .1", "got 0.5; the list of names has 2 classes"),
    "a name": ("cat .1 .1 .1 .1", "each value must be a finite number, got 'cat'"),
    "comma": ("0 0,1 0,1 0,1 0,1", "got '0,1'. Write a point"),
    "outside": ("0 1.5 .1 .1 .1", "must lie in [0, 1], got 1.5."),
    "pixels": ("0 50 100 20 20", "Pixels? YOLO wants shares"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", "is not text in UTF-8"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_row_is_refused_with_its_line(yolo, refused, what):
    row, message = BAD[what]
    row = row if isinstance(row, bytes) else row.encode()
    source = yolo({"labels/a.txt": b"0 .5 .5 .5 .5\n\n" + row + b"\n", "labels/b.txt": ""})
    lines = refused("yolo", source)
    assert lines[0] == "mistakes: 1; nothing was written"
    assert lines[1].startswith(f"{source}/labels/a.txt:3: ")
    assert message in lines[1]


@pytest.mark.parametrize("polygons", [[], ["--polygons"]])
@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("[4, 2]", "0.45 0.45 0.55 0.45 0.45 0.6 0.55 0.6"),
        ("[2, 3]", ".45 .45 2 0 0 0"),
    ],
)
def test_keypoints_leave_the_box_before_them(
    draw, put, converted, written, shape, points, polygons
):
    folder = draw("pose/images", {"a.png": (320, 240)}).parent
    put({"data.yaml": f"val: images\nnames: [hand]\nkpt_shape: {shape}\n"}, "pose")
    put({"labels/a.txt": f"0 0.5 0.5 0.2 0.4 {points}\n0 .5 .5 .2 .4"}, "pose")
    assert "1 x keypoints of an object, not kept" in converted("yolo", folder, *polygons)
    assert [b[2] for b in written("val")[1]] == [[128, 72, 64, 96]] * 2


def test_a_shape_of_keypoints_that_is_none_is_refused(draw, put, refused):
    folder = draw("pose/images", {"a.png": (320, 240)}).parent
    put({"data.yaml": "val: images\nnames: [hand]\nkpt_shape: 4\n"}, "pose")
    assert "kpt_shape must be [keypoints, numbers of each]" in refused("yolo", folder)[1]


def test_files_of_macos_are_left_out_and_counted(yolo, converted):
    junk = {"labels/._a.txt": b"\0\5\x16\7", "._data.yaml": b"\0", "images/._a.png": b"\0"}
    source = yolo({"labels/a.txt": "1 .5 .5 .5 .5", "._classes.names": b"\0", **junk})
    assert "4 x file of macOS beside another (._NAME), left out" in converted("yolo", source)


def test_polygons_become_boxes_when_asked(yolo, converted, written):
    source = yolo({"labels/a.txt": "0 .1 .2 .3 .1 .2 .4\n1 .1 .1 .2 .1 .2 1.2 .1 .3\n"})
    printed = converted("yolo", source, "--polygons")
    assert "2 x polygon or rotated box, replaced by the box around it" in printed
    assert "1 x polygon cut at the border" in printed
    expected = [("a.png", "cat", [10, 20, 20, 60]), ("a.png", "dog", [10, 20, 10, 180])]
    assert written("yolo")[1] == expected


def test_labels_and_images_that_do_not_fit_are_refused(yolo, draw, put, refused):
    source = yolo({"labels/a.txt": "", "labels/c.txt": ""})
    line = refused("yolo", source)[1]
    assert line == f"{source}/labels/c.txt: has no image of its name; add it or remove the file."
    draw("yolo/images", {"a.jpg": (9, 9), "c.png": (9, 9)})
    line = refused("yolo", source)[1]
    assert line == f"{source}/labels/a.txt: belongs to two images, a.jpg and a.png; rename one."
    (source / "images/a.jpg").unlink()
    put({"images/b.png": "no image"}, "yolo")
    assert "b.txt: cannot read image " in refused("yolo", source)[1]


LAYOUTS = {
    "ultralytics": (
        ["images/train", "images/val"],
        {"data.yaml": "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"},
    ),
    "a list of folders": (
        ["images/train", "images/val"],
        {"data.yaml": "train: [images/train]\nval: [images/val]\nnc: 2\nnames: [cat, dog]\n"},
    ),
    # It says ../train/images, but means the folder beside the file.
    "roboflow": (
        ["train/images", "valid/images"],
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ''\nnc: 2\n"
            "names: ['cat', 'dog']\nroboflow:\n  license: MIT\n"
        },
    ),
    "folders without YAML": (["images/train", "images/val"], {"obj.names": NAMES}),
    "roboflow's without YAML": (["train/images", "valid/images"], {"classes.txt": NAMES}),
    "images and labels together": (["train", "valid"], {"classes.txt": NAMES}),
    # CVAT's YOLO 1.1; data/ stands before each path.
    "darknet": (
        ["obj_train_data", "obj_valid_data"],
        {
            "obj.names": NAMES,
            "obj.data": "classes = 2\nnames = data/obj.names\n",
            "train.txt": "data/obj_train_data/a.png\n",
            "valid.txt": "data/obj_valid_data/a.png\n",
        },
    ),
    # Paths of the computer on which they were made, of which the end is here.
    "darknet's lists from elsewhere": (
        ["obj/train", "obj/valid"],
        {
            "classes.txt": NAMES,
            "train.txt": "/content/darknet/data/obj/train/a.png\n",
            "valid.txt": "data/custom/obj/valid/a.png\n",
        },
    ),
    "a description from elsewhere": (
        ["train/images", "valid/images"],
        {
            "data.yaml": "train: C:\\Users\\x\\set\\train\\images\n"
            "val: /content/set/valid/images\nnames: [cat, dog]\n"
        },
    ),
    "images in the description": (
        ["images/train", "images/val"],
        {"data.yaml": "train: [images/train/a.png]\nval: images/val/a.png\nnames: [cat, dog]\n"},
    ),
    # CVAT's newer YOLO export names subsets as the user did.
    "subsets": (
        ["images/Train", "images/Validation"],
        {
            "data.yaml": "Train: images/Train\nValidation: images/Validation\n"
            "names:\n  0: cat\n  1: dog\npath: .\n"
        },
    ),
    "lists of images": (
        ["images/train", "images/val"],
        {
            "data.yaml": "train: train.txt\nval: val.txt\nnames: [cat, dog]\nlicense: "
            + "x" * 5000,
            "train.txt": "./images/train/a.png\n",
            "val.txt": "./images/val/a.png\n",
        },
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_layouts_of_the_tools_are_read(draw, put, converted, written, tmp_path, layout):
    folders, files = LAYOUTS[layout]
    for row, folder in enumerate(folders):
        draw(f"set/{folder}", {"a.png": (100, 200)})
        put({f"{folder.replace('images', 'labels')}/a.txt": f"{row} 0.5 0.5 1 1\n"}, "set")
    put(files | {"README.roboflow.txt": "hi"}, "set")
    converted("yolo", tmp_path / "set")
    assert written("train")[1] == [("a.png", "cat", [0, 0, 100, 200])]
    assert written("val")[1] == [("a.png", "dog", [0, 0, 100, 200])]


BAD_YAML = {
    "no YAML": ("names: [cat", "data.yaml:1: is not YAML"),
    "a list": ("- a\n", "must have names, train and val"),
    "names with gaps": ("train: images\nnames: {0: cat, 2: dog}\n", "from 0 without gaps"),
    "a number of names": ("train: images\nnames: 3\n", "names must be a list"),
    "another number": ("train: images\nnc: 3\nnames: [cat]\n", "nc is '3', but names has 1"),
    "a name twice": ("train: images\nnames: [cat, cat]\n", "'cat' stands twice"),
    "no such folder": ("train: nowhere\nnames: [cat]\n", "train: there is no 'nowhere'"),
    # A last folder alone could be that of another split.
    "a folder that is gone": ("train: old/images\nnames: [cat]\n", "train: there is no 'old/im"),
    "a text that is too long for a name": (
        "train: " + "x" * 5000 + "\nnames: [cat]\n",
        "train: there is no 'xxx",
    ),
    "aliases": ("a: &a [x, x]\nb: [*a, *a]\ntrain: images\nnames: [cat]\n", "has aliases"),
    "many levels": ("names: " + "[" * 1200, "is not YAML"),
}


@pytest.mark.parametrize("what", list(BAD_YAML))
def test_a_bad_description_is_refused(yolo, refused, what):
    text, message = BAD_YAML[what]
    source = yolo({"data.yaml": text, "labels/a.txt": ""})
    (source / "classes.txt").unlink()
    line = refused("yolo", source)[1]
    assert message in line
    assert line.startswith(f"{source}/data.yaml")


def test_code_in_a_description_is_a_text(yolo, converted, tmp_path):
    command = f"touch {tmp_path}/ran"
    text = f"train: images\nnames: !!python/object/apply:os.system ['{command}']\n"
    converted("yolo", yolo({"data.yaml": text, "labels/a.txt": ""}))
    found = json.loads((tmp_path / "out/train.json").read_text())
    assert [category["name"] for category in found["categories"]] == [command]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["../evil", "/tmp/evil", "a/b"])
def test_a_split_cannot_name_files_in_another_folder(yolo, refused, key):
    source = yolo({"data.yaml": f"{key!r}: images\nnames: [cat]\n", "labels/a.txt": ""})
    assert f"the split {key!r} names files" in " ".join(refused("yolo", source))


@pytest.mark.parametrize("line", ["../secret.png", "/etc/passwd", "images/nothing.png", "./"])
def test_lists_that_lead_elsewhere_are_refused(yolo, refused, line):
    text = "train: train.txt\nnames: [cat]\n"
    source = yolo({"data.yaml": text, "train.txt": f"images/a.png\n{line}\n", "labels/a.txt": ""})
    assert refused("yolo", source)[1].startswith(f"{source}/train.txt:2: ")


def test_classes_are_needed(yolo, refused, converted, put, tmp_path):
    source = yolo({"labels/a.txt": ""})
    names = put({"n.csv": "name,id\ncat,17\ndog,3\n"})
    put({"classes.csv": "id,name\n1,dog\n2,cat\n"}, "yolo")
    assert "classes.csv and YOLO's own names differ" in refused("yolo", source)[1]
    for name in ("classes.csv", "classes.txt"):
        (source / name).unlink()
    assert "has no class names" in refused("yolo", source)[1]
    converted("yolo", source, "--classes", names)
    found = json.loads((tmp_path / "out/yolo.json").read_text())
    assert {c["name"]: c["id"] for c in found["categories"]} == {"cat": 17, "dog": 3}


# To YOLO.


def coco(names, boxes, **fields):
    """COCO JSON of images of 100 x 100 and boxes of the first, each with more fields."""
    sizes = {"width": 100, "height": 100}
    return fields | {
        "images": [{"id": 4 + i, "file_name": name} | sizes for i, name in enumerate(names)],
        "categories": [{"id": 9, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 4, "category_id": 9, "bbox": bbox} | more
            for i, (bbox, more) in enumerate(boxes, 1)
        ],
    }


def test_what_labels_cannot_hold_is_reported(put, draw, run, tmp_path):
    draw("i", {"a.png": (100, 100)})
    boxes = [
        ([0, 0, 10, 10], {"iscrowd": 1}),
        ([0, 0, 0, 10], {}),
        ([90, 90, 500, 5], {}),
        ([200, 90, 50, 5], {}),
        ([1, 2, 4, 8], {"area": 7, "difficult": 1}),
    ]
    file = put({"i/t.json": coco(["a.png"], boxes)})
    status, out, _ = run("coco", "yolo", file, tmp_path / "out")
    assert status == 0
    for note in (
        "1 x crowd region, left out",
        "1 x box without width or height, left out",
        "1 x box cut at the border of its image",
        "1 x box outside its image, left out",
        "1 x area other than width times height, not kept",
        "1 x mark as difficult, not kept",
        "image ids are not kept",
    ):
        assert note in " ".join(out.split())
    rows = (tmp_path / "out/labels/t/a.txt").read_text()
    assert rows == "0 0.95 0.925 0.1 0.05\n0 0.03 0.06 0.04 0.08\n"
    _, out, _ = run("coco", "yolo", file, tmp_path / "b", "--crowd", "object")
    assert "1 x crowd region, written as an object" in " ".join(out.split())
    assert (tmp_path / "b/labels/t/a.txt").read_text() == "0 0.05 0.05 0.1 0.1\n" + rows


def test_images_of_one_stem_cannot_share_labels(put, draw, refused):
    draw("i", {"a.png": (100, 100), "a.jpg": (100, 100)})
    file = put({"i/t.json": coco(["a.png", "a.jpg"], [])})
    line = refused("coco", file, target="yolo")[1]
    assert "a.jpg: would share its annotation file with a.png" in line


ODD_NAMES = [
    *("\u7ea2\u8840\u7403", "\u062e\u0644\u064a\u0629", "\U0001f98a fox", "traffic light"),
    *("<b>&amp;'\"]]>", 'a, "b"; c', " ends with a space ", "no", "1.0", "null", "# none", "a: b"),
    "c\u2028d",  # a line break to Python, not to text files
]


def assert_same(old, new):
    """Every image has its boxes, within a hundredth of a pixel; crowd regions are left out."""
    assert (new.category_ids, new.category_names) == (old.category_ids, old.category_names)
    assert new.missing() == []
    rows = {new.file_name(row): row for row in range(len(new))}
    assert rows.keys() == {old.file_name(row) for row in range(len(old))}
    for i in range(len(old)):
        j = rows[old.file_name(i)]
        assert old.sizes[i].tolist() == new.sizes[j].tolist()
        (boxes, labels), (others, other_labels) = old.boxes(i), new.boxes(j)
        assert labels.tolist() == other_labels.tolist()
        assert (boxes - others).abs().sum() < 0.01


@pytest.mark.parametrize("data", ["bccd", "coco_slice"])
def test_real_data_come_back(real_data, run, tmp_path, data):
    names = {"bccd": ("{}", "{}"), "coco_slice": ("instances_{}2017", "{}2017")}[data]
    there, back = tmp_path / "there", tmp_path / "back"
    splits = {}
    for split in ("train", "val"):
        file, folder = (name.format(split) for name in names)
        splits[split] = real_data(data) / f"annotations/{file}.json", real_data(data) / folder
    status, out, _ = run("coco", "yolo", *(file for file, _ in splits.values()), there)
    assert status == 0
    assert ("14 x crowd region, left out" in out) == (data == "coco_slice")
    assert run("yolo", "coco", there, back)[0] == 0
    for split, (file, folder) in splits.items():
        new = read_coco(back / f"{split}.json", there / f"images/{split}")
        assert_same(read_coco(file, folder), new)


def test_odd_names_and_fractions_come_back(draw, put, run, tmp_path):
    images = [
        "a/same.png",
        "b/same.png",
        '\u732b \U0001f98a/it\'s, <1> & "2".png',
        " b .png",
        "d.o.t.png",
    ]
    draw("i", dict.fromkeys(images, (100, 100)))
    found = coco(images, [([0.1 * i, i / 7, 1 + i / 3, 2.5], {}) for i in range(60)])
    for i, record in enumerate(found["annotations"]):
        record |= {"image_id": 4 + i % 4, "category_id": 5 * (i % len(ODD_NAMES)) - 10}
    found["categories"] = [{"id": 5 * i - 10, "name": n} for i, n in enumerate([*ODD_NAMES, "-"])]
    file = put({"i/train.json": found})
    assert run("coco", "yolo", file, tmp_path / "there")[0] == 0
    assert run("yolo", "coco", tmp_path / "there", tmp_path / "back")[0] == 0
    new = read_coco(tmp_path / "back/train.json", tmp_path / "there/images/train")
    assert_same(read_coco(file, tmp_path / "i"), new)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/images/train/a.jpg", "/labels/train/a.txt"),
        ("set/images/images/a.jpg", "set/images/labels/a.txt"),
        ("images/a.jpg", "labels/a.txt"),
        ("/data/photos/a.b.jpg", "/data/photos/a.b.txt"),
    ],
)
def test_labels_lie_in_the_folder_that_mirrors_the_last_images(image, labels):
    assert label_path(Path(image)) == Path(labels)
