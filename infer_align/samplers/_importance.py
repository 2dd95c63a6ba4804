"""Importance sampling and resampling."""

import math
from collections.abc import Callable

import numpy as np

from infer_align._arguments import count
from infer_align.samplers._outcomes import (
    LARGEST,
    flat_contexts,
    like,
    propose,
    sized,
    take,
    to_host,
    with_contexts,
)
from infer_align.samplers._pareto import pareto_smooth
from infer_align.samplers._resampling import stratified
from infer_align.samplers._source import Source
from infer_align.targets import WeightedSample

__all__ = ["importance", "resample", "sampling_importance_resampling"]

Scheme = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def importance(source: Source, n: int) -> WeightedSample:
    r"""Importance sampling: y ~ q with weight w = P(y)/q(y).

    .. math:: \hat Z = \frac1n \sum_i w_i, \qquad E_p[h] ≈ \sum_i w_i h(y_i) / \sum_i w_i

    Ẑ is unbiased, the second, self-normalised, is not: its bias is of order 1/n.

    Parameters
    ----------
    source : Source
    n : int
        Draws in each context.

    Returns
    -------
    WeightedSample
        Whose evidence are the log-weights.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import importance
    >>> target = tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])), lambda y: 1.0 * y, beta=1.0)
    >>> sample = importance(source(jax.random.key(0), target), 1000)
    >>> abs(float(sample.log_z) - float(jnp.log((1 + jnp.e) / 2))) < 0.1
    True
    """
    n = sized("n", n, source)
    drawn = propose(source, n)
    log_weights = drawn.log_weights.reshape(n, *source.shape)
    return WeightedSample(
        outcomes=drawn.original,
        log_weights=log_weights,
        log_target=drawn.log_target.reshape(n, *source.shape),
        evidence=log_weights,
        calls=n,
        method="importance sampling",
        log_target_se=source.log_target_se(drawn.original),
        log_bound=source.log_bound,
    )


def resample(
    sample: WeightedSample,
    n: int,
    rng: np.random.Generator,
    *,
    scheme: Scheme = stratified,
    replace: bool = True,
    smooth: bool = False,
) -> WeightedSample:
    r"""Equally weighted outcomes, chosen from a weighted sample by their weights (Rubin 1988).

    The expected share of an outcome is off by :math:`p_i (p_i - \sum_j p_j^2)`, to first order.

    Parameters
    ----------
    sample : WeightedSample
    n : int
        Outcomes to choose in each context.
    rng : numpy.random.Generator
    scheme : callable
        `multinomial`, `stratified`, `systematic` or `residual`.
    replace : bool
        False chooses n different rows, one after the other by the weights of those left
        (Efraimidis and Spirakis 2006). Of few rows that is closer to the proposal than the
        weights say.
    smooth : bool
        Choose by Pareto-smoothed weights, see `pareto_smooth`: less variance, some bias.

    Returns
    -------
    WeightedSample
        Log-weights 0, or ``-inf`` in a context without an accepted outcome. Copies of one row are
        one cluster; the evidence is that of the sample. ``total_variation`` is half the sum of the
        absolute errors above; NaN without replacement, or where a sample without evidence no
        longer has the weights that its outcomes were chosen by.

    Raises
    ------
    ValueError
        Without replacement, if a context has accepted outcomes, but fewer than n.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import WeightedSample
    >>> from infer_align.samplers import resample
    >>> log_weights = np.log([1.0, 3.0])
    >>> sample = WeightedSample(np.array([0, 1]), log_weights, log_weights)
    >>> resample(sample, 4, np.random.default_rng(0)).outcomes.tolist()
    [0, 1, 1, 1]
    """
    n = count("n", n)
    if n * math.prod(sample.log_weights.shape[1:]) > LARGEST:
        raise ValueError(f"n={n} outcomes are more than memory holds; choose fewer, or in parts")
    shape = sample.log_weights.shape[1:]
    method = f"{sample.method}, resampled {'with' if replace else 'without'} replacement"
    if smooth:
        smoothed = pareto_smooth(sample.log_weights)
        sample = sample._replace(log_weights=smoothed.log_weights)
        method = f"{method}, {smoothed.note}"
    flat = sample.probabilities.reshape(len(sample.log_weights), -1)
    equal = flat.max(axis=0) * (flat > 0).sum(axis=0) <= 1 + 1e-9
    bias = 0.5 * (flat * np.abs(flat - (flat**2).sum(axis=0))).sum(axis=0)
    known = replace and sample.evidence is not None
    bias = np.where(equal, 0.0, bias if known else math.nan)
    rows = scheme(flat, n, rng) if replace else _without_replacement(flat, n, rng)
    host = take(flat_contexts(to_host(sample.outcomes), len(shape)), rows)
    origin = np.broadcast_to(np.arange(len(flat))[:, None], flat.shape)
    se = sample.log_target_se
    cluster = origin if sample.cluster is None else sample.cluster.reshape(flat.shape)
    weights = np.where(flat.sum(axis=0) > 0, np.zeros(rows.shape), -math.inf)
    return sample._replace(
        outcomes=like(with_contexts(host, shape), sample.outcomes),
        log_weights=weights.reshape(n, *shape),
        log_target=take(sample.log_target.reshape(flat.shape), rows).reshape(n, *shape),
        cluster=take(cluster, rows).reshape(n, *shape),
        method=method,
        log_target_se=se if se is None else take(se.reshape(flat.shape), rows).reshape(n, *shape),
        total_variation=sample.total_variation + bias.reshape(shape),
    )


def sampling_importance_resampling(
    source: Source,
    n: int,
    m: int,
    *,
    scheme: Scheme = stratified,
    replace: bool = True,
    smooth: bool = False,
) -> WeightedSample:
    """Sampling-importance-resampling: m proposals, of which n are chosen by their weights.

    The law of the outcomes tends to the target's as m grows, with an error of order 1/m (Rubin
    1988; with smoothing, Vehtari et al. 2024, arXiv 1507.02646).

    Parameters
    ----------
    source : Source
    n : int
        Outcomes in each context.
    m : int
        Proposals in each context.
    scheme, replace, smooth
        As for `resample`.

    Returns
    -------
    WeightedSample
        Its evidence are the unsmoothed log-weights of all proposals.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import sampling_importance_resampling
    >>> target = tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])), lambda y: 1.0 * y, beta=1.0)
    >>> sample = sampling_importance_resampling(source(jax.random.key(0), target), 100, 1000)
    >>> abs(float(sample.outcomes.mean()) - 0.73) < 0.05            # e / (1 + e)
    True
    """
    sized("n", n, source)
    drawn = importance(source, sized("m", m, source))
    return resample(drawn, n, source.rng, scheme=scheme, replace=replace, smooth=smooth)


def _without_replacement(flat: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    accepted = (flat > 0).sum(axis=0)
    short = (accepted > 0) & (accepted < n)
    if np.any(short) or n > len(flat):
        fewest = int(accepted[short].min()) if np.any(short) else len(flat)
        raise ValueError(
            f"{n} different outcomes cannot be chosen from {fewest} accepted ones; draw more, "
            "choose fewer, or resample with replacement"
        )
    # The n earliest arrivals, at rates equal to the weights.
    arrival = rng.exponential(size=flat.shape) / np.where(flat > 0, flat, 1.0)
    return np.argsort(np.where(flat > 0, arrival, math.inf), axis=0, kind="stable")[:n]
