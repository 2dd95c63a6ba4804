"""Hidden Markov models and automata against all their token sequences."""

import itertools
import math

import numpy as np
import pytest

from infer_align.exact import Automaton, Chain, best_of_n, log_rewards
from infer_align.exact.selection import autoregressive
from tests.chain_zoo import BIGRAMS, M1, levels, paths
from tests.libraries import jnp, torch

HIDDEN = ([0.6, 0.4], [[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3, 0.0], [0.1, 0.3, 0.6]])


def token_law(length):
    """All token sequences of HIDDEN and their probabilities, summed over hidden paths."""
    initial, transition, emission = (np.array(x) for x in HIDDEN)
    y = np.indices((3,) * length).reshape(length, -1).T
    p = np.zeros(len(y))
    for h in itertools.product(range(2), repeat=length):
        one = initial[h[0]] * emission[h[0], y[:, 0]]
        for t in range(1, length):
            one = one * transition[h[t - 1], h[t]] * emission[h[t], y[:, t]]
        p += one
    return y, p


@pytest.mark.parametrize("rewards", [[0, 1, 2], BIGRAMS, log_rewards([0.2, 0.3, 0.5])])
def test_a_hidden_markov_model_is_the_sum_over_hidden_paths(rewards):
    m, beta = 5, 0.6
    chain, (y, p) = Chain.hidden(*HIDDEN, rewards, m), token_law(m)
    _, _, r = paths([1, 0, 0], np.ones((3, 3)), rewards, m)
    w = p * np.exp(r / beta)
    solved = chain.solve(beta)
    assert float(solved.log_z) == pytest.approx(math.log(w.sum()), abs=1e-12)
    assert float(solved.expected_reward) == pytest.approx(w @ r / w.sum(), abs=1e-12)
    marginals = np.exp(solved.log_marginals).reshape(m, 2, 3).sum(1)
    want = np.stack([np.bincount(column, w / w.sum(), 3) for column in y.T])
    np.testing.assert_allclose(marginals, want, rtol=1e-11)
    law = chain.reward_law()
    found, mass, index = levels(p, r)
    np.testing.assert_allclose(law.rewards, found, atol=1e-9)
    np.testing.assert_allclose(law.log_prob, np.log(mass), rtol=1e-9, atol=1e-10)
    policy = best_of_n(law, 6)
    want = np.zeros(len(p))
    want[p > 0] = p[p > 0] * (np.exp(policy) / mass)[index]
    tokens = autoregressive(law, policy)
    some = np.random.default_rng(1).permutation(len(y))[:40]
    got = np.exp([tokens.log_prob(row.tolist()) for row in y[some]])
    np.testing.assert_allclose(got, want[some], rtol=1e-9, atol=1e-15)


WORD = [1, 2, 1]
AUTOMATA = {
    "contains the word 121": (
        Automaton([[0, 1, 0], [0, 1, 2], [0, 3, 0], [3, 3, 3]], [False, False, False, True]),
        lambda row: any(row[i : i + 3] == WORD for i in range(len(row) - 2)),
    ),
    "an even number of zeros": (
        Automaton([[1, 0, 0], [0, 1, 1]], [True, False]),
        lambda row: row.count(0) % 2 == 0,
    ),
    "an odd number of zeros, from another start": (
        Automaton([[1, 0, 0], [0, 1, 1]], [True, False], start=1),
        lambda row: row.count(0) % 2 == 1,
    ),
    "no 2 after a 0": (
        Automaton([[1, 0, 0], [1, 0, 2], [2, 2, 2]], [True, True, False]),
        lambda row: (0, 2) not in itertools.pairwise(row),
    ),
}  # fmt: skip


@pytest.mark.parametrize("xp", [np, jnp, torch], ids=["numpy", "jax", "torch"])
@pytest.mark.parametrize("name", AUTOMATA)
def test_an_automaton_accepts_what_its_words_say(name, xp):
    automaton, accepts = AUTOMATA[name]
    y, _, _ = paths(*M1, [0, 1, 2], 5)
    want = np.array([accepts(row.tolist()) for row in y])
    batch = xp.asarray(y).reshape(3, -1, 5)
    assert np.asarray(automaton.accepts(batch)).ravel().tolist() == want.tolist()
    potential = np.asarray(automaton(batch))
    assert potential.shape == (3, 81)
    np.testing.assert_array_equal(potential.ravel(), np.where(want, 0.0, -math.inf))


REWARDS = {"states": [0, 1, 2], "edges": BIGRAMS, "log q": log_rewards(["0.2", "0.3", "0.5"])}


