"""Weights of contexts, standard errors and effective sizes of solved targets, by hand.

Errors are those of the infinitesimal jackknife: with ∂_i the change of a result as draw i gets a
share more of weight, found here by solving again, se² = n/(n − 1) Σ_i ∂_i².
"""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from infer_align import WeightedSample, moment_match, solve_moments
from infer_align.targets import kl_budget

P = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
COUNTS = np.array([[50, 30, 20], [20, 20, 60]])
A = np.array([0.8, 0.2])
Y = np.stack([np.repeat(np.arange(3), c) for c in COUNTS], axis=1)
KL, N = 0.2, 100


class Prior:
    """Of two contexts; only what is solved on its sample is asked here."""

    batch_shape, event_shape = (2,), ()

    def log_prob(self, y):
        return np.take_along_axis(np.log(P)[None], y[..., None], axis=-1)[..., 0]


def sample(cluster=None):
    zero = np.zeros(Y.shape)
    return WeightedSample(Y, zero, zero, cluster=cluster)


def reward(y):
    return y**2 / 4.0


VALUES = reward(np.arange(3))


def spent(theta, p):
    """KL of a context's tilt to its letters' law."""
    q = p * np.exp(theta * VALUES)
    q = q / q.sum()
    return float(q @ np.log(q / p)), float(q @ VALUES), q


def solved(p=P, a=A):
    """θ of the budget, by a general root finder."""
    excess = lambda t: sum(w * spent(t, row)[0] for w, row in zip(a, p, strict=True)) - KL
    return brentq(excess, 1e-6, 50, xtol=1e-14)


def moved(context, letter, size=1e-6):
    """The letters' laws after one draw of a letter has so much more weight."""
    p = P.copy()
    p[context, letter] += size / N
    p[context] /= p[context].sum()
    return p


def jackknife(result):
    """Standard error of a function of the letters' laws, all draws independent."""
    base, total = result(P), 0.0
    for c in range(2):
        for letter in range(3):
            slope = (result(moved(c, letter)) - base) / 1e-6
            total += COUNTS[c, letter] * slope**2
    return math.sqrt(total * N / (N - 1))


def test_a_budget_by_hand_with_weights_of_contexts():
    """θ, the mean reward, the pooled effective size: averages with a, not with equal shares."""
    found = kl_budget(Prior(), reward, KL, sample(), context_weights=3 * A, ess_min=10)
    theta = solved()
    assert found.beta == pytest.approx(1 / theta, rel=1e-9)
    assert abs(theta / solved(a=np.array([0.5, 0.5])) - 1) > 0.02
    each = [spent(theta, row) for row in P]
    assert found.reward == pytest.approx(A @ [e[1] for e in each], rel=1e-9)
    ess = np.array([1 / np.sum(c * (e[2] / c) ** 2) for c, e in zip(COUNTS, each, strict=True)])
    np.testing.assert_allclose(found.ess, ess, rtol=1e-9)
    assert found.ess_pooled == pytest.approx(1 / np.sum(A**2 / ess), rel=1e-9)


def test_the_errors_of_a_budget_by_hand():
    """Of β, solved again, and of the KL at the β found."""
    found = kl_budget(Prior(), reward, KL, sample(), context_weights=A, ess_min=10)
    assert found.beta_se == pytest.approx(jackknife(lambda p: 1 / solved(p)), rel=1e-4)
    theta = solved()
    at = lambda p: sum(a * spent(theta, row)[0] for a, row in zip(A, p, strict=True))
    assert found.kl_se == pytest.approx(jackknife(at), rel=1e-4)


def shares(p, a=A):
    """λ of a mean share of .45 of the last letter, by a general root finder."""
    share = lambda m, row: row[2] * math.exp(m) / (1 - row[2] + row[2] * math.exp(m))
    return brentq(lambda m: sum(w * share(m, r) for w, r in zip(a, p, strict=True)) - 0.45, -9, 9)


LAST = moment_match(Prior(), {"last": (lambda y: y == 2, 0.45)})


def test_moments_and_their_errors_by_hand():
    """λ, its error, that of the moment, and the KLs, with weights of contexts."""
    fit = solve_moments(LAST, sample(), context_weights=A, ess_min=10)
    m = shares(P)
    assert fit.multipliers["last"] == pytest.approx(m, rel=1e-9)
    assert fit.multiplier_errors["last"] == pytest.approx(jackknife(shares), rel=1e-4)
    share = lambda row: row[2] * math.exp(m) / (1 - row[2] + row[2] * math.exp(m))
    at = lambda p: sum(a * share(row) for a, row in zip(A, p, strict=True))
    assert fit.standard_errors["last"] == pytest.approx(jackknife(at), rel=1e-4)
    kls = [q * math.log(q / r[2]) + (1 - q) * math.log((1 - q) / (1 - r[2]))
           for r in P for q in [share(r)]]  # fmt: skip
    np.testing.assert_allclose(fit.kl_to_base, kls, rtol=1e-9)


def test_chains_are_the_units_of_errors():
    """20 chains of 5 equal draws in each context: sums by chain, and 20/19 for 100/99."""
    chains = np.repeat(np.arange(20), 5)[:, None] + np.zeros((1, 2), dtype=int)
    assert all(len(set(Y[5 * k : 5 * k + 5, c])) == 1 for k in range(20) for c in range(2))
    fit = solve_moments(LAST, sample(chains), context_weights=A, ess_min=10)
    plain = solve_moments(LAST, sample(), context_weights=A, ess_min=10)
    factor = math.sqrt(5 * (20 / 19) / (100 / 99))
    ratio = fit.standard_errors["last"] / plain.standard_errors["last"]
    assert ratio == pytest.approx(factor, rel=1e-9)
    budget, alone = (
        kl_budget(Prior(), reward, KL, s, context_weights=A, ess_min=10)
        for s in (sample(chains), sample())
    )
    assert budget.kl_se / alone.kl_se == pytest.approx(factor, rel=1e-9)
    assert budget.ess_pooled < alone.ess_pooled / 4
