"""A small reader of XML that knows its lines and obeys no document type."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat


class BadXml(ValueError):  # noqa: N818 - reads as what it is
    """A file that is not XML as annotations are; has the line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class Element:
    """A tag, what is in it, and where it begins."""

    tag: str
    line: int
    children: list[Element] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of its text

    @property
    def text(self) -> str:
        """What stands in it, without the line breaks and spaces of indentation."""
        text = "".join(self.parts)
        return text.strip() if "\n" in text else text

    def all(self, tag: str) -> list[Element]:
        """Its own children of that name."""
        return [child for child in self.children if child.tag == tag]

    def first(self, *path: str) -> Element | None:
        """The element that a path of tags leads to, or None."""
        found: Element | None = self
        for tag in path:
            found = next(iter(found.all(tag)), None) if found else None
        return found

    def text_of(self, *path: str) -> str:
        """The text of :meth:`first`, empty where there is none."""
        found = self.first(*path)
        return found.text if found else ""


def read_xml(path: Path) -> Element:
    """The root element of a file.

    A document type is refused where it begins. So no entity can be declared: neither those that
    grow without limit, nor those that read other files.

    Raises:
        BadXml: the file is not well formed, or has a document type.
        OSError: it cannot be read.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    root = Element("", 0)
    above = [root]

    def begin(tag: str, _: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        above[-1].children.append(element)
        above.append(element)

    def refuse(*_: object) -> None:
        raise BadXml(
            parser.CurrentLineNumber,
            "has a document type (<!DOCTYPE), which annotations do not need; remove it.",
        )

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: above.pop()
    parser.CharacterDataHandler = lambda text: above[-1].parts.append(text)
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise BadXml(error.lineno, f"is not well-formed XML: {what}.") from None
    except BadXml:
        raise
    except (ValueError, LookupError) as error:  # encodings of several bytes
        raise BadXml(parser.CurrentLineNumber, f"{error}; save the file as UTF-8.") from None
    return root.children[0]
