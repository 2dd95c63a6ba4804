"""Chains against all their paths: tilts, reward laws, best-of-n, gradients, refusals."""

import itertools
import math

import numpy as np
import pytest

from infer_align.exact import Chain, _chain_law, best_of_n, log_rewards
from infer_align.exact.selection import autoregressive
from infer_align.exact.tilts import beta_for_kl, closeness
from tests.chain_zoo import BIGRAMS, HOLES, M1, levels, paths
from tests.libraries import jax, jnp, torch

LOG_Q = [0.1, 0.2, 0.4, 0.3]
"""Products tie, 0.1 · 0.4 = 0.2 · 0.2, and logarithms of 2, 3 and 5 lie on no lattice."""
FOUR = ([0.1, 0.2, 0.3, 0.4], [[0.1, 0.2, 0.3, 0.4], [0.4, 0, 0.3, 0.3], [0.25] * 4, [0, 0, 1, 0]])
CASES = {
    "states": (*M1, [0, 1, 2], 6),
    "edges": (*M1, BIGRAMS, 6),
    "edges and first": (*M1, BIGRAMS, 5, [0.25, 0, 3]),
    "one token": (*M1, [0, 1, 2], 1),
    "one token, edges": (*M1, BIGRAMS, 1, [1, -1, 0.5]),
    "two tokens": (*M1, [2, -1, 0], 2),
    "least reward repeats": (*HOLES, [0, 1, 1], 7),
    "greatest reward cannot repeat": (*HOLES, [0, 1, 2], 7),
    "least reward cannot repeat": (*HOLES, [2, 1, -3], 7),
    "no edge repeats but one": ([0.5, 0.5], [[0.5, 0.5], [1, 0]], [[0, -5], [3, 0]], 8),
    "a cycle": ([1, 0, 0], [[0, 1, 0], [0, 0, 1], [1, 0, 0]], [0, 1, 5], 7),
    "log q": (*FOUR, log_rewards(LOG_Q), 5),
    "constant": (*M1, [1.5, 1.5, 1.5], 4),
}  # fmt: skip
BETAS = (math.inf, 2.0, 0.3)


def made(name):
    return Chain(*CASES[name])


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", CASES)
def test_a_tilt_is_the_sum_over_all_paths(name, beta):
    chain, (y, p, r) = made(name), paths(*CASES[name])
    solved, w = chain.solve(beta), p * np.exp(r / beta)
    posterior = w / w.sum()
    assert float(solved.log_z) == pytest.approx(math.log(w.sum()), abs=1e-12)
    assert float(solved.expected_reward) == pytest.approx(posterior @ r, abs=1e-12)
    kept = posterior > 0
    kl = posterior[kept] @ np.log(posterior[kept] / p[kept])
    assert float(solved.kl_to_prior) == pytest.approx(kl, abs=1e-11)
    log_path = solved.log_initial[y[:, 0]]
    for t, (a, b) in enumerate(itertools.pairwise(y.T)):
        log_path = log_path + solved.log_kernels[t, a, b]
    np.testing.assert_allclose(np.exp(log_path), posterior, rtol=1e-11, atol=1e-15)
    at = np.stack([np.bincount(column, posterior, chain.states) for column in y.T])
    np.testing.assert_allclose(np.exp(solved.log_marginals), at, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ["edges and first", "least reward cannot repeat", "log q"])
