"""Names in any script: the fonts that draw them, and what stands for those without one."""

import pytest

from retinanet.tools.report import fonts

LATIN, HAN = frozenset(map(ord, "abcdefghi 0")), frozenset(map(ord, "\u732b\u72ac"))


@pytest.fixture(autouse=True)
def clear_caches():
    cached = fonts.families, fonts.font_path
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_the_first_installed_font_with_all_letters_is_taken(monkeypatch):
    installed = [type("Font", (), {"name": name}) for name in ("SimHei", "Unheard Of")]
    monkeypatch.setattr(fonts.font_manager.fontManager, "ttflist", installed)
    monkeypatch.setattr(fonts.font_manager, "findfont", lambda name: name)
    letters = {fonts.BASE: LATIN, "SimHei": LATIN | HAN}
    monkeypatch.setattr(fonts, "_letters", letters.__getitem__)
    assert fonts.families() == (fonts.BASE, "SimHei")
    assert fonts.font_path("abc") == fonts.BASE
    assert fonts.font_path("\u732b a") == "SimHei"
    assert fonts.font_path("\u732b \u0643") is None
    assert fonts.font_path("a\nb") == fonts.BASE  # what cannot be printed is not drawn either


def test_a_name_without_a_font_is_its_category_id_and_that_is_said(monkeypatch):
    monkeypatch.setattr(fonts, "families", lambda: (fonts.BASE,))
    names, ids = ["dog", "\u732b", "\u041a\u043e\u0442 caf\u00e9", "\u72ac"], [1, 17, 18, 19]
    assert fonts.drawable_names(names, ids) == ["dog", "id 17", names[2], "id 19"]
    note = fonts.check_letters(names, ids)
    assert "letters of 2 of 4 class names; pictures show id 17 for \u732b, id 19 for" in note
    assert fonts.check_letters(["dog"], [1]) is None
