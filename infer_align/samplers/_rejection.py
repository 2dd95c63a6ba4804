"""Rejection and quasi-rejection sampling."""

import math
from typing import Any

import numpy as np

from infer_align._arguments import reals
from infer_align._numerics import NOISE
from infer_align.samplers._accept import Accepted, accept, report_short
from infer_align.samplers._outcomes import check_source, like, with_contexts
from infer_align.samplers._source import Source
from infer_align.targets import WeightedSample

__all__ = ["quasi_rejection", "rejection"]

VAST = 100.0
"""In nats: a bound so far above all weights met is no bound that anyone knows of."""


def rejection(
    source: Source, n: int, log_bound: Any = None, *, max_calls: int = 1_000_000
) -> WeightedSample:
    r"""Exact, independent draws of the target: accept y ~ q with probability P(y) / (M q(y)).

    .. math:: M \ge \sup_y P(y) / q(y), \qquad \Pr(\text{accept}) = Z / M

    (von Neumann 1951.) The evidence is log P/q of all proposals before the one that completed the
    sample, the rejected ones included, which makes Ẑ unbiased although the number of proposals
    depends on them.

    Parameters
    ----------
    source : Source
    n : int
        Draws in each context.
    log_bound : float or array of shape (*contexts)
        log M. The default is what the source knows (``Target.log_bound``), else 0, the bound of a
        condition whose proposal is its prior; of a tilt it is the largest reward over beta.
    max_calls : int
        Most proposals per context. A context that has accepted fewer than n by then keeps what
        it has: the rest of its log-weights are ``-inf``, ``method`` says so, and a warning is
        given.

    Returns
    -------
    WeightedSample
        Log-weights 0, with ``log_bound``.

    Raises
    ------
    ValueError
        If P/q of a proposal exceeds the bound by more than 0.001 nats.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import condition
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import rejection
    >>> target = condition(dist.Categorical(probs=jnp.array([0.5, 0.3, 0.2])), lambda y: y > 0)
    >>> sample = rejection(source(jax.random.key(0), target), 1000)
    >>> bool(sample.outcomes.min() == 1), abs(float(sample.log_z) - float(jnp.log(0.5))) < 0.1
    (True, True)
    """
    check_source(source)
    known = 0.0 if source.log_bound is None else source.log_bound
    bound = _per_context(known if log_bound is None else log_bound, source, "log_bound")

    largest = [np.full(bound.shape, -math.inf)]

    def log_acceptance(log_weights: np.ndarray) -> np.ndarray:
        excess = log_weights - bound
        largest[0] = np.maximum(largest[0], log_weights.max(axis=0))
        _refuse_vast(largest[0], bound, max_calls, source)
        if np.any(excess > NOISE):
            _refuse_bound(log_weights, bound, source)
        return excess

    got = accept(source, n, log_acceptance, max_calls)
    weights = np.where(got.log_weights > -math.inf, 0.0, -math.inf)
    sample = _sample(source, n, got, weights, "rejection sampling", "log bound", bound)
    return sample._replace(log_bound=bound.reshape(source.shape))


