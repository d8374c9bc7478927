"""PASCAL VOC: one XML file for each image. Also as LabelImg, CVAT, Label Studio, Roboflow write."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from retinanet.data.records import leaves_folder, shown
from retinanet.terminal import count
from retinanet.tools.formats.dataset import (
    SIDES,
    SPLIT_NAMES,
    BadRecord,
    Box,
    Dataset,
    Errors,
    ImageRecord,
    Options,
    Split,
    box_of_corners,
    check_class,
    name_problem,
    progress,
    read_side,
    read_size,
    split_name,
)
from retinanet.tools.formats.files import files_below, find_classes, is_file, read_lines, size_of
from retinanet.tools.image_files import suffixes

# Attribute of an element: the line of the file where it begins.
LINE = "line"
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
        raise FileNotFoundError(f"there is no folder {source}; --from voc takes folders.")
    reader = _Reader(options, find_classes(options.classes, source))
    splits: list[Split] = []
    for part, xml_folder, image_folder in _parts(source):
        root = options.image_folder or image_folder
        images: dict[str, ImageRecord] = {}  # XML file -> its image
        owners: dict[str, str] = {}  # image -> its XML file
        for name in progress(files_below(xml_folder, (".xml",)), f"XML of {part}"):
            with reader.errors.caught(xml_folder / name):
                image = reader.read_file(xml_folder / name, name, root)
                before = owners.setdefault(image.name, name)
                if before != name:
                    raise BadRecord(f"is of the image {image.name}, as {xml_folder / before} is.")
                images[name] = image
        lists = _read_lists(source, xml_folder, reader.errors) or {part: list(images)}
        left_out = len(images.keys() - {name for names in lists.values() for name in names})
        if left_out:
            reader.notes["XML file in no list of ImageSets/Main, left out"] += left_out
        splits += [
            Split(split, root, [images[name] for name in names if name in images])
            for split, names in lists.items()
        ]
    if reader.zeros:
        reader.errors.add(
            reader.zeros[0],
            f"{count(len(reader.zeros), 'box')} begin at 0, but pixels are counted from 1 in "
            f"PASCAL VOC. CVAT, Label Studio, VoTT and LabelImg write edges counted from 0: "
            f"add --corners edges.",
        )
    reader.errors.stop()
    return Dataset(splits, reader.declared or {}, reader.notes)


def _parts(source: Path) -> list[tuple[str, Path, Path]]:
    """Name, folder of XML files and folder of images of each part."""
    if (source / "Annotations").is_dir():
        beside = [source / name for name in ("JPEGImages", "images")]
        images = next((folder for folder in beside if folder.is_dir()), source)
        return [(source.resolve().name, source / "Annotations", images)]
    folders = [source / name for name in SPLIT_NAMES if files_below(source / name, (".xml",))]
    folders = folders or [source] * bool(files_below(source, (".xml",)))
    if not folders:
        raise FileNotFoundError(
            f"no XML files in {source}; expected {source}/Annotations/*.xml with "
            f"{source}/JPEGImages, or train/ and valid/ with XML files beside images."
        )
    # The name that the data set gives its folder, also where that is a link.
    names = [(source.resolve() if folder == source else folder).name for folder in folders]
    return [(split_name(n), folder, folder) for n, folder in zip(names, folders, strict=True)]


def _read_lists(source: Path, xml_folder: Path, errors: Errors) -> dict[str, list[str]]:
    """Split -> XML files, of the lists of ``ImageSets/Main``."""
    lists: dict[str, list[str]] = {}
    for path in sorted((source / "ImageSets" / "Main").glob("*.txt")):
        names: list[str] = []
        with errors.caught(path):
            for number, line in read_lines(path):
                exact = f"{line}.xml"
                name = exact if is_file(xml_folder / exact) else f"{line.strip()}.xml"
                inside = not leaves_folder(name)
                if inside and is_file(xml_folder / name):
                    names.append(name)
                elif inside and line.rsplit(maxsplit=1)[1:] in (["-1"], ["0"], ["1"]):
                    break  # a list of one class, which has marks
                else:
                    what = f"must name a file of {xml_folder}, got {shown(line)}."
                    what = f"there is no {xml_folder / name}." if inside else what
                    errors.add(f"{path}:{number}", what)
            else:
                lists[split_name(path.stem)] = names
        for name, times in Counter(names).items():
            if times > 1:
                errors.add(path, f"{name.removesuffix('.xml')} stands twice.")
    if {"train", "val"} <= lists.keys():
        lists.pop("trainval", None)
    return lists


class _Reader:
    """What is known while the XML files of one source are read."""

    def __init__(self, options: Options, declared: dict[str, int] | None) -> None:
        self.options = options
        self.corners = options.corners or "pixels"
        self.declared = declared  # classes
        self.errors = Errors()
        self.notes = Counter({PIXELS_NOTE: 0} if options.corners is None else {})
        self.zeros: list[str] = []  # places of boxes that begin at 0
        self.stems: dict[Path, dict[str, list[str]]] = {}  # folder -> stem -> images

    def read_file(self, path: Path, name: str, root: Path) -> ImageRecord:
        """The image of an XML file ``name``; ``root``: the folder of images."""
        top = read_xml(path)
        with _at(top):
            if top.tag != "annotation":
                own = top.tag == "annotations"
                hint = " That is CVAT's own format: export as Pascal VOC or COCO." if own else ""
                raise BadRecord(f"must begin with <annotation>, got <{top.tag}>.{hint}")
            with _at(top.find("filename")):
                image = self._find_image(name, _text(top.find("filename")).replace("\\", "/"), root)
            boxes = []
            for item in top.findall("object"):
                with self.errors.caught(path), _at(item):
                    boxes.append(self._read_object(item))
                    # Pixels are counted from 1: this box began at 0.
                    if self.corners == "pixels" and -1 in boxes[-1].xywh[:2]:
                        self.zeros.append(f"{path}:{item.get(LINE)}")
            with _at(top.find("size")):
                return ImageRecord(image, *self._read_size(top, root / image), boxes)

    def _find_image(self, name: str, filename: str, root: Path) -> str:
        """The image of an XML file, below the image folder."""
        if filename and (leaves_folder(filename) or name_problem(filename)):
            raise BadRecord(
                f"filename must be a path below the image folder, neither absolute nor with '..', "
                f"got {shown(filename)}."
            )
        if not self.options.look and not filename:
            raise BadRecord("has no filename; add it.")
        xml, base = PurePosixPath(name), PurePosixPath(filename)
        beside = [str(xml.parent / base), filename, str(xml.parent / base.name)] if filename else []
        for candidate in beside:
            if not self.options.look or is_file(root / candidate):
                return candidate
        # LabelImg keeps the name before a renaming, Label Studio may leave the suffix away.
        others = self._images_of_stem(root, xml.parent, xml.stem)
        if filename and not others and base.suffix.lower() not in suffixes():
            others = self._images_of_stem(root, xml.parent / base.parent, base.name)
        if len(others) != 1:
            which = f"; there are {', '.join(others)}" if others else ""
            raise BadRecord(
                f"no image {root / (beside[0] if filename else xml.with_suffix(''))}{which}. Give "
                f"the folder of the images with --image-folder."
            )
        self.notes["image found by the name of the XML file, not by its filename"] += 1
        return others[0]

    def _images_of_stem(self, root: Path, below: PurePosixPath, stem: str) -> list[str]:
        """Images in a folder below the root that have this name but for the suffix."""
        folder = root / below
        if folder not in self.stems:
            self.stems[folder] = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.name.lower().endswith(suffixes()):
                    self.stems[folder][path.stem].append(str(below / path.name))
        return self.stems[folder][stem]

    def _read_size(self, top: Element, image: Path) -> tuple[int, int]:
        """Width and height as the file says, else as the image is."""
        size = read_size(*(_text(top.find(f"size/{side}")) for side in ("width", "height")))
        if size is not None:
            return size
        if not self.options.look:
            raise BadRecord(
                "has no size with width and height; leave out --images ignore, so that it is read "
                "from the image."
            )
        self.notes["size missing in the XML file, read from the image"] += 1
        try:
            return size_of(image)
        except BadRecord as error:
            raise BadRecord(f"has no size, and the image does not give it: {error}") from error

    def _read_object(self, item: Element) -> Box:
        with _at(item.find("name")):
            class_name = check_class(_text(item.find("name")), self.declared)
        bndbox = item.find("bndbox")
        if bndbox is None:
            rotated = item.find("robndbox") is not None
            hint = " A rotated box (robndbox) is no box of edges." if rotated else ""
            raise BadRecord(f"the object has no bndbox.{hint}")
        with _at(bndbox):
            sides = []
            for side in SIDES:
                element = bndbox.find(side)
                with _at(element):
                    sides.append(read_side(None if element is None else _text(element), side))
            xywh = box_of_corners(sides, self.corners)
        for extra in ("part", "pose", "truncated", "occluded"):
            if _text(item.find(extra)).strip() not in ("0", "Unspecified", ""):
                self.notes[f"value of {extra}, not kept"] += 1
        crowd, difficult = (_text(item.find(x)).strip() == "1" for x in ("iscrowd", "difficult"))
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


def _text(element: Element | None) -> str:
    """What stands in an element, without the line breaks and spaces of indentation."""
    text = "" if element is None else element.text or ""
    return text.strip() if "\n" in text else text


def read_xml(path: Path) -> Element:
    """The root element of a file; every element has its line as the attribute ``LINE``.

    A document type is refused where it begins. So no entity can be declared: neither those that
    grow without limit, nor those that read other files.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def start(tag: str, _: dict[str, str]) -> None:
        builder.start(tag, {LINE: str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        what = "has a document type (<!DOCTYPE), which annotations do not need; remove it."
        raise BadRecord(what, parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        what = f"is not well-formed XML: {expat.ErrorString(error.code)}."
        raise BadRecord(what, error.lineno) from None
    except BadRecord:
        raise
    except (ValueError, LookupError) as error:  # encodings of several bytes
        what = f"{error}; save the file as UTF-8."
        raise BadRecord(what, parser.CurrentLineNumber) from None
    return builder.close()
