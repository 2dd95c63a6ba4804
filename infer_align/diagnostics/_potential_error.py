r"""What the error of an estimated potential does to the estimates that rest on the target.

With δ_i the error of log P(y_i), of standard error se_i, an estimate moves by

.. math:: dθ = \frac1n \sum_i s_i δ_i, \qquad |dθ| \text{ has standard deviation at most }
          \frac1n \sum_i |s_i|\, se_i,

attained where all δ_i are one and the same number in units of se_i. So it is added whatever the
errors' correlation: they come from one estimate, a cdf for instance, and do not average out.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from infer_align._numerics import logmeanexp, mean_under
from infer_align.diagnostics._draws import Draws
from infer_align.divergences import FDivergence


def potential_errors(
    draws: Draws, divergences: Sequence[FDivergence], log_target_se: np.ndarray
) -> dict[str, np.ndarray]:
    """Largest standard deviation that the potential's error gives each estimate, (contexts,)."""
    log_v, log_w = draws.log_policy_weight, draws.log_target_weight
    log_z = logmeanexp(log_w)
    accepted = log_z > -math.inf
    log_a = log_v - logmeanexp(log_v)
    log_b = log_w - np.where(accepted, log_z, 0.0)
    a, b = np.exp(log_a), np.exp(log_b)
    se = np.where(b > 0, log_target_se, 0.0)
    slopes = {"log_z": b}
    for divergence in divergences:
        of_term = _slope(divergence, log_a, log_b, a, b)
        slopes[divergence.name] = of_term - b * of_term.mean(axis=0)
    for name, values in draws.features.items():
        h = np.where(b > 0, values, 0.0)
        slopes[f"target_{name}"] = b * (h - mean_under(b / len(b), h))
    return {name: (np.abs(s) * se).mean(axis=0) for name, s in slopes.items()}


def _slope(
    divergence: FDivergence, log_a: np.ndarray, log_b: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """d[b f(a/b)]/d log b = b f(t) − a f'(t)."""
    both = (a > 0) & (b > 0)
    log_t = np.where(both, np.where(both, log_a, 0.0) - np.where(both, log_b, 0.0), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        low = b * divergence.f(np.minimum(log_t, 0.0))
        high = a * divergence.f_dual(np.minimum(-log_t, 0.0))
        slope = np.where(log_t > 0, high, low) - a * divergence.f_prime(log_t)
    price = divergence.f_at_zero
    missed = b * price if math.isfinite(price) else np.zeros_like(b)  # the value is inf already
    slope = np.where(both, slope, np.where(a > 0, 0.0, missed))
    return np.where(np.isfinite(slope), slope, 0.0)


def widen(
    rows: np.ndarray, error: np.ndarray, bounds: tuple[float, float], level: float
) -> np.ndarray:
    """Rows (value, se, low, high, reliable) with the error added to se and to both ends."""
    value, se, low, high, reliable = rows
    known = np.isfinite(value) & np.isfinite(se)
    total = np.hypot(np.where(known, se, 0.0), np.where(known, error, 0.0))
    more = NormalDist().inv_cdf(0.5 + level / 2) * (total - np.where(known, se, 0.0))
    low, high = np.clip(low - more, *bounds), np.clip(high + more, *bounds)
    return np.stack([value, np.where(known, total, se), low, high, reliable])


def widened(
    by_context: dict[str, np.ndarray],
    pooled: Mapping[str, Sequence[Any]],
    errors: dict[str, np.ndarray],
    bounds: Mapping[str, tuple[float, float]],
    level: float,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """The intervals of what rests on the target, widened, per context and pooled; and a note.

    Contexts may share the estimate behind their potentials, so their errors are pooled as one.
    """
    contexts, whole = {}, {}
    for name, error in errors.items():
        contexts[name] = widen(by_context[name], error, bounds[name], level)
        one = np.array(pooled[name], dtype=float)[:, None]
        whole[name] = widen(one, error.mean(keepdims=True), bounds[name], level)[:, 0]
    note = (
        "the target's potential is estimated: its error moves log_z by up to "
        f"{errors['log_z'].mean():.2g} (one standard error), and the intervals of all that rests "
        "on the target are widened accordingly. More draws of the policy do not help; more "
        "samples behind the potential do."
    )
    return contexts, whole, note
