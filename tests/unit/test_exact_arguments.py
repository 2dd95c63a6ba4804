"""Arguments of the exact analysis that cannot be right are sentences, not errors of NumPy."""

import math
import warnings
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest

from infer_align import exact
from infer_align.exact import selection, tilts


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the type checks of the test run, which refuse with an error of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


LAW = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2])
CHAIN = exact.Chain([0.5, 0.5], [[0.5, 0.5], [0.2, 0.8]], [0, 1], 3)
TWO = np.array([1.0, 2.0])
SCALARS = {
    "best_of_n": lambda x: selection.best_of_n(LAW, x),
    "best_of_n log_n": lambda x: selection.best_of_n(LAW, log_n=x),
    "log_kl_to_best_of_n": lambda x: selection.log_kl_to_best_of_n(LAW, LAW.log_prob, x),
    "soft_best_of_n": lambda x: selection.soft_best_of_n(LAW, x, 1.0),
    "soft_best_of_n temperature": lambda x: selection.soft_best_of_n(LAW, 2, x),
    "best_of_poisson": lambda x: selection.best_of_poisson(LAW, x),
    "threshold": lambda x: selection.threshold(LAW, x),
    "sampling_costs": lambda x: selection.sampling_costs(LAW, x),
    "kl_estimate": lambda x: selection.kl_estimate(x, -1.0),
    "win_rate_optimum": lambda x: selection.win_rate_optimum(LAW, x),
    "win_rate_of_best_of_n": lambda x: selection.win_rate_of_best_of_n(LAW, LAW.log_prob, x),
    "inference_aware n": lambda x: selection.inference_aware(LAW, x, 1.0),
    "inference_aware beta": lambda x: selection.inference_aware(LAW, 2, x),
    "beta_for_kl": lambda x: tilts.beta_for_kl(LAW, x),
    "beta_for_reward": lambda x: tilts.beta_for_reward(LAW, x),
    "closeness": lambda x: tilts.closeness(LAW, LAW.log_prob, x),
    "RewardLaw.tilt": LAW.tilt,
    "RewardLaw.log_z": LAW.log_z,
    "RewardLaw.cumulants": LAW.cumulants,
    "Chain.solve": CHAIN.solve,
    "nash": lambda x: exact.nash(np.full((2, 2), 0.5), np.zeros(2), x),
}


@pytest.mark.parametrize(
    "wrong", [TWO, TWO[:1], TWO[:0], [1, 2], 1j, "x", None, math.nan], ids=repr
)
@pytest.mark.parametrize("name", SCALARS)
def test_where_one_number_is_needed(name, wrong):
    """An array of two was `the truth value of an array is ambiguous`."""
    said = r"must be|needs a finite|give n or log_n|give mu|log_n must|of n >= 1|>= 0, got nan"
    with pytest.raises((ValueError, TypeError), match=said):
        SCALARS[name](wrong)


def test_one_number_of_numpy_is_taken():
    want = CHAIN.solve(2.0).log_z
    assert CHAIN.solve(np.array(2.0)).log_z == CHAIN.solve(np.float32(2)).log_z == want
    with pytest.raises(ValueError, match="must be positive"):
        CHAIN.solve(np.float32(-1))


BUDGETS = [5e-324, 1e-300, 1e-20, 1e300]


