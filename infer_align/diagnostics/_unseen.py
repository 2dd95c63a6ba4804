r"""What a known bound of the weights says of regions that no draw has met.

n draws of q miss a region of probability up to 3/n with probability 5% (the rule of three). Where
P/q ≤ M everywhere, such a region adds at most 3M/n to Z, and an interval has to reach the values
that the estimates would take with it:

.. math:: \hat Z^+ = \hat Z + \tfrac3n M

Without a bound nothing can be said of it, and no rule on the weights met can: a hidden mode leaves
them as they are.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infer_align._numerics import NOISE, Array, logmeanexp, mean_under, ties
from infer_align.diagnostics._draws import Draws, numpy
from infer_align.diagnostics._estimates import Moments, terms_of
from infer_align.divergences import FDivergence

INF = math.inf
RULE_OF_THREE = 3.0


class Reach(NamedTuple):
    """Values that intervals must reach, (contexts,): the lower and the upper one."""

    low: np.ndarray
    high: np.ndarray


Reaches = Mapping[str, Reach]


class Unseen(NamedTuple):
    """What intervals must reach: of each context by itself, and of their mean."""

    contexts: Reaches
    pooled: Mapping[str, tuple[float, float]]
    """How far below and above the mean over contexts: it rests on all contexts' draws."""


def missed(n: int, level: float) -> float:
    """Probability that n draws may have missed: 3/n, and more for a level beyond 95%."""
    return max(RULE_OF_THREE, -math.log1p(-level)) / n


def if_prior(log_bound: Any, log_q: Array, log_prior: Array) -> Any:
    """A bound of the potential, if the draws are of the prior, where it bounds P/q; else None."""
    if log_bound is None:
        return None
    gap = numpy(log_q) - numpy(log_prior)
    return log_bound if float(np.abs(gap).max()) <= NOISE else None


def check_bound(log_weights: np.ndarray, log_bound: np.ndarray) -> None:
    """Refuse a bound that the weights (n, contexts) exceed."""
    over = float((log_weights - log_bound).max())
    if np.isnan(log_bound).any() or (log_bound == INF).any() or over > NOISE:
        raise ValueError(
            f"log_bound bounds log P/q of every outcome, got {log_bound.max():.6g}, and the draws "
            f"exceed it by up to {over:.3g} nats: give the largest log P/q there can be, or leave "
            "it out"
        )


def of_draws(
    draws: Draws,
    estimates: Mapping[str, Moments],
    divergences: Sequence[FDivergence],
    log_bound: np.ndarray,
    level: float,
) -> Unseen:
    """Of `assess`. A draw not seen has π/q as the draws have on average; P/q is at its bound."""
    check_bound(draws.log_target_weight, log_bound)

    def at(share: float) -> dict[str, Reach]:
        log_v, log_w = draws.log_policy_weight, draws.log_target_weight
        log_z, extra, grown = grow(log_w, log_bound, share)
        log_a = log_v - logmeanexp(log_v)
        log_b = log_w - log_z - (grown - math.log1p(share))
        top = (log_bound - log_z - (grown - math.log1p(share)))[None]
        out = {"log_z": _one(np.minimum(log_z + grown, log_bound))}
        for divergence in divergences:
            seen = terms_of(divergence, log_a, log_b)[0].mean(axis=0)
            more = terms_of(divergence, np.zeros_like(top), top)[0][0]
            out[divergence.name] = _one((seen + share * more) / (1 + share))
        for name, values in draws.features.items():
            out[f"target_{name}"] = moved_mean(values, log_w, extra)
        return out

    return reached(at, estimates, len(draws.log_policy), log_bound, level)


def grow(
    log_w: np.ndarray, log_bound: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log Ẑ (0 of nothing accepted), log of what is missed over Ẑ, and log Ẑ⁺/Ẑ."""
    log_z = logmeanexp(log_w)
    log_z = np.where(log_z > -INF, log_z, 0.0)
    extra = log_bound + math.log(share) - log_z
    return log_z, extra, np.logaddexp(0.0, extra)


def moved_mean(values: np.ndarray, log_w: np.ndarray, extra: np.ndarray) -> Reach:
    """A mean under the target, if what is missed has the least or the largest value met.

    A context without an accepted draw has no mean; its 0 here is used by nothing.
    """
    some = log_w > -INF
    met = some.any(axis=0)
    top = log_w.max(axis=0)
    w = np.exp(log_w - np.where(top > -INF, top, 0.0))
    p = w / np.maximum(w.sum(axis=0), 1e-300)
    mean = mean_under(p, np.where(some, values, 0.0))
    share = 1 / (1 + np.exp(-extra))
    least = np.where(met, np.where(some, values, INF).min(axis=0), mean)
    most = np.where(met, np.where(some, values, -INF).max(axis=0), mean)
    return Reach(mean + share * (least - mean), mean + share * (most - mean))


def reached(at, estimates, n: int, log_bound: np.ndarray, level: float) -> Unseen:
    """By what a share of the draws may have missed.

    A context's own draws may have missed 3/n; all of them together 3/n over all contexts, wherever
    that does most: with C contexts, no more than the largest shift of one at 3/(nC).
    """
    share, contexts = missed(n, level), len(log_bound)
    pooled = {}
    for name, reach in at(share / contexts).items():
        value = estimates[name].value
        with np.errstate(invalid="ignore"):
            down, up = value - reach.low, reach.high - value
        known = np.isfinite(value)
        pooled[name] = tuple(
            float(np.where(known, np.maximum(x, 0.0), 0.0).max()) for x in (down, up)
        )
    return Unseen(at(share), pooled)


def _one(value: np.ndarray) -> Reach:
    return Reach(value, value)


def lengthen(columns: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Rows (value, se, low, high, reliable) of which the ends reach two values.

    Not reliable where an end moves by half the interval's length or more.
    """
    value, se, left, right, reliable = columns
    known = np.isfinite(value) & np.isfinite(left) & np.isfinite(right)
    half = np.where(known, (np.where(known, right, 0.0) - np.where(known, left, 0.0)) / 2, 0.0)
    lower = np.where(known, np.minimum(left, low), left)
    upper = np.where(known, np.maximum(right, high), right)
    with np.errstate(invalid="ignore"):
        moved = np.where(known, np.maximum(left - lower, upper - right), 0.0)
    # Equal weights have an interval without length; rounding moves it.
    small = (moved < half) | (moved <= 10 * ties(np.where(known, value, 0.0)))
    return np.stack([value, se, lower, upper, reliable * small])
