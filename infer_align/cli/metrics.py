"""`metrics.jsonl`: one line a step, appended, checked when a run goes on, and read as columns."""

import hashlib
import json
import math
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infer_align import _files
from infer_align.cli.console import notice
from infer_align.cli.escapes import to_json
from infer_align.cli.runs import RunFolder

Columns = Mapping[str, np.ndarray]
"""A number a step by name, NaN where a step has none; ``step`` counts from 1."""


class MetricsFile:
    """The metrics of a running fit, open for appending."""

    def __init__(self, folder: RunFolder, file: BinaryIO, lines: int, digest: Any):
        self.folder, self.file, self.lines, self.digest = folder, file, lines, digest

    def write(self, row: Mapping[str, float]) -> None:
        """Append a step."""
        line = as_line(row).encode()
        self.file.write(line)
        self.file.flush()
        self.digest.update(line)
        self.lines += 1

    def mark(self) -> None:
        """Wait until the lines are on the disk, and record what they are."""
        os.fsync(self.file.fileno())
        self.folder.record(self.folder.metrics.name, _known(self.lines, self.digest))


def as_line(row: Mapping[str, float]) -> str:
    """One line of JSON, strictly: numbers that are not finite become texts."""
    return to_json({**row, "step": int(row["step"])}) + "\n"


@contextmanager
def appending(folder: RunFolder, *, keep: int) -> Iterator[MetricsFile]:
    """The metrics file, cut after step ``keep``, for appending.

    A damaged one is said, kept aside as it is, and replaced by its readable lines.
    """
    path = folder.metrics
    damage, lines, size, digest = _examine(folder, keep)
    if damage:
        aside = _aside(path) if path.is_file() else None
        notice(
            f"{path} is damaged ({damage}); the fit goes on without it"
            + (f", its readable lines are kept, and the file itself as {aside}" if aside else "")
        )
        if aside is not None:
            shutil.copyfile(path, aside)
            _files.sync(aside)
            folder.wrote(aside)
        lines, digest = _salvage(path, keep)
        folder.record(path.name, _known(lines, digest))
    else:
        folder.record(path.name, _known(lines, digest))  # true of the longer file, too
        with path.open("ab") as file:
            file.truncate(size)
    with path.open("ab") as file:
        yield MetricsFile(folder, file, lines, digest)


def read(folder: RunFolder) -> Columns:
    """The metrics as columns, in memory for 8 bytes a number; unreadable lines do not count."""
    columns: dict[str, array[float]] = {}
    count = 0
    for row in _rows(folder.metrics):
        for name, value in row.items():
            column = columns.setdefault(name, array("d"))
            if len(column) < count:
                column.extend([math.nan] * (count - len(column)))
            column.append(value)
        count += 1
    for column in columns.values():
        column.extend([math.nan] * (count - len(column)))
    return {name: np.asarray(column, dtype=float) for name, column in columns.items()}


def _rows(path: Path) -> Iterator[dict[str, float]]:
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if (row := _parsed(line)) is not None:
                    yield row


def _parsed(line: bytes) -> dict[str, float] | None:
    """The numbers of a line, or None where it is not one that `as_line` wrote."""
    try:
        row = {name: float(value) for name, value in json.loads(line).items()}
        return row if line.endswith(b"\n") and row["step"] >= 1 else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _examine(folder: RunFolder, keep: int) -> tuple[str, int, int, Any]:
    """What is wrong, if anything; lines, bytes and digest up to step ``keep``."""
    known = folder.files().get(folder.metrics.name)
    recorded = {"lines": 0, "sha256": None} | (known if isinstance(known, dict) else {})
    lines = size = number = 0
    digest, everything = hashlib.sha256(), hashlib.sha256()
    kept, last, damage = True, 0.0, ""
    if folder.metrics.is_file():
        with folder.metrics.open("rb") as file:
            for number, line in enumerate(file, 1):
                everything.update(line)
                if number == recorded["lines"] and everything.hexdigest() != recorded["sha256"]:
                    damage = damage or "its SHA-256 is not the recorded one"
                row = _parsed(line)
                kept = kept and not (row is not None and row["step"] > keep)
                if kept and row is not None and row["step"] > last:
                    last = row["step"]
                    lines, size = number, size + len(line)
                    digest.update(line)
                elif kept and last < keep:
                    damage = damage or f"line {number} cannot be read"
                elif not kept and number >= recorded["lines"]:
                    break
    if number < recorded["lines"]:
        missing = "is missing" if not folder.metrics.is_file() else f"has {number} lines"
        damage = damage or f"it {missing}, of {recorded['lines']}"
    return damage, lines, size, digest


def _salvage(path: Path, keep: int) -> tuple[int, Any]:
    """Replace a damaged file by its readable lines up to a step."""
    digest, lines = hashlib.sha256(), 0
    with _files.replacing(path) as fresh, fresh.open("wb") as out:
        for row in _rows(path):
            if row["step"] <= keep:
                line = as_line(row).encode()
                out.write(line)
                digest.update(line)
                lines += 1
    return lines, digest


def _aside(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}_damaged_{k}{path.suffix}") for k in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _known(lines: int, digest: Any) -> dict[str, Any]:
    return {"lines": lines, "sha256": digest.hexdigest()}
