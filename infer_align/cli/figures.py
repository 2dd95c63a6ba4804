"""The report's figures: matplotlib, as inline SVG that takes its colours from the page."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_align.cli import evaluation

if TYPE_CHECKING:
    import xarray

INK, FAINT = "#010203", "#040506"
"""Stand-ins for the page's text and line colours, replaced in the SVG."""
BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#d9822b", "#2f9e6e", "#8b93a1"
Trees = Mapping[str, "xarray.DataTree"]
Metrics = Sequence[Mapping[str, float]]


def svg(
    draw: Callable[[Any], Any], name: str, *, width: float = 5.2, height: float = 3.1,
    whole: bool = False,
) -> str:  # fmt: skip
    """A figure as an ``<svg>`` element, drawn by a function of its axes, or of the whole figure."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": not whole,
        "grid.color": FAINT, "grid.linewidth": 0.5, "axes.axisbelow": True,
        "legend.frameon": False, "axes.formatter.useoffset": False,
        "text.parse_math": False,  # prompts and names of features have dollars
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure if whole else figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names of clip paths and markers are unique to a figure, not to a page of several.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)


def curves(metrics: Metrics, trees: Trees) -> dict[str, str]:
    """Curves of the fit, and the log-weights of its end, by title."""
    out = {}
    if len(metrics) > 1:
        out["Divergence from the target, by step"] = svg(lambda ax: _kls(ax, metrics), "kl")
        out["Effective sample size of a batch, by step"] = svg(lambda ax: _ess(ax, metrics), "ess")
    out["Log-weights of fresh draws"] = svg(lambda ax: _histogram(ax, trees), "weights")
    return out


def _kls(ax: Any, metrics: Metrics) -> None:
    x = _column(metrics, "step")
    for key, label, colour in (
        ("reverse_kl", "KL(π‖p), reverse", BLUE), ("forward_kl", "KL(p‖π), forward", ORANGE),
    ):  # fmt: skip
        _raw_and_smooth(ax, x, _column(metrics, key), colour, label)
    ax.set(xlabel="step", ylabel="nats, estimated from the batch")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend()


def _ess(ax: Any, metrics: Metrics) -> None:
    _raw_and_smooth(ax, _column(metrics, "step"), _column(metrics, "ess"), BLUE, "ESS / n")
    ax.set(xlabel="step", ylabel="share of the draws", ylim=(0, 1.02))


def _histogram(ax: Any, trees: Trees) -> None:
    """log p/π − 0 of fresh draws: all mass at 0 would be a perfect fit."""
    values = {}
    for name, tree in trees.items():
        log_w = evaluation.stat(tree, "log_weight")
        contexts = evaluation.values(tree, "diagnostics/contexts", "log_z")[0]
        centred = (log_w - contexts).ravel()
        values[name] = centred[np.isfinite(centred)]
    everything = np.concatenate(list(values.values()))
    if not len(everything):
        ax.text(0.5, 0.5, "the target accepted no draw", transform=ax.transAxes, ha="center")
        return
    low, high = np.quantile(everything, [0.002, 0.998])
    bins = np.linspace(low - 1e-9, max(high, low + 0.1), 41)
    colours = [GREY, BLUE] if len(values) > 1 else [BLUE]
    for (name, x), colour in zip(values.items(), colours, strict=True):
        ax.hist(
            np.clip(x, bins[0], bins[-1]), bins=bins, density=True, color=(*_rgb(colour), 0.35),
            edgecolor=colour, linewidth=1, histtype="stepfilled", label=name,
        )  # fmt: skip
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set(xlabel="log p(y)/π(y), estimated; 0 everywhere is a perfect fit", ylabel="density")
    ax.legend()


def _raw_and_smooth(ax: Any, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    ax.plot(x, np.where(np.isfinite(y), y, np.nan), color=colour, linewidth=0.8, alpha=0.45)
    ax.plot(x, smooth(y), color=colour, linewidth=2, label=label)
    ax.xaxis.get_major_locator().set_params(integer=True)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a tenth of the steps; what is not finite is left out."""
    half = max(1, math.ceil(len(values) / 20))
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    finite = [w[np.isfinite(w)] for w in windows]
    return np.array([w.mean() if len(w) else math.nan for w in finite])


def _column(metrics: Metrics, key: str) -> np.ndarray:
    return np.array([row[key] for row in metrics], dtype=float)


def _rgb(colour: str) -> tuple[float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b
