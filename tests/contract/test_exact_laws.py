"""Reward laws against brute force: every sequence in fractions, engine by engine."""

import math
import operator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_align.exact import (
    RewardLaw,
    best_of_n,
    log_rewards,
    regularized_rewards,
    reward_law,
    reward_law_of_counts,
)
from infer_align.exact.tilts import beta_for_kl
from infer_align.spaces import Space
from tests.exact_zoo import levels, log_of
from tests.libraries import jax, jnp, torch

LOGS = [-1.6094379124341003, -1.2039728043259361, -0.6931471805599453]
THREE = ("0.5", "0.3", "0.2")
FOUR = ("0.4", "0.3", "0.2", "0.1")
SIX = ("0.3", "0.25", "0.2", "0.1", "0.1", "0.05")
TINY_REST = "0.499999999999999999999999999999"
FFT, TYPES = "tilted FFT", "types"


class Case(NamedTuple):
    name: str
    probs: tuple[str, ...]
    rewards: list[Any]
    length: int
    engine: str


ADDITIVE = [
    Case("lattice", THREE, [0, 1, 2], 9, FFT),
    Case("one token", THREE, [0, 1, 2], 1, FFT),
    Case("two tokens", THREE, [2, 0, 1], 2, FFT),
    Case("decimal ties", THREE, ["0.1", "0.2", "0.3"], 8, FFT),
    Case("floats that tie as written", THREE, [0.1, 0.2, 0.3], 7, FFT),
    Case("floats that do not quite tie", THREE, [0.1, 0.2, 0.30000000000000004], 8, TYPES),
    Case("negative", FOUR, ["-0.5", "0", "0.25", "-2"], 6, FFT),
    Case("no lattice to speak of", THREE, LOGS, 9, TYPES),
    Case("a letter that never occurs", ("0.5", "0", "0.3", "0.2"), [0, 50, "0.7", "0.7"], 6, FFT),
    Case("all tied", ("0.6", "0.4"), [2, 2], 7, FFT),
    Case("one letter", ("1",), [3], 5, FFT),
    Case("a far letter", ("0.5", "0.499", "0.001"), [0, 1, 1000], 7, TYPES),
    Case("holes", THREE, [0, 3, 7], 9, TYPES),
    Case("two letters", ("0.9", "0.1"), [1, "-2.5"], 14, FFT),
    Case("six letters", SIX, "0.5 -1 2 0 2 -3".split(), 5, FFT),
    Case("mirrored holes", FOUR, [0, 1, 5, 6], 7, FFT),
    Case("thirds", THREE, [Fraction(1, 3), "1/2", Decimal("0.25")], 7, FFT),
    Case("a tiny probability", ("0.5", "1e-30", TINY_REST), [0, 2, 1], 8, FFT),
    Case("improbable middle", ("0.6", "1e-12", "0.399999999999"), [0, 1, 2], 8, TYPES),
]  # fmt: skip


def as_floats(probs):
    return [float(p) for p in probs]


