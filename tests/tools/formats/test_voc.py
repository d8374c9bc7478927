"""PASCAL VOC is read as its makers and as the tools write it; errors name the line."""

import json
import time

import pytest
from PIL import Image
from torchvision.datasets import VOCDetection

HEAD = "<annotation>\n<filename>{}</filename>\n<size><width>60</width><height>40</height></size>\n"
BOX = "<object><name>{}</name>\n<bndbox>{}</bndbox></object>\n"
EDGES = ["--corners", "edges"]


def corners(xmin=1, ymin=2, xmax=10, ymax=20):
    return f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin>\n<xmax>{xmax}</xmax><ymax>{ymax}</ymax>"


def xml(*objects, name="a.png", head=HEAD):
    return head.format(name) + "".join(objects) + "</annotation>\n"


def box(name="cat", **sides):
    return BOX.format(name, corners(**sides))


@pytest.fixture
def voc(draw, put, tmp_path):
    """A folder with images a and b; files are below Annotations."""
    draw("voc/JPEGImages", {"a.png": (60, 40), "b.png": (60, 40)})

    def write(files):
        put(files, "voc/Annotations")
        return tmp_path / "voc"

    return write


def test_pixels_and_edges_by_hand(voc, converted, written):
    source = voc({"a.xml": xml(box(), box("dog", xmin=60, ymin=40, xmax=60, ymax=40))})
    # From the first pixel to the tenth, from the second to the twentieth.
    assert "pixels counted from 1" in converted("voc", source)
    assert [b[2] for b in written("voc")[1]] == [[0, 1, 10, 19], [59, 39, 1, 1]]
    assert "1 x box without width or height" in converted("voc", source, *EDGES)
    assert [b[2] for b in written("voc")[1]] == [[1, 2, 9, 18], [60, 40, 0, 0]]


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-16", "utf-8"])
def test_names_in_other_encodings_and_with_an_ampersand(voc, converted, written, encoding):
    head = f"<?xml version='1.0' encoding='{encoding}'?>\n"
    content = head + xml(box("\u732b & co &lt;3"))
    converted("voc", voc({"a.xml": content.encode(encoding)}))
    assert [name for _, name, _ in written("voc")[1]] == ["\u732b & co <3"]


LAYOUTS = [("set/annotations", "set/images"), ("set/xml", "set/Images"), ("set", "set")]


@pytest.mark.parametrize(("xml_folder", "image_folder"), LAYOUTS)
def test_images_in_the_usual_folder_beside_are_found(
    draw, put, converted, written, tmp_path, xml_folder, image_folder
):
    draw(image_folder, {"a.png": (60, 40)})
    put({"a.xml": xml(box())}, xml_folder)
    for source in {"set", xml_folder}:
        converted("voc", tmp_path / source)
        split = source.rpartition("/")[2]
        assert written(split) == ([("a.png", 60, 40)], [("a.png", "cat", [0, 1, 10, 19])])


def test_a_folder_above_names_the_one_that_is_meant(draw, put, refused, tmp_path):
    for year in ("VOC2007", "VOC2012"):
        put({"a.xml": xml(box())}, f"kit/{year}/Annotations")
        draw(f"kit/{year}/JPEGImages", {"a.png": (60, 40)})
    line = refused("voc", tmp_path / "kit")[0]
    first, second = tmp_path / "kit/VOC2007", tmp_path / "kit/VOC2012"
    assert line.endswith(f"give {first}, or several: train={first} val={second}.")
    path = first / "Annotations/a.xml"
    assert f"{path} is a file; --from voc takes folders" in refused("voc", path)[0]


def test_xml_of_other_tools_is_named(voc, refused):
    line = refused("voc", voc({"a.xml": "<dataset><images/></dataset>"}))[1]
    assert "got <dataset>. That is the format of dlib's imglab" in line
    polygon = "<object><name>cat</name><polygon><pt><x>1</x><y>2</y></pt></polygon></object>"
    line = refused("voc", voc({"a.xml": xml(polygon)}))[1]
    assert "the object has no bndbox. It has a polygon, as the XML of LabelMe" in line


def test_images_without_an_xml_file_are_counted(voc, converted):
    assert "1 x image without an XML file, left out" in converted("voc", voc({"a.xml": xml(box())}))


def test_files_of_macos_are_left_out_and_counted(voc, put, converted):
    junk = b"\0\5\x16\7\xb0"
    source = voc({"a.xml": xml(box()), "._a.xml": junk})
    put({"ImageSets/Main/train.txt": "a", "ImageSets/Main/._train.txt": junk}, "voc")
    assert "2 x file of macOS beside another (._NAME), left out" in converted("voc", source)


