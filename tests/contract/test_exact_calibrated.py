"""Policies of a reward that never ties: against integrals, and laws of many equal levels."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from infer_align.exact import RewardLaw, calibrated
from infer_align.exact.selection import (
    best_of_n,
    best_of_poisson,
    kl_bound,
    threshold,
    win_rate_optimum,
)

LEVELS = 20_000
DENSITIES = {
    "best of n": (calibrated.best_of_n, 5.5, lambda n, u: n * u ** (n - 1)),
    "best of 1": (calibrated.best_of_n, 1, lambda n, u: 1.0),
    "tilt": (calibrated.tilt, 0.15, lambda b, u: math.exp(u / b) / (b * math.expm1(1 / b))),
    "weak tilt": (calibrated.tilt, 40.0, lambda b, u: math.exp(u / b) / (b * math.expm1(1 / b))),
    "weakest tilt": (calibrated.tilt, 2e3, lambda b, u: math.exp(u / b) / (b * math.expm1(1 / b))),
    "poisson": (calibrated.best_of_poisson, 6.0, lambda m, u: (1 + m * u) * math.exp(m * (u - 1))),
    "few": (calibrated.best_of_poisson, 0.1, lambda m, u: (1 + m * u) * math.exp(m * (u - 1))),
    "threshold": (calibrated.threshold, 0.7, lambda t, u: 1 / (1 - t) if u >= t else 0.0),
}


@pytest.fixture(scope="module")
def fine():
    """Equally likely levels, without ties but for their number."""
    return RewardLaw.of_outcomes(list(range(LEVELS)), np.full(LEVELS, -math.log(LEVELS)))


@pytest.mark.parametrize("name", DENSITIES)
def test_kl_and_win_rate_are_the_integrals_of_the_density(name):
    policy, parameter, density = DENSITIES[name]

    def integral(f):
        cuts = [0.0, 0.7, 1.0]
        parts = [quad(f, *ends, epsabs=1e-13, limit=200)[0] for ends in zip(cuts, cuts[1:])]  # noqa: B905, RUF007
        return sum(parts)

    safe_log = lambda x: math.log(x) if x > 0 else 0.0
    got = policy(parameter)
    assert integral(lambda u: density(parameter, u)) == pytest.approx(1.0, rel=1e-10)
    kl = integral(lambda u: density(parameter, u) * safe_log(density(parameter, u)))
    assert got.kl == pytest.approx(kl, rel=1e-8, abs=1e-12)
    win_rate = integral(lambda u: u * density(parameter, u))
    assert got.win_rate == pytest.approx(win_rate, rel=1e-10)


def test_twenty_thousand_equal_levels_come_close(fine):
    pairs = [
        (calibrated.best_of_n(6.5), best_of_n(fine, 6.5)),
        (calibrated.best_of_n(40), best_of_n(fine, 40)),
        (calibrated.best_of_poisson(3.0), best_of_poisson(fine, 3.0)),
        (calibrated.threshold(0.75), threshold(fine, 15_000)),
        (calibrated.tilt(0.2), fine.calibrated().tilt(0.2)),
        (calibrated.tilt(0.2), win_rate_optimum(fine, calibrated.tilt(0.2).kl)),
    ]
    for want, policy in pairs:
        assert float(fine.kl_to_prior(policy)) == pytest.approx(want.kl, abs=3e-6)
        assert float(fine.win_rate(policy)) == pytest.approx(want.win_rate, abs=1e-6)


def matched(policy, kl, low, high):
    """The policy of a family that has a given KL."""
    return policy(brentq(lambda x: policy(x).kl - kl, low, high, xtol=1e-14))


@pytest.mark.parametrize(
    ("n", "gap", "digits"), [(2, 0.00924, 5), (4, 0.00400, 5), (8, 0.00079, 5), (64, 1.9e-6, 7)]
)
def test_best_of_n_loses_little_to_the_win_rate_optimum(n, gap, digits):
    drawn = calibrated.best_of_n(n)
    best = matched(calibrated.tilt, drawn.kl, 1e-3, 50.0)
    assert best.win_rate - drawn.win_rate == pytest.approx(gap, abs=0.51 * 10**-digits)


def test_best_of_poisson_is_within_a_thousandth_of_the_least_kl():
    gaps = []
    for mu in (0.5, 1, 2, 3, 5, 8, 12, 20, 35, 50):
        drawn = calibrated.best_of_poisson(mu)
        win = lambda b: calibrated.tilt(b).win_rate - drawn.win_rate  # noqa: B023
        gaps.append(drawn.kl - calibrated.tilt(brentq(win, 1e-3, 50.0, xtol=1e-14)).kl)
    assert 4e-4 < max(gaps) < 8e-4
    assert min(gaps) > 0


@pytest.mark.parametrize("mu", [1e-5, 9.99e-5, 1.01e-4, 1e-3, 0.02])
def test_few_further_draws_cost_little_and_warn_of_nothing(mu):
    policy = calibrated.best_of_poisson(mu)
    assert policy.kl == pytest.approx(mu**2 / 6, rel=2 * mu)
    assert policy.win_rate == pytest.approx(0.5 + mu / 6, abs=mu**2)


def test_formulas_have_their_limits():
    below, above = calibrated.tilt(1e3 * (1 - 1e-9)), calibrated.tilt(1e3 * (1 + 1e-9))
    assert below.kl == pytest.approx(above.kl, rel=1e-6)
    assert below.win_rate == pytest.approx(above.win_rate, rel=1e-12)
    assert calibrated.best_of_poisson(0) == (0.0, 0.5)
    assert calibrated.best_of_poisson(1e6).kl == pytest.approx(math.log(1e6) - 1, rel=1e-4)
    assert calibrated.tilt(1e-5).kl == pytest.approx(math.log(1e5) - 1, rel=1e-9)
    assert calibrated.best_of_n(9).kl == pytest.approx(float(kl_bound(9)), rel=1e-14)


@pytest.mark.parametrize(
    ("policy", "value", "message"),
    [
        (calibrated.best_of_n, 0.5, r"needs n >= 1, got 0\.5"),
        (calibrated.best_of_n, math.nan, "must be a finite number >= 1, got nan"),
        (calibrated.tilt, 0.0, r"must be positive, got 0\.0"),
        (calibrated.tilt, -1, "must be positive, got -1"),
        (calibrated.best_of_poisson, -1, "must be >= 0, got -1"),
        (calibrated.threshold, 1, r"lies in \[0, 1\), got 1"),
        (calibrated.threshold, math.nan, "got nan"),
    ],
)
def test_bad_parameters_are_named(policy, value, message):
    with pytest.raises(ValueError, match=message):
        policy(value)
