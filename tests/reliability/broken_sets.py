"""A small data set that is right, and one way after the other to break it."""

import functools
import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class Fault(NamedTuple):
    """What is done to the set, and what comes of it; assets/golden/messages.json has the words."""

    seed: Callable[[DataSet], object]
    effect: Effect
    pixels: bool  # only reading the pixels shows it


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


def put_boxes(change: Callable[[float, float, float, float], list[float]]) -> Callable:
    return put_all("annotations", lambda record: {"bbox": change(*record["bbox"])})


def replace_lists(**lists: object) -> Callable:
    return lambda made: made.train.update(lists)


def add(kind: str, record: object, split: str = "train") -> Callable:
    return lambda made: getattr(made, split)[kind].append(record)


def repeat(kind: str, index: int, **fields: object) -> Callable:
    def seed(made: DataSet) -> None:
        made.train[kind].append(made.train[kind][index] | fields)

    return seed


def on_image(change: Callable[[Path], object], split: str = "train", index: int = 1) -> Callable:
    return lambda made: change(made.image(split, index))


def image_names(make: Callable[[str], str]) -> Callable:
    return put_all("images", lambda record: {"file_name": make(record["file_name"])})


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


def turned_image(made: DataSet, orientation: int) -> None:
    path, exif = made.image("train", 1), Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).convert("RGB").save(path, format="JPEG", exif=exif)
    path.rename(path.with_suffix(".jpg"))
    made.train["images"][1]["file_name"] = "11.jpg"


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


