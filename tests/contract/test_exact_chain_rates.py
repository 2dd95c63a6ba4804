"""Rates of Markov chains per token: the Perron root against spectra, cycles and long chains."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from infer_align.exact import Chain, log_rewards
from infer_align.exact.asymptotics import (
    log_kl_exponent,
    rate,
    rate_of_best_of_n,
    scaled_cumulant,
    scaled_cumulant_of_best_of_n,
)
from infer_align.exact.chains import renyi_cross_entropy_rate
from infer_align.exact.tilts import beta_for_kl, beta_for_reward, frontier
from tests.chain_zoo import BIGRAMS, HOLES, M1

PERIODIC = ([1, 0, 0, 0], [[0, 0, 0.3, 0.7], [0, 0, 0.9, 0.1], [0.4, 0.6, 0, 0], [0.5, 0.5, 0, 0]])
CASES = {
    "states": (*M1, [0, 1, 2]),
    "far from 0": (*M1, [1000, 1001, 1002]),
    "edges": (*M1, BIGRAMS),
    "holes": (*HOLES, [0, 1, 2]),
    "period two": (*PERIODIC, [0, 2, 1, -1]),
    "log q": (*M1, log_rewards([0.2, 0.3, 0.5])),
}
THETAS = (-2.0, -0.3, 0.0, 0.4, 1.7, 6.0)


def made(name, length=1):
    return Chain(*CASES[name], length)


def tables(name):
    """Transition probabilities and rewards of the edges."""
    _, transition, rewards = CASES[name]
    r = rewards.values() if hasattr(rewards, "values") else np.array(rewards, dtype=float)
    transition = np.array(transition, dtype=float)
    return transition, np.tile(r, (len(r), 1)) if r.ndim == 1 else r


def log_root(p, r, theta):
    top = (theta * r).max()
    return math.log(np.abs(np.linalg.eigvals(p * np.exp(theta * r - top))).max()) + top


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("name", CASES)
def test_cumulants_are_derivatives_of_the_log_spectral_radius(name, theta):
    p, r = tables(name)
    log_mgf, mean, variance = made(name).rate().cumulants(theta)
    assert float(log_mgf) == pytest.approx(log_root(p, r, theta), rel=1e-12, abs=1e-12)
    r = r - r.mean()  # only for the differences
    h = 1e-3
    left, here, right = (log_root(p, r, theta + step) for step in (-h, 0, h))
    shift = tables(name)[1].mean()
    assert mean == pytest.approx(shift + (right - left) / (2 * h), rel=1e-5, abs=3e-6)
    assert variance == pytest.approx((right - 2 * here + left) / h**2, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("name", CASES)
def test_the_kl_per_token_is_theta_times_mean_less_the_log_root(name, theta):
    family = made(name).rate()
    log_mgf, mean, _ = family.cumulants(theta)
    assert family.kl_of_tilt(theta) == pytest.approx(theta * mean - float(log_mgf), abs=1e-9)


@pytest.mark.parametrize("name", ["states", "edges", "holes", "log q"])
def test_long_chains_approach_the_rates(name):
    theta, family = 0.8, made(name).rate()
    log_mgf, mean, variance = family.cumulants(theta)
    short, long = (made(name, m).solve(1 / theta) for m in (200, 400))
    for got, want in (("log_z", log_mgf), ("expected_reward", mean)):
        slope = (float(getattr(long, got)) - float(getattr(short, got))) / 200
        assert slope == pytest.approx(float(want), abs=1e-9)
    h = 1e-4
    means = [
        made(name, m).solve(1 / (theta + s)).expected_reward for m in (200, 400) for s in (-h, h)
    ]
    assert (means[3] - means[2] - means[1] + means[0]) / (400 * h) == pytest.approx(
        variance, abs=1e-5
    )
    _, kernel, stationary = family.kernel(theta)
    np.testing.assert_allclose(np.exp(long.log_kernels[200]), kernel, atol=1e-9)
    np.testing.assert_allclose(np.exp(long.log_marginals[200]), stationary, atol=1e-9)


def test_the_kernel_of_a_periodic_chain_is_stationary_too():
    family = made("period two").rate()
    _, kernel, stationary = family.kernel(0.5)
    np.testing.assert_allclose(kernel.sum(1), 1.0)
    np.testing.assert_allclose(stationary @ kernel, stationary, atol=1e-12)
    with_length = [float(made("period two", m).solve(2.0).log_z) for m in (200, 400)]
    assert (with_length[1] - with_length[0]) / 200 == pytest.approx(
        float(family.cumulants(0.5)[0]), abs=1e-9
    )


def simple_cycles(p):
    states = len(p)
    for size in range(1, states + 1):
        for nodes in itertools.permutations(range(states), size):
            if nodes[0] == min(nodes):
                edges = list(zip(nodes, (*nodes[1:], nodes[0]), strict=True))
                if all(p[i, j] > 0 for i, j in edges):
                    yield edges


def random_chain(seed):
    """Irreducible, with holes, and small whole rewards, so that best cycles tie."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), size=4) * (rng.random((4, 4)) < 0.6)
    p[np.arange(4), (np.arange(4) + 1) % 4] += 0.1
    return p / p.sum(1, keepdims=True), rng.integers(-1, 3, (4, 4))


