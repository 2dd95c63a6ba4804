"""The engines behind reward laws: against each other, at length, and where they approximate."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_align.exact import _engines, reward_law, reward_law_of_counts
from infer_align.exact._lattice import attainable_sums
from infer_align.exact._letters import merged_letters
from infer_align.exact._saddle import by_saddle_point
from tests.exact_zoo import sequences
from tests.libraries import jax, jnp

THREE = ("0.5", "0.3", "0.2")
FFT = "tilted FFT"
FIVE = [0.3, 0.25, 0.2, 0.15, 0.1]
ODD = [0.0, 0.21371093, 0.44172211, 0.70731013, 1.0371131]


@pytest.mark.parametrize(
    ("probs", "rewards", "length"),
    [
        (THREE, [0, 1, 2], 60),
        (THREE, ["0.1", "0.2", "0.3"], 50),
        (("0.10676", "0.01732", "0.87592"), [1, 0, 3], 43),
        (("0.2", "0.2", "0.3", "0.1", "0.2"), [14, 11, 10, 6, 0], 15),
        (("0.3", "0.25", "0.2", "0.15", "0.1"), [0, 1, 1, 2, 3], 20),
    ],
)
def test_engines_agree_where_several_apply(probs, rewards, length):
    p = np.array([float(x) for x in probs])
    letters = merged_letters(p, rewards)
    x, _ = letters.rewards.lattice()
    step = letters.gaps[-1] / x.max()
    fft, unresolved = _engines.on_lattice(letters, length, x, step)
    assert unresolved == 0
    listed = _engines.by_types(letters, length)
    np.testing.assert_allclose(listed.rewards, fft.rewards, rtol=1e-12, atol=1e-12)
    assert listed.keys.tolist() == fft.keys.tolist()
    values = np.linspace(-1, 2, len(probs))

    @jax.jit
    def convolved(p):
        letters = merged_letters(p, rewards)
        law, _ = _engines.on_lattice(letters, length, x, step, differentiable=True)
        return law.log_prob, law.level_mean(values)

    for log_prob, mean in (
        (listed.log_prob, listed.level_mean(values)),
        convolved(jnp.asarray(p)),
    ):
        np.testing.assert_allclose(log_prob, fft.log_prob, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(mean, fft.level_mean(values), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rewards", [[0, 1, 2], [0, 1, 3], [-5, 0, 2]])
@pytest.mark.parametrize("length", [1000, 10_000, 100_000])
def test_long_laws_are_normalised_and_have_the_right_moments(length, rewards):
    p, r = np.array([0.5, 0.3, 0.2]), np.array(rewards, dtype=float)
    law = reward_law(p, rewards, length)
    assert law.engine == FFT
    assert float(np.logaddexp.reduce(law.log_prob)) == pytest.approx(0.0, abs=1e-11)
    assert float(law.expected_reward(law.log_prob)) == pytest.approx(length * p @ r, rel=1e-11)
    assert law.log_prob[0] == pytest.approx(length * math.log(p[np.argmin(r)]), rel=1e-14)
    assert law.log_prob[-1] == pytest.approx(length * math.log(p[np.argmax(r)]), rel=1e-14)
    theta = 0.3 / max(1.0, np.ptp(r))
    log_z = length * math.log(p @ np.exp(theta * r))
    assert float(law.log_z(1 / theta)) == pytest.approx(log_z, rel=1e-11)


def test_probabilities_far_below_the_floats_are_right():
    law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 5000)
    # P(sum = 2m − 1) = m · .3 · .2^(m − 1), from the definition.
    want = math.log(5000 * 0.3) + 4999 * math.log(0.2)
    assert law.log_prob[-2] == pytest.approx(want, rel=1e-13)


@settings(max_examples=80, deadline=None)
@given(st.sets(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 40))
def test_attainable_sums_are_those_that_some_letters_add_up_to(gaps, m):
    common = math.gcd(*gaps)
    x = np.array([0, *sorted(g // common for g in gaps)])
    sums = {0}
    for _ in range(m):
        sums = {s + int(a) for s in sums for a in x}
    assert set(np.flatnonzero(attainable_sums(x, m)).tolist()) == sums


@pytest.mark.parametrize("most", [80, 400])
def test_no_sequence_is_farther_than_the_error_from_its_grid_level(monkeypatch, most):
    probs, rewards, m = [0.4, 0.3, 0.2, 0.1], [0.0, 0.31, 0.777, 1.9], 4
    monkeypatch.setattr(_engines, "MAX_LATTICE", most)
    letters = merged_letters(np.array(probs), rewards)
    law = _engines.by_grid(letters, m, "too large")
    assert 0 < law.error < 0.1 * m
    assert not law.exact
    x = np.round(np.array(rewards) / law.step).astype(int)
    mass = np.zeros(len(law.rewards[0] + np.arange(m * x.max() + 1)))
    for sequence in sequences(4, m):
        moved = law.step * x[list(sequence)].sum()
        assert abs(sum(rewards[j] for j in sequence) - moved) <= law.error * (1 + 1e-9)
        mass[x[list(sequence)].sum()] += math.prod(probs[j] for j in sequence)
    place = np.round(law.rewards / law.step).astype(int)
    np.testing.assert_allclose(np.exp(law.log_prob), mass[place], rtol=1e-10)
    assert np.exp(law.log_prob).sum() == pytest.approx(1.0, abs=1e-12)


def test_engines_for_what_cannot_be_listed_say_what_they_are():
    grid = reward_law(FIVE, ODD, 1000)
    assert grid.engine == "reward grid"
    assert 0 < grid.error < 0.03
    mean = 1000 * float(np.dot(FIVE, ODD))
    assert float(grid.expected_reward(grid.log_prob)) == pytest.approx(mean, abs=grid.error)
    saddle = reward_law(FIVE, ODD, 1_000_000)
    assert saddle.engine == "saddle point"
    assert 0 < saddle.log_error < 0.05
    assert not saddle.exact
    assert float(np.logaddexp.reduce(saddle.log_prob)) == pytest.approx(0.0, abs=1e-12)
    assert "within" in repr(saddle)


def test_saddle_point_tails_are_within_ten_times_their_error():
    rewards, m = [0, 137, 291, 618, 1000], 2000
    letters = merged_letters(np.array(FIVE), rewards)
    saddle = by_saddle_point(letters, m, "")
    exact = reward_law(FIVE, rewards, m)
    assert exact.engine == FFT
    # A lattice law's tail at s is that of a continuous sum half a step below.
    above = np.logaddexp.accumulate(exact.log_prob[::-1])[::-1]
    below = np.logaddexp.accumulate(exact.log_prob)
    ours_above = np.logaddexp.accumulate(saddle.log_prob[::-1])[::-1]
    ours_below = np.logaddexp.accumulate(saddle.log_prob)
    for share in (0.02, 0.1, 0.3, 0.35, 0.5, 0.8, 0.95):
        cell = int(share * len(saddle))
        edge = saddle.keys[cell]
        tail = np.interp(edge, exact.rewards - 0.5, above)
        assert float(ours_above[cell]) == pytest.approx(tail, abs=10 * saddle.log_error)
        tail = np.interp(edge, exact.rewards + 0.5, below)
        assert float(ours_below[cell - 1]) == pytest.approx(tail, abs=10 * saddle.log_error)
    assert float(saddle.cumulants(0.0)[1]) == pytest.approx(
        float(exact.cumulants(0.0)[1]), abs=saddle.error
    )


def test_what_is_too_large_raises_with_its_sizes():
    sizes = r"at most 3,000,00\d\), 42,084,793,751 count vectors of 5 letters \(at most 5,000,000"
    with pytest.raises(ValueError, match=sizes + ".*approximate=True"):
        reward_law(FIVE, ODD, 1000, approximate=False)
    with pytest.raises(ValueError, match=r"count vectors.*pass NumPy arrays, without gradients"):
        reward_law(jnp.asarray(FIVE), ODD, 1000)


@pytest.mark.parametrize(
    ("probs", "rewards", "length"),
    [
        ([3.43991673e-07, 1 - 3.43991673e-07 - 6.22905535e-06, 6.22905535e-06], [0, 1, 2], 78),
        ([0.006, 0.131, 0.729, 0.075, 0.009, 0.05], [6, 5, 1, 0, 11, 8], 17),
    ],
)
def test_counts_of_letters_given_the_level_add_up_to_the_length(probs, rewards, length):
    law = reward_law(probs, rewards, length)
    total = sum(law.level_mean(unit) for unit in np.eye(len(probs)))
    np.testing.assert_allclose(total, length, rtol=1e-6)


def test_laws_of_erratic_alphabets_are_normalised():
    rng = np.random.default_rng(0)
    for _ in range(60):
        k, m = int(rng.integers(2, 6)), int(rng.integers(1, 40))
        probs = rng.dirichlet(np.full(k, rng.choice([0.3, 1.0, 5.0])))
        rewards = rng.choice(15, size=k, replace=False).tolist()
        law = reward_law(probs, rewards, m)
        total = float(np.logaddexp.reduce(law.log_prob))
        assert total == pytest.approx(0.0, abs=1e-11), (probs, rewards, m)
        mean = m * float(probs @ np.array(rewards))
        assert float(law.cumulants(0.0)[1]) == pytest.approx(mean, rel=1e-9), (probs, rewards, m)


def test_letters_times_types_are_counted_before_they_are_listed():
    """1,000 letters, two tokens: 500,500 count vectors are few, their 5·10⁸ counts are not."""
    rng = np.random.default_rng(0)
    probs, rewards = np.full(1000, 1e-3), rng.normal(size=1000)
    with pytest.raises(ValueError, match=r"500,500 count vectors of 1,000 letters \(at most"):
        reward_law(probs, rewards, 2, approximate=False)
    with pytest.raises(ValueError, match=r"500,500 count vectors of 1,000 letters"):
        reward_law_of_counts(probs, lambda n: n[:, 0], 2)
    assert reward_law(probs[:100] * 10, rewards[:100], 2).engine == "types"


def test_one_token_of_many_letters_is_its_letters():
    """10,000 letters, with a tie: levels, their masses and means are those of the letters."""
    rng = np.random.default_rng(1)
    probs, rewards = rng.dirichlet(np.ones(10_000)), rng.normal(size=10_000)
    rewards[1] = rewards[0]
    law = reward_law(probs, rewards)
    assert (law.engine, len(law), law.exact) == ("letters", 9_999, True)
    at = int(np.flatnonzero(law.rewards == rewards[0])[0])
    assert np.exp(law.log_prob[at]) == pytest.approx(probs[0] + probs[1], rel=1e-9)
    assert float(law.expected_reward(law.log_prob)) == pytest.approx(probs @ rewards, rel=1e-9)
    np.testing.assert_allclose(law.level_mean(rewards), law.rewards, rtol=1e-9)