def compare(law, want, rewards, rtol=1e-12):
    """Levels, log-probabilities and token counts of a law, against brute force."""
    assert len(law) == len(want)
    np.testing.assert_allclose(law.rewards, rewards, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(law.log_prob, [log_of(x.prob) for x in want], rtol=rtol, atol=rtol)
    shares = np.array([x.shares for x in want])
    for j, unit in enumerate(np.eye(shares.shape[1])):
        np.testing.assert_allclose(law.level_mean(unit), shares[:, j], rtol=1e-9, atol=1e-10)
    marginals = law.token_marginals(best_of_n(law, 3.5), shares.shape[1])
    expected = np.exp(best_of_n(law, 3.5)) @ shares / law.length
    np.testing.assert_allclose(marginals, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ADDITIVE, ids=lambda case: case.name)
def test_law_is_that_of_all_sequences_one_by_one(case):
    exact = [Fraction(str(r)) for r in case.rewards]
    law = reward_law(as_floats(case.probs), case.rewards, case.length)
    assert law.engine == case.engine
    assert law.exact
    want = levels(case.probs, exact, case.length)
    compare(law, want, [float(x.key) for x in want])
    denominator = math.lcm(*(r.denominator for r in exact))
    assert law.keys.tolist() == [int(x.key * denominator) for x in want]


@pytest.mark.parametrize(
    ("q", "scale", "length"),
    [
        (("0.1", "0.2", "0.4", "0.3"), 1, 6),
        (("0.1", "0.2", "0.4", "0.3"), Fraction(-3, 2), 5),
        (("0.2", "0.3", "0.5"), 1, 9),
        (("1/2", "1/4", "1/8"), 2, 8),
        (("2/28", "3/28", "5/28"), 1, 8),
        (("4", "6", "9"), 1, 8),
        (("0.25", "0.25", "0.5"), 0, 4),
    ],
)
def test_log_likelihoods_tie_where_products_do(q, scale, length):
    probs = FOUR[: len(q)] if len(q) == 4 else THREE
    letters = [Fraction(x) for x in q]
    if scale == 0:
        letters = [Fraction(1)] * len(q)
    value = lambda product: float(scale) * log_of(product)
    want = levels(probs, letters, length, add=operator.mul, value=value)
    law = reward_law(as_floats(probs), log_rewards(q, scale=scale), length)
    compare(law, want, [value(x.key) for x in want])
    assert len(set(law.keys.tolist())) == len(law)


@pytest.mark.parametrize("weight", [1, "0.5", Fraction(-1, 3), 0])
def test_regularised_rewards_add_a_multiple_of_the_log_prior(weight):
    rewards, length = ["0", "1", "0.5", "-1"], 6
    power = Fraction(weight)
    letters = [
        (Fraction(r), Fraction(p) if power else Fraction(1))
        for r, p in zip(rewards, FOUR, strict=True)
    ]
    value = lambda key: float(key[0]) + float(power) * log_of(key[1])
    add = lambda a, b: (a[0] + b[0], a[1] * b[1])
    want = levels(FOUR, letters, length, add=add, value=value)
    law = reward_law(as_floats(FOUR), regularized_rewards(rewards, FOUR, weight), length)
    compare(law, want, [value(x.key) for x in want])
    plain = law.level_mean([float(r) for r in rewards])
    np.testing.assert_allclose(plain, [float(x.key[0]) for x in want], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("-1 -0.3 0 0.1 0.2 0.3 0.7 1.5".split())),
        min_size=2, max_size=5,
    ),
    st.integers(1, 5),
)  # fmt: skip
def test_any_small_alphabet_has_the_law_of_its_sequences(letters, length):
    weights = [w for w, _ in letters]
    if not sum(weights):
        weights[0] = 1
    probs = [Fraction(w, sum(weights)) for w in weights]
    rewards = [r for _, r in letters]
    want = levels(probs, [Fraction(r) for r in rewards], length)
    law = reward_law([float(p) for p in probs], [float(r) for r in rewards], length)
    compare(law, want, [float(x.key) for x in want])


ARRAYS = [jnp.asarray, lambda p: torch.tensor(p, dtype=torch.float64)]


