"""A small data set that is right, and one way after the other to break it."""

import json
import math
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from retinanet.data.issues import Effect

HEIGHT, WIDTH = 40, 60
REFUSED, LOST, REPAIRED, NOTED = Effect.REFUSED, Effect.LOST, Effect.REPAIRED, Effect.NOTED
# Of every image; one is left of and above its own size, so that no file looks like two corners.
BOXES = [(1, [4, 5, 20, 10]), (2, [30, 22, 12, 9]), (1, [45, 3, 10, 30])]


@dataclass
class DataSet:
    """A data set on disk, and what its files will say."""

    root: Path
    train: dict
    val: dict

    def image(self, split: str, index: int) -> Path:
        return self.root / "images" / getattr(self, split)["images"][index]["file_name"]

    def write(self) -> None:
        for split in ("train", "val"):
            (self.root / f"{split}.json").write_text(json.dumps(getattr(self, split)))


def split_of(first: int, count: int) -> dict:
    images, annotations = [], []
    for i in range(first, first + count):
        images.append({"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH})
        for category, bbox in BOXES:
            record = {"id": len(annotations) + 1, "image_id": i, "category_id": category}
            record |= {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
            annotations.append(record)
    categories = [{"id": 1, "name": "red cell"}, {"id": 2, "name": "platelet"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_images(folder: Path) -> None:
    """The images of both splits."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in (*range(10, 14), *range(20, 23)):
        pixels = generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@dataclass
class Fault:
    """What is done to the set, and what must be said of it."""

    seed: Callable[[DataSet], object]
    kind: str
    effect: Effect
    place: list[str]  # words that name the file, the record and the value
    fix: str
    count: int = 1
    pixels: bool = False
    others: tuple[str, ...] = ()  # kinds that the same records bring besides


def put(kind: str, index: int, split: str = "train", **fields: object) -> Callable:
    """Replace fields of a record; ``...`` removes one."""

    def seed(made: DataSet) -> None:
        record = getattr(made, split)[kind][index]
        for field, value in fields.items():
            record[field] = value
            if value is ...:
                del record[field]

    return seed


def put_all(kind: str, change: Callable[[dict], dict]) -> Callable:
    def seed(made: DataSet) -> None:
        for record in made.train[kind]:
            record |= change(record)

    return seed


def drop_list(name: str) -> Callable:
    return lambda made: made.train.pop(name)


def replace_list(name: str, value: object) -> Callable:
    return lambda made: made.train.update({name: value})


def add(kind: str, record: object, split: str = "train") -> Callable:
    return lambda made: getattr(made, split)[kind].append(record)


def repeat(kind: str, index: int, **fields: object) -> Callable:
    def seed(made: DataSet) -> None:
        made.train[kind].append(made.train[kind][index] | fields)

    return seed


def on_image(change: Callable[[Path], object], split: str = "train", index: int = 1) -> Callable:
    return lambda made: change(made.image(split, index))


def share_image(made: DataSet) -> None:
    made.val["images"][1]["file_name"] = made.train["images"][2]["file_name"]
    (made.root / "images/21.png").unlink()


def link_image(made: DataSet) -> None:
    path = made.image("val", 1)
    path.unlink()
    path.symlink_to(made.image("train", 2))


def hidden_in_folder(made: DataSet) -> None:
    """Windows' separator in a file name, the file in a folder."""
    folder = made.root / "images/sub"
    folder.mkdir()
    made.image("train", 1).rename(folder / "11.png")
    made.train["images"][1]["file_name"] = "sub\\11.png"


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).convert("RGB").save(path, format="JPEG", exif=exif)
    path.rename(path.with_suffix(".jpg"))


def turned_image(made: DataSet, orientation: int, **record: object) -> None:
    turned(made.image("train", 1), orientation)
    made.train["images"][1] |= {"file_name": "11.jpg", **record}


def no_boxes_of(split: str, category: int) -> Callable:
    def seed(made: DataSet) -> None:
        content = getattr(made, split)
        kept = [a for a in content["annotations"] if a["category_id"] != category]
        content["annotations"] = kept

    return seed


def both(*seeds: Callable) -> Callable:
    return lambda made: [seed(made) for seed in seeds]


def add_category(**record: object) -> Callable:
    return both(*(add("categories", record, split) for split in ("train", "val")))


def bomb(path: Path) -> None:
    """A PNG whose header claims 14000 x 14000 pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = (14000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 40000, dtype=np.uint16)).save(path)


BOX = "must be four finite numbers [x, y, width, height] in pixels"
UNREADABLE = "images: the file cannot be read"
OUTSIDE = "bbox lies outside its image"
FLAT = "bbox has no positive width and height"
BACKWARDS = "bbox is drawn from right to left or from bottom to top"
VANISHED = "bbox has a side below 1 px at the training size"
NOTHING = "annotations: no box is left to train on"
TWICE = "annotations: the same box of the same class in the same image"
TESTED = "categories: boxes in validation, none in training"
RENUMBERED = "id is missing, repeated, below 1 or not an integer"
NAME = "must be a path below the image folder, neither absolute nor with '..'"
PIXELS = "a whole number of pixels, at least 1"
AREA = "a finite number of pixels, from 0 to 1e10"
LISTED = "must be the id of a listed {}"

# One field of one record of the training set: list, field, value (...: none), rule, fix.
FIELDS = {
    "image without id": ("images", "id", ..., "is missing", "Add it"),
    "image id as text": ("images", "id", "11", "must be an integer", "without quotes"),
    "no width": ("images", "width", ..., "is missing", "Add it"),
    "height of zero": ("images", "height", 0, f"must be {PIXELS}", "as it is displayed"),
    "width that is no number": ("images", "width", "60", "must be a finite number", "Correct it"),
    "no file name": ("images", "file_name", ..., "is missing", "Add it"),
    "empty file name": (
        "images",
        "file_name",
        "",
        "must be a text that is not empty",
        "Correct it",
    ),
    "absolute file name": ("images", "file_name", "/data/11.png", NAME, "data.*_images"),
    "file name that leaves the folder": (
        "images",
        "file_name",
        "../images/11.png",
        NAME,
        "data.*_images",
    ),
    "no bbox": ("annotations", "bbox", ..., "is missing", "Add it"),
    "bbox of three": ("annotations", "bbox", [1, 2, 3], BOX, "Correct the box"),
    "bbox with nan": ("annotations", "bbox", [1, 2, math.nan, 4], BOX, "Correct the box"),
    "bbox with infinity": ("annotations", "bbox", [1, 2, math.inf, 4], BOX, "Correct the box"),
    "bbox of texts": ("annotations", "bbox", ["1", "2", "3", "4"], BOX, "Correct the box"),
    "image of an annotation unknown": (
        "annotations",
        "image_id",
        99,
        LISTED.format("image"),
        "Remove the annotation",
    ),
    "category of an annotation unknown": (
        "annotations",
        "category_id",
        0,
        LISTED.format("category"),
        "or list what",
    ),
    "category of an annotation as text": (
        "annotations",
        "category_id",
        "2",
        "must be an integer",
        "without quotes",
    ),
    "iscrowd of 2": ("annotations", "iscrowd", 2, "must be 0 or 1", "leave it out"),
    "area that is no number": ("annotations", "area", "big", f"must be {AREA}", "leave it out"),
    "category without id": ("categories", "id", ..., "is missing", "Add it"),
    "category without name": ("categories", "name", ..., "is missing", "Add it"),
}
# Fields of an annotation that train.py takes: fields, rule, effect, what is shown of it, fix.
TAKEN = {
    "annotation id 0": ({"id": 0}, RENUMBERED, REPAIRED, "(id 0)", "at least 1"),
    "annotation without id": ({"id": ...}, RENUMBERED, REPAIRED, "", "at least 1"),
    "annotation id twice": ({"id": 1}, RENUMBERED, REPAIRED, "(id 1)", "unique"),
    "annotation id as text": ({"id": "5"}, RENUMBERED, REPAIRED, "(id '5')", "unique"),
    "no iscrowd": ({"iscrowd": ...}, "iscrowd is missing", REPAIRED, "(id 5)", "groups of objects"),
    "no area": ({"area": ...}, "area is missing", REPAIRED, "(id 5)", "masks"),
    "area of zero": ({"area": 0}, "area is not positive", NOTED, "area 0", "Correct the area"),
    "area beyond the box": (
        {"area": 5000},
        "area is larger than the box",
        NOTED,
        "area 5000, bbox [30, 22, 12, 9]",
        "Correct the area",
    ),
    "box without width": (
        {"bbox": [30, 22, 0, 9]},
        FLAT,
        LOST,
        "[30, 22, 0, 9]",
        "Correct the box",
    ),
    "box drawn from below": (
        {"bbox": [30, 22, 12, -9]},
        BACKWARDS,
        LOST,
        "22, 12, -9]",
        "convert_dataset",
    ),
    "box of two negative sides that is in the image neither way": (
        {"bbox": [-1, -1, -1, -1]},
        FLAT,
        LOST,
        "bbox [-1, -1, -1, -1]",
        "Correct the box",
    ),
    "box outside the image": (
        {"bbox": [130, 22, 12, 9]},
        OUTSIDE,
        LOST,
        "bbox [130, 22",
        "Correct the box",
    ),
    "box across the border": (
        {"bbox": [55, 22, 12, 9]},
        "bbox reaches outside its image",
        REPAIRED,
        "bbox [55, 22, 12, 9]",
        "cut by the border",
    ),
    "box that vanishes at the training size": (
        {"bbox": [30, 22, 12, 0.4], "area": 4.8},
        VANISHED,
        LOST,
        "bbox [30, 22, 12, 0.4]",
        "data.min_size",
    ),
    "thin box": (
        {"bbox": [30, 22, 12, 0.8], "area": 9.6},
        "bbox is less than 1 px wide or high",
        NOTED,
        "bbox [30, 22, 12, 0.8]",
        "a click without a drag",
    ),
}
RECORDS = {"images": 1, "annotations": 4, "categories": 1}  # which of each list is changed


def fault_of_field(name: str, field: str, value: object, rule: str, fix: str) -> Fault:
    index = RECORDS[name]
    number = value if field == "id" else {"images": 11, "annotations": 5, "categories": 2}[name]
    place = f"train.json: {name}[{index}]"
    if value is not ...:
        place += f" (id {number!r}): got {value!r}"
    seed = put(name, index, **{field: value})
    return Fault(seed, f"{name}: {field} {rule}", REFUSED, [place], fix)


def fault_of_annotation(fields: dict, rule: str, effect: Effect, shown: str, fix: str) -> Fault:
    place = ["train.json: annotations[4]", shown]
    return Fault(put("annotations", 4, **fields), f"annotations: {rule}", effect, place, fix)


FAULTS = {
    **{name: fault_of_field(*row) for name, row in FIELDS.items()},
    **{name: fault_of_annotation(*row) for name, row in TAKEN.items()},
    "no images": Fault(
        drop_list("images"), "images: no such list", REFUSED, ["train.json"], "COCO"
    ),
    "no categories": Fault(
        drop_list("categories"), "categories: no such list", REFUSED, ["train.json"], "COCO"
    ),
    "no annotations": Fault(
        drop_list("annotations"), "annotations: no such list", REFUSED, ["train.json"], "boxes"
    ),
    "annotations by id": Fault(
        replace_list("annotations", {"1": {}}),
        "annotations: no such list",
        REFUSED,
        ["train.json: got {'1': {}}"],
        "COCO",
    ),
    "no image at all": Fault(
        both(replace_list("images", []), replace_list("annotations", [])),
        "images: must not be empty",
        REFUSED,
        ["train.json"],
        "List the images",
    ),
    "no category at all": Fault(
        both(replace_list("categories", []), replace_list("annotations", [])),
        "categories: must not be empty",
        REFUSED,
        ["train.json"],
        "List every class",
    ),
    "a record that is no object": Fault(
        add("annotations", 7),
        "annotations: must be objects",
        REFUSED,
        ["train.json: annotations[12]: got 7"],
        "braces",
    ),
    "image id twice": Fault(
        repeat("images", 1, file_name="more.png"),
        "images: id must be unique",
        REFUSED,
        ["train.json: images[4] (id 11): id 11 occurs before, in images[1] (id 11)"],
        "Remove or rename",
    ),
    "width and height swapped": Fault(
        put("images", 1, width=HEIGHT, height=WIDTH),
        "images: width and height are swapped",
        REFUSED,
        ["images[1] (id 11)", "40 x 60, but", "11.png has 60 x 40"],
        "exchange them",
    ),
    "width of another version": Fault(
        put("images", 1, width=2 * WIDTH, height=2 * HEIGHT),
        "images: width and height are not those of the file",
        REFUSED,
        ["images[1] (id 11)", "120 x 80, but", "11.png has 60 x 40"],
        "another version",
    ),
    "file name twice": Fault(
        put("images", 1, file_name="10.png"),
        "images: file_name must be unique",
        REFUSED,
        ["images[1] (id 11): file_name '10.png' occurs before, in images[0] (id 10)"],
        "Remove or rename",
    ),
    "file name with backslashes": Fault(
        hidden_in_folder,
        "images: file_name has backslashes",
        REPAIRED,
        ["train.json: images[1] (id 11): 'sub\\\\11.png'"],
        "Nothing is needed",
    ),
    "file missing": Fault(
        on_image(Path.unlink),
        "images: the file is missing",
        REFUSED,
        ["train.json: image id 11: no ", "11.png"],
        "on_bad_image=skip",
    ),
    "every box drawn from right to left": Fault(
        put_all("annotations", lambda a: {"bbox": [60, a["bbox"][1], -20, a["bbox"][3]]}),
        NOTHING,
        REFUSED,
        ["train.json: 12 of 12 annotations: drawn from right to left"],
        "scripts.convert_dataset",
        others=(f"annotations: {BACKWARDS}", TESTED),
    ),
    "nothing but crowds": Fault(
        put_all("annotations", lambda a: {"iscrowd": 1}),
        NOTHING,
        REFUSED,
        ["train.json: 12 of 12 annotations: crowd regions (iscrowd 1): red cell 8, platelet 4"],
        "Set iscrowd to 0",
        others=(TESTED,),
    ),
    "nothing but boxes without sides": Fault(
        put_all("annotations", lambda a: {"bbox": [0, 0, 0, 0]}),
        NOTHING,
        REFUSED,
        ["train.json: 12 of 12 annotations: width or height not positive"],
        "Correct the box",
        others=(f"annotations: {FLAT}", TWICE, TESTED),
    ),
    "no annotation in training": Fault(
        replace_list("annotations", []),
        NOTHING,
        REFUSED,
        ["train.json: it lists no annotation"],
        "the file that has the boxes",
        others=("images: no annotation, in training", TESTED),
    ),
    "nothing but boxes that vanish": Fault(
        put_all("annotations", lambda a: {"bbox": [*a["bbox"][:2], 0.5, 3], "area": 1.5}),
        NOTHING,
        REFUSED,
        ["train.json: 12 of 12 annotations: a side below 1 px at the training size"],
        "data.min_size",
        others=(f"annotations: {VANISHED}", TESTED),
    ),
    "nothing to be found in validation": Fault(
        lambda made: made.val.update(annotations=[]),
        "annotations: no box in validation",
        NOTED,
        ["val.json: it lists no annotation"],
        "the file that has the boxes",
    ),
    "two corners": Fault(
        put_all(
            "annotations",
            lambda a: {
                "bbox": [*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]]
            },
        ),
        "annotations: bbox looks like two corners [x1, y1, x2, y2]",
        NOTED,
        ["annotations[1] (id 2): bbox [30, 22, 42, 31] reaches outside"],
        "x2 - x1",
        count=8,
    ),
    "shares of the image": Fault(
        put_all(
            "annotations",
            lambda a: {
                "bbox": [v / s for v, s in zip(a["bbox"], [WIDTH, HEIGHT] * 2, strict=True)],
                "area": 0.1,
            },
        ),
        NOTHING,
        REFUSED,
        ["train.json: every bbox of 12 lies in [0, 1]"],
        "Multiply x and width",
        others=(TESTED,),
    ),
    "the same box twice": Fault(
        repeat("annotations", 4, id=99),
        "annotations: the same box of the same class in the same image",
        NOTED,
        ["annotations[12] (id 99): as annotations[4] (id 5)"],
        "Remove one",
    ),
    "category id twice": Fault(
        add("categories", {"id": 2, "name": "white cell"}),
        "categories: id must be unique",
        REFUSED,
        ["categories[2] (id 2): id 2 occurs before, in categories[1] (id 2)"],
        "Remove or rename",
    ),
    "category name twice": Fault(
        add("categories", {"id": 3, "name": "platelet"}),
        "categories: name must be unique",
        REFUSED,
        ["categories[2] (id 3): name 'platelet' occurs before, in categories[1] (id 2)"],
        "Remove or rename",
    ),
    "category misspelt in one file": Fault(
        put("categories", 1, name="platelets"),
        "categories: training and validation must list the same, with the same ids",
        REFUSED,
        ["'platelets' is only in", "train.json (the other has 'platelet')"],
        "Correct the list of categories",
        count=2,
    ),
    "category with another id in one file": Fault(
        both(
            put("categories", 1, id=7),
            put_all("annotations", lambda a: {"category_id": {2: 7}.get(a["category_id"], 1)}),
        ),
        "categories: training and validation must list the same, with the same ids",
        REFUSED,
        ["'platelet' has id 7 in", "train.json and 2 in", "val.json"],
        "Correct the list of categories",
    ),
    "categories that differ in case and spaces": Fault(
        both(
            add_category(id=3, name="Red  Cell"),
            put("annotations", 1, category_id=3),
            put("annotations", 1, "val", category_id=3),
        ),
        "categories: names that differ only in case or spaces",
        NOTED,
        ["train.json: 'Red  Cell' and 'red cell'"],
        "one category_id",
        count=2,
    ),
    "class without a box": Fault(
        add_category(id=3, name="white cell"),
        "categories: no box in training",
        NOTED,
        ["train.json: 'white cell'"],
        "annotate some",
    ),
    "class with boxes in validation only": Fault(
        no_boxes_of("train", 2),
        "categories: boxes in validation, none in training",
        NOTED,
        ["train.json: 'platelet': 3 in", "val.json"],
        "Annotate some in training",
    ),
    "image without annotations": Fault(
        lambda made: made.train.update(annotations=made.train["annotations"][:-3]),
        "images: no annotation, in training",
        NOTED,
        ["train.json: images[3] (id 13): '13.png'"],
        "if they show no object",
    ),
    "the same file in both splits": Fault(
        share_image,
        "images: the same file in training and validation",
        NOTED,
        ["val.json: image id 21", "12.png"],
        "Remove them from one",
    ),
    "a link to a training image in validation": Fault(
        link_image,
        "images: the same file in training and validation",
        NOTED,
        ["val.json: image id 21", "21.png"],
        "Remove them from one",
    ),
    "the same image under two names": Fault(
        lambda made: shutil.copy(made.image("train", 2), made.image("val", 1)),
        "images: the same image in training and validation, under two names",
        NOTED,
        ["val.json: image id 21", "21.png is ", "12.png"],
        "Remove them from one",
        pixels=True,
    ),
    "a file that no record lists": Fault(
        lambda made: shutil.copy(made.image("train", 2), made.root / "images/more.png"),
        "images: files that no record lists",
        NOTED,
        ["images/more.png"],
        "left out",
    ),
    "empty file": Fault(
        on_image(lambda path: path.write_bytes(b"")),
        UNREADABLE,
        REFUSED,
        ["images[1] (id 11): cannot read image", "11.png: it is empty or not an image"],
        "Replace the file",
    ),
    "a text instead of an image": Fault(
        on_image(lambda path: path.write_text("<html>404</html>")),
        UNREADABLE,
        REFUSED,
        ["images[1] (id 11): cannot read image", "11.png: it is empty or not an image"],
        "Replace the file",
    ),
    "truncated file": Fault(
        on_image(lambda path: path.write_bytes(path.read_bytes()[:-2000])),
        UNREADABLE,
        REFUSED,
        ["images[1] (id 11): cannot read image", "11.png: "],
        "Replace the file",
        pixels=True,
    ),
    "a bomb": Fault(
        on_image(bomb),
        UNREADABLE,
        REFUSED,
        ["images[1] (id 11): cannot read image", "178956970"],
        "Replace the file",
    ),
    "another format than the suffix": Fault(
        on_image(lambda path: Image.open(path).convert("RGB").save(path, format="BMP")),
        "images: the suffix is that of another format",
        NOTED,
        ["images[1] (id 11)", "11.png holds BMP"],
        "go by the name",
    ),
    "16 bits": Fault(
        on_image(sixteen_bits),
        "images: 16 bits a channel",
        NOTED,
        ["images[1] (id 11)", "11.png"],
        "8 bits",
    ),
    "turned by EXIF, listed as stored": Fault(
        lambda made: turned_image(made, 6),
        "images: width and height are those before the file's EXIF orientation",
        REFUSED,
        ["images[1] (id 11)", "60 x 40, but", "11.jpg has 40 x 60"],
        "as it is displayed",
    ),
    "turned by EXIF, listed as displayed": Fault(
        lambda made: turned_image(made, 3),
        "images: turned by their EXIF orientation",
        NOTED,
        ["images[1] (id 11)", "11.jpg, orientation 3"],
        "as it is displayed",
    ),
}
