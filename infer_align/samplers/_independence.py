"""Independence Metropolis-Hastings."""

import math

import numpy as np

from infer_align._numerics import logmeanexp
from infer_align.samplers._accept import report_short
from infer_align.samplers._chains import Record, check_lengths
from infer_align.samplers._outcomes import choose, each, propose, sized
from infer_align.samplers._source import Source
from infer_align.targets import WeightedSample

__all__ = ["independence_metropolis"]

CHUNK = 4096
"""Proposals drawn at once, for several steps."""


def independence_metropolis(
    source: Source, n: int, steps: int, *, keep: int = 1, thin: int = 1
) -> WeightedSample:
    r"""Independence Metropolis-Hastings: n chains whose proposals are fresh draws of q.

    From y the move to y′ ~ q is accepted with probability min(1, w(y′)/w(y)), w = P/q (Tierney
    1994; for language models Eikema et al. 2022, arXiv 2112.05702). Where w ≤ M, the law of a
    chain is within (1 − Z/M)^steps of the target in total variation (Mengersen and Tweedie 1996).
    A chain that starts where P = 0 takes the first proposal that P accepts.

    Parameters
    ----------
    source : Source
    n : int
        Chains in each context; they are independent.
    steps : int
        Moves of each.
    keep : int
        States kept of each chain, the last one first.
    thin : int
        Steps between kept states.

    Returns
    -------
    WeightedSample
        ``n * keep`` outcomes of equal weight, a chain a cluster; ``-inf`` for a chain that found
        no outcome with P > 0 (a warning is given). The evidence is log P/q of all proposals, which
        are independent draws of q whatever was accepted. ``method`` has the acceptance rate,
        ``total_variation`` the bound above for the earliest kept states, at Ẑ and the source's
        bound of w, or where none is known the largest w that was met.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> from infer_align.samplers import independence_metropolis
    >>> target = tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])), lambda y: 1.0 * y, beta=1.0)
    >>> sample = independence_metropolis(source(jax.random.key(0), target), 500, 20)
    >>> abs(float(sample.outcomes.mean()) - 0.73) < 0.08            # e / (1 + e)
    True
    """
    check_lengths(source, n, steps, keep, thin)
    sized("n", n, source, times=steps + 1)  # every proposal is evidence
    record = Record(steps, keep, thin)
    state = propose(source, n)
    evidence = [state.log_weights]
    outcomes, weights, log_target = state.outcomes, state.log_weights, state.log_target
    step = 0
    while step < steps:
        several = min(steps - step, max(1, CHUNK // n))
        fresh = propose(source, n * several)
        evidence.append(fresh.log_weights)
        for k in range(several):
            rows = slice(k * n, (k + 1) * n)
            new = fresh.log_weights[rows]
            moved = rises(new, weights, source.rng)
            outcomes = choose(moved, each(lambda x, r=rows: x[r], fresh.outcomes), outcomes)
            weights = np.where(moved, new, weights)
            log_target = np.where(moved, fresh.log_target[rows], log_target)
            step += 1
            record.add(step, outcomes, log_target, moved)
    method = f"independence Metropolis, {n} chains of {steps} steps"
    return _finished(source, record, state.original, evidence, n, method)


def rises(new: np.ndarray, old: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Accept with probability min(1, exp(new − old)); never ``-inf``, always from ``-inf``."""
    rise = np.where(old > -math.inf, new - np.where(old > -math.inf, old, 0.0), math.inf)
    return (new > -math.inf) & (-rng.exponential(size=new.shape) < rise)


def _finished(
    source: Source, record: Record, original, evidence: list[np.ndarray], n: int, method: str
) -> WeightedSample:
    proposals = np.concatenate(evidence)
    started = (record.log_target[-1] > -math.inf).sum(axis=0)
    method = f"{method}, acceptance {record.acceptance:.3g}"
    remedy = (
        "the chains without an accepted outcome have log-weight -inf. Take more steps, or use a "
        "proposal closer to the target"
    )
    calls = len(proposals)
    what = "independence Metropolis"
    note = report_short(started, n, calls, source, what=what, remedy=remedy)
    cluster = np.broadcast_to(np.arange(n)[:, None], record.log_target[0].shape)
    method = f"{method}; {note}" if note else method
    largest = proposals.max(axis=0)
    if source.log_bound is not None:  # of all weights there are, not of those met
        bound = np.broadcast_to(np.asarray(source.log_bound, dtype=float), source.shape)
        largest = np.maximum(largest, bound.reshape(-1))
    some = largest > -math.inf
    over = np.where(some, logmeanexp(proposals) - np.where(some, largest, 0.0), -math.inf)
    distance = (-np.expm1(np.minimum(over, 0.0))) ** min(record.kept)  # rounding may exceed 0
    distance = distance.reshape(source.shape)
    return record.sample(source, original, cluster, proposals, calls, method, distance)