def test_of_a_path_on_another_computer_the_name_is_taken(voc, converted, written):
    source = voc(
        {"1.xml": xml(box(), name=r"C:\Users\x\a.png"), "2.xml": xml(name="/home/x/b.png")}
    )
    assert "2 x filename with a path of another computer" in converted("voc", source)
    assert [name for name, *_ in written("voc")[0]] == ["a.png", "b.png"]


def test_the_numbers_are_those_that_torchvision_reads(draw, put, converted, written, tmp_path):
    objects = [
        box(),
        box("dog", xmin="3.5"),
        "<object><name>x</name><part><name>head</name>"
        f"<bndbox>{corners(30)}</bndbox></part><bndbox>{corners(5)}</bndbox></object>",
    ]
    root = "VOCdevkit/VOC2012"  # the folders of the challenge
    draw(f"{root}/JPEGImages", {"a.jpg": (60, 40)})
    put({"Annotations/a.xml": xml(*objects, name="a.jpg")}, root)
    put({"ImageSets/Main/train.txt": "a\n"}, root)
    image, target = VOCDetection(str(tmp_path), "2012", "train", download=False)[0]
    converted("voc", tmp_path / root)
    images, boxes = written("train")
    assert images == [("a.jpg", *image.size)]
    for (_, name, (x, y, w, h)), item in zip(boxes, target["annotation"]["object"], strict=True):
        assert name == item["name"]
        side = {key: float(text) for key, text in item["bndbox"].items()}
        assert [x + 1, y + 1, x + w, y + h] == [side[k] for k in ("xmin", "ymin", "xmax", "ymax")]


def test_boxes_at_zero_prove_edges(voc, refused, converted, written):
    source = voc({"a.xml": xml(box(), box(xmin=0)), "b.xml": xml(box(ymin=0), name="b.png")})
    lines = refused("voc", source)
    assert len(lines) == 2
    assert f"{source}/Annotations/a.xml:7: 2 boxes begin at 0" in lines[1]
    assert "--corners edges" in lines[1]
    converted("voc", source, *EDGES)
    assert written("voc")[1][1] == ("a.png", "cat", [0, 2, 10, 18])


LOTS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(9))
BAD = {
    "not closed": (xml(box())[:-20], ":6: is not well-formed XML"),
    "empty": ("", ":1: is not XML: it is empty."),
    "a pointer": (
        "version https://git-lfs.github.com/spec/v1",
        ":1: is not XML: it is a pointer of",
    ),
    "other root": ("<html/>", ":1: must begin with <annotation>, got <html>"),
    "CVAT's own": ("<annotations/>", "export as Pascal VOC or COCO"),
    "entity bomb": (f"<!DOCTYPE a [{LOTS}]>\n" + xml(box("&l8;")), ":1: has a document type"),
    "external entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n' + xml(box("&x;")),
        ":1: has a document type",
    ),
    "unknown entity": (xml(box("&x;")), ":4: is not well-formed XML: undefined entity"),
    "climbs": (xml(name="../../b.png"), ":2: filename must be a path below"),
    "half a size": (xml(box()).replace("<width>60", "<width>"), ":3: width and height must be"),
    "nan": (xml(box(xmax="nan")), ":6: xmax must be a finite number, got 'nan'"),
    "a side missing": (
        xml(box()).replace("<xmin>1</xmin>", ""),
        ":5: xmin must be a finite number, which is missing",
    ),
    "no box": (xml("<object><name>a</name></object>"), ":4: the object has no bndbox"),
    "rotated": (xml("<object><name>a</name><robndbox/></object>"), "A rotated box (robndbox) is"),
    "no class": (xml(box("")), ":4: the class name '' is empty"),
    "wrong encoding": (
        b"<?xml version='1.0' encoding='utf-8'?>\n<annotation>" + b"\xff",
        ":2: is not text in utf-8; save it as UTF-8",
    ),
    "encoding that is not named": (
        xml(box("\u72d7")).encode("gbk"),
        ":4: is not text in utf-8; save it as UTF-8, or name its encoding in the first line, such",
    ),
    "encoding that nobody knows": (
        b"<?xml version='1.0' encoding='klingon'?><a/>",
        ":1: is not text",
    ),
    "image missing": (xml(box(), name="c.png"), ":2: no image "),
    "image of another file": (xml(box(), name="b.png"), None),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_file_is_refused_with_its_line(voc, refused, what):
    content, message = BAD[what]
    source = voc({"c.xml": content, "b.xml": xml(box(), name="b.png")})
    message = message or f"c.xml: is of the image b.png, as {source}/Annotations/b.xml is."
    start = time.monotonic()
    lines = refused("voc", source)
    assert time.monotonic() - start < 5
    assert lines[0] == "mistakes: 1; nothing was written"
    assert lines[1].startswith(str(source / "Annotations/c.xml"))
    assert message in lines[1]


