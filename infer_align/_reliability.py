r"""Pareto k̂ and the effective sample size: what importance weights are worth.

This is the one place that says where an interval is claimed, of whatever rests on weights:
assessments, bounds, moments and budgets ask `Worth.bears`. What no weight shows is not covered by
it: a region that the proposal reaches with probability below about 3/n, a hidden mode, has no draw
in it, and the others look as they would without it.
"""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import reals
from infer_align._numerics import Array, ties

KHAT_LIMIT = 0.5
"""Largest k̂ at which an interval is claimed: beyond, the weights' variance is infinite."""
ESS_LIMIT = 200.0
"""Smallest ESS at which an interval is claimed."""
TV_LIMIT = 0.05
"""Largest total variation times √ESS: a tenth of the standard error of a probability, 1/(2√ESS)."""
CONFIDENCE = 0.95
"""One-sided, of the ESS's lower bound."""
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
    log_weights = _log_weights(log_weights)
    if log_weights.ndim != 1:
        raise ValueError(
            f"k̂ is that of one context's log-weights, (n,), got shape {log_weights.shape}; take "
            "them one by one"
        )
    ordered = np.sort(log_weights[log_weights > -math.inf])
    n = len(ordered)
    if n == 0:
        return math.inf
    tail = int(3 * math.sqrt(n)) if n > 225 else n // 5
    threshold = ordered[max(n - tail - 1, 0)]
    # Draws that tie with the threshold have excess 0 and spoil the fit: the tail starts above.
    width = ties(ordered[-1])
    above = ordered[ordered > threshold + width]
    distinct = 1 + int(np.sum(np.diff(above) > width)) if len(above) else 0
    if n >= 25 and distinct < 5:
        return -math.inf
    if distinct < 5:
        return -math.inf if ordered[-1] - ordered[0] <= width else math.inf
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
    log_weights = _log_weights(log_weights)
    top = log_weights.max(axis=0, keepdims=True)
    w = np.exp(log_weights - np.where(np.isfinite(top), top, 0.0))
    squares = (w**2).sum(axis=0)
    return w.sum(axis=0) ** 2 / np.where(squares > 0, squares, 1.0)


def _log_weights(values: Any) -> np.ndarray:
    """In NumPy; at least one, and no NaN or +inf."""
    out = reals("log_weights", values, need="an array of log-weights")
    if not out.size or not out.ndim or np.isnan(out).any() or (out == math.inf).any():
        raise ValueError(
            f"log-weights of shape {out.shape} with {int(np.isnan(out).sum())} NaN and "
            f"{int((out == math.inf).sum())} +inf: they must be at least one, finite or -inf"
        )
    return out


def too_far(total_variation: Any, ess: Any) -> np.ndarray:
    """Where outcomes are not close enough to the target for what their number promises."""
    distance = np.asarray(total_variation * np.sqrt(ess))
    return np.asarray(~(distance <= TV_LIMIT))  # NaN, unknown, is too far