def test_the_soft_value_is_what_is_to_come(name):
    initial, transition, rewards, length, *_ = CASES[name]
    beta, states = 0.7, len(initial)
    value = made(name).solve(beta).value
    assert value.shape == (length, states)
    for t, i in itertools.product(range(length), range(states)):
        # A path of the rest, from i on, with nothing for i itself.
        there = np.eye(states)[i]
        _, p, r = paths(there, transition, rewards, length - t)
        own = rewards if not hasattr(rewards, "values") else rewards.values()
        own = np.array(own, dtype=float)
        r = r - (own[i] if own.shape == (states,) else 0)
        want = beta * math.log((p * np.exp(r / beta)).sum())
        assert float(value[t, i]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_reward_law_is_the_sum_over_all_paths(name):
    law, (_, p, r) = made(name).reward_law(), paths(*CASES[name])
    found, mass, _ = levels(p, r)
    np.testing.assert_allclose(law.rewards, found, atol=1e-9)
    np.testing.assert_allclose(law.log_prob, np.log(mass), rtol=1e-9, atol=1e-10)
    assert law.exact
    assert law.length == CASES[name][3]
    assert law.engine == ("partial rewards" if name == "log q" else "tilted FFT")
    assert len(np.unique(law.keys)) == len(law)


@pytest.mark.parametrize("name", ["states", "edges and first", "least reward repeats", "log q"])
def test_token_means_by_level_are_those_of_the_paths(name):
    chain, (y, p, r) = made(name), paths(*CASES[name])
    law, values = chain.reward_law(), np.array([1.0, -2.0, 0.5, 4.0])[: chain.states]
    _, mass, index = levels(p, r)
    y, p = y[p > 0], p[p > 0]
    want = np.bincount(index, p * values[y].sum(1)) / mass
    np.testing.assert_allclose(law.level_mean(values), want, rtol=1e-9, atol=1e-10)
    policy = best_of_n(law, 3)
    weight = p * np.exp(policy)[index] / mass[index]
    share = np.stack([(weight[:, None] * (y == a)).sum() for a in range(chain.states)])
    got = law.token_marginals(policy, chain.states)
    np.testing.assert_allclose(got, share / law.length, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["states", "edges and first", "log q"])
@pytest.mark.parametrize("n", [1, 2, 5.5, 300])
def test_best_of_n_of_a_chain_is_that_of_its_paths(name, n):
    law, (_, p, r) = made(name).reward_law(), paths(*CASES[name])
    found, mass, _ = levels(p, r)
    top = np.cumsum(mass) ** n
    best = np.diff(top, prepend=0)
    np.testing.assert_allclose(np.exp(best_of_n(law, n)), best, rtol=1e-7, atol=1e-13)
    assert float(law.expected_reward(best_of_n(law, n))) == pytest.approx(best @ found, abs=1e-9)


@pytest.mark.parametrize("name", ["states", "edges and first", "least reward repeats", "log q"])
def test_a_policy_on_levels_is_autoregressive(name):
    chain, (y, p, r) = made(name), paths(*CASES[name])
    law = chain.reward_law()
    policy = best_of_n(law, 4)
    _, mass, index = levels(p, r)
    want = np.zeros(len(p))
    want[p > 0] = p[p > 0] * (np.exp(policy) / mass)[index]
    tokens = autoregressive(law, policy)
    some = np.random.default_rng(0).permutation(len(y))[:60]
    got = np.exp([tokens.log_prob(row.tolist()) for row in y[some]])
    np.testing.assert_allclose(got, want[some], rtol=1e-9, atol=1e-15)
    for length in range(law.length):
        prefix = y[np.argmax(want)][:length]
        here = (y[:, :length] == prefix).all(1)
        after = np.bincount(y[here, length], want[here], chain.states)
        got = np.exp(tokens.next_log_prob(prefix.tolist()))
        np.testing.assert_allclose(got, after / after.sum(), rtol=1e-9, atol=1e-15)


def test_autoregressive_draws_follow_its_probabilities():
    chain = Chain(*HOLES, [0, 1, 1], 3)
    law = chain.reward_law()
    tokens, rng = autoregressive(law, best_of_n(law, 4)), np.random.default_rng(3)
    n, drawn = 800, {}
    for _ in range(n):
        row = tuple(tokens.sample(rng))
        drawn[row] = drawn.get(row, 0) + 1
    for row in itertools.product(range(3), repeat=3):
        share = math.exp(tokens.log_prob(row))
        spread = 5 * math.sqrt(n * share * (1 - share)) + 1e-9
        assert abs(drawn.get(row, 0) - n * share) <= spread
    with pytest.raises(ValueError, match="probability 0"):
        tokens.next_log_prob([2])
    with pytest.raises(ValueError, match="fewer than the 3 tokens"):
        tokens.next_log_prob([0, 0, 0])
    with pytest.raises(ValueError, match="a sequence has 3 tokens"):
        tokens.log_prob([0, 0])


def test_published_numbers_of_the_three_state_chain():
    """ASYMPTOTICS 2.8, in the library's temperature: beta = 1/β."""
    law, rate = Chain(*M1, [0, 1, 2], 10).reward_law(), Chain(*M1, [0, 1, 2], 1).rate()
    assert 1 / beta_for_kl(law, 1.0) == pytest.approx(0.452437, abs=5e-7)
    assert 1 / beta_for_kl(rate, 0.1) == pytest.approx(0.451263, abs=5e-7)
    for m, want in ((1, 0.1698), (10, 0.0428), (50, 0.0188), (200, 0.0077)):
        law = Chain(*M1, [0, 1, 2], m).reward_law()
        gap = closeness(law, best_of_n(law, log_n=0.3 * m), 0.3 * m).kl_to_tilt / m
        assert float(gap) == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize("rewards", [[0, 1, 2], BIGRAMS], ids=["states", "edges"])
def test_a_thousand_tokens_sum_to_one_and_agree_with_the_messages(rewards):
    chain = Chain(*M1, rewards, 6).with_length(1000)
    solved = chain.solve(1.5)
    np.testing.assert_allclose(np.exp(solved.log_kernels).sum(2), 1.0, atol=1e-10)
    np.testing.assert_allclose(np.exp(solved.log_marginals).sum(1), 1.0, atol=1e-8)
    law = chain.reward_law()
    assert float(np.logaddexp.reduce(law.log_prob)) == pytest.approx(0.0, abs=1e-10)
    for beta in (3.0, 0.5, 0.05):
        assert float(law.log_z(beta)) == pytest.approx(float(chain.solve(beta).log_z), rel=1e-11)
    mean = float(law.expected_reward(law.tilt(1.5)))
    assert float(solved.expected_reward) == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("what", ["expected_reward", pytest.param("log_z", marks=pytest.mark.slow)])
def test_gradients_in_the_logits_are_finite_differences(what):
    initial, transition = (np.log(x) for x in M1)

    def value(first, later, beta):
        chain = Chain(jax.nn.softmax(first), jax.nn.softmax(later, axis=-1), BIGRAMS, 5)
        return getattr(chain.solve(beta), what)

    grads = jax.grad(value, argnums=(0, 1, 2))(jnp.array(initial), jnp.array(transition), 0.7)
    at, h = [initial, transition, np.array(0.7)], 1e-5
    for which, grad in enumerate(grads):
        for entry in itertools.islice(np.ndindex(at[which].shape), 4):
            sides = []
            for side in (h, -h):
                moved = [x.copy() for x in at]
                moved[which][entry] += side
                sides.append(float(value(*(jnp.array(x) for x in moved[:2]), float(moved[2]))))
            slope = (sides[0] - sides[1]) / (2 * h)
            assert float(grad[entry]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_gradients_pass_by_transitions_that_are_impossible():
    possible = jnp.array(HOLES[1]) > 0

    def value(logits):
        transition = jax.nn.softmax(jnp.where(possible, logits, -jnp.inf), axis=-1)
        solved = Chain(jnp.array(HOLES[0]), transition, [0, 1, 2], 5).solve(1.0)
        return solved.log_z + solved.expected_reward

    grad = np.asarray(jax.grad(value)(jnp.zeros((3, 3))))
    assert np.isfinite(grad).all()
    assert (grad[~np.asarray(possible)] == 0).all()
    assert abs(grad[0, 0]) > 1e-3


def test_torch_chains_have_gradients():
    transition = torch.tensor(M1[1], dtype=torch.float64, requires_grad=True)
    initial = torch.tensor(M1[0], dtype=torch.float64)
    solved = Chain(initial, transition, [0, 1, 2], 5).solve(0.7)
    (grad,) = torch.autograd.grad(solved.log_z + solved.expected_reward, transition)
    assert torch.isfinite(grad).all()
    plain = Chain(*M1, [0, 1, 2], 5).solve(0.7)
    assert solved.log_z.item() == pytest.approx(float(plain.log_z), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.5], M1[1], [0, 1, 2], 3), "initial law of shape"),
        (([0.5, 0.3, 0.1], M1[1], [0, 1, 2], 3), "initial probabilities sum to 0.9"),
        ((M1[0], [*M1[1][:2], [0.5, 0.6, -0.1]], [0, 1, 2], 3), "from state 2 must be numbers"),
        ((M1[0], [*M1[1][:2], [0.5, 0.6, 0]], [0, 1, 2], 3), "from state 2 sum to 1.1"),
        ((*M1, [0, 1], 3), "give \\(3,\\), one a state"),
        ((*M1, [[0, 1], [1, 0]], 3), "give \\(3,\\), one a state"),
        ((*M1, [0, 1, math.nan], 3), "reward 2 is nan"),
        ((*M1, [0, 1, 2], 0), "whole number >= 1"),
        ((*M1, BIGRAMS, 3, [0, 1]), "initial_rewards needs 3 entries"),
        ((*M1, BIGRAMS, 3, None, [0, 1]), "one entry for each of the 3 states"),
        ((*M1, BIGRAMS, 3, log_rewards([1, 2, 3])), "both be numbers, or logs of one list"),
    ],
)  # fmt: skip
def test_bad_input_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Chain(*arguments)


