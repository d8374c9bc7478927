"""LabelMe's and VIA's own files become boxes; a file of another tool is named."""

import json
import math

import pytest

from scripts import check_data


def labelme(*shapes, name="a.png", **fields):
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": [{"label": label, "points": p, "shape_type": kind} for label, p, kind in shapes],
        "imagePath": name,
        "imageData": None,
        "imageHeight": 48,
        "imageWidth": 64,
    } | fields


def test_shapes_of_labelme_by_hand(draw, put, converted, written):
    folder = draw("photos", {"a.png": (64, 48), "b.png": (64, 48)})
    shapes = [
        ("cat", [[30, 20], [10, 5]], "rectangle"),  # drawn from right to left
        ("dog", [[1, 2], [8.5, 4], [3, 20]], "polygon"),
        ("cat", [[20, 20], [23, 24]], "circle"),
        ("dog", [[5, 5]], "point"),
    ]
    put({"a.json": labelme(*shapes), "b.json": labelme(name="..\\x\\b.png")}, "photos")
    printed = converted("labelme", folder)
    for note in (
        "polygon, replaced by the box around it",
        "circle, replaced",
        "point or line, left",
    ):
        assert f"1 x {note}" in printed
    images, boxes = written("photos")
    assert images == [("a.png", 64, 48), ("b.png", 64, 48)]
    expected = [("cat", [10, 5, 20, 15]), ("dog", [1, 2, 7.5, 18]), ("cat", [15, 15, 10, 10])]
    assert boxes == [("a.png", *box) for box in expected]


def test_images_without_a_file_of_labelme_are_counted(draw, put, converted, written):
    for split in ("train", "val"):
        draw(f"photos/{split}", {f"{split}{i}.png": (64, 48) for i in (1, 2)})
        put({f"{split}1.json": labelme(name=f"{split}1.png")}, f"photos/{split}")
    folder = draw("photos/val", {"more.png": (64, 48)}).parent
    assert "3 x image without a JSON file, left out" in converted("labelme", folder)
    assert written("val") == ([("val1.png", 64, 48)], [])


def test_other_json_files_beside_those_of_labelme_are_left_out(draw, put, converted, written):
    folder = draw("photos", {"a.png": (64, 48)})
    others = {"colors.json": {"type": "grayscale"}, "coco.json": {"images": []}}
    put({"a.json": labelme(("cat", [[1, 1], [9, 9]], "rectangle"))} | others, "photos")
    assert "2 x JSON file without shapes and imagePath" in converted("labelme", folder)
    assert written("photos")[1] == [("a.png", "cat", [1, 1, 8, 8])]


def test_splits_of_labelme_are_its_folders(draw, put, converted, written):
    for split in ("train", "val"):
        draw(f"photos/{split}", {"a.png": (64, 48)})
        folder = put({"a.json": labelme(("cat", [[1, 1], [9, 9]], "rectangle"))}, f"photos/{split}")
    converted("labelme", folder.parent.parent)
    assert (
        written("train")
        == written("val")
        == ([("a.png", 64, 48)], [("a.png", "cat", [1, 1, 8, 8])])
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ({"images": []}, "they have neither shapes nor imagePath"),
        ({"imagePath": "a.png"}, "has no list 'shapes'"),
        (labelme(name="gone.png"), "no image 'gone.png' in"),
        (labelme(("cat", [[1, "x"], [2, 3]], "polygon")), "shapes[0]: points must be [x, y] pairs"),
        (labelme(("cat", [[1, math.nan], [2, 3]], "polygon")), "shapes[0]: points must be [x, y]"),
        (labelme(("cat", [[1, 10**400], [2, 3]], "polygon")), "shapes[0]: points must be [x, y]"),
        (labelme((None, [[1, 1], [2, 3]], "polygon")), "shapes[0] must be an object with a label"),
    ],
)
def test_a_bad_file_of_labelme_is_refused(draw, put, refused, content, message):
    folder = draw("photos", {"a.png": (64, 48)})
    put({"a.json": content}, "photos")
    assert message in " ".join(refused("labelme", folder))


