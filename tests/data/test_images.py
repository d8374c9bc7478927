"""Every kind of image file becomes the uint8 RGB picture that a viewer shows."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from retinanet.data import images
from retinanet.data.images import BadImage, read_header, read_image

HEIGHT, WIDTH = 5, 7


@pytest.fixture
def rgb():
    """A smooth picture without symmetry, so that every orientation differs."""
    y, x = np.mgrid[0:40, 0:56]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


def pixels_of(path):
    return read_image(path).permute(1, 2, 0).numpy()


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, bits, color, rows):
    """A PNG file byte by byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "ppm"])
def test_lossless_formats_give_back_their_pixels(tmp_path, rgb, suffix):
    picture = Image.fromarray(rgb)
    if suffix == "gif":
        picture = picture.quantize(16)
    path = tmp_path / f"a.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    read = read_image(path)
    assert read.dtype == torch.uint8
    assert np.array_equal(pixels_of(path), np.array(picture.convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_are_pillows(tmp_path, rgb, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path, quality=85, **options)
    assert np.array_equal(pixels_of(path), np.array(Image.open(path)))


def test_jpeg_pixels_are_the_same_without_torchvisions_decoder(tmp_path, rgb, monkeypatch):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(path, exif=exif)
    fast = read_image(path)
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert torch.equal(read_image(path), fast)


def test_real_jpeg_pixels_are_pillows(real_data):
    for path in sorted((real_data("coco_slice") / "val2017").glob("*.jpg")):
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert np.array_equal(pixels_of(path), np.array(expected)), path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied(tmp_path, rgb, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb).save(path, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert expected.size == ((40, 56) if orientation >= 5 else (56, 40))
    assert np.array_equal(pixels_of(path), np.array(expected))


def test_orientation_6_by_hand():
    # The first row of the file is the right side of the picture.
    stored = torch.tensor([[1, 2], [3, 4], [5, 6]]).expand(3, 3, 2)
    assert images._turn(stored, 6)[0].tolist() == [[5, 3, 1], [6, 4, 2]]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientation_without_meaning_changes_nothing(tmp_path, rgb, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path, exif=exif)
    assert read_image(path).shape == (3, 40, 56)


def test_damaged_exif_does_not_spoil_the_pixels(tmp_path, rgb):
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert read_image(path).shape == (3, 40, 56)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_grey_becomes_three_equal_channels(tmp_path, rgb, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb[..., 0]).save(path)
    red, green, blue = read_image(path)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)
    assert np.array_equal(red.numpy(), np.array(Image.open(path)))


def test_black_and_white_is_0_and_255(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.eye(6) > 0).save(path)
    assert np.array_equal(pixels_of(path)[..., 0], 255 * np.eye(6))


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_a_palette_gives_its_colors(tmp_path, transparency):
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode=None)
    picture = picture.convert("L")
    picture.putpalette([10, 20, 30, 200, 100, 50])
    path = tmp_path / "a.png"
    picture.save(path, **({} if transparency is None else {"transparency": transparency}))
    expected = [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]
    assert pixels_of(path).tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_left_away(tmp_path, rgb, mode):
    picture = Image.fromarray(rgb).convert(mode)
    picture.putalpha(Image.fromarray(rgb[..., 1]))
    path = tmp_path / "a.png"
    picture.save(path)
    expected = np.array(Image.fromarray(rgb).convert(mode[:-1]).convert("RGB"))
    assert np.array_equal(pixels_of(path), expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = tmp_path / "a.jpg"
    # Cyan ink only: no red light.
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(path, quality=95)
    red, green, blue = read_image(path).float().mean(dim=(1, 2)).tolist()
    assert red < 10
    assert green > 245
    assert blue > 245


def test_grey_of_16_bits_keeps_its_upper_8(tmp_path):
    path = tmp_path / "a.png"
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert pixels_of(path)[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_grey_of_16_bits_in_tiff_keeps_its_upper_8(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)).save(path)
    assert pixels_of(path)[0, :, 0].tolist() == [0, 1, 255]


def test_color_of_16_bits_keeps_its_upper_8(tmp_path):
    path = tmp_path / "a.png"
    row = b"\0" + struct.pack(">6H", 0, 256, 65535, 32768, 257, 511)
    path.write_bytes(png(2, 1, 16, 2, row))
    assert pixels_of(path).tolist() == [[[0, 1, 255], [128, 1, 1]]]


@pytest.mark.parametrize(("mode", "word"), [("F", "fractions"), ("I", "0 to 65535")])
def test_pixels_without_a_known_white_are_refused(tmp_path, mode, word):
    path = tmp_path / "a.tiff"
    Image.new(mode, (4, 4), 70000).save(path)
    with pytest.raises(BadImage, match=word):
        read_image(path)


def test_the_first_of_several_frames_is_read(tmp_path, rgb):
    path = tmp_path / "a.gif"
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue])
    assert pixels_of(path)[0, 0].tolist() == [255, 0, 0]


def test_the_suffix_does_not_matter(tmp_path, rgb):
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb).save(path, format="PNG")
    assert np.array_equal(pixels_of(path), rgb)


def test_the_tensor_is_writable_and_owns_its_pixels(tmp_path, rgb):
    for suffix in ("png", "jpg"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(rgb).save(path)
        read_image(path).zero_()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image .*gone.jpg"):
        read_image(tmp_path / "gone.jpg")


def jpeg_bytes(rgb):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="JPEG")
    return file.getvalue()


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_a_truncated_file_is_refused_by_name(tmp_path, rgb, monkeypatch, suffix, share, decoder):
    if decoder == "pillow":
        monkeypatch.setattr(images, "decode_jpeg", None)
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadImage, match=r"cannot read image .*cut\.") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>404</html>", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.jpg: it is empty or not an image\."):
        read_image(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BadImage, match="directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [(20000, 20000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size, 8, 0, b"\0"))
    with pytest.raises(BadImage, match=r"bomb\.png"):
        read_image(path)


def test_a_large_image_below_the_limit_gives_no_warning(tmp_path, monkeypatch, rgb):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", rgb[..., 0].size - 1)
    assert read_image(path).shape == (3, 40, 56)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_header_that_is_certain_tells_the_size_that_is_read(tmp_path, rgb, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb[:, :40]).save(path, exif=exif)
    header = read_header(path)
    assert header.certain == (suffix != "tiff" or orientation == 1)
    if header.certain:
        assert (header.height, header.width) == tuple(read_image(path).shape[1:])
        assert header.orientation == orientation


def test_a_header_does_not_need_the_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-1000])
        assert (read_header(path).height, read_header(path).width) == (40, 56)
        with pytest.raises(BadImage):
            read_image(path)


def test_a_header_says_what_is_left_out_of_16_bits(tmp_path):
    grey = tmp_path / "grey.png"
    Image.fromarray(np.zeros((3, 4), dtype=np.uint16)).save(grey)
    color = tmp_path / "color.png"
    color.write_bytes(png(4, 3, 16, 2, b"\0" * 3 * (1 + 4 * 6)))
    plain = tmp_path / "plain.png"
    Image.fromarray(np.zeros((3, 4), dtype=np.uint8)).save(plain)
    assert [read_header(path).bits for path in (grey, color, plain)] == [16, 16, 8]


def test_a_header_of_something_else_is_a_bad_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(BadImage, match=r"a\.jpg: it is empty or not an image"):
        read_header(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_header(tmp_path / "gone.jpg")


def test_programs_in_the_place_of_images_are_refused(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="it is empty or not an image"):
        read_image(tmp_path / "a.jpg")
