"""Every JAX policy is a distribution over its outcomes: it sums to one, and samples follow it."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from infer_align import Space
from infer_align.jax import hidden_markov, markov, memoryless, tabular

SPACE = Space.sequences(3, 2, eos=2, xp=jnp)  # 7 outcomes


def logits(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def hidden(seed, states, size, contexts=()):
    shapes = {
        "initial": (*contexts, states),
        "transition": (*contexts, states, states),
        "emission": (*contexts, states, size),
    }
    return {name: logits(seed + i, *s) for i, (name, s) in enumerate(shapes.items())}


def chain(seed, size, contexts=()):
    shapes = {"initial": (*contexts, size), "transition": (*contexts, size, size)}
    return {name: logits(seed + i, *s) for i, (name, s) in enumerate(shapes.items())}


ALL = {
    "tabular": (tabular, lambda c: logits(0, *c, 6), Space(jnp.arange(6))),
    "tabular over sequences": (partial(tabular, space=SPACE), lambda c: logits(1, *c, 7), SPACE),
    "memoryless": (
        partial(memoryless, length=3),
        lambda c: logits(2, *c, 3),
        Space.sequences(3, 3, xp=jnp),
    ),
    "memoryless with EOS": (
        partial(memoryless, length=4, eos=1, pad=-1),
        lambda c: logits(3, *c, 3),
        Space.sequences(3, 4, eos=1, pad=-1, xp=jnp),
    ),
    "markov": (partial(markov, length=3), lambda c: chain(4, 3, c), Space.sequences(3, 3, xp=jnp)),
    "markov with EOS": (
        partial(markov, length=4, eos=0),
        lambda c: chain(6, 3, c),
        Space.sequences(3, 4, eos=0, xp=jnp),
    ),
    "hidden markov": (
        partial(hidden_markov, length=3),
        lambda c: hidden(10, 2, 3, c),
        Space.sequences(3, 3, xp=jnp),
    ),
    "markov with two EOS": (
        partial(markov, length=3, eos=(0, 3), pad=3),
        lambda c: chain(8, 4, c),
        Space.sequences(4, 3, eos=(0, 3), pad=3, xp=jnp),
    ),
}
cases = pytest.mark.parametrize("name", ALL)


def log_prob(name, params):
    """Of all outcomes, checked to sum to one; compiled as a whole, which is much faster."""
    policy, _, space = ALL[name]
    values = jax.jit(lambda p: space.log_prob(policy(p), tolerance=np.inf))(params)
    np.testing.assert_allclose(np.exp(values).sum(0), 1.0, rtol=1e-12)
    return np.asarray(values)


@cases
def test_probabilities_sum_to_one_in_every_context(name):
    """A batch of contexts is the contexts one by one, and they differ."""
    policy, params, space = ALL[name]
    several = params((2, 3))
    assert policy(several).batch_shape == (2, 3)
    assert policy(several).event_shape == space.outcomes.shape[1:]
    together = log_prob(name, several)
    assert together.shape == (len(space), 2, 3)
    for i in ((0, 1), (1, 2)):
        alone = log_prob(name, jax.tree.map(operator.itemgetter(i), several))
        np.testing.assert_allclose(together[:, *i], alone, rtol=1e-12)
    assert np.abs(together[:, 0, 1] - together[:, 1, 2]).max() > 0.1


@cases
def test_samples_follow_log_prob(name):
    """Pearson's chi-squared at 5 sigma, for each of two contexts; the seed is fixed."""
    policy, params, space = ALL[name]
    p, n = params((2,)), 20_000
    y = jax.jit(lambda p: policy(p).sample(jax.random.key(42), (n,)))(p)
    assert y.shape == (n, 2, *space.outcomes.shape[1:])
    index, expected = space.index(y), n * np.exp(log_prob(name, p))
    for drawn, e in zip(index.T, expected.T, strict=True):
        observed = np.bincount(drawn, minlength=len(space))
        p_value = stats.chi2.sf(((observed - e) ** 2 / e).sum(), len(space) - 1)
        assert p_value > 5.7e-7, (observed, e)


