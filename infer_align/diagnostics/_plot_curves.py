"""Pictures of the reward–KL frontier and of positions in a sequence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer_align.diagnostics._frontier import FrontierPoint
from infer_align.diagnostics._plot_style import SERIES, clean, errors, ink, short
from infer_align.diagnostics._positions import ByPosition


def plot_frontier(
    points: Sequence[FrontierPoint], axis: Any, *, exact: Any = None, reward: str | None = None
) -> Any:
    """Policies on the plane of KL to the prior and reward, and the most that a KL can buy.

    Parameters
    ----------
    points : sequence of FrontierPoint
        From `frontier_points`. Hollow where an interval is not claimed.
    axis : matplotlib Axes
    exact : infer_align.exact.tilts.Frontier, optional
        Or anything with arrays ``kl`` and ``reward``: the exact curve. No policy lies above it.
    reward : str, optional
        Name of the vertical axis, with its unit. Default: what the points say they are,
        ``E[log-potential]`` unless a feature was named.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        For points of different quantities on one axis without a name for it.
    """
    quantities = sorted({point.quantity for point in points}) or ["E[reward]"]
    if reward is None and len(quantities) > 1:
        raise ValueError(
            f"the points are of different quantities, {', '.join(quantities)}; make all with the "
            "same feature= and scale=, or name the axis with reward="
        )
    if exact is not None:
        order = np.argsort(np.asarray(exact.kl))
        axis.plot(
            np.asarray(exact.kl)[order], np.asarray(exact.reward)[order], color=ink(axis), lw=1.5,
            label="exact frontier: tilts of the prior", zorder=2,
        )  # fmt: skip
    for point, colour in zip(points, SERIES * (1 + len(points) // 4), strict=False):
        kl, value = point.kl, point.reward
        claimed = kl.reliable and value.reliable
        axis.errorbar(
            kl.value, value.value, xerr=errors(kl), yerr=errors(value), fmt="o", ms=7, capsize=2,
            color=colour, markerfacecolor=colour if claimed else "none", zorder=4,
            label=short(point.label) + ("" if claimed else ", not claimed to cover"),
        )  # fmt: skip
    axis.set(xlabel="KL(π‖prior), nats", ylabel=reward or quantities[0])
    axis.margins(x=0.08, y=0.12)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return clean(axis)


def plot_positions(curves: Mapping[str, ByPosition], axis: Any, *, unit: str = "nats") -> Any:
    """Per-token values by position, a line each, with bands of two standard errors.

    Of the outcomes that reach the position. A bar below the line at 0 shows which share they are
    of all; where few are left, the values are of these few.

    Parameters
    ----------
    curves : mapping of label to ByPosition
        From `by_position`. Exact ones (standard error 0) are dashed.
    axis : matplotlib Axes
    unit : str
        Of the vertical axis: "KL, nats per token".

    Returns
    -------
    matplotlib Axes
    """
    if not curves:
        raise ValueError("no curve was given to plot; make one with by_position")
    for (name, curve), colour in zip(curves.items(), SERIES * (1 + len(curves) // 4), strict=False):
        x = np.arange(1, len(curve.value) + 1)
        y, se = curve.per_token, curve.per_token_se
        exact = not np.any(se > 0)
        axis.plot(
            x, y, color=ink(axis) if exact else colour, ls="--" if exact else "-",
            lw=1.3 if exact else 1.8, marker="" if exact or len(x) > 40 else "o", ms=4,
            label=short(name, 40), zorder=3 if exact else 2,
        )  # fmt: skip
        if not exact:
            axis.fill_between(x, y - 2 * se, y + 2 * se, color=colour, alpha=0.2, lw=0)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    alive = next(iter(curves.values())).alive
    if alive.min() < 1:
        _reaching(axis, alive)
    axis.set(xlabel="position in the continuation, tokens", ylabel=unit)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False)
    return clean(axis)


def _reaching(axis: Any, alive: np.ndarray) -> None:
    """The share of outcomes that reach a position, as a strip along the lower edge."""
    x = np.arange(1, len(alive) + 1)
    strip = axis.get_xaxis_transform()
    axis.bar(x, 0.12 * alive, 0.8, color=ink(axis), alpha=0.13, transform=strip, zorder=0, lw=0)
    last = float(alive[-1])
    axis.text(
        x[-1], 0.12 * last + 0.01, f"{last:.0%} reach it", transform=strip, fontsize=7,
        ha="right", va="bottom", color=ink(axis), alpha=0.8,
    )  # fmt: skip
