"""CSV tables are read by the titles of their columns; errors name the line."""

import json

import pytest

TENSORFLOW = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
RETINANET = "path,x1,y1,x2,y2,class\n"
HEADLESS = "a.png,1,2,11,22,cat\nb.png,,,,,\n"


@pytest.fixture
def table(draw, put):
    """Images a and b beside a table."""
    draw("set", {"a.png": (60, 40), "b.png": (30, 20)})
    return lambda content, name="train.csv": put({name: content}, "set")


TABLES = {
    "tensorflow": TENSORFLOW + "a.png,60,40,cat,1,2,11,22\nb.png,30,20,,,,,\n",
    "retinanet": RETINANET + HEADLESS,
    "columns in another order": "x1,class,y1,Image,x2,y2\n1,cat,2,a.png,11,22\n,,,b.png,,\n",
    "semicolons, quotes, a mark": '\ufeffpath;x1;y1;x2;y2;"label"\r\na.png;1;2;11;22;"cat"\r\n'
    "b.png;;;;;\r\n",
    "tabs": (RETINANET + HEADLESS).replace(",", "\t"),
    "spaces after commas": (RETINANET + HEADLESS).replace(",", ", "),
    "UTF-16": (RETINANET + HEADLESS).encode("utf-16"),
    "more columns": "id,path,x1,y1,x2,y2,class\n1,a.png,1.0,2.00,1.1e1,22,cat\n2,b.png,,,,,\n",
    "sizes of 0": TENSORFLOW + "a.png,0,0,cat,1,2,11,22\nb.png,0,0,,,,,\n",
}


# A corner and two sides, one of them beside corners that are not complete.
SIDED = [
    "filename,x,y,width,height,class\na.png,1,2,10,20,cat\nb.png,,,,,\n",
    "image_name,label,bbox_x,bbox_y,bbox_width,bbox_height,image_width,image_height\n"
    "a.png,cat,1,2,10,20,60,40\nb.png,,,,,,30,20\n",
    "path,x,y,w,h,x2,class\na.png,1,2,10,20,11,cat\nb.png,,,,,,\n",
]


@pytest.mark.parametrize("text", SIDED)
def test_a_box_may_be_a_corner_and_its_sides(table, converted, written, text):
    converted("csv", table(text))
    images, boxes = written("train")
    assert images == [("a.png", 60, 40), ("b.png", 30, 20)]
    assert boxes == [("a.png", "cat", [1, 2, 10, 20])]


def test_a_table_of_another_kind_is_told_what_to_add(table, refused):
    head = "filename,file_size,region_shape_attributes,region_attributes\n"
    assert "is a table of VIA; --from via reads it." in refused("csv", table(head))[1]
    headless = table("cat,1,2,10,20,a.png,60,40\n")
    add = "without a header? Add --columns with titles for its 8 columns"
    assert add in refused("csv", headless)[1]
    line = refused("csv", table("a.png 1,2,11,22,0 3,4,13,24,1\n"))[1]
    assert "train.csv:1: has all boxes of an image in one row, as keras-yolo3" in line
    shares = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\na,x,/m/0,1,0,1,0,1\n"
    assert "is a table of Open Images, with boxes in shares" in refused("csv", table(shares))[1]
    line = refused("csv", table(",images\n0,images/a.png\n"))[1]
    assert "header" not in line
    assert "title all of them with --columns" in line


def test_columns_replace_a_header(table, refused, converted, written):
    path = table("filename,cell_type,xmin,xmax,ymin,ymax\na.png,cat,1,11,2,22\n")
    assert "Rename the columns, or title all of them with --columns" in refused("csv", path)[1]
    converted("csv", path, "--columns", "filename,class,xmin,xmax,ymin,ymax")
    assert written("train")[1] == [("a.png", "cat", [1, 2, 10, 20])]


@pytest.mark.parametrize("start", ["/content/photos/", "C:\\x\\", "other/"])
def test_names_with_the_folders_of_another_computer(table, converted, written, start):
    printed = converted(
        "csv", table(RETINANET + f"{start}a.png,1,2,11,22,cat\n{start}b.png,,,,,\n")
    )
    assert "2 x image found by the end of its path in the file" in printed
    images, boxes = written("train")
    assert images == [("a.png", 60, 40), ("b.png", 30, 20)]
    assert boxes == [("a.png", "cat", [1, 2, 10, 20])]


