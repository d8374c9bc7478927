"""Names that people type become images: each once, in an order they expect."""

import os

import pytest
from PIL import Image

from retinanet.data.images import _formats
from retinanet.tools.image_files import FORMATS, describe_suffixes, find_images, suffixes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Some images, some files that are none, the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/10.jpg",
        "in/2.JPG",
        "in/b/1.png",
        "in/b/1.jpg",
        "in/.hidden.jpg",
        "in/.cache/1.jpg",
        "in/notes.txt",
        "in/phone.HEIC",
        "in/with space/\U0001f431.webp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_gives_its_images_in_natural_order(folder):
    images = find_images(["in"])
    assert images.names == [
        "2.JPG",
        "10.jpg",
        "b/1.jpg",
        "b/1.png",
        "with space/\U0001f431.webp",
    ]
    assert images.root == folder / "in"
    assert all(path.is_file() for path in images.paths)
    assert images.left_out == {".txt": 1, ".heic": 1}
    assert describe_suffixes(images.left_out) == "1 .heic, 1 .txt"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*", ["2.JPG", "10.jpg", "b/1.jpg", "b/1.png", "with space/\U0001f431.webp"]),
        ("in/*.jpg", ["10.jpg"]),
        ("in/**/1.*", ["b/1.jpg", "b/1.png"]),
        ("in/[b]/*.png", ["b/1.png"]),
        ("i?/b", ["in/b/1.jpg", "in/b/1.png"]),
    ],
)
def test_a_pattern_stands_for_what_it_matches(folder, monkeypatch, pattern, names):
    monkeypatch.setenv("HOME", str(folder))
    images = find_images([pattern])
    assert images.names == names == find_images([f"~/{pattern}"]).names
    assert all(path.is_file() for path in images.paths)


def test_a_name_that_looks_like_a_pattern_is_a_file_first(folder):
    (folder / "a[1].jpg").touch()
    (folder / "@home.jpg").touch()
    assert find_images(["a[1].jpg", "@home.jpg"]).names == ["@home.jpg", "a[1].jpg"]


def test_a_file_is_taken_whatever_it_is_called(folder):
    assert find_images(["in/notes.txt", "in/.hidden.jpg"]).names == [".hidden.jpg", "notes.txt"]


def test_every_file_comes_once(folder):
    (folder / "in/again.jpg").symlink_to(folder / "in/10.jpg")
    absolute = str(folder / "in/b/../10.jpg")
    assert len(find_images(["in", "in/b", "in/10.jpg", absolute, "in/*.jpg"]).paths) == 5


def test_links_to_folders_are_followed_but_not_in_circles(folder):
    (folder / "more").mkdir()
    (folder / "more/3.jpg").touch()
    (folder / "in/link").symlink_to(folder / "more")
    (folder / "more/back").symlink_to(folder / "in")
    assert "link/3.jpg" in find_images(["in"]).names


def test_names_are_below_the_folders_that_were_named(folder):
    assert find_images(["in/b"]).names == ["1.jpg", "1.png"]
    assert find_images(["in/b/1.jpg"]).names == ["1.jpg"]
    assert find_images(["in/b/1.jpg", "in/10.jpg"]).names == ["10.jpg", "b/1.jpg"]


def test_lists_have_an_image_per_line(folder):
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfin/10.jpg\r\n\r\n in/b/*.png \nin/2.JPG")
    assert find_images(["@list.txt"]).names == ["2.JPG", "10.jpg", "b/1.png"]


def test_names_that_are_not_utf8_are_found(folder):
    name = os.fsdecode(b"in/\xff.jpg")
    (folder / name).touch()
    (folder / "list.txt").write_bytes(b"in/\xff.jpg\n")
    assert find_images([name, "@list.txt"]).names == [os.fsdecode(b"\xff.jpg")]


def test_folders_that_are_to_be_skipped_are_skipped_everywhere_but_when_named(folder):
    def skip(path):
        return path.name == "b"

    kept = ["2.JPG", "10.jpg", "with space/\U0001f431.webp"]
    for argument in ("in", "in/*", "in/**"):
        assert find_images([argument], skip).names == kept
    assert find_images(["in/b"], skip).names == ["1.jpg", "1.png"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere", r"no image or folder nowhere; a pattern has \* or \?, in quotes"),
        ("@nowhere", "no file nowhere; @FILE is a text file"),
        ("@empty", "empty is empty; @FILE is a text file with an image per line"),
        ("@wrong", r"no image or folder gone.jpg \(line 2 of wrong\)"),
        ("void", r"no image in the folder void\. Images end in .*\.jpeg \.jpf \.jpg"),
        ("texts", r"no image in the folder texts; it has 2 \.txt, 1 without suffix\. Images"),
        ("in/*.gif", r"no image in the pattern in/\*\.gif\. Images end in"),
    ],
)
def test_what_names_no_image_is_refused_and_says_what_was_looked_for(folder, argument, message):
    (folder / "void").mkdir()
    (folder / "texts").mkdir()
    for name in ("empty", "texts/a.txt", "texts/b.TXT", "texts/c"):
        (folder / name).touch()
    (folder / "wrong").write_text("in/10.jpg\ngone.jpg\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_images(["in/10.jpg", argument])


def test_the_suffixes_are_those_of_formats_that_can_be_read():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"} <= set(suffixes())
    assert not {".pdf", ".eps", ".mpg", ".json", ".txt", ".heic"} & set(suffixes())
    known = Image.registered_extensions()
    # Pillow opens MPO, the JPEG of cameras with two lenses, as JPEG.
    assert {known[suffix] for suffix in suffixes()} <= set(FORMATS) & {*_formats(), "MPO"}
