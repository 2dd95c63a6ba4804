"""Moment constraints: `moment_match` declares them, `solve_moments` finds their multipliers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from infer_align._arguments import instance, positive, real
from infer_align._numerics import Array, as_real, concrete, normalised, own
from infer_align.targets._combinators import extend
from infer_align.targets._declared import (
    Constrained,
    Moment,
    Values,
    as_moments,
    check_names,
    constrained_of,
    with_multipliers,
)
from infer_align.targets._dual import Points, Solved, by_scipy, is_far, newton
from infer_align.targets._feasible import joint_fault, simple_faults
from infer_align.targets._moment_fit import ESS_MIN, Evaluated, MomentFit, report
from infer_align.targets._target import Target
from infer_align.targets._weighted import WeightedSample


def moment_match(
    base: Any,
    moments: Mapping[str, tuple[Any, float | int]] | Sequence[Moment] | None = None,
    *,
    multipliers: Mapping[str, float] | None = None,
) -> Target:
    r"""Generation with distributional control: the nearest law that has the desired means.

    .. math:: P(y|x) = \mathrm{base}(y|x)\, e^{\sum_k λ_k φ_k(y, x)}, \qquad
              \sum_x a_x E_{p(·|x)}[φ_k] = μ_k

    Of all laws with these moments it has the least KL to the base (Khalifa et al. 2021, arXiv
    2012.11635). Contexts share λ and each has its own Z (Korbak et al. 2022, arXiv 2112.00791).

    Parameters
    ----------
    base : Distribution, callable or Target
        What is constrained. Moments that it declares itself and that are not solved are solved
        together with these.
    moments : mapping from name to (feature, mean), or sequence of Moment
        Feature: ``(y, *contexts) -> (n, *contexts)``, finite numbers or booleans. None: those that
        the base declares.
    multipliers : mapping from name to float, optional
        λ, if it is known. None: the target is a declaration, whose density is not known, and
        ``provides`` nothing until it is solved.

    Returns
    -------
    Target

    Raises
    ------
    ValueError
        Without moments; for a mean that is not finite, or multipliers of other names. When an
        unsolved target's density is evaluated, or something is composed on top of it.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import exact, moment_match
    >>> prior = dist.Categorical(jnp.array([0.5, 0.3, 0.2]))
    >>> target = moment_match(prior, {"last": (lambda y: y == 2, 0.4)})
    >>> fit = exact.match_moments(target)
    >>> [round(float(p), 4) for p in exact.solve(fit.target).law]
    [-0.9808, -1.4917, -0.9163]
    """
    found = as_moments(moments or ())
    inner = isinstance(base, Target) and isinstance(base.log_potential, Constrained)
    if inner and base.log_potential.multipliers is not None:
        inner = False
    if not found and not inner:
        raise ValueError('moment_match needs at least one moment: {"name": (feature, mean)}')
    target = _constrain(base, found, inner=inner) if found else base
    target = replace(target, provides=frozenset())
    if multipliers is None:
        return target
    if not inner:
        check_names(target.name, multipliers, [one.name for one in found])
    return with_multipliers(target, multipliers)


def _constrain(base: Any, moments: tuple[Moment, ...], *, inner: bool) -> Target:
    outer = base.log_potential.terms if inner else _potential_only(base)
    name = f"moment_match({base.name})" if isinstance(base, Target) else "moment_match"

    def values(y: Any, contexts: tuple[Any, ...]) -> Values:
        return {one.name: (one.feature(own(y), *contexts), float(one.mean)) for one in moments}

    def terms(y: Any, *contexts: Any) -> tuple[Array | None, Values]:
        potential, declared = outer(y, *contexts)
        added = values(y, contexts)
        if twice := set(declared) & set(added):
            raise ValueError(f"moments {sorted(twice)} of target {name!r} are declared twice")
        return potential, declared | added

    constrained = Constrained(terms, name)
    if inner:
        return replace(base, log_potential=constrained, name=name, factors=(), log_bound=None)
    part = Constrained(lambda y, *contexts: (None, values(y, contexts)), name)
    extended = extend(base, part, "moment_match")
    spread = base.log_potential_se if isinstance(base, Target) else None
    return replace(extended, log_potential=constrained, name=name, log_potential_se=spread)


def _potential_only(base: Any) -> Any:
    if not isinstance(base, Target):
        return lambda y, *contexts: (None, {})
    return lambda y, *contexts: (base.log_potential(y, *contexts), {})


def solve_moments(
    target: Target,
    sample: WeightedSample,
    *contexts: Any,
    context_weights: Sequence[float] | np.ndarray | None = None,
    tolerance: float = 1e-10,
    ess_min: float | int = ESS_MIN,
) -> MomentFit:
    r"""Multipliers of a target's moments, on weighted outcomes of its base.

    They minimise the convex dual :math:`\sum_x a_x \log Z_λ(x) - λ·μ` by Newton's method. Every
    feature is evaluated once. The sample's noise moves λ, and with it the true moments of the
    solved target, by

    .. math:: se_k^2 = \sum_x a_x^2 \sum_i p_{ix}^2 (φ_{ikx} - E_{p_x}[φ_k])^2

    to first order (delta method; normalisation included), where p are the solved weights; draws of
    one cluster are added up before they are squared.

    Parameters
    ----------
    target : Target
        From `moment_match`, or from a program with `moment`.
    sample : WeightedSample
        Of the base, that is of ``targets.unconstrained(target)``: drawn from it, or from any
        proposal with importance weights.
    *contexts
        Of the sample.
    context_weights : array, shape (*contexts), optional
        a, up to a constant. None: all equal.
    tolerance : float
        Largest miss of a moment, relative to the feature's range.
    ess_min : float
        Effective draws below which the fit is not called reliable.

    Returns
    -------
    MomentFit

    Raises
    ------
    ValueError
        If the means cannot be had, and why: a feature that never occurs, a mean outside of its
        range or at its end, moments that contradict each other. If a context has no accepted draw,
        or a feature is not finite.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, numpyro.distributions as dist
    >>> from infer_align import WeightedSample, moment_match, solve_moments
    >>> prior = dist.Categorical(jnp.array([0.5, 0.3, 0.2]))
    >>> target = moment_match(prior, {"last": (lambda y: y == 2, 0.4)})
    >>> y, equal = prior.sample(jax.random.key(0), (4000,)), np.zeros(4000)
    >>> fit = solve_moments(target, WeightedSample(y, equal, equal))
    >>> round(fit.achieved["last"], 6), 0.005 < fit.standard_errors["last"] < 0.02, fit.reliable
    (0.4, True, True)
    """
    instance("sample", sample, WeightedSample, "samplers.importance(source, n)")
    sampled = evaluate(target, sample.outcomes, contexts, np.asarray(sample.log_weights, float))
    points = as_points(target.name, sampled, context_weights, "accepted draws")
    solved = solve(points, sampled.names, sampled.means, tolerance, "accepted draws")
    mass = np.exp(solved.log_mass)
    centre = np.einsum("nc,nck->ck", mass, points.features)
    influence = mass[..., None] * (points.features - centre)
    labels = None if sample.cluster is None else flat(np.asarray(sample.cluster))
    distance = sample.total_variation
    least = real("ess_min", ess_min)
    return report(target, sampled, points, solved, influence, labels, least, distance)


def exact_moments(
    target: Target,
    outcomes: Any,
    contexts: tuple[Any, ...],
    log_density: np.ndarray,
    context_weights: Any,
    tolerance: float,
) -> MomentFit:
    """The fit on all outcomes of a base, given its log-density: what `exact` builds on."""
    sampled = evaluate(target, outcomes, contexts, log_density)
    points = as_points(target.name, sampled, context_weights, "outcomes")
    solved = solve(points, sampled.names, sampled.means, tolerance, "outcomes")
    return report(target, sampled, points, solved, None, None, 0.0)


def flat(x: np.ndarray) -> np.ndarray:
    """(n, *contexts) as (n, C)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def evaluate(
    target: Target, outcomes: Any, contexts: tuple[Any, ...], log_weights: np.ndarray
) -> Evaluated:
    """Evaluate a target's features once, and check what they are."""
    _, values = constrained_of(target).terms(outcomes, *contexts)
    if not values:
        raise ValueError(
            f"program {target.name!r} declares no moments; call infer_align.moment(name, values, "
            "mean) in it, or use moment_match(target, {name: (feature, mean)})"
        )
    columns = []
    for name, (value, _) in values.items():
        known = concrete(as_real(value, f"the feature of moment {name!r}"))
        if known is None:
            raise ValueError("moments are solved in NumPy, outside jax.jit and other transforms")
        if known.shape != log_weights.shape:
            raise ValueError(
                f"the feature of moment {name!r} has shape {tuple(known.shape)} and the sample's "
                f"weights {log_weights.shape}; it must be (n, *contexts), one number an outcome: "
                "reduce over the token axis with .sum(-1), .mean(-1) or .any(-1)"
            )
        columns.append(flat(known.astype(np.float64)))
    features = np.stack(columns, axis=-1)
    kept = flat(log_weights) > -math.inf
    features = np.where(kept[..., None], features, 0.0)
    names = list(values)
    bad = [n for k, n in enumerate(names) if not np.isfinite(features[..., k]).all()]
    if bad:
        raise ValueError(
            f"the features of the moments {', '.join(bad)} are not finite on accepted outcomes; a "
            "moment needs finite numbers (a hard constraint belongs into condition or a factor)"
        )
    means = np.array([mean for _, mean in values.values()], dtype=np.float64)
    return Evaluated(names, means, features, flat(log_weights), log_weights.shape[1:])


