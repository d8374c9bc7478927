"""Sections of a report on the run itself: command, versions, machine, data, settings."""

from __future__ import annotations

import shlex
from typing import Any

from retinanet.data.coco import CocoData
from retinanet.tools.report.page import Block, Code, Facts, Folded, Section
from retinanet.tools.report.run_record import Record
from retinanet.training.run_directory import flatten

# Digits of a fingerprint or commit that tell it from others.
SHORT = 12


def announced_section(record: Record) -> Section | None:
    """What the run said of its data before the first step; None where it is not known."""
    if not record.announced:
        return None
    return Section(
        "Before the first step",
        "What the run measured in the training data, and what it expected from its settings.",
        [Facts(record.announced)],
    )


def what_ran_section(
    record: Record, metrics: dict[str, Any] | None, data: CocoData | None
) -> Section:
    """Command, versions, machine, fingerprints, settings.

    Args:
        record: of the run.
        metrics: of the evaluation; None for data without annotations.
        data: what was evaluated; None where it is gone.
    """
    start = record.starts[-1] if record.starts else {}
    facts = [
        ("in folder", str(start.get("folder", ""))),
        ("started", _starts(record)),
        ("checkpoint", record.checkpoint),
        ("step", "" if record.step is None else f"{record.step:,}"),
        ("machine", _machine(record, start)),
        ("source", _source(start)),
        ("versions", _versions(start)),
        ("evaluator", _evaluator(metrics)),
        ("training data", _short(start.get("train_data"))),
        ("evaluated on", _evaluated_on(data, start)),
    ]
    blocks: list[Block] = [Facts([(name, value) for name, value in facts if value])]
    if start.get("command"):
        blocks.insert(0, Code(shlex.join(["python", *map(str, start["command"])])))
    if record.typed:
        typed = [tuple(text.split("=", 1)) for text in record.typed if "=" in text]
        blocks.append(Folded(f"Settings of the command ({len(typed)})", [Facts(typed, typed=True)]))
    if record.settings:
        every = [(key, str(value)) for key, value in flatten(record.settings).items()]
        blocks.append(Folded(f"All settings ({len(every)})", [Facts(every, typed=True)]))
    return Section(
        "What ran",
        "Enough to run it again: the command, the versions, and fingerprints (SHA-256) of the "
        "annotation files, which tell whether the data is still the same.",
        blocks,
    )


def _starts(record: Record) -> str:
    """When, to the minute, of one start or of the first and the last."""
    times = [start["started"] for start in record.starts if "started" in start]
    times = [time.replace("T", " ")[:16] + " UTC" for time in times]
    if len(times) < 2:
        return "".join(times)
    return f"{times[0]}; {len(times)} times in all, the last {times[-1]}"


def _machine(record: Record, start: dict[str, Any]) -> str:
    precision = record.settings.get("precision")
    processes = start.get("processes")
    parts = [
        start.get("device"),
        precision and f"forward pass in {precision}",
        processes and f"{processes} {'process' if processes == 1 else 'processes'}",
        start.get("cpus") and f"{start['cpus']} CPU cores",
        start.get("platform"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _source(start: dict[str, Any]) -> str:
    git = start.get("git")
    if not git:
        return ""
    return f"commit {git['commit'][:SHORT]}{' with changes' if git['changed'] else ''}"


def _versions(start: dict[str, Any]) -> str:
    found = {"Python": start.get("python"), **start.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _evaluator(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return ""
    return f"evaluation.backend={metrics['backend']} evaluation.max_dets={metrics['max_dets']}"


def _evaluated_on(data: CocoData | None, start: dict[str, Any]) -> str:
    if data is None:
        return _short(start.get("val_data"))
    return f"{data.path}, {_short(data.fingerprint)}"


def _short(fingerprint: str | None) -> str:
    return "" if not fingerprint else f"fingerprint {fingerprint[:SHORT]}"
