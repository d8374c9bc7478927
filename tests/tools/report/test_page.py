"""A page is valid HTML, needs no other file, and shows any text as text."""

import base64
import hashlib
import html
import re
import tomllib
from html.parser import HTMLParser

import numpy as np
import pytest

from retinanet.tools.report.gallery import Box, Exhibit, Gallery, Image, View
from retinanet.tools.report.image_grid import MOST_BYTES, MOST_IMAGES, embed
from retinanet.tools.report.markup import escape, number
from retinanet.tools.report.page import (
    ASSETS,
    Code,
    Facts,
    Figure,
    Folded,
    Legend,
    Notice,
    Page,
    Prose,
    Row,
    Section,
    Series,
    Tile,
    Tiles,
)
from retinanet.tools.report.sortable import FILTERED_ROWS, Colored, Column, Table

# What breaks pages: markup, quotes, other scripts, controls, half of a surrogate pair.
NAMES = [
    "<script>alert(1)</script>",
    "</style></script><img src=x onerror=alert(1)>",
    "\" ' & &amp; {0} %s",
    "\u732b \u05e9\u05dc\u05d5\u05dd \U0001f9a9 a\u200cb",
    "_hidden\nline\ttab\x00\x1b[0m",
    "\ud800half",
    "x" * 300,
]
VOID = {"meta", "link", "input", "br", "img"}
# Blue, in 1 x 1 px.
PIXEL = embed(np.array([[[0, 0, 255]]], np.uint8))


class Reader(HTMLParser):
    """Checks that every element is closed in its turn, and keeps what a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # element, attribute, value
        self.texts: list[tuple[str, str]] = []  # element, text

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def _note(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of {tag} comes twice: {names}"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader


def assert_sound(document: str) -> Reader:
    """Valid, without two ids that are alike, and without a way out of the file."""
    reader = read(document)
    assert len(reader.ids) == len(set(reader.ids)), "two elements have the same id"
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), f"{tag} has a handler"
        assert name != "style", f"{tag} has a style, which the policy forbids"
        if name in ("href", "src", "srcset", "data", "action", "xlink:href", "background"):
            assert value.startswith(("#", "data:")), f"{tag} {name} leads to {value[:80]}"
        if name == "href" and value.startswith("#"):
            assert value[1:] in reader.ids, f"{value} leads nowhere"
    assert not re.search(r"@import|url\s*\(", "".join(reader.said("style")))
    return reader


def page(*blocks, images=(), text="text") -> str:
    return Page(
        title=text,
        kind=text,
        lead=text,
        top=[Tiles([Tile(text, 0.5, text)]), Notice(text, [text], [text])],
        sections=[Section("First", text, blocks), Section("First", text, [])],
        images=images,
    ).html()


def everything(text: str) -> str:
    image = Image("image-1", PIXEL, 640, 480)
    views = [
        View(text, [Box(0, 0, 10, 10, "#1f6fb4", text), Box(9, 90, 5, 5, "#fff", text, "dashed")])
    ]
    blocks = [
        Prose([text]),
        Facts([(text, text)]),
        Facts([(text, text)], typed=True),
        Code(text),
        Folded(text, [Prose([text])]),
        Table(
            [Column(text, meaning=text), Column("AP", 3, 1.0)], [[text, 0.1], [text, None]], text
        ),
        Table([Column("class")], [[Colored(f"{n} {text}", "#000")] for n in range(30)], text),
        Table([Column(text), Column("AP", 3)], []),
        Row([Figure(text, "<svg></svg>", [Series(text, "#000")]), Legend([Series(text, "#000")])]),
        Gallery([Exhibit(image, text, views, text)]),
    ]
    return page(*blocks, images=[image], text=text)


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_shown_as_text(name):
    document = everything(name)
    document.encode()  # as it is written
    reader = assert_sound(document)
    assert len(reader.said("script")) == 1
    shown = re.sub("[\x00\x1b\ud800]", "\ufffd", name)
    assert shown in "".join(reader.said("bdi"))
    assert shown in reader.said("text"), "a caption over an image"
    assert ("svg", "aria-label", shown) in reader.attributes


def test_an_unbalanced_document_is_noticed():
    with pytest.raises(AssertionError, match="closes"):
        read("<p><b></p></b>")
    with pytest.raises(AssertionError, match="leads to"):
        assert_sound('<img src="https://example.org/x.png">')


def test_only_the_own_script_and_style_may_run_and_nothing_may_be_loaded():
    document = page()
    reader = read(document)
    (policy,) = [v for t, n, v in reader.attributes if t == "meta" and "default-src" in v]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = reader.said(element)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_there_is_no_address_in_the_page():
    assert "http:" not in everything("text")
    assert "https:" not in everything("text")


def test_the_same_content_makes_the_same_bytes():
    assert everything("a") == everything("a")


def test_numbers_are_aligned_sorted_and_shown_as_readers_expect():
    columns = [Column("class"), Column("objects"), Column("AP", 3, bar=1.0)]
    text = Table(columns, [["cat", 1234, 0.70449], ["dog", 0, None]], sorted_by="AP").html()
    assert '<td class="number" data-value="1234">1,234</td>' in text
    assert '<td class="number barred" data-value="0.70449">' in text
    assert ">0.704</td>" in text
    assert '<td class="number none">n/a</td>' in text
    assert text.count('<th scope="col" class="number"') == 2
    assert text.count('aria-sort="descending"') == 1


def test_long_tables_have_a_filter_and_short_ones_none():
    for rows, filters in ((FILTERED_ROWS, 0), (FILTERED_ROWS + 1, 1)):
        table = Table([Column("class")], [[f"class {i}"] for i in range(rows)])
        assert table.html().count('type="search"') == filters


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(None, 3, "n/a"), (float("nan"), 3, "n/a"), (0.0005, 3, "0.001"), (12345, None, "12,345")],
)
def test_a_number_has_its_digits(value, digits, shown):
    assert number(value, digits) == shown


def test_text_can_be_read_back():
    for name in NAMES[:4]:
        assert html.unescape(escape(name)) == name


def test_style_and_script_are_installed_with_the_package():
    settings = tomllib.loads((ASSETS.parents[2] / "pyproject.toml").read_text())
    files = settings["tool"]["setuptools"]["package-data"]["retinanet.tools.report"]
    assert set(files) == {path.name for path in ASSETS.iterdir() if path.suffix in (".css", ".js")}


def test_headings_have_different_names_to_link_to():
    reader = assert_sound(page(Prose(["x"])))
    assert {"first", "first-2"} <= set(reader.ids)


# A page of twelve images, and as many of the worst, stays below this.
PAGE_LIMIT = 5_000_000


@pytest.mark.parametrize("shape", [(1200, 1800), (2000, 40), (40, 2000), (1, 1)])
def test_an_embedded_image_is_never_large(shape):
    # Noise is what no format makes small.
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    uri = embed(pixels)
    content = base64.b64decode(uri.partition(",")[2])
    assert len(content) <= MOST_BYTES
    assert 2 * MOST_IMAGES * MOST_BYTES * 4 / 3 < 0.8 * PAGE_LIMIT


def test_drawings_are_embedded_without_loss_and_photos_in_fewer_bytes():
    drawing = np.zeros((200, 300, 3), np.uint8)
    drawing[50:100, 60:90] = (255, 0, 0)
    assert embed(drawing).startswith("data:image/png;")
    ramp = np.linspace(0, 200, 300).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 30, (200, 300, 3), dtype=np.uint8)
    assert embed(ramp[None, :, None] + noise).startswith("data:image/jpeg;")