@pytest.mark.parametrize("seed", range(12))
def test_extremes_are_those_of_the_best_and_worst_cycles(seed):
    p, r = random_chain(seed)
    family = Chain([0.25] * 4, p, r.tolist(), 1).rate()
    means = {tuple(c): sum(int(r[e]) for e in c) / len(c) for c in simple_cycles(p)}
    best, worst = max(means.values()), min(means.values())
    assert family.reward_range == pytest.approx((worst, best), abs=1e-12)
    on_best = np.zeros((4, 4))
    for cycle, mean in means.items():
        if mean >= best - 1e-12:
            for edge in cycle:
                on_best[edge] = p[edge]
    limit = -math.log(np.abs(np.linalg.eigvals(on_best)).max())
    assert family.kl_max == pytest.approx(limit, abs=1e-12)


def far(p, r, theta):
    """Λ, mean and KL in 1200 digits: the Perron root by Newton's method from above."""
    with mpmath.workdps(1200):
        m = mpmath.matrix(p.tolist())
        for i, j in np.ndindex(p.shape):
            m[i, j] *= mpmath.exp(mpmath.mpf(theta) * mpmath.mpf(float(r[i, j])))
        best = max(sum(theta * r[e] for e in c) / len(c) for c in simple_cycles(p))
        x, unit = mpmath.exp(mpmath.mpf(best)), mpmath.eye(len(p))
        for _ in range(40):
            adjugate = _adjugate(x * unit - m)
            trace = sum(adjugate[i, i] for i in range(len(p)))
            step = mpmath.det(x * unit - m) / trace
            x -= step
            if abs(step) < x * mpmath.mpf(10) ** -30:
                break
        # The adjugate is v uᵀ, of the right and the left vector.
        pairs = np.ndindex(p.shape)
        mean = sum(m[i, j] * adjugate[j, i] * mpmath.mpf(float(r[i, j])) for i, j in pairs)
        mean /= x * trace
        return float(mpmath.log(x)), float(mean), float(theta * mean - mpmath.log(x))


def _adjugate(a):
    size, out = a.rows, mpmath.matrix(a.rows, a.rows)
    for i, j in itertools.product(range(size), repeat=2):
        minor = [[a[k, l] for l in range(size) if l != i] for k in range(size) if k != j]
        out[i, j] = (-1) ** (i + j) * mpmath.det(mpmath.matrix(minor))
    return out


