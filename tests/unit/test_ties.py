"""The one rule of a tie: what is one level, and that every door has the same levels."""

import itertools
import math

import numpy as np
import pytest

from infer_align import (
    RewardCdf,
    _ties,
    best_of_n,
    quantile,
    samplers,
    threshold,
    top_fraction,
)
from infer_align.exact import RewardLaw, reward_law, selection
from tests.sources import TableSource

ULP = 2.0**-52
TWO_ORDERS = np.array([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1])
HALF = np.log([0.5, 0.5])
Y = np.array(list(itertools.product(range(3), repeat=6)))
TENTHS = np.array([1, 2, 7])[Y].sum(-1)
SUMS = np.array([0.1, 0.2, 0.7])[Y].sum(-1)
LOG_P = np.log(np.array([0.5, 0.3, 0.2]))[Y].sum(-1)


class Listed:
    """A distribution over 0, ..., N − 1."""

    def __init__(self, log_prob):
        self.log_probs = log_prob

    def log_prob(self, y):
        return self.log_probs[y]


def by_hand(n):
    """Best of n on whole tenths: levels, and the density of each outcome."""
    levels, label = np.unique(TENTHS, return_inverse=True)
    mass = np.bincount(label, np.exp(LOG_P))
    cdf = np.concatenate([[0.0], np.cumsum(mass)])
    best = cdf[1:] ** n - cdf[:-1] ** n
    return levels, best, (best / mass)[label] * np.exp(LOG_P)