def test_all_errors_are_reported_at_once(voc, put, refused):
    names = put({"names.txt": "dog\ncat\n"})
    source = voc({"a.xml": xml(box(xmin=30), box("Dog"), box()), "b.xml": "<annotation>"})
    lines = refused("voc", source, "--classes", names)
    assert lines[0] == "mistakes: 3; nothing was written"
    assert "a.xml:5: xmax and ymax must not be below" in lines[1]
    assert "a.xml:7: the class 'Dog' is not in the list" in lines[2]
    assert len(lines) == 4
    lines = refused("voc", source, "--classes", names, "--show", "1")
    assert lines[2:] == ["... and 2 more (--show 3 shows them)"]


def test_sizes_that_are_missing_come_from_the_image(voc, refused, converted, written):
    head = "<annotation>\n<filename>{}</filename>"
    zeros = xml(box(), name="b.png").replace("60<", "0<").replace("40<", "0<")
    source = voc({"a.xml": xml(box(), head=head), "b.xml": zeros})
    line = refused("voc", source, "--images", "ignore")[1]
    assert "a.xml:1: has no width and height; leave out --images ignore" in line
    # As it is displayed: turned by its EXIF orientation.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(source / "JPEGImages/a.png", exif=exif)
    assert "2 x size missing" in converted("voc", source)
    assert written("voc")[0] == [("a.png", 40, 60), ("b.png", 60, 40)]
    (source / "JPEGImages/a.png").write_bytes(b"no image")
    line = refused("voc", source)[1]
    assert "a.xml:1: cannot read image" in line


def test_the_name_of_the_xml_file_finds_an_image_that_filename_does_not(
    voc, draw, refused, converted, written
):
    # Label Studio has left the suffix away; LabelImg keeps the name before a renaming.
    source = voc({"a.xml": xml(box(), name="a"), "b.xml": xml(box(), name="IMG_1.jpg")})
    assert "2 x image found by the name of the XML file" in converted("voc", source)
    assert [image[0] for image in written("voc")[0]] == ["a.png", "b.png"]
    draw("voc/JPEGImages", {"b.JPG": (60, 40)})
    assert "; there are b.JPG, b.png. Give the folder" in refused("voc", source)[1]


def test_folders_of_splits_are_read(draw, put, converted, written, tmp_path):
    for split in ("train", "valid"):
        draw(f"rf/{split}", {"a.png": (60, 40)})
        put({f"rf/{split}/a.xml": xml(box(xmin=0))})
    converted("voc", tmp_path / "rf", *EDGES)
    assert written("train") == written("val") != ([], [])


def test_lists_of_images_are_the_splits(voc, put, refused, converted, written):
    source = voc({"a.xml": xml(box()), "b.xml": xml(name="b.png")})
    main = "voc/ImageSets/Main"
    put({f"{main}/train.txt": "a\n", f"{main}/val.txt": "c\n../x\n"})
    lines = refused("voc", source)
    assert "val.txt:1: there is no " in lines[1]
    assert "val.txt:2: must name a file of " in lines[2]
    put({f"{main}/val.txt": "b\nb\n"})
    assert "val.txt: b stands twice" in refused("voc", source)[1]
    # Lists of one class have marks.
    put({f"{main}/cat_train.txt": "a  1\nphoto 12 -1\n", f"{main}/trainval.txt": "a\nb\n"})
    put({f"{main}/val.txt": "\ufeffb\r\n"})
    printed = converted("voc", source)
    assert "voc: train: 1 image (0 without boxes), 1 box" in printed
    assert "voc: val: 1 image (1 without boxes), 0 boxes" in printed
    assert "trainval" not in printed
    put({f"{main}/val.txt": ""})
    assert "1 x XML file in no list of ImageSets/Main, left out" in converted("voc", source)


def test_marks_of_objects_are_kept_or_reported(voc, converted, tmp_path):
    hard = box().replace("<name>", "<difficult>1</difficult><truncated>1</truncated><name>")
    crowd = hard.replace("<name>", "<iscrowd>1</iscrowd><name>")
    printed = converted("voc", voc({"a.xml": xml(hard, box(), crowd)}))
    assert "1 x object marked as difficult, taken as any other" in printed
    assert "2 x value of truncated, not kept" in printed
    found = json.loads((tmp_path / "out/voc.json").read_text())
    marks = [(a.get("difficult"), a["iscrowd"]) for a in found["annotations"]]
    assert marks == [(1, 0), (None, 0), (None, 1)]
