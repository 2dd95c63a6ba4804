"""Moment constraints and KL budgets solved on all outcomes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infer_align._numerics import concrete
from infer_align.exact._problem import distribution_of, problem_of
from infer_align.programs import as_target
from infer_align.spaces.outcomes import MAX_ENTRIES
from infer_align.spaces.sequences import listed_sequences, listed_support
from infer_align.spaces.space import Space
from infer_align.targets import (
    Budget,
    MomentFit,
    Target,
    exact_budget,
    exact_moments,
    unconstrained,
)

TOLERANCE = 1e-12


def match_moments(
    target: Any,
    *contexts: Any,
    context_weights: Sequence[float] | np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> MomentFit:
    """Solve a target's moments on all its outcomes: `solve_moments` without sampling error.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
        With moments, from `moment_match` or `moment`, and a prior whose outcomes can be listed.
    *contexts : Any
        What the target is conditioned on.
    context_weights : array, shape (*contexts), optional
        Of the average over contexts; None: all equal.
    tolerance : float
        Largest miss of a moment, relative to the feature's range.

    Returns
    -------
    MomentFit
        Its standard errors are 0 and its effective sample sizes inf.

    Raises
    ------
    ValueError
        If the outcomes cannot be listed, or the means cannot be had, and why.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import exact, moment_match
    >>> tokens = dist.Categorical(jnp.array([0.5, 0.3, 0.2])).expand([4]).to_event(1)
    >>> features = {
    ...     "share": (lambda y: (y == 2).mean(-1), 0.4),
    ...     "first": (lambda y: y[..., 0] == 2, 0.1),
    ... }
    >>> fit = exact.match_moments(moment_match(tokens, features))
    >>> {name: round(value, 6) for name, value in fit.achieved.items()}
    {'share': 0.4, 'first': 0.1}
    """
    target = as_target(target, *contexts)
    space = _listed(target, contexts)
    log_density = _numpy(space.log_density(unconstrained(target), *contexts), target.name)
    outcomes = space._for_contexts(log_density.shape[1:])
    return exact_moments(target, outcomes, contexts, log_density, context_weights, tolerance)


def kl_budget(
    base: Any,
    reward: Callable[..., Any],
    kl: float | int,
    *contexts: Any,
    context_weights: Sequence[float] | np.ndarray | None = None,
) -> Budget:
    """The tilt of a given KL to its base, on all outcomes: `targets.kl_budget` without error.

    For a `RewardLaw`, which needs no listing, see `exact.tilts.beta_for_kl`.

    Parameters
    ----------
    base : Distribution, callable or Target
        What is tilted; its outcomes can be listed.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``, finite.
    kl : float
        In nats, > 0: the mean over contexts, which share beta.
    *contexts : Any
    context_weights : array, shape (*contexts), optional

    Returns
    -------
    Budget

    Raises
    ------
    ValueError
        If the outcomes cannot be listed, or the budget is not between 0 and −log P(max).

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import exact
    >>> prior = dist.Categorical(jnp.array([0.5, 0.3, 0.2]))
    >>> round(exact.kl_budget(prior, lambda y: 1.0 * y, 0.1).beta, 5)
    1.82978
    """
    target = base if isinstance(base, Target) else Target(base, reward, "kl_budget")
    space = _listed(target, contexts)
    known = isinstance(base, Target)
    values = (
        space.log_density(base, *contexts) if known else space.log_prob(target.given(*contexts))
    )
    log_density = _numpy(values, target.name)
    outcomes = space._for_contexts(log_density.shape[1:])
    return exact_budget(base, reward, kl, outcomes, contexts, log_density, context_weights)


def _listed(target: Target, contexts: tuple[Any, ...]) -> Space:
    """The space of a target's outcomes."""
    distribution = distribution_of(target, contexts)
    support = listed_support(distribution)
    if support is not None:
        return Space(support)
    problem = problem_of(target, contexts, distribution)
    model = problem.model
    if model.count() * model.length > MAX_ENTRIES:
        raise ValueError(
            f"target {target.name!r} has {model.count():,} sequences of {model.length} tokens, too "
            f"many to list (at most {MAX_ENTRIES:,} tokens in all); shorten them, or solve on a "
            "sample: solve_moments(target, sample), kl_budget(base, reward, kl, sample)"
        )
    return Space(listed_sequences(model))


def _numpy(log_density: Any, name: str) -> np.ndarray:
    known = concrete(log_density)
    if known is None:
        raise ValueError(f"target {name!r} is solved in NumPy, outside jax.jit")
    return known.astype(np.float64)
