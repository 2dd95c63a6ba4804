"""Pictures of importance weights and of log Z."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from infer_align._numerics import ties
from infer_align._reliability import ESS_LIMIT, KHAT_LIMIT, kish_ess, pareto_khat
from infer_align.diagnostics._draws import numpy
from infer_align.diagnostics._plot_style import (
    ALARM,
    BLUE,
    GREY,
    ORANGE,
    clean,
    column,
    ink,
    labels,
    note,
    number,
    plain_ticks,
    short,
    stat,
)

if TYPE_CHECKING:
    import xarray

HOPELESS = 0.7
"""k̂ from which on more draws do not help."""


MOST_OTHERS = 100
"""Contexts drawn in grey by `plot_weights`."""


def plot_weights(
    log_weights: "Float[Any, 'n *contexts'] | xarray.DataTree", axis: Any, *, label: str = ""
) -> Any:
    r"""Importance weights by rank, on logarithmic axes, with the Pareto tail fitted to them.

    A horizontal line at 1 would be draws of the target itself. A tail that rises as a straight
    line to the left has index k̂, its slope: the mean exists for k < 1, the variance for k < ½
    (Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646).

    Parameters
    ----------
    log_weights : array of shape (n, \*contexts), or xarray.DataTree from `assess`
        log P − log q up to a constant per context. With several contexts, the one of the largest
        k̂ is drawn in colour, the others in grey: at most 100 of them, evenly picked.
    axis : matplotlib Axes
    label : str
        For the legend, to draw several in one picture; the second call takes another colour.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        If no draw has a positive weight.
    """
    given = stat(log_weights, "log_weight") if hasattr(log_weights, "children") else log_weights
    lw = numpy(given)
    lw = lw.reshape(len(lw), -1)
    used = np.flatnonzero(np.isfinite(lw).any(axis=0))
    if not len(used):
        raise ValueError("no draw has a positive weight, so there is nothing to plot; draw more")
    khats = np.array([pareto_khat(lw[:, c]) for c in used])
    worst = int(np.argmax(khats))
    coloured = sum(line.get_gid() == "weights" for line in axis.get_lines())
    colour = (BLUE, ORANGE)[coloured % 2]
    others = np.delete(used, worst)
    for c in others[:: max(1, -(-len(others) // MOST_OTHERS))]:
        _by_rank(axis, lw[:, c], color=GREY, lw=0.8, alpha=0.5)
    c = used[worst]
    (line,) = _by_rank(axis, lw[:, c], color=colour, lw=2, zorder=3, label=label or None)
    line.set_gid("weights")
    _tail(axis, lw[:, c], float(khats[worst]))
    if not coloured:
        axis.axhline(1.0, color=ink(axis), lw=0.8, ls=":")
        axis.set(xscale="log", yscale="log", xlabel="rank of the draw, largest weight first",
                 ylabel="weight / mean weight")  # fmt: skip
    plain_ticks(axis, "x", "y")
    n = len(lw)
    ess = float(np.asarray(kish_ess(lw[:, c])))
    which = "" if len(used) == 1 else f"worst of {len(used)} contexts: "
    text = f"{which}ESS {ess:.0f} of {n} ({ess / n:.0%}), Pareto k̂ {number(float(khats[worst]))}"
    if rejected := int(np.sum(~np.isfinite(lw[:, c]))):
        text += f", {rejected / n:.0%} rejected"
    _caption(axis, f"{label}: {text}" if label else text, colour)
    return clean(axis)


def _by_rank(axis: Any, log_weights: np.ndarray, **style: Any) -> Any:
    finite = np.sort(log_weights[np.isfinite(log_weights)])[::-1]
    relative = finite - _log_mean(log_weights)
    return axis.plot(np.arange(1, len(finite) + 1), np.exp(np.clip(relative, -300, 300)), **style)


def _log_mean(log_weights: np.ndarray) -> float:
    top = log_weights.max()
    return float(top + np.log(np.exp(log_weights - top).mean()))


def _tail(axis: Any, log_weights: np.ndarray, khat: float) -> None:
    """The largest weights as the generalised Pareto law fitted to them expects them."""
    if not math.isfinite(khat):
        return
    from arviz_stats.base import array_stats

    ordered = np.sort(log_weights[np.isfinite(log_weights)])
    n = len(ordered)
    size = int(3 * math.sqrt(n)) if n > 225 else n // 5
    # As pareto_khat takes the tail.
    above = int(np.sum(ordered > ordered[n - size - 1] + ties(ordered[-1])))
    relative: Any = 1.0 if above >= size else 9 * n / (above + 0.5) ** 2
    with np.errstate(all="ignore"):
        smoothed = np.asarray(array_stats.psislw(-ordered, r_eff=relative)[0])
    smoothed += ordered[0] - smoothed[0]  # their normalisation undone: the body is unchanged
    y = np.exp(smoothed[-above:][::-1] - _log_mean(log_weights))
    first = not any(line.get_gid() == "tail" for line in axis.get_lines())
    (line,) = axis.plot(
        np.arange(1, above + 1), y, color=ink(axis), lw=1.3, ls="--", zorder=4,
        label="Pareto tail, fitted" if first else None,
    )  # fmt: skip
    line.set_gid("tail")
    handles, names = axis.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: handles[i].get_gid() == "tail")
    axis.legend([handles[i] for i in order], [names[i] for i in order], loc="lower left",
                fontsize=8, frameon=False)  # fmt: skip


def _caption(axis: Any, text: str, colour: str) -> None:
    """One line above the axes a call, each in the colour of its curve."""
    above = sum(t.get_gid() == "caption" for t in axis.texts)
    axis.text(
        0.0, 1.02 + 0.065 * above, text, transform=axis.transAxes, fontsize=8, color=colour,
        va="bottom", gid="caption",
    )  # fmt: skip


def plot_contexts(tree: "xarray.DataTree", axis: Any) -> Any:
    """ESS (its lower bound) against Pareto k̂ of every context, and where intervals are claimed.

    The region of k̂ < 0.5 and `ess_low` ≥ 200 is shaded; the contexts outside it are named, the
    worst ones first. k̂ = −∞ (tied weights) stands at the lower edge, ∞ at the upper.

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess`.
    axis : matplotlib Axes

    Returns
    -------
    matplotlib Axes
    """
    ess = column(tree, "diagnostics/contexts", "ess_low")
    khat = column(tree, "diagnostics/contexts", "pareto_khat")
    n = int(tree["diagnostics"].attrs["n"])
    finite = khat[np.isfinite(khat)]
    low = min(-0.1, *(finite - 0.15)) if len(finite) else -0.1
    high = max(1.05, *(finite + 0.15)) if len(finite) else 1.05
    y = np.clip(khat, low + 0.04 * (high - low), high - 0.04 * (high - low))
    x = np.maximum(ess, 0.7)
    right = max(n * 1.25, ESS_LIMIT * 2)
    left = min(x.min() / 1.6, ESS_LIMIT / 4)
    bound = f"effective sample size of {n} draws, at least (95%)"
    axis.set(xscale="log", xlim=(left, right), ylim=(low, high), xlabel=bound, ylabel="Pareto k̂")
    axis.fill_between([ESS_LIMIT, right], low, KHAT_LIMIT, color=BLUE, alpha=0.1, lw=0)
    axis.text(
        right, low, "intervals are claimed here ", fontsize=8, ha="right", va="bottom", color=BLUE
    )
    axis.axhline(HOPELESS, color=ALARM, lw=0.9, ls="--")
    axis.text(left, HOPELESS, " k̂ 0.7: more draws do not help", fontsize=8, va="bottom",
              color=ALARM)  # fmt: skip
    good = (ess >= ESS_LIMIT) & (khat < KHAT_LIMIT)
    for which, colour, marks in ((good, BLUE, "o"), (~good, ORANGE, "D")):
        for edge, mark in ((khat == -math.inf, "v"), (khat == math.inf, "^"),
                           (np.isfinite(khat), marks)):  # fmt: skip
            chosen = which & edge
            axis.plot(x[chosen], y[chosen], mark, color=colour, ms=6, alpha=0.85)
    names = labels(tree)
    worst = sorted(np.flatnonzero(~good), key=lambda c: (-khat[c], ess[c]))[:3]
    last = math.inf
    for c in worst if len(names) > 1 else ():
        to_left = x[c] > math.sqrt(left * right)
        last = min(float(y[c]), last - 0.05 * (high - low))  # names below each other
        axis.annotate(
            short(names[c]), (x[c], y[c]), ((0.98 if to_left else 1.02) * x[c], last),
            fontsize=8, va="center", ha="right" if to_left else "left", color=ink(axis),
        )  # fmt: skip
    plain_ticks(axis, "x")
    return clean(axis)


def plot_log_z(
    tree: "xarray.DataTree",
    axis: Any,
    *,
    exact: Float[Any, " contexts"] | None = None,
    other: "xarray.DataTree | None" = None,
) -> Any:
    """log Ẑ of every context against what it should be, with its interval.

    A point off the line by more than its bar sees another Z: if below, the proposal misses a part
    of the target, which its own ESS and k̂ cannot tell.

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess`.
    axis : matplotlib Axes
    exact : array, shape (contexts,), optional
        log Z where it is known.
    other : xarray.DataTree, optional
        An assessment of the same target from another proposal (the prior's): the bars are of the
        difference then. One of ``exact`` and ``other`` is needed.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        Without a reference, or with other contexts.
    """
    if (exact is None) == (other is None):
        raise ValueError("give the log Z to compare with: exact= or other=, one of them")
    value, se, low, high, reliable = column(tree, "diagnostics/contexts", "log_z")
    if other is not None:
        reference, other_se, _, _, other_reliable = column(other, "diagnostics/contexts", "log_z")
    else:
        reference = numpy(exact).reshape(-1)
        other_se, other_reliable = np.zeros(len(reference)), np.ones(len(reference))
    if reference.shape != value.shape:
        raise ValueError(
            f"{len(value)} contexts are assessed and {len(reference)} log Z given to compare with; "
            "give those of the same contexts"
        )
    with np.errstate(invalid="ignore"):
        gap = value - reference
        half = np.stack([value - low, high - value])
        if other is not None:
            half = np.repeat(1.96 * np.hypot(se, other_se)[None], 2, axis=0)
    shown = np.isfinite(gap) & np.isfinite(reference)
    half = np.where(np.isfinite(half) & (half > 0), half, 0.0)
    trusted = (reliable > 0) & (other_reliable > 0)
    for which, colour, face, name in (
        (trusted, BLUE, BLUE, "95% interval"), (~trusted, ORANGE, "none", "not claimed to cover"),
    ):  # fmt: skip
        chosen = which & shown
        if chosen.any():
            axis.errorbar(
                reference[chosen], gap[chosen], yerr=half[:, chosen], fmt="o", color=colour,
                markerfacecolor=face, ms=5, capsize=2, elinewidth=1.2, label=name,
            )  # fmt: skip
    axis.axhline(0.0, color=ink(axis), lw=0.8, ls=":")
    against = "exact log Z" if other is None else "log Ẑ from the other proposal"
    axis.set(xlabel=f"{against}, nats, a point per context", ylabel="log Ẑ − that, nats")
    axis.margins(x=0.15, y=0.2)
    if missing := int((~shown).sum()):
        note(axis, f"{missing} contexts without a finite log Ẑ")
    if shown.any():
        axis.legend(fontsize=8, frameon=False)
    return clean(axis)
