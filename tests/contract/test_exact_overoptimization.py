"""Gold rewards along policies that chase a proxy, and ensembles of rewards, by enumeration."""

import itertools
import math

import numpy as np
import pytest

from infer_align import Target, exact, tilt, uncertainty_weighted, worst_case
from infer_align.exact import RewardLaw, best_of_n, log_rewards, reward_law, reward_law_of_counts
from infer_align.exact import overoptimization as over
from tests.libraries import jnp, torch

P = np.array([0.5, 0.3, 0.2])
PROXY, GOLD = [0, 1, 2], [0.0, 1.0, 0.5]
FIVE = ([0.4, 0.25, 0.15, 0.12, 0.08], [0, 1, 1, 2, 3], [0.0, 1.0, 0.6, 2.0, -1.0])
CASES = {
    "a letter": (P, PROXY, GOLD, 1),
    "six letters": (P, PROXY, GOLD, 6),
    "ties": (*FIVE, 4),
    "no lattice": (P, log_rewards(["0.2", "0.3", "0.5"]), GOLD, 5),
}


def listed(name):
    """Probabilities, proxy and gold of all sequences."""
    p, r, g, m = CASES[name]
    r = np.array(r.values() if hasattr(r, "values") else r, dtype=float)
    y = np.indices((len(r),) * m).reshape(m, -1).T
    return np.array(p)[y].prod(1), r[y].sum(1), np.array(g)[y].sum(1)


def law_of(name):
    p, r, g, m = CASES[name]
    return reward_law(p, r, m), g


def tilted(p, r, theta):
    w = p * np.exp(theta * (r - r.max()))
    return w / w.sum()


def cov(p, a, b):
    return p @ (a * b) - (p @ a) * (p @ b)


@pytest.mark.parametrize("beta", [math.inf, 1.5, 0.4, -2.0])
@pytest.mark.parametrize("name", CASES)
def test_gold_and_its_slope_along_the_tilts_are_sums_over_sequences(name, beta):
    (law, gold), (p, r, g) = law_of(name), listed(name)
    q = tilted(p, r, 1 / beta)
    assert float(over.expected_gold(law, gold, law.tilt(beta))) == pytest.approx(q @ g, abs=1e-11)
    slope = float(over.covariance(law, gold, beta))
    assert slope == pytest.approx(cov(q, g, r), abs=1e-10)
    h = 1e-5
    ends = [over.expected_gold(law, gold, law.tilt(1 / (1 / beta + s))) for s in (h, -h)]
    assert slope == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("n", [2, 7.5, 1000])
@pytest.mark.parametrize("name", CASES)
def test_gold_of_best_of_n_is_a_sum_over_sequences(name, n):
    (law, gold), (p, r, g) = law_of(name), listed(name)
    r = np.round(r, 9)
    below, upto = (np.array([p[f(r, x)].sum() for x in r]) for f in (np.less, np.less_equal))
    q = p * (upto**n - below**n) / (upto - below)
    got = float(over.expected_gold(law, gold, best_of_n(law, n)))
    assert got == pytest.approx(q @ g, abs=1e-9)


def test_gold_of_listed_outcomes_is_one_number_an_outcome():
    law = RewardLaw.of_outcomes([1.0, 0.5, 1.0], np.log([0.2, 0.5, 0.3]))
    gold = np.array([3.0, -1.0, 0.0])
    assert float(over.expected_gold(law, gold, law.log_prob)) == pytest.approx(0.1)
    assert float(over.covariance(law, gold)) == pytest.approx(
        cov(np.array([0.2, 0.5, 0.3]), gold, np.array([1.0, 0.5, 1.0]))
    )


@pytest.mark.parametrize("name", CASES)
def test_the_gold_peaks_where_the_covariance_vanishes(name):
    (law, gold), (p, r, g) = law_of(name), listed(name)
    top = over.peak(law, gold)
    assert top is not None
    q = tilted(p, r, 1 / top.beta)
    assert cov(q, g, r) == pytest.approx(0.0, abs=1e-9)
    assert top.gold == pytest.approx(q @ g, abs=1e-10)
    assert top.proxy == pytest.approx(q @ r, abs=1e-10)
    assert top.kl == pytest.approx(q @ np.log(q / p), abs=1e-10)
    theta = np.linspace(0, 2 / top.beta, 400)
    assert max(tilted(p, r, t) @ g for t in theta) <= top.gold + 1e-10


