"""`MomentFit`: solved moments, and how well they are known."""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align.targets._declared import with_multipliers
from infer_align.targets._dual import Points, Solved
from infer_align.targets._target import Target
from infer_align.targets._weighted import too_far

ESS_MIN = 200.0
UNITS_MIN = 10


class MomentFit(NamedTuple):
    r"""A target whose moments are solved, and how well they are known.

    Dicts are by the name of the moment.
    """

    target: Target
    """The solved target, P = base·exp(Σ λ_k φ_k)."""
    multipliers: dict[str, float]
    """λ, in units of 1/feature."""
    achieved: dict[str, float]
    """Moments of the sample, reweighted: the desired means, to the tolerance."""
    standard_errors: dict[str, float]
    """Of the true moments of the solved target about the desired means; 0 of an exact solution."""
    multiplier_errors: dict[str, float]
    """Standard errors of λ."""
    kl_to_base: np.ndarray
    """KL(p‖base), shape (*contexts), in nats: λ·E[φ] − log E_base[exp(λ·φ)]."""
    ess: np.ndarray
    """Effective sample size of the solved target, shape (*contexts); inf of an exact solution."""
    ess_pooled: float
    """The same of the average over contexts."""
    iterations: int
    reliable: bool
    """Whether the pooled effective sample size reaches ``ess_min``, with nothing noted against."""
    notes: tuple[str, ...]


class Evaluated(NamedTuple):
    """Features of outcomes, contexts flattened to one axis."""

    names: list[str]
    means: np.ndarray
    features: np.ndarray
    """(n, C, K)"""
    log_weights: np.ndarray
    """(n, C)"""
    shape: tuple[int, ...]
    """Of the contexts."""


def report(
    target: Target,
    sampled: Evaluated,
    points: Points,
    solved: Solved,
    influence: np.ndarray | None,
    labels: np.ndarray | None,
    ess_min: float,
    total_variation: Any = 0.0,
) -> MomentFit:
    """What a solution is worth. Influences (n, C, K) of the moments; None of an exact solution."""
    names, shape = sampled.names, sampled.shape
    mass = np.exp(solved.log_mass)
    covariance, notes = np.zeros((len(names),) * 2), []
    ess, pooled = np.full(mass.shape[1], math.inf), math.inf
    if influence is not None:
        covariance, units = clustered(influence * points.context_mass[:, None], labels)
        ess = 1 / (mass**2).sum(axis=0)
        pooled = 1 / float((points.context_mass**2 / ess).sum())
        if labels is not None:
            pooled = min(pooled, worth(np.diag(solved.hessian), np.diag(covariance)))
        notes = notes_on(ess, pooled, units, ess_min, total_variation)
    inside = solved.free.T @ solved.hessian @ solved.free
    inverse = solved.free @ np.linalg.pinv(inside, hermitian=True) @ solved.free.T
    means = np.einsum("nc,nck->ck", mass, points.features)
    by_name = lambda x: {name: float(v) for name, v in zip(names, x, strict=True)}
    multipliers = by_name(solved.multipliers)
    return MomentFit(
        with_multipliers(target, multipliers),
        multipliers,
        by_name(solved.moments),
        by_name(np.sqrt(np.maximum(np.diag(covariance), 0.0))),
        by_name(np.sqrt(np.maximum(np.diag(inverse @ covariance @ inverse), 0.0))),
        (means @ solved.multipliers - solved.log_z).reshape(shape),
        ess.reshape(shape),
        pooled,
        solved.iterations,
        not notes,
        tuple(notes),
    )


def clustered(influence: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Covariance of the sum of influences (n, C, K), and the least number of independent units."""
    n, contexts, k = influence.shape
    if labels is None:
        flat = influence.reshape(-1, k)
        return flat.T @ flat * (n / max(n - 1, 1)), float(n)
    covariance, least = np.zeros((k, k)), math.inf
    for c in range(contexts):
        _, index = np.unique(labels[:, c], return_inverse=True)
        units = int(index.max()) + 1
        sums = np.stack(
            [np.bincount(index, influence[:, c, j], minlength=units) for j in range(k)], axis=1
        )
        covariance += sums.T @ sums * (units / max(units - 1, 1))
        least = min(least, float(units))
    return covariance, least


def worth(variance: np.ndarray, squared_errors: np.ndarray) -> float:
    """Independent draws that would give dependent ones' standard errors of their means (K,)."""
    noisy = squared_errors > 0
    return float((variance[noisy] / squared_errors[noisy]).min(initial=math.inf))


def notes_on(
    ess: np.ndarray, pooled: float, units: float, ess_min: float, total_variation: Any
) -> list[str]:
    """What speaks against standard errors of weighted draws."""
    notes = []
    if too_far(total_variation, pooled).any():
        notes.append(
            f"the law of the outcomes is up to {np.max(total_variation):.2g} from its target in "
            "total variation (nan: unknown), which the standard errors leave out: give the sampler "
            "more work, or take one whose weights correct the rest (importance, smc)"
        )
    if pooled < ess_min:
        notes.append(
            f"effective sample size {pooled:.0f} < {ess_min:.0f}: the standard errors may be too "
            "small; draw more, or from the solved target (match_moments)"
        )
    if units < UNITS_MIN:
        notes.append(
            f"only {units:.0f} independent units in a context (at least {UNITS_MIN} are needed for "
            "a standard error): run more chains"
        )
    if (poor := int((ess < 2).sum())) and len(ess) > 1:
        notes.append(f"{poor} of {len(ess)} contexts have an effective sample size below 2")
    return notes
