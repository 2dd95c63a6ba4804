"""Combinators that multiply a base by a potential: tilt, condition, product."""

from collections.abc import Sequence
from typing import Any

from infer_align import _supports
from infer_align._arguments import function, number, positive
from infer_align._numerics import Array
from infer_align.targets._capabilities import check_provides
from infer_align.targets._target import (
    LOG_DENSITY,
    TAKES,
    HasLogProb,
    LogPotential,
    Target,
    add_potential,
    indicator,
)


def tilt(
    base: Any, reward: LogPotential, beta: float | int, *, max_reward: float | int | None = None
) -> Target:
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
    max_reward : float, optional
        The largest reward there is, if it is known (1 of a probability): `Target.log_bound`.

    Raises
    ------
    ValueError
        If beta is not a positive finite number, or max_reward is not finite.
    """
    check_beta(beta)
    function("reward", reward, TAKES)
    if max_reward is not None:
        need = "the largest reward there is, a finite number (leave it out where none is known)"
        number("max_reward", max_reward, need=need)
    bound = None if max_reward is None else max_reward / beta
    potential = lambda y, *contexts: reward(y, *contexts) / beta
    return extend(base, potential, "tilt", log_bound=bound)


def condition(base: Any, accepts: LogPotential) -> Target:
    """The base restricted to the outcomes that are accepted: P = base·1[accepts].

    Parameters
    ----------
    base : Distribution, callable or Target
        What is conditioned.
    accepts : callable
        ``(y, *contexts) -> boolean (n, *contexts)``.
    """
    function("accepts", accepts, TAKES)
    potential = lambda y, *contexts: indicator(accepts(y, *contexts))
    return extend(base, potential, "condition", log_bound=0.0)


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
        spread = factor.log_potential_se if isinstance(factor, Target) else None
        target = extend(target, _as_potential(factor), "product", spread)
    return target


def check_beta(beta: float | int) -> None:
    """Refuse what is no temperature."""
    positive(
        "beta is a temperature (P = prior·exp(reward/beta)) and", beta,
        need="positive and finite (for no tilt leave the reward out)",
    )  # fmt: skip


def _as_potential(factor: Any) -> LogPotential:
    if isinstance(factor, Target):
        check_provides(factor, LOG_DENSITY, "product")
        return factor.log_density
    if isinstance(factor, HasLogProb):
        return lambda y, *contexts: _supports.log_prob(factor, y)
    return function("a factor", factor, TAKES)


def extend(
    base: Any,
    potential: LogPotential,
    name: str,
    log_potential_se: LogPotential | None = None,
    log_bound: Any = None,
) -> Target:
    """A target with one more potential, which may be an estimate, or have a known bound."""
    if not isinstance(base, Target):
        return Target(
            base, potential, name, (potential,), log_potential_se=log_potential_se,
            log_bound=log_bound,
        )  # fmt: skip
    check_provides(base, LOG_DENSITY, name)

    def both(y: Any, *contexts: Any) -> Array:
        return add_potential(base.log_potential(y, *contexts), potential(y, *contexts), name)

    factors = (*(base.factors or (base.log_potential,)), potential)
    se = summed_se([(1.0, base.log_potential_se), (1.0, log_potential_se)])
    whole = None
    if base.log_bound is not None and log_bound is not None:
        whole = base.log_bound + log_bound
    return Target(
        base.prior, both, f"{name}({base.name})", factors, log_potential_se=se,
        log_bound=whole,
    )  # fmt: skip


def summed_se(parts: Sequence[tuple[float, LogPotential | None]]) -> LogPotential | None:
    """Standard error of a sum of estimates (None: exact), each times a factor.

    The errors are added, the most that they come to: those of one estimate, a cdf for instance,
    move together, as `assess` takes those of a target's outcomes to do.
    """
    estimated = [(abs(factor), spread) for factor, spread in parts if spread is not None]
    if not estimated:
        return None

    def total(y: Any, *contexts: Any) -> Array:
        terms = [factor * spread(y, *contexts) for factor, spread in estimated]
        return sum(terms[1:], terms[0])

    return total
