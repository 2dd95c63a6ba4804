"""What the plots share: colours that all can tell apart, on dark pages and light ones."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

    from infer_align.diagnostics._summary import Estimate

BLUE, ORANGE, GREEN, GREY, ALARM = "#3b7dd8", "#d9822b", "#2f9e6e", "#8b93a1", "#c8453b"
SERIES = (BLUE, ORANGE, GREEN, "#a06cc9")


def stat(tree: "xarray.DataTree", name: str) -> np.ndarray:
    """A sample statistic, (n, contexts)."""
    return column(tree, "sample_stats", name)[0]


def column(tree: "xarray.DataTree", group: str, name: str) -> np.ndarray:
    """The values of a variable or a coordinate of a group."""
    return np.asarray(tree[group].to_dataset()[name])


def labels(tree: "xarray.DataTree") -> list[str]:
    """Names of the contexts."""
    return [str(x) for x in column(tree, "diagnostics/contexts", "context")]


def short(text: str, width: int = 28) -> str:
    """A label that fits, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def ink(axis: Any) -> Any:
    """The colour of the axis' own text: dark on a light page, light on a dark one."""
    return axis.xaxis.label.get_color()


def clean(axis: Any) -> Any:
    """Without the upper and right spine."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return axis


def plain_ticks(axis: Any, *which: str) -> None:
    """Powers of ten, or 1, 2, 5 times them where few fit, as ordinary numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in which:
        one = getattr(axis, f"{name}axis")
        low, high = one.get_view_interval()
        wide = high > 500 * low
        one.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        one.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        one.set_minor_formatter(NullFormatter())


def note(axis: Any, text: str, *, right: bool = False) -> None:
    """A small text in the upper corner."""
    axis.text(
        0.98 if right else 0.02, 0.98, text, transform=axis.transAxes, fontsize=8, va="top",
        ha="right" if right else "left", color=ink(axis), linespacing=1.45,
    )  # fmt: skip


def number(x: float) -> str:
    """k̂ in words that need no explanation of its infinities."""
    if x == -math.inf:
        return "−∞ (ties)"
    return "∞" if x == math.inf else f"{x:.2f}".replace("-", "−")


def errors(e: "Estimate") -> list[list[float]]:
    """Distances to both ends of an interval, as errorbar takes them; 0 where there is no end."""
    ends = (e.value - e.low, e.high - e.value)
    return [[x if math.isfinite(x) and x > 0 else 0.0] for x in ends]
