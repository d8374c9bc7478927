"""CSV tables are read by the titles of their columns; what is wrong is told by line."""

import json

import pytest

TENSORFLOW = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
RETINANET = "path,x1,y1,x2,y2,class\n"


@pytest.fixture
def table(draw, put, tmp_path):
    """Images a and b beside a table."""
    draw("set", {"a.png": (60, 40), "b.png": (30, 20)})

    def write(content, name="train.csv"):
        return put({f"set/{name}": content}) / f"set/{name}"

    return write


def read(path):
    found = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in found["images"]}
    classes = {c["id"]: c["name"] for c in found["categories"]}
    return [(i["file_name"], i["width"], i["height"]) for i in found["images"]], [
        (names[a["image_id"]], classes[a["category_id"]], a["bbox"]) for a in found["annotations"]
    ]


TABLES = {
    "tensorflow": TENSORFLOW + "a.png,60,40,cat,1,2,11,22\nb.png,30,20,,,,,\n",
    "retinanet": RETINANET + "a.png,1,2,11,22,cat\nb.png,,,,,\n",
    "columns in another order": "x1,class,y1,Image,x2,y2\n1,cat,2,a.png,11,22\n,,,b.png,,\n",
    "semicolons, quotes, a mark": '\ufeffpath;x1;y1;x2;y2;"label"\r\na.png;1;2;11;22;"cat"\r\n'
    "b.png;;;;;\r\n",
    "tabs": RETINANET.replace(",", "\t") + "a.png\t1\t2\t11\t22\tcat\nb.png\t\t\t\t\t\n",
    "spaces after commas": "path, x1, y1, x2, y2, class\na.png, 1, 2, 11, 22, cat\n"
    "b.png, , , , , \n",
    "UTF-16": (RETINANET + "a.png,1,2,11,22,cat\nb.png,,,,,\n").encode("utf-16"),
    "more columns": "id,path,x1,y1,x2,y2,class\n1,a.png,1.0,2.00,1.1e1,22,cat\n2,b.png,,,,,\n",
}


@pytest.mark.parametrize("what", list(TABLES))
def test_tables_by_hand(table, convert, tmp_path, what):
    out = tmp_path / "out"
    status, said, _ = convert("--from", "csv", "--to", "coco", table(TABLES[what]), out)
    assert status == 0
    images, boxes = read(out / "train.json")
    assert images == [("a.png", 60, 40), ("b.png", 30, 20)]
    assert boxes == [("a.png", "cat", [1, 2, 10, 20])]
    assert ("columns not read: id" in said) == (what == "more columns")


def test_pixels_when_told(table, convert, tmp_path):
    path = table(TABLES["tensorflow"])
    convert("--from", "csv", "--to", "coco", path, tmp_path / "out", "--corners", "pixels")
    assert read(tmp_path / "out/train.json")[1] == [("a.png", "cat", [0, 1, 11, 21])]


def test_a_table_without_a_header(table, refused, convert, tmp_path):
    path = table("a.png,1,2,11,22,cat\nb.png,,,,,\n")
    lines = refused("--from", "csv", "--to", "coco", path)
    assert "train.csv:1: has no column filename, class" in lines[1]
    assert "Add --columns path,x1,y1,x2,y2,class" in lines[1]
    columns = ["--columns", "path,x1,y1,x2,y2,class"]
    assert convert("--from", "csv", "--to", "coco", path, tmp_path / "out", *columns)[0] == 0
    assert read(tmp_path / "out/train.json")[1] == [("a.png", "cat", [1, 2, 10, 20])]


