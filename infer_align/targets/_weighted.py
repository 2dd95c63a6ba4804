r"""`WeightedSample`: what every sampler returns."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from infer_align._numerics import logmeanexp, mean_under


class WeightedSample(NamedTuple):
    r"""Weighted outcomes of a target, and the weights that its log Z is estimated from.

    .. math:: E_p[h] ≈ \frac{\sum_i w_i h(y_i)}{\sum_i w_i}, \qquad
              \hat Z = \frac1m \sum_j v_j, \quad E[\hat Z] = Z

    Log-densities are NumPy float64, whatever library the outcomes belong to.

    Parameters
    ----------
    outcomes : array, or dict of arrays, shape (n, *contexts, ...)
        In the library of the proposal that drew them.
    log_weights : array, shape (n, *contexts)
        log w, up to a constant per context; equal for draws of the target itself, ``-inf`` for an
        outcome that counts for nothing.
    log_target : array, shape (n, *contexts)
        log P(y), up to the target's constant.
    evidence : array, shape (m, *contexts), optional
        log v of every proposal that was drawn, the rejected ones included: their mean is Ẑ. Of an
        importance sampler it is ``log_weights`` itself. None where the method says nothing of Z.
    cluster : array of int, shape (n, *contexts), optional
        Outcomes of the same number are dependent (one chain of a Markov chain sampler, one
        ancestor of a particle filter); others are independent. None: all are independent.
    evidence_cluster : array of int, shape (m, *contexts), optional
        The same of ``evidence``.
    calls : int
        Outcomes per context that a model drew or scored: what the sample cost. Tokens of a part
        of an outcome count in proportion.
    method : str
        What drew it, with its choices.
    log_target_se : array, shape (n, *contexts), optional
        Standard error of log P(y) where the target's potential is an estimate.
    total_variation : float or array, shape (*contexts)
        How far the law of an outcome may still be from what the weights say, ½ Σ_y |difference|:
        0 where they leave nothing, NaN where a method cannot tell.
    log_bound : float or array, shape (*contexts), optional
        log M where P/q ≤ M is known: what no accepted proposal says of Z rests on it.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import WeightedSample
    >>> log_weights = np.log([1.0, 3.0])
    >>> sample = WeightedSample(np.array([0, 1]), log_weights, log_weights, evidence=log_weights)
    >>> round(float(np.exp(sample.log_z)), 6), np.round(sample.probabilities, 6).tolist()
    (2.0, [0.25, 0.75])
    """

    outcomes: Any
    log_weights: Float[np.ndarray, "n *contexts"]
    log_target: Float[np.ndarray, "n *contexts"]
    evidence: Float[np.ndarray, "m *contexts"] | None = None
    cluster: Int[np.ndarray, "n *contexts"] | None = None
    evidence_cluster: Int[np.ndarray, "m *contexts"] | None = None
    calls: int = 0
    method: str = ""
    log_target_se: Float[np.ndarray, "n *contexts"] | None = None
    total_variation: float | Float[np.ndarray, "*contexts"] = 0.0
    log_bound: float | Float[np.ndarray, "*contexts"] | None = None

    @property
    def log_z(self) -> Any:
        """log Ẑ, shape (*contexts): ``-inf`` if nothing was accepted, NaN if not estimated."""
        if self.evidence is None:
            return np.full(self.log_weights.shape[1:], math.nan)[()]
        return logmeanexp(self.evidence)

    @property
    def probabilities(self) -> np.ndarray:
        """Self-normalised weights w / Σw, shape (n, *contexts); 0 where all weights are 0."""
        top = self.log_weights.max(axis=0, keepdims=True)
        w = np.exp(self.log_weights - np.where(np.isfinite(top), top, 0.0))
        total = w.sum(axis=0, keepdims=True)
        return w / np.where(total > 0, total, 1.0)

    def expectation(self, values: Any) -> Any:
        """Self-normalised mean of values (n, *contexts), shape (*contexts); NaN of no outcome.

        Parameters
        ----------
        values : array, shape (n, *contexts)
        """
        p = self.probabilities
        mean = mean_under(p, np.where(p > 0, np.asarray(values, dtype=float), 0.0))
        return np.where(p.sum(axis=0) > 0, mean, math.nan)[()]
