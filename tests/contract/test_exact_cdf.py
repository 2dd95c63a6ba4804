"""`exact.reward_cdf`: listed outcomes, laws and additive rewards give the same cdf."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro.distributions as pdist
import pytest
import torch

from infer_align import Space, best_of_n, exact, tilt

P = np.array([0.5, 0.3, 0.2])
TOKENS = ndist.Categorical(probs=jnp.asarray(P)).expand([4]).to_event(1)
count = lambda y: 1.0 * (y == 2).sum(-1) - 0.5 * (y == 0).sum(-1)
LAW = exact.reward_law(P.tolist(), ["-0.5", "0", "1"], 4)


def masses(cdf, rewards):
    """Exponentials of all four logarithms, at given rewards."""
    return [np.exp(np.asarray(x, dtype=float)) for x in cdf.at(rewards)[:4]]


@pytest.mark.parametrize(
    "base",
    [
        TOKENS,
        pdist.Categorical(torch.as_tensor(P)).expand([4]).to_event(1),
        LAW,
    ],
    ids=["numpyro", "pyro", "law"],
)
def test_listed_outcomes_and_the_law_agree(base):
    """The cdf of a sum of letters, from all 81 sequences of either library, or from its law."""
    cdf = exact.reward_cdf(LAW) if base is LAW else exact.reward_cdf(base, count)
    got = masses(cdf, LAW.rewards)
    below = np.exp(LAW.log_cdf) - np.exp(LAW.log_prob)
    np.testing.assert_allclose(got[0], below, atol=1e-12)
    np.testing.assert_allclose(got[1], np.exp(LAW.log_prob), rtol=1e-9)
    np.testing.assert_allclose(got[2], np.exp(LAW.log_above), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(got[3], np.exp(LAW.log_cdf), rtol=1e-9)


def test_programs_targets_and_contexts():
    """The base may be a program or a tilted target; each context has its own cdf."""

    def program():
        numpyro.sample("y", TOKENS)

    at = LAW.rewards
    for got, want in zip(
        masses(exact.reward_cdf(program, count), at), masses(exact.reward_cdf(LAW), at), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-12)
    tilted = exact.reward_cdf(tilt(TOKENS, count, 0.7), count)
    np.testing.assert_allclose(masses(tilted, at)[1], np.exp(LAW.tilt(0.7)), rtol=1e-9)
    probs = jnp.stack([jnp.asarray(P), jnp.asarray(P)[::-1]])
    two = exact.reward_cdf(ndist.Categorical(probs=probs), lambda y: 1.0 * y)
    assert two.shape == (2,)
    np.testing.assert_allclose(masses(two, np.ones((1, 2)))[3], [[0.8, 0.5]], rtol=1e-12)


def test_long_sequences_go_by_their_additive_reward():
    """3^40 outcomes; letters that are rejected form the lowest level."""
    tokens = ndist.Categorical(probs=jnp.asarray(P)).expand([40]).to_event(1)
    law = exact.reward_law(P.tolist(), ["-0.5", "0", "1"], 40)
    got = masses(exact.reward_cdf(tokens, count), law.rewards)
    np.testing.assert_allclose(got[1], np.exp(law.log_prob), rtol=1e-7, atol=1e-300)
    rejecting = lambda y: jnp.where((y == 0).any(-1), -jnp.inf, count(y))
    cdf = exact.reward_cdf(tokens, rejecting)
    place = cdf.at(np.array([-math.inf, 40.0]))
    np.testing.assert_allclose(np.exp(place.log_mass), [1 - 0.5**40, 0.2**40], rtol=1e-6)
    with pytest.raises(ValueError, match="too many to list"):
        exact.reward_cdf(tilt(tokens, count, 1.0), count)


def test_best_of_n_by_the_space_is_the_law_of_the_levels():
    """A target made with the exact cdf sums to one over the space and level by level."""
    target = best_of_n(TOKENS, count, 5, exact.reward_cdf(TOKENS, count))
    space = Space.sequences(3, 4, xp=jnp)
    solution = space.solve(target)
    assert float(solution.log_z) == pytest.approx(0.0, abs=1e-12)
    law = exact.best_of_n(LAW, 5)
    assert float(solution.kl_to_prior) == pytest.approx(float(LAW.kl_to_prior(law)), rel=1e-10)
    level = np.searchsorted(LAW.rewards, np.asarray(count(space.outcomes)) - 1e-9)
    sums = np.bincount(level, weights=np.exp(np.asarray(solution.log_prob)))
    np.testing.assert_allclose(sums, np.exp(law), rtol=1e-9)


def test_refusals():
    """A law has its rewards; a base needs them; an approximate law is no exact cdf."""
    with pytest.raises(ValueError, match="needs a reward beside the base"):
        exact.reward_cdf(TOKENS)
    with pytest.raises(ValueError, match="has its rewards already"):
        exact.reward_cdf(LAW, count)
    with pytest.raises(ValueError, match="not known here as a finite set"):
        exact.reward_cdf(ndist.Normal(), lambda y: y)
    rough = exact.reward_law([0.25] * 4, [math.pi, math.e, 0.1234567891, 1.4142135], 900)
    assert not rough.exact
    with pytest.raises(ValueError, match="is not exact"):
        exact.reward_cdf(rough)
