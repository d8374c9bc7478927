"""PASCAL VOC is read as its makers and as the tools write it; what is wrong is told by line."""

import json
import time

import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCDetection

from retinanet.tools.formats.voc import read_voc

HEAD = "<annotation>\n<filename>{}</filename>\n<size><width>60</width><height>40</height></size>\n"
BOX = "<object><name>{}</name>\n<bndbox>{}</bndbox></object>\n"


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
        put({f"voc/Annotations/{name}": content for name, content in files.items()})
        return tmp_path / "voc"

    return write


def test_pixels_and_edges_by_hand(voc):
    source = voc({"a.xml": xml(box(), box("dog", xmin=60, ymin=40, xmax=60, ymax=40))})
    pixels = read_voc(source).splits[0].pictures[0]
    # From the first pixel to the tenth, from the second to the twentieth.
    assert [b.xywh for b in pixels.boxes] == [(0, 1, 10, 19), (59, 39, 1, 1)]
    edges = read_voc(source, corners="edges").splits[0].pictures[0]
    assert [b.xywh for b in edges.boxes] == [(1, 2, 9, 18), (60, 40, 0, 0)]


def test_the_numbers_are_those_that_torchvision_reads(voc, draw, put, tmp_path):
    # Its reader wants the folders of the challenge.
    objects = [
        box(),
        box("dog", xmin="3.5"),
        "<object><name>x</name><part><name>head</name>"
        f"<bndbox>{corners(30)}</bndbox></part><bndbox>{corners(5)}</bndbox></object>",
    ]
    root = "VOCdevkit/VOC2012"
    draw(f"{root}/JPEGImages", {"a.jpg": (60, 40)})
    put(
        {
            f"{root}/Annotations/a.xml": xml(*objects, name="a.jpg"),
            f"{root}/ImageSets/Main/train.txt": "a\n",
        }
    )
    image, target = VOCDetection(str(tmp_path), "2012", "train", download=False)[0]
    found = read_voc(tmp_path / root)
    picture = found.splits[0].pictures[0]
    assert (picture.width, picture.height) == image.size
    theirs = target["annotation"]["object"]
    assert [b.name for b in picture.boxes] == [o["name"] for o in theirs]
    for mine, their in zip(picture.boxes, theirs, strict=True):
        side = {key: float(text) for key, text in their["bndbox"].items()}
        x, y, w, h = mine.xywh
        assert torch.tensor([x + 1, y + 1, x + w, y + h]).tolist() == [
            side["xmin"],
            side["ymin"],
            side["xmax"],
            side["ymax"],
        ]


def test_boxes_at_zero_prove_edges(voc, refused, convert, tmp_path):
    source = voc({"a.xml": xml(box(), box(xmin=0)), "b.xml": xml(box(ymin=0), name="b.png")})
    lines = refused("--from", "voc", "--to", "coco", source)
    assert len(lines) == 2
    assert f"{source}/Annotations/a.xml:7: 2 boxes begin at 0" in lines[1]
    assert "--corners edges" in lines[1]
    out = tmp_path / "out"
    assert convert("--from", "voc", "--to", "coco", source, out, "--corners", "edges")[0] == 0
    found = json.loads((out / "voc.json").read_text())
    assert found["annotations"][1]["bbox"] == [0, 2, 10, 18]


def test_what_was_chosen_by_default_is_said(voc, convert, tmp_path):
    source = voc({"a.xml": xml(box())})
    _, out, _ = convert("--from", "voc", "--to", "coco", source, tmp_path / "out")
    assert "pixels counted from 1" in " ".join(out.split())