def test_a_class_that_is_not_listed_is_refused_with_the_list(table, put, refused):
    put({"classes.csv": "id,name\n1,dog\n"}, "set")
    line = refused("csv", table(RETINANET + "a.png,1,2,11,22,cat\n"))[1]
    assert "the class 'cat' is not in the list of classes, that of --classes or else " in line
    assert "classes.csv beside the annotations ('dog'); add it." in line


@pytest.mark.parametrize("what", list(TABLES))
def test_tables_by_hand(table, converted, written, what):
    printed = converted("csv", table(TABLES[what]))
    images, boxes = written("train")
    assert images == [("a.png", 60, 40), ("b.png", 30, 20)]
    assert boxes == [("a.png", "cat", [1, 2, 10, 20])]
    assert ("columns not read: id" in printed) == (what == "more columns")


def test_pixels_count_from_1_with_the_last_inside(table, converted, written):
    converted("csv", table(TABLES["tensorflow"]), "--corners", "pixels")
    assert written("train")[1] == [("a.png", "cat", [0, 1, 11, 21])]


def test_corners_are_subtracted_as_decimals(table, converted, written):
    # In float64 12.05 - 1.25 is 10.8, but 0.3 - 0.1 is 0.19999999999999998.
    converted("csv", table(RETINANET + "a.png,0.1,1.25,0.3,12.05,cat\n"))
    assert written("train")[1] == [("a.png", "cat", [0.1, 1.25, 0.2, 10.8])]


def test_crowd_regions_stay_crowd_regions(table, converted, tmp_path):
    converted("csv", table("iscrowd," + RETINANET + "1,a.png,1,2,11,22,cat\n0,a.png,1,2,3,4,cat\n"))
    found = json.loads((tmp_path / "out/train.json").read_text())
    assert [a["iscrowd"] for a in found["annotations"]] == [1, 0]


def test_a_table_without_a_header_needs_its_columns(table, refused, converted, written):
    path = table(HEADLESS)
    line = refused("csv", path)[1]
    assert "train.csv:1: has no column filename, class" in line
    assert "Add --columns path,x1,y1,x2,y2,class" in line
    converted("csv", path, "--columns", "path,x1,y1,x2,y2,class")
    assert written("train")[1] == [("a.png", "cat", [1, 2, 10, 20])]