SHAPES = [
    ({"name": "rect", "x": 10, "y": 5, "width": 20, "height": 15}, [10, 5, 20, 15]),
    ({"name": "polygon", "all_points_x": [1, 9, 3], "all_points_y": [2, 4, 20]}, [1, 2, 8, 18]),
    ({"name": "circle", "cx": 20, "cy": 20, "r": 5}, [15, 15, 10, 10]),
    ({"name": "ellipse", "cx": 20, "cy": 20, "rx": 5, "ry": 2}, [15, 18, 10, 4]),
    ({"name": "point", "cx": 1, "cy": 1}, None),
]


def via(attributes, as_map=False):
    regions = [{"shape_attributes": shape, "region_attributes": attributes} for shape, _ in SHAPES]
    regions = {str(row): region for row, region in enumerate(regions)} if as_map else regions
    image = {"filename": "a.png", "size": 99, "regions": regions, "file_attributes": {}}
    return {"a.png99": image, "b.png7": image | {"filename": "b.png", "regions": []}}


def via_csv(attributes):
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
    rows = [head + "region_attributes"]
    for row, (shape, _) in enumerate(SHAPES):
        cells = [json.dumps(cell).replace('"', '""') for cell in (shape, attributes)]
        rows.append(f'a.png,99,"{{}}",5,{row},"{cells[0]}","{cells[1]}"')
    rows.append('b.png,7,"{}",0,0,"{}","{}"')
    return "\n".join(rows)


PROJECT = {"_via_settings": {}, "_via_img_metadata": via({"class": "cat", "truncated": "no"})}


@pytest.mark.parametrize(
    ("file", "content", "options"),
    [
        ("via.json", via({"kind": "cat"}), []),
        ("via.json", via({"kind": "cat", "age": "2"}, as_map=True), ["--attribute", "kind"]),
        ("via.json", via({"type": {"cat": True, "dog": False}, "age": "2"}), []),
        ("via.json", PROJECT, []),
        ("via.csv", via_csv({"name": "cat"}), []),
    ],
)
def test_regions_of_via_by_hand(draw, put, converted, written, file, content, options):
    draw("photos", {"a.png": (64, 48), "b.png": (64, 48)})
    path = put({file: content}, "photos")
    printed = converted("via", path, *options)
    assert "1 x polygon, replaced by the box around it" in printed
    images, boxes = written("via")
    assert images == [("a.png", 64, 48), ("b.png", 64, 48)]
    assert boxes == [("a.png", "cat", box) for _, box in SHAPES if box is not None]


def test_regions_of_via_without_attributes_are_of_the_one_class_given(
    draw, put, converted, written
):
    draw("photos", {"a.png": (64, 48), "b.png": (64, 48)})
    path = put({"names.txt": "balloon\n", "via.json": via({})}, "photos")
    converted("via", path, "--classes", path.parent / "names.txt")
    assert written("via")[1] == [("a.png", "balloon", box) for _, box in SHAPES if box is not None]


# A number that no float holds.
HUGE = {
    "shape_attributes": {"name": "rect", "x": 10**400, "y": 1, "width": 2, "height": 2},
    "region_attributes": {"kind": "cat"},
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            via({"kind": "cat", "age": "2"}),
            "attributes of regions (age, kind); name the class with",
        ),
        (via({"kind": ""}), "a.png, region 0: kind must be one class, got ''"),
        ({"images": []}, "is not as VIA 1 or 2 writes it"),
        (via({}), "has no attribute of regions, so nothing says their class; write the class"),
        (
            {
                "a": {
                    "filename": "../photos/c.png",
                    "regions": via({"kind": "c"})["b.png7"]["regions"],
                }
            },
            "no image ",
        ),
        (
            {"a": {"filename": "a.png", "regions": [HUGE]}},
            "a.png, region 0: the shape needs numbers",
        ),
    ],
)
def test_a_bad_file_of_via_is_refused(draw, put, refused, content, message):
    draw("photos", {"a.png": (64, 48), "b.png": (64, 48)})
    assert message in " ".join(refused("via", put({"via.json": content}, "photos")))


