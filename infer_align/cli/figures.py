"""The report's figures: matplotlib, as inline SVG that takes its colours from the page."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_align.cli import evaluation
from infer_align.cli.metrics import Columns

if TYPE_CHECKING:
    import xarray

INK, FAINT = "#010203", "#040506"
"""Stand-ins for the page's text and line colours, replaced in the SVG."""
BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#d9822b", "#2f9e6e", "#8b93a1"
Trees = Mapping[str, "xarray.DataTree"]
MOST_POINTS = 1_000
"""Points of a curve; a longer one is drawn as the means of as many equal stretches. Points of a
scatter that are shapes of the SVG; more are drawn as a picture."""


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
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of no font here; the page's has it
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure if whole else figure.add_subplot())
        _as_pixels_where_many(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Names of clip paths and markers are unique to a figure, not to a page of several.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)


def _as_pixels_where_many(figure: Any) -> None:
    """Draw what has many points as a picture: 10^5 prompts would be 150 MB of SVG."""
    for axis in figure.axes:
        for artist in (*axis.lines, *axis.collections):
            offsets = getattr(artist, "get_offsets", lambda: ())()
            paths = getattr(artist, "get_paths", lambda: ())()
            points = getattr(artist, "get_xdata", lambda: ())()
            if max(len(offsets), len(paths), len(points)) > MOST_POINTS:
                artist.set_rasterized(True)


def curves(metrics: Columns, trees: Trees) -> dict[str, str]:
    """Curves of the fit, and the log-weights of its end, by title."""
    out = {}
    if is_curve(metrics):
        out["Divergence from the target, by step"] = svg(lambda ax: _kls(ax, metrics), "kl")
        out["Effective sample size of a batch, by step"] = svg(lambda ax: _ess(ax, metrics), "ess")
    out["Log-weights of fresh draws"] = svg(lambda ax: _histogram(ax, trees), "weights")
    return out


def is_curve(metrics: Columns) -> bool:
    """Whether there are two steps to draw a line between."""
    return len(metrics.get("step", ())) > 1


def _kls(ax: Any, metrics: Columns) -> None:
    for key, label, colour in (
        ("reverse_kl", "KL(π‖p), reverse", BLUE), ("forward_kl", "KL(p‖π), forward", ORANGE),
    ):  # fmt: skip
        _raw_and_smooth(ax, metrics, key, colour, label)
    ax.set(xlabel="step", ylabel="nats, estimated from the batch")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend()


def _ess(ax: Any, metrics: Columns) -> None:
    _raw_and_smooth(ax, metrics, "ess", BLUE, "ESS / n")
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


def _raw_and_smooth(ax: Any, metrics: Columns, key: str, colour: str, label: str) -> None:
    x, y = thinned(metrics["step"]), thinned(metrics[key])
    ax.plot(x, y, color=colour, linewidth=0.8, alpha=0.45)
    ax.plot(x, smooth(y), color=colour, linewidth=2, label=label)
    ax.xaxis.get_major_locator().set_params(integer=True)


def thinned(values: np.ndarray) -> np.ndarray:
    """Means of at most `MOST_POINTS` equal stretches; what is not finite is left out."""
    size = -(-len(values) // MOST_POINTS)
    padded = np.full(-(-len(values) // size) * size, math.nan)
    padded[: len(values)] = values
    return _mean(*(x.reshape(-1, size).sum(-1) for x in _finite(padded)))


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a tenth of the steps; what is not finite is left out."""
    half = max(1, math.ceil(len(values) / 20))
    return _mean(*(_window_sums(x, half) for x in _finite(values)))


def _finite(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values with 0 for what is not finite, and 1 where they are."""
    kept = np.isfinite(values)
    return np.where(kept, values, 0.0), kept.astype(float)


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _window_sums(values: np.ndarray, half: int) -> np.ndarray:
    """Sums of values[i − half : i + half + 1], in linear time and without cancellation.

    Every window is the end of one block of its length and the beginning of the next.
    """
    width, n = 2 * half + 1, len(values)
    blocks = np.zeros((-(-(n + 2 * half) // width) + 1, width))
    blocks.reshape(-1)[half : half + n] = values
    ends = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    beginnings = np.zeros_like(blocks)  # without the entry itself
    np.cumsum(blocks[:, :-1], axis=1, out=beginnings[:, 1:])
    return ends[:n] + beginnings.reshape(-1)[width : width + n]


def _rgb(colour: str) -> tuple[float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b
