"""YOLO's labels are read in the layouts of the tools; what is wrong is told by line."""

import json

import pytest

NAMES = "cat\ndog\n"


@pytest.fixture
def yolo(draw, put, tmp_path):
    """A folder with classes.txt and images a and b; files are below it."""
    draw("yolo/images", {"a.png": (100, 200), "b.png": (100, 200)})

    def write(files):
        files = {"classes.txt": NAMES} | files
        put({f"yolo/{name}": content for name, content in files.items()})
        return tmp_path / "yolo"

    return write


def boxes(path):
    found = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in found["images"]}
    classes = {c["id"]: c["name"] for c in found["categories"]}
    return [
        (names[a["image_id"]], classes[a["category_id"]], a["bbox"]) for a in found["annotations"]
    ]


def test_boxes_by_hand(yolo, convert, tmp_path):
    source = yolo({"labels/a.txt": "\ufeff1 0.2 0.15 .1 1e-1\r\n\r\n0 0.5 0.5 1 1"})
    status, out, _ = convert("--from", "yolo", "--to", "coco", source, tmp_path / "out")
    assert status == 0
    # Center (20, 30) of 100 x 200 pixels, 10 wide and 20 high.
    expected = [("a.png", "dog", [15, 20, 10, 20]), ("a.png", "cat", [0, 0, 100, 200])]
    assert boxes(tmp_path / "out/yolo.json") == expected
    assert "1 x image without a label file" in out


