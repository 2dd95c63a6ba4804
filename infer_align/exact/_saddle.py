r"""The law of a long sum by saddle points, where neither a lattice nor types can be listed.

.. math:: P(S \ge x) ≈ \bar Φ(w) + φ(w)\,(1/u - 1/w), \qquad w = \pm\sqrt{2 m I},\quad
          u = θ\sqrt{m v},

with θ, I and v of the tilt whose mean is x/m (Lugannani and Rice 1980, Adv. Appl. Prob. 12, 475).
The relative error is of order 1/m, in the tails as in the bulk.
"""

import math
from typing import NamedTuple

import numpy as np

from infer_align._numerics import log1mexp
from infer_align.exact._law import RewardLaw
from infer_align.exact._letters import Letters

CELL = 0.125
"""Width of a level, in standard deviations of the tilt that is centred there."""
CELLS = 200_000
"""Levels at most; they are wider where that is too few."""
FEWEST = 25.0
"""The first and last level hold what is within this many letters' worth of the extremes."""


class Tilts(NamedTuple):
    """Tilts of one letter, each with its moments: arrays over the edges between levels."""

    theta: np.ndarray
    probs: np.ndarray
    """Shape (edges, K)."""
    mean: np.ndarray
    variance: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    """In excess of the Gaussian's."""
    kl: np.ndarray


def by_saddle_point(letters: Letters, m: int, why: str) -> RewardLaw:
    """By tail probabilities at the edges of narrow levels.

    Parameters
    ----------
    letters : Letters
        Merged: at least two.
    m : int
        Number of tokens.
    why : str
        What did not fit.
    """
    gaps = letters.gaps
    tilts = _edges(np.asarray(letters.log_p), gaps, m)
    log_below, log_above = _tails(tilts, m)
    log_below = np.concatenate([[-math.inf], log_below, [0.0]])
    log_above = np.concatenate([[0.0], log_above, [-math.inf]])
    # A level's probability is a difference of whichever tail is the smaller.
    from_below = _log_difference(log_below[1:], log_below[:-1])
    from_above = _log_difference(log_above[:-1], log_above[1:])
    log_prob = np.where(log_below[1:] < -math.log(2), from_below, from_above)
    edges = np.concatenate([[0.0], m * tilts.mean, [m * gaps[-1]]])
    probs = np.concatenate([tilts.probs[:1], tilts.probs, tilts.probs[-1:]])
    probs = (probs[1:] + probs[:-1]) / 2
    relative = np.abs(tilts.kurtosis / 8 - 5 * tilts.skewness**2 / 24) / m
    return RewardLaw(
        letters.lowest(m) + (edges[1:] + edges[:-1]) / 2,
        log_prob - np.logaddexp.reduce(log_prob), m, "saddle point", why, lambda: edges,
        lambda values: m * probs @ np.asarray(letters.merged(values)),
        error=float(np.diff(edges).max() / 2), log_error=float(relative.max()),
    )  # fmt: skip


def _edges(log_p: np.ndarray, gaps: np.ndarray, m: int) -> Tilts:
    """Tilts whose means cut the rewards into levels of equal width in standard deviations."""
    unit = 1 / gaps[-1]

    def moments(theta: float) -> tuple[float, float]:
        q = np.exp(log_p + theta * gaps - np.logaddexp.reduce(log_p + theta * gaps))
        mean = float(q @ gaps)
        return mean, float(q @ (gaps - mean) ** 2)

    def outermost(side: int) -> float:
        """How far to tilt until only FEWEST letters' worth of spread is left."""
        low, high = 0.0, unit
        enough = lambda t: m * moments(side * t)[1] * unit**2 < FEWEST
        while not enough(high):
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return side * high

    left, right = outermost(-1), outermost(1)
    # dθ per level is CELL/(m sd): integrate 1/step finely, then cut evenly.
    fine = np.sort(np.concatenate([np.linspace(left, right, 2001), np.linspace(-unit, unit, 501)]))
    sd = np.sqrt([moments(t)[1] for t in fine])
    length = np.concatenate([[0.0], np.cumsum(np.diff(fine) * (sd[1:] + sd[:-1]) / 2)])
    count = int(min(CELLS, max(8.0, length[-1] * math.sqrt(m) / CELL)))
    theta = np.interp(np.linspace(0, length[-1], count + 1), length, fine)
    logits = log_p + np.multiply.outer(theta, gaps)
    q = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    mean = q @ gaps
    centred = gaps - mean[:, None]
    variance = (q * centred**2).sum(1)
    log_t = np.multiply.outer(theta, gaps) - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    prior = np.exp(log_p)
    kl = (prior * (np.exp(log_t) * log_t - np.expm1(log_t))).sum(1)
    return Tilts(
        theta, q, mean, variance, (q * centred**3).sum(1) / variance**1.5,
        (q * centred**4).sum(1) / variance**2 - 3, kl,
    )  # fmt: skip


def _tails(tilts: Tilts, m: int) -> tuple[np.ndarray, np.ndarray]:
    """log P(S < edge) and log P(S >= edge): the smaller by the formula, the other from it."""
    from scipy.special import log_ndtr

    w = np.sign(tilts.theta) * np.sqrt(2 * m * tilts.kl)
    near = np.abs(w) < 1e-3
    u = np.where(near, 1.0, tilts.theta * np.sqrt(m * tilts.variance))
    correction = np.where(
        near, -tilts.skewness / math.sqrt(m) / 6, 1 / u - 1 / np.where(near, 1.0, w)
    )
    log_density = -(w**2) / 2 - 0.5 * math.log(2 * math.pi)
    mills = np.exp(log_ndtr(-np.abs(w)) - log_density)
    smaller = log_density + np.log(mills + np.where(w >= 0, correction, -correction))
    larger = log1mexp(smaller)
    return np.where(w >= 0, larger, smaller), np.where(w >= 0, smaller, larger)


def _log_difference(log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    """log(a − b), a > b."""
    finite = log_b > -math.inf
    return log_a + np.where(finite, log1mexp(np.where(finite, log_b - log_a, -1.0)), 0.0)
