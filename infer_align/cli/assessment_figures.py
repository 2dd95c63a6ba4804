"""The report's figures of assessed trees: trust, frontier, positions, features."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from infer_align import diagnostics
from infer_align.cli import evaluation
from infer_align.cli.figures import GREEN, GREY, Trees, _rgb, is_curve, smooth, svg, thinned
from infer_align.cli.measuring import position_curve
from infer_align.cli.metrics import Columns

if TYPE_CHECKING:
    import xarray

KL_CURVES = (
    ("kl", "whole vocabulary (Rao–Blackwell)"), ("kl_drawn", "log-ratio of the drawn token"),
    ("kl_exact", "exact"),
)  # fmt: skip
ENTROPY_CURVES = (
    ("entropy", "policy"), ("entropy_prior", "prior, on the same prefixes"),
    ("entropy_exact", "policy, exact"),
)  # fmt: skip


class Curve(NamedTuple):
    """The exact frontier, as `plot_frontier` reads it."""

    kl: np.ndarray
    reward: np.ndarray


def trust(trees: Trees) -> dict[str, str]:
    """Whether the weights can be trusted, by title."""
    after, before = trees["after"], trees.get("before")
    out = {"ESS and Pareto k̂ of each prompt": svg(
        lambda ax: diagnostics.plot_contexts(after, ax), "contexts"
    )}  # fmt: skip
    named = {n: t for n, t in reversed([*trees.items()]) if evaluation.accepted(t)}
    if named:
        title = "Weights by rank, and the Pareto tail"
        out[title] = svg(lambda ax: _weights(ax, named), "weight-ranks", height=3.3)
    exact = _exact_log_z(after)
    if exact is not None:
        out["log Ẑ of each prompt, against the exact one"] = svg(
            lambda ax: diagnostics.plot_log_z(after, ax, exact=exact), "log-z"
        )
    elif before is not None:
        out["log Ẑ of each prompt, from the policy's draws and from the prior's"] = svg(
            lambda ax: diagnostics.plot_log_z(after, ax, other=before), "log-z"
        )
    return out


def _weights(ax: Any, trees: Trees) -> None:
    for name, tree in trees.items():
        diagnostics.plot_weights(tree, ax, label=name if len(trees) > 1 else "")


def _exact_log_z(tree: "xarray.DataTree") -> np.ndarray | None:
    return evaluation.values(tree, "exact", "log_z") if "exact" in tree.children else None


def distance(metrics: Columns, trees: Trees, beta: float | None) -> dict[str, str]:
    """How far from the prior, what for, and where in the text, by title."""
    out = {}
    points = _points(trees, 1.0 if beta is None else beta)
    if points or is_curve(metrics):
        out["What the distance from the prior buys"] = svg(
            lambda ax: _frontier(ax, metrics, trees, points, beta), "frontier"
        )
    after = trees["after"]
    for title, curves, unit, name in (
        ("KL(π‖prior), by position", KL_CURVES, "KL, nats per token", "kl-position"),
        ("Entropy of the next token, by position", ENTROPY_CURVES, "nats", "entropy-position"),
    ):
        found = {label: position_curve(after, key) for key, label in curves}
        shown = {label: curve for label, curve in found.items() if curve is not None}
        if shown:
            draw: Callable[[Any], Any] = lambda ax, shown=shown, unit=unit: (
                diagnostics.plot_positions(shown, ax, unit=unit)
            )
            out[title] = svg(draw, name)
    return out


def features(tree: "xarray.DataTree") -> dict[str, str]:
    """Features under policy and target, by title."""
    if "features" not in tree.children or not evaluation.accepted(tree):
        return {}
    count = min(4, len(tree["features"].data_vars))
    return {
        "Features of the target, as ranks among the policy's": svg(
            lambda ax: diagnostics.plot_ranks(tree, ax), "ranks"
        ),
        "Features under policy and target": svg(
            lambda figure: diagnostics.plot_pairs(tree, figure), "pairs", whole=True,
            width=5.2 if count < 3 else 1.9 * count, height=3.1 if count == 1 else 1.7 * count,
        ),
    }  # fmt: skip


def _points(trees: Trees, scale: float) -> tuple[diagnostics.FrontierPoint, ...]:
    """None where the target rejects draws: their potential is −inf."""
    finite = all(np.isfinite(evaluation.stat(t, "log_target")).all() for t in trees.values())
    known = all("log_prior" in t["sample_stats"].data_vars for t in trees.values())
    return diagnostics.frontier_points(trees, scale=scale) if finite and known else ()


def _frontier(
    ax: Any,
    metrics: Columns,
    trees: Trees,
    points: tuple[diagnostics.FrontierPoint, ...],
    beta: float | None,
) -> None:
    """The exact curve where there is one, the assessed points, and the way of the fit."""
    scale = 1.0 if beta is None else beta
    if is_curve(metrics):
        x = smooth(thinned(metrics["kl_prior"]))
        y = scale * smooth(thinned(metrics["log_potential"]))
        ax.plot(x, y, color=GREY, linewidth=1, alpha=0.5)
        strength = np.linspace(0.25, 1.0, len(x))
        ax.scatter(x, y, c=[(*_rgb(GREY), a) for a in strength], s=14, linewidths=0,
                   label="batches of the fit, smoothed")  # fmt: skip
    name = "E[log-potential] (reward/β)" if beta is None else "E[reward]"
    curve = None
    if "frontier" in trees["after"].children:
        names = ("kl", "log_potential")
        kl, potential = (evaluation.values(trees["after"], "frontier", n) for n in names)
        curve = Curve(kl, scale * potential)
        x, y = (float(evaluation.values(trees["after"], "frontier", f"target_{n}"))
                for n in names)  # fmt: skip
        ax.plot(x, scale * y, "*", color=GREEN, ms=12, label="the target")
    diagnostics.plot_frontier(points, ax, exact=curve, reward=name)
