"""Twists: exact ones leave no variance, learnt ones come near them."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from infer_align import Space, exact, product, tilt
from infer_align.exact import _lookahead
from infer_align.exact._problem import problem_of
from infer_align.exact.selection import autoregressive, best_of_n, threshold
from infer_align.jax import hidden_markov, markov
from infer_align.jax.twists import fit_twist, linear_twist, table_twist, twist_table
from infer_align.samplers import NextTwist, PrefixTwist, next_twist, policy_twist, prefix_twist, smc
from infer_align.samplers._contrastive import contrast
from infer_align.samplers._filter import Rules, particle_filter
from tests.sources import INF, abab, chi_square_p, log, logsumexp, memoryless, sequences

PRIOR = (0.5, 0.3, 0.2)
PARAMS = {
    "initial": jnp.log(jnp.array(PRIOR)),
    "transition": jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.35, 0.25, 0.4]])),
}
REWARD = jnp.array([[0.5, -0.5, 0.0], [0.25, 1.0, -jnp.inf], [0.0, 0.5, 1.0]])
NO_TWO_ONES = exact.Automaton([[0, 1, 0], [0, 2, 0], [2, 2, 2]], [True, True, False])


def pairs(y):
    return REWARD[y[..., :-1], y[..., 1:]].sum(-1) + 0.3 * (y[..., 0] == 2)


class Listed:
    """log E_prior[exp(potential) | prefix], by summing over the outcomes that begin so."""

    def __init__(self, target, space):
        self.y = np.asarray(space.outcomes)
        self.log_p = np.asarray(target.log_density(space.outcomes), dtype=float)
        self.log_q = np.asarray(target.given().log_prob(space.outcomes), dtype=float)

    def __call__(self, prefix):
        same = (self.y[:, : len(prefix)] == prefix).all(-1)
        return float(logsumexp(self.log_p[same]) - logsumexp(self.log_q[same]))


@pytest.mark.parametrize(
    ("engine", "eos"),
    [
        pytest.param("_listed", None, marks=pytest.mark.slow), ("_listed", 2),
        ("_chain", None), pytest.param("_chain", 2, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_lookahead_is_the_conditional_expectation(engine, eos):
    prior = markov(PARAMS, length=4, eos=eos, pad=0)
    rewards = pairs if eos is None else (lambda y: 0.5 * (y[..., 0] == 1))
    target = product(prior, rewards, NO_TWO_ONES) if eos is None else tilt(prior, rewards, 1.0)
    ahead = getattr(_lookahead, engine)(problem_of(target, ()))
    by_definition = Listed(target, Space.sequences(3, 4, eos=eos, pad=0, xp=jnp))
    letters = range(3) if eos is None else range(2)
    for t in range(1, 5):
        for head in itertools.product(letters, repeat=t - 1):
            for token in range(3):
                prefix = np.array([*head, token])
                got = ahead.log_psi(prefix[None, None])[0, 0]
                ours = ahead.next_log_psi(prefix[None, None, :-1])[0, 0, token]
                assert got == ours
                rest = np.zeros(4 - t, int) if eos is not None and token == eos else []
                want = by_definition([*prefix, *rest])
                assert got == want or abs(got - want) < 1e-5


@pytest.mark.slow
def test_a_long_chain_needs_no_listing():
    ahead = exact.lookahead(product(markov(PARAMS, length=14), NO_TWO_ONES))
    first, rows = (np.exp(np.asarray(PARAMS[name])) for name in ("initial", "transition"))
    values = ahead.next_log_psi(np.zeros((1, 1, 0), int))[0, 0]
    chain = exact.Chain(first, rows, [0, 0, 0], 14).constrain(NO_TWO_ONES)
    assert math.log((first * np.exp(values)).sum()) == pytest.approx(chain.log_accept, abs=1e-5)


def test_what_has_no_lookahead_says_why():
    hidden = hidden_markov(
        {"initial": jnp.zeros(2), "transition": jnp.zeros((2, 2)), "emission": jnp.zeros((2, 3))},
        length=40,
    )
    with pytest.raises(ValueError, match=r"Listing: .* Messages: .*hidden Markov"):
        exact.lookahead(tilt(hidden, lambda y: 1.0 * y.sum(-1), 1.0))
    with pytest.raises(ValueError, match="sum over neighbouring pairs"):
        exact.lookahead(tilt(markov(PARAMS, length=40), lambda y: 1.0 * y.sum(-1) ** 2, 1.0))


def test_a_count_constraint_has_an_exact_twist():
    source = memoryless(PRIOR, 8, lambda y: log((y == 2).sum(-1) >= 7), seed=1)
    law = exact.reward_law(PRIOR, [0, 0, 1], 8)
    twist = policy_twist(autoregressive(law, threshold(law, 7)), autoregressive(law, law.log_prob))
    sample = smc(source, 3000, twist=twist)
    assert np.allclose(sample.log_weights - sample.log_weights[0], 0.0, atol=1e-9)
    assert np.allclose(sample.log_z, math.log(8.448e-5), atol=1e-9)
    counts = np.bincount(source.index(sample.outcomes), minlength=len(source.outcomes))
    assert chi_square_p(counts, source.p) > 1e-6


def test_a_policy_twist_is_not_its_target():
    source = memoryless(PRIOR, 4, lambda y: 1.0 * (y == 2).sum(-1), seed=1)
    law = exact.reward_law(PRIOR, [0, 0, 1], 4)
    twist = policy_twist(autoregressive(law, best_of_n(law, 4)), autoregressive(law, law.log_prob))
    sample = smc(source, 4000, twist=twist, ess_threshold=0)
    weights = np.exp(sample.log_weights)
    assert weights.std() > 0.1
    error = weights.std() / math.sqrt(4000)
    assert abs(weights.mean() - np.exp(source.log_z)) < 5 * error


def test_forms_are_told_apart():
    assert isinstance(prefix_twist(lambda p: 0.0 * p), PrefixTwist)
    assert not isinstance(prefix_twist(lambda p: 0.0 * p), NextTwist)
    assert isinstance(next_twist(lambda p: 0.0 * p), NextTwist)


@pytest.mark.parametrize("eos", [(), (2,)])
@pytest.mark.parametrize("given", [True, False])
def test_a_contrast_weighs_every_time_alike(given, eos):
    source = abab(seed=3, eos=eos)
    outcomes = source.outcomes[np.random.default_rng(0).choice(len(source.p), 9, p=source.p)]
    twist = next_twist(lambda p: np.zeros((*p.shape[:2], 3)))
    batch = contrast(source, source.tokens(), twist, 30, outcomes=outcomes if given else None)
    assert batch.positive.shape == (4, 9 if given else 30, 1)
    assert batch.positive.sum() == pytest.approx(4.0)
    assert batch.negative.sum() == pytest.approx(4.0)
    if not eos:
        assert np.allclose(batch.positive.sum(axis=1), 1.0)
        assert np.allclose(batch.negative.sum(axis=1), 1.0)


def test_the_contrast_vanishes_at_the_exact_twist():
    source = abab(seed=6, eos=(2,))
    target_prefix = lambda y: np.array([(y[..., 0] == a).astype(float) for a in range(3)])
    rows = source.outcomes
    first = np.array([source.p[rows[:, 0] == a].sum() for a in range(3)])
    psi = np.array([source.p[rows[:, 0] == a].sum() / source.q[rows[:, 0] == a].sum()
                    for a in range(3)])  # fmt: skip
    twist = prefix_twist(lambda p: log(psi[p[..., 0]]))
    *_, last = particle_filter(source.tokens(), 20_000, Rules(twist, None, 0, source.rng))
    weights = np.exp(last.particles.log_weights[:, 0])
    got = (target_prefix(last.particles.prefix)[:, :, 0] * weights).sum(-1) / weights.sum()
    assert np.allclose(got, first, atol=0.02)


def prefix_kl(source, params):
    """Σ_t KL(p(y_{1:t}) ‖ π_t), exactly; no outcome ends early."""
    y, total = source.outcomes, 0.0
    for t in range(1, 5):
        heads = np.array(list(itertools.product(range(3), repeat=t)))
        code = y[:, :t] @ 3 ** np.arange(t)[::-1]
        p, q = (np.bincount(code, x, minlength=3**t) for x in (source.p, source.q))
        log_psi = np.asarray(table_twist(params, heads[:, None, :-1]))[:, 0]
        log_pi = log(q) + log_psi[np.arange(3**t), heads[:, -1]]
        log_pi = log_pi - logsumexp(log_pi)
        keep = p > 0
        total += (p[keep] * (log(p)[keep] - log_pi[keep])).sum()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("exact_draws", [False, True])
def test_a_learnt_table_comes_near_the_exact_twist(exact_draws):
    source = abab(seed=4)
    params = twist_table(3, 4)
    outcomes = None
    if exact_draws:
        rng = np.random.default_rng(1)
        outcomes = source.outcomes[rng.choice(len(source.p), 2000, p=source.p)]
    before = prefix_kl(source, params)
    steps = list(
        fit_twist(
            source, table_twist, params, n=512, steps=90, outcomes=outcomes,
            optimizer=optax.adam(optax.exponential_decay(0.2, 30, 0.5)),
        )
    )  # fmt: skip
    after = prefix_kl(source, steps[-1].params)
    assert before > 0.5
    assert after < 0.05 * before
    assert steps[0].metrics["ess"] < 0.7
    assert steps[-1].metrics["ess"] > 0.95


def test_linear_features_are_shared_by_prefixes():
    letters = linear_twist(lambda y: jnp.stack([(y == a).sum(-1) for a in range(3)], -1) * 1.0, 3)
    params = jnp.array([[0.1, 0.2, 0.3]] * 3)
    values = letters(params, jnp.array([[[0, 2]]]))
    assert np.allclose(values, [[[0.5, 0.6, 0.7]]], atol=1e-6)
    assert letters(params, jnp.zeros((4, 2, 0), int)).shape == (4, 2, 3)


def test_nothing_accepted_is_skipped():
    source = memoryless([0.5, 0.5], 3, lambda y: np.where(y.sum(-1) == 3, -INF, -INF))
    step = next(fit_twist(source, table_twist, twist_table(2, 3), n=20, steps=1))
    assert step.metrics["skipped"] == 1
    assert step.metrics["ess"] == 0
    assert all((table == 0).all() for table in step.params)


def test_a_program_has_its_lookahead():
    def program():
        y = numpyro.sample("y", dist.Categorical(jnp.array(PRIOR)).expand([4]).to_event(1))
        numpyro.factor("reward", 1.0 * (y == 2).sum())

    ahead = exact.lookahead(program)
    each = float(np.log(0.8 + 0.2 * math.e))
    got = ahead.log_psi(sequences(3, 2)[:, None])[:, 0]
    want = (sequences(3, 2) == 2).sum(-1) + 2 * each
    assert np.allclose(got, want, atol=1e-5)
