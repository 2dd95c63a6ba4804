"""Pareto k̂ and the effective sample size: what importance weights are worth."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from infer_align._numerics import Array

TIES = 1e-10
"""Log-weights closer than this are one value."""
LARGEST_SPREAD = 600.0
"""In nats; a tail wider than this has no shape left in float64, and no use."""


def pareto_khat(log_weights: np.ndarray) -> float:
    r"""Pareto k̂ of importance weights: the tail index of their distribution.

    The weights have finite variance where k < ½; at k ≥ 0.7 no practical number of draws gives
    a reliable average (Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646, whose
    estimator in ``arviz_stats`` this calls).

    Parameters
    ----------
    log_weights : array, shape (n,)
        Plain log-weights log P − log q, up to a constant; ``-inf`` entries (rejected draws) are
        left aside here and count in the effective sample size.

    Returns
    -------
    float
        k̂; ``-inf`` where the largest weights tie, so that there is no tail to fit (discrete
        outcomes: the weights are as bounded as the draws can tell; look at the ESS); ``inf``
        where nothing can be said: fewer than 25 accepted draws, or a tail over 600 nats wide.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import pareto_khat
    >>> exponential = np.random.default_rng(0).exponential(size=20_000)
    >>> [round(pareto_khat(k * exponential), 1) for k in (0.3, 0.7)]
    [0.3, 0.7]
    >>> pareto_khat(np.zeros(100))
    -inf
    """
    ordered = np.sort(log_weights[log_weights > -math.inf])
    n = len(ordered)
    if n == 0:
        return math.inf
    tail = int(3 * math.sqrt(n)) if n > 225 else n // 5
    threshold = ordered[max(n - tail - 1, 0)]
    # Draws that tie with the threshold have excess 0 and spoil the fit: the tail starts above.
    above = ordered[ordered > threshold + TIES]
    distinct = 1 + int(np.sum(np.diff(above) > TIES)) if len(above) else 0
    if n >= 25 and distinct < 5:
        return -math.inf
    if distinct < 5:
        return -math.inf if ordered[-1] - ordered[0] <= TIES else math.inf
    if above[-1] - threshold > LARGEST_SPREAD and above[-1] - above[len(above) // 4] > 300:
        return math.inf
    # ArviZ takes minus the log-weights, and the length of the tail as ⌊3 √(n / r_eff)⌋.
    from arviz_stats.base import array_stats

    relative: Any = 1.0 if len(above) >= tail else 9 * n / (len(above) + 0.5) ** 2
    with np.errstate(all="ignore"):
        khat = float(array_stats.psislw(-ordered, r_eff=relative)[1])
    return khat if math.isfinite(khat) else math.inf


def kish_ess(log_weights: np.ndarray) -> Array:
    r"""Effective sample size of importance weights, (Σ w)² / Σ w² (Kish 1965).

    Parameters
    ----------
    log_weights : array, shape (n, *contexts)
        Log-weights up to a constant; rejected draws (``-inf``) count as draws of weight 0.

    Returns
    -------
    array, shape (*contexts)
        Between 0 (no accepted draw) and n (equal weights).

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import kish_ess
    >>> float(kish_ess(np.array([0.0, 0.0, -np.inf, -np.inf])))
    2.0
    """
    top = log_weights.max(axis=0, keepdims=True)
    w = np.exp(log_weights - np.where(np.isfinite(top), top, 0.0))
    squares = (w**2).sum(axis=0)
    return w.sum(axis=0) ** 2 / np.where(squares > 0, squares, 1.0)


def least_ess(log_weights: np.ndarray, khat: np.ndarray, level: float = 0.95) -> np.ndarray:
    r"""One-sided lower bound of the expected ESS n / E[b²], where b is the weight over its mean.

    .. math:: \mathrm{ESS} · \exp(−z_{level} \, s), \qquad
              s^2 = n^{-2} \sum_i (2 b_i − b_i^2 / \overline{b^2} − 1)^2

    (delta method for log ESS). The ESS itself is above its expectation half of the time, and where
    the weights have a tail (k̂ > 0) much more often: it is highest, and s lowest, in the samples
    that miss the largest weights. There s² is at least what lognormal weights of the same ESS
    have: of m accepted draws and r = m / ESS, (r⁴ − 4 r² + 4 r − 1 + 1 − m/n) / m.
    """
    n = len(log_weights)
    accepted = (log_weights > -math.inf).sum(axis=0)
    top = log_weights.max(axis=0, keepdims=True)
    w = np.exp(log_weights - np.where(np.isfinite(top), top, 0.0))
    b = w * (n / np.maximum(w.sum(axis=0), 1e-300))
    square = np.maximum((b**2).mean(axis=0), 1e-300)
    ess = np.where(accepted > 0, n / square, 0.0)
    influence = 2 * b - b**2 / square - 1
    own = (influence**2).sum(axis=0) / n**2
    r = accepted / np.maximum(ess, 1e-300)
    lognormal = (r**4 - 4 * r**2 + 4 * r - accepted / n) / np.maximum(accepted, 1)
    spread = np.sqrt(np.where(khat > 0, np.maximum(own, lognormal), own))
    return np.where(ess > 0, ess * np.exp(-NormalDist().inv_cdf(level) * spread), 0.0)
