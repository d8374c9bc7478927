"""Odd, damaged and hostile image files: the right pixels, or one line that names the file."""

import functools
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from retinanet.data import images
from retinanet.data.images import BadImage, read_header, read_image

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 40, 56
# What a case says of its file, beside the pixels themselves.
REFUSED, MISSING, EITHER = "refused", "missing", "either"

# Markers of JPEG: start of frame (baseline), huge variants of it, end.
SOF0, EOI = b"\xff\xc0", b"\xff\xd9"


def picture():
    """Smooth, without symmetry: every orientation differs, and JPEG keeps it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


def noise():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def saved(pixels, kind, **options):
    file = io.BytesIO()
    made = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    made.save(file, format=kind, **options)
    return file.getvalue()


def shown(content):
    """What a viewer shows, by Pillow alone."""
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def chunk(kind, content, crc=None):
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width, height, bits, color, rows, more=b"", end=True, level=9):
    """A PNG file byte by byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), more]
    parts += [chunk(b"IDAT", zlib.compress(rows, level)), chunk(b"IEND", b"") if end else b""]
    return b"".join(parts)


def rows_of(pixels):
    return b"".join(b"\0" + row.tobytes() for row in pixels)


@functools.cache
def bomb(megabytes):
    """A few kilobytes that unpack to many megabytes."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(2**20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


def bmp(width, height):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 12, 0, 0, 54) + header + bytes(12)


def resized_jpeg(width, height, content):
    """A JPEG file whose header tells another size."""
    place = content.index(SOF0) + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def frames(kind, **options):
    first, second = Image.fromarray(picture()), Image.new("RGB", (WIDTH, HEIGHT), "blue")
    return saved(first, kind, save_all=True, append_images=[second], **options)


def truncated():
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        content = saved(noise(), kind)
        for share in (0.02, 0.3, 0.6, 0.9):
            yield f"truncated to {share} {kind}", content[: int(share * len(content))], REFUSED
    progressive = saved(noise(), "JPEG", progressive=True)
    yield "truncated progressive JPEG", progressive[: len(progressive) // 2], REFUSED
    yield "PNG without its last 20 bytes", saved(noise(), "PNG")[:-20], REFUSED
    yield "JPEG without its last 20 bytes", saved(noise(), "JPEG")[:-20], REFUSED


def no_images():
    yield "zero bytes", b"", REFUSED
    yield "text", b"this is no image\n", REFUSED
    yield "a web page", b"<html><body>404</body></html>", REFUSED
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", REFUSED
    yield "PDF", b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF", REFUSED
    yield "zeros", bytes(1000), REFUSED
    yield "the start of a JPEG", b"\xff\xd8\xff", REFUSED
    yield "JPEG without a frame", b"\xff\xd8" + EOI, REFUSED
    yield "PNG signature alone", b"\x89PNG\r\n\x1a\n", REFUSED
    yield "a film", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200), REFUSED
    yield (
        "pointer of Git LFS",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        REFUSED,
    )
    # A program, which Pillow would give to Ghostscript.
    yield "EPS", saved(picture(), "EPS"), REFUSED


def odd_jpegs():
    plain = saved(picture(), "JPEG", quality=90)
    yield "progressive JPEG", saved(picture(), "JPEG", progressive=True), shown
    yield "JPEG 4:4:4", saved(picture(), "JPEG", subsampling=0), shown
    yield "grey JPEG", saved(picture()[..., 0], "JPEG"), shown
    yield "CMYK JPEG", saved(Image.fromarray(picture()).convert("CMYK"), "JPEG"), shown
    yield "JPEG in a PNG's name", plain, shown
    yield "JPEG and a tail", plain + b"\0" * 500 + b"tail", shown
    yield "two JPEGs in one", plain + saved(noise(), "JPEG"), shown
    yield "JPEG without its end", plain.removesuffix(EOI), EITHER
    yield "JPEG after other bytes", b"xx" + plain, REFUSED
    yield "JPEG of no width", resized_jpeg(0, HEIGHT, plain), REFUSED
    yield "JPEG of no height", resized_jpeg(WIDTH, 0, plain), REFUSED
    yield "JPEG one pixel wide", saved(picture()[:, :1], "JPEG"), shown
    yield "JPEG one pixel high", saved(picture()[:1], "JPEG"), shown
    yield "JPEG of twice the height", resized_jpeg(WIDTH, 2 * HEIGHT, plain), EITHER
    yield "JPEG of 12 bits", plain.replace(SOF0 + b"\0\x11\x08", SOF0 + b"\0\x11\x0c"), REFUSED
    for code in (0xC1, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB):
        yield f"JPEG marked {code:x}", plain.replace(SOF0, bytes([0xFF, code])), EITHER
    scan = plain.index(b"\xff\xda") + 20
    yield "JPEG with zeros in its scan", plain[:scan] + bytes(60) + plain[scan + 60 :], EITHER
    yield "JPEG with markers in its scan", plain[:scan] + b"\xff\xd9" * 9 + plain[scan:], EITHER
    yield "JPEG without tables", plain.replace(b"\xff\xc4", b"\xff\xfe"), EITHER
    for start in (b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"", b"garbage" * 5000):
        content = saved(picture(), "JPEG", exif=b"Exif\0\0" + start)
        yield f"JPEG with damaged EXIF {start[:9]!r}", content, saved_pixels(plain_like(content))


def plain_like(content):
    """The same JPEG file without its EXIF segment."""
    start = content.index(b"\xff\xe1")
    length = struct.unpack(">H", content[start + 2 : start + 4])[0]
    return content[:start] + content[start + 2 + length :]


def saved_pixels(content):
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def odd_pngs():
    exact, rows = picture(), rows_of(picture())
    good = saved(exact, "PNG")
    yield "PNG in a JPEG's name", good, exact
    yield "PNG and a tail", good + bytes(100), exact
    yield "PNG without its end", png(WIDTH, HEIGHT, 8, 2, rows, end=False), REFUSED
    yield "PNG with a wrong checksum of pixels", damaged_png(good, b"IDAT"), REFUSED
    stored = png(WIDTH, HEIGHT, 8, 2, rows, level=0)
    yield "PNG with a flipped bit", stored[:900] + bytes([stored[900] ^ 1]) + stored[901:], REFUSED
    yield "PNG with a wrong checksum of its header", damaged_png(good, b"IHDR"), REFUSED
    yield "PNG of no size", png(0, 0, 8, 2, b""), REFUSED
    yield "PNG of no height", png(WIDTH, 0, 8, 2, b""), REFUSED
    yield "PNG with too few rows", png(WIDTH, HEIGHT, 8, 2, rows[:-400]), REFUSED
    yield "PNG with too many rows", png(WIDTH, HEIGHT, 8, 2, rows + bytes(1000)), EITHER
    yield "PNG without rows", png(WIDTH, HEIGHT, 8, 2, b""), REFUSED
    yield "PNG of 3 bits", png(WIDTH, HEIGHT, 3, 2, rows), REFUSED
    yield "PNG one pixel high", png(WIDTH, 1, 8, 2, rows_of(exact[:1])), exact[:1]
    yield "PNG one pixel wide", png(1, HEIGHT, 8, 2, rows_of(exact[:, :1])), exact[:, :1]
    grey = np.repeat(exact[..., :1], 3, axis=-1)
    yield "grey PNG", saved(exact[..., 0], "PNG"), grey
    wide = exact[..., 0].astype(np.uint16) * 256 + 77
    yield "PNG of 16 bits", saved(Image.fromarray(wide), "PNG"), grey
    wide = rows_of((exact.astype(">u2") * 256 + 9).astype(">u2"))
    yield "color PNG of 16 bits", png(WIDTH, HEIGHT, 16, 2, wide), exact
    ones = np.repeat(255 * np.eye(9, dtype=np.uint8)[..., None], 3, axis=-1)
    yield "PNG of 1 bit", saved(Image.fromarray(np.eye(9) > 0), "PNG"), ones
    palette = Image.fromarray(exact).quantize(16)
    colors = np.array(palette.convert("RGB"))
    yield "palette", saved(palette, "PNG"), colors
    yield "palette and transparency", saved(palette, "PNG", transparency=3), colors
    yield "palette of transparencies", saved(palette, "PNG", transparency=b"\0\x80"), colors
    transparent = Image.fromarray(exact)
    transparent.putalpha(Image.fromarray(exact[..., 1]))
    yield "PNG with alpha", saved(transparent, "PNG"), exact
    both = Image.fromarray(exact[..., 0])
    both.putalpha(Image.fromarray(exact[..., 1]))
    yield "grey PNG with alpha", saved(both, "PNG"), grey
    yield "transparent color", saved(Image.fromarray(exact), "PNG", transparency=(0, 0, 0)), exact
    for kind, start in ((b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")):
        large = chunk(kind, start + bomb(20))
        yield f"PNG with a huge {kind!r}", png(WIDTH, HEIGHT, 8, 2, rows, large), EITHER
    long = png(WIDTH, HEIGHT, 8, 2, rows).replace(b"\0\0\0\x0dIHDR", b"\xff\xff\xff\xffIHDR")
    yield "PNG with a header of 4 GiB", long, REFUSED


def damaged_png(content, kind):
    place = content.index(kind)
    length = struct.unpack(">I", content[place - 4 : place])[0]
    crc = place + 4 + length
    return content[:crc] + bytes([content[crc] ^ 1]) + content[crc + 1 :]


def odd_others():
    exact, few = picture(), Image.fromarray(picture()).quantize(16)
    yield "film of GIF", frames("GIF"), shown
    yield "film of PNG", frames("PNG"), exact
    if features.check("webp"):
        yield "WebP", saved(exact, "WEBP", lossless=True), exact
        yield "film of WebP", frames("WEBP", lossless=True), exact
    yield "GIF", saved(few, "GIF"), np.array(few.convert("RGB"))
    yield "GIF of no size", b"GIF89a" + bytes(7) + b";", REFUSED
    yield "BMP", saved(exact, "BMP"), exact
    two = np.array([[[3, 2, 1], [6, 5, 4]]], dtype=np.uint8)
    yield "BMP from the top", bmp(2, -1)[:54] + bytes([1, 2, 3, 4, 5, 6, 0, 0]), two
    yield "PPM", saved(exact, "PPM"), exact
    yield "PPM of no numbers", b"P6 x y 255\n", REFUSED
    yield "ICO", saved(Image.fromarray(exact[:32, :32]), "ICO", sizes=[(32, 32)]), exact[:32, :32]
    yield "TGA", saved(exact, "TGA"), exact
    yield "TIFF", saved(exact, "TIFF"), exact
    yield "TIFF of pages", frames("TIFF"), exact
    yield "TIFF of CMYK", saved(Image.fromarray(exact).convert("CMYK"), "TIFF"), shown
    if features.check("libtiff"):
        yield "TIFF packed", saved(exact, "TIFF", compression="tiff_lzw"), exact
    if features.check("jpg_2000"):
        yield "JPEG 2000", saved(exact, "JPEG2000"), shown


def bombs():
    """A few bytes each that claim to be pictures of gigabytes."""
    jpeg = saved(picture(), "JPEG")
    yield "PNG of 400 megapixels", png(20000, 20000, 8, 0, b"\0"), REFUSED
    yield "PNG of more than memory", png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), REFUSED
    yield "PNG of 2**32 pixels", png(2**16, 2**16, 1, 0, b"\0"), REFUSED
    yield "JPEG of 4 gigapixels", resized_jpeg(65500, 65500, jpeg), REFUSED
    yield "BMP of 900 megapixels", bmp(30000, 30000), REFUSED
    yield "BMP of a negative height", bmp(30000, -(2**31)), REFUSED
    gif = b"GIF89a\xff\xff\xff\xff\0\0\0" + saved(picture(), "GIF")[13:]
    yield "GIF of 4 gigapixels", gif, REFUSED
    yield "PPM of gigapixels", b"P6 100000 100000 255\n\0\0\0", REFUSED
    yield "PPM of astronomers", b"P6 " + b"9" * 5000 + b" 1 255\n", REFUSED
    yield "TGA of 4 gigapixels", b"\0\0\x02" + bytes(9) + b"\xff\xff\xff\xff\x18\0", REFUSED
    if features.check("webp"):
        webp = saved(picture(), "WEBP", lossless=True)
        place = webp.index(b"VP8L") + 9
        size = struct.pack("<I", (16383) | (16383 << 14))
        yield "WebP of 268 megapixels", webp[:place] + size + webp[place + 4 :], REFUSED
    tiff = saved(picture(), "TIFF")
    large = tiff.replace(
        struct.pack("<HHII", 256, 4, 1, WIDTH), struct.pack("<HHII", 256, 4, 1, 10**6)
    )
    large = large.replace(
        struct.pack("<HHIHH", 256, 3, 1, WIDTH, 0), struct.pack("<HHII", 256, 4, 1, 10**8)
    )
    yield "TIFF of gigapixels", large, REFUSED
    rows = rows_of(np.zeros((8, 8), np.uint8))
    for kind in (b"iCCP", b"zTXt"):
        large = png(8, 8, 8, 0, rows, chunk(kind, b"x\0\0" + bomb(120)))
        yield f"PNG with a {kind!r} of 120 MiB", large, EITHER


GROUPS = (truncated, no_images, odd_jpegs, odd_pngs, odd_others)


def outcome(path):
    """The pixels, or the one kind of error there may be."""
    try:
        signal.alarm(20)  # ends a test that would wait for ever
        pixels = read_image(path)
    except (BadImage, FileNotFoundError) as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return MISSING if isinstance(error, FileNotFoundError) else REFUSED
    finally:
        signal.alarm(0)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy()


def by_both(path, monkeypatch):
    """What each of the two decoders makes of a file."""
    found = [outcome(path)]
    with monkeypatch.context() as patched:
        patched.setattr(images, "decode_jpeg", None)
        found.append(outcome(path))
    return found


# What two versions of libjpeg make of the last rows before the damage differs by so much.
ROUNDING = 3


def agree(first, second, most=0):
    if isinstance(first, str) or isinstance(second, str):
        return first == second
    same_size = first.shape == second.shape
    return same_size and np.abs(first.astype(int) - second).max(initial=0) <= most


def test_odd_images_give_their_pixels_or_one_line(tmp_path, monkeypatch, tally):
    assert images.decode_jpeg is not None
    counts = {"right": 0, REFUSED: 0}
    for number, (case, content, wanted) in enumerate(chain(*(group() for group in GROUPS))):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        found = by_both(path, monkeypatch)
        assert agree(*found), case
        if callable(wanted):
            wanted = wanted(content)
        assert wanted is EITHER or agree(found[0], wanted), case
        counts[REFUSED if isinstance(found[0], str) else "right"] += 1
    assert number > 80
    tally(
        f"odd images: {number + 1} files by both decoders, {counts['right']} with their pixels, "
        f"{counts[REFUSED]} refused in one line"
    )


def test_what_is_no_file_is_named_and_waits_for_nobody(tmp_path, monkeypatch, tally):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "pool.jpg")
    (tmp_path / "pool.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    wanted = {
        "folder.jpg": REFUSED,
        "loop.jpg": MISSING,
        "dangling.jpg": MISSING,
        "zeros.jpg": REFUSED,
        "pipe.jpg": REFUSED,
        "gone.jpg": MISSING,
        "x" * 300 + ".jpg": MISSING,
        "folder.jpg/a.jpg": MISSING,
        "half \ud800.jpg": MISSING,
    }
    for name, expected in wanted.items():
        assert by_both(tmp_path / name, monkeypatch) == [expected, expected], name
    tally(f"what is no image file: {len(wanted)} kinds, all named, none waits")


def damage(rng, content):
    changed = bytearray(content)
    place = rng.randrange(len(changed))
    kind = rng.choice(["flip a bit", "change bytes", "remove some", "insert some", "cut"])
    if kind == "flip a bit":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "change bytes":
        for _ in range(rng.randint(2, 20)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind == "remove some":
        del changed[place : place + rng.choice([1, 2, 10, 100])]
    elif kind == "insert some":
        changed[place:place] = rng.randbytes(rng.choice([1, 2, 10, 100]))
    else:
        del changed[place:]
    return bytes(changed)


def test_damaged_images_give_pixels_or_one_line_and_the_decoders_agree(
    tmp_path, monkeypatch, times, tally
):
    rng, path = random.Random(0), tmp_path / "a"
    jpegs = [
        saved(picture(), "JPEG"),
        saved(noise(), "JPEG", progressive=True),
        saved(picture()[..., 0], "JPEG"),
        saved(noise(), "JPEG", exif=exif(6), subsampling=2),
    ]
    others = [saved(picture(), kind) for kind in ("PNG", "GIF", "BMP", "TIFF", "PPM", "TGA")]
    refused = 0
    for number in range(times(600, 10_000)):
        content = damage(rng, rng.choice(jpegs if number % 3 else others))
        path.write_bytes(content)
        found = by_both(path, monkeypatch)
        assert agree(*found, ROUNDING), number
        refused += isinstance(found[0], str)
    assert refused > number / 10
    tally(
        f"damaged images: {number + 1} files by both decoders, {refused} refused in one line, "
        f"0 other errors, 0 disagreements"
    )


READ_ALL = """
import json, sys
from pathlib import Path
from retinanet.data import images