def accepted(name, rewards, m=6):
    """All accepted paths of M1: states, probabilities (not normalised), rewards."""
    y, p, r = paths(*M1, rewards, m)
    keep = np.array([AUTOMATA[name][1](row.tolist()) for row in y])
    return y[keep], p[keep], r[keep]


@pytest.mark.parametrize("name", AUTOMATA)
@pytest.mark.parametrize("kind", ["states", "edges"])
def test_a_constrained_tilt_is_the_sum_over_accepted_paths(name, kind):
    _, p, r = accepted(name, REWARDS[kind])
    chain = Chain(*M1, REWARDS[kind], 6).constrain(AUTOMATA[name][0])
    assert float(chain.log_accept) == pytest.approx(math.log(p.sum()), abs=1e-12)
    solved, w = chain.solve(0.8), p * np.exp(r / 0.8)
    assert float(solved.log_z) == pytest.approx(math.log(w.sum()), abs=1e-12)
    assert float(solved.expected_reward) == pytest.approx(w @ r / w.sum(), abs=1e-12)
    kl = r @ w / w.sum() / 0.8 - math.log(w.sum())
    assert float(solved.kl_to_prior) == pytest.approx(kl, abs=1e-12)
    prior = chain.solve()
    assert float(prior.kl_to_prior) == pytest.approx(-math.log(p.sum()), abs=1e-12)


@pytest.mark.parametrize("name", AUTOMATA)
@pytest.mark.parametrize("kind", REWARDS)
def test_the_law_of_a_constrained_chain_is_that_of_accepted_paths(name, kind):
    y, p, r = accepted(name, REWARDS[kind])
    law = Chain(*M1, REWARDS[kind], 6).constrain(AUTOMATA[name][0]).reward_law()
    assert law.engine == ("partial rewards" if kind == "log q" else "tilted FFT")
    found, mass, index = levels(p, r)
    np.testing.assert_allclose(law.rewards, found, atol=1e-9)
    np.testing.assert_allclose(law.log_prob, np.log(mass), rtol=1e-9, atol=1e-10)
    values = np.array([1.0, -2.0, 0.5])
    means = np.bincount(index, p / p.sum() * values[y].sum(1)) / mass
    np.testing.assert_allclose(law.level_mean(values), means, rtol=1e-9, atol=1e-9)
    policy = best_of_n(law, 5)
    want = p / p.sum() * (np.exp(policy) / mass)[index]
    tokens = autoregressive(law, policy)
    for i in np.random.default_rng(0).permutation(len(y))[:12]:
        assert math.exp(tokens.log_prob(y[i].tolist())) == pytest.approx(want[i], rel=1e-8)
    rejected = next(row for row in itertools.product(range(3), repeat=6)
                    if not AUTOMATA[name][1](list(row)))  # fmt: skip
    assert tokens.log_prob(rejected) == -math.inf


def test_constraints_multiply_and_hold_on_hidden_models():
    (word, has), (even, is_even) = (
        AUTOMATA[name] for name in ("contains the word 121", "an even number of zeros")
    )
    y, p = token_law(5)
    p = np.where([has(row) and is_even(row) for row in y.tolist()], p, 0.0)
    chain = Chain.hidden(*HIDDEN, [0, 1, 2], 5).constrain(word).constrain(even)
    assert float(chain.log_accept) == pytest.approx(math.log(p.sum()), abs=1e-12)
    w = p * np.exp(y.sum(1) / 2.0)
    assert float(chain.solve(2.0).log_z) == pytest.approx(math.log(w.sum()), abs=1e-12)


def test_a_chain_that_accepts_nothing_is_an_error_that_says_so():
    chain = Chain(*M1, [0, 1, 2], 4).constrain(Automaton([[0, 0, 0]], [False]))
    for solve in (chain.reward_law, lambda: chain.solve(1.0), lambda: chain.solve()):
        with pytest.raises(ValueError, match="accepts no sequence"):
            solve()
    assert float(chain.log_accept) == -math.inf
    with pytest.raises(
        ValueError, match=r"knows tokens 0..1, got token 2; give it a column for each"
    ):
        Chain(*M1, [0, 1, 2], 4).constrain(Automaton([[0, 0]], [True]))


def test_malformed_automata_and_hidden_models_are_refused():
    with pytest.raises(ValueError, match=r"lead to states 0\.\.1"):
        Automaton([[0, 2], [0, 1]], [True, True])
    with pytest.raises(ValueError, match="an automaton of 2 states needs"):
        Automaton([[0, 1], [0, 1]], [True, True], start=2)
    with pytest.raises(ValueError, match="need 2 hidden states"):
        Chain.hidden(HIDDEN[0], np.eye(3), HIDDEN[2], [0, 1, 2], 3)
