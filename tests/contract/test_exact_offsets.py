"""A constant added to a reward or a feature changes nothing but what it is added to."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from infer_align import (
    Space,
    WeightedSample,
    exact,
    match_moments,
    moment_match,
    solve_moments,
    tilt,
)
from infer_align.exact import Chain, asymptotics, overoptimization, reward_law, selection, tilts
from infer_align.targets import kl_budget

P = [0.5, 0.3, 0.2]
OFFSETS = [1e6, -1e8]
PRIOR = dist.Categorical(jnp.asarray(P))
TOKENS = dist.Categorical(jnp.asarray(P)).expand([6]).to_event(1)
LONG = dist.Categorical(jnp.asarray(P)).expand([40]).to_event(1)
Y = np.repeat(np.arange(3), [500, 300, 200])
SAMPLE = WeightedSample(jnp.asarray(Y), np.zeros(1000), np.zeros(1000))
THETA = 1 / 0.459768  # of the tilt whose KL is 1 nat, by hand below


def tilted(theta):
    """KL and law of the tilt of three letters of rewards 0, 1, 2, by sums of a few numbers."""
    weight = np.array(P) * np.exp(theta * np.arange(3))
    p = weight / weight.sum()
    return float(p @ np.log(p / P)), p


def test_the_temperature_of_one_nat_by_hand():
    assert tilted(THETA)[0] == pytest.approx(1.0, abs=2e-6)


@pytest.mark.parametrize("offset", [0.0, *OFFSETS])
def test_a_budget_buys_the_same_tilt(offset):
    """β = .459768 whatever is added, exactly and on a sample of the same shares."""
    reward = lambda y: y + offset
    for found in (
        exact.kl_budget(PRIOR, reward, 1.0), kl_budget(PRIOR, reward, 1.0, SAMPLE)
    ):  # fmt: skip
        assert found.beta == pytest.approx(1 / THETA, abs=1e-6)
        assert found.kl == pytest.approx(1.0, abs=1e-9)
        assert found.reward - offset == pytest.approx(tilted(THETA)[1] @ np.arange(3), abs=1e-6)
    se = kl_budget(PRIOR, reward, 1.0, SAMPLE).beta_se
    assert se == pytest.approx(kl_budget(PRIOR, lambda y: 1.0 * y, 1.0, SAMPLE).beta_se, rel=1e-6)


@pytest.mark.parametrize("offset", OFFSETS)
def test_moments_have_the_same_multipliers(offset):
    """λ = log(.4/.6 · .8/.2) of a share of .4 of the last letter; each context has its own offset,
    and rounds of draws pool."""
    wanted = math.log(0.4 / 0.6 * 0.8 / 0.2)
    target = moment_match(PRIOR, {"last": (lambda y: (y == 2) + offset, 0.4 + offset)})

    def draw(law, n):
        p = np.exp(np.asarray(law.log_density(jnp.arange(3)) - law.log_density(jnp.arange(3))[0]))
        y = np.repeat(np.arange(3), np.round(1000 * p / p.sum()).astype(int))
        return WeightedSample(jnp.asarray(y), np.zeros(len(y)), np.zeros(len(y)))

    for fit in (
        exact.match_moments(target), solve_moments(target, SAMPLE),
        match_moments(target, draw, ess_min=1500),
    ):  # fmt: skip
        assert fit.multipliers["last"] == pytest.approx(wanted, abs=0.01)
        assert fit.achieved["last"] - offset == pytest.approx(0.4, abs=1e-7)
    fit = exact.match_moments(target)
    assert fit.multipliers["last"] == pytest.approx(wanted, abs=1e-6)
    kl = 0.4 * math.log(0.4 / 0.2) + 0.6 * math.log(0.6 / 0.8)
    assert float(fit.kl_to_base) == pytest.approx(kl, abs=1e-6)


def test_moments_of_contexts_with_offsets_of_their_own():
    """Offsets 0 and 10⁸, mean over both contexts: the multiplier is that without."""
    log_p = np.log(np.array([P, [0.2, 0.3, 0.5]])).T
    y, offset = np.stack([np.arange(3)] * 2, axis=1), np.array([0.0, 1e8])
    sample = WeightedSample(y, log_p, log_p)
    law = dist.Categorical(jnp.exp(jnp.asarray(log_p.T)))
    solve = lambda feature, mean: solve_moments(
        moment_match(law, {"last": (feature, mean)}), sample
    )
    plain = solve(lambda y: 1.0 * (y == 2), 0.5)
    fit = solve(lambda y: (y == 2) + offset, 0.5 + 0.5e8)
    assert fit.multipliers["last"] == pytest.approx(plain.multipliers["last"], abs=1e-6)
    np.testing.assert_allclose(fit.kl_to_base, plain.kl_to_base, atol=1e-6)
    with pytest.raises(ValueError, match=r"shall be 5e\+07, the least value of its feature"):
        solve(lambda y: (y == 2) + offset, 0.5e8)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(
    ("law", "reward", "engine"),
    [
        (PRIOR, lambda y: 1.0 * y, "sequences"),
        (TOKENS, lambda y: 1.0 * ((y == 2).sum(-1) > 2), "sequences"),
        (LONG, lambda y: 1.0 * (y == 2).sum(-1), None),
        (LONG, lambda y: 0.2 * (y * jnp.arange(40)).sum(-1), "letters"),
        (LONG, lambda y: 1.0 * (y[..., 1:] == y[..., :-1]).sum(-1), "messages"),
    ],
)
def test_a_solution_is_that_without_the_constant(law, reward, engine, offset):
    """KL to the prior, entropy, log Z and the mean potential, by each engine of `exact.solve`."""
    moved, plain = (
        exact.solve(tilt(law, lambda y, c=c: reward(y) + c, 0.7)) for c in (offset, 0.0)
    )
    assert engine in (None, plain.engine)
    for name in ("kl_to_prior", "entropy"):
        got, want = (float(getattr(x, name)) for x in (moved, plain))
        assert got == pytest.approx(want, abs=2e-5), name
    for name in ("log_z", "expected_log_potential"):
        got, want = (float(getattr(x, name)) for x in (moved, plain))
        assert got - offset / 0.7 == pytest.approx(want, abs=2e-6), name


@pytest.mark.parametrize("offset", OFFSETS)
def test_types_and_spaces(offset):
    target, plain = (tilt(TOKENS, lambda y, c=c: y.max(-1) + c, 0.7) for c in (offset, 0.0))
    want = exact.solve(plain)
    space = Space.sequences(3, 6, eos=None, xp=jnp)
    for found in (exact.by_types(target), space.solve(target)):
        assert float(found.kl_to_prior) == pytest.approx(float(want.kl_to_prior), abs=1e-6)
        assert float(found.log_z) - offset / 0.7 == pytest.approx(float(want.log_z), abs=1e-6)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_laws_of_offset_rewards(xp, offset):
    """Cumulants, temperatures, sampling costs and exponents of a law of three letters."""
    laws = [reward_law(xp.asarray(P), [c, c + 1, c + 2], 3) for c in (offset, 0)]
    moved, plain = (law.cumulants(0.7) for law in laws)
    shift = 3 * offset * np.array([0.7, 1, 0, 0])
    np.testing.assert_allclose(np.array(moved) - shift, np.array(plain), atol=2e-6)
    for beta in (tilts.beta_for_kl(law, 0.3) for law in laws):
        assert float(beta) == pytest.approx(float(tilts.beta_for_kl(laws[1], 0.3)), rel=1e-9)
    costs = np.array([[float(x) for x in selection.sampling_costs(law, 0.7)] for law in laws])
    np.testing.assert_allclose(costs[0], costs[1], rtol=1e-9)
    letters = [reward_law(P, [c, c + 1, c + 2]) for c in (offset, 0)]
    exponents = [asymptotics.log_kl_exponent(letter, 0.3) for letter in letters]
    assert exponents[0] == pytest.approx(exponents[1], rel=1e-9)
    tails = [
        asymptotics.bahadur_rao(x, c + 1.2, 50) for x, c in zip(letters, (offset, 0), strict=True)
    ]
    assert tails[0] == pytest.approx(tails[1], abs=1e-5)
    peaks = [overoptimization.peak(letter, [0, 1, 0.5]).beta for letter in letters]
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-6)


@pytest.mark.parametrize("offset", OFFSETS)
def test_chains_of_offset_rewards(offset):
    """KL, reward and value function of a Markov chain of 20 states."""
    steps = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    moved, plain = (
        Chain(np.array(P), steps, [c, c + 1, c + 2], 20).solve(0.8) for c in (offset, 0)
    )
    assert moved.kl_to_prior == pytest.approx(plain.kl_to_prior, abs=1e-9)
    assert moved.expected_reward - 20 * offset == pytest.approx(plain.expected_reward, abs=1e-5)
    assert moved.log_z - 20 * offset / 0.8 == pytest.approx(plain.log_z, abs=1e-5)
    ahead = offset * np.arange(19, -1, -1)[:, None]
    np.testing.assert_allclose(moved.value - ahead, plain.value, atol=2e-6)


@pytest.mark.parametrize("offset", [0.0, 10.0, -1e6])
def test_rounds_go_part_of_the_way_to_means_with_an_offset(offset):
    """The first round sees a single 1 among 0s, and the mean wanted is 1: rounds lead there."""
    prior = dist.Categorical(jnp.asarray([0.9949, 0.005, 0.0001]))
    target = moment_match(prior, {"y": (lambda y: y + offset, 1.0 + offset)})

    def draw(law, n):
        p = np.exp(np.asarray(law.log_density(jnp.arange(3)) - law.log_density(jnp.arange(3))[0]))
        y = np.searchsorted(np.cumsum(p / p.sum()), (np.arange(n) + 0.5) / n)
        return WeightedSample(jnp.asarray(y), np.zeros(n), np.zeros(n))

    fit = match_moments(target, draw, n=200, rounds=4, ess_min=100)
    wanted = exact.match_moments(moment_match(prior, {"y": (lambda y: 1.0 * y, 1.0)}))
    assert fit.multipliers["y"] == pytest.approx(wanted.multipliers["y"], abs=0.1)
