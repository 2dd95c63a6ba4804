"""A `Comparison` as text."""

import math

import numpy as np

from infer_align.diagnostics._gradients import UNBIASED, Comparison, GradientRow, wrapped

RIGHT = ("rel. sd", "FLOPs", "time", "var*time")
"""Columns of numbers."""


def text(comparison: Comparison) -> str:
    """One row an estimator, then what the reader must know before believing it."""
    level = f"{comparison.level:.0%} interval"
    cells = [[*"estimator claim bias".split(), level, "covers 0", "variance", *RIGHT]]
    cells += [_cells(row) for row in comparison.rows]
    kept = [i for i in range(len(cells[0])) if i == 0 or any(line[i] for line in cells[1:])]
    widths = [max(len(line[i]) for line in cells) for i in kept]
    right = [cells[0][i] in RIGHT for i in kept]
    lines = [
        "  ".join(
            line[i].rjust(width) if flush else line[i].ljust(width)
            for i, width, flush in zip(kept, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([*lines, *(wrapped(note) for note in _notes(comparison))])


def _cells(row: GradientRow) -> list[str]:
    claim = "unbiased" if row.claim == UNBIASED else f"! {row.claim}"
    variance = number(row.total_variance)
    if row.total_variance_se > 0:
        variance += f" ± {row.total_variance_se / row.total_variance:.0%}"
    cost = [] if math.isnan(row.seconds) else [seconds(row.seconds), number(row.efficiency)]
    return [
        row.label, claim, *_bias(row), variance, f"{row.relative_sd:.2g}",
        "" if math.isnan(row.flops) else count(row.flops), *(cost or ["", ""]),
    ]  # fmt: skip


def _bias(row: GradientRow) -> list[str]:
    if row.exact is None:
        return ["unknown", "", ""]
    i = row.furthest
    covers = {True: "yes", False: "NO", None: "unknown"}[row.covers_zero]
    low, high = row.low[i], row.high[i]
    if low == -math.inf:
        return [number(row.bias[i]), "unknown", covers]
    # Where it is no more than rounding, the numbers would only distract.
    if row.covers_zero and row.total_variance == 0:
        return ["0", "exact", covers]
    return [number(row.bias[i]), f"[{number(low)}, {number(high)}]", covers]


def _notes(comparison: Comparison) -> list[str]:
    rows, size = comparison.rows, len(comparison.names)
    draws = " or ".join(str(n) for n in sorted({row.n for row in rows}))
    one = f"of {comparison.names[0]}"
    every = f"of {size} components, whose intervals hold at once; shown is the one furthest from 0"
    notes = [
        f"exact gradient: {comparison.source}",
        f"from {draws} gradients each; bias {one if size == 1 else every}; rel. sd is that of one "
        "gradient by the norm of the exact one; var*time in seconds; less is better",
    ]
    for row in rows:
        if row.claim != UNBIASED and row.reason:
            notes.append(f"{row.label} is biased: {row.reason}")
        if row.exact is None:
            continue
        blind = int(np.isinf(row.low).sum())
        if blind:
            notes.append(
                f"{row.label}: no draw moved {blind} of the {size} components, though their exact "
                "gradient is not 0. Either what matters there is rare: raise n. Or the estimator "
                "does not see it, as reparam sees no jump"
            )
        if row.claim == UNBIASED and row.covers_zero is False:
            notes.append(
                f"{row.label} claims to be unbiased and {comparison.names[row.furthest]} is not "
                f"right: by chance {1 - comparison.level:.0%} of such rows do; raise n or change "
                "the key, and suspect estimator, objective or exact gradient if it stays"
            )
    return notes


def number(x: float) -> str:
    """Three digits, without a sign on 0."""
    return f"{x + 0.0:.3g}"


def seconds(x: float) -> str:
    """A time with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x / 1e-9:.3g} ns"


def count(x: float) -> str:
    """A large number with k, M, G or T."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"
