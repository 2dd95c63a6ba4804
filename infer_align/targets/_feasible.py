r"""Which means can be reached, and why the others cannot: linear programs on the features.

Means μ can be reached iff μ lies in the average over contexts of the convex hulls of the features,
and by finite multipliers iff it lies in the relative interior.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from infer_align.targets._dual import Points

EPS = 2.0**-52
INSIDE = 1e-8
"""Least mass of an outcome, relative to an equal share, in the interior."""


def simple_faults(
    points: Points, names: Sequence[str], means: np.ndarray, outcomes: str
) -> list[str]:
    """What single features show: never or always there, out of range, or at its end."""
    kept = points.log_mass > -math.inf
    number = int(kept.sum())
    faults = []
    for k, name in enumerate(names):
        low, high = (
            float(points.context_mass @ end)
            for end in (
                np.where(kept, points.features[..., k], math.inf).min(axis=0),
                np.where(kept, points.features[..., k], -math.inf).max(axis=0),
            )
        )
        offset, mean = float(points.mean_offset[k]), float(means[k])
        # Of the range, and what rounding leaves of features and mean that share an offset.
        slack = 1e-12 * max(high - low, 1e-300) + 8 * EPS * max(abs(offset), abs(mean))
        low, high = low + offset, high + offset
        if abs(high - low) <= slack:
            if abs(mean - low) > slack:
                faults.append(_constant(name, low, mean, number, outcomes))
        elif not low - slack <= mean <= high + slack:
            faults.append(
                f"moment {name!r} shall be {mean:.6g}, and its feature runs from {low:.6g} to "
                f"{high:.6g} over the {number} {outcomes}"
            )
        elif min(mean - low, high - mean) <= slack:
            end = "greatest" if high - mean <= slack else "least"
            more = "" if outcomes == "outcomes" else ", or draw more"
            faults.append(
                f"moment {name!r} shall be {mean:.6g}, the {end} value of its feature over the "
                f"{number} {outcomes}: only those that have it remain, and its multiplier would "
                f"diverge; condition on it instead: condition(base, feature == value){more}"
            )
    return faults


def _constant(name: str, value: float, mean: float, number: int, outcomes: str) -> str:
    if value == 0:
        remedy = "draw more, from a proposal that produces it, or correct the feature"
        return (
            f"moment {name!r} shall be {mean:.6g}, and its feature never occurs: it is 0 in all "
            f"{number} {outcomes}; {'correct the feature' if outcomes == 'outcomes' else remedy}"
        )
    return (
        f"moment {name!r} shall be {mean:.6g}, and its feature is {value:.6g} in all {number} "
        f"{outcomes}, so no multiplier changes it"
    )


def joint_fault(points: Points, names: Sequence[str], means: np.ndarray) -> str | None:
    """The smallest set of moments found that contradict each other, or meet the hull's edge."""
    given, means = means, means - points.mean_offset
    rows = [_distinct(points, c) for c in range(points.features.shape[1])]

    def room(chosen: Sequence[int]) -> float | None:
        return _room([r[:, list(chosen)] for r in rows], points.context_mass, means[list(chosen)])

    def wanted_of(chosen: Sequence[int]) -> str:
        return ", ".join(f"{names[k]} = {given[k]:.6g}" for k in chosen)

    every = list(range(len(names)))
    if room(every) is None:
        core = _smallest(every, lambda chosen: room(chosen) is None)
        wanted = wanted_of(core)
        them = "both" if len(core) == 2 else "all of them"
        return (
            f"the moments {wanted} contradict each other: no reweighting of the outcomes has "
            f"{them}, though fewer can be had; relax one"
        )

    def at_edge(chosen: Sequence[int]) -> bool:
        found = room(chosen)
        return found is not None and found <= INSIDE

    if at_edge(every):
        core = _smallest(every, at_edge)
        wanted = wanted_of(core)
        return (
            f"the moments {wanted} can only be had together if some accepted outcomes get "
            "probability 0, so their multipliers would diverge; condition on those outcomes "
            "instead: condition(base, ...), or relax one of the means"
        )
    return None


def _smallest(chosen: list[int], still: Callable[[Sequence[int]], bool]) -> list[int]:
    """Leave out one after the other while the fault stays."""
    for k in list(chosen):
        without = [j for j in chosen if j != k]
        if without and still(without):
            chosen = without
    return chosen


def _distinct(points: Points, context: int) -> np.ndarray:
    kept = points.log_mass[:, context] > -math.inf
    return np.unique(points.features[kept, context], axis=0)


def _room(rows: list[np.ndarray], context_mass: np.ndarray, means: np.ndarray) -> float | None:
    """Largest t with all masses at least t times an equal share; None if the means are not met."""
    from scipy.optimize import linprog
    from scipy.sparse import block_diag, csr_array, hstack, vstack

    varies = np.max([np.abs(r - r[0]).max(axis=0) for r in rows], axis=0)
    scale = np.where(varies > 0, varies, 1.0)
    # Masses in units of an equal share are variable + t: the last column is that of t.
    shares = [a / len(r) * ((r - r[0]) / scale).T for a, r in zip(context_mass, rows, strict=True)]
    features = np.concatenate(shares, axis=1)
    features = np.concatenate([features, features.sum(axis=1, keepdims=True)], axis=1)
    ones = block_diag([np.full((1, len(r)), 1 / len(r)) for r in rows])
    ones = hstack([ones, csr_array(np.ones((len(rows), 1)))])
    offset = sum(a * r[0] for a, r in zip(context_mass, rows, strict=True))
    cost = np.zeros(features.shape[1])
    cost[-1] = -1.0
    found = linprog(
        cost,
        A_eq=vstack([csr_array(features), ones]).tocsr(),
        b_eq=np.concatenate([(means - offset) / scale, np.ones(len(rows))]),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.status == 2:
        return None
    return float(found.x[-1]) if found.status == 0 else math.nan