def test_other_refusals_say_what_is_wrong(monkeypatch):
    for beta in (0, -1.0):
        with pytest.raises(ValueError, match="beta is a temperature"):
            Chain(*M1, [0, 1, 2], 3).solve(beta)
    twice = Chain([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [0, 1], 3, tokens=[0, 0])
    law = twice.reward_law()
    with pytest.raises(ValueError, match="must be a function of the tokens"):
        autoregressive(law, best_of_n(law, 2)).next_log_prob([0])
    monkeypatch.setattr(_chain_law, "MAX_PARTIAL", 1000)
    with pytest.raises(ValueError, match=r"over 1,000 pairs .* a coarser lattice, or shorten"):
        Chain(*FOUR, log_rewards(LOG_Q), 20).reward_law()


@pytest.mark.parametrize("array", [jnp.array, torch.tensor])
def test_lists_join_the_library_of_the_arrays(array):
    transition = [[0.9, 0.1], [0.3, 0.7]]
    want = Chain([0.5, 0.5], transition, [0, 1], 5)
    chain = Chain([0.5, 0.5], array(transition), [0, 1], 5, log_final=[0.0, 0.0])
    assert type(chain.initial) is type(chain.transition)
    assert float(chain.solve(0.5).log_z) == pytest.approx(float(want.solve(0.5).log_z), rel=1e-6)
    np.testing.assert_allclose(chain.reward_law().log_prob, want.reward_law().log_prob, rtol=1e-5)


def test_the_law_of_a_chain_that_is_being_differentiated():
    rows = [[0.9, 0.1], [0.3, 0.7]]
    table = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    law = Chain([0.5, 0.5], table, [0, 1], 5).reward_law()
    want = Chain([0.5, 0.5], rows, [0, 1], 5).reward_law()
    np.testing.assert_allclose(law.log_prob, want.log_prob, rtol=1e-12)
    build = lambda x: Chain([0.5, 0.5], x, [0, 1], 5)
    gradient = jax.grad(lambda x: build(x).solve(0.5).log_z)(jnp.array(rows, dtype=jnp.float32))
    assert np.isfinite(gradient).all()
    log_z = jax.jit(lambda x: build(x).solve(0.5).log_z)(jnp.array(rows))
    assert float(log_z) == pytest.approx(float(build(rows).solve(0.5).log_z), rel=1e-6)
    with pytest.raises(ValueError, match=r"compute it outside jax\.jit"):
        jax.jit(lambda x: build(x).reward_law().log_prob)(jnp.array(rows))
