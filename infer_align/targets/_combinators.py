"""Combinators that multiply a base by a potential: tilt, condition, product."""

import math
from typing import Any

from infer_align._numerics import Array
from infer_align.targets._target import (
    HasLogProb,
    LogPotential,
    Target,
    add_potential,
    indicator,
)


def tilt(base: Any, reward: LogPotential, beta: float) -> Target:
    """Exponential tilt, P = base·exp(reward/beta): the KL-regularised posterior.

    It maximises E[reward] − beta·KL(π‖base) (Korbak et al. 2022, arXiv 2205.11275).

    Parameters
    ----------
    base : Distribution, callable or Target
        What is tilted.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    beta : float
        Temperature, > 0, in the units of the reward.

    Raises
    ------
    ValueError
        If beta is not a positive finite number.
    """
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(
            f"beta is a temperature (P = prior·exp(reward/beta)) and must be positive and finite, "
            f"got {beta}; for no tilt leave the reward out"
        )
    return extend(base, lambda y, *contexts: reward(y, *contexts) / beta, "tilt")


def condition(base: Any, accepts: LogPotential) -> Target:
    """The base restricted to the outcomes that are accepted: P = base·1[accepts].

    Parameters
    ----------
    base : Distribution, callable or Target
        What is conditioned.
    accepts : callable
        ``(y, *contexts) -> boolean (n, *contexts)``.
    """
    return extend(base, lambda y, *contexts: indicator(accepts(y, *contexts)), "condition")


def product(base: Any, *factors: Any) -> Target:
    """Product of experts: the base times further targets, distributions or potentials.

    Parameters
    ----------
    base : Distribution, callable or Target
        Its prior is the product's prior.
    *factors : Target, Distribution or callable
        A target multiplies in its log-density, a distribution its log-prob, a callable
        ``(y, *contexts) -> (n, *contexts)`` its value as a log-potential.

    Raises
    ------
    ValueError
        Without a factor.
    """
    if not factors:
        raise ValueError("product needs at least one factor beside the base, got none")
    target = base
    for factor in factors:
        target = extend(target, _as_potential(factor), "product")
    return target


def _as_potential(factor: Any) -> LogPotential:
    if isinstance(factor, Target):
        return factor.log_density
    if isinstance(factor, HasLogProb):
        return lambda y, *contexts: factor.log_prob(y)
    return factor


def extend(base: Any, potential: LogPotential, name: str) -> Target:
    """A target with one more potential."""
    if not isinstance(base, Target):
        return Target(base, potential, name, (potential,))

    def both(y: Any, *contexts: Any) -> Array:
        return add_potential(base.log_potential(y, *contexts), potential(y, *contexts), name)

    factors = (*(base.factors or (base.log_potential,)), potential)
    return Target(base.prior, both, f"{name}({base.name})", factors)
