r"""`match_moments`: draw, solve, and draw again where the weights collapse.

Rounds are pooled by the ratio estimator of reverse logistic regression (Geyer 1994; MBAR, Shirts &
Chodera 2008, arXiv 0801.1426). With round s drawn from :math:`p_s ∝ b\,e^{λ_s·φ}` and worth
:math:`N_s` draws, an outcome i of round r has the mass

.. math:: m_i = \frac{N_r \bar w_i}{\sum_s N_s e^{λ_s·φ_i - ζ_s}}, \qquad
          \sum_i m_i e^{λ_s·φ_i - ζ_s} = 1

under the base b: consistent whatever the N_s, and Kish's number where one round is all there is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import count, real
from infer_align.targets._declared import unconstrained, with_multipliers
from infer_align.targets._dual import Points, Solved, newton, tilted
from infer_align.targets._moment_fit import ESS_MIN, Evaluated, MomentFit, report
from infer_align.targets._moments import as_points, evaluate, flat, solve
from infer_align.targets._target import Target
from infer_align.targets._weighted import WeightedSample

Draw = Callable[[Target, int], WeightedSample]


class Round(NamedTuple):
    """Outcomes drawn of the base tilted by some multipliers."""

    sampled: Evaluated
    multipliers: np.ndarray
    """(K,)"""
    labels: np.ndarray
    """(n, C): outcomes of one number are dependent."""
    total_variation: float
    """The largest of a context's."""


class Pooled(NamedTuple):
    """All rounds' outcomes as one weighted sample of the base, and its noise."""

    sampled: Evaluated
    share: np.ndarray
    """(n, C): self-normalised weight within the own round."""
    index: np.ndarray
    """(n,): the round."""
    density: np.ndarray
    """(n, C, R): N_s exp(λ_s·φ − ζ_s) / D."""
    number: np.ndarray
    """(R, C): N_s."""


def match_moments(
    target: Target,
    draw: Draw,
    *contexts: Any,
    n: int = 1024,
    rounds: int = 4,
    context_weights: Sequence[float] | np.ndarray | None = None,
    tolerance: float = 1e-10,
    ess_min: float | int = ESS_MIN,
) -> MomentFit:
    """Solve a target's moments, and draw from what was found until the weights are even.

    The first round draws of the base. While the effective sample size of the solved target is
    below ``ess_min``, a further round draws twice as many of the target as solved so far (of one
    part of the way, where the means are out of reach of the outcomes seen), and all rounds are
    pooled. The standard errors are those of `solve_moments`, with the noise of the rounds' unknown
    normalising constants.

    Parameters
    ----------
    target : Target
        From `moment_match`, or from a program with `moment`.
    draw : callable
        ``draw(law, n) -> WeightedSample`` of the target ``law``: the base at first, solved targets
        later. n outcomes per context, by any method.
    *contexts
        Of the draws.
    n : int
        Outcomes of the first round.
    rounds : int
        Most rounds.
    context_weights, tolerance, ess_min
        See `solve_moments`.

    Returns
    -------
    MomentFit
        Not ``reliable`` where the rounds were spent before ``ess_min`` was reached.

    Raises
    ------
    ValueError
        As `solve_moments`, after the last round.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np, numpyro.distributions as dist
    >>> from infer_align import WeightedSample, match_moments, moment_match
    >>> prior = dist.Categorical(jnp.array([0.9, 0.08, 0.02]))
    >>> target = moment_match(prior, {"last": (lambda y: y == 2, 0.5)})
    >>> rng = np.random.default_rng(0)
    >>> def draw(law, n):
    ...     p = np.exp(np.asarray(law.log_density(jnp.arange(3)), dtype=float))
    ...     return WeightedSample(rng.choice(3, n, p=p / p.sum()), np.zeros(n), np.zeros(n))
    >>> fit = match_moments(target, draw, n=500)
    >>> fit.reliable, bool(abs(fit.multipliers["last"] - np.log(0.98 / 0.02)) < 0.5)
    (True, True)
    """
    n, rounds = count("n, the outcomes of the first round,", n, low=2), count("rounds", rounds)
    drawn: list[Round] = []
    law, multipliers, fit, fault = unconstrained(target), None, None, None
    for number in range(rounds):
        sample = draw(law, n << number)
        log_weights = np.asarray(sample.log_weights, dtype=np.float64)
        sampled = evaluate(target, sample.outcomes, contexts, log_weights)
        if multipliers is None:
            multipliers = np.zeros(len(sampled.names))
        distance = float(np.max(sample.total_variation))
        drawn.append(Round(sampled, multipliers, _labels(sample, drawn), distance))
        fit, fault, multipliers = _attempt(
            target, drawn, context_weights, tolerance, real("ess_min", ess_min)
        )
        if fit is not None and fit.reliable:
            return fit
        known = dict(zip(sampled.names, multipliers.tolist(), strict=True))
        law = with_multipliers(target, known) if multipliers.any() else unconstrained(target)
    if fit is None:
        assert fault is not None
        raise ValueError(f"after {rounds} rounds: {fault}") from fault
    return fit


