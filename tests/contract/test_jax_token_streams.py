"""Token streams of NumPyro policies: their steps add up to log_prob, whatever was resampled."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from infer_align import tilt
from infer_align.jax import hidden_markov, markov, memoryless, mixture, source, target
from infer_align.jax.token_streams import token_stream
from infer_align.samplers import local_metropolis, prefix_twist, smc
from tests.sources import ExactTwist, TableSource, chi_square_p, sequences

C, V, T, H, N = 3, 4, 5, 2, 6


def policies():
    rng = np.random.default_rng(3)
    r = lambda *shape: jnp.asarray(rng.normal(size=shape))
    chain = {"initial": r(C, V), "transition": r(C, V, V)}
    hidden = {"initial": r(C, H), "transition": r(C, H, H), "emission": r(C, H, V)}
    ending = [markov({"initial": r(C, V), "transition": r(C, V, V)}, length=T, eos=(1, 2), pad=-1),
              memoryless(r(C, V), length=T, eos=(1, 2), pad=-1)]  # fmt: skip
    # Each excludes a token, so that each is ruled out by some prefixes, and both by others.
    hard = lambda k, *shape: r(*shape).at[..., k].set(-jnp.inf)
    without = [markov({"initial": hard(k, C, V), "transition": hard(k, C, V, V)}, length=T)
               for k in (0, 3)]  # fmt: skip
    either = mixture(without, [1.0, 2.0])
    return {
        "memoryless": memoryless(r(C, V), length=T),
        "memoryless_eos": memoryless(r(C, V), length=T, eos=1, pad=-1),
        "markov": markov(chain, length=T),
        "markov_eos": markov(chain, length=T, eos=(1, 2), pad=3),
        "hidden_markov": hidden_markov(hidden, length=T),
        "categorical": dist.Categorical(logits=r(C, T, V)).to_event(1),
        "bernoulli": dist.Bernoulli(logits=r(C, T)).to_event(1),
        "one_context": markov({"initial": r(V), "transition": r(V, V)}, length=T, eos=0),
        "two_axes": memoryless(r(2, 3, V), length=T, eos=0),
        "mixture": mixture([memoryless(r(C, V), length=T), markov(chain, length=T)], [0.2, 0.8]),
        "mixture_eos": mixture(ending, [0.7, 0.3]),
        "mixture_hard": either,
        "nested": mixture([either, hidden_markov(hidden, length=T)], [0.6, 0.4]),
    }


def walk(stream, contexts, seed=0):
    """Random tokens and ancestors; the tokens of each particle, and what the stream gave them."""
    rng = np.random.default_rng(seed)
    shape = (N, contexts)
    log_probs, tokens = np.asarray(stream.start(N)), np.zeros((*shape, 0), dtype=int)
    total, ended = np.zeros(shape), np.zeros(shape, dtype=bool)
    for t in range(stream.length):
        assert log_probs.shape == (*shape, stream.vocabulary_size)
        alive = ~ended[..., None] & np.ones_like(log_probs, dtype=bool)
        sums = np.exp(log_probs).sum(-1)
        assert np.allclose(sums[alive[..., 0]], 1.0, atol=1e-5)
        token = rng.integers(0, stream.vocabulary_size, shape)
        picked = np.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
        total = total + np.where(ended, 0.0, picked)
        tokens = np.concatenate([tokens, np.where(ended, stream.pad, token)[..., None]], axis=-1)
        ended = ended | np.isin(token, stream.eos)
        if t + 1 == stream.length:
            break
        ancestors = rng.integers(0, N, shape) if t % 2 == 0 else None
        if ancestors is not None:
            tokens = np.take_along_axis(tokens, ancestors[..., None], axis=0)
            total, ended = (np.take_along_axis(x, ancestors, axis=0) for x in (total, ended))
        log_probs = np.asarray(stream.advance(jnp.asarray(tokens[..., -1]), ancestors))
    return tokens, total


@pytest.mark.parametrize("name", policies())
def test_steps_add_up_to_the_log_probability_of_the_sequence(name):
    policy = policies()[name]
    contexts = int(np.prod(policy.batch_shape))
    stream = token_stream(policy, policy.batch_shape)
    for seed in (0, 1):  # a stream starts again
        tokens, total = walk(stream, contexts, seed)
        y = jnp.asarray(tokens.reshape(N, *policy.batch_shape, T))
        log_prob = np.asarray(policy.log_prob(y)).reshape(N, contexts)
        assert np.allclose(total, log_prob, atol=1e-4 if log_prob.dtype == np.float32 else 1e-10)


@pytest.mark.parametrize("name", ["mixture_eos", "mixture_hard", "nested"])
def test_a_mixture_streams_all_its_sequences(name):
    """What the steps give to every sequence is the mixture's log-probability, and sums to one."""
    policy = policies()[name]
    stream = token_stream(policy, (C,))
    y = np.repeat(sequences(V, T, eos=stream.eos, pad=stream.pad)[:, None], C, axis=1)
    steps, alive = [stream.start(len(y))], ~np.isin(y, stream.eos)
    steps += [stream.advance(jnp.asarray(y[..., t])) for t in range(T - 1)]
    known = np.clip(y, 0, V - 1)[..., None]
    picked = np.take_along_axis(np.stack(steps, axis=2), known, axis=-1)[..., 0]
    first = np.cumprod(np.concatenate([np.ones((len(y), C, 1)), alive[..., :-1]], axis=-1), axis=-1)
    total = np.where(first > 0, picked, 0.0).sum(-1)
    np.testing.assert_allclose(total, policy.log_prob(jnp.asarray(y)), rtol=1e-9)
    np.testing.assert_allclose(np.exp(total).sum(axis=0), 1.0, rtol=1e-9)


