"""A `Comparison` as pictures. matplotlib is the caller's: nothing here imports it."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from infer_align.diagnostics._gradients import UNBIASED, Comparison, GradientRow

INK, MUTED, ALARM, GOOD = "#1f2933", "#9aa5b1", "#c0392b", "#2a6fb0"


def plot(comparison: Comparison, axis: Any) -> Any:
    """Variance against time; see `Comparison.plot`."""
    rows = [row for row in comparison.rows if math.isfinite(row.seconds)]
    if not rows:
        raise ValueError(
            "no row has a time, so there is nothing to draw against; give Measurement.seconds, or "
            "use plot_bias"
        )
    slowest = max(row.seconds for row in rows)
    unit, scale = ("s", 1.0) if slowest >= 1 else ("ms", 1e3) if slowest >= 1e-3 else ("µs", 1e6)
    x = np.array([row.seconds for row in rows]) * scale
    y = np.array([row.total_variance for row in rows])
    positive = y[y > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    floor, top = low / 12, high * 3
    axis.set(xscale="log", yscale="log", xlabel=f"time per gradient, {unit}",
             ylabel="total variance of one gradient")  # fmt: skip
    left, right = x.min() / 1.6, x.max() * 1.6
    axis.set(xlim=(left, right), ylim=(floor, top))
    ticks = _ticks(left, right)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    _equal_efficiency(axis, (left, right), (floor, top))
    z = NormalDist().inv_cdf(0.5 + comparison.level / 2)
    for row, at, value in zip(rows, x, y, strict=True):
        colour = GOOD if row.claim == UNBIASED else ALARM
        face = colour if row.claim == UNBIASED else "white"
        style = {"color": colour, "markerfacecolor": face, "markersize": 7, "zorder": 3}
        if value > 0:
            spread = min(z * row.total_variance_se, value * 0.9)
            error = [[spread], [z * row.total_variance_se]]
            axis.errorbar(at, value, yerr=error, fmt="o", capsize=2, **style)
        else:
            axis.plot(at, floor * 1.35, "v", clip_on=False, **style)
    if len({row.claim == UNBIASED for row in rows}) > 1:
        axis.plot([], [], "o", color=GOOD, label="unbiased")
        axis.plot([], [], "o", color=ALARM, markerfacecolor="white", label="biased")
        axis.legend(frameon=False, fontsize=9, loc="best")
    _label(axis, rows, x, np.where(y > 0, y, floor * 1.35))
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return axis


def plot_bias(comparison: Comparison, axis: Any) -> Any:
    """Bias with intervals; see `Comparison.plot_bias`."""
    rows = [row for row in comparison.rows if row.exact is not None]
    if not rows:
        raise ValueError(
            f"the exact gradient is unknown ({comparison.source}), so no bias can be drawn; pass "
            "exact="
        )
    places = np.arange(len(rows))[::-1]
    axis.axvline(0.0, color=MUTED, linewidth=1, zorder=1)
    for row, place in zip(rows, places, strict=True):
        i = row.furthest
        colour = ALARM if row.covers_zero is False else GOOD
        if math.isfinite(row.low[i]):
            axis.plot([row.low[i], row.high[i]], [place, place], color=colour, linewidth=2)
        face = colour if row.claim == UNBIASED else "white"
        axis.plot(row.bias[i], place, "o", color=colour, markerfacecolor=face, zorder=3)
        if len(comparison.names) > 1:
            axis.annotate(comparison.names[i], (row.bias[i], place), (0, 6), color=INK,
                          textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    axis.set_yticks(places, [row.label for row in rows])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    joint = "" if len(comparison.names) == 1 else ", joint"
    axis.set_xlabel(f"bias of the gradient ({comparison.level:.0%} intervals{joint})")
    axis.margins(x=0.08)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    return axis


def _equal_efficiency(axis: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Diagonals of equal variance × time, by powers of ten."""
    first, last = math.ceil(math.log10(x[0] * y[0])), math.floor(math.log10(x[1] * y[1]))
    step = max(1, (last - first) // 6)
    for power in range(first, last + 1, step):
        ends = np.array(x)
        axis.plot(ends, 10.0**power / ends, color=MUTED, linewidth=0.6, linestyle=":", zorder=1)


def _ticks(left: float, right: float) -> list[float]:
    """1, 2, 5 times powers of ten; the powers alone where those are many."""
    powers = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if left <= m * 10.0**p <= right]
    alone = [10.0**p for p in powers if left <= 10.0**p <= right]
    return alone if len(ticks) > 7 else ticks


def _label(axis: Any, rows: list[GradientRow], x: np.ndarray, y: np.ndarray) -> None:
    """Names in a column to the right, in the order of the points, each with a line to its own."""
    bottom, top = np.log(axis.get_ylim())
    at = (np.log(y) - bottom) / (top - bottom)  # in axes' heights
    order = np.argsort(at, kind="stable")
    gap = min(0.065, 1 / len(rows))
    places = at[order]
    for _ in range(200):  # push neighbours apart, within the axes
        for i in range(len(places) - 1):
            short = gap - (places[i + 1] - places[i])
            if short > 0:
                places[i], places[i + 1] = places[i] - short / 2, places[i + 1] + short / 2
        places = np.clip(places, 0.0, 1.0)
    for i, place in zip(order, places, strict=True):
        name = rows[i].label + (" (variance 0)" if rows[i].total_variance == 0 else "")
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axis.annotate(name, (x[i], y[i]), (1.03, place), textcoords="axes fraction",
                      va="center", color=INK, fontsize=9, arrowprops=line)  # fmt: skip
