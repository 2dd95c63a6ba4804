r"""The convex dual of moment matching, in NumPy, on weighted outcomes of the base.

.. math:: D(λ) = \sum_x a_x \log \sum_i w_{ix} e^{λ·φ_{ix}} - λ·μ

Its gradient is the moments less μ, its Hessian the covariance of the features within contexts, so
Newton's method needs a few steps whatever the number of outcomes.
"""

import math
from typing import NamedTuple

import numpy as np

from infer_align._numerics import normalised

FAR = 15.0
"""|λ_k| times the range of φ_k from where on the mean may be out of reach, and is checked."""
FARTHEST = 200.0
"""The same from where on no mean in the interior is expected: the search gives up."""
STEPS = 100


class Points(NamedTuple):
    """Features of the outcomes, and their masses under the base."""

    log_mass: np.ndarray
    """(n, C): normalised in each context, -inf for what the base rejects."""
    features: np.ndarray
    """(n, C, K): less their offsets; 0 where rejected."""
    context_mass: np.ndarray
    """(C,): a, summing to one."""
    offset: np.ndarray
    """(C, K): mean of each feature under the base."""

    @property
    def mean_offset(self) -> np.ndarray:
        """Of the average over contexts, (K,): what a mean of the features is above that here."""
        return self.context_mass @ self.offset


class Solved(NamedTuple):
    """λ, and where it was reached."""

    multipliers: np.ndarray
    """(K,): of all that reach the means, the shortest."""
    log_mass: np.ndarray
    """(n, C): log p_λ of the outcomes, normalised."""
    log_z: np.ndarray
    """(C,): log Z_λ of the normalised base, of the features without their offsets."""
    moments: np.ndarray
    """(K,): of the features without their offsets."""
    hessian: np.ndarray
    """(K, K): mean covariance within contexts."""
    iterations: int
    free: np.ndarray
    """(K, r): orthonormal directions of λ that change the law."""


def tilted(points: Points, multipliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-masses (n, C) under p_λ, and log Z_λ (C,)."""
    return normalised(points.log_mass + points.features @ multipliers)


def free_directions(points: Points) -> np.ndarray:
    """Orthonormal basis (K, r) of the multipliers that change the law.

    The others belong to combinations of features that are constant in each context.
    """
    kept = points.log_mass > -math.inf
    first = kept.argmax(axis=0)
    offset = points.features[first, np.arange(len(first))]
    centred = np.where(kept[..., None], points.features - offset, 0.0)
    rows = centred.reshape(-1, centred.shape[-1])
    scale = np.abs(rows).max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    gram = (rows / scale).T @ (rows / scale)
    values, vectors = np.linalg.eigh(gram)
    constant = vectors[:, values <= 1e-12 * max(values[-1], 1e-300)] / scale[:, None]
    if not constant.shape[1]:
        return np.eye(len(scale))
    left, _, _ = np.linalg.svd(constant, full_matrices=True)
    return left[:, constant.shape[1] :]


def newton(points: Points, means: np.ndarray, tolerance: float) -> Solved | None:
    """Minimise the dual by damped Newton steps; None where it does not get there."""
    free = free_directions(points)
    reduced = points._replace(features=points.features @ free)
    spread = np.array([_range(points, k) for k in range(len(means))])
    allowed = tolerance * np.maximum(np.maximum(spread, np.abs(means)), 1e-300)
    theta, iterations = np.zeros(free.shape[1]), 0
    state = _state(reduced, points, free, theta, means)
    while True:
        value, gap, hessian, log_mass, log_z, moments = state
        if (np.abs(moments - means) <= allowed).all():
            break
        if iterations == STEPS:
            return None
        step = _step(hessian, gap)
        size, decrement = 1.0, float(gap @ step)
        iterations += 1
        while size > 1e-12:
            moved = theta - size * step
            if np.abs(free @ moved * spread).max(initial=0.0) < FARTHEST:
                state = _state(reduced, points, free, moved, means)
                # Near the optimum the value is flat to rounding: then the gradient decides.
                lower = state[0] <= value - 1e-4 * size * decrement
                nearer = np.abs(state[1]).max(initial=0) < np.abs(gap).max(initial=0)
                if lower or (nearer and abs(decrement) < 1e-6 * (1 + abs(value))):
                    break
            size /= 2
        else:
            return None
        theta = moved
    full = _covariance(points, log_mass)
    return Solved(free @ theta, log_mass, log_z, moments, full, iterations, free)


def by_scipy(points: Points, means: np.ndarray, tolerance: float) -> Solved | None:
    """The same by scipy's trust region, then Newton steps from there."""
    from scipy.optimize import minimize

    free = free_directions(points)
    reduced = points._replace(features=points.features @ free)

    def value(theta: np.ndarray) -> float:
        return _state(reduced, points, free, theta, means)[0]

    def slope(theta: np.ndarray) -> np.ndarray:
        return _state(reduced, points, free, theta, means)[1]

    def curvature(theta: np.ndarray) -> np.ndarray:
        return _state(reduced, points, free, theta, means)[2]

    start = np.zeros(free.shape[1])
    found = minimize(value, start, jac=slope, method="L-BFGS-B", options={"maxiter": 1000}).x
    found = minimize(
        value, found, jac=slope, hess=curvature, method="trust-exact",
        options={"gtol": tolerance / 10, "maxiter": 1000},
    )  # fmt: skip
    _, _, _, log_mass, log_z, moments = _state(reduced, points, free, found.x, means)
    spread = np.array([_range(points, k) for k in range(len(means))])
    if (np.abs(moments - means) > 100 * tolerance * np.maximum(spread, np.abs(means))).any():
        return None
    full = _covariance(points, log_mass)
    return Solved(free @ found.x, log_mass, log_z, moments, full, int(found.nit), free)


def _range(points: Points, k: int) -> float:
    kept = points.features[..., k][points.log_mass > -math.inf]
    return float(kept.max() - kept.min())


def _state(
    reduced: Points, points: Points, free: np.ndarray, theta: np.ndarray, means: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    log_mass, log_z = tilted(reduced, theta)
    mass = np.exp(log_mass) * points.context_mass
    moments = np.einsum("nc,nck->k", mass, points.features)
    value = float(points.context_mass @ log_z - theta @ (free.T @ means))
    gap = free.T @ (moments - means)
    return value, gap, _covariance(reduced, log_mass), log_mass, log_z, moments


def _covariance(points: Points, log_mass: np.ndarray) -> np.ndarray:
    mass = np.exp(log_mass)
    centre = np.einsum("nc,nck->ck", mass, points.features)
    off = points.features - centre
    # Masses of 0 belong to features that were set to 0.
    weighted = (mass * points.context_mass)[..., None] * off
    return np.einsum("nck,ncl->kl", weighted, off)


def _step(hessian: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Newton's step, with a ridge where the covariance is all but singular."""
    scale = np.sqrt(np.maximum(np.diag(hessian), 1e-200))
    unit = hessian / scale / scale[:, None]
    ridge = 1e-14
    while ridge < 1e6:
        try:
            factor = np.linalg.cholesky(unit + ridge * np.eye(len(scale)))
            half = np.linalg.solve(factor, gap / scale)
            return np.linalg.solve(factor.T, half) / scale
        except np.linalg.LinAlgError:
            ridge *= 100
    return gap


def is_far(solved: Solved, points: Points) -> bool:
    """Whether a multiplier is so large that its mean may not be reached at any finite one."""
    reach = [abs(m) * _range(points, k) for k, m in enumerate(solved.multipliers)]
    return bool(max(reach, default=0.0) > FAR)
