"""Files that are whole or not there."""

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file through a temporary one beside it, so that nobody ever sees half of it.

    Args:
        path: replaced if it exists; its folder is made when missing.
        content: text is written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
