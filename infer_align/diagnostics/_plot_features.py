"""Pictures of features under policy and target."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_align._numerics import ties
from infer_align._reliability import kish_ess
from infer_align.diagnostics._plot_style import (
    BLUE,
    ORANGE,
    SERIES,
    clean,
    column,
    ink,
    short,
    stat,
)

if TYPE_CHECKING:
    import xarray

BINS = 10
POINTS = 250
"""Most draws of a scatter; more hide each other."""


def plot_ranks(
    tree: "xarray.DataTree", axis: Any, *, features: Sequence[str] | None = None, seed: int = 0
) -> Any:
    """Ranks of the target's feature values among the policy's: flat where the laws agree.

    Each draw's rank among the policy's draws of its context, weighted by the target's weights: a
    rise to the right says that the target has larger values than the policy, a hump that the
    policy is too wide. Ties are broken at random, so that equal laws are flat for discrete
    features, too. (Talts, Betancourt, Simpson, Vehtari, Gelman 2018, arXiv 1804.06788, use ranks
    so; bars are two standard errors of a self-normalised mean.)

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess` with ``features``, of draws from the policy.
    axis : matplotlib Axes
    features : sequence of str, optional
        Which; the first four by default.
    seed : int
        Of the random order of ties.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        Without features, or if the draws are not the policy's own.
    """
    if not tree["diagnostics"].attrs["on_policy"]:
        raise ValueError(
            "ranks are those among draws of the policy, and these draws are not its own: draw the "
            "tree with assess of the policy, without a proposal (a tree of assess_sample has the "
            "target's draws only; plot_pairs shows them)"
        )
    names = _names(tree, features)
    weights = _weights(tree)
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, 1, BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    for i, name in enumerate(names):
        x = column(tree, "features", name)[0]
        order = np.lexsort((rng.random(x.shape), x), axis=0)
        ranks = np.empty(x.shape)
        np.put_along_axis(ranks, order, (np.arange(len(x))[:, None] + 0.5) / len(x), axis=0)
        inside = (ranks[..., None] >= edges[:-1]) & (ranks[..., None] < edges[1:])
        share = (weights[..., None] * inside).sum(axis=(0, 1))
        own = (inside - 1 / BINS) / x.size  # noise that the policy's own ranks share
        influence = weights[..., None] * (inside - share) - own
        se = np.sqrt((influence**2).sum(axis=(0, 1)))
        shift = (i - (len(names) - 1) / 2) * 0.16 / BINS
        axis.errorbar(
            middle + shift, share * BINS, yerr=2 * se * BINS, fmt="o-", ms=4, lw=1, elinewidth=1.2,
            color=SERIES[i % 4], capsize=2, label=short(name),
        )  # fmt: skip
    axis.axhline(1.0, color=ink(axis), lw=0.8, ls=":")
    axis.set(xlabel="rank among the policy's draws, 0 lowest, 1 highest",
             ylabel="density under the target", xlim=(0, 1))  # fmt: skip
    axis.set_ylim(bottom=0.0)
    axis.legend(fontsize=8, frameon=False)
    return clean(axis)


def plot_pairs(
    tree: "xarray.DataTree", figure: Any, *, features: Sequence[str] | None = None, seed: int = 0
) -> Any:
    """Features by pairs under the policy and, by weight, under the target.

    On the diagonal their histograms; below it a scatter in which a target point's area is its
    weight, so that an estimate that rests on few draws looks like it.

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess` or `assess_sample` with ``features``; the latter says nothing of a policy,
        and shows the target alone.
    figure : matplotlib Figure
        Empty; gets the grid of axes.
    features : sequence of str, optional
        Which; the first four by default.
    seed : int
        Of the subset of draws that is shown, and of the jitter of discrete features.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ValueError
        Without features.
    """
    names = _names(tree, features)
    rng = np.random.default_rng(seed)
    target = _weights(tree).reshape(-1)
    policy = _policy_weights(tree)
    values = {name: column(tree, "features", name)[0].reshape(-1) for name in names}
    grid = figure.subplots(len(names), len(names), squeeze=False)
    for i, low in enumerate(names):
        for j, left in enumerate(names):
            axis = grid[i, j]
            if j > i:
                axis.set_visible(False)
                continue
            if i == j:
                _histograms(axis, values[low], policy, target)
            else:
                _scatter(axis, values[left], values[low], policy, target, rng)
            if i == len(names) - 1:
                axis.set_xlabel(short(left, 24))
            else:
                axis.tick_params(labelbottom=False)
            if j == 0 and i > 0:
                axis.set_ylabel(short(low, 24))
            clean(axis)
    ess = float(np.asarray(kish_ess(stat(tree, "log_weight"))).sum())
    handles, named = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, named, fontsize=8, frameon=False, alignment="left", title_fontsize=8,
        title=f"target by weights, ESS {ess:.0f}",
        loc="upper right" if len(names) > 1 else "outside upper right",
    )  # fmt: skip
    return figure


def _policy_weights(tree: "xarray.DataTree") -> np.ndarray | None:
    """As of the target, flat; None of `assess_sample`, whose draws have no proposal to weigh by."""
    if "log_proposal" not in tree["sample_stats"].data_vars:
        return None
    return _normalised(stat(tree, "log_policy") - stat(tree, "log_proposal")).reshape(-1)


def _histograms(axis: Any, x: np.ndarray, policy: np.ndarray | None, target: np.ndarray) -> None:
    laws = [(policy, BLUE, -0.2, "policy")] if policy is not None else []
    laws.append((target, ORANGE, 0.2 if laws else 0.0, "target"))
    levels = np.unique(x)
    if len(levels) <= 12:
        gap = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
        for weights, colour, side, name in laws:
            mass = [weights[x == level].sum() for level in levels]
            axis.bar(levels + side * gap, mass, 0.36 * gap, color=colour, label=name)
        axis.set_xlim(levels[0] - 0.8 * gap, levels[-1] + 0.8 * gap)
        axis.set_ylabel("probability")
        return
    low, high = np.quantile(x, [0.001, 0.999])
    bins = np.linspace(low, max(high, low + 250 * ties(low)), 25)
    inside = np.clip(x, bins[0], bins[-1])
    for weights, colour, _, name in laws:
        axis.hist(inside, bins=bins, weights=weights, density=True, histtype="stepfilled",
                  color=colour, alpha=0.3, lw=0)  # fmt: skip
        axis.hist(inside, bins=bins, weights=weights, density=True, histtype="step", color=colour,
                  lw=1.4, label=name)  # fmt: skip
    axis.set_ylabel("density")


def _scatter(
    axis: Any, x: np.ndarray, y: np.ndarray, policy: np.ndarray | None, target: np.ndarray,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    kept = rng.permutation(len(x))[:POINTS]
    heavy = np.argsort(-target)[:20]  # a few draws that carry much are always shown
    kept = np.unique(np.concatenate([kept, heavy[target[heavy] > 20 / len(x)]]))
    x, y = _jittered(x, rng)[kept], _jittered(y, rng)[kept]
    area = lambda w: np.clip(12 * w[kept] * len(w), 0, 900)
    if policy is not None:
        axis.scatter(x, y, s=area(policy) * 0.7, color=BLUE, alpha=0.55, lw=0)
    some = target[kept] > 0
    axis.scatter(x[some], y[some], s=area(target)[some], facecolors="none", edgecolors=ORANGE,
                 lw=0.7, alpha=0.9)  # fmt: skip


def _jittered(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of a discrete feature moved apart by a part of their gap."""
    levels = np.unique(x)
    if not 1 < len(levels) <= 12:
        return x
    return x + (rng.random(len(x)) - 0.5) * 0.5 * np.diff(levels).min()


def _names(tree: "xarray.DataTree", features: Sequence[str] | None) -> list[str]:
    known = list(map(str, tree["features"].data_vars)) if "features" in tree.children else []
    if not known:
        raise ValueError("the assessment has no features to plot; pass features= to assess")
    if unknown := [name for name in features or () if name not in known]:
        raise ValueError(f"the assessment has no feature {unknown[0]!r}; it has {known}")
    return list(features or known[:4])


def _weights(tree: "xarray.DataTree") -> np.ndarray:
    """Target weights that sum to one, each context in equal parts; (n, contexts)."""
    log_w = stat(tree, "log_weight")
    if not np.isfinite(log_w).any():
        raise ValueError("the target accepted no draw, so nothing is known of it; draw more")
    return _normalised(log_w)


def _normalised(log_w: np.ndarray) -> np.ndarray:
    top = log_w.max(axis=0)
    w = np.exp(log_w - np.where(np.isfinite(top), top, 0.0))
    total = w.sum(axis=0)
    some = total > 0
    return w / np.where(some, total, 1.0) / max(int(some.sum()), 1)