class Worth(NamedTuple):
    """What the log-weights (n, contexts) of independent units are worth, in each context."""

    ess: np.ndarray
    least: np.ndarray
    """One-sided lower bound of the expected ESS."""
    khat: np.ndarray
    influence: np.ndarray
    """Of each unit on log ESS, (n, contexts)."""
    spread: np.ndarray
    """Standard deviation of log ESS."""
    accepted: np.ndarray
    """Units of positive weight."""
    understated: np.ndarray
    """How many times less of that spread the units show than their tail says, 1 or more."""

    def bears(self, ess_min: float = ESS_LIMIT, total_variation: Any = 0.0) -> np.ndarray:
        """Where the weights bear an interval, and leave the outcomes' law close enough."""
        enough = (self.least >= ess_min) & (self.khat < KHAT_LIMIT)
        return enough & ~too_far(total_variation, self.ess)

    def margins(self, ess_min: float = ESS_LIMIT) -> tuple[np.ndarray, np.ndarray]:
        """How far within their limits ESS and k̂ are, in standard deviations; inf of no tail."""
        some = (self.least > 1e-300) & (self.spread > 0)
        above = np.log(np.where(some, self.least, 1.0)) - math.log(max(ess_min, 1e-300))
        above = np.where(some, above / np.where(some, self.spread, 1.0), math.inf)
        tail = 3 * np.sqrt(self.accepted)
        khat = np.where(np.isfinite(self.khat), self.khat, 1.0)
        below = (KHAT_LIMIT - khat) * np.sqrt(tail) / (1 + np.maximum(khat, 0.0))
        return above, np.where(self.khat > 0, below, math.inf)

    def solved(self, influence: np.ndarray, variance: Any = 0.0) -> "Worth":
        """Of weights that were themselves solved on the draws.

        Parameters
        ----------
        influence : array, shape (n, contexts)
            On log ESS by way of what was solved.
        variance : array, shape (contexts,)
            Of log ESS by other contexts' draws.
        """
        whole = self.influence + influence
        spread = np.sqrt((whole**2).sum(axis=0) / len(whole) ** 2 + variance)
        spread = np.maximum(self.spread, spread)
        return self._replace(least=_least(self.ess, spread), influence=whole, spread=spread)

    def selects(
        self, influence: np.ndarray, third: np.ndarray, z: float, ess_min: float = ESS_LIMIT
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a claim adds to its lower and upper end, in standard errors, for being a claim.

        Near the limits claims are the records whose ESS came out high, or whose k̂ came out low,
        and what comes out high or low with them is off. A claim m standard deviations within a
        limit moves the end that is too near by z − m, from 0 to z/2: by the ESS times the
        correlation with log ESS, by k̂ at the end of the skew. Of weights 20 with probability 0.1,
        else 1, at their limit, 79% to 87% of the claims hold without it, 94% to 96% with it
        (tests/statistical/test_diagnostics_coverage.py). Draws that miss the largest weights show
        less of their spread than there is, and less of the estimate's error with it: by as many
        times the first is longer. Of lognormal weights whose ESS is expected at 225, 7% of the
        records make a claim, and of these KL(p‖π) is covered in 62% without it, 93% with it.

        Parameters
        ----------
        influence : array, shape (units, contexts)
            Of an estimate; of another shape than the weights' its correlation is not known.
        third : array, shape (contexts,)
            Its third cumulant.
        z : float
            Normal quantile of the level.
        ess_min : float
            The limit.
        """
        margins = self.margins(ess_min)
        claimed = (margins[0] >= 0) & (margins[1] >= 0)
        near, heavy = (np.where(claimed, np.clip(z - m, 0.0, z / 2), 0.0) for m in margins)
        near = near * self.understated
        up, down = np.ones(near.shape), np.ones(near.shape)
        if influence.shape == self.influence.shape:
            size = np.sqrt((influence**2).sum(axis=0) * (self.influence**2).sum(axis=0))
            product = (influence * self.influence).sum(axis=0)
            r = np.where(size > 0, product / np.where(size > 0, size, 1.0), 0.0)
            up, down = np.maximum(r, 0.0), np.maximum(-r, 0.0)
        low = np.maximum(near * up, np.where(third < 0, heavy, 0.0))
        return low, np.maximum(near * down, np.where(third > 0, heavy, 0.0))


def worth(log_weights: np.ndarray, *, khat: bool = True) -> Worth:
    r"""ESS, its bound, and k̂ of log-weights (n, contexts).

    The bound is one-sided, of the expected ESS n / E[b²], where b is the weight over its mean:

    .. math:: \mathrm{ESS} · \exp(−z_{level} \, s), \qquad
              s^2 = n^{-2} \sum_i (2 b_i − b_i^2 / \overline{b^2} − 1)^2

    (delta method for log ESS). The ESS itself is above its expectation half of the time, and where
    the weights have a tail (k̂ > 0) much more often: it is highest, and s lowest, in the samples
    that miss the largest weights. There s² is at least what lognormal weights of the same ESS
    have: of m accepted draws and r = m / ESS, (r⁴ − 4 r² + 4 r − 1 + 1 − m/n) / m.

    Without ``khat`` (slow: a fit per context) it is -inf.
    """
    n, contexts = log_weights.shape
    tail = np.full(contexts, -math.inf)
    if khat:
        tail = np.array([pareto_khat(column) for column in log_weights.T])
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
    whole = np.where(tail > 0, np.maximum(own, lognormal), own)
    spread, understated = np.sqrt(whole), np.sqrt(whole / np.where(own > 0, own, 1.0))
    understated = np.where(own > 0, understated, 1.0)
    return Worth(ess, _least(ess, spread), tail, influence, spread, accepted, understated)


def _least(ess: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.where(ess > 0, ess * np.exp(-NormalDist().inv_cdf(CONFIDENCE) * spread), 0.0)