def deep_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) colors of 16 bits as a PNG, which Pillow does not write."""
    height, width, _ = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")):
        content += struct.pack(">I", len(part)) + name + part
        content += struct.pack(">I", zlib.crc32(name + part))
    return content


def id_of_image(make: Callable[[int], object]) -> Callable:
    """Other ids of the training images, in the annotations too."""
    return both(
        put_all("images", lambda record: {"id": make(record["id"])}),
        put_all("annotations", lambda record: {"image_id": make(record["image_id"])}),
    )


BOX = "must be four finite numbers [x, y, width, height] in pixels"
UNREADABLE = "images: the file cannot be read"
VANISHED = "bbox has a side below 1 px at the training size"
NOTHING = "annotations: no box is left to train on"

# Of the training set; put(..., field=...) removes the field.
image, annotation, category = (
    functools.partial(put, name, index)
    for name, index in (("images", 1), ("annotations", 4), ("categories", 1))
)
SEEDS = {
    REFUSED: {
        # Lists.
        "no images": lambda made: made.train.pop("images"),
        "no categories": lambda made: made.train.pop("categories"),
        "no annotations": lambda made: made.train.pop("annotations"),
        "annotations by id": replace_lists(annotations={"1": {}}),
        "no image at all": replace_lists(images=[], annotations=[]),
        "no category at all": replace_lists(categories=[], annotations=[]),
        "a record that is no object": add("annotations", 7),
        # One field of one record.
        "image without id": image(id=...),
        "image id as text": image(id="11"),
        "image ids that are names": id_of_image("0000001_029{}".format),
        "image ids that are fractions": id_of_image(float),
        "image ids beyond 64 bits": id_of_image(lambda i: 10**20 + i),
        "category of an annotation is null": annotation(category_id=None),
        "image id twice": repeat("images", 1, file_name="more.png"),
        "no width": image(width=...),
        "height of zero": image(height=0),
        "width that is no number": image(width="60"),
        "width below zero": image(width=-1, height=-1),
        "width and height swapped": image(width=HEIGHT, height=WIDTH),
        "width of another version": image(width=2 * WIDTH, height=2 * HEIGHT),
        "no file name": image(file_name=...),
        "empty file name": image(file_name=""),
        "absolute file name": image(file_name="/data/11.png"),
        "file name that leaves the folder": image(file_name="../images/11.png"),
        "file name twice": image(file_name="10.png"),
        "no bbox": annotation(bbox=...),
        "a polygon without a bbox": annotation(
            bbox=..., area=..., segmentation=[[30, 22, 42, 22, 42, 31, 30, 31]]
        ),
        "bbox of three": annotation(bbox=[1, 2, 3]),
        "bbox with nan": annotation(bbox=[1, 2, math.nan, 4]),
        "bbox with infinity": annotation(bbox=[1, 2, math.inf, 4]),
        "bbox of texts": annotation(bbox=["1", "2", "3", "4"]),
        "image of an annotation unknown": annotation(image_id=99),
        "category of an annotation unknown": annotation(category_id=0),
        "category of an annotation as text": annotation(category_id="2"),
        "iscrowd of 2": annotation(iscrowd=2),
        "area that is no number": annotation(area="big"),
        "category without id": category(id=...),
        "category without name": category(name=...),
        "category id twice": add("categories", {"id": 2, "name": "white cell"}),
        "categories repeated as VIA does": both(repeat("categories", 0), repeat("categories", 1)),
        "image twice, alike": repeat("images", 0),
        "category name twice": add("categories", {"id": 3, "name": "platelet"}),
        "category misspelt in one file": category(name="platelets"),
        "category with another id in one file": both(
            category(id=7),
            put_all("annotations", lambda a: {"category_id": {2: 7}.get(a["category_id"], 1)}),
        ),
        # Nothing to train on.
        "every box drawn from right to left": put_boxes(lambda x, y, w, h: [60, y, -20, h]),
        "nothing but crowds": put_all("annotations", lambda a: {"iscrowd": 1}),
        "nothing but boxes without sides": put_boxes(lambda x, y, w, h: [0, 0, 0, 0]),
        "no annotation in training": replace_lists(annotations=[]),
        "nothing but boxes that vanish": put_all(
            "annotations", lambda a: {"bbox": [*a["bbox"][:2], 0.5, 3], "area": 1.5}
        ),
        "shares of the image": both(
            put_boxes(lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
            put_all("annotations", lambda a: {"area": 0.1}),
        ),
        # Image files.
        "file missing": on_image(Path.unlink),
        "half of the files missing": both(on_image(Path.unlink), on_image(Path.unlink, index=2)),
        "name with another suffix": image(file_name="11.jpg"),
        "names from the folder above": image_names("images/{}".format),
        "names in folders that are not there": image_names("day1/{}".format),
        "names that are URLs": image_names("https://example.org/a%20b/{}".format),
        "names with the codes of a URL": both(
            on_image(lambda path: path.rename(path.with_name("a b.png"))),
            image(file_name="a%20b.png"),
        ),
        "all files missing": image_names("gone_{}".format),
        "colors of 12 bits in 16": on_image(
            lambda path: path.write_bytes(deep_png(np.full((HEIGHT, WIDTH, 3), 4095, ">u2")))
        ),
        "empty file": on_image(lambda path: path.write_bytes(b"")),
        "a text instead of an image": on_image(lambda path: path.write_text("<html>404</html>")),
        "truncated file": on_image(lambda path: path.write_bytes(path.read_bytes()[:-2000])),
        "a bomb": on_image(bomb),
        "turned by EXIF, listed as stored": lambda made: turned_image(made, 6),
    },
    LOST: {
        "box without width": annotation(bbox=[30, 22, 0, 9]),
        "box drawn from below": annotation(bbox=[30, 22, 12, -9]),
        "box of two negative sides that is in the image neither way": annotation(bbox=[-1] * 4),
        "box outside the image": annotation(bbox=[130, 22, 12, 9]),
        "box that vanishes at the training size": annotation(bbox=[30, 22, 12, 0.4], area=4.8),
    },
    REPAIRED: {
        "annotation id 0": annotation(id=0),
        "annotation without id": annotation(id=...),
        "annotation id twice": annotation(id=1),
        "annotation id as text": annotation(id="5"),
        "no iscrowd": annotation(iscrowd=...),
        "no area": annotation(area=...),
        "box across the border": annotation(bbox=[55, 22, 12, 9]),
        "file name with backslashes": hidden_in_folder,
    },
    NOTED: {
        "area of zero": annotation(area=0),
        "area beyond the box": annotation(area=5000),
        "box to be ignored": annotation(ignore=1),
        "rotated box": annotation(attributes={"rotation": 296.7}),
        "thin box": annotation(bbox=[30, 22, 12, 0.8], area=9.6),
        "two corners": put_boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
        "the same box twice": repeat("annotations", 4, id=99),
        "nothing to be found in validation": lambda made: made.val.update(annotations=[]),
        "categories that differ in case and spaces": both(
            add_category(id=3, name="Red  Cell"),
            put("annotations", 1, category_id=3),
            put("annotations", 1, "val", category_id=3),
        ),
        "class without a box": add_category(id=3, name="white cell"),
        "class with boxes in validation only": no_boxes_of("train", 2),
        "image without annotations": lambda made: made.train.update(
            annotations=made.train["annotations"][:-3]
        ),
        "the same file in both splits": share_image,
        "a link to a training image in validation": link_image,
        "the same image under two names": lambda made: shutil.copy(
            made.image("train", 2), made.image("val", 1)
        ),
        "a file that no record lists": lambda made: shutil.copy(
            made.image("train", 2), made.root / "images/more.png"
        ),
        "another format than the suffix": on_image(
            lambda path: Image.open(path).convert("RGB").save(path, format="BMP")
        ),
        "16 bits": on_image(
            lambda path: Image.fromarray(np.full((HEIGHT, WIDTH), 40000, np.uint16)).save(path)
        ),
        "turned by EXIF, listed as displayed": lambda made: turned_image(made, 3),
    },
}
# What only their pixels show.
IN_PIXELS = ("the same image under two names", "truncated file")
FAULTS = {
    name: Fault(seed, effect, name in IN_PIXELS)
    for effect, seeds in SEEDS.items()
    for name, seed in seeds.items()
}
