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
}
# Brands of ISO media files, from byte 8; all others are videos.
STILLS = (b"heic", b"heix", b"heif", b"mif1", b"msf1", b"avif")
HEAD = 32  # bytes that tell


def kind_of_file(path: Path | str) -> str:
    """What a file is, for a sentence; empty if not known."""
    with Path(path).open("rb") as file:
        return kind_of(file.read(HEAD))


def kind_of(head: bytes) -> str:
    """A clause such as ``it is a PDF``, with the fix where there is one; empty if not known.

    Args:
        head: the first ``HEAD`` bytes of a file, all of a shorter one.
    """
    if head[4:8] == b"ftyp":
        still = head[8:12] in STILLS
        return "it is HEIC, HEIF or AVIF; convert it to JPEG" if still else STARTS[b"\x1aE\xdf\xa3"]
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return STARTS[b"\x1aE\xdf\xa3"]
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t") or head
    found = [what for start, what in STARTS.items() if start and text.startswith(start)]
    return found[0] if found else "" if head else STARTS[b""]
