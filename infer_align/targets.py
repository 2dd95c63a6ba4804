r"""Targets: unnormalised distributions declared as a prior and a log-potential.

.. math:: \log P(y | x) = \log \mathrm{prior}(y | x) + φ(y, x)

A Pyro or NumPyro program is the same thing written as a program (``infer_align.torch.target``,
``infer_align.jax.target``): its ``sample`` sites are the prior, its ``factor`` sites and observed
sites the potential. The combinators here build it without a program. Outcomes are on axis 0,
contexts on the trailing axes; a conditional target has one Z per context.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from array_api_compat import is_array_api_obj

from infer_align._numerics import Array, namespace

__all__ = [
    "Target",
    "condition",
    "indicator",
    "product",
    "tilt",
    "uncertainty_weighted",
    "worst_case",
]

LogPotential = Callable[..., Array]


@runtime_checkable
class HasLogProb(Protocol):
    """A Pyro or NumPyro ``Distribution``, as far as a target needs it."""

    def log_prob(self, value: Any) -> Any:
        """Normalised log-probability of an outcome, of shape (n, *contexts)."""


@dataclass(frozen=True)
class Target:
    """An unnormalised target distribution: a prior times the exponential of a potential.

    Parameters
    ----------
    prior : Distribution, or callable
        A Pyro or NumPyro distribution over outcomes; a conditional target has a callable from
        contexts to one (a ``CausalLM`` is such a callable).
    log_potential : callable
        ``(y, *contexts) -> (n, *contexts)`` in nats, ``-inf`` for a rejected outcome.
    name : str, optional
        For tables and messages.
    factors : tuple of callables
        Potentials whose sum is ``log_potential``, where the combinators know them: an exact solver
        may know more of some of them than their values.

    Examples
    --------
    >>> import numpyro.distributions as dist, jax.numpy as jnp
    >>> from infer_align import tilt
    >>> target = tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])), lambda y: 1.0 * y, beta=0.5)
    >>> [round(float(x), 4) for x in target.log_density(jnp.array([0, 1]))]
    [-0.6931, 1.3069]
    """

    prior: Any
    log_potential: LogPotential
    name: str = "target"
    factors: tuple[LogPotential, ...] = ()

    def given(self, *contexts: Any) -> Any:
        """The prior distribution, given the contexts.

        Parameters
        ----------
        *contexts
            Whatever the prior takes; nothing for an unconditional target.
        """
        if isinstance(self.prior, HasLogProb) and not isinstance(self.prior, type):
            return self.prior
        return self.prior(*contexts)

    def log_density(self, y: Any, *contexts: Any) -> Array:
        """Log-density up to a constant per context: log prior + potential.

        Parameters
        ----------
        y : array or dict of arrays
            Outcomes, on axis 0.
        *contexts
            The contexts of a conditional target.

        Returns
        -------
        array, shape (n, *contexts)
            In nats; ``-inf`` where the target rejects the outcome.

        Raises
        ------
        ValueError
            If the potential's shape is not the prior's.
        """
        log_prior = self.given(*contexts).log_prob(y)
        potential = self.log_potential(y, *contexts)
        return add_potential(log_prior, potential, self.name)


def add_potential(log_prior: Array, potential: Array, name: str) -> Array:
    """Log prior + potential, both of shape (n, *contexts); ``-inf`` wins."""
    xp = namespace(log_prior)
    potential = potential if is_array_api_obj(potential) else xp.asarray(potential)
    if potential.shape != log_prior.shape:
        raise ValueError(
            f"the potential of {name!r} has shape {tuple(potential.shape)} and its prior's "
            f"log_prob {tuple(log_prior.shape)}; both must be (n, *contexts), one number an "
            "outcome: sum over the token axis with .sum(-1), and over nothing else"
        )
    rejected = potential == -math.inf
    return xp.where(rejected, -math.inf, log_prior + xp.where(rejected, 0.0, potential))


def indicator(accepts: Array) -> Array:
    """Log of a 0/1 indicator: 0 where True, ``-inf`` where False.

    Parameters
    ----------
    accepts : boolean array, shape (n, *contexts)

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import indicator
    >>> indicator(np.array([True, False]))
    array([  0., -inf])
    """
    xp = namespace(accepts)
    zero = xp.zeros(accepts.shape)
    return xp.where(xp.astype(accepts, xp.bool), zero, zero - math.inf)


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
    return _extend(base, lambda y, *contexts: reward(y, *contexts) / beta, "tilt")


def condition(base: Any, accepts: LogPotential) -> Target:
    """The base restricted to the outcomes that are accepted: P = base·1[accepts].

    Parameters
    ----------
    base : Distribution, callable or Target
        What is conditioned.
    accepts : callable
        ``(y, *contexts) -> boolean (n, *contexts)``.
    """
    return _extend(base, lambda y, *contexts: indicator(accepts(y, *contexts)), "condition")


def worst_case(*rewards: LogPotential) -> LogPotential:
    """The least of several rewards: conservative optimisation of an ensemble.

    Coste et al. 2023 (arXiv 2310.02743), WCO.

    Parameters
    ----------
    *rewards : callable
        ``(y, *contexts) -> (n, *contexts)`` each.

    Returns
    -------
    callable
        A reward, for `tilt`.

    Raises
    ------
    ValueError
        Without a reward.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import worst_case
    >>> worst_case(lambda y: 1.0 * y, lambda y: 2.0 - y)(np.array([0, 1, 2]))
    array([0., 1., 0.])
    """
    _some(rewards)

    def least(y: Any, *contexts: Any) -> Array:
        values = [reward(y, *contexts) for reward in rewards]
        xp = namespace(*values)
        return xp.min(xp.stack(values), axis=0)

    return least


def uncertainty_weighted(*rewards: LogPotential, weight: float | int) -> LogPotential:
    """Mean of several rewards less ``weight`` times their variance.

    Coste et al. 2023 (arXiv 2310.02743), UWO; the variance divides by their number.

    Parameters
    ----------
    *rewards : callable
        ``(y, *contexts) -> (n, *contexts)`` each.
    weight : float
        λ, in units of 1/reward.

    Returns
    -------
    callable
        A reward, for `tilt`.

    Raises
    ------
    ValueError
        Without a reward.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import uncertainty_weighted
    >>> uncertainty_weighted(lambda y: 1.0 * y, lambda y: 2.0 - y, weight=0.5)(np.array([0, 1, 2]))
    array([0.5, 1. , 0.5])
    """
    _some(rewards)

    def reward(y: Any, *contexts: Any) -> Array:
        values = [one(y, *contexts) for one in rewards]
        xp = namespace(*values)
        stacked = xp.stack(values)
        mean = xp.mean(stacked, axis=0)
        return mean - weight * xp.mean((stacked - mean) ** 2, axis=0)

    return reward


def _some(rewards: tuple[LogPotential, ...]) -> None:
    if not rewards:
        raise ValueError("an ensemble needs at least one reward, got none")


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
        target = _extend(target, _as_potential(factor), "product")
    return target


def _as_potential(factor: Any) -> LogPotential:
    if isinstance(factor, Target):
        return factor.log_density
    if isinstance(factor, HasLogProb):
        return lambda y, *contexts: factor.log_prob(y)
    return factor


def _extend(base: Any, potential: LogPotential, name: str) -> Target:
    """A target with one more potential."""
    if not isinstance(base, Target):
        return Target(base, potential, name, (potential,))

    def both(y: Any, *contexts: Any) -> Array:
        return add_potential(base.log_potential(y, *contexts), potential(y, *contexts), name)

    factors = (*(base.factors or (base.log_potential,)), potential)
    return Target(base.prior, both, f"{name}({base.name})", factors)
