"""PASCAL VOC: one XML file for each image. Also as LabelImg, CVAT, Label Studio, Roboflow write."""

from __future__ import annotations

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from retinanet.data.file_kinds import HEAD, STARTS, kind_of
from retinanet.data.records import leaves_folder, shown
from retinanet.terminal import count
from retinanet.tools.formats import dataset as ds
from retinanet.tools.formats.dataset import SIDES, BadRecord, Box, Dataset, ImageRecord, Options
from retinanet.tools.image_files import suffixes

# Attribute of an element: the line of the file where it begins.
LINE = "line"
# First elements of other formats -> what to do.
OTHER_TOOLS = {
    "annotations": " That is CVAT's own format: export as Pascal VOC or COCO.",
    "dataset": " That is the format of dlib's imglab: write it as CSV or COCO.",
}
# Folders of XML files, and of images beside them, in small letters.
ANNOTATION_FOLDERS = ("annotations", "annotation", "xml", "xmls", "labels")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")
PIXELS_NOTE = (
    "corners are read as pixels counted from 1, as in PASCAL VOC; files of CVAT, Label Studio, "
    "VoTT and LabelImg need --corners edges"
)


def read_voc(source: Path, options: Options) -> Dataset:
    """A folder of XML files.

    Args:
        source: with ``Annotations/``, ``JPEGImages/`` and perhaps ``ImageSets/Main/*.txt``; or
            with the folders ``train``, ``valid`` or ``val``, and ``test``, XML files beside
            images; or with XML files beside images.
        options: image_folder, look, corners and classes are read.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: no such folder, or no XML in it.
    """
    if not source.is_dir():
        what = f"{source} is a file" if source.is_file() else f"there is no folder {source}"
        raise FileNotFoundError(f"{what}; --from voc takes folders of XML files.")
    declared = ds.find_classes(options.classes, source)
    errors = ds.Errors()
    notes = Counter({PIXELS_NOTE: 0} if options.corners is None else {})
    zeros: list[str] = []
    splits: list[ds.Split] = []
    for part, xml_folder, image_folder in _parts(source):
        root = options.image_folder or image_folder
        corners = options.corners or "pixels"
        reader = _Reader(options.look, corners, root, declared, errors, notes, zeros)
        images: dict[str, ImageRecord] = {}  # XML file -> its image
        owners: dict[str, str] = {}  # image -> its XML file
        for name in ds.progress(ds.files_below(xml_folder, (".xml",)), f"XML of {part}"):
            with errors.caught(xml_folder / name):
                image = reader.read_file(xml_folder / name, PurePosixPath(name))
                before = owners.setdefault(image.name, name)
                if before != name:
                    raise BadRecord(f"is of the image {image.name}, as {xml_folder / before} is.")
                images[name] = image
        lonely = set(ds.files_below(root, suffixes())) - owners.keys() if options.look else ()
        if lonely:
            notes["image without an XML file, left out"] += len(lonely)
        lists = _read_lists(source, xml_folder, errors) or {part: list(images)}
        left_out = len(images.keys() - {name for names in lists.values() for name in names})
        if left_out:
            notes["XML file in no list of ImageSets/Main, left out"] += left_out
        for split, names in lists.items():
            listed = [images[name] for name in names if name in images]
            splits.append(ds.Split(split, root, listed))
    if zeros:
        errors.add(
            zeros[0],
            f"{count(len(zeros), 'box')} begin at 0, but pixels are counted from 1 in PASCAL VOC. "
            f"CVAT, Label Studio, VoTT and LabelImg write edges counted from 0: add --corners "
            f"edges.",
        )
    errors.stop()
    return Dataset(splits, declared or {}, notes)


def _parts(source: Path) -> list[tuple[str, Path, Path]]:
    """Name, folder of XML files and folder of images of each part."""
    annotations = _folder_in(source, ANNOTATION_FOLDERS, (".xml",))
    if annotations:
        images = _folder_in(source, IMAGE_FOLDERS, suffixes()) or source
        return [(source.resolve().name, annotations, images)]
    folders = [source / name for name in ds.SPLIT_NAMES if ds.files_below(source / name, (".xml",))]
    if folders:
        return [(ds.split_name(folder.name), folder, folder) for folder in folders]
    names = ds.files_below(source, (".xml",))
    if names:
        above = {PurePosixPath(name).parent.parent for name in names if "/" in name}
        inside = sorted(str(source / part) for part in above if _is_voc(source / part))
        if inside:
            more = f", or several: train={inside[0]} val={inside[1]}" if len(inside) > 1 else ""
            raise FileNotFoundError(
                f"{source} holds {count(len(inside), 'folder')} with annotations and images of "
                f"its own; give {inside[0]}{more}."
            )
        images = source
        if not ds.files_below(source, suffixes()):
            images = _folder_in(source.resolve().parent, IMAGE_FOLDERS, suffixes()) or source
        # The name that the data set gives its folder, also where that is a link.
        return [(ds.split_name(source.resolve().name), source, images)]
    raise FileNotFoundError(
        f"no XML files in {source}; expected {source}/Annotations/*.xml with "
        f"{source}/JPEGImages, or train/ and valid/ with XML files beside images."
    )


