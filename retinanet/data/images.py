"""The one reader of image files."""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from retinanet.data.file_kinds import kind_of_file

try:  # torchvision has announced that it will drop its decoders; Pillow gives the same pixels
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

# Images above this are refused before they are decoded: a file of a megabyte can claim
# gigabytes. Pillow's own limit.
MAX_PIXELS = 178_956_970
# Formats that never turn the image while loading it, so that their header tells its size.
_PLAIN_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "PPM")
# torchvision's messages begin with the place in its source.
_PLACE = re.compile(r"^\w+, \S+\.cpp:\d+, ")
# What decoders raise on files that are damaged, one way or another.
_DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, ArithmeticError, LookupError, TypeError),
    *(AttributeError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
)

Result = TypeVar("Result")


class BadImage(ValueError):  # noqa: N818 - reads as what it is
    """An image file that cannot be read; the message names it and the cause."""


def read_image(path: Path | str) -> Tensor:
    """The pixels of an image file as it is displayed.

    The EXIF orientation is applied. Grey becomes three equal channels, palettes, CMYK and other
    color spaces become RGB, alpha is left away, and of several frames the first is kept. Of grey
    values above 255 the upper 8 bits of those in use are kept (10, 12, 14 or 16, by the brightest
    pixel of the file), of colors of 16 bits the upper 8.

    Args:
        path: JPEG, PNG or whatever else Pillow opens; the suffix does not matter.

    Returns:
        (3, H, W) uint8 RGB, channels last in memory.

    Raises:
        FileNotFoundError: no such file.
        BadImage: the file is not an image, damaged, or larger than ``MAX_PIXELS``.
    """
    return _opened(path, _pixels)


class Header(NamedTuple):
    """What the beginning of an image file says."""

    height: int  # as displayed, pixels
    width: int
    orientation: int  # EXIF, 1 to 8
    format: str  # Pillow's name
    bits: int  # of a channel: 8, or 16 of which 8 are read
    certain: bool  # whether :func:`read_image` is sure to give this size if it gives any


def read_header(path: Path | str) -> Header:
    """Size and kind of an image file, without decoding it.

    Args:
        path: as for :func:`read_image`.

    Raises:
        FileNotFoundError: no such file.
        BadImage: the file is not an image, or larger than ``MAX_PIXELS``.
    """
    return _opened(path, _header)


def _opened(path: Path | str, read: Callable[[BinaryIO], Result]) -> Result:
    """What ``read`` makes of a file; its errors name the file and the cause in one line."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - ten times the speed of pathlib
    except (OSError, ValueError):  # not there, or a name that no file can have
        raise FileNotFoundError(f"no image {path}.") from None
    if not stat.S_ISREG(mode):  # reading from a pipe would wait for ever
        what = "directory" if stat.S_ISDIR(mode) else "device or a pipe"
        raise BadImage(f"cannot read image {path}: it is a {what}, not a file.")
    try:
        # Pillow warns of large images and odd metadata, torchvision of its plans.
        with warnings.catch_warnings(), open(path, "rb") as file:  # noqa: PTH123
            warnings.simplefilter("ignore")
            return read(file)
    except Image.UnidentifiedImageError as error:
        kind = kind_of_file(path) or "it is not an image"
        raise BadImage(f"cannot read image {path}: {kind}.") from error
    except _DECODING_ERRORS as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        cause = _PLACE.sub("", line).rstrip(".")
        raise BadImage(f"cannot read image {path}: {cause}.") from error


@functools.cache
def _formats() -> list[str]:
    """What Pillow opens, but for EPS: that is a program, which it would give to Ghostscript."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _open(file: BinaryIO) -> Image.Image:
    """The image, not decoded, and not too large to be."""
    file.seek(0)
    image = Image.open(file, formats=_formats())
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are above the limit of {MAX_PIXELS}")
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(ExifTags.Base.BitsPerSample, (8,)))
    if bits > 8 and tags.get(ExifTags.Base.PlanarConfiguration) == 2:
        raise BadImage("Pillow misreads 16 bits in separate planes; convert it to 8 bits")
    return image


def _has_16_bits(image: Image.Image) -> bool:
    """Whether the file of an image that is not loaded yet holds 16 bits of a channel."""
    # What Pillow's decoders are told, such as RGB;16B, of which they keep the upper 8.
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _header(file: BinaryIO) -> Header:
    image = _open(file)
    # Pillow would decode a PNG to find metadata that may stand behind the pixels.
    orientation = 1 if image.format == "PNG" and "exif" not in image.info else _orientation(image)
    size = image.size if orientation >= 5 else image.size[::-1]  # height, width
    plain = image.format in _PLAIN_FORMATS or orientation == 1
    certain = plain and image.mode not in ("I", "F")
    bits = 16 if _has_16_bits(image) or image.mode.startswith("I") else 8
    return Header(*size, orientation, image.format or "", bits, certain)


def _pixels(file: BinaryIO) -> Tensor:
    """Header first, then pixels, then orientation."""
    image = _open(file)
    if decode_jpeg is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
        orientation = _orientation(image)
        file.seek(0)
        content = torch.from_numpy(np.fromfile(file, dtype=np.uint8))
        try:
            return _turn(decode_jpeg(content, mode=ImageReadMode.RGB), orientation)
        except RuntimeError:
            # Torchvision refuses some that Pillow reads; a file must not depend on who reads it.
            image = _open(file)
    if image.format == "PNG":
        # Its checksums, at which Pillow does not look by itself: a flipped bit would be a pixel.
        image.verify()
        image = _open(file)
    return pillow_pixels(image)


def pillow_pixels(image: Image.Image) -> Tensor:
    """The pixels of an image of Pillow, as :func:`read_image` gives those of its file.

    Raises:
        BadImage: grey values that are not of 8 or 16 bits, colors of 12 bits in 16.
        OSError: the file it comes from is damaged.
    """
    deep = _has_16_bits(image)
    # Some formats turn the image while loading and only then know its orientation.
    image.load()
    orientation = _orientation(image)
    if image.mode == "F":
        raise BadImage("its grey values are fractions; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip at 255 and so make almost everything white.
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() >= 2**16):
            raise BadImage("its grey values are not in 0 to 65535; convert it to 8 or 16 bits")
        bits = max(8, int(values.max(initial=0)).bit_length())
        values = values >> (bits + bits % 2 - 8)
        pixels = np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)
    else:
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        pixels = np.array(image.convert("RGB"))
        if deep and 0 < pixels.max() < 16:
            raise BadImage("of 16 bits its colors use 12, and 8 are read; convert it to 8 bits")
    return _turn(torch.from_numpy(pixels).permute(2, 0, 1), orientation)  # (3, H, W)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or none that makes sense."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODING_ERRORS:  # damaged metadata does not spoil the pixels
        return 1
    return value if value in range(1, 9) else 1


def _turn(pixels: Tensor, orientation: int) -> Tensor:
    """Turn and mirror (3, H, W) pixels into the position of display.

    Source: EXIF 2.32, tag 0x0112. 5 to 8 swap the axes; then some are mirrored.
    """
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    axes = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(axes) if axes else pixels
