"""Objectives have the value and the gradient of their formula, by brute force over small models."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp

from infer_align.jax import programs as P
from infer_align.jax.programs import objectives as O
from tests import quadrature

SIGMAS = 5.0
KEY = jax.random.key(0)
PHI = jnp.array([0.8, -0.5, -0.2, 0.3])
FIT = jnp.array([-1.2, 0.4, 0.9, -0.3])
"""log-likelihood of each category."""
stop = jax.lax.stop_gradient


def model(t):
    z = numpyro.sample("z", dist.Categorical(logits=jnp.array([0.1, 0.5, -0.4, 0.2]) * (1 + t[0])))
    numpyro.factor("data", FIT[z] * (1 + t[1]))


def guide(t):
    numpyro.sample("z", dist.Categorical(logits=t))


def log_joint(t):
    return jax.nn.log_softmax(jnp.array([0.1, 0.5, -0.4, 0.2]) * (1 + t[0])) + FIT * (1 + t[1])


def brute(f, n, *, detached=False):
    """E f(log p, log q of n draws of the guide); detached: as if draws had no gradient."""
    index = jnp.array(list(itertools.product(range(4), repeat=n)))

    def total(t):
        log_q = jax.nn.log_softmax(t)
        law = jnp.exp(jnp.sum(log_q[index], axis=1))
        values = jax.vmap(lambda i: f(log_joint(t)[i], log_q[i]))(index)
        return jnp.sum((stop(law) if detached else law) * values)

    return total


def log_mean(x):
    return logsumexp(x) - math.log(len(x))


def summed(objective, estimator=P.enumerate_, theta=PHI):
    loss = P.expectation(objective, {"z": estimator})
    return (
        jax.jit(jax.value_and_grad(loss, argnums=1))
        .lower(KEY, theta)
        .compile(quadrature.QUICK)(KEY, theta)
    )


def assert_equal(got, exact):
    value, gradient = jax.value_and_grad(exact)(PHI)
    np.testing.assert_allclose(got[0], value, rtol=1e-10)
    np.testing.assert_allclose(got[1], gradient, rtol=1e-9, atol=1e-11)


def shares(log_p, log_q):
    return stop(jax.nn.softmax(log_p - log_q))


ALPHA = 0.4
FORMULAS = {
    "elbo": (O.elbo, {}, 1, False, lambda p, q: jnp.sum(p - q)),
    "iwelbo": (O.iwelbo, {"n": 3}, 3, False, lambda p, q: log_mean(p - q)),
    "renyi_bound": (
        O.renyi_bound, {"alpha": ALPHA, "n": 2}, 2, False,
        lambda p, q: log_mean((1 - ALPHA) * (p - q)) / (1 - ALPHA),
    ),
    "renyi_bound above": (
        O.renyi_bound, {"alpha": 2.0, "n": 2}, 2, False, lambda p, q: -log_mean(q - p),
    ),
    "chi_upper_bound": (
        O.chi_upper_bound, {"order": 1.5}, 1, False, lambda p, q: jnp.sum(jnp.exp(1.5 * (p - q))),
    ),
    "wake_model": (O.wake_model, {"n": 2}, 2, True, lambda p, q: jnp.vdot(shares(p, q), p)),
    "wake_proposal": (O.wake_proposal, {"n": 2}, 2, True, lambda p, q: jnp.vdot(shares(p, q), q)),
    "forward_kl": (
        O.forward_kl, {"n": 2}, 2, True,
        lambda p, q: jnp.vdot(shares(p, q), stop(p) - q) - stop(log_mean(p - q)),
    ),
    "vargrad": (
        O.vargrad, {"n": 3}, 3, True, lambda p, q: jnp.var(q - stop(p), ddof=1) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_an_objective_is_its_formula_averaged_over_all_draws(name):
    function, options, n, detached, formula = FORMULAS[name]
    got = summed(lambda t: function(model, guide, t, **options))
    assert_equal(got, brute(formula, n, detached=detached))


@pytest.mark.parametrize(
    "estimator", [P.local_expectation, P.score, P.score_loo(4), P.measure_valued], ids=str
)
def test_the_importance_weighted_bound_of_a_discrete_guide_is_unbiased(estimator):
    """NumPyro's RenyiELBO has no score term: its gradient has the wrong sign there."""
    exact = jax.value_and_grad(brute(lambda p, q: log_mean(p - q), 3))(PHI)
    assert jnp.vdot(exact[1], jax.grad(brute(lambda p, q: jnp.sum(p - q), 1))(PHI)) > 0.1
    loss = P.expectation(lambda t: O.iwelbo(model, guide, t, n=3), {"z": estimator})
    deviations, variance = quadrature.deviations(loss, exact, PHI, draws=20_000)
    assert np.all(deviations < SIGMAS), (deviations, variance)