def _attempt(
    target: Target,
    drawn: list[Round],
    context_weights: Any,
    tolerance: float,
    ess_min: float,
) -> tuple[MomentFit | None, ValueError | None, np.ndarray]:
    """A fit on all rounds, or why there is none; and the multipliers to draw from next."""
    nothing = np.zeros(len(drawn[0].multipliers))
    try:
        pooled = pool(drawn)
        points = as_points(target.name, pooled.sampled, context_weights, "accepted draws")
    except ValueError as fault:
        return None, fault, nothing
    names, means = pooled.sampled.names, pooled.sampled.means
    try:
        solved = solve(points, names, means, tolerance, "accepted draws")
    except ValueError as fault:
        return None, fault, _part_of_the_way(points, means, drawn[-1].multipliers)
    labels = np.concatenate([r.labels for r in drawn])
    found = influence(pooled, points, solved)
    distance = np.max([r.total_variation for r in drawn])
    fit = report(target, pooled.sampled, points, solved, found, labels, ess_min, distance)
    return fit, None, solved.multipliers


def _part_of_the_way(points: Points, means: np.ndarray, so_far: np.ndarray) -> np.ndarray:
    """Multipliers of means between those of the last law and the desired ones."""
    means = means - points.mean_offset
    mass = np.exp(tilted(points, so_far)[0]) * points.context_mass
    here = np.einsum("nc,nck->k", mass, points.features)
    for part in (0.5, 0.25, 0.1):
        solved = newton(points, here + part * (means - here), 1e-6)
        if solved is not None and np.isfinite(solved.multipliers).all():
            return solved.multipliers
    return so_far


def _labels(sample: WeightedSample, before: list[Round]) -> np.ndarray:
    """Numbers of the independent units, apart from those of earlier rounds."""
    start = max((int(r.labels.max()) + 1 for r in before), default=0)
    shape = np.asarray(sample.log_weights).shape
    if sample.cluster is None:
        rows = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        return flat(start + np.broadcast_to(rows, shape))
    labels = np.asarray(sample.cluster)
    return flat(start + labels - labels.min())


def pool(drawn: list[Round]) -> Pooled:
    """Pool rounds; each context has its own normalising constants."""
    first = drawn[0].sampled
    shares = [_share(r.sampled.log_weights) for r in drawn]
    squares = np.stack([(s**2).sum(axis=0) for s in shares])
    number = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1.0), 0.0)
    share = np.concatenate(shares)
    features = np.concatenate([r.sampled.features for r in drawn])
    index = np.repeat(np.arange(len(drawn)), [len(s) for s in shares])
    # Constants of a context are its rounds' normalising constants' own: without their digits.
    centred = features - np.einsum("nc,nck->ck", share, features) / len(drawn)
    tilts = np.stack([centred @ r.multipliers for r in drawn], axis=-1)
    log_mass = np.full(share.shape, -math.inf)
    density = np.zeros((*share.shape, len(drawn)))
    for c in range(share.shape[1]):
        kept = share[:, c] > 0
        if kept.any():
            scale = share[kept, c] * number[index[kept], c]
            log_mass[kept, c], density[kept, c] = _masses(scale, tilts[kept, c], number[:, c])
    sampled = first._replace(features=features, log_weights=log_mass)
    return Pooled(sampled, share, index, density, number)