def kib(what):
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0])

for decoder in ("torchvision", "pillow"):
    for path in sorted(Path(sys.argv[1]).iterdir()):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = kib("VmRSS")
        try:
            images.read_image(path)
            kind = "read"
        except images.BadImage:
            kind = "refused"
        grown = (kib("VmHWM") - before) / 2**10
        print(json.dumps([decoder, path.name, kind, grown]), flush=True)
    images.decode_jpeg = None
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured in /proc")
def test_bombs_are_refused_by_their_headers(tmp_path, tally):
    wanted = {}
    for number, (case, content, expected) in enumerate(bombs()):
        (tmp_path / f"{number}.jpg").write_bytes(content)
        wanted[f"{number}.jpg"] = case, expected
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * len(wanted)
    for decoder, name, kind, grown in rows:
        case, expected = wanted[name]
        assert expected == EITHER or kind == expected, (case, decoder)
        assert grown < 100, (case, grown)
    most = max(grown for *_, grown in rows)
    tally(
        f"image bombs: {len(wanted)} files by both decoders, refused by their headers, at most "
        f"{most:.0f} MiB for one"
    )


def test_real_jpeg_pixels_are_pillows(real_data):
    for path in sorted((real_data("coco_slice") / "val2017").glob("*.jpg")):
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), np.array(expected)), path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_is_applied_and_a_header_that_is_certain_tells_the_size(
    tmp_path, monkeypatch, suffix
):
    for orientation in range(10):
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(picture()).save(path, exif=exif(orientation))
        expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        pixels = read_image(path)
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
        with monkeypatch.context() as patched:
            patched.setattr(images, "decode_jpeg", None)
            assert torch.equal(read_image(path), pixels)
        header = read_header(path)
        meant = orientation if orientation in range(1, 9) else 1
        assert header.certain == (suffix != "tiff" or meant == 1)
        if header.certain:
            assert (header.height, header.width) == tuple(pixels.shape[1:])
            assert header.orientation == meant
        pixels.zero_()  # they are in memory of their own


