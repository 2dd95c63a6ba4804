"""What `assess_sample` and the bounds must not claim: outcomes that only look like the target's."""

import math

import numpy as np
import pytest

from infer_align import RewardCdf, WeightedSample, best_of_n, diagnostics
from infer_align.samplers import (
    importance,
    independence_metropolis,
    local_metropolis,
    rejection,
    resample,
    sampling_importance_resampling,
)
from tests.sources import TableSource

PRIOR = np.array([0.9, 0.07, 0.03])
DENSITY = PRIOR * np.exp(1.5 * np.arange(3))
TARGET = DENSITY / DENSITY.sum()


def source(contexts=(), seed=0):
    tables = (np.log(x).reshape(3, *(1,) * len(contexts)) for x in (PRIOR, DENSITY))
    log_q, log_p = (np.broadcast_to(x, (3, *contexts)) for x in tables)
    return TableSource(np.arange(3), log_q, log_p, seed=seed, vocabulary=None)


def assessed(sample):
    y = np.asarray(sample.outcomes)
    return diagnostics.assess_sample(
        sample, log_prior=np.log(PRIOR)[y], features={"is_2": (y == 2) * 1.0}
    )


def share_claimed(sample, name="target_is_2"):
    return assessed(sample)["diagnostics/contexts"][name].sel(statistic="reliable").mean().item()


def covered(sample, name, truth):
    low, high = (
        assessed(sample)["diagnostics/contexts"][name].sel(statistic=end).values
        for end in ("low", "high")
    )
    return np.mean((low <= truth) & (truth <= high))


def test_short_chains_claim_nothing():
    """Two thousand equal weights, and one step from the prior: the mean is off by a factor of 5."""
    short = independence_metropolis(source((20,)), 2000, 1)
    assert np.all(short.total_variation > 0.5)
    for name in ("target_is_2", "kl_target_prior", "entropy_target"):
        assert share_claimed(short, name) == 0, name
    assert covered(short, "target_is_2", TARGET[2]) == 0
    notes = assessed(short)["diagnostics"].attrs["notes"]
    assert "in 20 of 20 contexts the law of the outcomes may be 0.9" in notes


def test_long_chains_are_claimed_and_cover():
    """(1 − Z/M)^steps with M/Z = 11: below 0.05/√2000 after 72 steps."""
    log_over = math.log(DENSITY.sum()) - 3.0
    long = independence_metropolis(source((100,)), 400, 90)
    np.testing.assert_allclose(long.total_variation, (1 - math.exp(log_over)) ** 90, rtol=0.4)
    assert share_claimed(long) == 1
    assert covered(long, "target_is_2", TARGET[2]) >= 0.95 - 5 * math.sqrt(0.95 * 0.05 / 100)
    states = independence_metropolis(source(), 400, 90, keep=3, thin=30)
    assert states.total_variation == pytest.approx((1 - math.exp(log_over)) ** 30, rel=0.2)


def test_local_chains_are_never_claimed():
    """Nothing bounds how far they are: the evidence is of their starts."""
    chains = TableSource(
        np.array([[0], [1], [2]]), np.log(PRIOR), np.log(DENSITY), seed=1, vocabulary=3
    )
    sample = local_metropolis(chains, 3000, 5)
    assert math.isnan(sample.total_variation)
    sample = sample._replace(outcomes=np.asarray(sample.outcomes)[:, 0])
    assert share_claimed(sample) == 0
    tree = assessed(sample)
    assert "not known how close" in tree["diagnostics"].attrs["notes"]
    assert diagnostics.estimates(tree)["log_z"].reliable


def test_resampling_does_not_launder_weights():
    """Of heavy weights the copies are equal, and as bad as the weights they were chosen by."""
    rng = np.random.default_rng(0)
    log_w = 0.9 * rng.exponential(size=200_000)
    heavy = WeightedSample(np.zeros(200_000, int), log_w, log_w, evidence=log_w)
    chosen = resample(heavy, 2000, rng)
    tree = diagnostics.assess_sample(chosen, features={"x": np.zeros(2000)})
    assert tree["diagnostics"]["pareto_khat_evidence"] > 0.7
    assert not diagnostics.estimates(tree)["target_x"].reliable
    lost = resample(heavy._replace(evidence=None), 2000, rng)
    assert math.isnan(lost.total_variation)
    assert not diagnostics.estimates(diagnostics.assess_sample(lost))["entropy_target"].reliable


def test_resampling_from_many_is_claimed_and_covers():
    sample = sampling_importance_resampling(source((200,)), 400, 4000)
    assert share_claimed(sample) > 0.95
    assert covered(sample, "target_is_2", TARGET[2]) >= 0.95 - 5 * math.sqrt(0.95 * 0.05 / 200)


def test_all_rows_without_replacement_are_the_proposal():
    sample = sampling_importance_resampling(source(), 2000, 2000, replace=False)
    assert not diagnostics.estimates(assessed(sample))["target_is_2"].reliable
    exact = rejection(source(), 1000, 3.0)
    assert resample(exact, 500, np.random.default_rng(0), replace=False).total_variation == 0


