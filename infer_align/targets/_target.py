"""`Target`: a prior and a log-potential."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from array_api_compat import is_array_api_obj

from infer_align import _supports
from infer_align._arguments import array, function
from infer_align._numerics import Array, as_real, check_defined, namespace, own

LogPotential = Callable[..., Array]
LOG_DENSITY = frozenset({"log_density"})
TAKES = "(y, *contexts) -> (n, *contexts)"
"""What a user's functions of outcomes take and give, for messages."""


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
    log_z : float or array of shape (*contexts), optional
        log Z, where it is known (quantile rewards, a fraction of the prior); None: it is not.
    log_potential_se : callable, optional
        ``(y, *contexts) -> (n, *contexts)``: standard error of an estimated potential (best-of-n
        from sampled rewards). None: the potential is exact.
    log_bound : float or array of shape (*contexts), optional
        The largest log-potential there is, where it is known: 0 of a condition, the largest reward
        over beta of a tilt. Of draws of the prior it bounds log P/q, and so what they have missed
        of Z (`diagnostics.assess`).
    provides : frozenset of str
        What it can give: ``"log_density"`` (up to Z), ``"samples"``, ``"next_token"``.

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
    log_z: Any = None
    log_potential_se: LogPotential | None = None
    provides: frozenset[str] = LOG_DENSITY
    log_bound: Any = None

    def __post_init__(self) -> None:
        law = any(hasattr(self.prior, name) for name in ("log_prob", "draw"))
        if not (law or callable(self.prior)):
            raise TypeError(
                f"the base, or prior, of {self.name!r} must be a distribution, a callable from "
                f"contexts to one, or a Target, got {self.prior!r} ({type(self.prior).__name__})"
            )
        function(f"the potential of {self.name!r}", self.log_potential, TAKES)
        for name in ("log_potential", "log_potential_se"):
            object.__setattr__(self, name, _on_a_copy(getattr(self, name)))
        object.__setattr__(self, "factors", tuple(map(_on_a_copy, self.factors)))

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
        TypeError
            If the potential is complex.
        ValueError
            If the potential's shape is not the prior's.
        """
        log_prior = _supports.log_prob(self.given(*contexts), y)
        potential = self.log_potential(y, *contexts)
        return add_potential(log_prior, potential, self.name)


@dataclass(frozen=True)
class _OnACopy:
    """A potential that gets outcomes of its own: what it does to them in place ends there."""

    function: LogPotential

    def __call__(self, y: Any, *contexts: Any) -> Array:
        return self.function(own(y), *contexts)


def _on_a_copy(potential: Any) -> Any:
    """A user's function so wrapped; the library's own callables (`Automaton`, ...) as they are."""
    ours = type(potential).__module__.partition(".")[0] == __name__.partition(".")[0]
    return potential if potential is None or ours else _OnACopy(potential)


def add_potential(log_prior: Array, potential: Array, name: str) -> Array:
    """Log prior + potential, both of shape (n, *contexts); ``-inf`` wins."""
    xp = namespace(log_prior)
    potential = potential if is_array_api_obj(potential) else xp.asarray(potential)
    as_real(potential, f"the potential of {name!r}")
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
    array("accepts", accepts, need="an array of booleans, (n, *contexts)")
    xp = namespace(accepts)
    if not xp.isdtype(accepts.dtype, ("bool", "integral")):
        check_defined(as_real(accepts, "accepts"), "accepts")
    zero = xp.zeros(accepts.shape)
    return xp.where(xp.astype(accepts, xp.bool), zero, zero - math.inf)


def first_site(outcomes: Any) -> Array:
    """Outcomes, or those of their first site."""
    return next(iter(outcomes.values())) if isinstance(outcomes, dict) else outcomes