BAD = {
    "empty": ("", ": is empty"),
    "blank cells": (",,,\n", ": has only empty cells"),
    "header alone": (TENSORFLOW, ": has no row"),
    "no class": ("path,x1,y1,x2,y2\n", ":1: has no column class"),
    "a column twice": ("path,x1,y1,x2,y2,class,label\n", ":1: the columns 'class' and 'label'"),
    "no number": (RETINANET + "a.png,1,2,x,22,cat\n", ":2: xmax must be a finite number, got 'x'"),
    "nan": (RETINANET + "a.png,nan,2,3,22,cat\n", ":2: xmin must be a finite number, got 'nan'"),
    "too large": (RETINANET + "a.png,1,2,1e101,9,cat\n", "finite number, got '1e101'"),
    "underscore": (RETINANET + "a.png,1,2,1_0,9,cat\n", "finite number, got '1_0'"),
    "other digits": (RETINANET + "a.png,1,2,\u0663,9,cat\n", "finite number, got '\\u0663'"),
    "a gap": (RETINANET + "a.png,,2,3,22,cat\n", ":2: xmin must be a finite number, got ''"),
    "box without class": (RETINANET + "a.png,1,2,3,22,\n", ":2: the class name '' is empty"),
    "turned": (RETINANET + "a.png,9,2,3,22,cat\n", ":2: xmax and ymax must not be below"),
    "short row": (RETINANET + "a.png,9,2\n", ":2: has 3 columns, the header 6"),
    "no image": (RETINANET + "a.png,1,2,3,22,cat\nc.png,,,,,\n", ":3: no image "),
    "climbs": (RETINANET + "a.png,,,,,\n../a.png,,,,,\n", ":3: 'a.png' and '../a.png' would both"),
    "no name": (RETINANET + "a.png,,,,,\n,1,2,3,4,cat\n", ":3: the image name '' is empty"),
    "empty twice": (RETINANET + "a.png,,,,,\na.png,,,,,\n", ":3: says that a.png has no box"),
    "empty, then a box": (RETINANET + "a.png,,,,,\na.png,1,2,3,4,cat\n", "which has none by"),
    "size in words": (TENSORFLOW + "a.png,big,40,,,,,\n", ":2: width and height must be whole"),
    "two sizes": (
        TENSORFLOW + "a.png,60,40,cat,1,2,3,4\na.png,60,41,cat,1,2,3,4\n",
        ":3: a.png is 60 x 41 here, 60 x 40 above",
    ),
    "line break in a class": (
        RETINANET + 'a.png,1,2,3,4,"a\nb"\n',
        ":3: the class name 'a\\nb' has a",
    ),
    "quote not closed": (RETINANET + 'a.png,1,2,3,4,"cat\n', "is not CSV"),
    "encoding": (RETINANET.encode() + b"a.png,1,2,3,4,\xe9t\xe9\n", ":2: is not text in UTF-8"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_table_is_refused_with_its_line(table, refused, what):
    content, message = BAD[what]
    path = table(content)
    lines = refused("csv", path)
    assert lines[0] == "mistakes: 1; nothing was written"
    assert lines[1].startswith(str(path))
    assert message in lines[1]


def test_no_size_and_no_image_is_refused(table, refused):
    line = refused("csv", table(TABLES["retinanet"]), "--images", "ignore")[1]
    assert "train.csv:2: has no width and height; leave out --images ignore" in line


def test_classes_of_two_tables_are_one_list(table, converted, tmp_path):
    train = table(RETINANET + "a.png,1,2,11,22,dog\n")
    converted("csv", train, table(RETINANET + "b.png,1,2,11,12,cat\n", "valid.csv"))
    for split in ("train", "val"):
        found = json.loads((tmp_path / f"out/{split}.json").read_text())
        assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


LISTS = {
    "as keras-retinanet writes it": ("classes.csv", "dog,0\ncat,1\n", {"dog": 0, "cat": 1}),
    "with a header": ("classes.csv", "id,name\n7,cat\n-3,dog\n", {"cat": 7, "dog": -3}),
    "names alone": ("names.txt", "dog\nDog\n\ncat\n", {"dog": 1, "Dog": 2, "cat": 3}),
}


@pytest.mark.parametrize("what", list(LISTS))
def test_a_list_of_classes_gives_the_ids(table, put, converted, tmp_path, what):
    name, text, ids = LISTS[what]
    file = put({name: text}, "set")
    # classes.csv is found beside the table.
    converted("csv", table(TABLES["retinanet"]), *["--classes", file] * (name == "names.txt"))
    found = json.loads((tmp_path / "out/train.json").read_text())
    assert {c["name"]: c["id"] for c in found["categories"]} == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\n1,cat\n1,dog\n", "the class id 1 stands twice"),
        ("id,name\n1,cat\n2,cat\n", "the class name 'cat' stands twice"),
        ("id,name\none,cat\n", "classes.csv:2: must be a class"),
        ("id,name\n" + "9" * 5000 + ",cat\n", "classes.csv:2: must be a class"),
        ("id,name\n1,dog\n", "train.csv:2: the class 'cat' is not in the list"),
        ("", "lists no class"),
    ],
)
def test_bad_lists_of_classes_are_refused(table, put, refused, text, message):
    put({"classes.csv": text}, "set")
    assert message in refused("csv", table(TABLES["retinanet"]))[1]


@pytest.mark.parametrize("options", [[], ["--corners", "pixels"]])
def test_a_corner_and_sides_by_name_or_by_columns(draw, put, converted, written, options):
    folder = draw("table", {"a.png": (60, 40)})
    first = 1 if options else 0
    put(
        {"head.csv": "path,bbox_x,bbox_y,bbox_width,bbox_height,class\na.png,5,6,10,20,cat"},
        "table",
    )
    put({"none.csv": "a.png,5,6,10,20,cat"}, "table")
    put({"mixed.csv": "path,x1,y1,w,h,class\na.png,5,6,10,20,cat"}, "table")
    converted("csv", folder / "mixed.csv", *options)
    assert written("mixed")[1] == [("a.png", "cat", [5 - first, 6 - first, 10, 20])]
    converted("csv", folder / "head.csv", *options)
    assert written("head")[1] == [("a.png", "cat", [5 - first, 6 - first, 10, 20])]
    converted("csv", folder / "none.csv", "--columns", "path,x,y,w,h,class", *options)
    assert written("none")[1] == [("a.png", "cat", [5 - first, 6 - first, 10, 20])]
