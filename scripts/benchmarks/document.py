"""docs/performance.md from the figures of scripts/benchmark.py.

python -m scripts.benchmarks.document runs/benchmark.json docs/performance.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTRODUCTION = """# Speed and memory

Measured by `python -m scripts.benchmark STAGE ... --output FILE.json`, written by `python -m
scripts.benchmarks.document FILE.json docs/performance.md`. On a GPU the same command takes
`--device cuda` and adds the time of the kernels; what is not listed here was not measured.

Measured on {device}, {threads} threads, torch {torch}, torchvision {torchvision}. All contestants
of a table took turns in one process, on the same inputs. Speed is the median of the ratios to the
first line's turn in the same round, with the smallest and the largest in brackets: absolute times
move by a tenth and more from run to run, ratios less.

Every stage ran twice. **As shipped**: the machine's allocator as it is. **Fixed**: glibc told to
keep what it has, for all contestants; by default it maps every tensor above 32 MiB afresh, which
costs those most who make most of them. Where both differ, the second compares the arithmetic.
Memory is the peak above what was held before, as shipped; gradients of the turn before count as
held, which whoever drops them early has for its activations.

The limit is what the convolutions alone could do: their multiplications over the rate that the
machine reaches at its best, measured in the same process (a 3 x 3 convolution with 256 channels; on
a GPU the product of two matrices), with the fixed allocator. The loss in bf16 is compared with the
same project's in fp32, at the start of a training. Where a column compares in the same precision,
it does so with torchvision's bf16 as it comes, with the fixed allocator.

Below a table stands where the time of its last line goes: the operators of torch that take most by
themselves, as shares of all of them, from a profile of one turn.
"""

# What a profile alone does not say, by the beginning of a stage's name.
NOTES = {
    "postprocess": "The largest logit of every anchor and the best thousand of each level are most "
    "of it. To look only at scores above the threshold would be quicker on a CPU, but a GPU would "
    "have to wait for their number on every level.",
    "data": "Decoding and resizing are torchvision's own, in bytes; little else is left. The peer "
    "spends most on float images, and as shipped on mapping them.",
    "training step": "Nearly all of it is convolution, on both sides: the rest is what can differ.",
}
# Shares that some stages have, and their columns.
SHARES = {"share_of_limit": "of the limit", "loss_error": "loss off by"}
SPEED = "same_precision"


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("document", type=Path)
    args = parser.parse_args()
    rows = json.loads(args.figures.read_text())
    args.document.write_text(document(rows))


def document(rows: Sequence[dict[str, Any]]) -> str:
    """The text, a table for each stage in the order of the figures.

    Raises:
        ValueError: figures of several machines.
    """
    devices = {row["device"] for row in rows}
    if len(devices) != 1:
        raise ValueError(f"figures of one machine make a document, not of {sorted(devices)}.")
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    paragraphs = INTRODUCTION.format(**rows[0]).split("\n\n")
    parts = ["\n\n".join(part.strip().replace("\n", " ") for part in paragraphs), ""]
    return "\n".join([*parts, *(table(stage, rows) for stage in stages)])


def table(stage: str, rows: Sequence[dict[str, Any]]) -> str:
    """One stage."""
    mine = {(row["contestant"], row["allocator"]): row for row in rows if row["stage"] == stage}
    extra = [name for name in SHARES if any(row[name] is not None for row in mine.values())]
    paired = any(row[SPEED] is not None for row in mine.values())
    headings = ["", "as shipped", "", "fixed", "", *["in the same precision"] * paired, "memory"]
    headings += [SHARES[name] for name in extra]
    lines = [
        f"## {stage[0].upper()}{stage[1:]}",
        "",
        f"| {' | '.join(headings)} |",
        "| --- |" + " ---: |" * (len(headings) - 1),
    ]
    for contestant in dict.fromkeys(name for name, _ in mine):
        shipped, fixed = mine.get((contestant, "shipped")), mine.get((contestant, "fixed"))
        memory = shipped and shipped["peak_mib"]
        same = (fixed or shipped)[SPEED]
        cells = [_cells(shipped), _cells(fixed)]
        cells += ["" if same is None else f"{same:.2f} x"] if paired else []
        cells.append("" if memory is None else f"{memory:.0f} MiB")
        cells += [_percent((fixed or shipped)[name]) for name in extra]
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    slowest = (fixed or shipped)["slowest"]
    if slowest:
        lines += ["", ", ".join(f"{_short(name)} {_percent(slowest[name])}" for name in slowest)]
    notes = [note for start, note in NOTES.items() if stage.startswith(start)]
    lines += ["", *notes] if notes else []
    return "\n".join([*lines, ""])


def _short(name: str) -> str:
    """An operator without its library, a kernel without its template, what is compiled as that."""
    if "CompiledFxGraph" in name:
        return "compiled code"
    return f"`{name.removeprefix('aten::').split('<')[0]}`"


def _percent(share: float | None) -> str:
    """Two digits, whatever the size; nothing for nothing."""
    return f"{100 * share:.2g} %" if share else ""


def _cells(row: dict[str, Any] | None) -> str:
    """Time and speed, two cells without their outer bars."""
    if row is None:
        return "|"
    seconds = row["seconds"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    speed, low, high = (_digits(row[key]) for key in ("speed", "speed_min", "speed_max"))
    return f"{time} | 1" if low == high == "1.00" else f"{time} | **{speed}** x ({low} to {high})"


def _digits(ratio: float) -> str:
    """Three digits of a ratio."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


if __name__ == "__main__":
    main()