def _folder_in(above: Path, names: Sequence[str], ends: tuple[str, ...]) -> Path | None:
    """The first folder of a name, in any case of its letters, that holds files of some suffixes."""
    inside = {path.name.casefold(): path for path in sorted(above.iterdir()) if path.is_dir()}
    folders = [inside[name] for name in names if name in inside]
    return next((folder for folder in folders if ds.files_below(folder, ends)), None)


def _is_voc(folder: Path) -> bool:
    has_xml = _folder_in(folder, ANNOTATION_FOLDERS, (".xml",)) is not None
    return has_xml and _folder_in(folder, IMAGE_FOLDERS, suffixes()) is not None


def _read_lists(source: Path, xml_folder: Path, errors: ds.Errors) -> dict[str, list[str]]:
    """Split -> XML files, of the lists of ``ImageSets/Main``."""
    lists: dict[str, list[str]] = {}
    for path in ds.matches(source / "ImageSets" / "Main", "*.txt"):
        names: list[str] = []
        with errors.caught(path):
            for number, line in ds.read_lines(path):
                exact = f"{line}.xml"
                name = exact if ds.is_file(xml_folder / exact) else f"{line.strip()}.xml"
                inside = not leaves_folder(name)
                if inside and ds.is_file(xml_folder / name):
                    names.append(name)
                    continue
                if inside and line.rsplit(maxsplit=1)[1:] in (["-1"], ["0"], ["1"]):
                    break  # a list of one class, which has marks
                what = f"must name a file of {xml_folder}, got {shown(line)}."
                what = f"there is no {xml_folder / name}." if inside else what
                errors.add(f"{path}:{number}", what)
            else:
                lists[ds.split_name(path.stem)] = names
        for name, times in Counter(names).items():
            if times > 1:
                errors.add(path, f"{name.removesuffix('.xml')} stands twice.")
    if {"train", "val"} <= lists.keys():
        lists.pop("trainval", None)
    return lists