def test_of_16_bits_the_upper_8_are_read_and_the_header_says_so(tmp_path):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    for name in ("grey.png", "grey.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name)[0].tolist() == [[0, 0, 1], [128, 254, 255]]
        assert read_header(tmp_path / name).bits == 16
    Image.fromarray(picture()).save(tmp_path / "plain.png")
    assert read_header(tmp_path / "plain.png").bits == 8
    row = b"\0" + struct.pack(">6H", 0, 256, 65535, 32768, 257, 511)
    (tmp_path / "color.png").write_bytes(png(2, 1, 16, 2, row))
    assert read_header(tmp_path / "color.png").bits == 16
    assert read_image(tmp_path / "color.png")[:, 0].T.tolist() == [[0, 1, 255], [128, 1, 1]]


@pytest.mark.parametrize(("mode", "word"), [("F", "fractions"), ("I", "0 to 65535")])
def test_pixels_without_a_known_white_are_refused(tmp_path, mode, word):
    Image.new(mode, (4, 4), 70000).save(tmp_path / "a.tiff")
    with pytest.raises(BadImage, match=word):
        read_image(tmp_path / "a.tiff")


def test_cyan_ink_shows_no_red(tmp_path):
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "a.jpg").float().mean(dim=(1, 2)).tolist()
    assert red < 10
    assert min(green, blue) > 245


