"""Regularised optima: optimality proved by the dual, closed forms, budgets, extremes."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import lambertw

from infer_align import divergences
from infer_align.exact import RewardLaw, reward_law
from infer_align.exact.regularized import optimum, optimum_for_budget

LAW = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
SIX = RewardLaw.of_outcomes(
    [-1.0, 0.0, 0.3, 1.1, 2.0, 2.5], np.log([0.3, 0.25, 0.2, 0.15, 0.07, 0.03])
)
LONG = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 1000)
EACH = pytest.mark.parametrize("divergence", divergences.ALL, ids=lambda d: d.name)
SMOOTH = [d for d in divergences.ALL if d is not divergences.total_variation]
MARKS = pytest.mark.parametrize("divergence", SMOOTH, ids=lambda d: d.name)


def random_policies(law, count, seed):
    """Some anywhere, some near the prior, some that leave levels out."""
    rng = np.random.default_rng(seed)
    prior = np.exp(law.log_prob)
    for i in range(count):
        policy = rng.dirichlet(np.full(len(law), rng.choice([0.2, 1.0, 5.0])))
        if i % 3 == 1:
            policy = prior + (policy - prior) * 10 ** rng.uniform(-3, 0)
        if i % 3 == 2:
            policy = np.where(rng.random(len(law)) < 0.4, 0.0, policy)
            policy = prior if not policy.sum() else policy / policy.sum()
        with np.errstate(divide="ignore"):
            yield np.log(policy)


def objective(law, divergence, beta, log_policy):
    reward = float(np.exp(log_policy) @ law.rewards)
    return reward - beta * float(divergence(log_policy, law.log_prob))


@EACH
@pytest.mark.parametrize(
    ("law", "beta"), [(LAW, 0.1), (LAW, 1.7), (SIX, 1e-3), (SIX, 0.4), (SIX, 3.0), (SIX, 1e3)]
)
def test_the_dual_bound_is_attained_and_no_policy_beats_it(divergence, law, beta):
    best = optimum(law, divergence, beta)
    value = objective(law, divergence, beta, best.log_policy)
    assert float(np.logaddexp.reduce(best.log_policy)) == pytest.approx(0.0, abs=1e-12)
    assert best.dual == pytest.approx(value, abs=1e-11)
    assert best.beta == beta
    assert best.reward == pytest.approx(float(np.exp(best.log_policy) @ law.rewards), rel=1e-12)
    assert best.divergence == pytest.approx(
        float(divergence(best.log_policy, law.log_prob)), rel=1e-12
    )
    assert best.kl == pytest.approx(
        float(divergences.reverse_kl(best.log_policy, law.log_prob)), rel=1e-9, abs=1e-13
    )
    for policy in random_policies(law, 60, 5):
        assert objective(law, divergence, beta, policy) <= best.dual + 1e-10


@MARKS
@pytest.mark.parametrize("beta", [0.05, 4.0])
def test_the_slope_of_the_generator_is_linear_in_the_reward(divergence, beta):
    best = optimum(SIX, divergence, beta)
    log_t = best.log_policy - SIX.log_prob
    kept = log_t > -math.inf
    assert kept[-1]
    slopes = beta * divergence.f_prime(log_t)
    constants = (SIX.rewards - slopes)[kept]
    np.testing.assert_allclose(constants, constants[-1], atol=1e-9)
    lost = SIX.rewards[~kept] - beta * float(divergence.f_prime(np.array(-math.inf)))
    assert (lost <= constants[-1] + 1e-9).all()
    assert (np.diff(log_t[kept]) > 0).all()


def normalised(ratio, low, high):
    """Ratios π/prior of SIX from a shape of s = r − ν, with ν the number that normalises."""
    prior = np.exp(SIX.log_prob)
    excess = lambda nu: float(prior @ ratio(SIX.rewards - nu)) - 1
    return ratio(SIX.rewards - brentq(excess, low, high, xtol=1e-15, rtol=1e-15))


R_MAX, EPS = 2.5, 1e-13
# Where f' is bounded by c, ν stays above r_max − βc.
CLOSED = {
    "forward_kl": lambda b: normalised(lambda s: 1 / (1 - s / b), R_MAX - b + EPS, R_MAX + 9 * b),
    "reverse_kl": lambda b: normalised(lambda s: np.exp(s / b), -9.0, R_MAX),
    "jensen_shannon": lambda b: normalised(
        lambda s: 1 / (2 * np.exp(-2 * s / b) - 1), R_MAX - b * math.log(2) / 2 + EPS, R_MAX + b
    ),
    "pearson_chi2": lambda b: normalised(lambda s: np.maximum(1 + s / (2 * b), 0), -99.0, R_MAX),
    "neyman_chi2": lambda b: normalised(
        lambda s: (1 - s / b) ** -0.5, R_MAX - b + EPS, R_MAX + 9 * b
    ),
    "mixed_chi2": lambda b: normalised(
        lambda s: lambertw(np.exp(1 + s / b)).real, -99.0, R_MAX + 9 * b
    ),
    "squared_hellinger": lambda b: normalised(
        lambda s: (1 - s / b) ** -2.0, R_MAX - b + EPS, R_MAX + 9 * b
    ),
    "alpha(0.5)": lambda b: normalised(
        lambda s: (1 - s / (2 * b)) ** -2.0, R_MAX - 2 * b + EPS, R_MAX + 9 * b
    ),
    "alpha(2)": lambda b: normalised(lambda s: np.maximum(1 + s / b, 0), -99.0, R_MAX),
    "alpha(-1)": lambda b: normalised(
        lambda s: (1 - 2 * s / b) ** -0.5, R_MAX - b / 2 + EPS, R_MAX + 9 * b
    ),
}


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name, beta):
    divergence = next(d for d in divergences.ALL if d.name == name)
    best = optimum(SIX, divergence, beta)
    want = np.exp(SIX.log_prob) * CLOSED[name](beta)
    np.testing.assert_allclose(np.exp(best.log_policy), want, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("order", [-2.5, 0.2, 0.8, 1.5, 3.0])
def test_alpha_optima_are_powers(order):
    beta = 0.8
    best = optimum(SIX, divergences.alpha(order), beta)
    ratio = lambda s: np.maximum(1 + (order - 1) * s / beta, 0) ** (1 / (order - 1))
    bound = R_MAX - beta / (1 - order) + EPS if order < 1 else -99.0
    want = np.exp(SIX.log_prob) * normalised(ratio, bound, R_MAX + 9 * beta)
    np.testing.assert_allclose(np.exp(best.log_policy), want, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("law", [LAW, SIX, LONG], ids=["three", "six", "long"])
def test_the_reverse_kl_optimum_is_the_tilt(law):
    for beta in (0.2, 1.0, 30.0):
        best = optimum(law, divergences.reverse_kl, beta)
        np.testing.assert_allclose(best.log_policy, law.tilt(beta), rtol=1e-10, atol=1e-10)
        assert best.dual == pytest.approx(beta * float(law.log_z(beta)), rel=1e-11)
        assert best.kl == pytest.approx(best.divergence, rel=1e-9)


def test_total_variation_is_bang_bang():
    prior = np.exp(SIX.log_prob)
    for beta in (0.1, 0.6, 1.3, 2.3, 3.0, 3.4, 3.6, 10.0):
        moved = SIX.rewards[-1] - SIX.rewards > beta
        want = np.where(moved, 0.0, prior)
        want[-1] += prior[moved].sum()
        best = optimum(SIX, divergences.total_variation, beta)
        np.testing.assert_allclose(np.exp(best.log_policy), want, atol=1e-15)
        assert best.divergence == pytest.approx(prior[moved].sum(), abs=1e-15)
    spent = optimum_for_budget(SIX, divergences.total_variation, 0.4)
    np.testing.assert_allclose(
        np.exp(spent.log_policy), [0, 0.15, 0.2, 0.15, 0.07, 0.43], atol=1e-15
    )
    assert spent.beta == pytest.approx(2.5)
    assert spent.divergence == pytest.approx(0.4, rel=1e-14)
    assert spent.dual == pytest.approx(spent.reward - 2.5 * 0.4, rel=1e-12)


@pytest.mark.parametrize(
    ("law", "beta"),
    [
        (reward_law([0.0288, 1e-5, 0.1178, 0.85339], [0, 3, 0, 2], 5), 30.0),
        (reward_law([0.5, 0.3, 0.2], [0, 1, 2], 100), 1e3),
        (reward_law([0.5, 0.3, 0.2], [0, 1, 2], 100), 1e9),
    ],
)
def test_total_variation_moves_nothing_at_a_price_above_the_range(law, beta):
    best = optimum(law, divergences.total_variation, beta)
    np.testing.assert_allclose(best.log_policy, law.log_prob, rtol=1e-9)
    assert best.dual == pytest.approx(best.reward - beta * best.divergence, rel=1e-12)


@pytest.mark.parametrize("budget", [1e-3, 0.3])
def test_total_variation_budgets_of_a_long_sequence(budget):
    law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 2000)
    best = optimum_for_budget(law, divergences.total_variation, budget)
    assert best.divergence == pytest.approx(budget, rel=1e-9)


@EACH
def test_budgets_are_met_and_spent_best(divergence):
    budget = 0.1
    best = optimum_for_budget(SIX, divergence, budget)
    assert best.divergence == pytest.approx(budget, rel=1e-9)
    for policy in random_policies(SIX, 60, 9):
        spent = float(divergence(policy, SIX.log_prob))
        if spent <= budget:
            assert float(np.exp(policy) @ SIX.rewards) <= best.reward + 1e-10
    more = optimum_for_budget(SIX, divergence, 1.001 * budget)
    slope = (more.reward - best.reward) / (0.001 * budget)
    # R is concave in the budget, so the slope falls from best.beta to more.beta.
    assert more.beta * (1 - 1e-6) <= slope <= best.beta * (1 + 1e-6)
    if divergence is not divergences.total_variation:  # whose slope has steps
        assert more.beta == pytest.approx(best.beta, rel=2e-3)
    assert best.dual + best.beta * budget == pytest.approx(best.reward, abs=1e-9)


@pytest.mark.parametrize(
    "divergence", [divergences.reverse_kl, divergences.pearson_chi2], ids=lambda d: d.name
)
def test_a_tiny_budget_is_met_too(divergence):
    best = optimum_for_budget(SIX, divergence, 1e-9)
    assert best.divergence == pytest.approx(1e-9, rel=1e-6)
    spread = float(SIX.cumulants(0.0)[2])
    second = float(divergence.f_prime(np.array(1e-6))) / 1e-6
    assert best.beta == pytest.approx(math.sqrt(spread / (2e-9 * second)), rel=1e-3)


@EACH
def test_a_budget_of_nothing_buys_nothing_and_of_everything_the_highest_level(divergence):
    prior = float(np.exp(SIX.log_prob) @ SIX.rewards)
    nothing = optimum_for_budget(SIX, divergence, 0)
    assert nothing.beta == math.inf
    assert nothing.reward == pytest.approx(prior, rel=1e-14)
    assert nothing.dual == pytest.approx(prior, rel=1e-14)
    assert nothing.divergence == 0.0
    top = float(divergence(SIX.tilt(0.0), SIX.log_prob))
    if math.isfinite(top):
        for budget in (top * (1 + 1e-12), top + 1, math.inf):
            most = optimum_for_budget(SIX, divergence, budget)
            assert (most.beta, most.reward, most.dual) == (0.0, 2.5, 2.5)
            assert most.divergence == pytest.approx(top, rel=1e-14)
        near = optimum_for_budget(SIX, divergence, 0.999 * top)
        assert near.reward < 2.5
        assert near.divergence == pytest.approx(0.999 * top, rel=1e-9)
    else:
        far = optimum_for_budget(SIX, divergence, 50.0)
        assert 2.4 < far.reward <= 2.5
        assert far.divergence == pytest.approx(50.0, rel=1e-9)


@EACH
def test_bad_temperatures_and_budgets_are_refused(divergence):
    for beta in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"must be positive, got {beta}"):
            optimum(LAW, divergence, beta)
    for budget in (-1e-9, math.nan):
        with pytest.raises(ValueError, match=f"a divergence >= 0, got {budget}"):
            optimum_for_budget(LAW, divergence, budget)


@MARKS
def test_a_high_temperature_is_the_first_order_of_the_reward(divergence):
    beta = 1e8
    best = optimum(SIX, divergence, beta)
    # π/prior − 1 = (r − μ)/(β f''(1)) to first order.
    second = float(divergence.f_prime(np.array(1e-6))) / 1e-6
    mean = float(np.exp(SIX.log_prob) @ SIX.rewards)
    shift = np.expm1(best.log_policy - SIX.log_prob) * beta
    np.testing.assert_allclose(shift, (SIX.rewards - mean) / second, rtol=1e-5, atol=1e-6)


@EACH
def test_an_enormous_temperature_is_the_prior(divergence):
    for law in (LAW, SIX, reward_law([0.48250376, 0.51749624], [3, 0])):
        best = optimum(law, divergence, 1e20)
        np.testing.assert_allclose(best.log_policy, law.log_prob, rtol=1e-14, atol=1e-14)


@EACH
def test_a_low_temperature_is_the_highest_level(divergence):
    best = optimum(SIX, divergence, 1e-8)
    assert best.reward == pytest.approx(2.5, abs=1e-3)
    assert best.log_policy[-1] == pytest.approx(0.0, abs=1e-3)
    assert best.dual == pytest.approx(best.reward - 1e-8 * best.divergence, abs=1e-9)


@MARKS
def test_two_thousand_levels(divergence):
    beta = 20.0
    best = optimum(LONG, divergence, beta)
    assert float(np.logaddexp.reduce(best.log_policy)) == pytest.approx(0.0, abs=1e-11)
    value = best.reward - beta * best.divergence
    assert best.dual == pytest.approx(value, rel=1e-11)
    drawn = LONG.tilt(30.0)
    assert objective(LONG, divergence, beta, drawn) <= best.dual


@pytest.mark.parametrize(
    "divergence", [divergences.reverse_kl, divergences.pearson_chi2], ids=lambda d: d.name
)
def test_a_budget_over_two_thousand_levels(divergence):
    best = optimum_for_budget(LONG, divergence, 0.2)
    assert best.divergence == pytest.approx(0.2, rel=1e-10)
    assert best.dual == pytest.approx(best.reward - 0.2 * best.beta, rel=1e-11)
    assert best.reward > float(LONG.cumulants(0.0)[1])


def test_one_level_leaves_no_choice():
    law = reward_law([0.6, 0.4], [2, 2], 3)
    for divergence in divergences.ALL:
        best = optimum(law, divergence, 0.5)
        assert best.reward == pytest.approx(6.0, rel=1e-14)
        assert best.divergence == pytest.approx(0.0, abs=1e-14)
        assert optimum_for_budget(law, divergence, 1.0).reward == pytest.approx(6.0, rel=1e-14)


def test_budgets_that_floats_cannot_spend_end_with_a_sentence():
    """A forward KL of 1,000 nats takes β = exp(−1250): it searched without end."""
    law = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    with pytest.raises(ValueError, match=r"forward_kl of 1000 takes a beta below .*law.tilt\(0\)"):
        optimum_for_budget(law, divergences.forward_kl, 1000)
    assert optimum_for_budget(law, divergences.forward_kl, 10).divergence == pytest.approx(
        10, rel=1e-9
    )