def test_files_written_here_say_what_their_corners_are(voc, convert, refused, tmp_path):
    source = voc({"a.xml": xml(box())})
    edges = ["--corners", "edges"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert convert("--from", "voc", "--to", "voc", source, first, *edges)[0] == 0
    # Without the option, and all the same not a pixel off.
    assert convert("--from", "voc", "--to", "coco", first, second)[0] == 0
    found = json.loads((second / "voc.json").read_text())
    assert found["annotations"][0]["bbox"] == [1, 2, 9, 18]
    lines = refused("--from", "voc", "--to", "coco", first, "--corners", "pixels")
    assert "says that its corners are edges" in lines[1]


LOTS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(9))
BAD = {
    "not closed": (xml(box())[:-20], ":6: is not well-formed XML"),
    "empty": ("", ":1: is not well-formed XML: no element found"),
    "no XML": ("hello", ":1: is not well-formed XML"),
    "other root": ("<html/>", ":1: must begin with <annotation>, got <html>"),
    "CVAT's own": ("<annotations/>", "export as Pascal VOC or COCO"),
    "entity bomb": (f"<!DOCTYPE a [{LOTS}]>\n" + xml(box("&l8;")), ":1: has a document type"),
    "external entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n' + xml(box("&x;")),
        ":1: has a document type",
    ),
    "external DTD": ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">\n' + xml(), "document type"),
    "unknown entity": (xml(box("&x;")), ":4: is not well-formed XML: undefined entity"),
    "climbs": (xml(name="../../b.png"), ":2: filename must be a path below"),
    "absolute": (xml(name="/etc/passwd"), ":2: filename must be a path below"),
    "Windows's": (xml(name="C:\\a.png"), ":2: filename must be a path below"),
    "size in words": (
        xml(box()).replace("<width>60", "<width>sixty"),
        ":3: size must be whole numbers",
    ),
    "size below 0": (xml(box()).replace("<width>60", "<width>-60"), ":3: size must be whole"),
    "nan": (xml(box(xmax="nan")), ":6: xmax must be a finite number, got 'nan'"),
    "no number": (xml(box(ymax="")), ":6: ymax must be a finite number, got ''"),
    "a side missing": (
        xml(box()).replace("<xmin>1</xmin>", ""),
        ":5: xmin must be a finite number, which is miss",
    ),
    "turned around": (xml(box(xmin=30)), ":5: xmax and ymax must not be below"),
    "no box": (xml("<object><name>a</name></object>"), ":4: the object has no bndbox"),
    "rotated": (
        xml("<object><name>a</name><robndbox/></object>"),
        "A rotated box (robndbox) is no box",
    ),
    "no class": (xml(box("")), ":4: the class name '' is empty"),
    "class of two lines": (xml(box("a\nb")), ":4: the class name 'a\\nb' has a line break"),
    "wrong encoding": (
        b"<?xml version='1.0' encoding='utf-8'?><annotation>" + b"\xff",
        ":1: is not well-formed XML: not well-formed (invalid token)",
    ),
    "encoding of two bytes": (
        b"<?xml version='1.0' encoding='gbk'?>" + xml(box("\u732b")).encode("gbk"),
        "save the file as UTF-8",
    ),
}


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_file_is_told_with_its_line(voc, refused, what):
    content, said = BAD[what]
    source = voc({"a.xml": content, "b.xml": xml(box(), name="b.png")})
    start = time.monotonic()
    lines = refused("--from", "voc", "--to", "coco", source)
    assert time.monotonic() - start < 5
    assert lines[0] == "mistakes: 1; nothing was written"
    assert lines[1].startswith(str(source / "Annotations/a.xml"))
    assert said in lines[1]


def test_all_mistakes_are_told_at_once(voc, refused):
    source = voc({"a.xml": xml(box(xmin=30), box(""), box()), "b.xml": "<annotation>"})
    lines = refused("--from", "voc", "--to", "coco", source)
    assert lines[0] == "mistakes: 3; nothing was written"
    assert len(lines) == 4
    lines = refused("--from", "voc", "--to", "coco", source, "--show", "1")
    assert lines[2] == "... and 2 more (--show 3 shows them)"


def test_an_image_is_missing_or_has_two_files(voc, refused):
    source = voc({"a.xml": xml(box()), "c.xml": xml(box(), name="c.png")})
    assert "c.xml:2: no image " in refused("--from", "voc", "--to", "coco", source)[1]
    source = voc({"c.xml": xml(box())})
    assert (
        "c.xml: is of the image a.png, as " in refused("--from", "voc", "--to", "coco", source)[1]
    )


def test_sizes_that_are_missing_come_from_the_image(voc, draw, convert, tmp_path):
    head = "<annotation><filename>{}</filename>"
    source = voc(
        {
            "a.xml": xml(box(), head=head),
            "b.xml": xml(box(), name="b.png").replace("60<", "0<").replace("40<", "0<"),
        }
    )
    # As it is displayed: turned by its EXIF orientation.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(source / "JPEGImages/a.png", exif=exif)
    status, out, _ = convert("--from", "voc", "--to", "coco", source, tmp_path / "out")
    assert status == 0
    assert "2 x size missing" in out
    images = json.loads((tmp_path / "out/voc.json").read_text())["images"]
    assert [(i["width"], i["height"]) for i in images] == [(40, 60), (60, 40)]


def test_no_size_and_no_image_is_refused(voc, refused):
    source = voc({"a.xml": xml(box(), head="<annotation>\n<filename>{}</filename>")})
    lines = refused("--from", "voc", "--to", "coco", source, "--images", "ignore")
    assert "a.xml:1: has no size with width and height" in lines[1]