@pytest.mark.parametrize("kl", BUDGETS)
@pytest.mark.parametrize(
    "family",
    [LAW, CHAIN.rate(), *(exact.reward_law([0.5, 0.3, 0.2], [0, s, 2 * s]) for s in (1e-89, 4e88))],
    ids=["law", "chain", "small rewards", "large rewards"],
)
def test_budgets_at_the_ends_of_the_floats(family, kl):
    """1e-300 was an OverflowError of Python's power."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        point = tilts.frontier(family, kl)
        assert point.beta == tilts.beta_for_kl(family, kl)
        high = family.reward_range[1]
        if kl > 1:
            assert point == (kl, 0.0, high, 0.0, 0.0)
            return
        mean, variance = family.cumulants(0.0)[1:3]
        # KL = variance/(2 beta²) there, to as many digits as a subnormal has.
        ratio = math.sqrt(variance) / point.beta / math.sqrt(2 * kl)
        np.testing.assert_allclose(ratio, 1.0, rtol=0.2 if kl < 1e-310 else 1e-8)
        np.testing.assert_allclose(point.reward, mean, rtol=1e-9)
        assert math.inf > point.beta > 0 > point.curvature


def test_small_kl_expansion_takes_budgets():
    assert tilts.small_kl_expansion(LAW, 0.0) == LAW.cumulants(0.0)[1]
    for wrong, said in (
        (-1, ">= 0"),
        (math.nan, ">= 0"),
        ("x", "nats"),
        ([1], "nats"),
        (1j, "nats"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            tilts.small_kl_expansion(LAW, wrong)
    with pytest.raises(ValueError, match="no budget in it"):
        tilts.frontier(LAW, [])


@pytest.mark.parametrize("n", [0, 0.5, -1, math.nan, math.inf, "x", None, [1, 2], 1j], ids=repr)
def test_bounds_of_best_of_n(n):
    """0 divided by zero, inf gave NaN."""
    for bound in (selection.kl_bound, lambda n: selection.kl_estimate(n, -1.0)):
        with pytest.raises((ValueError, TypeError), match=">= 1"):
            bound(n)


def test_an_infinite_mean_number_of_draws_is_refused():
    """It gave NaN."""
    with pytest.raises(ValueError, match="finite, got inf"):
        selection.best_of_poisson(LAW, math.inf)


HALF, GAME = np.log([0.5, 0.5]), np.array([[0.5, 0.9], [0.1, 0.5]])
MATRICES = {
    "complex": (GAME + 0j, "complex128"),
    "ragged": ([[0.5, 0.9], [0.1]], "inhomogeneous"),
    "NaN": (np.where(GAME == 0.9, math.nan, GAME), "row 0, column 1 is nan"),
    "infinite": ([[0.5, math.inf], [-math.inf, 0.5]], "row 0, column 1 is inf"),
    "not square": (np.ones((2, 3)) / 2, r"shapes \(2, 3\)"),
    "empty": ([], r"shapes \(0,\)"),
    "a number": (3, r"shapes \(\)"),
    "None": (None, "None"),
    "text": ([["a", "b"], ["c", "d"]], "<U1"),
    "booleans": ([[True, False], [True, True]], "bool"),
}
LAWS = {
    "complex": (HALF + 0j, "complex128"),
    "ragged": ([[1.0], [1.0, 2.0]], "inhomogeneous"),
    "NaN": ([0.5, math.nan], "finite, or -inf"),
    "infinite": ([0.0, math.inf], "finite, or -inf"),
    "nothing": ([-math.inf] * 2, "not everywhere"),
    "longer": ([0.0, 0.0, 0.0], r"\(3,\)"),
    "a number": (3, r"\(\)"),
    "None": (None, "None"),
    "text": (["a", "b"], "<U1"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_preferences(name):
    table, said = MATRICES[name]
    for call in (
        lambda: exact.nash(table, HALF, 0.4),
        lambda: exact.best_response(table, HALF, HALF, 0.4),
        lambda: exact.duality_gap(table, HALF, HALF, 0.4),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            call()


@pytest.mark.parametrize("name", LAWS)
def test_laws_of_a_game(name):
    law, said = LAWS[name]
    for call in (
        lambda: exact.nash(GAME, law, 0.4),
        lambda: exact.best_response(GAME, law, HALF, 0.4),
        lambda: exact.duality_gap(GAME, law, HALF, 0.4),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            call()


def test_exact_preferences_are_numbers():
    table = [[Fraction(1, 2), Fraction(9, 10)], [Fraction(1, 10), Fraction(1, 2)]]
    assert exact.nash(table, HALF, 0.4).log_z == exact.nash(GAME, HALF, 0.4).log_z