def test_numpyros_renyi_elbo_of_a_discrete_guide_ascends_the_wrong_way_and_ours_does_not():
    """The gradient of E log (1/3)Σ w is (-.162, .252, .023, -.113) at these logits."""
    joint, logits = jnp.array([-0.695, 2.568, 1.907, 0.0]), jnp.array([0.2, -0.1, 0.4, 0.0])

    def fixed(t):
        z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(4)))
        numpyro.factor("data", joint[z] + math.log(4))

    exact = [-0.162, 0.252, 0.023, -0.113]
    ours = summed(lambda t: O.iwelbo(fixed, guide, t, n=3), theta=logits)[1]
    np.testing.assert_allclose(ours, exact, atol=6e-4)
    loss = numpyro.infer.RenyiELBO(alpha=0.0, num_particles=3)
    theirs = jax.grad(lambda t, key: -loss.loss(key, {}, fixed, guide, t))
    draws = jax.jit(jax.vmap(theirs, (None, 0)))(logits, jax.random.split(KEY, 20_000))
    error = draws.std(axis=0) / math.sqrt(len(draws))
    assert jnp.vdot(draws.mean(axis=0), ours) < -0.05, "NumPyro changed: say so in the docs"
    assert float(jnp.max(jnp.abs(draws.mean(axis=0) - ours) / error)) > 100


def posterior(t):
    return jax.nn.softmax(log_joint(t))


def test_vargrad_has_the_gradient_of_the_reverse_divergence():
    of_guide = lambda t: O.vargrad(lambda _: model(PHI), guide, t, n=2)
    kl = lambda t: jnp.sum(jax.nn.softmax(t) * (jax.nn.log_softmax(t) - jnp.log(posterior(PHI))))
    np.testing.assert_allclose(summed(of_guide)[1], jax.grad(kl)(PHI), rtol=1e-9, atol=1e-11)


def test_wake_phases_tend_to_the_gradients_of_the_evidence_and_of_the_forward_divergence():
    """2000 particles: the bias is O(1/n)."""
    evidence = lambda t: logsumexp(log_joint(t))
    cross = lambda t: jnp.vdot(posterior(PHI), jax.nn.log_softmax(t))
    forward = lambda t: jnp.vdot(posterior(PHI), jnp.log(posterior(PHI)) - jax.nn.log_softmax(t))
    for objective, exact in [
        (lambda t: O.wake_model(model, lambda _: guide(PHI), t, n=2000), evidence),
        (lambda t: O.wake_proposal(lambda _: model(PHI), guide, t, n=2000), cross),
        (lambda t: O.forward_kl(lambda _: model(PHI), guide, t, n=2000), forward),
    ]:
        loss = P.expectation(objective)
        keys = jax.random.split(KEY, 20)
        got = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=1), (0, None)))(keys, PHI)
        np.testing.assert_allclose(got[1].mean(axis=0), jax.grad(exact)(PHI), atol=0.02)
        if exact is forward:
            np.testing.assert_allclose(got[0].mean(), forward(PHI), atol=0.02)


def test_jeffreys_is_the_forward_divergence_less_the_elbo():
    got = summed(lambda t: O.jeffreys(model, guide, t, n=2))
    parts = [summed(lambda t: O.forward_kl(model, guide, t, n=2)),
             summed(lambda t: O.elbo(model, guide, t))]  # fmt: skip
    np.testing.assert_allclose(got[0], parts[0][0] - parts[1][0], rtol=1e-10)
    np.testing.assert_allclose(got[1], parts[0][1] - parts[1][1], rtol=1e-9)


def test_sleep_scores_the_guide_at_what_the_model_dreams():
    """The guide's gradient is exact, the model's is none."""

    def dreaming(t):
        z = numpyro.sample("z", dist.Bernoulli(logits=t[0]))
        numpyro.sample("x", dist.Bernoulli(logits=1.5 * z - 0.5 + t[1]))

    def reader(data, t):
        numpyro.sample("z", dist.Bernoulli(logits=t[2] * data["x"] + t[3]))

    def exact(t):
        total = 0.0
        for z, x in itertools.product([0, 1], repeat=2):
            law = dist.Bernoulli(logits=t[0]).log_prob(z)
            law = law + dist.Bernoulli(logits=1.5 * z - 0.5 + t[1]).log_prob(x)
            log_q = dist.Bernoulli(logits=t[2] * x + t[3]).log_prob(z)
            total += stop(jnp.exp(law)) * log_q
        return total

    loss = P.expectation(
        lambda t: O.sleep(dreaming, reader, ("x",), t), {"z": P.enumerate_, "x": P.enumerate_}
    )
    assert_equal(jax.value_and_grad(loss, argnums=1)(KEY, PHI), exact)


