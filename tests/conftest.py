"""Fixtures and options for every test file."""

import os
from pathlib import Path

import pytest
import torch

TALLIES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests/reliability at full length")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(TALLIES, [])
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def times(request):
    """How often a test of tests/reliability tries: ``times(short, long)``."""

    def choose(short: int, long: int) -> int:
        return long if request.config.getoption("--long") else short

    return choose


@pytest.fixture
def tally(request):
    """Print a line of counts when all tests are over: ``tally("40 files, 0 unreadable")``."""
    return request.config.stash.setdefault(TALLIES, []).append


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data():
    """Folder of a real data set: ``real_data("coco_slice")``."""

    def folder(name: str) -> Path:
        root = os.environ.get("RETINANET_TEST_DATA")
        if not root:
            pytest.skip(
                "set RETINANET_TEST_DATA to a folder with coco_slice, bccd, cocoapi_fixture"
            )
        return Path(root) / name

    return folder
