"""Pareto smoothing of importance weights."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import reals
from infer_align._numerics import logsumexp

__all__ = ["Smoothed", "pareto_smooth"]

FEWEST = 25
"""Accepted draws below which there is no tail to fit."""
DISTINCT = 5
"""Different values that a tail needs."""


class Smoothed(NamedTuple):
    """Log-weights whose largest values were replaced by those of a fitted tail."""

    log_weights: Float[np.ndarray, "n *contexts"]
    """On the scale of the raw ones: their sum is kept."""
    khat: Any
    """Tail index of each context, shape (*contexts): ``-inf`` where the largest weights tie and
    ``inf`` with fewer than 25 accepted draws; there the weights are the raw ones."""
    note: str
    """What was done, in words."""


def pareto_smooth(log_weights: Float[np.ndarray, "n *contexts"]) -> Smoothed:
    r"""Pareto-smoothed importance weights, one context at a time.

    The largest :math:`M = \min(n/5, 3\sqrt n)` weights become quantiles of the generalised Pareto
    law fitted to them (Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646, by
    ``arviz_stats``): less variance at the price of some bias. Rejected draws are left aside, and
    weights that were equal stay equal.

    Parameters
    ----------
    log_weights : array, shape (n, *contexts)
        Plain log P − log q, up to a constant per context.

    Returns
    -------
    Smoothed

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import pareto_smooth
    >>> log_weights = 0.5 * np.random.default_rng(0).exponential(size=4000)
    >>> abs(float(pareto_smooth(log_weights).khat) - 0.5) < 0.2
    True
    >>> pareto_smooth(np.zeros(100)).note
    'not smoothed (the largest weights tie)'
    """
    flat = reals("log_weights", log_weights, need="an array of log-weights", axes=1)
    if not flat.size or np.isnan(flat).any() or (flat == math.inf).any():
        raise ValueError(
            f"log-weights of shape {flat.shape} with {int(np.isnan(flat).sum())} NaN and "
            f"{int((flat == math.inf).sum())} +inf: they must be at least one, finite or -inf"
        )
    flat = flat.reshape(len(flat), -1)
    columns = [_smooth_one(flat[:, c]) for c in range(flat.shape[1])]
    khat = np.array([k for _, k in columns])
    smoothed = np.stack([w for w, _ in columns], axis=1).reshape(log_weights.shape)
    return Smoothed(smoothed, khat.reshape(log_weights.shape[1:])[()], _note(khat))


def _smooth_one(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    accepted = np.flatnonzero(log_weights > -math.inf)
    if len(accepted) < FEWEST:
        return log_weights, math.inf
    raw = log_weights[accepted]
    tail = int(min(len(raw) / 5, 3 * math.sqrt(len(raw))))
    if len(np.unique(np.sort(raw)[-tail:])) < DISTINCT:
        return log_weights, -math.inf
    from arviz_stats.base import array_stats

    # ArviZ takes minus the log-weights.
    with np.errstate(all="ignore"):
        smoothed, khat = array_stats.psislw(-raw)
    smoothed, khat = np.asarray(smoothed), float(khat)
    if not (math.isfinite(khat) and np.all(np.isfinite(smoothed))):
        return log_weights, math.inf
    _, value = np.unique(raw, return_inverse=True)
    mass = np.bincount(value, np.exp(smoothed)) / np.bincount(value)
    out = log_weights.copy()
    out[accepted] = np.log(mass)[value] + float(logsumexp(raw))
    return out, khat


def _note(khat: np.ndarray) -> str:
    finite = khat[np.isfinite(khat)]
    parts = []
    if len(finite):
        worst = finite.max()
        parts.append(f"Pareto-smoothed, {'k̂' if len(khat) == 1 else 'largest k̂'} {worst:.2f}")
    tied, few = int((khat == -math.inf).sum()), int((khat == math.inf).sum())
    of = "" if len(khat) == 1 else " in {} of {} contexts"
    if tied:
        parts.append(f"not smoothed{of.format(tied, len(khat))} (the largest weights tie)")
    if few:
        why = f"fewer than {FEWEST} accepted draws, or no finite fit"
        parts.append(f"not smoothed{of.format(few, len(khat))} ({why})")
    return "; ".join(parts)