@pytest.mark.parametrize("m", [1, 20])
@pytest.mark.parametrize(
    "gold", [[0, 1, 2], [-5, -4, -3], [5, 6, 7], [0, 0.1, 3], [1.0, 1.0, 1.5], [0.1, 0.1, 0.1]],
    ids=["the proxy", "lower", "higher", "convex", "only the best letter", "constant"],
)  # fmt: skip
def test_a_gold_that_never_falls_along_the_tilts_has_no_peak(gold, m):
    assert over.peak(reward_law(P, PROXY, m), gold) is None


@pytest.mark.parametrize("gold", [[0, -1, -2], [2, 1, 0], [1, 0, 0.5]])
def test_a_gold_that_falls_from_the_start_peaks_at_the_prior(gold):
    law = reward_law(P, PROXY, 3)
    top = over.peak(law, gold)
    assert top.beta == math.inf
    assert top.kl == pytest.approx(0.0, abs=1e-12)
    assert top.proxy == pytest.approx(3 * 0.7)
    assert top.gold == pytest.approx(3 * float(P @ np.array(gold)))


def test_the_first_peak_is_given_even_if_the_gold_rises_again():
    p, r, g = np.array([0.6, 0.3, 0.099999, 0.000001]), np.array([0, 1, 2, 6.0]), [0.0, 1.0, 0, 9]
    values = [tilted(p, r, t) @ np.array(g) for t in (0, 0.8, 1.4, 10)]
    assert values[0] < values[1] > values[2] < values[3]
    top = over.peak(reward_law(p, [0, 1, 2, 6]), g)
    assert 0.75 < 1 / top.beta < 1.0
    assert cov(tilted(p, r, 1 / top.beta), np.array(g), r) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_small_kl_form_is_the_fit_near_the_prior_and_its_error_is_cubic(name):
    law, gold = law_of(name)
    start, alpha, beta = over.small_kl_form(law, gold)
    spread = math.sqrt(float(law.cumulants(0.0)[2]))
    theta = np.geomspace(0.4, 0.002, 12) / spread
    d = np.sqrt([float(law.kl_of_tilt(t)) for t in theta])
    gain = np.array([float(over.expected_gold(law, gold, law.tilt(1 / t))) for t in theta]) - start
    left = gain - d * (alpha - beta * d)
    assert np.abs(left / d**3).max() < 4 * np.abs(left[:4] / d[:4] ** 3).max()
    # Coefficients of a polynomial in d without a constant, at d up to .3.
    powers = np.stack([d, d**2, d**3, d**4, d**5], axis=1)
    first, second, *_ = np.linalg.lstsq(powers, gain, rcond=None)[0]
    assert alpha == pytest.approx(first, abs=2e-5)
    assert -beta == pytest.approx(second, abs=2e-3)


def test_the_small_kl_form_is_made_of_joint_cumulants():
    p, r, g = listed("ties")
    r0, g0 = r - p @ r, g - p @ g
    k2, k3 = p @ r0**2, p @ r0**3
    mixed = p @ (g0 * r0**2)
    law, gold = law_of("ties")
    start, alpha, beta = over.small_kl_form(law, gold)
    assert start == pytest.approx(p @ g)
    assert alpha == pytest.approx(math.sqrt(2 / k2) * (p @ (g0 * r0)))
    assert beta == pytest.approx(2 * (p @ (g0 * r0)) * k3 / (3 * k2**2) - mixed / k2)
    # Gold that is the proxy: the expansion of the frontier itself.
    same = over.small_kl_form(law, [0, 1, 1, 2, 3])
    assert same[1:] == pytest.approx((math.sqrt(2 * k2), -k3 / (3 * k2)))