@pytest.mark.parametrize("make", ARRAYS, ids=["jax", "torch"])
@pytest.mark.parametrize(
    ("rewards", "length", "engine"),
    [
        ([0, 1, 2, 1], 6, "log-space convolution"),
        ([0.1, 0.2, 0.30000000000000004, 0.1], 5, TYPES),
        (log_rewards(["0.1", "0.2", "0.4", "0.3"]), 6, TYPES),
    ],
)
def test_other_libraries_give_the_same_law(make, rewards, length, engine):
    probs = [0.4, 0.3, 0.2, 0.1]
    law, plain = reward_law(make(probs), rewards, length), reward_law(probs, rewards, length)
    assert law.engine == engine
    assert type(law.log_prob) is type(make(probs))
    np.testing.assert_allclose(law.rewards, plain.rewards, rtol=1e-13)
    np.testing.assert_allclose(law.log_prob, plain.log_prob, rtol=1e-12, atol=1e-12)
    values = [1.0, -2.0, 0.5, 3.0]
    np.testing.assert_allclose(law.level_mean(values), plain.level_mean(values), atol=1e-11)
    np.testing.assert_allclose(law.log_cdf, plain.log_cdf, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(best_of_n(law, 1e4), best_of_n(plain, 1e4), rtol=1e-10, atol=1e-12)


QUANTITIES = {
    "reward of best-of-n": lambda law: law.expected_reward(best_of_n(law, 5.5)),
    "reward of the tilt": lambda law: law.expected_reward(law.tilt(0.7)),
    "log z": lambda law: law.log_z(0.7),
    "KL of best-of-n": lambda law: law.kl_to_prior(best_of_n(law, 5.5)),
    "KL of the tilt": lambda law: law.kl_to_prior(law.tilt(0.7)),
    "win rate": lambda law: law.win_rate(best_of_n(law, 5.5)),
}
LOGITS = np.array([0.3, -0.2, 0.5, -0.4])


def differences(value):
    """Central differences of a function of the logits, at LOGITS."""
    h = 1e-5
    rows = [(value(LOGITS + h * unit) - value(LOGITS - h * unit)) / (2 * h) for unit in np.eye(4)]
    return np.stack(rows, axis=-1)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize(
    ("rewards", "length"),
    [
        pytest.param([0, 2, 1, 3], 3, id="lattice", marks=pytest.mark.slow),
        pytest.param(log_rewards(["0.1", "0.2", "0.4", "0.3"]), 2, id="types"),
    ],
)
def test_gradients_in_the_logits_are_finite_differences(rewards, length):
    def traced(x):
        law = reward_law(jax.nn.softmax(x), rewards, length)
        return jnp.stack([quantity(law) for quantity in QUANTITIES.values()])

    def plain(x):
        law = reward_law(softmax(x), rewards, length)
        return np.array([float(quantity(law)) for quantity in QUANTITIES.values()])

    both = jax.jit(lambda x: (traced(x), jax.jacrev(traced)(x)))
    values, gradients = both(jnp.asarray(LOGITS))
    np.testing.assert_allclose(values, plain(LOGITS), rtol=1e-12)
    np.testing.assert_allclose(gradients, differences(plain), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "rewards",
    [
        pytest.param([0, 2, 1, 3], id="lattice", marks=pytest.mark.slow),
        pytest.param([0.1, 0.72, 0.3, 0.1], id="types"),
    ],
)
def test_the_gradient_of_beta_for_a_kl_is_a_finite_difference(rewards):
    beta = lambda x, library: beta_for_kl(reward_law(library(x), rewards, 2), 0.3)
    gradient = jax.grad(lambda x: beta(x, jax.nn.softmax))(jnp.asarray(LOGITS))
    numeric = differences(lambda x: beta(x, softmax))
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_torch_gradients_equal_those_of_jax():
    policy = lambda law: law.kl_to_prior(best_of_n(law, 5.5))
    leaf = torch.tensor(LOGITS, requires_grad=True)
    policy(reward_law(torch.softmax(leaf, 0), [0, 2, 1, 3], 3)).backward()
    loss = lambda x: policy(reward_law(jax.nn.softmax(x), [0, 2, 1, 3], 3))
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-9)


ODD = [0.0, 0.21371093, 0.44172211, 0.70731013, 1.0371131]


@pytest.mark.parametrize(
    ("probs", "rewards", "length", "message"),
    [
        ([1.5, -0.5], [0, 1], 1, "entry 1 is -0.5.*leave the letter out"),
        ([math.nan, 0.5], [0, 1], 1, "entry 0 is nan"),
        ([0.5, 0.4], [0, 1], 1, "sum to 0.9, not to 1; divide"),
        ([0.5, 0.5], [0, math.inf], 1, "reward 1 is inf, which is not a finite number"),
        ([0.5, 0.5], [math.nan, 0], 1, "reward 0 is nan"),
        ([0.5, 0.5], [0, "good"], 1, "reward 1 is 'good'"),
        ([0.5, 0.5], [0, None], 1, "reward 1 is None"),
        ([0.5, 0.5], [0, 1, 2], 1, "shape .2,. and 3 rewards; give one"),
        ([], [], 1, "rewards are empty; give one reward a letter"),
        ([0.5, 0.5], [0, 1], 0, "whole number >= 1, got 0"),
        ([0.5, 0.5], [0, 1], -3, "whole number >= 1, got -3"),
    ],
)
def test_bad_input_is_named_with_its_remedy(probs, rewards, length, message):
    with pytest.raises(ValueError, match=message):
        reward_law(probs, rewards, length)