def test_two_orders_of_a_sum_are_one_level_at_every_door():
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1: the best of four is a fair coin, for target, law,
    sampler, quantile, top fraction and threshold."""
    assert TWO_ORDERS[0] != TWO_ORDERS[1]
    y, reward = np.arange(2), lambda y: TWO_ORDERS[y]
    prior, cdf = Listed(HALF), RewardCdf.exact(TWO_ORDERS, HALF)
    half = [0.5, 0.5]
    np.testing.assert_allclose(np.exp(best_of_n(prior, reward, 4, cdf).log_density(y)), half)
    np.testing.assert_allclose(quantile(reward, cdf)(y), half)
    np.testing.assert_allclose(np.exp(top_fraction(prior, reward, 0.5, cdf).log_potential(y)), half)
    for level in TWO_ORDERS:
        np.testing.assert_array_equal(threshold(prior, reward, level).log_potential(y), 0.0)
    law = RewardLaw.of_outcomes(TWO_ORDERS, HALF)
    assert law.rewards.tolist() == [0.6]
    np.testing.assert_allclose(np.exp(selection.best_of_n(law, 4)), 1.0)
    drawn = samplers.best_of_n(TableSource(y, HALF, HALF), reward, 4, 4000).outcomes
    assert abs(drawn.mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)


def test_a_sum_of_weights_has_as_many_levels_as_its_decimals():
    """w[y].sum(-1), w = (.1, .2, .7), 6 tokens: 27 levels of more floats, KL 1.8207 for n = 16."""
    levels, best, density = by_hand(16)
    assert (len(levels), len(np.unique(SUMS)) > 40) == (27, True)
    law = RewardLaw.of_outcomes(SUMS, LOG_P)
    np.testing.assert_array_equal(law.rewards, levels / 10)
    np.testing.assert_allclose(np.exp(selection.best_of_n(law, 16)), best, rtol=1e-9)
    assert float(law.kl_to_prior(selection.best_of_n(law, 16))) == pytest.approx(
        1.8207186, abs=1e-7
    )
    target = best_of_n(Listed(LOG_P), lambda y: SUMS[y], 16, RewardCdf.exact(SUMS, LOG_P))
    np.testing.assert_allclose(np.exp(target.log_density(np.arange(729))), density, rtol=1e-9)


def test_the_sampler_draws_what_the_target_declares():
    """χ² of 20,000 best of 16 against the density, over the outcomes."""
    density, m = by_hand(16)[2], 20_000
    source = TableSource(np.arange(729), LOG_P, LOG_P)
    drawn = samplers.best_of_n(source, lambda y: SUMS[y], 16, m).outcomes
    found = np.bincount(drawn, minlength=729)
    kept = m * density >= 5
    expected = np.append(m * density[kept], m * density[~kept].sum())
    counts = np.append(found[kept], found[~kept].sum())
    chi2, cells = float(((counts - expected) ** 2 / expected).sum()), len(expected)
    assert chi2 < cells - 1 + 5 * math.sqrt(2 * (cells - 1)), (chi2, cells)


def test_sixteen_units_of_the_largest_reward():
    """What cancels is off by units of its terms; a difference of more is a difference."""
    rewards = np.array([0.0, 0.1 + 0.2 - 0.3, 1.0, 1.0 + 16 * ULP, 1.0 + 34 * ULP, -2.0])
    np.testing.assert_allclose(
        _ties.merged(rewards, decimals=False), [0, 0, 1, 1, 1 + 34 * ULP, -2]
    )
    single = np.array([1.0, 1.000001, 1.00001], dtype=np.float32)
    assert len(np.unique(_ties.merged(single, decimals=False))) == 2
    assert len(np.unique(_ties.merged(single, 0.0, decimals=False))) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_chain_of_near_rewards_is_no_level(dtype):
    """10,000 samples of a continuous reward, each within 16 units of the next: levels are no wider
    than that, and the best of 100 of them has the law without ties."""
    eps = float(np.finfo(dtype).eps)
    rewards = (1 + 8 * eps * np.arange(10_000)).astype(dtype)
    width = 16 * eps * float(rewards[-1])
    merged = _ties.merged(rewards, decimals=False)
    assert np.abs(merged - rewards).max() <= width * (1 + 1e-6)
    assert 3000 < len(np.unique(merged)) < 7000
    log_p = np.full(10_000, -math.log(10_000))
    place = RewardCdf.exact(rewards, log_p).at(rewards)
    np.testing.assert_allclose(np.exp(place.log_cdf), np.arange(1, 10_001) / 1e4, atol=3e-4)


def test_a_penalty_says_nothing_of_the_others_scale():
    """−1e9 for what is rejected, in single precision, where its units are 64: 1, 2 and 3 remain."""
    rewards = np.array([1.0, 2.0, 3.0, -1e9, -1e9 - 64], dtype=np.float32)
    log_p = np.log([0.1, 0.2, 0.3, 0.2, 0.2])
    place = RewardCdf.exact(rewards, log_p).at(rewards)
    np.testing.assert_allclose(np.exp(place.log_mass), [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(np.exp(place.log_below), [0.4, 0.5, 0.7, 0, 0], rtol=1e-6)
    best = _ties.best(rewards[:, None], 1)
    assert best[:, 0].tolist() == [False, False, True, False, False]
    assert _ties.best(rewards[3:, None], 1).all()


def test_infinite_rewards_tie_with_themselves():
    rewards = np.array([-math.inf, 0.0, -math.inf, math.inf, 1.0])
    log_p = np.log(np.full(5, 0.2))
    place = RewardCdf.exact(rewards, log_p).at(rewards)
    np.testing.assert_allclose(np.exp(place.log_mass), [0.4, 0.2, 0.4, 0.2, 0.2])
    np.testing.assert_allclose(np.exp(place.log_above), [0.6, 0.4, 0.6, 0.0, 0.2], atol=1e-15)
    assert _ties.best(rewards[[0, 2], None], 1).all()


def test_a_reward_belongs_to_the_nearest_level():
    """Not to the highest one within the tolerance, and −inf mass where none is near."""
    cdf = RewardCdf.exact(
        np.array([0.0, 1.0, 1.5, 4.0]), np.log([0.1, 0.2, 0.3, 0.4]), tolerance=0.4
    )
    place = cdf.at(np.array([1.2, 1.3, 2.0, -0.3, 5.0]))
    np.testing.assert_allclose(np.exp(place.log_mass), [0.2, 0.3, 0.0, 0.1, 0.0])
    np.testing.assert_allclose(np.exp(place.log_below), [0.1, 0.3, 0.6, 0.0, 1.0], atol=1e-15)


def test_numbers_as_they_are_written():
    """Letters, decimals and texts are exact, floats too where the tolerance is 0."""
    log_p, floats = np.log([0.5, 0.3, 0.2]), [0.3, 0.30000000000000004, 1.0]
    assert len(RewardLaw.of_outcomes(floats, log_p)) == 2
    assert len(RewardLaw.of_outcomes(floats, log_p, tolerance=0.0)) == 3
    assert len(RewardLaw.of_outcomes([str(r) for r in floats], log_p)) == 3
    assert len(reward_law([0.5, 0.3, 0.2], floats)) == 3
    far = RewardLaw.of_outcomes([10**17, 10**17 + 1, 10**17 + 2], log_p)
    assert far.above(0).tolist() == [0, 1, 2]


def test_digits_do_not_part_what_ties():
    """Either side of the edge of a rounding to 12 digits, which np.round parts."""
    edge = np.array([0.1234567890125 - 1e-16, 0.1234567890125 + 1e-16, 0.7])
    assert len(np.unique(np.round(edge, 12))) == 3
    assert len(np.unique(_ties.in_digits(edge, 12))) == 2
    np.testing.assert_array_equal(_ties.in_digits(np.array([0.1 + 0.2, 1 / 3]), 3), [0.3, 0.333])


def test_a_threshold_is_reached_by_the_level_it_names():
    """0.6 by 3·0.2 and the other way round: P = 1 − 0.8³ + 0.3³, any 0.6 or three times 0.2."""
    law = reward_law([0.5, 0.3, 0.2], ["0", "0.2", "0.6"], 3)
    kept = 1 - 0.8**3 + 0.3**3
    for at_least in (0.6, 3 * 0.2, np.nextafter(0.6, 0.0)):
        policy = selection.threshold(law, at_least)
        assert float(law.kl_to_prior(policy)) == pytest.approx(-math.log(kept), rel=1e-12)
    assert float(law.kl_to_prior(selection.threshold(law, 0.61))) > -math.log(kept) + 0.1
    top = selection.threshold(law, 1.8 + 2 * ULP)
    assert np.exp(top).tolist() == pytest.approx([0] * (len(law) - 1) + [1])
    with pytest.raises(ValueError, match=r"no outcome reaches a reward of 1\.81"):
        selection.threshold(law, 1.81)


def test_a_threshold_of_a_target():
    """Rewards a rounding below it reach it; at 0 the tolerance has to be given."""
    rewards = np.array([0.7 - 0.4, 0.3, 0.29, 0.3 - 0.2 - 0.1])
    at = lambda *args, **options: np.exp(
        threshold(Listed(np.zeros(4)), lambda y: rewards[y], *args, **options).log_potential(
            np.arange(4)
        )
    ).tolist()
    assert rewards[0] < 0.3
    assert rewards[3] < 0
    assert at(0.3) == [1, 1, 0, 0]
    assert at(0.0) == [1, 1, 1, 0]
    assert at(0.0, tolerance=1e-15) == [1, 1, 1, 1]
    assert at(-math.inf) == [1, 1, 1, 1]
    assert at(math.inf) == [0, 0, 0, 0]


def test_a_tolerance_is_the_samplers_too():
    """Rewards 0 and 0.4 tie within 0.5, so the best of 4 is a fair coin."""
    source = TableSource(np.arange(2), HALF, HALF)
    drawn = samplers.best_of_n(source, lambda y: 0.4 * y, 4, 4000, tolerance=0.5).outcomes
    assert abs(drawn.mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)
