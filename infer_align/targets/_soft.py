r"""Soft best-of-n: its density ratio at a reward, and the standard error of an estimated one.

.. math:: g(w) = n w \int_0^∞ e^{-s w} φ(s)^{n-1} ds, \qquad φ(s) = E\, e^{-sW},

by a trapezoidal sum in u = log s, which for whole n is accurate to rounding: the integrand is
analytic, and falls off doubly exponentially.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align._numerics import Array, log1mexp, log_neg_log1mexp, logsumexp, namespace
from infer_align.targets._cdf import RewardCdf
from infer_align.targets._levels import host, known

MOST = 100_000.0
"""Largest range of rewards, in temperatures."""
TRACED = 2048
"""Nodes where the range of rewards is not known, under ``jax.jit``."""


class _Integrand(NamedTuple):
    """Of one context, over nodes u (K, 1) and rewards (1, R)."""

    log_terms: Array
    """log of w e^{−sw} φ^{n−1} s, (K, R)."""
    log_phi: Array
    nodes: Array
    log_weights: Array
    """log w of the table's entries, (N,)."""
    log_wanted: Array
    """log w of the rewards asked about, (R,)."""
    log_step: Any


def soft_log_ratio(
    cdf: RewardCdf, reward: Array, n: float | int, temperature: float | int
) -> Array:
    """log g of rewards (*n, *contexts); of −inf, what is left where all n draws have it."""
    plain = host(reward)
    if plain is not reward:
        return namespace(reward).asarray(soft_log_ratio(cdf, plain, n, temperature))
    place = cdf.at(reward)
    xp = namespace(place.log_cdf)
    if n == 1:
        return xp.zeros_like(place.log_cdf)
    columns, values = [], _columns(cdf, reward)
    for c in range(values.shape[1]):
        with np.errstate(over="ignore"):
            parts = _integrand(cdf, values[:, c], c, n, temperature)
        columns.append(logsumexp(parts.log_terms, axis=0) + math.log(n) + parts.log_step)
    out = xp.reshape(xp.stack(columns, axis=1), place.log_cdf.shape)
    worst = reward == -math.inf
    possible = worst & (place.log_cdf > -math.inf)
    rejected = xp.where(possible, (n - 1) * xp.where(possible, place.log_cdf, 0.0), -math.inf)
    return xp.where(worst, rejected, out)


def soft_error(cdf: RewardCdf, reward: Array, n: float | int, temperature: float | int) -> Array:
    """Standard error of `soft_log_ratio`, by the delta method; 0 of an exact cdf."""
    plain = host(reward)
    if plain is not reward:
        return namespace(reward).asarray(soft_error(cdf, plain, n, temperature))
    place = cdf.at(reward)
    xp = namespace(place.log_cdf)
    if n == 1 or place.spread is None:
        return xp.zeros_like(place.log_cdf)
    columns, values = [], _columns(cdf, reward)
    table, size = cdf._as(values)
    assert size is not None
    for c in range(values.shape[1]):
        with np.errstate(over="ignore"):
            parts = _integrand(cdf, values[:, c], c, n, temperature)
            total = logsumexp(parts.log_terms, axis=0, keepdims=True)
            share = parts.log_terms - xp.where(total > -math.inf, total, 0.0)
            log_phi = xp.where(parts.log_phi > -math.inf, parts.log_phi, 0.0)
            pull = (n - 1) * xp.exp(xp.where(share > -700.0, share - log_phi, -math.inf))
            decay = xp.exp(-xp.exp(parts.nodes + parts.log_weights[None, :]))
            own = xp.exp(-xp.exp(parts.nodes + parts.log_wanted[None, :]))
        # What one sample of each reward moves, had it more weight.
        moves = xp.matmul(xp.permute_dims(pull, (1, 0)), decay) - (n - 1)
        weight = xp.exp(table.log_prob[:, c]) * size[c] / (1 + size[c])
        variance = xp.sum((moves * weight[None, :]) ** 2, axis=1)
        itself = (xp.sum(pull * own, axis=0) - (n - 1)) / (1 + size[c])
        columns.append(xp.sqrt(variance + itself**2))
    out = xp.reshape(xp.stack(columns, axis=1), place.log_cdf.shape)
    worst = reward == -math.inf
    slope = (n - 1) * xp.exp(-place.log_cdf)  # of (n − 1) log F, which they have
    return xp.where(worst, place.standard_error(slope, xp.zeros_like(slope)), out)


def _columns(cdf: RewardCdf, reward: Array) -> Array:
    """Rewards as (R, C)."""
    if cdf.table is None:
        raise ValueError(
            "soft best-of-n averages over the prior's rewards, and this cdf is a formula; give "
            "RewardCdf.exact(rewards, log_prob) or RewardCdf.estimate(rewards)"
        )
    return namespace(reward).reshape(reward, (-1, math.prod(cdf.shape)))


def _integrand(
    cdf: RewardCdf, reward: Array, c: int, n: float | int, temperature: float | int
) -> _Integrand:
    table, size = cdf._as(reward)
    rewards, log_prob = table.rewards[:, c], table.log_prob[:, c]
    xp = namespace(rewards)
    finite = xp.isfinite(rewards)
    top = xp.max(xp.where(finite, rewards, -math.inf), axis=0)
    top = xp.where(xp.isfinite(top), top, 0.0)
    spread = top - xp.min(xp.where(finite, rewards, top), axis=0)
    log_weights = xp.where(finite, (rewards - top) / temperature, -math.inf)
    wanted = xp.where(reward > -math.inf, (reward - top) / temperature, -math.inf)
    nodes, log_step = _nodes(spread / temperature, n, margin=50.0 if cdf.estimated else 0.0)
    nodes = xp.asarray(nodes)[:, None] if isinstance(nodes, np.ndarray) else nodes[:, None]
    each = log_prob[None, :] + log1mexp(-xp.exp(nodes + log_weights[None, :]))
    log_lost = logsumexp(each, axis=1, keepdims=True)
    if size is not None:  # the outcome itself is one more sample
        own = log1mexp(-xp.exp(nodes + wanted[None, :]))
        others = xp.broadcast_to(log_lost + xp.log(size[c]), own.shape)
        log_lost = logsumexp(xp.stack([others, own]), axis=0) - xp.log1p(size[c])
    log_lost = xp.where(log_lost < 0, log_lost, 0.0)
    power = -xp.exp(math.log(n - 1) + log_neg_log1mexp(log_lost))
    log_terms = nodes + power + wanted[None, :] - xp.exp(nodes + wanted[None, :])
    return _Integrand(log_terms, log1mexp(log_lost), nodes, log_weights, wanted, log_step)


def _nodes(spread: Array, n: float | int, *, margin: float) -> tuple[Any, Any]:
    """Nodes u, as many as the range of rewards needs, and the log of their distance."""
    # The power has branch points near the line of integration unless n is whole.
    step = 0.2 if n > 1e16 or float(n).is_integer() else 0.04
    low = -math.log(n) - 45.0
    plain = known(spread)
    if plain is None:
        xp = namespace(spread)
        step = (spread + 7.0 + margin - low) / TRACED
        return low + step * xp.arange(TRACED), xp.log(step)
    if float(plain) > MOST:
        raise ValueError(
            "the temperature is less than a hundred-thousandth of the range of rewards "
            f"({float(plain):.3g} temperatures): soft best-of-n is best_of_n there"
        )
    return np.arange(low, float(plain) + 7.0 + margin, step), math.log(step)
