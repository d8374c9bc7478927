"""Fixtures for every test file."""

import os
from pathlib import Path

import pytest
import torch


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