@cases
def test_enumerate_support_is_the_space(name):
    policy, params, space = ALL[name]
    two = policy(params((2,)))
    assert bool(jnp.all(two.support(space.outcomes)))
    if name == "memoryless":  # a plain NumPyro composite, which has no enumerate_support
        return
    event = space.outcomes.shape[1:]
    assert two.enumerate_support().shape == (len(space), 2, *event)
    assert two.enumerate_support(expand=False).shape == (len(space), 1, *event)
    np.testing.assert_array_equal(two.enumerate_support()[:, 1], space.outcomes)


@cases
def test_gradient_and_vmap(name):
    """The score has mean zero, and vmap over parameters is the batch of contexts."""
    policy, params, space = ALL[name]
    of = lambda p: policy(p).log_prob(space.outcomes)
    p = params(())
    score, weight = jax.jit(jax.jacobian(of))(p), np.exp(log_prob(name, p))
    for leaf in jax.tree.leaves(score):
        np.testing.assert_allclose(np.tensordot(weight, leaf, 1), 0.0, atol=1e-12)
    both = params((2,))
    np.testing.assert_allclose(jax.jit(jax.vmap(of))(both).T, log_prob(name, both), rtol=1e-12)


@cases
def test_impossible_outcomes_have_finite_gradients(name):
    """A logit of -inf is an ordinary value, in log_prob, in the gradient and in samples."""
    policy, params, space = ALL[name]
    p = jax.tree.map(lambda x: x.at[..., 1].set(-jnp.inf), params(()))
    values = log_prob(name, p)
    assert np.any(values == -np.inf)

    def surrogate(p):
        x = policy(p).log_prob(space.outcomes)
        return jnp.sum(jnp.where(jnp.isfinite(x), x, 0.0))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(surrogate))(p)):
        assert np.all(np.isfinite(leaf))
    draws = jax.jit(lambda p: policy(p).sample(jax.random.key(0), (500,)))(p)
    assert np.all(values[space.index(draws)] > -np.inf)


def test_memoryless_by_hand():
    policy = memoryless(jnp.log(jnp.array([0.2, 0.3, 0.5])), length=3, eos=2, pad=7)
    y = jnp.array([[0, 1, 0], [0, 2, 7], [2, 7, 7], [0, 2, 1]])
    p = [0.2 * 0.3 * 0.2, 0.2 * 0.5, 0.5, 0.2 * 0.5]  # what follows the EOS is not read
    np.testing.assert_allclose(jnp.exp(policy.log_prob(y)), p, rtol=1e-12)


def test_markov_by_hand():
    """Rows are the token before, columns the token after: the matrix is not symmetric."""
    transition = jnp.array([[0.1, 0.9], [0.4, 0.6]])
    params = {"initial": jnp.log(jnp.array([0.3, 0.7])), "transition": jnp.log(transition)}
    y = jnp.array([[0, 1, 0], [1, 1, 1]])
    p = [0.3 * 0.9 * 0.4, 0.7 * 0.6 * 0.6]
    np.testing.assert_allclose(jnp.exp(markov(params, length=3).log_prob(y)), p, rtol=1e-12)
    ended = markov(params, length=3, eos=1).log_prob(jnp.array([[0, 1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(jnp.exp(ended), [0.3 * 0.9, 0.7], rtol=1e-12)


def test_one_token():
    one = markov(chain(0, 3), length=1)
    assert one.sample(jax.random.key(0), (5,)).shape == (5, 1)
    np.testing.assert_allclose(
        one.log_prob(jnp.arange(3)[:, None]), jax.nn.log_softmax(chain(0, 3)["initial"])
    )


def test_values_outside_the_space_have_probability_zero():
    assert markov(chain(0, 3), length=2).log_prob(jnp.array([0, 3])) == -jnp.inf
    assert tabular(logits(0, 7), space=SPACE).log_prob(jnp.array([2, 1])) == -jnp.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tabular(jnp.zeros(3), space=SPACE), "for 7 outcomes"),
        (lambda: memoryless(jnp.zeros(3), length=0), "length must be at least 1"),
        (lambda: memoryless(jnp.zeros(3), length=2, eos=3), "outside the vocabulary"),
        (lambda: markov({"initial": jnp.zeros(3)}, length=2), "'initial' and 'transition'"),
        (
            lambda: markov({"initial": jnp.zeros(3), "transition": jnp.zeros((3, 2))}, length=2),
            r"\(3, 3\)",
        ),
        (
            lambda: markov(chain(0, 3), length=2).log_prob(jnp.array([0, 1, 2])),
            "must be the length, 2",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