def test_a_file_that_is_not_json_is_told_where(draw, put, refused):
    draw("photos", {"a.png": (64, 48)})
    line = refused("via", put({"via.json": '{"a": {\n"filename": "a.png",\n}'}, "photos"))[1]
    assert "via.json: is not JSON: " in line
    assert " at line 3, column 1; " in line or " at line 2, column " in line
    titles = "filename,file_size,file_attributes,region_count,region_id,"
    titles += "region_shape_attributes,region_attributes\n"
    row = 'a.png,1,{},1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":3,""height"":4}",{}\n'
    bad = row.replace(",{}\n", ',"{""Label"":undefined}"\n')
    line = refused("via", put({"via.csv": titles + row + bad}, "photos"))[1]
    assert """via.csv:3: has '{"Label":undefined}', which is not JSON""" in line


def test_names_of_via_with_the_folders_of_another_computer(draw, put, converted, written):
    draw("photos", {"a.png": (64, 48), "b.png": (64, 48)})
    files = via({"kind": "cat"})
    files["a.png99"]["filename"] = "C:\\Users\\x\\a.png"
    printed = converted("via", put({"via.json": files}, "photos"))
    assert "1 x image found by the end of its path in the file" in printed
    assert [name for name, *_ in written("via")[0]] == ["a.png", "b.png"]


TOOLS = {
    "LabelMe": labelme(),
    "VIA": via({"kind": "cat"}),
    "VIA 3": {"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}},
    "VoTT": {"asset": {"name": "a.png"}, "regions": [], "version": "2.1.0"},
    "Datumaro": {"info": {}, "categories": {"label": {}}, "items": []},
    "Darwin V7": {"version": "2.0", "item": {"name": "a.png"}, "annotations": []},
    "Supervisely": {"description": "", "tags": [], "size": {"height": 1}, "objects": []},
    "Label Studio": [{"id": 1, "annotations": [], "data": {"image": "a.png"}}],
    "CreateML": [{"image": "a.png", "annotations": []}],
    "Labelbox": [{"ID": "x", "DataRow ID": "y", "Label": {"objects": []}}],
    "ODVG": {"filename": "a.png", "height": 48, "width": 64, "detection": {"instances": []}},
}


NO_JSON = {
    "<annotations><version>1.1</version></annotations>": "of CVAT; export it as COCO there",
    "<?xml version='1.0'?>\n<annotation></annotation>": "--from voc --to coco` reads the folder",
    '{"source-ref": "s3://x/a.jpg"}\n{"source-ref": "s3://x/b.jpg"}\n': "one JSON object a line",
    '[{"name": "a.jpg", "labels": []}]': "python -m bdd100k.label.to_coco",
}


@pytest.mark.parametrize("text", NO_JSON)
def test_a_file_that_is_not_cocos_json_is_told_the_way_out(put, refused, text):
    assert NO_JSON[text] in refused("coco", put({"train.json": text}))[0]


def test_coco_files_of_other_tasks_are_named(put, refused):
    content = {"images": [], "categories": [], "annotations": [{"segments_info": []}]}
    line = refused("coco", put({"panoptic.json": content}))[0]
    assert "is a file of COCO's panoptic segments, without boxes; name the instances_*.json" in line


@pytest.mark.parametrize("tool", TOOLS)
def test_another_tools_own_file_is_named_with_the_way_out(put, capsys, tmp_path, tool):
    put({"train.json": json.dumps(TOOLS[tool]), "val.json": json.dumps(TOOLS[tool])})
    typed = [f"data.{s}_{k}" for s in ("train", "val") for k in ("images", "annotations")]
    paths = [".", "train.json", ".", "val.json"]
    settings = [f"{key}={path}" for key, path in zip(typed, paths, strict=True)]
    assert check_data.main(["data=custom", f"data.root={tmp_path}", *settings]) == 1
    out, err = capsys.readouterr()
    said = " ".join((out + err).split())
    assert f"train.json is in {tool}'s own format, not COCO's; " in said
    fix = {"LabelMe": "--from labelme --to coco` reads it", "VIA": "--from via --to coco` reads it"}
    assert fix.get(tool, "export it as") in said
