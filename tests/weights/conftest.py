"""An image for other people's networks."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """200 x 296 pixels of blobs: the training size of these tests, so that nothing resizes it."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    noise = np.random.default_rng(3).integers(0, 255, (10, 15, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((296, 200), Image.Resampling.BICUBIC).save(path)
    return path