def test_forms_and_where_they_are_largest():
    d = np.linspace(0, 4, 4001)
    bon, rl = over.best_of_n_form(d, 2.0, 0.5), over.rl_form(d, 1.0, 0.8)
    assert bon[0] == rl[0] == 0
    np.testing.assert_allclose(bon, d * (2 - 0.5 * d))
    np.testing.assert_allclose(rl[1:], d[1:] * (1 - 0.8 * np.log(d[1:])))
    assert d[np.argmax(bon)] == pytest.approx(2 / (2 * 0.5), abs=1e-3)
    assert bon.max() == pytest.approx(2**2 / (4 * 0.5))
    peak = math.exp(1 / 0.8 - 1)
    assert d[np.argmax(rl)] == pytest.approx(peak, abs=1e-3)
    assert rl.max() == pytest.approx(0.8 * peak, abs=1e-6)
    for xp in (jnp, torch):
        np.testing.assert_allclose(np.asarray(over.rl_form(xp.asarray(d), 1.0, 0.8)), rl)
    assert float(over.rl_form(0.0, 1.0, 0.8)) == 0.0


@pytest.mark.parametrize("form", [over.best_of_n_form, over.rl_form])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (0.7, 1.3), (1.0, -0.4)])
def test_a_fit_recovers_coefficients_and_the_peak(form, alpha, beta):
    kl = np.linspace(0.05, 6.0, 17)
    fit = over.fit_form(kl, 3.0 + form(np.sqrt(kl), alpha, beta), form, start=3.0)
    assert (fit.alpha, fit.beta, fit.start) == pytest.approx((alpha, beta, 3.0))
    assert fit.residual == pytest.approx(0.0, abs=1e-12)
    if beta < 0:
        assert fit.peak == math.inf
        return
    want = alpha / (2 * beta) if form is over.best_of_n_form else math.exp(alpha / beta - 1)
    assert fit.peak == pytest.approx(want)


def test_a_fit_is_least_squares_and_says_what_is_left():
    kl, noise = np.array([0.25, 1.0, 4.0]), np.array([0.1, -0.2, 0.05])
    gold = over.best_of_n_form(np.sqrt(kl), 2.0, 0.5) + noise
    fit = over.fit_form(kl, gold, over.best_of_n_form, start=0.0)
    best = math.inf
    for a, b in itertools.product(np.linspace(1, 3, 201), np.linspace(0, 1, 201)):
        left = gold - over.best_of_n_form(np.sqrt(kl), a, b)
        best = min(best, math.sqrt((left**2).mean()))
    assert fit.residual <= best
    assert fit.residual == pytest.approx(best, abs=2e-3)


def test_a_fitted_parabola_that_only_falls_is_largest_at_the_prior():
    kl = np.linspace(0.1, 4, 9)
    fit = over.fit_form(kl, -np.sqrt(kl) - 0.3 * kl, over.best_of_n_form, start=0.0)
    assert fit.alpha < 0 < fit.beta
    assert fit.peak == 0.0


@pytest.mark.parametrize(
    ("kl", "gold"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([[1.0, 2.0]], [[1.0, 2.0]]),
                     ([-1.0, 2.0], [1.0, 1.0]), ([math.nan, 2.0], [1.0, 1.0])]
)  # fmt: skip
def test_a_fit_needs_two_pairs(kl, gold):
    with pytest.raises(ValueError, match="at least two pairs of a KL >= 0"):
        over.fit_form(kl, gold, over.best_of_n_form, start=0.0)


REWARDS = np.array([[0.0, 1.0, 2.0], [1.5, 0.25, 1.0], [0.5, 0.5, -1.0]])


def ensemble(kind, *rewards):
    return worst_case(*rewards) if kind == "worst" else uncertainty_weighted(*rewards, weight=0.7)


def combined(kind, values):
    """Of values (rewards, n)."""
    return values.min(0) if kind == "worst" else values.mean(0) - 0.7 * values.var(0)