def _share(log_weights: np.ndarray) -> np.ndarray:
    top = log_weights.max(axis=0, initial=-math.inf)
    weight = np.exp(log_weights - np.where(np.isfinite(top), top, 0.0))
    total = weight.sum(axis=0)
    return weight / np.where(total > 0, total, 1.0)


def _masses(
    scale: np.ndarray, tilts: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-masses (n,) under the base, and densities (n, R) by round, of one context.

    Newton's method on the convex function Σ_i u_i log D_i + Σ_s N_s ζ_s of the log-constants.
    """
    used = number > 0
    log_number = np.log(np.where(used, number, 1.0))
    tilts = np.where(used, tilts, -math.inf)
    zeta = np.zeros(len(number))

    def state(zeta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        terms = log_number + tilts - zeta
        top = terms.max(axis=1, keepdims=True)
        log_d = top[:, 0] + np.log(np.exp(terms - top).sum(axis=1))
        return float(scale @ log_d + number @ zeta), log_d, np.exp(terms - log_d[:, None])

    value, log_d, density = state(zeta)
    rest = np.flatnonzero(used)[1:]  # the first constant is the unit of the others
    for _ in range(200):
        gap = number - scale @ density
        if np.abs(gap[rest]).max(initial=0.0) <= 1e-12 * number.sum():
            break
        hessian = np.diag(scale @ density) - (density * scale[:, None]).T @ density
        step = np.linalg.lstsq(hessian[np.ix_(rest, rest)], gap[rest], rcond=None)[0]
        size = 1.0
        while size > 1e-10:
            new = zeta.copy()
            new[rest] -= size * step
            found = state(new)
            if found[0] <= value + 1e-13 * abs(value):
                break
            size /= 2
        zeta, (value, log_d, density) = new, found
    return np.log(scale) - log_d, density


def influence(pooled: Pooled, points: Points, solved: Solved) -> np.ndarray:
    """Influence (n, C, K) of each draw on the moments, by way of the constants as well."""
    mass = np.exp(solved.log_mass)
    centre = np.einsum("nc,nck->ck", mass, points.features)
    own = mass[..., None] * (points.features - centre)
    direct = _within_rounds(own, pooled)
    rounds = pooled.number.shape[0]
    if rounds == 1:
        return direct
    for c in range(mass.shape[1]):
        number = pooled.number[:, c]
        rest = np.flatnonzero(number > 0)[1:]
        if not len(rest):
            continue
        density = pooled.density[:, c][:, rest]
        # m_i q_s(i), up to one factor that all s share: density N_r share / N_s.
        scale = pooled.share[:, c] * number[pooled.index]
        equations = scale[:, None] * density / number[rest]
        slope = np.eye(len(rest)) - (equations.T @ density)
        shift = own[:, c].T @ density
        noise = _within_rounds(equations[:, None, :], pooled, c)[:, 0]
        moved = np.linalg.lstsq(slope, noise.T, rcond=None)[0]
        direct[:, c] += (shift @ moved).T
    return direct


def _within_rounds(terms: np.ndarray, pooled: Pooled, context: int | None = None) -> np.ndarray:
    """Terms (n, C, K) less their rounds' totals, in proportion to the weights in the round."""
    share = pooled.share if context is None else pooled.share[:, context : context + 1]
    totals = np.stack([terms[pooled.index == r].sum(axis=0) for r in range(len(pooled.number))])
    return terms - share[..., None] * totals[pooled.index]