def test_bounds_are_ordered():
    """elbo <= Rényi bounds, falling in the order <= iwelbo, rising in n <= log p(x)."""
    evidence = logsumexp(log_joint(PHI))
    bounds = [
        lambda t: O.elbo(model, guide, t),
        lambda t: O.renyi_bound(model, guide, t, alpha=0.7, n=2),
        lambda t: O.renyi_bound(model, guide, t, alpha=0.2, n=2),
        lambda t: O.iwelbo(model, guide, t, n=2),
        lambda t: O.iwelbo(model, guide, t, n=3),
    ]
    values = [float(summed(bound)[0]) for bound in bounds]
    assert values == sorted(values)
    assert (
        values[-1] < evidence < jnp.log(summed(lambda t: O.chi_upper_bound(model, guide, t))[0]) / 2
    )
    zero = lambda t: O.renyi_bound(model, guide, t, alpha=0.0, n=2)
    assert summed(zero)[0] == pytest.approx(values[3], rel=1e-12)


def gaussian():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0)


def hierarchical():
    u = numpyro.sample("u", dist.Normal(0.3, 0.6))
    numpyro.sample("z", dist.Normal(0.5 + u, 0.5))


def rough(kept):
    numpyro.sample("u", dist.Normal(0.2 * kept["z"], 0.7))


def test_hierarchical_bounds_are_ordered_on_a_gaussian():
    """hvi < iwhvi < elbo of the guide's marginal N(.8, √.61) < log p(x); diwhvi < log p(x)."""
    keys = jax.random.split(KEY, 20_000)
    keep = {"keep": ("z",)}
    objectives = [
        lambda: O.hvi(gaussian, hierarchical, rough, **keep),
        lambda: O.iwhvi(gaussian, hierarchical, rough, **keep, n=4),
        lambda: O.diwhvi(gaussian, hierarchical, rough, **keep, n=4, particles=3),
    ]
    estimates = [jax.jit(jax.vmap(P.expectation(o)))(keys) for o in objectives]
    mean = [float(x.mean()) for x in estimates]
    error = [float(x.std()) / math.sqrt(len(keys)) for x in estimates]
    evidence = float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(2.0))
    m, v = 0.8, 0.61
    kl = 0.5 * (v / 0.5 + (m - 1) ** 2 / 0.5 - 1 - math.log(v / 0.5))
    marginal = evidence - kl
    assert mean[0] + SIGMAS * error[0] < mean[1] - SIGMAS * error[1]
    assert mean[1] < marginal + SIGMAS * error[1]
    assert marginal - 0.1 < mean[1]
    assert mean[1] < mean[2] < evidence + SIGMAS * error[2]


def test_with_the_exact_proposal_a_hierarchical_bound_is_the_elbo_of_the_marginal():
    def exact(kept):
        precision = 1 / 0.36 + 1 / 0.25
        mean = (0.3 / 0.36 + (kept["z"] - 0.5) / 0.25) / precision
        numpyro.sample("u", dist.Normal(mean, precision**-0.5))

    def difference():
        q = P.marginal(hierarchical, ["z"], exact, n=2)
        sites, log_w = P.simulate(q)
        return log_w - dist.Normal(0.8, math.sqrt(0.61)).log_prob(sites["z"])

    assert P.expectation(difference)(KEY) == pytest.approx(0.0, abs=1e-12)


def test_numbers_that_make_no_objective_are_refused():
    with pytest.raises(ValueError, match="order 1 is the elbo"):
        O.renyi_bound(model, guide, PHI, alpha=1.0, n=2)
    with pytest.raises(ValueError, match="order > 1"):
        O.chi_upper_bound(model, guide, PHI, order=1.0)
    with pytest.raises(ValueError, match="must be at least 2, got 1"):
        O.vargrad(model, guide, PHI, n=1)


def coin(t):
    numpyro.sample("z", dist.Bernoulli(logits=t[0]))


@pytest.mark.parametrize(
    "bound",
    [
        lambda t: O.elbo(coin, coin, t),
        lambda t: O.iwelbo(coin, coin, t, n=2),
        lambda t: O.renyi_bound(coin, coin, t, alpha=0.5, n=2),
        lambda t: O.chi_upper_bound(coin, coin, t),
        lambda t: O.hvi(coin, coin, lambda kept, t: None, t, keep=("z",)),
    ],
)
@pytest.mark.parametrize("estimator", [P.gumbel_softmax(0.5), P.straight_through(0.5)], ids=str)
def test_a_biased_estimator_enters_no_bound(bound, estimator):
    loss = P.expectation(bound, {"z": estimator})
    with pytest.raises(ValueError, match=r"site 'z' has the estimator \w+\(0.5\), which is biased"):
        loss(KEY, jnp.array([0.3, -0.2]))