def quasi_rejection(
    source: Source, n: int, log_beta: Any, *, max_calls: int = 1_000_000
) -> WeightedSample:
    r"""Quasi-rejection sampling: rejection with a β that need not bound P/q.

    Accepts y ~ q with probability min(1, P(y) / (β q(y))). The draws are independent and have law

    .. math:: p_β(y) = \min(P(y), β q(y)) / Z_β, \qquad \Pr(\text{accept}) = Z_β / β

    (Eikema, Kruszewski, Dance, Elsahar, Dymetman 2022, arXiv 2112.05702), nearer to p the greater
    β is. The weights, P/min(P, βq) = max(1, P/(βq)), correct what is left: weighted, the sample is
    of p; its outcomes alone are of p_β, whose distance from p `acceptance_curve` estimates.

    Parameters
    ----------
    source : Source
    n : int
        Draws in each context.
    log_beta : float or array of shape (*contexts)
        log β; see `choose_log_beta`.
    max_calls : int
        As for `rejection`.

    Returns
    -------
    WeightedSample
        Evidence as for `rejection`: it estimates Z, not Z_β.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import quasi_rejection
    >>> target = tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])), lambda y: 1.0 * y, beta=1.0)
    >>> sample = quasi_rejection(source(jax.random.key(0), target), 100, 0.5)
    >>> sorted({round(float(w), 4) for w in sample.log_weights})     # max(0, y − log β)
    [0.0, 0.5]
    """
    check_source(source)
    beta = _per_context(log_beta, source, "log_beta")
    got = accept(source, n, lambda log_weights: log_weights - beta, max_calls)
    kept = got.log_weights > -math.inf
    weights = np.where(kept, np.maximum(got.log_weights - beta, 0.0), -math.inf)
    return _sample(source, n, got, weights, "quasi-rejection sampling", "log β", beta)


def _sample(
    source: Source,
    n: int,
    got: Accepted,
    weights: np.ndarray,
    name: str,
    constant: str,
    value: np.ndarray,
) -> WeightedSample:
    low, high = value.min(), value.max()
    says = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    rate = got.acceptance.mean()
    method = f"{name}, {constant} {says}, acceptance {rate:.3g}"
    remedy = (
        "the missing outcomes have log-weight -inf. Raise max_calls, or use a proposal closer to "
        "the target"
    )
    note = report_short(got.counts, n, got.calls, source, what=name, remedy=remedy)
    outcomes = like(with_contexts(got.outcomes, source.shape), got.original)
    return WeightedSample(
        outcomes=outcomes,
        log_weights=weights.reshape(n, *source.shape),
        log_target=got.log_target.reshape(n, *source.shape),
        evidence=got.evidence.reshape(-1, *source.shape),
        calls=got.calls,
        method=f"{method}; {note}" if note else method,
        log_target_se=source.log_target_se(outcomes),
        log_bound=source.log_bound,
    )


def _per_context(value: Any, source: Source, name: str) -> np.ndarray:
    """One finite number a context, (C,)."""
    numbers = reals(name, value, need="a number, or one for each context")
    try:
        flat = np.broadcast_to(numbers, source.shape).reshape(-1)
    except ValueError:
        raise ValueError(
            f"{name} has shape {numbers.shape}; give one number, or one for each context, "
            f"{source.shape}"
        ) from None
    if not np.all(np.isfinite(flat)):
        raise ValueError(f"{name} must be finite, got {numbers}")
    return flat


def _refuse_vast(largest: np.ndarray, bound: np.ndarray, max_calls: int, source: Source) -> None:
    """A bound so far above all that was met that nothing would ever be accepted."""
    vast = (largest > -math.inf) & (largest < bound - VAST)
    if not vast.any():
        return
    column = int(np.argmax(vast))
    gap = float(bound[column] - largest[column])
    raise ValueError(
        f"log_bound {bound[column]:.6g} is {gap:.3g} nats above the largest log P/q that the "
        f"proposals of {source.name!r} met: even such an outcome is accepted with probability "
        f"exp(-{gap:.3g}), which {max_calls} calls will not see. Give the largest log P/q there "
        "can be, or sample with quasi_rejection"
    )


def _refuse_bound(log_weights: np.ndarray, bound: np.ndarray, source: Source) -> None:
    row, column = np.unravel_index(np.argmax(log_weights - bound), log_weights.shape)
    got, allowed = log_weights[row, column], bound[column]
    where = f" in context {column}" if len(bound) > 1 else ""
    raise ValueError(
        f"log P/q of a proposal of {source.name!r}{where} is {got:.6g} and log_bound "
        f"{allowed:.6g}: exceeded by {got - allowed:.3g} nats, so the draws would not be of the "
        "target. Give a log_bound of at least the largest log P/q there can be, or sample with "
        "quasi_rejection, which needs no bound and says how far off it is"
    )
