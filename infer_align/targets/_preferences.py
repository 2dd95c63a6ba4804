"""Targets given by preferences: tilts by the probability of being preferred to opponents."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import device

from infer_align._arguments import array, function
from infer_align._numerics import Array, as_real, concrete, namespace
from infer_align.targets._combinators import check_beta, extend
from infer_align.targets._target import Target, first_site
from infer_align.targets._weighted import WeightedSample

Preference = Callable[..., Array]


def preference_tilt(
    base: Any, preference: Preference, opponents: Any, beta: float | int, *, weights: Any = None
) -> Target:
    r"""Tilt by the probability of being preferred to opponents: the regularised best response.

    .. math:: P(y) = \mathrm{base}(y)\, \exp\Big( \tfrac1β\, E_{y' \sim \mathrm{opponents}}
              \big[ P(y ≻ y') \big] \Big)

    It maximises the win rate against the opponents less beta·KL(π‖base): a step of Nash-MD
    (Munos et al. 2023, arXiv 2312.00886). With the equilibrium as opponents it is the equilibrium
    (``exact.nash``).

    Parameters
    ----------
    base : Distribution, callable or Target
        What is tilted.
    preference : callable
        ``(y, other, *contexts) -> (k, *contexts)``: probability that y[i] is preferred to
        other[i], in [0, 1]. It gets every pair in one call, k = n·m.
    opponents : WeightedSample, or array or dict of arrays, shape (m, *contexts, ...)
        Outcomes y'. A sample has a standard error, which the target's ``log_potential_se`` gives;
        an array is the opponent's law itself, exact.
    beta : float
        Temperature, > 0, in units of probability.
    weights : array, shape (m, *contexts) or (m,), optional
        Probabilities of an array of opponents, in any scale. Default: all alike.

    Returns
    -------
    Target

    Raises
    ------
    ValueError
        For a beta that is no temperature, weights that cannot be right, or (when evaluated)
        opponents of other contexts than the outcomes.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align.targets import preference_tilt
    >>> wins = jnp.array([[0.5, 0.9], [0.1, 0.5]])
    >>> target = preference_tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])),
    ...                          lambda y, other: wins[y, other], jnp.array([0, 1]), beta=0.4)
    >>> [round(float(x), 4) for x in target.log_potential(jnp.array([0, 1]))]    # 0.7, 0.3 over β
    [1.75, 0.75]
    """
    function("preference", preference, "(y, opponents, *contexts) -> probabilities")
    check_beta(beta)
    sampled = isinstance(opponents, WeightedSample)
    if sampled and weights is not None:
        raise ValueError(
            "a WeightedSample has weights of its own: give no others, or give its outcomes"
        )
    others = opponents.outcomes if sampled else opponents
    share = opponents.probabilities if sampled else _shares(others, weights)
    if not (share.sum(axis=0) > 0).all():
        raise ValueError("the opponents have no positive weight; draw more, or give others")
    cluster = opponents.cluster if sampled else None

    def wins(y: Any, *contexts: Any) -> tuple[Array, Array]:
        """P(y ≻ y') of every pair, (n, m, *contexts), and the opponents' shares, (1, m, ...)."""
        n, m = first_site(y).shape[0], share.shape[0]
        pairs = preference(_repeated(y, m), _tiled(others, n), *contexts)
        xp = namespace(pairs)
        if tuple(pairs.shape)[:1] != (n * m,):
            raise ValueError(
                f"the preference has shape {tuple(pairs.shape)} for {n} outcomes and {m} "
                f"opponents; it must be ({n * m}, *contexts), one probability a pair"
            )
        table = xp.reshape(pairs, (n, m, *pairs.shape[1:]))
        p = share.reshape(1, *share.shape, *(1,) * (table.ndim - 1 - share.ndim))
        if any(a not in (1, b) for a, b in zip(p.shape[2:], table.shape[2:], strict=True)):
            raise ValueError(
                f"opponents in contexts of shape {tuple(share.shape[1:])} against outcomes in "
                f"{tuple(table.shape[2:])}; give opponents for the same contexts, in their order"
            )
        return table, xp.asarray(p, dtype=table.dtype, device=device(table))

    def potential(y: Any, *contexts: Any) -> Array:
        table, p = wins(y, *contexts)
        return namespace(table).sum(table * p, axis=1) / beta

    def error(y: Any, *contexts: Any) -> Array:
        table, p = wins(y, *contexts)
        return _standard_error(table, p, cluster) / beta

    return extend(base, potential, "preference_tilt", error if sampled else None)


def _standard_error(table: Array, p: Array, cluster: np.ndarray | None) -> Array:
    """Of a self-normalised mean over axis 1, by the delta method; clusters are dependent."""
    xp = namespace(table)
    m = table.shape[1]
    influence = p * (table - xp.sum(table * p, axis=1, keepdims=True))
    if cluster is None:
        return xp.sqrt(xp.sum(influence**2, axis=1) * (m / max(m - 1, 1)))
    names = np.unique(cluster)
    total, k = 0.0, len(names)
    for name in names:
        mine = xp.asarray(1.0 * (cluster == name), dtype=table.dtype, device=device(table))
        mine = xp.reshape(mine, (1, *mine.shape, *(1,) * (table.ndim - 1 - mine.ndim)))
        total = total + xp.sum(influence * mine, axis=1) ** 2
    return xp.sqrt(total * (k / max(k - 1, 1)))


def _shares(others: Any, weights: Any) -> np.ndarray:
    m = array("opponents", first_site(others), need="an array of outcomes on axis 0").shape[0]
    p = np.ones(m) if weights is None else np.asarray(concrete(as_real(weights, "weights")), float)
    if not p.ndim or len(p) != m or not (np.isfinite(p).all() and (p >= 0).all()):
        raise ValueError(
            f"weights of {m} opponents must be {m} finite non-negative numbers (not logs), for "
            f"each context; got shape {p.shape} from {p.min(initial=math.inf)}"
        )
    total = p.sum(axis=0)
    return p / np.where(total > 0, total, 1.0)


def _repeated(outcomes: Any, times: int) -> Any:
    """Each outcome as often in a row: 0, 0, 1, 1, ..."""
    return _rows(outcomes, lambda n: np.repeat(np.arange(n), times))


def _tiled(outcomes: Any, times: int) -> Any:
    """All outcomes as often one after the other: 0, 1, ..., 0, 1, ..."""
    return _rows(outcomes, lambda n: np.tile(np.arange(n), times))


def _rows(outcomes: Any, index: Callable[[int], np.ndarray]) -> Any:
    if isinstance(outcomes, dict):
        return {site: _rows(y, index) for site, y in outcomes.items()}
    xp = namespace(outcomes)
    rows = xp.asarray(index(outcomes.shape[0]), device=device(outcomes))
    return xp.take(outcomes, rows, axis=0)
