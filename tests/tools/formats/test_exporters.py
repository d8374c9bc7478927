"""COCO JSON as CVAT, Label Studio and Roboflow write it: trains as it is, or says the remedy."""

import json

import pytest

from retinanet.cli.main import composer
from retinanet.data.coco import read_coco
from scripts.check_data import check

SIZE = (64, 48)


def image(number, name, **fields):
    return {"id": number, "width": SIZE[0], "height": SIZE[1], "file_name": name} | fields


def cvat():
    """CVAT by way of Datumaro: ids from 1, no supercategory, attributes, fractions."""
    about = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "year": ""},
        "categories": [
            {"id": 1, "name": "cat", "supercategory": ""},
            {"id": 2, "name": "dog", "supercategory": ""},
        ],
        "images": [image(1, "sub/a.png", **about), image(2, "b.png", **about)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "segmentation": [],
                "area": 120.5,
                "bbox": [1.25, 2.0, 12.05, 10.0],
                "iscrowd": 0,
                "attributes": {"occluded": False, "rotation": 0.0},
            }
        ],
    }


def label_studio(name="images/{}"):
    """Label Studio: all ids from 0, an ignore field, folders before names."""
    return {
        "images": [image(0, name.format("a.png")), image(1, name.format("b.png"))],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 1,
                "segmentation": [],
                "bbox": [1.25, 2.0, 12.05, 10.0],
                "ignore": 0,
                "iscrowd": 0,
                "area": 120.5,
            }
        ],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio", "url": ""},
    }


def roboflow(group="animals"):
    """Roboflow: class 0 groups the others and has no box; numbers of both kinds."""
    return {
        "info": {"year": "2026", "version": "3", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": group, "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": group},
            {"id": 2, "name": "dog", "supercategory": group},
        ],
        "images": [
            image(
                i,
                f"{n}_png.rf.1b.png",
                license=1,
                date_captured="2026-01-02T03:04:05+00:00",
                extra={"name": f"{n}.png"},
            )
            for i, n in enumerate("ab")
        ],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 2,
                "bbox": [1.25, 2, 12.05, 10],
                "area": 120.5,
                "segmentation": [],
                "iscrowd": 0,
            },
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 9, 9],
                "area": 81,
                "segmentation": [],
                "iscrowd": 0,
            },
        ],
    }


EXPORTS = {
    "CVAT": (cvat(), "annotations/instances_default.json", "images", ["sub/a.png", "b.png"]),
    "Label Studio": (label_studio(), "result.json", ".", ["images/a.png", "images/b.png"]),
    "Label Studio on Windows": (
        label_studio("images\\{}"),
        "result.json",
        ".",
        ["images/a.png", "images/b.png"],
    ),
    "Roboflow": (
        roboflow(),
        "train/_annotations.coco.json",
        "train",
        ["a_png.rf.1b.png", "b_png.rf.1b.png"],
    ),
}


@pytest.fixture
def export(draw, put, tmp_path):
    """Writes an export with its images; gives its file and image folder."""

    def write(found, file, folder, names):
        put({file: found})
        return tmp_path / file, draw(folder, dict.fromkeys(names, SIZE))

    return write


def findings(file, folder):
    """What check_data says, with the file as both splits."""
    typed = ["data=custom", "model=tiny", f"data.root={folder}", "data.workers=0"]
    for split in ("train", "val"):
        typed += [f"data.{split}_images=.", f"data.{split}_annotations={file}"]
    with composer("train") as reader:
        return check(reader.command(typed).settings)[0]


@pytest.mark.parametrize("tool", list(EXPORTS))
def test_exports_are_read_as_they_are(export, tool):
    file, folder = export(*EXPORTS[tool])
    data = read_coco(file, folder)
    assert [data.file_name(i) for i in range(2)] == EXPORTS[tool][3]
    assert data.missing() == []
    assert data.bbox[0].tolist() == [1.25, 2.0, 12.05, 10.0]
    assert data.category_names[data.labels[0]] == "dog"
    assert not any(issue.error for issue in findings(file, folder))


@pytest.mark.parametrize("tool", list(EXPORTS))
def test_exports_are_converted_without_a_word_on_folders(export, convert, tmp_path, tool):
    file, folder = export(*EXPORTS[tool])
    status, _, _ = convert("--from", "coco", "--to", "coco", file, tmp_path / "out")
    assert status == 0
    (written,) = (tmp_path / "out").glob("*.json")
    data = read_coco(written, folder)
    assert data.missing() == []
    assert data.bbox[0].tolist() == [1.25, 2.0, 12.05, 10.0]


def test_backslashes_are_told(export):
    file, folder = export(*EXPORTS["Label Studio on Windows"])
    data = read_coco(file, folder)
    assert data.repairs["backslashes in file names taken for folders"] == 2
    found = findings(file, folder)
    assert any(f.kind == "images: file_name has backslashes" for f in found)


