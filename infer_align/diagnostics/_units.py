r"""Sums within clusters of dependent outcomes, which are what is independent.

With self-normalised weights p_i of the outcomes and u_j of the evidence, G independent units c
(clusters; single outcomes where there are none), and sums over their members,

.. math:: φ_c = G \Big( \sum_{i ∈ c} p_i (h_i − \hat h) \Big), \qquad
          ψ_c = G \sum_{j ∈ c} u_j − 1, \qquad se² = \frac{1}{G (G − 1)} \sum_c φ_c²

estimate the errors of E_p[h] and of log Z. With the eve index of a particle filter as the
cluster this is the estimator of Chan and Lai (2013, Ann. Statist. 41:2877, arXiv 1312.5114): an
eve without descendants is a unit of weight 0. Of log Z it is an upper bound then: of N particles,
each multinomial resampling adds 1/N to Σ u_c² that is no error of Ẑ (Lee and Whiteley 2018, arXiv
1509.00394, subtract it), and a sample does not say how often it was resampled.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align.diagnostics._estimates import Moments

NOTHING = np.zeros(0)


class Units(NamedTuple):
    """Which unit (0 to rows − 1) each of the entries (n, contexts) belongs to."""

    index: np.ndarray | None
    """None: each entry is a unit of its own."""
    rows: int
    count: np.ndarray
    """Independent units of each context, G; those without an entry included."""

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sums of values (n, contexts) within units, (rows, contexts)."""
        if self.index is None:
            return values
        out = np.zeros((self.rows, values.shape[1]))
        np.add.at(out, (self.index, np.arange(values.shape[1])), values)
        return out

    def log_total(self, log_values: np.ndarray) -> np.ndarray:
        """The same of exp(log_values), in logarithms; ``-inf`` for a unit without an entry."""
        if self.index is None:
            return log_values
        top = log_values.max(axis=0)
        top = np.where(top > -math.inf, top, 0.0)
        with np.errstate(divide="ignore"):
            return np.log(self.total(np.exp(log_values - top))) + top


def each_alone(shape: tuple[int, ...]) -> Units:
    """Every entry of (n, contexts) is independent."""
    return Units(None, shape[0], np.full(shape[1], shape[0]))


def by_number(*clusters: np.ndarray) -> list[Units]:
    """Units of one or several arrays of cluster numbers (rows, contexts) that share them.

    Numbers 0 to N − 1 are N units even where some have no entry, as of a particle filter some
    first particles have no descendants. Where numbers reach further than there are entries, they
    are labels, and the units are those that occur.
    """
    labels, flat = np.unique(np.concatenate([c.ravel() for c in clusters]), return_inverse=True)
    most = max(len(c) for c in clusters)
    joined = np.concatenate(clusters)
    ordered = np.sort(joined, axis=0)
    occurring = 1 + (np.diff(ordered, axis=0) > 0).sum(axis=0)
    reach = ordered[-1] - ordered[0] + 1
    count = np.where(reach <= most, np.maximum(reach, occurring), occurring)
    parts = np.split(flat, np.cumsum([c.size for c in clusters])[:-1])
    rows = max(len(labels), int(count.max()))
    return [
        Units(part.reshape(c.shape), rows, count) for part, c in zip(parts, clusters, strict=True)
    ]


def unit_moments(
    value: np.ndarray,
    influence: np.ndarray,
    count: np.ndarray,
    absent: float,
    bounds: tuple[float, float],
    uses: tuple[str, ...],
    unknown: Any,
    proven: np.ndarray | None = None,
) -> Moments:
    """Moments from influences (rows, contexts) of G units; those without a row have ``absent``."""
    missing = count - len(influence)  # negative where rows belong to other contexts only
    second, third, fourth = ((influence**k).sum(axis=0) + missing * absent**k for k in (2, 3, 4))
    few = count < 2
    n = np.maximum(count, 2)
    se = np.sqrt(np.maximum(second, 0.0) / (n * (n - 1.0)))
    se = np.where(unknown | few, math.inf, se)
    certain = np.zeros(len(se), dtype=bool) if proven is None else proven
    return Moments(value, influence, se, third / n**3.0, fourth / n**4.0, bounds, uses, certain)


def added(value: np.ndarray, first: Moments, second: Moments, sign: float) -> Moments:
    """first + sign · second where their covariance is unknown: standard errors add at most."""
    return first._replace(
        value=value,
        influence=NOTHING,
        se=first.se + second.se,
        third=first.third + sign**3 * second.third,
        fourth=first.fourth + second.fourth,
        bias=np.asarray(first.bias) + sign * np.asarray(second.bias),
        uses=first.uses + second.uses,
    )
