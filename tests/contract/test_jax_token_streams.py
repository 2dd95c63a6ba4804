"""Token streams of NumPyro policies: their steps add up to log_prob, whatever was resampled."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from infer_align.jax import hidden_markov, markov, memoryless, target
from infer_align.jax.token_streams import token_stream

C, V, T, H, N = 3, 4, 5, 2, 6


def policies():
    rng = np.random.default_rng(3)
    r = lambda *shape: jnp.asarray(rng.normal(size=shape))
    chain = {"initial": r(C, V), "transition": r(C, V, V)}
    hidden = {"initial": r(C, H), "transition": r(C, H, H), "emission": r(C, H, V)}
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