def as_points(name: str, sampled: Evaluated, context_weights: Any, outcomes: str) -> Points:
    """Normalise the masses; refuse contexts without an accepted outcome."""
    log_weights = sampled.log_weights
    if np.isnan(log_weights).any() or (log_weights == math.inf).any():
        raise ValueError("log-weights must be numbers or -inf, got NaN or +inf")
    if not len(log_weights):
        raise ValueError(
            f"the sample of target {name!r} is empty: its weights have shape "
            f"{(0, *sampled.shape)}; draw at least one outcome a context"
        )
    top = log_weights.max(axis=0)
    if (top == -math.inf).any():
        raise ValueError(
            f"there are no {outcomes} of target {name!r} in {int((top == -math.inf).sum())} of "
            f"{len(top)} contexts; relax its hard constraint, draw more, or use a proposal that "
            "meets it"
        )
    log_mass, _ = normalised(log_weights)
    mass = np.exp(log_mass)[..., None]
    # In two steps: the first mean is as far off as rounding takes a feature's largest value.
    first = (mass * sampled.features).sum(axis=0)
    offset = first + (mass * (sampled.features - first)).sum(axis=0)
    kept = (log_mass > -math.inf)[..., None]
    features = np.where(kept, sampled.features - offset, 0.0)
    return Points(log_mass, features, _context_mass(context_weights, sampled.shape), offset)


