"""What a file is that cannot be read, by its first bytes."""

from __future__ import annotations

from pathlib import Path

# First bytes -> what they begin.
STARTS = {
    b"": "it is empty",
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file with git lfs pull",
    b"<": "it is a web page or XML",
    b"\x1f\x8b": "it is compressed with gzip; unpack it",
    b"PK\x03\x04": "it is a zip archive; unpack it",
    b"%PDF": "it is a PDF",
    b"\x1aE\xdf\xa3": "it is a video; write its frames as images",
    b"\xff\x0a": "it is JPEG XL; convert it to JPEG",
    b"\0\0\0\x0cJXL ": "it is JPEG XL; convert it to JPEG",
    b"\x93NUMPY": "it is an array of NumPy; save it as PNG",
    b"%!PS": "it is PostScript; convert it to PNG",
}
# First bytes -> formats of images, which Pillow reads if they are whole and of a usual form.
IMAGES = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
# Brands of ISO media files, from byte 8; all others are videos.
STILLS = (b"heic", b"heix", b"heif", b"mif1", b"msf1", b"avif")
DICOM = slice(128, 132)  # where its mark stands
HEAD = DICOM.stop  # bytes that tell


def kind_of_file(path: Path | str) -> str:
    """What a file is that was taken for an image, for a sentence; empty if not known."""
    with Path(path).open("rb") as file:
        head = file.read(HEAD)
    for start, name in IMAGES.items():
        if head.startswith(start):
            return f"it is {name}, but damaged, or not as Pillow reads it; save it as RGB of 8 bits"
    return kind_of(head)


def kind_of(head: bytes) -> str:
    """A clause such as ``it is a PDF``, with the fix where there is one; empty if not known.

    Args:
        head: the first ``HEAD`` bytes of a file, all of a shorter one.
    """
    if head[4:8] == b"ftyp":
        still = head[8:12] in STILLS
        return "it is HEIC, HEIF or AVIF; convert it to JPEG" if still else STARTS[b"\x1aE\xdf\xa3"]
    if head[DICOM] == b"DICM":
        return "it is DICOM; convert it to PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return STARTS[b"\x1aE\xdf\xa3"]
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t") or head
    found = [what for start, what in STARTS.items() if start and text.startswith(start)]
    return found[0] if found else "" if head else STARTS[b""]
