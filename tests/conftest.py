"""Fixtures and options for every test file."""

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retinanet.data.coco import read_coco
from retinanet.evaluation.detect import DetectionArrays

TALLIES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="tests/reliability at full length")
    parser.addoption("--record-golden", action="store_true", help="write assets of test_golden.py")


def pytest_configure() -> None:
    """One thread, and ctrl-c heard, here and in the processes that tests start."""
    # What a shell without job control starts in the background ignores ctrl-c.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One process of several sends its lines to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tallies"] = session.config.stash.get(TALLIES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    lines = getattr(node, "workeroutput", {}).get("tallies", [])  # a crashed one has sent none
    node.config.stash.setdefault(TALLIES, []).extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(TALLIES, [])
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a test of kernels runs: here, and with ``-m gpu`` on the GPU too."""
    return torch.device(request.param)


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


@pytest.fixture(autouse=True)
def _fresh_logger() -> Iterator[None]:
    """What a command in one test does to the package's logger does not reach the next."""
    yield
    logger = logging.getLogger("retinanet")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


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


@pytest.fixture
def make_data(tmp_path):
    """Writes an annotation file and reads it: ``make_data(3, [(0, 1, box), ...])``."""

    def make(num_images, rows, names=("cat", "dog"), **fields):
        """Rows are (image id, category id, xywh[, crowd]), ids from 1; fields replace lists."""
        found = {
            "images": [
                {"id": i + 1, "file_name": f"{i + 1}.jpg", "width": 640, "height": 480}
                for i in range(num_images)
            ],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int(any(crowd)),
                }
                for i, (image, category, box, *crowd) in enumerate(rows)
            ],
        } | fields
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
        return read_coco(path, tmp_path)

    return make


@pytest.fixture
def make_detections():
    """Arrays from COCO results: ``make_detections(data, [(image, category, box, score)])``."""

    def make(data, results, evaluated=None, num_capped=0):
        rank = {number: label for label, number in enumerate(data.category_ids)}
        results = sorted(results, key=lambda r: (r[0], -r[3]))
        return DetectionArrays(
            image_ids=np.array([r[0] for r in results], dtype=np.int64),
            boxes=np.array([r[2] for r in results], dtype=np.float64).reshape(-1, 4),
            scores=np.array([r[3] for r in results], dtype=np.float64),
            labels=np.array([rank[r[1]] for r in results], dtype=np.int64),
            evaluated=np.unique(data.image_ids if evaluated is None else evaluated),
            num_capped=num_capped,
        )

    return make
