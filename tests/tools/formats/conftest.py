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
    """Writes files: ``put({"labels/a.txt": "0 .5 .5 1 1"})``; texts, bytes, or JSON."""

    def write(files, below=""):
        for name, content in files.items():
            path = tmp_path / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                content = json.dumps(content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / below

    return write


@pytest.fixture
def convert(capsys):
    """Runs the script; gives status, stdout and stderr."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return run


@pytest.fixture
def refused(convert, tmp_path):
    """Runs the script on something wrong; gives its lines on stderr. Nothing is written."""

    def run(*arguments):
        output = tmp_path / "never"
        status, out, err = convert(*arguments, output)
        assert (status, out) == (1, "")
        assert not output.exists()
        assert not list(tmp_path.glob(".*partial"))
        return err.splitlines()

    return run
