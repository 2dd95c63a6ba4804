"""`jax.BestOfN`: a NumPyro distribution whose samples follow its log_prob, and a program's site."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import chisquare

from infer_align import RewardCdf, Space, best_of_n, diagnostics, exact
from infer_align.exact import RewardLaw, selection
from infer_align.jax import BestOfN, assess, target

P = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
R = np.array([[0.0, 1.0, 1.0, -math.inf], [2.0, -1.0, 2.0, 0.5]])
reward = lambda y: jnp.take_along_axis(jnp.asarray(R).T, y, axis=0)
BASE = dist.Categorical(probs=jnp.asarray(P))
ALL = jnp.broadcast_to(jnp.arange(4)[:, None], (4, 2))


def law_of_levels(c, n, temperature):
    """Best-of-n of one context from exact.selection, by outcome."""
    kept = np.isfinite(R[c])
    if temperature is not None and not kept.all():
        pytest.skip("the exact law has finite rewards")
    rewards = np.where(kept, R[c], -99.0)
    law = RewardLaw.of_outcomes(rewards.tolist(), np.log(P[c]))
    log_b = (
        selection.best_of_n(law, n)
        if temperature is None
        else selection.soft_best_of_n(law, n, temperature)
    )
    level = np.searchsorted(law.rewards, rewards)
    return P[c] * np.exp(log_b - law.log_prob)[level]


@pytest.mark.parametrize("temperature", [None, 0.6])
def test_samples_follow_log_prob_in_each_context(temperature):
    """χ² of 20,000 draws under jit; probabilities sum to one and are the exact law's."""
    best = BestOfN(BASE, reward, 3, temperature=temperature)
    p = np.exp(np.asarray(best.log_prob(ALL)))
    np.testing.assert_allclose(p.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(p[:, 1], law_of_levels(1, 3, temperature), rtol=1e-10)
    if temperature is None:
        np.testing.assert_allclose(p[:, 0], law_of_levels(0, 3, None), rtol=1e-10)
    draw = jax.jit(lambda key: best.sample(key, (5000, 4)))
    y = np.asarray(draw(jax.random.key(0)))
    assert y.shape == (5000, 4, 2)
    for c in range(2):
        seen = np.bincount(y[..., c].ravel(), minlength=4)
        assert chisquare(seen, 20_000 * p[:, c]).pvalue > 1e-6


@pytest.mark.slow
def test_a_site_of_a_program_is_a_target():
    """BestOfN of token sequences at a sample site, tilted by a factor; the prior is best-of-n."""
    tokens = dist.Categorical(probs=jnp.asarray(P[0])).expand([3]).to_event(1)
    count = lambda y: 1.0 * (y == 1).sum(-1)

    def program():
        y = numpyro.sample("y", BestOfN(tokens, count, 4))
        numpyro.factor("last", 0.5 * y[-1])

    space = Space.sequences(4, 3, xp=jnp)
    declared = target(program)
    density = np.asarray(jax.jit(declared.log_density)(space.outcomes))
    log_prior = density - 0.5 * np.asarray(space.outcomes[:, -1])
    cdf = exact.reward_cdf(tokens, count)
    given = BestOfN(tokens, count, 4, cdf)
    np.testing.assert_allclose(log_prior, given.log_prob(space.outcomes), rtol=1e-10)
    assert np.exp(log_prior).sum() == pytest.approx(1.0, abs=1e-12)
    with numpyro.handlers.seed(rng_seed=0):
        assert numpyro.sample("many", given.expand([2])).shape == (2, 3)


@pytest.mark.slow
def test_parameters_of_the_base_can_be_traced_and_differentiated():
    """log_prob under jit and grad, the support listed inside; a pytree passes through jit."""
    y = jnp.arange(4)
    r = lambda y: jnp.asarray(R[1])[y]

    @jax.jit
    def log_prob(logits):
        def total(best):
            p = jnp.exp(best.log_prob(y))
            return p.sum(), p

        # A distribution is a pytree: its gradient has the base's parameters.
        return jax.grad(total, has_aux=True)(BestOfN(dist.Categorical(logits=logits), r, 3))

    gradient, p = log_prob(jnp.log(jnp.asarray(P[1])))
    np.testing.assert_allclose(p, law_of_levels(1, 3, None), rtol=1e-10)
    np.testing.assert_allclose(gradient.base.logits, 0.0, atol=1e-12)


@pytest.mark.slow
def test_continuous_bases_need_a_cdf():
    """A formula or samples; without either log_prob says what to do."""
    normal, identity = dist.Normal(0.0, 1.0), lambda y: y
    with pytest.raises(ValueError, match="outcomes of Normal cannot be listed; pass cdf="):
        BestOfN(normal, identity, 3).log_prob(0.3)
    best = BestOfN(normal, identity, 3, RewardCdf.continuous(normal.cdf))
    want = normal.log_prob(0.3) + math.log(3) + 2 * jnp.log(normal.cdf(0.3))
    assert float(best.log_prob(0.3)) == pytest.approx(float(want), rel=1e-12)


@pytest.mark.slow
def test_an_estimated_cdf_reaches_the_diagnostics():
    """assess widens its intervals by the error of the potential, and says so."""
    normal, identity = dist.Normal(0.0, 1.0), lambda y: y
    samples = np.random.default_rng(0).normal(size=400)
    estimated = best_of_n(normal, identity, 3, RewardCdf.estimate(samples))
    tree = assess(jax.random.key(1), normal, estimated, n=3000)
    known = best_of_n(normal, identity, 3, RewardCdf.continuous(normal.cdf))
    plain = assess(jax.random.key(1), normal, known, n=3000)
    wide, narrow = (diagnostics.estimates(t)["log_z"] for t in (tree, plain))
    assert wide.se > 1.5 * narrow.se
    assert wide.low < 0.0 < wide.high
    assert "potential is estimated" in tree["diagnostics"].attrs["notes"]


def test_it_is_the_base_where_it_should_be():
    """n = 1, shapes, the support, and enumeration pass through; wrong arguments are refused."""
    one = BestOfN(BASE, reward, 1)
    np.testing.assert_allclose(one.log_prob(ALL), BASE.log_prob(ALL), rtol=1e-12)
    assert one.has_enumerate_support
    np.testing.assert_array_equal(one.enumerate_support(expand=False), [[0], [1], [2], [3]])
    assert (one.batch_shape, one.event_shape) == ((2,), ())
    for n in (0, 2.5):
        with pytest.raises(ValueError, match=f"whole n >= 1, got {n}"):
            BestOfN(BASE, reward, n)
    with pytest.raises(ValueError, match="temperature must be positive"):
        BestOfN(BASE, reward, 2, temperature=0.0)
    tokens = BASE.expand([3, 2]).to_event(1)
    with pytest.raises(ValueError, match="one number an outcome"):
        BestOfN(tokens, lambda y: 1.0 * y, 2).sample(jax.random.key(0))


@pytest.mark.parametrize(("rewards", "cdf_tolerance"), [((0.6, 0.6 + 2**-53), None), ((0, 1), 2)])
def test_draws_tie_as_the_density_says(rewards, cdf_tolerance):
    """Sums in two orders by default, and what a given cdf's tolerance makes one level."""
    half, values = jnp.full(2, 0.5), jnp.asarray(rewards) * 1.0
    cdf = RewardCdf.exact(values, jnp.log(half), tolerance=cdf_tolerance)
    best = BestOfN(dist.Categorical(half), lambda y: values[y], 4, cdf)
    np.testing.assert_allclose(jnp.exp(best.log_prob(jnp.arange(2))), 0.5, rtol=1e-12)
    drawn = best.sample(jax.random.key(2), (4000,))
    assert abs(float(drawn.mean()) - 0.5) < 5 * 0.5 / math.sqrt(4000)


def test_levels_under_jit_are_those_outside():
    """A long chain of near rewards, a penalty and ties, in single precision."""
    values = np.concatenate([1 + 4e-7 * np.arange(40), [3.0, 3.0, -1e9, -math.inf]])
    values = jnp.asarray(values, dtype=jnp.float32)
    log_p = jnp.log(jnp.full(44, 1 / 44, dtype=jnp.float32))
    at = lambda r, p: RewardCdf.exact(r, p).at(r).log_cdf
    np.testing.assert_allclose(jax.jit(at)(values, log_p), at(values, log_p), atol=1e-5)
