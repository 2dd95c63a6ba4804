"""Best-of-n drawing."""

from collections.abc import Callable
from typing import Any

import numpy as np

from infer_align import _ties
from infer_align._arguments import function
from infer_align._numerics import as_real, concrete, own
from infer_align.samplers._outcomes import (
    Outcomes,
    check,
    each,
    flat_contexts,
    like,
    sized,
    take,
    to_host,
    with_contexts,
)
from infer_align.samplers._source import Source
from infer_align.targets import WeightedSample

__all__ = ["best_of_n"]

CHUNK = 4096
"""Proposals drawn at once."""


def best_of_n(
    source: Source,
    reward: Callable[[Any], Any],
    n: int,
    m: int,
    *,
    tolerance: float | int | None = None,
) -> WeightedSample:
    r"""Draws of the best-of-n distribution: the outcome of n with the greatest reward.

    .. math:: p_n(y) = q(y) \frac{F(r(y))^n - F(r(y)^-)^n}{F(r(y)) - F(r(y)^-)}

    with F the law of the reward under q and ties broken at random (Beirami et al. 2024, arXiv
    2401.01879). The draws are of this law, and the source's target takes no part in it but to be
    reported in ``log_target``.

    Parameters
    ----------
    source : Source
        Whose proposal is drawn from.
    reward : callable
        From outcomes (k, *contexts, ...) to numbers (k, *contexts), ``-inf`` allowed.
    n : int
        Outcomes that the best is taken of.
    m : int
        Draws in each context.
    tolerance : float, optional
        Distance within which rewards tie, as of `infer_align.RewardCdf`. By default 16 units in the
        last place of the largest reward drawn.

    Returns
    -------
    WeightedSample
        Log-weights 0, and no evidence. ``calls`` is n·m.

    Raises
    ------
    ValueError
        For rewards of another shape, or NaN.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import best_of_n
    >>> prior = dist.Categorical(probs=jnp.array([0.5, 0.5]))
    >>> fair = source(jax.random.key(0), tilt(prior, lambda y: 1.0 * y, beta=1.0))
    >>> best = best_of_n(fair, lambda y: y, 3, 1000)
    >>> abs(float(best.outcomes.mean()) - 7 / 8) < 0.05
    True
    """
    function("reward", reward, "of outcomes (k, *contexts, ...), giving (k, *contexts)")
    n, m = sized("n", n, source), sized("m", m, source)
    at_once = max(1, CHUNK // n)
    sizes = [min(at_once, m - start) for start in range(0, m, at_once)]
    parts: list[tuple[Outcomes, np.ndarray]] = []
    original = None  # of one part: whose library and device the outcomes are of
    for size in sizes:
        *best, original = _best(source, reward, n, size, tolerance)
        parts.append((best[0], best[1]))
    outcomes = each(lambda *x: np.concatenate(x), *(host for host, _ in parts))
    log_target = np.concatenate([log_p for _, log_p in parts])
    shape = (m, *source.shape)
    given = like(with_contexts(outcomes, source.shape), original)
    return WeightedSample(
        outcomes=given,
        log_weights=np.zeros(shape),
        log_target=log_target.reshape(shape),
        calls=n * m,
        method=f"best of {n}",
        log_target_se=source.log_target_se(given),
    )


def _best(
    source: Source, reward: Callable[[Any], Any], n: int, m: int, tolerance: float | int | None
) -> tuple[Outcomes, np.ndarray, Outcomes]:
    """The best of each of m groups of n, their log P, and the outcomes as they came."""
    drawn = source.draw(n * m)
    check(drawn, n * m, source)
    values = concrete(as_real(reward(own(drawn.outcomes)), "the reward"))
    if values is None or values.shape != (n * m, *source.shape):
        got = "no array" if values is None else values.shape
        raise ValueError(
            f"the reward gave {got} for {n * m} outcomes; needed is one number an outcome, "
            f"{(n * m, *source.shape)}: reduce over the outcome's own axes with .sum(-1)"
        )
    if np.any(np.isnan(values)):
        raise ValueError(f"the reward is NaN for {int(np.isnan(values).sum())} outcomes")
    groups = values.reshape(m, n, -1).swapaxes(0, 1)
    best = _ties.best(groups, 2, tolerance)
    lot = np.where(best, source.rng.random(groups.shape), -1.0)
    rows = np.argmax(lot, axis=0) + n * np.arange(m)[:, None]
    host = flat_contexts(to_host(drawn.outcomes), len(source.shape))
    return take(host, rows), take(drawn.log_target.reshape(n * m, -1), rows), drawn.outcomes
