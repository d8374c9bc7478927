"""Names in any script: the fonts that draw them, and what stands for those without one."""

import pytest

from retinanet.tools.report import fonts

LATIN, HAN = frozenset(map(ord, "abcdefghi 0")), frozenset(map(ord, "\u732b\u72ac"))


@pytest.fixture(autouse=True)
def forget():
    """What a test finds, and what others have found before it."""
    for cached in (fonts.families, fonts.font_path):
        cached.cache_clear()
    yield
    for cached in (fonts.families, fonts.font_path):
        cached.cache_clear()


def test_installed_fonts_of_other_scripts_are_used(monkeypatch):
    font = type("Font", (), {})
    installed = [font(), font()]
    installed[0].name, installed[1].name = "SimHei", "Unheard Of"
    monkeypatch.setattr(fonts.font_manager.fontManager, "ttflist", installed)
    assert fonts.families() == (fonts.BASE, "SimHei")


def test_the_first_font_with_all_letters_is_taken(monkeypatch):
    monkeypatch.setattr(fonts, "families", lambda: ("first", "second"))
    monkeypatch.setattr(fonts.font_manager, "findfont", lambda name: name)
    monkeypatch.setattr(fonts, "_letters", {"first": LATIN, "second": LATIN | HAN}.__getitem__)
    assert fonts.font_path("abc") == "first"
    assert fonts.font_path("\u732b a") == "second"
    assert fonts.font_path("\u732b \u0643") is None
    assert fonts.font_path("a\nb") == "first"  # what cannot be printed is not drawn either


def test_a_name_without_a_font_is_its_category_id_and_that_is_said(monkeypatch):
    monkeypatch.setattr(fonts, "families", lambda: (fonts.BASE,))
    names, ids = ["dog", "\u732b", "\u041a\u043e\u0442 caf\u00e9", "\u72ac"], [1, 17, 18, 19]
    assert fonts.drawable_names(names, ids) == ["dog", "id 17", names[2], "id 19"]
    note = fonts.check_letters(names, ids)
    assert "letters of 2 of 4 class names; pictures show id 17 for \u732b, id 19 for" in note
    assert fonts.check_letters(["dog"], [1]) is None
