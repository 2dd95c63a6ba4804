"""The gradient that `fit` takes is, in expectation over every batch, that of the exact loss."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infer_align import Space, divergences, estimators
from infer_align.estimators import Claim, LogWeights
from infer_align.jax import fit, markov, policy_gradient
from infer_align.targets import Target

SPACE = Space.sequences(3, 2, eos=2, xp=jnp)  # 7 outcomes, 4 of 12 parameters shared by several
POLICY = partial(markov, length=2, eos=2)
LOG_Z = 1.3
DENSITY = np.log([0.05, 0.25, 0.1, 0.2, 0.08, 0.02, 0.3]) + LOG_Z


def chain(seed):
    first, after = jax.random.split(jax.random.key(seed))
    shapes = {"initial": (first, (3,)), "transition": (after, (3, 3))}
    return {name: 0.7 * jax.random.normal(key, shape) for name, (key, shape) in shapes.items()}


PARAMS, PROPOSAL = chain(0), chain(1)
CASES = [
    estimators.f_dpg(divergence, log_z=estimators.known_log_z(LOG_Z), baseline=baseline)
    for divergence, baseline in [
        (divergences.jensen_shannon, estimators.leave_one_out()),
        (divergences.forward_kl, estimators.dpg()),
        (divergences.reverse_kl, estimators.none()),
    ]
] + [
    estimators.reinforce(),
    estimators.vargrad(),
    estimators.trajectory_balance(log_z=estimators.known_log_z(LOG_Z)),
]


def log_probs(params):
    return POLICY(params).log_prob(SPACE.outcomes)


@pytest.fixture(scope="module")
def batches():
    """Every batch of 2 outcomes, and the gradient of all 49, given all their coefficients."""
    index = np.array(list(itertools.product(range(len(SPACE)), repeat=2)))
    gradient = lambda y, c: policy_gradient(POLICY, PARAMS, y, c)
    return index, jax.jit(jax.vmap(gradient)), jax.jit(log_probs)


@pytest.mark.parametrize("off_policy", [False, True], ids=["on", "off"])
@pytest.mark.parametrize("estimator", CASES, ids=lambda e: e.name)
def test_expected_gradient_is_that_of_the_exact_loss(batches, estimator, off_policy):
    index, gradients, log_prob = batches
    claim = estimator.off_policy if off_policy else estimator.on_policy
    assert claim is Claim.UNBIASED
    policy = np.asarray(log_prob(PARAMS))
    proposal = np.asarray(log_prob(PROPOSAL)) if off_policy else None
    c = [
        estimator.update(
            estimator.init(),
            LogWeights(policy[y], DENSITY[y], None if proposal is None else proposal[y]),
        ).coefficients
        for y in index
    ]
    each = gradients(SPACE.outcomes[index], jnp.asarray(np.array(c)))
    probability = np.exp((policy if proposal is None else proposal)[index].sum(axis=1))
    expected = jax.tree.map(lambda g: np.tensordot(probability, g, 1), each)
    loss = lambda p: estimator.loss(log_probs(p), jnp.asarray(DENSITY), proposal)
    exact = jax.jit(jax.grad(loss))(PARAMS)
    for name in exact:
        np.testing.assert_allclose(expected[name], exact[name], rtol=1e-9, atol=1e-12)


def test_a_step_descends_that_gradient():
    """One step of plain SGD from the batch that `fit` drew, per context, by hand."""
    table = jnp.asarray(np.stack([DENSITY, DENSITY[::-1] + 5.0], axis=1))

    def log_density(y, context):
        match = jnp.all(y[..., None, :] == SPACE.outcomes, axis=-1)
        return jnp.sum(jnp.where(match, table.T[context], 0.0), axis=-1)

    both = jax.tree.map(lambda *x: jnp.stack(x), PARAMS, PROPOSAL)
    policy = lambda params, context: POLICY(jax.tree.map(lambda x: x[context], params))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    prior = lambda context: policy(jax.tree.map(jnp.zeros_like, both), context)
    estimator = estimators.f_dpg(divergences.jensen_shannon)
    contexts = (jnp.array([1, 0]),)
    target = Target(prior, log_density)
    run = fit(
        jax.random.key(3), policy, both, target, estimator,
        n=5, steps=1, optimizer=optax.sgd(0.5), contexts=contexts,
    )  # fmt: skip
    step = next(run)
    assert step.weights.policy.shape == step.weights.target.shape == (5, 2)
    np.testing.assert_array_equal(step.weights.context, [0, 1])
    y = np.asarray(SPACE.index(step.outcomes))
    of_each = jax.jit(lambda: [log_probs(p) for p in (PROPOSAL, PARAMS, zeros)])
    of_first, of_second, of_prior = (np.asarray(x) for x in of_each())
    log_policy = np.stack([of_first, of_second], axis=1)[y, [0, 1]]
    np.testing.assert_allclose(step.weights.policy, log_policy, rtol=1e-12)
    log_target = of_prior[y] + np.asarray(table)[y, [1, 0]]
    np.testing.assert_allclose(step.weights.target, log_target, rtol=1e-12)
    c = estimator.update(estimator.init(), LogWeights(log_policy, log_target)).coefficients
    gradient = jax.jit(partial(policy_gradient, policy))(both, step.outcomes, c, *contexts)
    for name in both:
        want = both[name] - 0.5 * gradient[name]
        np.testing.assert_allclose(step.params[name], want, rtol=1e-9)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in gradient.values()))
    assert step.metrics["grad_norm"] == pytest.approx(norm)