BAD = {
    "four": (
        "0 .1 .1 .1",
        "must have 5 numbers, class, center x, center y, width, height, got 4",
    ),
    "a score": ("0 .1 .1 .1 .1 .9", "has 6 numbers, as detections with their score"),
    "eight": ("0 1 1 1 1 1 1 1", "must have 5 numbers"),
    "rotated": (
        "0 0 0 0 1 1 1 1 0",
        "9 numbers, a rotated box or a polygon of 4 points; --polygons",
    ),
    "polygon": ("0 0 0 0 1 1 1", "7 numbers, a polygon of 3 points; --polygons"),
    "class too large": ("2 .1 .1 .1 .1", "the class must be an index from 0 to 1, got 2"),
    "class below 0": ("-1 .1 .1 .1 .1", "the class must be an index from 0 to 1, got -1"),
    "class of a fraction": ("0.5 .1 .1 .1 .1", "got 0.5; the list of names has 2 classes"),
    "a name": ("cat .1 .1 .1 .1", "must be finite numbers with a point, got 'cat'"),
    "nan": ("0 nan .1 .1 .1", "got 'nan'"),
    "infinite": ("0 .1 .1 1e999 .1", "got '1e999'"),
    "comma": ("0 0,1 0,1 0,1 0,1", "got '0,1'"),
    "outside": ("0 1.5 .1 .1 .1", "must lie in [0, 1], got 1.5."),
    "pixels": ("0 50 100 20 20", "Pixels? YOLO wants shares"),
    "below 0": ("0 .5 .5 -.1 .1", "must lie in [0, 1], got -0.1"),
    "encoding": (b"0 .1 .1 .1 \xff", "is not text in UTF-8"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", "is not text in UTF-8"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_row_is_told_with_its_line(yolo, refused, what):
    row, said = BAD[what]
    row = row if isinstance(row, bytes) else row.encode()
    source = yolo({"labels/a.txt": b"0 .5 .5 .5 .5\n\n" + row + b"\n", "labels/b.txt": ""})
    lines = refused("--from", "yolo", "--to", "coco", source)
    assert lines[0] == "mistakes: 1; nothing was written"
    assert lines[1].startswith(f"{source}/labels/a.txt:3: ")
    assert said in lines[1]


def test_polygons_become_boxes_when_asked(yolo, convert, tmp_path):
    source = yolo({"labels/a.txt": "0 .1 .2 .3 .1 .2 .4\n1 .1 .1 .2 .1 .2 1.2 .1 .3\n"})
    status, out, _ = convert(
        "--from", "yolo", "--to", "coco", source, tmp_path / "out", "--polygons"
    )
    assert status == 0
    assert "2 x polygon or rotated box, replaced by the box around it" in out
    assert "1 x polygon cut at the border" in out
    expected = [("a.png", "cat", [10, 20, 20, 60]), ("a.png", "dog", [10, 20, 10, 180])]
    assert boxes(tmp_path / "out/yolo.json") == expected


def test_rounding_at_the_border_is_no_mistake(yolo, convert, tmp_path):
    source = yolo({"labels/a.txt": "0 0.5 0.5 1.000001 1\n"})
    assert convert("--from", "yolo", "--to", "coco", source, tmp_path / "out")[0] == 0


def test_labels_and_images_that_do_not_fit(yolo, draw, refused):
    source = yolo({"labels/a.txt": "", "labels/c.txt": ""})
    lines = refused("--from", "yolo", "--to", "coco", source)
    assert (
        lines[1] == f"{source}/labels/c.txt: has no image of its name; add it or remove the file."
    )
    draw("yolo/images", {"a.jpg": (9, 9), "c.png": (9, 9)})
    lines = refused("--from", "yolo", "--to", "coco", source)
    assert lines[1] == f"{source}/labels/a.txt: belongs to two images, a.jpg and a.png; rename one."


def test_an_image_that_is_none(yolo, put, refused):
    source = yolo({"labels/a.txt": "", "images/b.png": "no image"})
    lines = refused("--from", "yolo", "--to", "coco", source)
    assert "b.txt: cannot read image " in lines[1]


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
    # CVAT's newer YOLO export names subsets as the user did.
    "subsets": (
        ["images/Train", "images/Validation"],
        {
            "data.yaml": "Train: images/Train\nValidation: images/Validation\n"
            "names:\n  0: cat\n  1: dog\npath: .\n",
        },
    ),
    "lists of images": (
        ["images/train", "images/val"],
        {
            "data.yaml": "train: train.txt\nval: val.txt\nnames: [cat, dog]\n",
            "train.txt": "./images/train/a.png\n",
            "val.txt": "./images/val/a.png\n",
        },
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_layouts_of_the_tools(draw, put, convert, tmp_path, layout):
    folders, files = LAYOUTS[layout]
    for row, folder in enumerate(folders):
        draw(f"set/{folder}", {"a.png": (100, 200)})
        labels = folder.replace("images", "labels")
        put({f"set/{labels}/a.txt": f"{row} 0.5 0.5 1 1\n"})
    put({f"set/{name}": text for name, text in files.items()} | {"set/README.roboflow.txt": "hi"})
    out = tmp_path / "out"
    assert convert("--from", "yolo", "--to", "coco", tmp_path / "set", out)[0] == 0
    assert boxes(out / "train.json") == [("a.png", "cat", [0, 0, 100, 200])]
    assert boxes(out / "val.json") == [("a.png", "dog", [0, 0, 100, 200])]


BAD_YAML = {
    "no YAML": ("names: [cat", "data.yaml:1: is not YAML"),
    "a list": ("- a\n", "must have names, train and val"),
    "names with gaps": ("train: images\nnames: {0: cat, 2: dog}\n", "from 0 without gaps"),
    "a number of names": ("train: images\nnames: 3\n", "names must be a list"),
    "another number": ("train: images\nnc: 3\nnames: [cat]\n", "nc is '3', but names has 1"),
    "a name twice": ("train: images\nnames: [cat, cat]\n", "'cat' stands twice"),
    "no such folder": ("train: nowhere\nnames: [cat]\n", "train: there is no 'nowhere'"),
    "aliases": ("a: &a [x, x]\nb: [*a, *a]\ntrain: images\nnames: [cat]\n", "has aliases"),
    "many levels": ("names: " + "[" * 1200, "is not YAML"),
}


@pytest.mark.parametrize("what", list(BAD_YAML))
def test_a_bad_description_is_refused(yolo, refused, what):
    text, said = BAD_YAML[what]
    source = yolo({"data.yaml": text, "labels/a.txt": ""})
    (source / "classes.txt").unlink()
    lines = refused("--from", "yolo", "--to", "coco", source)
    assert said in lines[1]
    assert lines[1].startswith(f"{source}/data.yaml")


def test_code_in_a_description_is_a_text(yolo, convert, tmp_path):
    command = f"touch {tmp_path}/ran"
    text = f"train: images\nnames: !!python/object/apply:os.system ['{command}']\n"
    source = yolo({"data.yaml": text, "labels/a.txt": ""})
    assert convert("--from", "yolo", "--to", "coco", source, tmp_path / "out")[0] == 0
    found = json.loads((tmp_path / "out/train.json").read_text())
    assert [category["name"] for category in found["categories"]] == [command]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", ["../secret.png", "/etc/passwd", "images/nothing.png"])
def test_lists_that_lead_elsewhere_are_refused(yolo, refused, line):
    text = "train: train.txt\nnames: [cat]\n"
    source = yolo({"data.yaml": text, "train.txt": f"images/a.png\n{line}\n", "labels/a.txt": ""})
    lines = refused("--from", "yolo", "--to", "coco", source)
    assert lines[1].startswith(f"{source}/train.txt:2: ")


def test_classes_are_needed(yolo, refused, convert, put, tmp_path):
    source = yolo({"labels/a.txt": ""})
    (source / "classes.txt").unlink()
    assert "has no class names" in refused("--from", "yolo", "--to", "coco", source)[1]
    names = put({"n.csv": "name,id\ncat,17\ndog,3\n"}) / "n.csv"
    out = tmp_path / "out"
    assert convert("--from", "yolo", "--to", "coco", source, out, "--classes", names)[0] == 0
    found = json.loads((out / "yolo.json").read_text())
    assert {c["name"]: c["id"] for c in found["categories"]} == {"cat": 17, "dog": 3}


def test_crowds_are_left_out_or_become_objects(put, draw, convert, tmp_path):
    draw("i", {"a.png": (100, 100)})
    file = (
        put(
            {
                "i/t.json": {
                    "images": [{"id": 4, "file_name": "a.png", "width": 100, "height": 100}],
                    "categories": [{"id": 9, "name": "cat"}],
                    "annotations": [
                        {
                            "id": 1,
                            "image_id": 4,
                            "category_id": 9,
                            "bbox": [0, 0, 10, 10],
                            "iscrowd": 1,
                        },
                        {"id": 2, "image_id": 4, "category_id": 9, "bbox": [0, 0, 0, 10]},
                        {"id": 3, "image_id": 4, "category_id": 9, "bbox": [90, 90, 500, 5]},
                        {"id": 4, "image_id": 4, "category_id": 9, "bbox": [200, 90, 50, 5]},
                    ],
                }
            }
        )
        / "i/t.json"
    )
    status, out, _ = convert("--from", "coco", "--to", "yolo", file, tmp_path / "a")
    said = " ".join(out.split())
    assert "1 x crowd region, left out" in said
    assert "1 x box without width or height, left out" in said
    assert "1 x box cut at the border of its image" in said
    assert "1 x box outside its image, left out" in said
    assert (tmp_path / "a/labels/t/a.txt").read_text() == "0 0.95 0.925 0.1 0.05\n"
    _, out, _ = convert("--from", "coco", "--to", "yolo", file, tmp_path / "b", "--crowd", "object")
    assert "1 x crowd region, written as an object" in out
    assert (tmp_path / "b/labels/t/a.txt").read_text().startswith("0 0.05 0.05 0.1 0.1\n")
