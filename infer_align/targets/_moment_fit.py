"""`MomentFit`: solved moments, and how well they are known."""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align._reliability import ESS_LIMIT, KHAT_LIMIT, Worth, too_far, worth
from infer_align.targets._declared import with_multipliers
from infer_align.targets._dual import Points, Solved
from infer_align.targets._target import Target

ESS_MIN = ESS_LIMIT
UNITS_MIN = 10
BIAS_SHARE = 0.25
"""Largest share of its standard error that the bias of a mean over contexts may have."""
Z = 1.96


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
    """Whether the standard errors are claimed, by the rule of `diagnostics.assess`: of the weights
    under the solved target, in every context, the expected ESS is at least ``ess_min`` with 95%
    confidence, and k̂ < 0.5; and nothing else is noted against it."""
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
        weighed = influence * points.context_mass[:, None]
        covariance, units = clustered(weighed, labels)
        ess = 1 / (mass**2).sum(axis=0)
        pooled = 1 / float((points.context_mass**2 / ess).sum())
        if labels is not None:
            pooled = min(pooled, worth_of(np.diag(solved.hessian), np.diag(covariance)))
        inverse = np.linalg.pinv(solved.hessian, hermitian=True)
        kind = unit_worth(solved.log_mass, points.features, -weighed @ inverse, labels)
        wider = selection(weighed, labels, kind, ess_min)
        covariance = covariance * wider[:, None] * wider
        notes = notes_on(kind, pooled, units, ess_min, total_variation)
        notes += bias_notes(weighed, mass, np.diag(covariance))
    inside = solved.free.T @ solved.hessian @ solved.free
    inverse = solved.free @ np.linalg.pinv(inside, hermitian=True) @ solved.free.T
    means = np.einsum("nc,nck->ck", mass, points.features)
    by_name = lambda x: {name: float(v) for name, v in zip(names, x, strict=True)}
    multipliers = by_name(solved.multipliers)
    return MomentFit(
        with_multipliers(target, multipliers),
        multipliers,
        by_name(solved.moments + points.mean_offset),
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


def worth_of(variance: np.ndarray, squared_errors: np.ndarray) -> float:
    """Independent draws that would give dependent ones' standard errors of their means (K,)."""
    noisy = squared_errors > 0
    return float((variance[noisy] / squared_errors[noisy]).min(initial=math.inf))


def unit_worth(
    log_mass: np.ndarray, features: np.ndarray, moved: np.ndarray, labels: np.ndarray | None
) -> Worth:
    """What masses (n, C) are worth whose multipliers of features (n, C, K) the draws have solved.

    ``moved`` (n, C, K) are the draws' influences on the multipliers. Dependent draws are summed.
    """
    mass = np.exp(log_mass)
    if labels is not None:
        totals = by_unit(np.concatenate([mass[..., None], moved, mass[..., None] * features], -1),
                         labels)  # fmt: skip
        k = moved.shape[-1]
        mass, moved, features = totals[..., 0], totals[..., 1 : 1 + k], totals[..., 1 + k :]
        features = features / np.where(mass > 0, mass, 1.0)[..., None]
    with np.errstate(divide="ignore"):
        kind = worth(np.log(mass))
    squares = mass**2 / (mass**2).sum(axis=0)
    centred = features - np.einsum("nc,nck->ck", mass, features)
    slope = -2 * np.einsum("nc,nck->ck", squares, centred)
    own = (moved * slope).sum(axis=-1)
    every = np.einsum("nck,ncl->kl", moved, moved)
    others = np.einsum("ck,kl,cl->c", slope, every, slope) - (own**2).sum(axis=0)
    return kind.solved(len(mass) * own, np.maximum(others, 0.0))


def by_unit(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sums (units, C, K) of values (n, C, K) within units; contexts with fewer have rows of 0."""
    _, contexts, k = values.shape
    index = np.stack([np.unique(column, return_inverse=True)[1] for column in labels.T], axis=1)
    out = np.zeros((int(index.max()) + 1, contexts, k))
    np.add.at(out, (index, np.arange(contexts)), values)
    return out


def selection(
    influence: np.ndarray, labels: np.ndarray | None, kind: Worth, ess_min: float
) -> np.ndarray:
    """By how much a claim's standard errors (K,) grow for being a claim, see `Worth.selects`."""
    units = influence if labels is None else by_unit(influence, labels)
    square = (units**2).sum(axis=0)
    sides = [kind.selects(x, (x**3).sum(axis=0), Z, ess_min) for x in np.moveaxis(units, -1, 0)]
    longer = np.stack([np.maximum(*ends) for ends in sides], axis=-1)  # (C, K), in their own errors
    total = np.sqrt(square.sum(axis=0))
    whole = np.sqrt((longer**2 * square).sum(axis=0))  # as the pooled intervals of diagnostics
    return 1 + whole / np.where(total > 0, total, 1.0) / Z


def bias_notes(influence: np.ndarray, mass: np.ndarray, variance: np.ndarray) -> list[str]:
    """Self-normalised means are off by −Σ p_i² (h_i − h̄) in each context, which adds up."""
    bias = np.abs((influence * mass[..., None]).sum(axis=(0, 1)))
    if (bias <= BIAS_SHARE * np.sqrt(variance)).all():
        return []
    return [
        f"the bias of self-normalised weights, in {mass.shape[1]} contexts of {len(mass)} draws, "
        "is not small beside the standard errors: draw more in each context"
    ]


def notes_on(
    kind: Worth, pooled: float, units: float, ess_min: float, total_variation: Any
) -> list[str]:
    """What speaks against standard errors of weighted draws, by `Worth.bears`."""
    notes = []
    if too_far(total_variation, pooled).any():
        notes.append(
            f"the law of the outcomes is up to {np.max(total_variation):.2g} from its target in "
            "total variation (nan: unknown), which the standard errors leave out: give the sampler "
            "more work, or take one whose weights correct the rest (importance, smc)"
        )
    if pooled < ess_min or not (kind.least >= ess_min).all():
        notes.append(
            f"effective sample size {pooled:.0f}, of a context {kind.ess.min():.0f}, and at least "
            f"{kind.least.min():.0f} < {ess_min:.0f} with 95% confidence: the standard errors may "
            "be too small; draw more in each context, or from the solved target (match_moments)"
        )
    if not (kind.khat < KHAT_LIMIT).all():
        notes.append(
            f"the weights have a heavy tail (Pareto k-hat up to {kind.khat.max():.2f}, standard "
            f"errors hold below {KHAT_LIMIT}): draw from the solved target (match_moments)"
        )
    if units < UNITS_MIN:
        notes.append(
            f"only {units:.0f} independent units in a context (at least {UNITS_MIN} are needed for "
            "a standard error): run more chains"
        )
    return notes
