"""Small data sets in every format."""

import json

import pytest
from PIL import Image

from scripts.convert_dataset import main


@pytest.fixture
def draw(tmp_path):
    """Writes images: ``draw("images", {"a.png": (64, 48)})``, and gives their folder."""

    def write(folder, sizes):
        for name, size in sizes.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, "gray").save(path)
        return tmp_path / folder

    return write


@pytest.fixture
def put(tmp_path):
    """Writes files below a folder, and gives the last: ``put({"labels/a.txt": "0 .5 .5 1 1"})``."""

    def write(files, below=""):
        for name, content in files.items():
            path = tmp_path / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                content = json.dumps(content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def run(capsys):
    """Runs the script; gives status, stdout in one line, and stderr."""

    def convert(source_format, target, *arguments):
        status = main(["--from", source_format, "--to", target, *map(str, arguments)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out, printed.err

    return convert


@pytest.fixture
def converted(run, tmp_path):
    """Converts to COCO in ``tmp_path/out``; gives what is printed, in one line."""

    def convert(source_format, *arguments):
        options = ["--overwrite"] if (tmp_path / "out").exists() else []
        status, out, err = run(source_format, "coco", *arguments, tmp_path / "out", *options)
        assert (status, err) == (0, "")
        return " ".join(out.split())

    return convert


@pytest.fixture
def refused(run, tmp_path):
    """Runs the script on something wrong; gives its lines on stderr. Nothing is written."""

    def convert(source_format, *arguments, target="coco"):
        output = tmp_path / "never"
        status, out, err = run(source_format, target, *arguments, output)
        assert (status, out) == (1, "")
        assert not output.exists()
        assert not list(tmp_path.glob(".*partial"))
        return err.splitlines()

    return convert


@pytest.fixture
def written(tmp_path):
    """A split in ``tmp_path/out``: images (name, width, height), boxes (image, class, bbox)."""

    def read(split):
        found = json.loads((tmp_path / f"out/{split}.json").read_text())
        names = {image["id"]: image["file_name"] for image in found["images"]}
        classes = {category["id"]: category["name"] for category in found["categories"]}
        images = [(i["file_name"], i["width"], i["height"]) for i in found["images"]]
        return images, [
            (names[a["image_id"]], classes[a["category_id"]], a["bbox"])
            for a in found["annotations"]
        ]

    return read