BAD = {
    "empty": ("", ": is empty"),
    "header alone": (TENSORFLOW, ": has no row"),
    "no class": ("path,x1,y1,x2,y2\n", ":1: has no column class"),
    "a column twice": (
        "path,x1,y1,x2,y2,class,label\n",
        ":1: the columns 'class' and 'label'",
    ),
    "no number": (RETINANET + "a.png,1,2,x,22,cat\n", ":2: xmax must be a finite number, got 'x'"),
    "nan": (RETINANET + "a.png,nan,2,3,22,cat\n", ":2: xmin must be a finite number, got 'nan'"),
    "a gap": (RETINANET + "a.png,,2,3,22,cat\n", ":2: xmin must be a finite number, got ''"),
    "box without class": (RETINANET + "a.png,1,2,3,22,\n", ":2: the class '' is empty"),
    "turned": (RETINANET + "a.png,9,2,3,22,cat\n", ":2: xmax and ymax must not be below"),
    "short row": (RETINANET + "a.png,9,2\n", ":2: has 3 columns, the header 6"),
    "long row": (RETINANET + "a.png,1,2,3,4,a,cat\n", ":2: has 7 columns"),
    "no image": (RETINANET + "a.png,1,2,3,22,cat\nc.png,,,,,\n", ":3: no image "),
    "climbs": (RETINANET + "a.png,,,,,\n../a.png,,,,,\n", ":3: the image name '../a.png'"),
    "absolute": (RETINANET + "a.png,,,,,\n/etc/passwd,,,,,\n", ":3: the image name '/etc/passwd'"),
    "no name": (RETINANET + "a.png,,,,,\n,1,2,3,4,cat\n", ":3: the image name '' is empty"),
    "empty twice": (RETINANET + "a.png,,,,,\na.png,,,,,\n", ":3: says that a.png has no box"),
    "empty, then a box": (RETINANET + "a.png,,,,,\na.png,1,2,3,4,cat\n", "which has none by"),
    "size in words": (TENSORFLOW + "a.png,big,40,,,,,\n", ":2: width and height must be whole"),
    "two sizes": (
        TENSORFLOW + "a.png,60,40,cat,1,2,3,4\na.png,60,41,cat,1,2,3,4\n",
        ":3: a.png is",
    ),
    "line break in a class": (RETINANET + 'a.png,1,2,3,4,"a\nb"\n', ":3: the class 'a\\nb' has a"),
    "quote not closed": (RETINANET + 'a.png,1,2,3,4,"cat\n', "is not CSV"),
    "encoding": (RETINANET.encode() + b"a.png,1,2,3,4,\xe9t\xe9\n", ":2: is not text in UTF-8"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00", "is not text in UTF-8"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_table_is_told_with_its_line(table, refused, what):
    content, said = BAD[what]
    path = table(content)
    lines = refused("--from", "csv", "--to", "coco", path, "--image-folder", path.parent)
    assert lines[0] == "mistakes: 1; nothing was written"
    assert lines[1].startswith(str(path))
    assert said in lines[1]


def test_classes_of_two_tables_are_one_list(table, convert, tmp_path):
    train = table(RETINANET + "a.png,1,2,11,22,dog\n")
    val = table(RETINANET + "b.png,1,2,11,12,cat\n", "valid.csv")
    assert convert("--from", "csv", "--to", "coco", train, val, tmp_path / "out")[0] == 0
    lists = [
        json.loads((tmp_path / f"out/{split}.json").read_text())["categories"]
        for split in ("train", "val")
    ]
    assert lists[0] == lists[1] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_a_list_of_classes_as_keras_retinanet_writes_it(table, put, convert, tmp_path):
    put({"set/classes.csv": "dog,0\ncat,1\n"})
    path = table(TABLES["retinanet"])
    assert convert("--from", "csv", "--to", "coco", path, tmp_path / "out")[0] == 0
    found = json.loads((tmp_path / "out/train.json").read_text())
    assert {c["name"]: c["id"] for c in found["categories"]} == {"dog": 0, "cat": 1}


def test_bad_lists_of_classes(table, put, refused):
    path = table(TABLES["retinanet"])
    for text, said in (
        ("id,name\n1,cat\n1,dog\n", "the class id 1 stands twice"),
        ("id,name\none,cat\n", "classes.csv:2: must be a class"),
        ("id,name\n" + "9" * 5000 + ",cat\n", "classes.csv:2: must be a class"),
        ("id,name\n1,dog\n", "train.csv:2: the class 'cat' is not in the list"),
    ):
        put({"set/classes.csv": text})
        assert said in refused("--from", "csv", "--to", "coco", path)[1]
