"""What retinanet/README.md says of the detector's size is true."""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "retinanet"
ROW = re.compile(r"^\| \[(\S+)\]\(\1\) \| (\d+) \|", re.MULTILINE)
# The aim is 3,200 lines; this only goes down.
MOST_LINES, MOST_FILES = 3520, 18


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_reading_order_names_every_file_with_its_lines():
    text = (PACKAGE / "README.md").read_text()
    rows = ROW.findall(text)
    said = {name: int(number) for name, number in rows}
    assert said == {name: lines_of(PACKAGE / name) for name in said}
    total = sum(said.values())
    assert f"these {len(rows)} files, about {round(total, -2)} lines" in text


def test_the_detector_can_be_read_in_an_evening():
    rows = ROW.findall((PACKAGE / "README.md").read_text())
    assert len(rows) <= MOST_FILES
    assert sum(int(number) for _, number in rows) <= MOST_LINES
