"""Every JAX policy is a distribution over its outcomes: it sums to one, and samples follow it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from infer_align import Space
from infer_align.jax import markov, memoryless, tabular

SPACE = Space.sequences(3, 2, eos=2, xp=jnp)  # 7 outcomes


def logits(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


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
    "markov": (
        partial(markov, length=3),
        lambda c: chain(4, 3, c),
        Space.sequences(3, 3, xp=jnp),
    ),
    "markov with EOS": (
        partial(markov, length=4, eos=0),
        lambda c: chain(6, 3, c),
        Space.sequences(3, 4, eos=0, xp=jnp),
    ),
    "markov with two EOS": (
        partial(markov, length=3, eos=(0, 3), pad=3),
        lambda c: chain(8, 4, c),
        Space.sequences(4, 3, eos=(0, 3), pad=3, xp=jnp),
    ),
    "markov of length 1": (
        partial(markov, length=1),
        lambda c: chain(10, 3, c),
        Space.sequences(3, 1, xp=jnp),
    ),
}
cases = pytest.mark.parametrize("name", ALL)


@cases
@pytest.mark.parametrize("contexts", [(), (2,), (2, 3)], ids=str)
def test_probabilities_sum_to_one(name, contexts):
    policy, params, space = ALL[name]
    distribution = policy(params(contexts))
    assert distribution.batch_shape == contexts
    assert distribution.event_shape == space.outcomes.shape[1:]
    log_prob = space.log_prob(distribution, tolerance=1e-12)
    assert log_prob.shape == (len(space), *contexts)


@cases
def test_contexts_are_independent(name):
    """A batch of contexts is the contexts one by one, and differs from swapped ones."""
    policy, params, space = ALL[name]
    both = params((2,))
    together = space.log_prob(policy(both))
    alone = [space.log_prob(policy(jax.tree.map(lambda x: x[i], both))) for i in range(2)]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), rtol=1e-12)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


@cases
@pytest.mark.parametrize("contexts", [(), (2,)], ids=str)
def test_samples_follow_log_prob(name, contexts):
    """Pearson's chi-squared at 5 sigma, for each context; the seed is fixed."""
    policy, params, space = ALL[name]
    distribution, n = policy(params(contexts)), 20_000
    y = distribution.sample(jax.random.key(42), (n,))
    assert y.shape == (n, *contexts, *space.outcomes.shape[1:])
    index = space.index(y).reshape(n, -1)
    expected = n * np.exp(space.log_prob(distribution)).reshape(len(space), -1)
    for drawn, e in zip(index.T, expected.T, strict=True):
        observed = np.bincount(drawn, minlength=len(space))
        p_value = stats.chi2.sf(((observed - e) ** 2 / e).sum(), len(space) - 1)
        assert p_value > 5.7e-7, (observed, e)


@cases
def test_enumerate_support_is_the_space(name):
    policy, params, space = ALL[name]
    np.testing.assert_array_equal(policy(params(())).enumerate_support(), space.outcomes)
    two = policy(params((2,)))
    event = space.outcomes.shape[1:]
    assert two.enumerate_support().shape == (len(space), 2, *event)
    assert two.enumerate_support(expand=False).shape == (len(space), 1, *event)


@cases
def test_support_holds_its_outcomes(name):
    policy, params, space = ALL[name]
    assert bool(jnp.all(policy(params(())).support(space.outcomes)))


@cases
def test_gradient_jit_and_vmap(name):
    """The score has mean zero; jit and vmap change nothing."""
    policy, params, space = ALL[name]
    log_prob = lambda p: policy(p).log_prob(space.outcomes)
    p = params(())
    score = jax.jacobian(log_prob)(p)
    weight = jnp.exp(log_prob(p))
    for leaf in jax.tree.leaves(jax.tree.map(lambda s: jnp.tensordot(weight, s, 1), score)):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-12)
    np.testing.assert_allclose(jax.jit(log_prob)(p), log_prob(p), rtol=1e-12)
    both = params((2,))
    np.testing.assert_allclose(jax.vmap(log_prob)(both).T, space.log_prob(policy(both)), rtol=1e-12)


@cases
def test_impossible_outcomes_and_finite_gradients(name):
    """A logit of -inf is an ordinary value, in log_prob, in the gradient and in samples."""
    policy, params, space = ALL[name]
    p = jax.tree.map(lambda x: x.at[..., 1].set(-jnp.inf), params(()))
    log_prob = space.log_prob(policy(p), tolerance=1e-12)
    assert bool(jnp.any(log_prob == -jnp.inf))

    def surrogate(p):
        x = policy(p).log_prob(space.outcomes)
        return jnp.sum(jnp.where(jnp.isfinite(x), x, 0.0))

    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(jax.grad(surrogate)(p)))
    drawn = space.index(policy(p).sample(jax.random.key(0), (500,)))
    assert np.all(np.asarray(log_prob)[drawn] > -np.inf)


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
