"""Baselines, weights, levels and defaults on the JAX side, against numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import infer_align as ia
from infer_align.diagnostics import estimates
from infer_align.estimators import maximum_likelihood
from infer_align.jax import assess, fit, mixture, tabular
from infer_align.jax import programs as P
from infer_align.targets import demonstrations

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 40)
PROB = 0.3
# f = 1 + x for x ~ Bernoulli(p); the score is 1/p where x is 1 and −1/(1 − p) where it is 0.
YES, NO = 1 / PROB, -1 / (1 - PROB)


def toss(p):
    return 1.0 + numpyro.sample("x", dist.Bernoulli(p))


def slopes(estimator, n=1, **baselines):
    """The different gradients that 40 keys give."""
    loss = P.expectation(toss, {"x": estimator}, n=n)
    one = lambda key: jax.grad(lambda p: loss(key, p, **baselines))(PROB)
    return sorted(set(np.round(np.asarray(jax.vmap(one)(KEYS)), 9).tolist()))


def test_the_score_function_without_a_baseline_and_with_a_number():
    np.testing.assert_allclose(slopes(P.score), [1 * NO, 2 * YES], rtol=1e-8)
    expected = [(1 - 0.7) * NO, (2 - 0.7) * YES]
    np.testing.assert_allclose(slopes(P.score_baseline(0.7)), expected, rtol=1e-8)
    by_function = slopes(P.score_baseline(lambda p: p + 0.4))
    np.testing.assert_allclose(by_function, expected, rtol=1e-8)


def test_a_running_baseline_is_what_the_caller_carries():
    given = slopes(P.score_running(), baselines={"x": 0.7})
    np.testing.assert_allclose(given, [(1 - 0.7) * NO, (2 - 0.7) * YES], rtol=1e-8)


def test_leave_one_out_of_two_is_zero_where_both_agree():
    different = ((2 - 1) * YES + (1 - 2) * NO) / 2
    np.testing.assert_allclose(slopes(P.score_loo(2)), [0.0, different], rtol=1e-8, atol=1e-12)


def test_leave_one_out_of_three_takes_the_mean_of_the_two_others():
    one = ((2 - 1) * YES + 2 * (1 - 1.5) * NO) / 3  # a single 1 among three
    two = (2 * (2 - 1.5) * YES + (1 - 2) * NO) / 3
    expected = sorted({0.0, one, two})
    np.testing.assert_allclose(slopes(P.score_loo(3)), expected, rtol=1e-8, atol=1e-12)


def test_evaluations_are_averaged():
    loss = P.expectation(lambda t: t * numpyro.sample("x", dist.Delta(jnp.array(2.0))), n=5)
    assert float(loss(KEY, 3.0)) == pytest.approx(6.0)
    assert slopes(P.score, n=2)[-1] == pytest.approx(2 * YES)


def test_a_relaxed_bernoulli_is_a_logistic_over_its_temperature():
    loss = lambda t: P.expectation(
        lambda p: numpyro.sample("x", dist.Bernoulli(p)), {"x": P.gumbel_softmax(t)}
    )
    cold, warm = (float(loss(t)(KEY, PROB)) for t in (0.5, 2.0))
    logit = lambda x: math.log(x / (1 - x))
    assert logit(cold) * 0.5 == pytest.approx(logit(warm) * 2.0, rel=1e-9)


def test_defaults_of_site_estimators():
    assert P.score_running().decay == 0.9
    assert P.score_loo().replicates == 2
    assert P.straight_through().name == "straight_through(1)"


def test_a_running_mean_begins_with_the_first_value_and_fades_by_its_decay():
    loss = P.expectation(toss, {"x": P.score_running(0.8)})
    run = P.fit(KEY, loss, jnp.asarray(PROB), steps=3)
    steps = list(run)
    values = [step.metrics["value"] for step in steps]
    second = 0.8 * values[0] + 0.2 * values[1]
    expected = [values[0], second, 0.8 * second + 0.2 * values[2]]
    found = [step.state.baselines["x"] for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def program():
    y = numpyro.sample("y", dist.Categorical(jnp.array([0.6, 0.4])))
    numpyro.factor("r", 1.0 * y)


def test_the_default_optimisers_take_a_step_of_a_hundredth():
    estimator = ia.f_dpg(ia.divergences.reverse_kl)
    after = next(fit(KEY, tabular, jnp.zeros(2), program, estimator)).params
    np.testing.assert_allclose(np.abs(after), 0.01, rtol=1e-5)
    moved = next(P.fit(KEY, P.expectation(lambda t: t**2), jnp.asarray(1.0))).params
    assert float(moved) == pytest.approx(0.99, rel=1e-6)


def test_parameters_descend_in_their_unconstrained_form():
    def scaled():
        return numpyro.param("s", 2.0, constraint=constraints.positive) ** 2

    step = next(P.fit(KEY, P.expectation(scaled)))
    assert float(step.params["s"]) == pytest.approx(2.0 * math.exp(-0.01), rel=1e-6)


def test_cross_entropy_of_a_fit_to_samples():
    data = demonstrations(jnp.array([0, 0, 0, 1]))
    policy = lambda params: tabular(jnp.log(jnp.array([0.8, 0.2])) + 0 * params)
    step = next(fit(KEY, policy, jnp.zeros(2), data, maximum_likelihood(), n=50))
    share = float(np.mean(np.asarray(step.outcomes) == 0))
    expected = -share * math.log(0.8) - (1 - share) * math.log(0.2)
    assert step.metrics["cross_entropy"] == pytest.approx(expected, rel=1e-9)


def test_the_components_of_a_mixture_are_drawn_by_their_weights():
    first, second = dist.Delta(jnp.array(0.0)), dist.Delta(jnp.array(1.0))
    y = mixture([first, second], [1.0, 3.0]).sample(KEY, (4000,))
    assert abs(float(y.mean()) - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)


def test_intervals_of_assess_have_their_level():
    widths = []
    for level in (0.5, 0.95):
        tree = assess(KEY, tabular(jnp.zeros(2)), program, n=4000, level=level)
        found = estimates(tree)["log_z"]
        widths.append(found.high - found.low)
    assert widths[1] / widths[0] == pytest.approx(1.95996 / 0.67449, rel=0.02)