def test_a_large_image_below_the_limit_gives_no_warning(tmp_path, monkeypatch):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    assert read_image(tmp_path / "a.png").shape == (3, 40, 56)


def test_a_header_does_not_need_the_pixels(tmp_path):
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise()).save(path)
        path.write_bytes(path.read_bytes()[:-1000])
        assert (read_header(path).height, read_header(path).width) == (64, 64)
        with pytest.raises(BadImage):
            read_image(path)


def test_a_header_of_something_else_is_a_bad_image(tmp_path):
    for head, kind in (
        (b"", "it is empty"),
        (b"no image", "it is not an image"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "Git LFS; fetch the file with git lfs",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, HEIF or AVIF; convert it to JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "it is a video; write its frames as images"),
        (b"RIFF\0\0\0\0AVI LIST", "it is a video"),
        (b"\n<!DOCTYPE html>", "it is a web page"),
        (b"%PDF-1.4", "it is a PDF"),
        (b"%!PS-Adobe-3.0", "it is PostScript"),
        (bytes(128) + b"DICM", "it is DICOM; convert it to PNG"),
        (b"\x93NUMPY\1\0v\0", "it is an array of NumPy"),
        (b"\0\0\0\x0cJXL \r\n", "it is JPEG XL"),
        (b"\xff\xd8\xff", "it is JPEG, but damaged, or not as Pillow reads it"),
        (b"II+\0" + bytes(40), "it is TIFF, but damaged, or not as Pillow reads it"),
        (b"PK\3\4", "it is a zip archive"),
    ):
        (tmp_path / "a.jpg").write_bytes(head)
        for read in (read_header, read_image):
            with pytest.raises(BadImage, match=rf"a\.jpg: .*{kind}"):
                read(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_header(tmp_path / "gone.jpg")


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(("top", "shift"), [(255, 0), (1000, 2), (4095, 4), (16383, 6), (65535, 8)])
def test_grey_values_keep_the_upper_8_bits_of_those_in_use(tmp_path, kind, top, shift):
    values = np.array([[0, top // 3, top]], dtype=np.uint16)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(values).save(path)
    assert read_image(path)[1].numpy().tolist() == (values >> shift).tolist()
    assert read_header(path).bits == 16


def tiff_of_16_bits(pixels, planar):
    """Colors of 16 bits, which Pillow does not write; each plane by itself, or pixel by pixel."""
    height, width, channels = pixels.shape
    data = (pixels.transpose(2, 0, 1) if planar else pixels).astype("<u2").tobytes()
    strips = channels if planar else 1
    start, entries = 8 + 2 + 9 * 12 + 4, []
    after = struct.pack("<3H", 16, 16, 16)
    size = len(data) // strips
    places = [start + len(after) + 8 * strips + size * strip for strip in range(strips)]
    lists = {273: places, 279: [size] * strips}
    fields = {256: width, 257: height, 258: start, 259: 1, 262: 2, 273: 0, 277: channels}
    for tag, value in (fields | {279: 0, 284: 1 + planar}).items():
        number = {258: channels}.get(tag, len(lists.get(tag, [0])))
        if tag in lists:
            value = lists[tag][0] if strips == 1 else start + len(after)
            after += struct.pack(f"<{strips}I", *lists[tag])
        kind = 3 if tag == 258 else 4
        entries.append(struct.pack("<HHII", tag, kind, number, value))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head + after + data


def test_colors_of_16_bits_are_recognized_and_refused_where_pillow_misreads_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3))
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_16_bits(pixels, planar=False))
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0), pixels >> 8)
    assert read_header(path).bits == 16
    path.write_bytes(tiff_of_16_bits(pixels, planar=True))
    for read in (read_image, read_header):
        with pytest.raises(BadImage, match="misreads 16 bits in separate planes; convert it to 8"):
            read(path)


@pytest.mark.parametrize("kind", ["tif", "png", "grey png with alpha"])
def test_colors_of_12_bits_in_16_are_refused_instead_of_read_as_black(tmp_path, kind):
    def write(pixels):
        if kind == "tif":
            return tiff_of_16_bits(pixels, planar=False)
        color, channels = {"png": (2, 3), "grey png with alpha": (4, 2)}[kind]
        return png(7, 5, 16, color, rows_of(pixels[..., :channels].astype(">u2")))

    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 2**12, (5, 7, 3))
    path.write_bytes(write(pixels))
    with pytest.raises(BadImage, match="of 16 bits its colors use 12, and 8 are read; convert it"):
        read_image(path)
    for good in (pixels * 16, pixels * 0):  # all bits in use; a black image
        path.write_bytes(write(good))
        assert (read_image(path)[0].numpy() == good[..., 0] >> 8).all()
