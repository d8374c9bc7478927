"""Tables as CSV."""

import csv
import io
from collections.abc import Iterable
from typing import Any


def csv_text(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table with a line for each row; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
