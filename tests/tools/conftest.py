"""What the tests of several tools share."""

import pytest
from PIL import Image


@pytest.fixture
def make_set(make_data):
    """Like make_data, with black 640 x 480 files for the images."""

    def make(num_images, rows, **fields):
        data = make_data(num_images, rows, **fields)
        for index in range(len(data)):
            Image.new("RGB", (640, 480)).save(data.image_path(index))
        return data

    return make