@pytest.mark.parametrize("theta", [-500.0, -100.0, 25.0, 100.0, 500.0])
@pytest.mark.parametrize("name", ["states", "edges", "holes", "period two", "log q"])
def test_far_tilts_are_accurate(name, theta):
    """Where the edges of the best cycles differ by more than floats can hold."""
    log_mgf, mean, kl = far(*tables(name), theta)
    family = made(name).rate()
    assert float(family.cumulants(theta)[0]) == pytest.approx(log_mgf, abs=1e-9)
    assert family.cumulants(theta)[1] == pytest.approx(mean, abs=1e-9)
    assert family.kl_of_tilt(theta) == pytest.approx(kl, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_extremes_are_the_limits_of_far_tilts(name):
    family = made(name).rate()
    low, high = family.reward_range
    _, mean, kl = far(*tables(name), 450.0)
    assert (high, family.kl_max) == pytest.approx((mean, kl), abs=1e-9)
    assert low == pytest.approx(far(*tables(name), -450.0)[1], abs=1e-9)


@pytest.mark.parametrize("rewards", [[1, 1, 0], log_rewards([3, 2, 5])], ids=["thirds", "log"])
def test_a_cycle_of_three_is_the_best_cycle_however_its_mean_is_rounded(rewards):
    cycle = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    family = Chain([1, 0, 0], cycle, rewards, 1).rate()
    want = 2 / 3 if isinstance(rewards, list) else math.log(30) / 3
    assert family.reward_range == pytest.approx((want, want), abs=1e-15)
    assert family.kl_max == pytest.approx(0.0, abs=1e-12)


def test_a_reducible_chain_is_refused():
    chain = Chain([1, 0], [[0.5, 0.5], [0, 1]], [0, 1], 5)
    with pytest.raises(ValueError, match="state 0 cannot be reached from state 1"):
        chain.rate()
    assert float(chain.solve(1.0).log_z) > 0  # a finite length is fine


@pytest.mark.slow
def test_chains_of_many_states_have_rates():
    """Reachability must not overflow: 150 states, then two closed halves of 150."""
    states = 150
    uniform = np.full((states, states), 1 / states)
    family = Chain(np.full(states, 1 / states), uniform, [0] * (states - 1) + [1], 1).rate()
    want = math.log(1 + math.expm1(0.5) / states)
    assert float(family.cumulants(0.5)[0]) == pytest.approx(want, abs=1e-12)
    halves = np.kron(np.eye(2), uniform)
    two = Chain(np.full(2 * states, 0.5 / states), halves, [0] * (2 * states), 1)
    with pytest.raises(ValueError, match="cannot be reached"):
        two.rate()


@pytest.mark.parametrize("name", CASES)
def test_the_rate_function_is_the_legendre_transform(name):
    p, r = tables(name)
    family, shift = made(name).rate(), r.mean()
    r = r - shift
    low, high = family.reward_range

    def supremum(x, at):
        gain = lambda t: t * (x - shift) - log_root(p, r, at + t) + log_root(p, r, at)
        return -minimize_scalar(lambda t: -gain(t), bounds=(-40, 40), method="bounded").fun

    for share in (0.2, 0.5, 0.8):
        x = low + share * (high - low)
        assert rate(family, x) == pytest.approx(supremum(x, 0.0), abs=1e-9)
        assert rate(family, x, beta=2.0) == pytest.approx(supremum(x, 0.5), abs=1e-9)
    assert rate(family, float(family.cumulants(0.0)[1])) == pytest.approx(0.0, abs=1e-12)
    assert rate(family, low - 0.01) == rate(family, high + 0.01) == math.inf


@pytest.mark.parametrize("name", ["states", "far from 0", "edges", "holes", "period two"])
def test_the_rate_at_the_ends_is_the_greatest_kl(name):
    initial, transition, rewards = CASES[name]
    family = made(name).rate()
    low, high = family.reward_range
    assert rate(family, high) == pytest.approx(family.kl_max, abs=1e-6)
    opposite = Chain(initial, transition, (-np.array(rewards, dtype=object)).tolist(), 1).rate()
    assert rate(family, low) == pytest.approx(opposite.kl_max, abs=1e-6)


def test_a_constant_reward_has_a_trivial_rate():
    family = Chain(*M1, [0, 0, 0], 1).rate()
    assert family.reward_range == (0.0, 0.0)
    assert family.kl_max == pytest.approx(0.0, abs=1e-12)
    assert rate(family, 0.0) == pytest.approx(0.0, abs=1e-12)
    assert rate(family, 0.1) == math.inf


def test_frontier_temperature_and_cumulants_of_a_chain_belong_together():
    family = made("edges").rate()
    point = frontier(family, 0.3)
    assert float(family.kl_of_tilt(1 / point.beta)) == pytest.approx(0.3, abs=1e-12)
    assert beta_for_reward(family, point.reward) == pytest.approx(point.beta, rel=1e-8)
    h = 1e-5
    slope = (frontier(family, 0.3 + h).reward - frontier(family, 0.3 - h).reward) / (2 * h)
    assert point.beta == pytest.approx(slope, rel=1e-6)
    assert rate(family, point.reward) == pytest.approx(0.3, abs=1e-10)
    assert rate_of_best_of_n(family, point.reward + 0.05, 0.3) == pytest.approx(
        rate(family, point.reward + 0.05) - 0.3
    )
    assert rate_of_best_of_n(family, point.reward - 0.05, 0.3) == math.inf
    p, r = tables("edges")
    b = 1 / point.beta
    want = log_root(p, r, b + 0.7) - log_root(p, r, b)
    assert float(scaled_cumulant(family, 0.7, beta=point.beta)) == pytest.approx(want, abs=1e-11)
    assert scaled_cumulant_of_best_of_n(family, b / 2, 0.3) == pytest.approx(b / 2 * point.reward)
    assert scaled_cumulant_of_best_of_n(family, 2 * b, 0.3) == pytest.approx(
        log_root(p, r, 2 * b) + 0.3
    )
    exponent = 0.3 + 2 * log_root(p, r, b / 2) - log_root(p, r, b)
    assert log_kl_exponent(family, 0.3) == pytest.approx(exponent, abs=1e-10)
    assert beta_for_kl(family, family.kl_max + 0.1) == 0.0


def log_sum(initial, p, q, order, m):
    """log Σ over paths of p·q^(order − 1), both starting alike: by powers of a matrix."""
    step = np.where(p > 0, p * np.where(q > 0, q, 1.0) ** (order - 1) * (q > 0), 0.0)
    vector, total = np.array(initial), 0.0
    for _ in range(m):
        vector = vector @ step
        total, vector = total + math.log(vector.sum()), vector / vector.sum()
    return total


@pytest.mark.parametrize("order", [-1.0, 0.0, 0.5, 2.0, 3.5])
def test_renyi_cross_entropy_rates_are_those_of_long_sequences(order):
    p, q = np.array(M1[1]), np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    got = renyi_cross_entropy_rate(np.log(p), np.log(q), order)
    slope = (log_sum(M1[0], p, q, order, 400) - log_sum(M1[0], p, q, order, 200)) / 200
    assert got == pytest.approx(slope / (1 - order), abs=1e-10)


def test_renyi_cross_entropy_rate_of_order_one_and_of_missing_edges():
    p, q = np.array(M1[1]), np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    stationary = np.linalg.matrix_power(p, 200)[0]
    want = -float(stationary @ (p * np.log(q)).sum(1))
    assert renyi_cross_entropy_rate(np.log(p), np.log(q), 1) == pytest.approx(want, abs=1e-12)
    near = [renyi_cross_entropy_rate(np.log(p), np.log(q), 1 + s) for s in (-1e-5, 1e-5)]
    assert near[0] > want > near[1]
    assert sum(near) / 2 == pytest.approx(want, abs=1e-8)
    log_q = np.where(np.eye(3)[::-1] > 0, -math.inf, np.log(q))  # 0→2, 1→1 and 2→0 are missing
    for order in (-1.0, 0.0, 0.5, 1.0):
        assert renyi_cross_entropy_rate(np.log(p), log_q, order) == math.inf
    slope = log_sum(M1[0], p, np.exp(log_q), 2.0, 400) - log_sum(M1[0], p, np.exp(log_q), 2.0, 200)
    assert renyi_cross_entropy_rate(np.log(p), log_q, 2) == pytest.approx(-slope / 200, abs=1e-10)


def test_renyi_cross_entropy_rate_where_q_never_leaves_a_state():
    """p is irreducible, as the function asks; p restricted to the edges of q is not."""
    p = np.array(M1[1])
    with np.errstate(divide="ignore"):
        log_q = np.log(np.array([[1, 0, 0], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]))
    product = p * np.exp(log_q)
    want = -math.log(np.abs(np.linalg.eigvals(product)).max())
    assert renyi_cross_entropy_rate(np.log(p), log_q, 2) == pytest.approx(want, abs=1e-10)
