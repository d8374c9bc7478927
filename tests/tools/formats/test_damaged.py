"""Files with random damage are refused in one line, or read; never a traceback, never a wait."""

import random

from retinanet.tools.formats.convert import read_sources
from retinanet.tools.formats.dataset import AnnotationError, Options

XML = """<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>a.png</filename><size><width>60</width><height>40</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>
"""
FILES = {
    "voc": ("voc", {"voc/Annotations/a.xml": XML, "voc/ImageSets/Main/train.txt": "a\n"}),
    "yolo": (
        "yolo",
        {
            "yolo/data.yaml": "train: images\nnc: 2\nnames:\n  0: cat\n  1: dog\n",
            "yolo/labels/a.txt": "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.1 0.1\n",
        },
    ),
    "csv": (
        "csv/train.csv",
        {
            "csv/train.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"
            "a.png,60,40,cat,1,2,3,4\n",
            "csv/classes.csv": "id,name\n1,cat\n2,dog\n",
        },
    ),
}
BYTES = b"|\x00|\xff|\xef\xbb\xbf|\n|\r|<|>|&|\"|'|,|-|nan|e999|[|{|*a|&a|!!x|: |../|/".split(b"|")
BYTES.append(b"9" * 30)


def damaged(content, draw):
    """One to four places replaced, removed or doubled."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice([0, 0, 1, 1, 3, 20]))
        middle = draw.choice([draw.choice(BYTES), content[start:end] * 2, b"7"])
        content = content[:start] + middle + content[end:]
    return content


def test_damaged_files_are_read_or_refused(draw, put, tmp_path, times, tally):
    for folder in ("voc/JPEGImages", "yolo/images", "csv"):
        draw(folder, {"a.png": (60, 40)})
    put({name: text for _, files in FILES.values() for name, text in files.items()})
    for kind, (source, _) in FILES.items():
        assert [*read_sources(kind, [str(tmp_path / source)], Options()).boxes()]
    dice = random.Random(0)
    read, refused = 0, 0
    for turn in range(times(300, 6000)):
        kind = list(FILES)[turn % 3]
        source, files = FILES[kind]
        name = dice.choice(list(files))
        put({name: damaged(files[name].encode(), dice)})
        try:
            found = read_sources(kind, [str(tmp_path / source)], Options())
        except (ValueError, OSError) as error:
            refused += 1
            lines = error.lines if isinstance(error, AnnotationError) else [str(error)]
            assert all("\n" not in line for line in lines), lines
        else:
            read += 1
            assert all(min(box.xywh[2:]) >= 0 for box in found.boxes())
        put({name: files[name]})
    tally(f"annotations: {read + refused} damaged files, {refused} refused, {read} read")
    assert min(refused, read) > (refused + read) / 10


def test_ten_thousand_levels_of_xml_are_read(draw, put, tmp_path):
    draw("voc/JPEGImages", {"a.png": (60, 40)})
    deep = XML.replace("</object>", "<part>" * 10_000 + "</part>" * 10_000 + "</object>")
    put({"voc/Annotations/a.xml": deep})
    (box,) = read_sources("voc", [str(tmp_path / "voc")], Options()).boxes()
    assert box.xywh == (0, 1, 9, 8)