@dataclass(slots=True)
class _Reader:
    """Reads the XML files of one part; errors, notes and zeros are those of the whole source."""

    look: bool  # for the images
    corners: str
    root: Path  # of the images
    declared: dict[str, int] | None  # classes
    errors: ds.Errors
    notes: Counter[str]
    zeros: list[str]  # places of boxes that begin at 0
    stems: dict[PurePosixPath, list[str]] = field(default_factory=dict)  # without suffix -> images

    def read_file(self, path: Path, name: PurePosixPath) -> ImageRecord:
        """The image of an XML file; ``name``: of the file, below its folder."""
        top = read_xml(path)
        with _at(top):
            if top.tag != "annotation":
                hint = OTHER_TOOLS.get(top.tag, "")
                raise BadRecord(f"must begin with <annotation>, got <{top.tag}>.{hint}")
            with _at(top.find("filename")):
                image = self._find_image(name, _text(top, "filename").replace("\\", "/"))
            boxes = []
            for item in top.findall("object"):
                with self.errors.caught(path), _at(item):
                    boxes.append(self._read_object(item))
                    # Pixels are counted from 1: this box began at 0.
                    if self.corners == "pixels" and -1 in boxes[-1].xywh[:2]:
                        self.zeros.append(f"{path}:{item.get(LINE)}")
            with _at(top.find("size")):
                sides = _text(top, "size/width"), _text(top, "size/height")
                size = ds.read_size(*sides)
                if size is None:
                    if not self.look:
                        raise BadRecord(ds.NO_SIZE)
                    self.notes["size missing in the XML file, read from the image"] += 1
                    size = ds.size_of(self.root / image)
            return ImageRecord(image, *size, boxes)

    def _find_image(self, xml: PurePosixPath, filename: str) -> str:
        """The image of an XML file, below the image folder."""
        if PureWindowsPath(ds.check_name(filename, "image") if filename else "").anchor:
            # A path of whoever annotated it: C:\\Users\\x\\a.png. Only its name can be meant.
            filename = PurePosixPath(filename).name
            self.notes["filename with a path of another computer, of which the name is taken"] += 1
        elif leaves_folder(filename):
            raise BadRecord(
                f"filename must be a path below the image folder, without '..', got "
                f"{shown(filename)}."
            )
        if not self.look and not filename:
            raise BadRecord("has no filename; add it.")
        beside = [str(xml.parent / filename), filename, str(xml.parent / Path(filename).name)]
        for candidate in beside if filename else []:
            if not self.look or ds.is_file(self.root / candidate):
                return candidate
        # LabelImg keeps the name before a renaming, Label Studio may leave the suffix away.
        if not self.stems:
            self.stems = defaultdict(list)
            for name in ds.files_below(self.root, suffixes()):
                self.stems[PurePosixPath(name).with_suffix("")].append(name)
        others = self.stems[xml.with_suffix("")]
        if filename and not others and not filename.lower().endswith(suffixes()):
            others = self.stems[xml.parent / filename]
        if len(others) != 1:
            which = f"; there are {', '.join(others)}" if others else ""
            raise BadRecord(
                f"no image {self.root / (beside[0] if filename else xml.with_suffix(''))}{which}. "
                f"Give the folder of the images with --image-folder; if others are there, add it "
                f"or remove the XML file."
            )
        self.notes["image found by the name of the XML file, not by its filename"] += 1
        return others[0]

    def _read_object(self, item: Element) -> Box:
        with _at(item.find("name")):
            class_name = ds.check_class(_text(item, "name"), self.declared)
        bndbox = item.find("bndbox")
        if bndbox is None:
            rotated = item.find("robndbox") is not None
            hint = " A rotated box (robndbox) is no box of edges." if rotated else ""
            if item.find("polygon") is not None:
                hint = " It has a polygon, as the XML of LabelMe: export as Pascal VOC or COCO."
            raise BadRecord(f"the object has no bndbox.{hint}")
        with _at(bndbox):
            numbers = []
            for side in SIDES:
                element = bndbox.find(side)
                with _at(element):
                    text = None if element is None else _text(bndbox, side)
                    numbers.append(ds.read_number(text, side))
            xywh = ds.box_of_corners(numbers, self.corners)
        for extra in ("part", "pose", "truncated", "occluded"):
            if _text(item, extra).strip() not in ("0", "Unspecified", ""):
                self.notes[f"value of {extra}, not kept"] += 1
        crowd, difficult = (_text(item, mark).strip() == "1" for mark in ("iscrowd", "difficult"))
        if difficult and not crowd:
            self.notes["object marked as difficult, taken as any other"] += 1
        return Box(class_name, xywh, crowd, difficult=difficult and not crowd)


@contextmanager
def _at(element: Element | None) -> Iterator[None]:
    """Give errors that have no line yet the line of an element, if there is one."""
    try:
        yield
    except BadRecord as error:
        if error.line is None and element is not None:
            error.line = int(element.get(LINE))
        raise


def _utf8(content: bytes) -> bytes:
    """The file in UTF-8: of the encodings for Chinese the parser knows none.

    An ``&`` that begins no entity is taken for the letter; tools leave it so in names.
    """
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']", content)
    encoding = declared[1].decode() if declared else "utf-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode("utf-8-sig" if encoding.lower() == "utf-8" else encoding)
    except (UnicodeError, LookupError) as error:
        fix = "save it as UTF-8, or name its encoding in the first line, such as"
        example = "<?xml version='1.0' encoding='gb18030'?>"
        line = content[: getattr(error, "start", 0)].count(b"\n") + 1
        raise BadRecord(f"is not text in {encoding}; {fix} {example}.", line) from error
    return re.sub(r"&(?!#?\w+;)", "&amp;", text).encode("utf-8", "surrogatepass")


def _text(parent: Element, path: str) -> str:
    """What stands in an element, without the line breaks and spaces of indentation."""
    text = parent.findtext(path) or ""
    return text.strip() if "\n" in text else text


def read_xml(path: Path) -> Element:
    """The root element of a file; every element has its line as the attribute ``LINE``.

    A document type is refused where it begins. So no entity can be declared: neither those that
    grow without limit, nor those that read other files.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate("utf-8")

    def start(tag: str, _: dict[str, str]) -> None:
        builder.start(tag, {LINE: str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        raise BadRecord(
            "has a document type (<!DOCTYPE), which annotations do not need; remove it."
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    what, line = "", None
    try:
        content = path.read_bytes()
        kind = kind_of(content[:HEAD])
        if kind not in ("", STARTS[b"<"]):
            raise BadRecord(f"is not XML: {kind}.", 1)
        parser.Parse(_utf8(content), True)
        return builder.close()
    except expat.ExpatError as error:
        what, line = f"is not well-formed XML: {expat.ErrorString(error.code)}.", error.lineno
    except BadRecord as error:
        what, line = str(error), error.line
    raise BadRecord(what, line or parser.CurrentLineNumber)
