"""`reward_cdf`: the exact cdf of a reward under a prior that can be listed or is additive."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from infer_align._numerics import as_real, namespace, own
from infer_align.exact._law import RewardLaw
from infer_align.exact._potential import potential_law
from infer_align.exact._problem import distribution_of, problem_of
from infer_align.exact._solve import solve
from infer_align.programs import as_target
from infer_align.spaces.outcomes import MAX_ENTRIES, repeated
from infer_align.spaces.sequences import listed_sequences, listed_support, sequence_model
from infer_align.spaces.space import Space
from infer_align.targets import RewardCdf, Target, condition, tilt

Reward = Callable[..., Any]


def reward_cdf(base: Any, reward: Reward | None = None, *contexts: Any) -> RewardCdf:
    """The cdf of a reward under a base, exactly: what ``best_of_n`` and its relatives need.

    All outcomes are listed where that is possible. Of independent tokens that are too many to list,
    with an additive reward, it is the cdf of `potential_law`.

    Parameters
    ----------
    base : Distribution, Target, Pyro or NumPyro program, or RewardLaw
        A law has its rewards already. Of a target that has a potential the cdf is that of the
        normalised target.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    *contexts : Any
        What base and reward are conditioned on.

    Returns
    -------
    RewardCdf

    Raises
    ------
    ValueError
        If the outcomes cannot be listed and the reward is not additive; for a law that is not
        exact, or given together with a reward.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import best_of_n, exact
    >>> prior, reward = dist.Categorical(jnp.array([0.5, 0.3, 0.2])), lambda y: 1.0 * y
    >>> target = best_of_n(prior, reward, 2, exact.reward_cdf(prior, reward))
    >>> [round(float(p), 4) for p in jnp.exp(target.log_density(jnp.arange(3)))]
    [0.25, 0.39, 0.36]
    """
    if isinstance(base, RewardLaw):
        return _of_law(base, reward)
    if reward is None:
        raise ValueError("reward_cdf needs a reward beside the base, or a RewardLaw in its place")
    target = _as_base(base, contexts)
    distribution = distribution_of(target, contexts)
    support = listed(distribution)
    if support is None:
        problem_of(target, contexts, distribution)  # says what can be listed
        return _additive(target, reward, contexts)
    space = Space(support)
    shape = tuple(distribution.batch_shape)
    log_prob = space.log_prob(distribution, tolerance=1e-4)
    if isinstance(base, Target) or not hasattr(base, "log_prob"):
        log_prob = space.log_target(target, *contexts)
    rewards = as_real(reward(own(space._for_contexts(shape)), *contexts), "the reward")
    xp = namespace(log_prob)
    return RewardCdf.exact(xp.asarray(rewards), log_prob)


def _as_base(base: Any, contexts: tuple[Any, ...]) -> Target:
    """A distribution as the target that it is."""
    if isinstance(base, Target) or not hasattr(base, "log_prob"):
        return as_target(base, *contexts)
    return Target(base, lambda y, *contexts: 0.0 * base.log_prob(y), "base")


def listed(distribution: Any) -> Any:
    """Every outcome of a distribution, on axis 0; None if they are not known or too many."""
    support = listed_support(distribution)
    if support is not None:
        return support
    model = sequence_model(distribution)
    if model is None or model.count() * model.length > MAX_ENTRIES:
        return None
    return listed_sequences(model)


def cdf_of_support(distribution: Any, reward: Reward, *contexts: Any) -> RewardCdf:
    """The cdf over a distribution's own support, also while JAX traces."""
    support = listed(distribution)
    if support is None:
        raise ValueError(
            "log_prob of the best of n draws needs the cdf of the reward, and the outcomes of "
            f"{type(distribution).__name__} cannot be listed; pass cdf=, for instance "
            "RewardCdf.estimate(rewards of samples of the base)"
        )
    y = repeated(support, tuple(distribution.batch_shape))
    rewards = as_real(reward(own(y), *contexts), "the reward")
    return RewardCdf.exact(rewards, distribution.log_prob(y))


def _of_law(law: RewardLaw, reward: Any) -> RewardCdf:
    if reward is not None:
        raise ValueError("a RewardLaw has its rewards already; give the law alone")
    if not law.exact:
        raise ValueError(
            f"{law!r} is not exact; shorten the sequence or round its rewards to a lattice, or "
            "estimate the cdf from samples: RewardCdf.estimate(rewards)"
        )
    return RewardCdf.exact(law.rewards, law.log_prob)


def _additive(target: Target, reward: Reward, contexts: tuple[Any, ...]) -> RewardCdf:
    """By the law of an additive reward; what it rejects is the lowest level."""
    if target.factors or target.name != "base":
        raise ValueError(
            f"the sequences of target {target.name!r} are too many to list, and the cdf of a "
            "reward under a target with a potential needs them; give a distribution as the base, "
            "or estimate the cdf from samples: RewardCdf.estimate(rewards)"
        )
    law = potential_law(tilt(target.prior, reward, 1.0), *contexts).known()
    accepted = condition(target.prior, lambda y, *c: reward(y, *c) > -math.inf)
    log_kept = min(float(solve(accepted, *contexts).log_z), 0.0)
    if log_kept > -1e-12:
        return RewardCdf.exact(law.rewards, law.log_prob)
    rewards = np.concatenate([[-math.inf], law.rewards])
    rejected = math.log(-math.expm1(log_kept))
    return RewardCdf.exact(rewards, np.concatenate([[rejected], law.log_prob + log_kept]))