def proposed(contexts):
    """A chain that may end, tilted and constrained; proposed are a policy and the prior."""
    repeat = lambda x: jnp.broadcast_to(jnp.log(jnp.array(x)), (contexts, *np.shape(x)))
    transition = repeat([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.35, 0.25, 0.4]])
    chain = {"initial": repeat([0.5, 0.3, 0.2]), "transition": transition}
    prior = markov(chain, length=4, eos=2, pad=2)
    policy = memoryless(repeat([0.3, 0.6, 0.1]), length=4, eos=2, pad=2)
    ones = lambda y: (y == 1).sum(-1)
    reward = lambda y: jnp.where(ones(y) > 0, 0.8 * (y == 0).sum(-1) - 0.4 * ones(y), -jnp.inf)
    both, declared = mixture([policy, prior], [0.6, 0.4]), tilt(prior, reward, 1.0)
    y = sequences(3, 4, eos=(2,), pad=2)
    wide = jnp.repeat(jnp.asarray(y)[:, None], contexts, axis=1)
    log_q, log_p = np.asarray(both.log_prob(wide)), np.asarray(declared.log_density(wide))
    table = TableSource(y, log_q[:, :1], log_p[:, :1], vocabulary=3, eos=(2,), pad=2)
    return source(jax.random.key(3), declared, both), table


@pytest.mark.slow
@pytest.mark.parametrize("twisted", [False, True])
def test_filters_over_a_mixture_are_unbiased(twisted):
    """Every context is a replication: the mean of Ẑ, and of the mass on each outcome."""
    s, table = proposed(1500)
    guess = prefix_twist(lambda prefix: 0.7 * (prefix == 0).sum(-1) + 0.5 * (prefix == 1).any(-1))
    sample = smc(s, 6, twist=guess if twisted else None, ess_threshold=0.9)
    mass = np.zeros((1500, len(table.p)))
    for index, log_w in zip(table.index(sample.outcomes), sample.log_weights, strict=True):
        np.add.at(mass, (np.arange(1500), index), np.exp(log_w) / 6)
    z = mass.sum(axis=1)
    assert abs(z.mean() - np.exp(table.log_z[0])) < 5 * z.std() / np.sqrt(1500)
    seen = (mass > 0).sum(axis=0) >= 30  # else its spread is not known
    error = np.abs(mass.mean(axis=0) - np.exp(table.log_p[:, 0]))[seen]
    assert seen.sum() > 10
    assert np.all(error < 5 * mass.std(axis=0)[seen] / np.sqrt(1500))


@pytest.mark.slow
def test_samplers_over_a_mixture_draw_the_target():
    """A filter whose twist is exact, and local moves, whose ends the mixture draws."""
    s, table = proposed(1)
    exact = smc(s, 5000, twist=ExactTwist(table))
    np.testing.assert_allclose(exact.log_weights, table.log_z[0], atol=1e-9)
    chains = local_metropolis(s, 3000, 25)
    for sample in (exact, chains):
        counts = np.bincount(table.index(sample.outcomes)[:, 0], minlength=len(table.p))
        assert chi_square_p(counts, table.p[:, 0]) > 1e-5


def test_components_of_other_sequences_are_refused():
    first = memoryless(jnp.zeros(3), length=4, eos=2, pad=0)
    others = {"length": memoryless(jnp.zeros(3), length=5, eos=2, pad=0),
              "vocabulary_size": memoryless(jnp.zeros(4), length=4, eos=2, pad=0),
              "eos": memoryless(jnp.zeros(3), length=4, eos=1, pad=0),
              "pad": memoryless(jnp.zeros(3), length=4, eos=2, pad=1)}  # fmt: skip
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"the same {what}; component 0 has .* component 2"):
            token_stream(mixture([first, first, other], [1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="not known here"):
        token_stream(mixture([dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0)], [0.5, 0.5]))


def test_a_program_is_read_at_every_context():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, V)))

    def program(logits):
        numpyro.sample("y", dist.Categorical(logits=logits).expand([T]).to_event(1))

    prior = target(program).given(logits)
    stream = token_stream(prior, (2,))
    tokens, total = walk(stream, 2)
    want = memoryless(logits, length=T).log_prob(jnp.asarray(tokens))
    assert np.allclose(total, want, atol=1e-4)


def test_what_is_no_token_sequence_is_refused():
    with pytest.raises(ValueError, match="not known here as a law of token sequences"):
        token_stream(dist.Normal(0.0, 1.0).expand([T]).to_event(1))
    with pytest.raises(ValueError, match="sequential Monte Carlo needs"):
        token_stream(dist.Categorical(jnp.ones(3) / 3))
    with pytest.raises(ValueError, match="the same contexts"):
        token_stream(policies()["markov"], (7,))
