"""Tilts and the reward–KL frontier: inverses, slopes, optimality, identities."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_align.divergences import reverse_kl
from infer_align.exact import Chain, RewardLaw, best_of_n, log_rewards, reward_law
from infer_align.exact.tilts import (
    beta_for_kl,
    beta_for_reward,
    closeness,
    frontier,
    small_kl_expansion,
)
from tests.exact_zoo import levels, sequences

P3 = [0.5, 0.3, 0.2]
LAWS = {
    "one token": reward_law(P3, [0, 1, 2]),
    "likelihood": reward_law(P3, log_rewards(["0.2", "0.3", "0.5"])),
    "sequence": reward_law(P3, [0, 1, 2], 40),
    "skewed": reward_law([0.9, 0.0999, 0.0001], [-3, 0, 10], 5),
    "types": reward_law([0.4, 0.3, 0.2, 0.1], [0.1, -0.77, 3.1, 0.1234567], 6),
}
EACH = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())


def random_policies(size, count, seed):
    rng = np.random.default_rng(seed)
    for concentration in rng.choice([0.2, 1.0, 5.0], size=count):
        yield np.log(np.maximum(rng.dirichlet(np.full(size, concentration)), 1e-300))


def kl_between(policy, prior):
    """Σ π log π/p, term by term."""
    possible = policy > -math.inf
    gap = np.where(possible, policy, prior) - prior
    return float(np.sum(np.exp(policy) * gap))


@EACH
def test_a_tilt_is_the_prior_times_the_exponential_of_its_reward(law):
    for beta in (0.3, 1.0, 20.0, -2.0):
        weights = law.log_prob + law.rewards / beta
        want = weights - np.logaddexp.reduce(weights)
        np.testing.assert_allclose(law.tilt(beta), want, rtol=1e-12, atol=1e-12)
        mean = float(np.exp(want) @ law.rewards)
        assert float(law.expected_reward(law.tilt(beta))) == pytest.approx(mean, rel=1e-12)
    assert float(law.log_z(2.0)) == pytest.approx(
        float(np.logaddexp.reduce(law.log_prob + law.rewards / 2)), rel=1e-12
    )
    np.testing.assert_array_equal(law.tilt(math.inf), law.log_prob)
    assert law.tilt(0)[-1] == 0.0
    assert (law.tilt(0.0)[:-1] == -math.inf).all()
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"must be positive, got {beta}"):
            law.log_z(beta)


@EACH
@pytest.mark.parametrize("share", [1e-12, 1e-8, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9])
def test_the_tilt_of_a_kl_has_that_kl(law, share):
    kl = share * law.kl_max
    beta = beta_for_kl(law, kl)
    assert 0 < beta < math.inf
    assert float(law.kl_of_tilt(1 / beta)) == pytest.approx(kl, rel=1e-9 if share < 1e-9 else 1e-11)
    absolute = kl_between(law.tilt(beta), law.log_prob)
    assert absolute == pytest.approx(kl, rel=1e-9, abs=1e-13)


@EACH
def test_budgets_at_the_ends_have_temperatures_at_the_ends(law):
    assert beta_for_kl(law, 0) == math.inf
    for kl in (law.kl_max, 2 * law.kl_max + 1, math.inf):
        assert beta_for_kl(law, kl) == 0.0
    for kl in (-1e-9, math.nan, -math.inf):
        with pytest.raises(ValueError, match=f"a number of nats >= 0, got {kl}"):
            beta_for_kl(law, kl)
    variance = float(law.cumulants(0.0)[2])
    assert beta_for_kl(law, 1e-11) == pytest.approx(math.sqrt(variance / 2e-11), rel=1e-3)


@EACH
@pytest.mark.parametrize("share", [1e-6, 0.05, 0.3, 0.6, 0.97, 1 - 1e-6])
def test_the_tilt_of_a_reward_has_that_reward(law, share):
    low, high = law.reward_range
    reward = low + share * (high - low)
    beta = beta_for_reward(law, reward)
    mean = float(law.cumulants(0.0)[1])
    assert (beta > 0) == (reward > mean)
    assert float(law.expected_reward(law.tilt(beta))) == pytest.approx(
        reward, abs=1e-12 * (high - low)
    )


def test_rewards_out_of_reach_are_refused_and_the_ends_are_limits():
    law = LAWS["sequence"]
    assert beta_for_reward(law, 80) == 0.0
    nearly = law.tilt(beta_for_reward(law, 80 - 1e-9))
    np.testing.assert_allclose(np.exp(nearly), np.exp(law.tilt(0.0)), atol=2e-9)
    assert abs(beta_for_reward(law, float(law.cumulants(0.0)[1]))) > 1e10
    with pytest.raises(ValueError, match="an expected reward must be a number, got nan"):
        beta_for_reward(law, math.nan)
    for reward in (-0.1, 80.5):
        with pytest.raises(ValueError, match=f"expected reward {reward}: rewards run from 0 to 80"):
            beta_for_reward(law, reward)


def test_one_level_has_nothing_to_tilt():
    law = reward_law([0.6, 0.4], [2, 2], 3)
    assert len(law) == 1
    assert law.kl_max == pytest.approx(0.0, abs=1e-15)
    assert beta_for_kl(law, 0.5) == 0.0
    assert beta_for_reward(law, 6) == 0.0
    point = frontier(law, 0.5)
    assert (point.reward, point.beta, point.variance) == (6.0, 0.0, 0.0)


@EACH
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_the_frontier_has_slope_beta_and_its_curvature(law, share):
    kl = share * law.kl_max
    h = 1e-4 * kl
    left, here, right = (frontier(law, x) for x in (kl - h, kl, kl + h))
    slope = (right.reward - left.reward) / (2 * h)
    assert here.beta == pytest.approx(slope, rel=1e-6)
    assert here.curvature == pytest.approx((right.beta - left.beta) / (2 * h), rel=1e-6)
    tilt = law.tilt(here.beta)
    mean = float(np.exp(tilt) @ law.rewards)
    assert here.reward == pytest.approx(mean, rel=1e-10)
    spread = float(np.exp(tilt) @ (law.rewards - mean) ** 2)
    assert here.variance == pytest.approx(spread, rel=1e-9)


def test_the_frontier_of_several_budgets_lists_their_points():
    law = LAWS["one token"]
    many = frontier(law, [0.0, 0.1, 0.7, 9.0])
    for i, kl in enumerate((0.0, 0.1, 0.7, 9.0)):
        one = frontier(law, kl)
        assert [float(column[i]) for column in many] == [float(x) for x in one]
    assert many.beta[0] == math.inf
    assert many.curvature[0] == -math.inf
    assert many.reward[0] == pytest.approx(0.7)
    assert many.reward[-1] == 2.0
    assert many.beta[-1] == 0.0


@EACH
def test_no_policy_of_its_kl_has_more_reward(law):
    for policy in random_policies(len(law), 60, 7):
        kl = kl_between(policy, law.log_prob)
        assert float(law.kl_to_prior(policy)) == pytest.approx(kl, rel=1e-12)
        best = frontier(law, kl)
        assert float(law.expected_reward(policy)) <= best.reward + 1e-12 * abs(best.reward)


@pytest.mark.parametrize("name", ["one token", "likelihood", "sequence"])
def test_the_small_kl_expansion_is_off_by_the_power_three_halves(name):
    law = LAWS[name]
    kls = np.array([1e-3, 1e-4, 1e-5]) * law.length
    errors = [abs(float(small_kl_expansion(law, kl)) - frontier(law, kl).reward) for kl in kls]
    orders = np.diff(np.log(errors)) / np.diff(np.log(kls))
    np.testing.assert_allclose(orders, 1.5, atol=0.1)
    third = float(law.cumulants(0.0)[3])
    assert third != pytest.approx(0.0)
    np.testing.assert_allclose(
        small_kl_expansion(law, kls), [small_kl_expansion(law, x) for x in kls]
    )


@EACH
def test_closeness_is_an_identity_for_every_policy(law):
    policies = [*random_policies(len(law), 30, 11), best_of_n(law, 3.5), law.log_prob]
    for share in (0.0, 0.05, 0.4, 0.9):
        kl = share * law.kl_max
        beta = beta_for_kl(law, kl)
        tilt = law.tilt(beta)
        for policy in policies:
            why = closeness(law, policy, kl)
            assert float(why.kl_to_tilt) == pytest.approx(
                float(why.kl_excess + why.reward_shortfall), rel=1e-9, abs=1e-11
            )
            direct = kl_between(policy, tilt)
            assert float(why.kl_to_tilt) == pytest.approx(direct, rel=1e-9, abs=1e-12)
            spent = kl_between(policy, law.log_prob)
            assert float(why.kl_excess) == pytest.approx(spent - kl, rel=1e-9, abs=1e-12)
    with pytest.raises(ValueError, match="is not below"):
        closeness(law, law.log_prob, law.kl_max)


T1 = LAWS["likelihood"]


@pytest.mark.parametrize(
    ("delta", "inverse_beta", "reward"),
    [(0.05, 0.848746, -1.189527), (0.2, 1.669866, -1.070356), (0.5, 2.729901, -0.932716)],
)
def test_reference_points_of_the_frontier(delta, inverse_beta, reward):
    point = frontier(T1, delta)
    assert 1 / point.beta == pytest.approx(inverse_beta, abs=5e-7)
    assert point.reward == pytest.approx(reward, abs=5e-7)


BEST_OF_N = {
    0.05: ((-1.292813, -1.258259, -1.221333, -1.200958), (0.038292, 0.018947, 0.008634, 0.004702)),
    0.2: ((-1.255999, -1.145504, -1.093486, -1.078036), (0.120524, 0.038709, 0.018598, 0.007823)),
    0.5: ((-1.176045, -0.992538, -0.949449, -0.938088), (0.235138, 0.062666, 0.025576, 0.009657)),
}


@pytest.mark.parametrize("delta", BEST_OF_N)
def test_reference_numbers_of_best_of_n_beside_the_tilt(delta):
    for m, reward, kl in zip((1, 10, 50, 200), *BEST_OF_N[delta], strict=True):
        law = reward_law(P3, log_rewards(["0.2", "0.3", "0.5"]), m)
        policy = best_of_n(law, log_n=m * delta)
        tilt = law.tilt(beta_for_kl(T1, delta))
        assert float(law.expected_reward(policy)) / m == pytest.approx(reward, abs=5e-7)
        assert float(reverse_kl(policy, tilt)) / m == pytest.approx(kl, abs=5e-7)


def test_reference_tilts():
    assert float(T1.cumulants(0.0)[1]) == pytest.approx(-1.304540, abs=5e-7)
    assert T1.kl_max == pytest.approx(math.log(5), rel=1e-14)
    assert T1.reward_range[1] == pytest.approx(-math.log(2), rel=1e-14)
    for beta, shares, kl, reward in [
        (1.0, (0.344828, 0.310345, 0.344828), 0.070233, -1.167642),
        (0.5, (0.206186, 0.278351, 0.515464), 0.284521, None),
    ]:
        tilt = T1.tilt(beta)
        np.testing.assert_allclose(np.exp(tilt), shares, atol=5e-7)
        np.testing.assert_allclose(T1.token_marginals(tilt, 3), shares, atol=5e-7)
        assert float(T1.kl_to_prior(tilt)) == pytest.approx(kl, abs=5e-7)
        if reward is not None:
            assert float(T1.expected_reward(tilt)) == pytest.approx(reward, abs=5e-7)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(-30, 30)), min_size=2, max_size=5),
    st.integers(1, 4), st.integers(-50, 50), st.integers(1, 20), st.floats(0.01, 0.95),
)  # fmt: skip
def test_constants_change_nothing_and_scales_scale_the_temperature(letters, m, shift, scale, share):
    probs = np.array([w for w, _ in letters]) / sum(w for w, _ in letters)
    rewards = [r for _, r in letters]
    law = reward_law(probs, rewards, m)
    moved = reward_law(probs, [r + shift for r in rewards], m)
    scaled = reward_law(probs, [scale * r for r in rewards], m)
    kl = share * law.kl_max
    if len(law) == 1:
        return
    beta = beta_for_kl(law, kl)
    assert beta_for_kl(moved, kl) == pytest.approx(beta, rel=1e-9)
    assert beta_for_kl(scaled, kl) == pytest.approx(scale * beta, rel=1e-9)
    np.testing.assert_allclose(moved.tilt(beta), law.tilt(beta), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scaled.tilt(scale * beta), law.tilt(beta), rtol=1e-9, atol=1e-9)
    assert frontier(moved, kl).reward == pytest.approx(
        frontier(law, kl).reward + m * shift, rel=1e-9, abs=1e-9
    )
    reward = 0.3 * law.reward_range[0] + 0.7 * law.reward_range[1]
    expected = beta_for_reward(law, reward)
    if abs(expected) < 1e6:
        assert beta_for_reward(moved, reward + m * shift) == pytest.approx(expected, rel=1e-6)


def test_cumulants_are_derivatives_of_the_first():
    law = LAWS["types"]
    h = 1e-4
    for theta in (-1.0, 0.0, 0.7):
        left, here, right = (law.cumulants(theta + x) for x in (-h, 0.0, h))
        for order in (0, 1, 2):
            slope = float(right[order] - left[order]) / (2 * h)
            assert float(here[order + 1]) == pytest.approx(slope, rel=1e-5)


def test_laws_of_listed_outcomes_have_frontiers_too():
    law = RewardLaw.of_outcomes([1.0, 3.0, 1.0, 2.0], np.log([0.25, 0.25, 0.25, 0.25]))
    point = frontier(law, 0.2)
    policy = law.tilt(point.beta)
    assert kl_between(policy, law.log_prob) == pytest.approx(0.2, rel=1e-11)
    assert point.reward == pytest.approx(float(np.exp(policy) @ [1.0, 2.0, 3.0]), rel=1e-12)


NEAR = ["0.30000000000000004", "0.3", "0"]
"""The first two are 4e-17 apart; as floats, 5.6e-17, and their sums often not at all."""
OWN = {
    "types": (P3, NEAR, lambda: reward_law(P3, NEAR, 5), "types"),
    "lattice": (
        [0.5, 0.5], NEAR[:2], lambda: reward_law([0.5, 0.5], NEAR[:2], 5), "tilted FFT"
    ),
    "listing": (P3, NEAR, lambda: listed(P3, NEAR, 5), "listing"),
    "partial rewards": (
        P3, NEAR, lambda: Chain(P3, [P3] * 3, NEAR, 5).reward_law(), "partial rewards"
    ),
    "lattice of a chain": (
        [0.5, 0.5], NEAR[:2],
        lambda: Chain([0.5, 0.5], [[0.5, 0.5]] * 2, NEAR[:2], 5).reward_law(), "tilted FFT",
    ),
}  # fmt: skip


def listed(probs, rewards, length):
    y = sequences(len(probs), length)
    total = [sum(Fraction(rewards[a]) for a in row) for row in y]
    return RewardLaw.of_outcomes(total, np.log(np.array(probs)[np.array(y)].prod(1)), length=length)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("theta", [-3e17, -1e16, 1.0, 2e16, 1e17])
def test_tilts_tell_rewards_apart_that_floats_do_not(name, theta):
    probs, rewards, make, engine = OWN[name]
    law = make()
    assert law.engine == engine
    table = levels(probs, [Fraction(r) for r in rewards], 5)
    top = max(table, key=lambda level: theta * level.key).key
    weight = [float(x.prob) * math.exp(Fraction(theta) * (x.key - top)) for x in table]
    want = np.array(weight) / sum(weight)
    np.testing.assert_allclose(np.exp(law.tilt(1 / theta)), want, rtol=1e-10, atol=1e-15)
    variance = law.cumulants(theta)[2]
    keys = [float(x.key - top) for x in table]
    mean = want @ keys
    assert float(variance) == pytest.approx(want @ (keys - mean) ** 2, rel=1e-9)
    gaps = [float(x.key - table[1].key) for x in table]
    np.testing.assert_allclose(law.above(1), gaps, rtol=1e-12)


@pytest.mark.parametrize("kl", [1e-300, 1e-100, 1e-25, 1e-23])
def test_the_temperature_of_a_tiny_budget(kl):
    """√(variance/2Δ) to relative √Δ, where KLs underflow or are rounding."""
    beta = beta_for_kl(reward_law([0.5, 0.3, 0.2], [0, 1, 2]), kl)
    assert beta == pytest.approx(math.sqrt(0.61 / (2 * kl)), rel=1e-9)