def test_the_share_of_an_outcome_is_off_by_what_total_variation_says():
    """E[count]/n of 40 proposals, against the exact law of resampling to first order."""
    m, runs = 40, 20_000
    drawn = importance(source((runs,), seed=3), m)
    expected = np.stack(
        [(drawn.probabilities * (drawn.outcomes == k)).sum(axis=0).mean() for k in range(3)]
    )
    off = 0.5 * np.abs(expected - TARGET).sum()
    ratio = np.exp(1.5 * np.arange(3)) / DENSITY.sum()
    first = 0.5 * (TARGET * np.abs(ratio - (TARGET * ratio).sum())).sum() / m
    assert off == pytest.approx(first, rel=0.25)
    many = importance(source((20,)), 2000)
    said = resample(many, 10, np.random.default_rng(0)).total_variation
    assert np.mean(said) == pytest.approx(first * m / 2000, rel=0.1)


def test_the_error_of_an_estimated_potential_is_in_the_intervals():
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from infer_align.jax import assess
    from infer_align.jax import source as jax_source

    coin = dist.Categorical(probs=jnp.array([0.7, 0.3]))
    rewards = np.random.default_rng(1).choice(2, size=30, p=[0.7, 0.3])
    target = best_of_n(coin, lambda y: 1.0 * y, 8, RewardCdf.estimate(rewards * 1.0))
    sample = importance(jax_source(jax.random.key(0), target), 4000)
    tree = diagnostics.assess_sample(sample, features={"y": np.asarray(sample.outcomes) * 1.0})
    got = diagnostics.estimates(tree)
    there = diagnostics.estimates(
        assess(jax.random.key(0), coin, target, n=4000, features={"y": lambda y: 1.0 * y})
    )
    for name in ("log_z", "target_y"):
        assert got[name].se == pytest.approx(there[name].se, rel=0.2), name
    without = diagnostics.estimates(diagnostics.assess_sample(sample._replace(log_target_se=None)))
    assert got["log_z"].se > 5 * without["log_z"].se
    assert got["log_z"].low < 0 < got["log_z"].high  # best-of-n integrates to 1
    assert "potential is estimated" in tree["diagnostics"].attrs["notes"]
    chosen = resample(sample, 100, np.random.default_rng(0))
    assert chosen.log_target_se.shape == (100,)


def test_a_divergence_estimated_below_zero_is_not_certain():
    """A proposal that misses a part of the target: log Ẑ is right, the outcomes are not."""
    rng = np.random.default_rng(0)
    log_w = rng.normal(1.0, 0.1, size=1000)
    sample = WeightedSample(None, np.zeros(1000), rng.normal(0, 0.1, size=1000), evidence=log_w)
    tree = diagnostics.assess_sample(sample, log_prior=np.zeros(1000))
    kl = diagnostics.estimates(tree)["kl_target_prior"]
    assert kl.value < -0.9
    assert kl.low == 0 < kl.high
    assert not kl.reliable
    assert "kl_target_prior came out below 0" in tree["diagnostics"].attrs["notes"]
    exact = sample._replace(log_weights=np.zeros(1000), log_target=np.zeros(1000), evidence=None)
    bounds = diagnostics.forward_kl_bounds(
        exact, np.full(1000, -1e-7), np.zeros(400), np.zeros(400)
    )
    assert bounds.reliable


def test_bounds_say_where_their_level_is_void():
    rng = np.random.default_rng(0)
    log_w = 0.9 * rng.exponential(size=(1000, 2))
    log_w[:, 1] *= 0.1
    sample = WeightedSample(None, log_w, log_w, evidence=log_w)
    bounds = diagnostics.forward_kl_bounds(sample, log_w - 1.0, np.zeros((40, 2)))
    assert bounds.reliable.tolist() == [False, True]
    few = diagnostics.reverse_kl_bounds(np.zeros(100), np.zeros(100), np.zeros(40))
    assert not few.reliable
    assert diagnostics.log_z_bounds(np.zeros(40)).reliable


def test_a_known_bound_scales_what_no_acceptance_says():
    """A tilt of at most e^8 on a condition of probability 2e-4: Z may be e^8 times 3/n."""
    outcomes = np.arange(2)
    log_p = np.array([-np.inf, math.log(2e-4) + 8.0])
    rare = TableSource(outcomes, np.log([1 - 2e-4, 2e-4]), log_p, seed=4)
    with pytest.warns(UserWarning, match="found 0|accepted 0|0 of 5"):
        sample = rejection(rare, 5, 8.0, max_calls=500)
    assert sample.log_bound == 8.0
    assert np.all(sample.evidence == -np.inf)
    tree = diagnostics.assess_sample(sample)
    log_z = diagnostics.estimates(tree)["log_z"]
    assert log_z.high == pytest.approx(8.0 + math.log(-math.expm1(math.log(0.05) / 500)), abs=0.01)
    assert log_z.high > log_p[1]
    assert "times the bound of P/q" in tree["diagnostics"].attrs["notes"]