@pytest.mark.parametrize("xp", [np, jnp, torch], ids=["numpy", "jax", "torch"])
@pytest.mark.parametrize("kind", ["worst", "uncertain"])
def test_an_ensemble_of_rewards_is_its_definition(kind, xp):
    y = np.indices((3, 3, 3)).reshape(3, -1).T
    tables = [xp.asarray(row) for row in REWARDS]
    reward = ensemble(kind, *[lambda y, t=t: t[y].sum(-1) for t in tables])
    got = reward(xp.asarray(y))
    want = combined(kind, REWARDS[:, y].sum(-1))
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12, atol=1e-14)
    # Contexts on the trailing axis, as of any reward.
    scaled = ensemble(kind, lambda y, x: 1.0 * y * x, lambda y, x: 2.0 - y * x)
    a, x = xp.asarray(np.arange(3.0)[:, None]), xp.asarray(np.array([1.0, -2.0]))
    product = np.arange(3.0)[:, None] * np.array([1.0, -2.0])
    np.testing.assert_allclose(
        np.asarray(scaled(a, x)), combined(kind, np.stack([product, 2 - product])), atol=1e-14
    )


@pytest.mark.parametrize("kind", ["worst", "uncertain"])
def test_an_ensemble_of_one_reward_is_it_and_of_none_is_refused(kind):
    y = np.arange(4.0)
    np.testing.assert_array_equal(ensemble(kind, lambda y: y**2)(y), y**2)
    with pytest.raises(ValueError, match="at least one reward"):
        ensemble(kind)


@pytest.mark.parametrize("kind", ["worst", "uncertain"])
def test_the_law_of_an_ensemble_is_the_sum_over_sequences(kind):
    m = 6
    y = np.indices((3,) * m).reshape(m, -1).T
    p, r = P[y].prod(1), np.round(combined(kind, REWARDS[:, y].sum(-1)), 9)
    found, index = np.unique(r, return_inverse=True)
    law = reward_law_of_counts(P, ensemble(kind, *[lambda n, r=r: n @ r for r in REWARDS]), m)
    np.testing.assert_allclose(law.rewards, found, atol=1e-8)
    np.testing.assert_allclose(np.exp(law.log_prob), np.bincount(index, p), rtol=1e-10)
    # Each reward of the ensemble, as the gold of a policy that chases all of them.
    policy = best_of_n(law, 16)
    q = p * (np.exp(policy) / np.bincount(index, p))[index]
    for gold in REWARDS:
        got = float(over.expected_gold(law, gold, policy))
        assert got == pytest.approx(q @ gold[y].sum(1), abs=1e-10)


@pytest.mark.parametrize("kind", ["worst", "uncertain"])
def test_a_target_tilted_by_an_ensemble_is_solved_by_types(kind):
    import pyro.distributions as dist

    prior = dist.Categorical(torch.tensor(P)).expand([5]).to_event(1)
    tables = [torch.tensor(row) for row in REWARDS]
    target: Target = tilt(
        prior, ensemble(kind, *[lambda y, t=t: t[y].sum(-1) for t in tables]), 0.5
    )
    y = np.indices((3,) * 5).reshape(5, -1).T
    w = P[y].prod(1) * np.exp(combined(kind, REWARDS[:, y].sum(-1)) / 0.5)
    for engine in (exact.by_types, exact.by_sequences):
        assert float(engine(target).log_z) == pytest.approx(math.log(w.sum()), abs=1e-10)


def test_a_peak_far_beyond_the_spread_of_the_prior_is_found():
    """A letter of reward −10⁶ makes the prior's spread 10⁶ times that of the others, whose tilts
    have their peak where they have it without that letter."""
    with_outlier = over.peak(reward_law([0.5, 0.2, 0.2, 0.1], [-1e6, 0, 1, 2]), [0, 1, 2, 1.9])
    without = over.peak(reward_law([0.4, 0.4, 0.2], [0, 1, 2]), [1, 2, 1.9])
    assert with_outlier.beta == pytest.approx(without.beta, rel=1e-9)
    assert with_outlier.kl == pytest.approx(without.kl + math.log(2), rel=1e-9)
    assert over.peak(reward_law([1.0], [3]), [1]) is None
