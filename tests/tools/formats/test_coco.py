"""COCO JSON of annotation tools trains as it is, or the error names the command that cleans it."""

import json

import pytest
from pycocotools import mask

from retinanet.data.coco import read_coco
from scripts import check_data

SIZE = (64, 48)
DOG = {"bbox": [1.25, 2.0, 12.05, 10.0], "area": 120.5, "iscrowd": 0, "segmentation": []}


def coco(first, names, categories, image=None, box=None, **about):
    """Two images and a box of the last category; ids from ``first``, and more fields."""
    size = {"width": SIZE[0], "height": SIZE[1]}
    ids = {"id": first, "image_id": first, "category_id": categories[-1]["id"]}
    return about | {
        "images": [
            {"id": first + i, "file_name": name} | size | (image or {})
            for i, name in enumerate(names)
        ],
        "categories": categories,
        "annotations": [ids | DOG | (box or {})],
    }


def cvat():
    """CVAT by way of Datumaro: ids from 1, no supercategory, attributes, fractions."""
    return coco(
        1,
        ["sub/a.png", "b.png"],
        [{"id": i, "name": n, "supercategory": ""} for i, n in enumerate(["cat", "dog"], 1)],
        {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
        {"attributes": {"occluded": False, "rotation": 0.0}},
        licenses=[{"name": "", "id": 0, "url": ""}],
        info={"contributor": "", "date_created": "", "description": "", "year": ""},
    )


def label_studio(name="images/{}"):
    """Label Studio: all ids from 0, an ignore field, folders before names."""
    return coco(
        0,
        [name.format("a.png"), name.format("b.png")],
        [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        box={"ignore": 0},
        info={"year": 2026, "version": "1.0", "contributor": "Label Studio", "url": ""},
    )


def roboflow(group="animals"):
    """Roboflow: class 0 groups the others and has no box; numbers of both kinds."""
    content = coco(
        0,
        ["a_png.rf.1b.png", "b_png.rf.1b.png"],
        [
            {"id": 0, "name": group, "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": group},
            {"id": 2, "name": "dog", "supercategory": group},
        ],
        {"license": 1, "date_captured": "2026-01-02T03:04:05+00:00", "extra": {"name": "a.png"}},
        licenses=[{"id": 1, "url": "https://creativecommons.org/", "name": "CC BY 4.0"}],
        info={"year": "2026", "version": "3", "description": "Exported from roboflow.com"},
    )
    cat = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
    content["annotations"].append(DOG | cat)
    return content


STUDIO = ["images/a.png", "images/b.png"]
ROBOFLOW = ("train/_annotations.coco.json", "train", ["a_png.rf.1b.png", "b_png.rf.1b.png"])
EXPORTS = {
    "CVAT": (cvat(), "annotations/instances_default.json", "images", ["sub/a.png", "b.png"]),
    "Label Studio": (label_studio(), "result.json", ".", STUDIO),
    "Label Studio on Windows": (label_studio("images\\{}"), "result.json", ".", STUDIO),
    "Roboflow": (roboflow(), *ROBOFLOW),
}


@pytest.fixture
def export(draw, put):
    """Writes an export with its images; gives its file and image folder."""

    def write(content, file, folder, names):
        return put({file: content}), draw(folder, dict.fromkeys(names, SIZE))

    return write


@pytest.fixture
def checked(capsys):
    """Status and text of check_data, with the file as both splits."""

    def check(file, folder):
        typed = ["data=custom", "model=tiny", f"data.root={folder}", "data.workers=0"]
        for split in ("train", "val"):
            typed += [f"data.{split}_images=.", f"data.{split}_annotations={file}"]
        status = check_data.main(typed)
        return status, " ".join(capsys.readouterr().out.split())

    return check


@pytest.mark.parametrize("tool", list(EXPORTS))
def test_exports_are_read_and_converted_as_they_are(export, converted, checked, tmp_path, tool):
    file, folder = export(*EXPORTS[tool])
    status, printed = checked(file, folder)
    assert status == 0
    assert ("images: file_name has backslashes" in printed) == ("Windows" in tool)
    converted("coco", file)
    (written,) = (tmp_path / "out").glob("*.json")
    for data in (read_coco(file, folder), read_coco(written, folder)):
        assert [data.file_name(i) for i in range(2)] == EXPORTS[tool][3]
        assert data.missing() == []
        assert data.bbox[0].tolist() == [1.25, 2.0, 12.05, 10.0]
        assert data.category_names[data.labels[0]] == "dog"


@pytest.mark.parametrize(
    "name",
    ["..\\..\\media\\upload\\4\\{}", "../../media/upload/4/{}", "/home/me/upload/{}", "C:\\x\\{}"],
)
def test_names_that_lead_elsewhere_lose_their_folders_when_asked(
    export, converted, refused, tmp_path, name
):
    file, folder = export(label_studio(name), "result.json", "images", ["a.png", "b.png"])
    with pytest.raises(ValueError, match="--from coco --to coco --base-names"):
        read_coco(file, folder)
    assert "--base-names" in refused("coco", file, "--image-folder", folder)[0]
    assert "2 x image name without its folders" in converted("coco", file, "--base-names")
    assert read_coco(tmp_path / "out/result.json", folder).missing() == []


def test_sizes_that_are_missing_are_read_from_the_images(export, converted, refused, tmp_path):
    # Label Studio writes null where it could not open the image of a task without labels.
    content = label_studio()
    content["images"][1] |= {"width": None, "height": None}
    file, folder = export(content, "result.json", ".", STUDIO)
    with pytest.raises(ValueError, match="got None.*--to coco` reads it from the image"):
        read_coco(file, folder)
    read = "1 x size missing or no number of pixels, read from the image"
    assert read in converted("coco", file)
    assert read_coco(tmp_path / "out/result.json", folder).sizes.tolist() == [[48, 64], [48, 64]]
    (folder / "images/b.png").write_bytes(b"no image")
    assert "images/b.png: it is not an image" in refused("coco", file)[1]


def test_numbers_lose_their_quotes(export, converted, tmp_path):
    # Label Studio's older versions write the category attribute of a label as it was typed.
    content = label_studio()
    for number, category in enumerate(content["categories"]):
        category["id"] = str(number + 1)
    content["annotations"][0] |= {"category_id": "2", "bbox": ["1.25", "2", 12.05, "10.0"]}
    file, folder = export(content, "result.json", ".", STUDIO)
    with pytest.raises(ValueError, match="--from coco --to coco` writes integers"):
        read_coco(file, folder)
    assert "6 x number in quotes" in converted("coco", file)
    data = read_coco(tmp_path / "out/result.json", folder)
    assert data.bbox.tolist() == [[1.25, 2, 12.05, 10]]
    assert (data.category_ids, data.labels.tolist()) == ((1, 2), [1])
    assert "number in quotes" in converted("coco", file, "--drop-unused-classes")
    assert read_coco(tmp_path / "out/result.json", folder).category_ids == (2,)


@pytest.mark.parametrize("group", ["animals", "cat"])
def test_a_class_that_only_groups_others_is_dropped_when_asked(
    export, converted, checked, tmp_path, group
):
    file, folder = export(roboflow(group), *ROBOFLOW)
    if group == "cat":  # the name of another class
        with pytest.raises(ValueError, match="'cat' occurs before.*--drop-unused-classes"):
            read_coco(file, folder)
    status, printed = checked(file, folder)
    assert status == (group == "cat")
    assert "--drop-unused-classes" in printed
    printed = converted("coco", file, "--drop-unused-classes")
    assert f"1 x class that no box has, dropped: {group}" in printed
    data = read_coco(tmp_path / "out/train.json", folder)
    assert (data.category_ids, data.category_names) == ((1, 2), ("cat", "dog"))
    assert data.labels.tolist() == [1, 0]


def test_a_class_is_unused_only_if_no_source_uses_it(export, converted, tmp_path):
    train, _ = export(roboflow(), *ROBOFLOW)
    content = roboflow()
    content["annotations"] = content["annotations"][:1]
    valid, _ = export(content, "valid/_annotations.coco.json", "valid", ROBOFLOW[2])
    converted("coco", train, valid, "--drop-unused-classes")
    for split in ("train", "val"):
        written = json.loads((tmp_path / f"out/{split}.json").read_text())
        assert [c["name"] for c in written["categories"]] == ["cat", "dog"]
    # An id that is none is no box's either.
    content["categories"][0]["id"] = [0]
    valid.write_text(json.dumps(content))
    assert "dropped: animals" in converted("coco", train, valid, "--drop-unused-classes")


def test_ignore_marks_that_are_lost_are_counted(export, converted):
    content = label_studio("{}")
    content["annotations"][0]["ignore"] = 1
    file, _ = export(content, "result.json", ".", ["a.png", "b.png"])
    assert "1 x ignore mark, not kept: set iscrowd to 1" in converted("coco", file)


def test_empty_segmentations_are_not_counted_as_lost(export, converted):
    content = label_studio()
    content["annotations"].append(
        content["annotations"][0] | {"segmentation": [[1, 1, 9, 1, 9, 9]]}
    )
    file, _ = export(content, "result.json", ".", STUDIO)  # the first one has []
    assert "1 x segmentation, not kept" in converted("coco", file)


# Rows 2 to 4 of columns 3 to 6, counted down the columns.
MASK = [3 * 48 + 2, 3, 45, 3, 45, 3, 45, 3, 57 * 48 + 43]
AROUND = "1 x box made around a polygon or mask"
UPRIGHT = "1 x rotated box, the upright box around it taken"


@pytest.mark.parametrize(
    ("fields", "note", "written"),
    [
        ({"segmentation": [[3, 4, 10.5, 4, 8, 20], [5, 2, 6, 3, 7, 2]]}, AROUND, [3, 2, 7.5, 18]),
        ({"segmentation": {"size": [48, 64], "counts": MASK}}, AROUND, [3, 2, 4, 3]),
        ({"segmentation": {"size": [48, 64], "counts": "R31`1"}, "bbox": []}, AROUND, None),
        ({"bbox": [10, 10, 20, 10], "attributes": {"rotation": 90}}, UPRIGHT, [15, 5, 10, 20]),
        # A square of 10 about its center (15, 15) has a diagonal of 14.14.
        (
            *({"bbox": [10, 10, 10, 10], "attributes": {"rotation": 315.0}}, UPRIGHT),
            [7.93, 7.93, 14.14, 14.14],
        ),
        ({"bbox": [10, 10, 20, 10], "attributes": {"rotation": 180}}, None, [10, 10, 20, 10]),
    ],
)
def test_boxes_are_made_around_outlines_and_rotated_boxes(
    export, converted, tmp_path, fields, note, written
):
    content = label_studio()
    del content["annotations"][0]["bbox"]
    content["annotations"][0] |= fields
    file, folder = export(content, "result.json", ".", STUDIO)
    printed = converted("coco", file)
    assert note is None or note in printed
    box = read_coco(tmp_path / "out/result.json", folder).bbox[0].tolist()
    assert box == (written or mask.toBbox(fields["segmentation"]).tolist())


TURNED = "1 x box drawn from right to left or"
FLAT, OUTSIDE = "1 x box without width or height, which", "1 x box outside its image, which"


@pytest.mark.parametrize(
    ("bbox", "area", "note", "written"),
    [
        ([40, 35, -30, -25], 750, TURNED, [10, 10, 30, 25]),
        ([40, 10, -30, 25], -750, TURNED, [10, 10, 30, 25]),
        ([10, 35.5, 30, -25], 750, TURNED, [10, 10.5, 30, 25]),
        ([5, 5, 0, 5], 750, f"{FLAT} train.py never trains", [5, 5, 0, 5]),
        ([70, 5, 5, 5], 750, f"{OUTSIDE} train.py never trains", [70, 5, 5, 5]),
        ([1, 2, 1e6, 1e6], None, "1 x area filled in", [1, 2, 1e6, 1e6]),
    ],
)
def test_boxes_are_written_from_the_upper_left_corner(
    export, converted, tmp_path, bbox, area, note, written
):
    content = cvat()
    content["annotations"][0] |= {"bbox": bbox, "area": area}
    file, folder = export(content, *EXPORTS["CVAT"][1:])
    printed = converted("coco", file)
    assert note in printed
    assert "boxes dropped" not in printed
    record = json.loads((tmp_path / "out/instances_default.json").read_text())["annotations"][0]
    assert (record["bbox"], record["area"]) == (written, abs(area or 1e10))
    data = read_coco(tmp_path / "out/instances_default.json", folder)
    assert bool(data.repairs) == ("never trains" in note)


def test_real_coco_stays_as_it_is(real_data, converted, tmp_path):
    root = real_data("coco_slice")
    file, folder = root / "annotations/instances_val2017.json", root / "val2017"
    printed = converted("coco", file)
    assert "577 x segmentation, not kept" in printed
    assert "images.flickr_url" in printed
    old, new = read_coco(file, folder), read_coco(tmp_path / "out/val.json", folder)
    for column in ("image_ids", "sizes", "first", "bbox", "area", "labels", "crowd"):
        assert getattr(old, column).tolist() == getattr(new, column).tolist()
    assert old.category_ids == new.category_ids
    assert old.category_names == new.category_names
    assert [old.file_name(i) for i in range(68)] == [new.file_name(i) for i in range(68)]


def test_of_a_name_with_folders_the_file_and_the_option_that_finds_it_are_named(draw, put, run):
    folder = draw("images", {"a.png": SIZE, "b.png": SIZE})
    names = ["https://host/one/a.png", "https://host/one/b.png"]
    source = put({"train.json": coco(1, names, [{"id": 1, "name": "cat"}])})
    typed = ["coco", "coco", source, folder.parent / "out", "--image-folder", folder]
    status, _, said = run(*typed)
    assert status == 1
    assert f"there is {folder / 'a.png'}; --base-names takes folders off the names." in said
    assert run(*typed, "--base-names")[0] == 0
