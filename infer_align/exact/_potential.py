"""The law of a target's own reward: from a declaration to levels."""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align import _ties
from infer_align._arguments import number
from infer_align._numerics import Array, concrete, namespace
from infer_align.exact._build import reward_law
from infer_align.exact._law import RewardLaw
from infer_align.exact._probe import position_terms
from infer_align.exact._problem import Problem, Unfit, distribution_of, problem_of
from infer_align.exact._solve import Answer, solve
from infer_align.programs import as_target
from infer_align.spaces.outcomes import MAX_ENTRIES
from infer_align.spaces.sequences import listed_support
from infer_align.spaces.space import Space


class Letters(NamedTuple):
    """A memoryless target with an additive reward: see `additive_letters`."""

    probs: list[float]
    """Of each letter under the prior."""
    rewards: list[float]
    """Of each letter, rounded."""
    length: int


def potential_law(target: Any, *contexts: Any, scale: float | int = 1.0) -> RewardLaw:
    """The law of a target's log-potential under its prior, given that it is not −inf.

    Rewards that a program computes tie within 16 units in the last place of the largest and are
    rounded to that, as for `infer_align.RewardCdf`: sums in another order would break ties. Terms
    of independent tokens are rounded to 12 significant digits of the largest (5 in float32).

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any
        What it is conditioned on: a single context.
    scale : float
        By which the log-potential is multiplied: beta turns reward/beta into the reward.

    Returns
    -------
    RewardLaw
        By `reward_law` for independent tokens and an additive potential; else over all listed
        outcomes.

    Raises
    ------
    ValueError
        If the potential is not additive and there are too many outcomes to list.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align import exact
    >>> def program():
    ...     tokens = dist.Categorical(jnp.array([0.5, 0.3, 0.2])).expand([40]).to_event(1)
    ...     y = numpyro.sample("y", tokens)
    ...     numpyro.factor("reward", jnp.sum(y == 2) / 2.0)
    >>> exact.potential_law(program, scale=2.0)
    RewardLaw(41 levels of 40 tokens, exact; tilted FFT: rewards on a lattice of step 1)
    """
    number("scale", scale)
    target = as_target(target, *contexts)
    distribution = distribution_of(target, contexts)
    support = listed_support(distribution)
    if support is None:
        problem = problem_of(target, contexts, distribution)
        letters = additive_letters(problem, scale=scale)
        if letters is not None:
            return reward_law(letters.probs, letters.rewards, letters.length)
        model = problem.model
        if model.count() * model.length > MAX_ENTRIES:
            raise ValueError(
                f"the log-potential of target {target.name!r} is not known as a sum over "
                "independent, identically distributed tokens, and its sequences are too many to "
                "list; give its terms to exact.reward_law, reward_law_of_counts or Chain"
            )
        length = model.length
    else:
        length = 1
    answer: Answer = solve(target, *contexts)
    space = answer.space if answer.space is not None else Space(support)
    log_prior = _single(space.log_prob(distribution, tolerance=1e-4), len(space))
    potential = _single(space.log_potential(target, *contexts), len(space))
    kept = np.flatnonzero(potential > -math.inf)
    log_prior = log_prior[kept] - np.logaddexp.reduce(log_prior[kept])
    rewards = _ties.merged(scale * potential[kept], decimals=True)
    return RewardLaw.of_outcomes(rewards, log_prior, length=length, tolerance=0.0)


def additive_letters(problem: Problem, *, scale: float | int = 1.0) -> Letters | None:
    """Letters and rewards of independent, identical tokens whose potential is additive, or None.

    Letters that the potential rejects everywhere are left out, and the others' probabilities
    renormalised: the law given what is not rejected.
    """
    if not problem.model.memoryless or problem.automata:
        return None
    try:
        problem.single()
        terms = _plain(position_terms(problem).first)
    except Unfit:
        return None
    log_tokens = problem.model.log_tokens
    assert log_tokens is not None
    probs = np.exp(_plain(log_tokens)[0].astype(float))
    kept = np.flatnonzero((terms > -math.inf).any(axis=0) & (probs > 0))
    terms, probs = terms[:, kept], probs[kept]
    if not len(kept) or not np.isfinite(terms).all():
        return None
    # The first position carries the reference sequence's potential: spread it over all.
    extra = terms[0] - terms[-1]
    if not np.allclose(extra, extra[0], rtol=1e-7, atol=1e-7):
        return None
    terms[0] -= extra[0]
    if not np.allclose(terms, terms[:1], rtol=1e-6, atol=1e-6):
        return None
    rewards = _rounded(scale * (terms[-1] + extra[0] / len(terms)), terms.dtype)
    return Letters((probs / probs.sum()).tolist(), rewards, problem.model.length)


def _single(values: Array, outcomes: int) -> np.ndarray:
    """Of each outcome, under one context."""
    known = _plain(values)
    if known.size != outcomes:
        raise ValueError(
            f"a law of rewards is that of one context, got contexts of shape {known.shape[1:]}; "
            "take one at a time"
        )
    return known.ravel()


def _plain(x: Array) -> np.ndarray:
    known = concrete(namespace(x).asarray(x))
    if known is None:
        raise ValueError("a law of rewards needs the target's numbers; compute it outside jax.jit")
    return np.array(known)


def _rounded(values: np.ndarray, dtype: Any) -> list[float]:
    """To 12 significant digits of the largest, 5 of single precision."""
    digits = 12 if dtype == np.float64 else 5
    return _ties.in_digits(values.astype(np.float64), digits).tolist()