def test_the_name_of_the_xml_file_finds_an_image_that_filename_does_not(voc, convert, tmp_path):
    # Label Studio has left the suffix away; LabelImg keeps the name before a renaming.
    source = voc({"a.xml": xml(box(), name="a"), "b.xml": xml(box(), name="IMG_1.jpg")})
    status, out, _ = convert("--from", "voc", "--to", "coco", source, tmp_path / "out")
    assert status == 0
    assert "2 x image found by the name of the XML file" in out
    images = json.loads((tmp_path / "out/voc.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", "b.png"]


def test_the_folders_of_roboflow(draw, put, convert, tmp_path):
    for split in ("train", "valid"):
        draw(f"rf/{split}", {"a.png": (60, 40)})
        put({f"rf/{split}/a.xml": xml(box(xmin=0))})
    source, out = tmp_path / "rf", tmp_path / "out"
    assert convert("--from", "voc", "--to", "coco", source, out, "--corners", "edges")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["train.json", "val.json"]


def test_lists_of_images(voc, put, refused, convert, tmp_path):
    source = voc({"a.xml": xml(box()), "b.xml": xml(name="b.png")})
    main = "voc/ImageSets/Main"
    put({f"{main}/train.txt": "a\n", f"{main}/val.txt": "c\n../x\n"})
    lines = refused("--from", "voc", "--to", "coco", source)
    assert "val.txt:1: there is no " in lines[1]
    assert "val.txt:2: must name a file of " in lines[2]
    put({f"{main}/val.txt": "\ufeffb\r\n", f"{main}/trainval.txt": "a\nb\n"})
    status, out, _ = convert("--from", "voc", "--to", "coco", source, tmp_path / "out")
    assert status == 0
    assert "voc: train: 1 image (0 without boxes), 1 box" in out
    assert "voc: val: 1 image (1 without boxes), 0 boxes" in out
    assert "trainval" not in out


def test_difficult_objects_are_kept_and_told(voc, convert, tmp_path):
    hard = box().replace("<name>", "<difficult>1</difficult><truncated>1</truncated><name>")
    source = voc({"a.xml": xml(hard, box())})
    _, out, _ = convert("--from", "voc", "--to", "coco", source, tmp_path / "out")
    assert "1 x object marked as difficult, taken as any other" in out
    assert "1 x value of truncated, not kept" in out
    there = tmp_path / "there"
    file = tmp_path / "out/voc.json"
    images = f"--image-folder={source / 'JPEGImages'}"
    assert convert("--from", "coco", "--to", "voc", file, there, images)[0] == 0
    assert (there / "Annotations/a.xml").read_text().count("<difficult>1<") == 1


def test_a_list_of_classes_gives_the_order_and_refuses_others(voc, put, convert, refused, tmp_path):
    source = voc({"a.xml": xml(box("dog"), box("cat"), box("Dog"))})
    names = put({"names.txt": "dog\ncat\n"}) / "names.txt"
    lines = refused("--from", "voc", "--to", "coco", source, "--classes", names)
    assert "a.xml:10: the class 'Dog' is not in the list" in lines[1]
    put({"names.txt": "dog\nDog\ncat\n"})
    out = tmp_path / "out"
    assert convert("--from", "voc", "--to", "coco", source, out, "--classes", names)[0] == 0
    found = json.loads((out / "voc.json").read_text())
    assert [(c["id"], c["name"]) for c in found["categories"]] == [
        (1, "dog"),
        (2, "Dog"),
        (3, "cat"),
    ]
    put({"names.txt": "dog\ndog\n"})
    assert "stands twice" in refused("--from", "voc", "--to", "coco", source, "--classes", names)[1]
    put({"names.txt": ""})
    assert (
        "lists no class" in refused("--from", "voc", "--to", "coco", source, "--classes", names)[1]
    )


def test_images_of_one_stem_cannot_share_an_xml_file(put, draw, refused, tmp_path):
    draw("i", {"a.png": (9, 9), "a.jpg": (9, 9)})
    put(
        {
            "t.json": {
                "images": [
                    {"id": i, "file_name": name, "width": 9, "height": 9}
                    for i, name in enumerate(["a.png", "a.jpg"])
                ],
                "categories": [{"id": 0, "name": "cat"}],
                "annotations": [],
            }
        }
    )
    options = ["--image-folder", tmp_path / "i"]
    for target in ("voc", "yolo"):
        lines = refused("--from", "coco", "--to", target, tmp_path / "t.json", *options)
        assert "a.jpg: would share its annotation file with a.png" in lines[1]
