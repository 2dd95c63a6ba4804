"""Nash equilibria of KL-regularised preference games, certified without trusting the solver."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from infer_align import Space, exact, targets
from infer_align.targets import WeightedSample

PRIOR = np.log([0.6, 0.3, 0.1])
CYCLE = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])


def random_game(n, seed):
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=(n, n))
    return 1 / (1 + np.exp(strength.T - strength)), np.log(rng.dirichlet(np.ones(n)))


def payoff(table, log_prior, beta, p, q):
    """J(p, q) by a direct sum."""
    kl = lambda a: sum(x * (math.log(x) - b) for x, b in zip(a, log_prior, strict=True) if x > 0)
    return p @ table @ q - beta * kl(p) + beta * kl(q)


@pytest.mark.parametrize("beta", [5.0, 0.5, 0.05, 0.005])
@pytest.mark.parametrize("seed", [0, 1])
def test_nash_is_the_fixed_point(seed, beta):
    """The equilibrium is prior exp(P pi / beta), by a direct sum in every coordinate."""
    table, prior = random_game(7, seed)
    found = exact.nash(table, prior, beta)
    p = np.exp(found.log_policy)
    weight = np.array([math.exp(a + sum(t * x for t, x in zip(row, p, strict=True)) / beta)
                       for a, row in zip(prior, table, strict=True)])  # fmt: skip
    np.testing.assert_allclose(p, weight / weight.sum(), rtol=1e-11)
    np.testing.assert_allclose(found.log_z, math.log(weight.sum()), rtol=1e-12)
    np.testing.assert_allclose(found.win_rate @ p, 0.5, rtol=1e-12)
    np.testing.assert_allclose(found.kl_to_prior, p @ (np.log(p) - prior), rtol=1e-9, atol=1e-14)
    assert 0 <= found.duality_gap < 1e-12


def test_gap_is_the_gain_of_both_players():
    """The gap equals max J - min J found by a general-purpose optimiser over all policies."""
    beta, p = 0.3, np.array([0.2, 0.5, 0.3])

    def best(sign):
        def loss(z):
            other = np.exp(z - np.logaddexp.reduce(z))
            pair = (other, p) if sign > 0 else (p, other)
            return -sign * payoff(CYCLE, PRIOR, beta, *pair)

        return minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).fun

    want = -best(1) - best(-1)
    np.testing.assert_allclose(exact.duality_gap(CYCLE, np.log(p), PRIOR, beta), want, rtol=1e-7)


def test_nobody_gains_by_leaving_the_equilibrium():
    """No policy of a grid does better against the equilibrium than the equilibrium itself."""
    found = exact.nash(CYCLE, PRIOR, 0.2)
    p = np.exp(found.log_policy)
    grid = [np.array([a, b, 20 - a - b]) / 20 for a, b in itertools.product(range(21), repeat=2)
            if a + b <= 20]  # fmt: skip
    assert max(payoff(CYCLE, PRIOR, 0.2, q, p) for q in grid) < payoff(CYCLE, PRIOR, 0.2, p, p)


def test_limits_and_symmetries():
    """A dear nat keeps the prior; a cheap one gives the unregularised equilibrium."""
    np.testing.assert_allclose(exact.nash(CYCLE, PRIOR, 1e6).log_policy, PRIOR, atol=1e-5)
    cheap = np.exp(exact.nash(CYCLE, PRIOR, 1e-4).log_policy)
    np.testing.assert_allclose(cheap, 1 / 3, atol=2e-4)  # of the symmetric cycle
    order = [2, 0, 1]
    moved = exact.nash(CYCLE[np.ix_(order, order)], PRIOR[order] + 3.0, 0.2)  # any scale of prior
    np.testing.assert_allclose(
        moved.log_policy, exact.nash(CYCLE, PRIOR, 0.2).log_policy[order], rtol=1e-10
    )


def test_transitive_preference_is_a_tilt():
    """Preferences that are linear in a reward give the tilt by that reward."""
    reward, beta = np.array([0.0, 0.3, 0.5]), 0.2
    table = 0.5 + (reward[:, None] - reward) / 2
    want = PRIOR + reward / (2 * beta)
    found = exact.nash(table, PRIOR, beta)
    np.testing.assert_allclose(found.log_policy, want - np.logaddexp.reduce(want), rtol=1e-12)


def test_outcomes_that_the_prior_excludes_stay_out():
    """A prior of -inf is a rule of the game: probability 0, and no NaN anywhere."""
    prior = np.log([0.6, 0.4, 1.0])
    prior[2] = -math.inf
    found = exact.nash(CYCLE, prior, 0.2)
    small = exact.nash(CYCLE[:2, :2], prior[:2], 0.2)
    np.testing.assert_allclose(found.log_policy[:2], small.log_policy)
    assert found.log_policy[2] == -math.inf
    assert np.isfinite([found.log_z, found.duality_gap, found.residual]).all()
    assert exact.duality_gap(CYCLE, np.log(np.ones(3) / 3), prior, 0.2) == math.inf


def test_best_response_and_preference_tilt_agree():
    """The target of a preference tilt is the best response; at the equilibrium, itself."""
    beta, space = 0.2, Space(np.arange(3))
    prior = targets.Target(Listed(PRIOR), lambda y: np.zeros(len(y)))
    wins = lambda y, other: CYCLE[y, other]
    q = np.array([0.2, 0.5, 0.3])
    target = targets.preference_tilt(prior, wins, np.arange(3), beta, weights=q)
    want = exact.best_response(CYCLE, np.log(q), PRIOR, beta)
    np.testing.assert_allclose(space.log_target(target.log_density(np.arange(3))), want, rtol=1e-12)
    found = exact.nash(CYCLE, PRIOR, beta)
    p = np.exp(found.log_policy)
    own = targets.preference_tilt(prior, wins, np.arange(3), beta, weights=p)
    density = own.log_density(np.arange(3))
    np.testing.assert_allclose(space.log_target(density), found.log_policy, rtol=1e-11)
    np.testing.assert_allclose(space.log_z(density), found.log_z, rtol=1e-12)
    sample = WeightedSample(np.arange(3), np.log(p), np.log(p))
    as_sample = targets.preference_tilt(prior, wins, sample, beta)
    np.testing.assert_allclose(as_sample.log_density(np.arange(3)), density, rtol=1e-12)


class Listed:
    """A law over 0, 1, ... with a log_prob, and nothing else."""

    def __init__(self, log_p):
        self.log_p = log_p

    def log_prob(self, value):
        return self.log_p[value]


@pytest.mark.parametrize(
    ("table", "prior", "beta", "message"),
    [
        (CYCLE[:2], PRIOR, 0.1, r"\(N, N\)"),
        (CYCLE + 0.1, PRIOR, 0.1, "symmetrise"),
        (np.array([[0.5, 1.2], [-0.2, 0.5]]), PRIOR[:2], 0.1, "symmetrise"),
        (CYCLE, PRIOR, 0.0, "price of a nat"),
        (CYCLE, PRIOR, math.inf, "price of a nat"),
        (CYCLE, np.full(3, -math.inf), 0.1, "not everywhere"),
        (CYCLE, np.array([0.0, math.nan, 0.0]), 0.1, "finite"),
    ],
)
def test_what_is_no_game_is_refused(table, prior, beta, message):
    """Each refusal says what was given and what to do."""
    with pytest.raises(ValueError, match=message):
        exact.nash(table, prior, beta)


@pytest.mark.parametrize("beta", [0.9, 0.85, 0.999, 1.0, 0.7072, 0.35, 2.0])
def test_every_price_is_solved(beta):
    """Also between 1 and 2^(−¼), where the way down from 1 had no step: by iteration."""
    prior, p = np.exp(PRIOR), np.exp(PRIOR)
    for _ in range(2000):
        response = prior * np.exp(CYCLE @ p / beta)
        p = 0.5 * p + 0.5 * response / response.sum()
    found = exact.nash(CYCLE, PRIOR, beta)
    np.testing.assert_allclose(np.exp(found.log_policy), p, rtol=1e-12)
    if beta == 0.9:
        np.testing.assert_allclose(p, [0.53678561, 0.36934913, 0.09386526], atol=1e-8)