def test_lengths_that_are_no_whole_numbers_are_refused():
    from infer_align.exact._build import whole_length

    for length in (1.5, math.nan, True):
        with pytest.raises(ValueError, match=f"{length}"):
            whole_length(length)
    assert whole_length(3.0) == 3


@pytest.mark.parametrize("q", [[0, 0.5], [-0.1, 0.5], []])
def test_log_rewards_need_positive_probabilities(q):
    with pytest.raises(ValueError, match="log q needs positive q, got"):
        log_rewards(q)
    with pytest.raises(ValueError, match="the scale is nan"):
        log_rewards([0.5], scale=math.nan)


def test_listed_outcomes_are_grouped_by_their_exact_rewards():
    probs = np.array([0.1, 0.2, 0.0, 0.3, 0.25, 0.15])
    rewards = [0.3, 0.1, 9.0, 0.30000000000000004, 0.3, -2]
    with np.errstate(divide="ignore"):
        law = RewardLaw.of_outcomes(rewards, np.log(probs), length=4, tolerance=0.0)
    assert law.rewards.tolist() == [-2, 0.1, 0.3, 0.30000000000000004]
    np.testing.assert_allclose(np.exp(law.log_prob), [0.15, 0.2, 0.35, 0.3], rtol=1e-14)
    values = np.arange(6.0)
    np.testing.assert_allclose(law.level_mean(values), [5, 1, (0 + 4 * 0.25) / 0.35, 3])
    assert law.length == 4
    traced = RewardLaw.of_outcomes(rewards, jnp.log(probs), tolerance=0.0)
    np.testing.assert_allclose(traced.level_mean(values), law.level_mean(values), rtol=1e-14)
    np.testing.assert_allclose(traced.log_prob, law.log_prob, rtol=1e-14)
    with pytest.raises(ValueError, match="5 rewards for 6 outcomes"):
        RewardLaw.of_outcomes(rewards[:5], np.log(np.full(6, 1 / 6)))
    with pytest.raises(ValueError, match=r"sum to 0\.8, not to 1"):
        RewardLaw.of_outcomes([1, 2], np.log([0.4, 0.4]))


def test_a_space_and_an_alphabet_give_the_same_law():
    probs, rewards = np.array([0.5, 0.3, 0.2]), np.array([0, 1, 2])
    y = Space.sequences(3, 5, eos=None).outcomes
    listed = RewardLaw.of_outcomes(rewards[y].sum(1), np.log(probs)[y].sum(1), length=5)
    law = reward_law(probs, rewards, 5)
    np.testing.assert_allclose(listed.log_prob, law.log_prob, rtol=1e-12)
    assert listed.rewards.tolist() == law.rewards.tolist()


def test_rewards_of_counts_are_any_function_of_them():
    probs, m = ("0.5", "0", "0.3", "0.2"), 6
    worst = lambda n: np.minimum(0.1 * n[:, 0] + 0.3 * n[:, 2], 0.2 * n[:, 3])
    law = reward_law_of_counts(as_floats(probs), worst, m)
    tens = [(1, 0), (0, 0), (3, 0), (0, 2)]
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])
    table: dict[int, Fraction] = {}
    for level in levels(probs, tens, m, add=add, value=lambda key: key):
        table[min(level.key)] = table.get(min(level.key), Fraction(0)) + level.prob
    want = sorted(table.items())
    np.testing.assert_allclose(law.rewards, [key / 10 for key, _ in want], atol=1e-14)
    np.testing.assert_allclose(law.log_prob, [log_of(prob) for _, prob in want], rtol=1e-12)
    np.testing.assert_allclose(law.level_mean([1.0, 1.0, 1.0, 1.0]), m, rtol=1e-12)
    with pytest.raises(ValueError, match=r"counts \[.*\] is nan, not finite"):
        reward_law_of_counts(as_floats(probs), lambda n: n[:, 0] * math.nan, m)
    with pytest.raises(ValueError, match=r"count vectors of .* to list; shorten m = 200"):
        reward_law_of_counts([0.1] * 10, lambda n: n[:, 0], 200)


def test_the_kl_of_the_best_of_one_is_not_below_zero():
    """Rounding, which differs between processors, had made it -1.5e-17."""
    for length in range(1, 40):
        law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], length)
        assert 0 <= law.kl_to_prior(best_of_n(law, 1.0)) < 1e-12