def _context_mass(weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    number = math.prod(shape)
    if weights is None:
        return np.full(number, 1 / number)
    given = np.asarray(concrete(weights) if is_array_api_obj(weights) else weights)
    if given.dtype.kind not in "iuf":
        raise TypeError(
            f"context_weights must be positive numbers, of the contexts' shape {shape}; got "
            f"{weights!r}"
        )
    given = given.astype(np.float64)
    if given.shape != shape or not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(
            f"context_weights must be positive, of the contexts' shape {shape}; got shape "
            f"{given.shape}"
        )
    return given.ravel() / given.sum()


def solve(
    points: Points, names: Sequence[str], means: np.ndarray, tolerance: float, outcomes: str
) -> Solved:
    """Solve the dual, or say why it has no solution."""
    positive("tolerance", tolerance)
    if faults := simple_faults(points, names, means, outcomes):
        raise ValueError("; ".join(faults))
    means = means - points.mean_offset
    solved = newton(points, means, tolerance)
    if solved is not None and not is_far(solved, points):
        return solved
    if fault := joint_fault(points, names, means + points.mean_offset):
        raise ValueError(f"over the {outcomes}, {fault}")
    solved = solved or by_scipy(points, means, tolerance)
    if solved is None:
        raise ValueError(
            f"the multipliers of {', '.join(names)} were not found to {tolerance:g}, though the "
            "means can be had; move them from the edge of what is possible, draw more outcomes, or "
            "raise the tolerance"
        )
    return solved