@pytest.mark.parametrize(
    "name",
    ["..\\..\\media\\upload\\4\\{}", "../../media/upload/4/{}", "/home/me/upload/{}", "C:\\x\\{}"],
)
def test_names_that_lead_elsewhere_are_refused_with_the_remedy(
    export, convert, refused, tmp_path, name
):
    found = label_studio(name)
    file, folder = export(found, "result.json", "images", ["a.png", "b.png"])
    with pytest.raises(ValueError, match="--from coco --to coco --base-names"):
        read_coco(file, folder)
    options = ["--image-folder", folder]
    assert "--base-names" in refused("--from", "coco", "--to", "coco", file, *options)[0]
    out = tmp_path / "out"
    status, said, _ = convert("--from", "coco", "--to", "coco", file, out, "--base-names")
    assert status == 0
    assert "2 x image name without its folders" in said
    data = read_coco(out / "result.json", folder)
    assert data.missing() == []


def test_sizes_that_are_missing_are_read_from_the_images(export, convert, tmp_path):
    # Label Studio writes null where it could not open the image of a task without labels.
    found = label_studio()
    found["images"][1] |= {"width": None, "height": None}
    file, folder = export(found, "result.json", ".", ["images/a.png", "images/b.png"])
    with pytest.raises(ValueError, match="got None.*--from coco --to coco` reads missing ones"):
        read_coco(file, folder)
    status, said, _ = convert("--from", "coco", "--to", "coco", file, tmp_path / "out")
    assert status == 0
    assert "1 x size missing in the file, read from the image" in said
    assert read_coco(tmp_path / "out/result.json", folder).sizes.tolist() == [[48, 64], [48, 64]]


def test_numbers_in_quotes_are_refused_with_the_remedy(export, convert, tmp_path):
    # Label Studio's older versions write the category attribute of a label as it was typed.
    found = label_studio()
    for number, category in enumerate(found["categories"]):
        category["id"] = str(number + 1)
    found["annotations"][0] |= {"category_id": "2", "bbox": ["1.25", "2", 12.05, "10.0"]}
    file, folder = export(found, "result.json", ".", ["images/a.png", "images/b.png"])
    with pytest.raises(ValueError, match="without quotes, or let .*--from coco --to coco` do it"):
        read_coco(file, folder)
    status, said, _ = convert("--from", "coco", "--to", "coco", file, tmp_path / "out")
    assert status == 0
    assert "6 x number in quotes" in said
    data = read_coco(tmp_path / "out/result.json", folder)
    assert data.bbox.tolist() == [[1.25, 2, 12.05, 10]]
    assert data.category_ids == (1, 2)
    assert data.labels.tolist() == [1]


def test_a_class_that_only_groups_others_is_told_and_can_be_dropped(export, convert, tmp_path):
    file, folder = export(*EXPORTS["Roboflow"])
    assert read_coco(file, folder).category_names == ("animals", "cat", "dog")
    (found,) = [f for f in findings(file, folder) if "no box in training" in f.kind]
    assert found.count == 1
    assert "animals" in found.places[0]
    assert "--drop-unused-classes" in found.fix
    out = tmp_path / "out"
    status, said, _ = convert("--from", "coco", "--to", "coco", file, out, "--drop-unused-classes")
    assert status == 0
    assert "class that no box has, dropped: animals" in " ".join(said.split())
    data = read_coco(out / "train.json", folder)
    assert (data.category_ids, data.category_names) == ((1, 2), ("cat", "dog"))
    assert data.labels.tolist() == [1, 0]


def test_a_group_of_the_name_of_a_class_is_refused_with_the_remedy(export, convert, tmp_path):
    _, *rest = EXPORTS["Roboflow"]
    file, folder = export(roboflow(group="cat"), *rest)
    with pytest.raises(ValueError, match="'cat' occurs before.*--drop-unused-classes"):
        read_coco(file, folder)
    out = tmp_path / "out"
    assert convert("--from", "coco", "--to", "coco", file, out, "--drop-unused-classes")[0] == 0
    assert read_coco(out / "train.json", folder).category_ids == (1, 2)


def test_a_class_is_unused_only_if_no_source_uses_it(export, put, convert, tmp_path):
    train, _ = export(*EXPORTS["Roboflow"])
    found = roboflow()
    found["annotations"] = found["annotations"][:1]
    valid, _ = export(found, "valid/_annotations.coco.json", "valid", EXPORTS["Roboflow"][3])
    out = tmp_path / "out"
    option = "--drop-unused-classes"
    assert convert("--from", "coco", "--to", "coco", train, valid, out, option)[0] == 0
    for name in ("train.json", "val.json"):
        names = [c["name"] for c in json.loads((out / name).read_text())["categories"]]
        assert names == ["cat", "dog"]
