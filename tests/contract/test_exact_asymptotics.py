"""Rates, cumulants, Rényi cross entropies and sharp limits against grids and exact laws."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from infer_align.divergences import reverse_kl
from infer_align.exact import Chain, best_of_n, log_rewards, reward_law
from infer_align.exact.asymptotics import (
    bahadur_rao,
    best_of_n_limit,
    log_kl_exponent,
    rate,
    rate_of_best_of_n,
    renyi_cross_entropy,
    scaled_cumulant,
    scaled_cumulant_of_best_of_n,
)
from infer_align.exact.selection import log_kl_to_best_of_n
from infer_align.exact.tilts import beta_for_kl, closeness, frontier
from tests.libraries import jnp, torch

P = [0.5, 0.3, 0.2]
Q = ["0.2", "0.3", "0.5"]
MODELS = {
    "T1": (P, log_rewards(Q)),
    "T2": (P, [0, 1, 2]),
    "F1": ([0.4, 0.25, 0.15, 0.12, 0.08], [0, 1, 1, 2, 3]),
    "F2": ([0.3, 0.25, 0.2, 0.15, 0.1], log_rewards(["2/28", "3/28", "5/28", "7/28", "11/28"])),
    "halves": (P, ["-0.5", "0.25", "3"]),
}
SHARES = (0.03, 0.4, 0.95)
BETAS = (math.inf, 2.0, 0.4, -1.0)


def law(name, length=1):
    return reward_law(*MODELS[name], length)


def arrays(name):
    p, r = MODELS[name]
    return np.array(p), r.values() if hasattr(r, "values") else np.array(r, dtype=float)


def log_mgf(name, theta):
    p, r = arrays(name)
    return float(np.log(p @ np.exp(theta * (r - r.max()))) + theta * r.max())


def legendre(name, x, at, span):
    """sup_t tx − Λ(at + t) + Λ(at): on a grid, and between its points; and where it is."""
    gain = lambda t: t * x - log_mgf(name, at + t) + log_mgf(name, at)
    best = minimize_scalar(
        lambda t: -gain(t), bounds=(-span, span), method="bounded", options={"xatol": 1e-7}
    )
    return max(gain(t) for t in np.linspace(-span, span, 121)), -best.fun, best.x


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", MODELS)
def test_the_rate_is_a_supremum_and_a_divergence(name, beta):
    (p, r), at = arrays(name), 1 / beta
    letter, width = law(name), r.max() - r.min()
    for share in SHARES:
        x = r.min() + share * width
        on_grid, most, where = legendre(name, x, at, 60 / width)
        got = rate(letter, x, beta=beta)
        assert got == pytest.approx(most, abs=1e-10)
        assert got >= on_grid - 1e-12
        # KL(φ_θ‖φ_β) of the tilt with this mean.
        tilts = [np.exp(np.log(p) + t * r - log_mgf(name, t)) for t in (at + where, at)]
        kl = float(tilts[0] @ np.log(tilts[0] / tilts[1]))
        assert got == pytest.approx(kl, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_the_rate_at_and_beyond_the_ends(name):
    p, r = arrays(name)
    for end in (r.min(), r.max()):
        for beta in BETAS:
            tilt = np.exp(np.log(p) + r / beta - log_mgf(name, 1 / beta))
            want = -math.log(tilt[r == end].sum())
            assert rate(law(name), float(end), beta=beta) == pytest.approx(want, abs=1e-12)
    assert rate(law(name), r.min() - 1e-9) == rate(law(name), r.max() + 1e-9) == math.inf
    low, high = law(name).reward_range
    assert rate(law(name), low, beta=0) == math.inf
    assert rate(law(name), high, beta=0) == 0.0
    mean = float(p @ r)
    assert rate(law(name), mean) == pytest.approx(0.0, abs=1e-14)
    inner = [rate(law(name), x) for x in np.linspace(mean, r.max(), 20)[1:-1]]
    assert (np.diff(inner) > 0).all()
    assert (np.diff(inner, 2) > 0).all()


@pytest.mark.parametrize(
    "rewards", [[1.798, -1.107, -0.463, -0.964], log_rewards(["16/97", "86/97", "49/97", "26/97"])]
)
def test_the_greatest_reward_as_written_is_within_the_range(rewards):
    """Levels are rounded once: 1.798 is not beyond a level of 1.7979999999999998."""
    letter = reward_law([0.1, 0.2, 0.3, 0.4], rewards)
    r = np.array(rewards.values() if hasattr(rewards, "values") else rewards)
    order = np.argsort(r)
    assert letter.rewards.tolist() == r[order].tolist()
    assert rate(letter, float(r.max())) == pytest.approx(letter.kl_max)


@pytest.mark.parametrize("name", MODELS)
def test_the_rate_of_best_of_n_is_the_priors_less_the_budget(name):
    letter, kl = law(name), 0.2
    point = frontier(letter, kl)
    assert rate(letter, point.reward) == pytest.approx(kl, abs=1e-12)
    assert rate_of_best_of_n(letter, point.reward - 1e-6, kl) == math.inf
    assert rate_of_best_of_n(letter, point.reward, kl) == pytest.approx(0.0, abs=1e-12)
    for share in (0.3, 0.7):
        x = point.reward + share * (letter.reward_range[1] - point.reward)
        assert rate_of_best_of_n(letter, x, kl) == pytest.approx(rate(letter, x) - kl)
        # It is above the tilt's: the two differ by a linear function.
        gap = rate_of_best_of_n(letter, x, kl) - rate(letter, x, beta=point.beta)
        assert gap == pytest.approx((x - point.reward) / point.beta, abs=1e-10)
    high = letter.reward_range[1]
    assert rate_of_best_of_n(letter, high, letter.kl_max + 1) == 0.0
    assert rate_of_best_of_n(letter, high - 1e-3, letter.kl_max + 1) == math.inf


@pytest.mark.parametrize("name", ["T1", "F2"])
@pytest.mark.parametrize("t", [-1.5, -0.5, 0.5, 1.0, 3.0, 20.0])
def test_scaled_cumulants_are_renyi_cross_entropies_at_every_length(name, t):
    p, log_q = arrays(name)
    beta = 0.7
    tilt = np.log(p) + log_q / beta - log_mgf(name, 1 / beta)
    want = -t * float(renyi_cross_entropy(tilt, log_q, 1 + t))
    assert float(scaled_cumulant(law(name), t, beta=beta)) == pytest.approx(want, rel=1e-12)
    for m in (2, 9):
        got = float(scaled_cumulant(law(name, m), t, beta=beta)) / m
        assert got == pytest.approx(want, rel=1e-11)
    prior = -t * float(renyi_cross_entropy(np.log(p), log_q, 1 + t))
    assert float(scaled_cumulant(law(name, 4), t)) / 4 == pytest.approx(prior, rel=1e-11)


def test_the_cumulant_of_the_limit_of_low_temperature_is_its_reward():
    assert float(scaled_cumulant(law("T2"), 1.5, beta=0)) == pytest.approx(3.0)


LAW = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)
ORDERS = [-math.inf, -3.0, -0.5, 0.0, 0.5, 0.999, 1.0, 1.001, 2.0, 7.0, 60.0, math.inf]


def logs(weights):
    with np.errstate(divide="ignore"):
        return np.log(np.array(weights, dtype=float) / sum(weights))


def renyi(p, q, order):
    """From the definition, with limits."""
    kept = p > 0
    if order == 1:
        pairs = zip(p[kept], q[kept], strict=True)
        return sum(-a * math.log(b) if b > 0 else math.inf for a, b in pairs)
    if order == math.inf:
        top = q[kept].max()
        return -math.log(top) if top > 0 else math.inf
    low = q[kept].min()
    if order == -math.inf or (low == 0 and order < 1):
        return -math.log(low) if low > 0 else math.inf
    total = sum(a * b ** (order - 1) for a, b in zip(p, q, strict=True) if a > 0 and b > 0)
    return math.log(total) / (1 - order) if total > 0 else math.inf


@given(LAW, LAW)
def test_renyi_cross_entropies_are_their_definition_and_fall_with_the_order(a, b):
    log_p, log_q = logs(a), logs(b)
    found = [float(renyi_cross_entropy(log_p, log_q, order)) for order in ORDERS]
    want = [renyi(np.exp(log_p), np.exp(log_q), order) for order in ORDERS]
    assert found == pytest.approx(want, rel=1e-9, abs=1e-9)
    for above, below in itertools.pairwise(found):
        assert below <= above + 1e-9


@pytest.mark.parametrize("xp", [np, jnp, torch], ids=["numpy", "jax", "torch"])
def test_renyi_cross_entropies_in_three_libraries(xp):
    log_p, log_q = xp.asarray(np.log(P)), xp.asarray(np.log([0.2, 0.3, 0.5]))
    want = {0: 1.360977, 1: 1.304540, 2: 1.237874, math.inf: math.log(2), -math.inf: math.log(5)}
    for order, number in want.items():
        assert float(renyi_cross_entropy(log_p, log_q, order)) == pytest.approx(number, abs=1e-6)
    near = [float(renyi_cross_entropy(log_p, log_q, 1 + s)) for s in (-1e-6, 1e-6)]
    assert near[0] > float(renyi_cross_entropy(log_p, log_q, 1)) > near[1]
    assert near[0] - near[1] < 1e-5


def test_renyi_cross_entropies_of_order_one_where_both_laws_have_a_zero():
    half = logs([1, 1, 0])
    assert float(renyi_cross_entropy(half, half, 1)) == pytest.approx(math.log(2))
    assert float(renyi_cross_entropy(half, logs([1, 0, 1]), 1)) == math.inf
    assert float(renyi_cross_entropy(half, logs([1, 0, 1]), 2)) == pytest.approx(math.log(4))
    assert float(renyi_cross_entropy(half, logs([0, 0, 1]), 2)) == math.inf


def test_published_bahadur_rao_numbers():
    """ASYMPTOTICS 1.5: T1 at δ = .2, m = 200."""
    reward = frontier(law("T1"), 0.2).reward
    long = law("T1", 200)
    exact = float(np.logaddexp.reduce(long.log_prob[long.rewards >= 200 * reward]))
    assert -exact / 200 == pytest.approx(0.2158555, abs=5e-8)
    assert -bahadur_rao(law("T1"), reward, 200) / 200 == pytest.approx(0.2155355, abs=5e-8)


def tail_error(name, x, m):
    long = law(name, m)
    exact = float(np.logaddexp.reduce(long.log_prob[long.rewards >= m * x - 1e-9]))
    return bahadur_rao(law(name), x, m) - exact


@pytest.mark.parametrize(
    ("name", "x", "lengths"),
    [("T2", 1.0, (100, 200, 800)), ("T2", 1.7, (100, 200, 800)), ("F1", 1.4, (100, 200, 800)),
     ("halves", 1.0, (60, 120, 480)), ("T2", 0.9123, (100, 200, 800))],
)  # fmt: skip
def test_the_error_of_a_tail_on_a_lattice_is_of_order_one_over_m(name, x, lengths):
    errors = [tail_error(name, x, m) * m for m in lengths]
    assert max(map(abs, errors)) < 12
    assert abs(errors[2]) < 1.4 * abs(errors[1]) + 0.1


@pytest.mark.filterwarnings("ignore:the tail of .* tokens may be off")
def test_the_error_of_a_tail_without_a_lattice_falls_too():
    errors = [abs(tail_error("T1", -0.95, m)) for m in (50, 200, 800)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_tails_next_to_the_end_and_what_is_refused():
    letter = law("T2")
    assert bahadur_rao(letter, 1.999, 50) == pytest.approx(50 * math.log(0.2))
    for x in (0.7, 0.2, 2, 2.5):
        with pytest.raises(ValueError, match=r"between the mean 0\.7 and the greatest 2"):
            bahadur_rao(letter, x, 50)


FLOATS = [math.log(0.2), math.log(0.3), math.log(0.5)]


def test_rewards_in_sixteen_digits_have_the_limits_of_rewards_without_a_lattice():
    """log q in floats lies on a lattice of step 1e-16, which must not be listed."""
    near = reward_law(P, FLOATS)
    assert bahadur_rao(near, -1.07, 200) == pytest.approx(bahadur_rao(law("T1"), -1.07, 200))
    want = best_of_n_limit(law("T1"), 0.5, 800)
    assert best_of_n_limit(near, 0.5, 800) == pytest.approx(want, rel=1e-9)


def of_best_of_n(name, kl, m):
    """Reward gap, KL to the prior and to the tilt, exactly."""
    long, letter = law(name, m), law(name)
    policy = best_of_n(long, log_n=m * kl)
    gap = m * frontier(letter, kl).reward - float(long.expected_reward(policy))
    tilt = long.tilt(beta_for_kl(letter, kl))
    return gap, float(long.kl_to_prior(policy)), float(reverse_kl(policy, tilt))


def test_published_limits_of_best_of_n():
    """ASYMPTOTICS 1.6."""
    gap, prior, tilt = best_of_n_limit(law("T1"), 0.5, 800)
    assert tilt == pytest.approx(2.5993, abs=5e-5)
    assert prior == 0.5 * 800 - 1
    exact = of_best_of_n("T1", 0.5, 800)
    assert exact[2] == pytest.approx(2.6085, abs=5e-5)
    assert exact == pytest.approx((gap, prior, tilt), abs=0.02)
    gap, prior, tilt = best_of_n_limit(law("T2"), 0.5, 1000)
    assert tilt == pytest.approx(2.6252, abs=5e-5)
    assert 0.5 * 1000 - 1 - prior == pytest.approx(0.1326, abs=5e-5)
    exact = of_best_of_n("T2", 0.5, 1000)
    assert exact[2] == pytest.approx(2.6342, abs=5e-5)
    assert 0.5 * 1000 - 1 - exact[1] == pytest.approx(0.1313, abs=5e-5)
    assert exact == pytest.approx((gap, prior, tilt), abs=0.03)


@pytest.mark.parametrize(("name", "kl"), [("T2", 0.2), ("F1", 0.3), ("halves", 0.4)])
def test_limits_on_a_lattice_follow_its_phase(name, kl):
    for m in (1000, 1001):
        limit = best_of_n_limit(law(name), kl, m)
        exact = of_best_of_n(name, kl, m)
        for got, want in zip(limit, exact, strict=True):
            assert got == pytest.approx(want, abs=0.03)
        b = 1 / frontier(law(name), kl).beta
        total = limit.kl_to_prior - m * kl + b * limit.reward_gap
        assert limit.kl_to_tilt == pytest.approx(total, abs=1e-9)


def test_limits_want_a_budget_inside():
    for kl in (0.0, -0.1, -math.log(0.2), 3.0):
        with pytest.raises(ValueError, match="budgets per token between 0 and"):
            best_of_n_limit(law("T2"), kl, 100)
    for kl in (0.0, 5.0):
        with pytest.raises(ValueError, match="strictly between 0 and"):
            log_kl_exponent(law("T2"), kl)


def test_the_other_divergence_grows_at_the_published_exponent():
    """ASYMPTOTICS 1.6, item 4: T2 at δ = .2."""
    letter, kl = law("T2"), 0.2
    assert log_kl_exponent(letter, kl) == pytest.approx(0.09965, abs=5e-6)
    for m, want in ((200, 0.08465), (1000, 0.09587), (4000, 0.09853)):
        long = law("T2", m)
        tilt = long.tilt(beta_for_kl(letter, kl))
        got = log_kl_to_best_of_n(long, tilt, log_n=kl * m) / m
        assert got == pytest.approx(want, abs=1e-5)


def test_the_exponent_of_a_chain_of_independent_letters_is_that_of_the_letter():
    probs, rewards = [0.5, 0.3, 0.2], [0.0, 1.0, 3.0]
    family = Chain(probs, [probs] * 3, rewards, 1).rate()
    want = log_kl_exponent(reward_law(probs, rewards), 0.2)
    assert log_kl_exponent(family, 0.2) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", ["T1", "T2"])
def test_cumulants_of_best_of_n_are_those_of_long_laws(name):
    letter, kl, m = law(name), 0.2, 1000
    point, long = frontier(letter, kl), law(name, m)
    policy, b = best_of_n(long, log_n=kl * m), 1 / point.beta
    for t in (-1.0, 0.5 * b, 1.5 * b, 3 * b):
        exact = float(np.logaddexp.reduce(policy + t * long.rewards)) / m
        want = t * point.reward if t <= b else log_mgf(name, t) + kl
        assert scaled_cumulant_of_best_of_n(letter, t, kl) == pytest.approx(want, abs=1e-10)
        assert exact == pytest.approx(want, abs=0.012)
        assert abs(exact - float(scaled_cumulant(letter, t, beta=point.beta))) > 1e-3
    assert scaled_cumulant_of_best_of_n(letter, 2.0, letter.kl_max + 1) == pytest.approx(
        2 * letter.reward_range[1]
    )


@pytest.mark.parametrize("n", [1.5, 2, 7, 40])
def test_best_of_n_of_two_levels_is_a_tilt(n):
    """ASYMPTOTICS 1.6, item 6: β⁻¹ = (g₂ − g₁)/(v₂ − v₁), g = log B/P."""
    two = reward_law([0.5, 0.3, 0.2], [1, 1, 3])
    policy = best_of_n(two, n)
    slope = np.diff(policy - two.log_prob)[0] / 2
    np.testing.assert_allclose(two.tilt(1 / slope), policy, atol=1e-12)
    kl = float(two.kl_to_prior(policy))
    assert closeness(two, policy, kl).kl_to_tilt == pytest.approx(0.0, abs=1e-12)
    three = law("T2")
    kl = float(three.kl_to_prior(best_of_n(three, n)))
    assert closeness(three, best_of_n(three, n), kl).kl_to_tilt > 1e-9
    # Rewards that are affine in g make it a tilt for this n.
    made = best_of_n(three, n) - three.log_prob
    chosen = reward_law(P, [round(float(x), 12) for x in made])
    np.testing.assert_allclose(chosen.tilt(1.0), best_of_n(three, n), atol=1e-10)


def test_a_fine_lattice_that_few_tokens_do_not_resolve_is_warned_of():
    """Rewards 0, 1, 1.001: the logarithm is off by up to ±0.8 at any length up to 400, and the
    exact tail is at hand; 0, 1, 2 has no such echo."""
    letter, long = (reward_law(P, [0, 1, 1.001], m) for m in (1, 400))
    errors = []
    for x in np.linspace(0.6, 0.9, 7):
        with pytest.warns(UserWarning, match=r"may be off by up to \d+% .* step of 0\.001"):
            estimate = bahadur_rao(letter, float(x), 400)
        tail = math.fsum(np.exp(long.log_prob[long.rewards >= 400 * x - 1e-9]))
        assert float(long.log_tail(400 * x)) == pytest.approx(math.log(tail), rel=1e-9)
        errors.append(estimate - math.log(tail))
    assert max(map(abs, errors)) > 0.15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bahadur_rao(law("T2"), 1.0, 100)


def test_the_tail_of_a_law_is_a_sum_over_what_reaches_it():
    """By hand, of two letters: 0.3·2·0.2 + 0.2² at least 3·0.2 of rewards 0, 0.2, 0.4."""
    two = reward_law([0.5, 0.3, 0.2], ["0", "0.2", "0.4"], 2)
    assert math.exp(two.log_tail(3 * 0.2)) == pytest.approx(2 * 0.3 * 0.2 + 0.04, rel=1e-12)
    assert (two.log_tail(-1), two.log_tail(0.81)) == (0, -math.inf)
