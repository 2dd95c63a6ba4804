"""Weights of `simulate`, `density`, `marginal`, `normalize`: unbiased, by sums over all draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from infer_align.jax import programs as P
from tests import quadrature

SIGMAS = 5.0
KEY = jax.random.key(0)
THETA = jnp.array([0.4, -0.3, 0.7])
ALL_SUMMED = {"u": P.enumerate_, "x": P.enumerate_}


def joint(t):
    """q(x, u): three values of u, four of x."""
    u = numpyro.sample("u", dist.Categorical(logits=t))
    x = jnp.stack([0.3 * u, t[0] * u, 1.0 - u, t[2]])
    numpyro.sample("x", dist.Categorical(logits=x))


def proposal(kept, t):
    """r(u | x), far from the posterior."""
    numpyro.sample("u", dist.Categorical(logits=jnp.stack([t[1] * kept["x"], 0.5, 0.2 * t[0]])))


def table(t):
    """q(x, u), shape (4, 3)."""
    u = jnp.arange(3.0)
    of_x = jnp.stack([0.3 * u, t[0] * u, 1.0 - u, jnp.full(3, t[2])])
    return jax.nn.softmax(of_x, axis=0) * jax.nn.softmax(t)


def posterior(t):
    """An unnormalised program: a prior of four values and a factor."""
    z = numpyro.sample("z", dist.Categorical(logits=jnp.stack([t[0], t[1], t[2], 0.0])))
    numpyro.factor("data", jnp.sin(2.0 * z) - 0.5 * t[0] * z)


def unnormalised(t):
    z = jnp.arange(4)
    prior = jax.nn.softmax(jnp.stack([t[0], t[1], t[2], jnp.zeros(())]))
    return prior * jnp.exp(jnp.sin(2.0 * z) - 0.5 * t[0] * z)


def draws(t):
    """q(z) of the proposal of `posterior`."""
    numpyro.sample("z", dist.Categorical(logits=jnp.stack([0.3, -t[0], 0.0, t[1]])))


def summed(objective, estimators):
    """Value and gradient of an expectation without variance; two keys must agree."""
    loss = P.expectation(objective, estimators)
    run = jax.jit(jax.value_and_grad(loss, argnums=1)).lower(KEY, THETA).compile(quadrature.QUICK)
    first, second = run(KEY, THETA), run(jax.random.key(1), THETA)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-10)
    np.testing.assert_allclose(first[1], second[1], rtol=1e-9, atol=1e-10)
    return first


def assert_equal(got, exact):
    value, gradient = jax.value_and_grad(exact)(THETA)
    np.testing.assert_allclose(got[0], value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got[1], gradient, rtol=1e-9, atol=1e-10)


H = jnp.array([0.5, -1.0, 2.0, 3.0])


@pytest.mark.parametrize("n", [1, 2])
def test_reciprocal_weights_of_a_simulated_marginal_sum_to_reciprocal_densities(n):
    """E[h(x)/w] = Σ h(x), over x and its weight w."""
    q = P.marginal(joint, ["x"], proposal, n=n)

    def objective(t):
        sites, log_w = P.simulate(q, t)
        assert set(sites) == {"x"}
        return H[sites["x"]] * jnp.exp(-log_w)

    assert_equal(summed(objective, ALL_SUMMED), lambda t: jnp.sum(H))


@pytest.mark.parametrize("n", [1, 2])
def test_weights_of_a_marginal_at_a_value_average_its_density(n):
    """E[w] = q(x)."""
    q = P.marginal(joint, ["x"], proposal, n=n)
    at = lambda t: jnp.exp(P.density(q, {"x": 2}, t))
    assert_equal(summed(at, {"u": P.enumerate_}), lambda t: jnp.sum(table(t)[2]))


@pytest.mark.slow
def test_a_marginal_of_more_draws_has_a_tighter_weight():
    """E log w rises to log q at a value, and falls to it in simulations."""
    exact = jnp.log(table(THETA).sum(axis=1))
    at, simulated = [], []
    for n in (1, 2, 3):
        q = P.marginal(joint, ["x"], proposal, n=n)
        at.append(summed(lambda t, q=q: P.density(q, {"x": 1}, t), {"u": P.enumerate_})[0])

        def excess(t, q=q):
            sites, log_w = P.simulate(q, t)
            return log_w - jnp.log(table(t).sum(axis=1))[sites["x"]]

        simulated.append(summed(excess, ALL_SUMMED)[0])
    assert at[0] < at[1] < at[2] < exact[1]
    assert simulated[0] > simulated[1] > simulated[2] > 0


def test_a_kept_site_that_the_program_lacks_is_named():
    q = P.marginal(joint, ["y"], proposal)
    with pytest.raises(ValueError, match="'y' is to be kept and the program has u, x"):
        P.expectation(lambda t: P.simulate(q, t)[1])(KEY, THETA)


POSTERIOR = P.normalize(posterior, draws, n=2)
CHOICE = {"z": P.enumerate_, "index": P.enumerate_}


def test_the_normalizer_of_importance_resampling_is_unbiased():
    objective = lambda t: jnp.exp(POSTERIOR.log_normalizer(t))
    assert_equal(summed(objective, {"z": P.enumerate_}), lambda t: jnp.sum(unnormalised(t)))


def resampled(t):
    """The law of what is chosen of two draws, shape (4,)."""
    q = jax.nn.softmax(jnp.stack([jnp.asarray(0.3), -t[0], jnp.zeros(()), t[1]]))
    w = unnormalised(t) / q
    return 2 * unnormalised(t) * jnp.sum(q / (w[:, None] + w), axis=1)


def test_importance_resampling_chooses_by_weight():
    objective = lambda t: H[P.simulate(POSTERIOR, t)[0]["z"]]
    assert_equal(summed(objective, CHOICE), lambda t: jnp.sum(H * resampled(t)))


def test_reciprocal_weights_of_importance_resampling_sum_to_reciprocal_densities():
    def objective(t):
        sites, log_w = P.simulate(POSTERIOR, t)
        return H[sites["z"]] * jnp.exp(-log_w)

    assert_equal(summed(objective, CHOICE), lambda t: jnp.sum(H))


@pytest.mark.parametrize("n", [1, 2])
def test_weights_of_importance_resampling_at_a_value_average_its_law(n):
    sampler = P.normalize(posterior, draws, n=n)
    objective = lambda t: jnp.exp(P.density(sampler, {"z": 3}, t))
    proposal = lambda t: jax.nn.softmax(jnp.stack([jnp.asarray(0.3), -t[0], jnp.zeros(()), t[1]]))
    law = resampled if n == 2 else proposal
    assert_equal(summed(objective, {"z": P.enumerate_} if n == 2 else None), lambda t: law(t)[3])


def test_samplers_nest():
    """The marginal's program may be proposed by a resampling, and weights stay reciprocal."""

    def target(kept, t):
        u = numpyro.sample("u", dist.Categorical(logits=t))
        numpyro.factor("fit", 0.3 * u * kept["x"])

    base = lambda kept, t: numpyro.sample(
        "u", dist.Categorical(logits=jnp.stack([t[1], 0.5, t[0]]))
    )
    q = P.marginal(joint, ["x"], P.normalize(target, base, n=2))

    def objective(t):
        sites, log_w = P.simulate(q, t)
        return H[sites["x"]] * jnp.exp(-log_w)

    assert_equal(summed(objective, ALL_SUMMED | {"u": P.enumerate_}), lambda t: jnp.sum(H))
    at = lambda t: jnp.exp(P.density(q, {"x": 2}, t))
    got = summed(at, {"u": P.enumerate_, "index": P.enumerate_})
    assert_equal(got, lambda t: jnp.sum(table(t)[2]))


@pytest.mark.parametrize(
    "program", [joint, P.marginal(joint, ["x"], proposal, n=2)], ids=["program", "marginal"]
)
def test_detached_draws_carry_no_gradient(program):
    objective = lambda t: 1.0 * H[P.simulate(P.detach(program), t)[0]["x"]]
    value, gradient = summed(objective, ALL_SUMMED)
    np.testing.assert_allclose(value, jnp.sum(H * table(THETA).sum(axis=1)), rtol=1e-10)
    assert np.all(gradient == 0)


def test_detached_resampling_and_detached_normals_carry_no_gradient():
    objective = lambda t: H[P.simulate(P.detach(POSTERIOR), t)[0]["z"]]
    assert np.all(summed(objective, CHOICE)[1] == 0)
    normal = lambda t: numpyro.sample("x", dist.Normal(t[0], jnp.exp(t[1])))
    loss = P.expectation(lambda t: P.simulate(P.detach(normal), t)[0]["x"] ** 2)
    assert np.all(jax.grad(loss, argnums=1)(KEY, THETA) == 0)


def test_simulate_and_density_count_observed_sites_factors_and_scales():
    def program(t):
        with handlers.scale(scale=3.0):
            z = numpyro.sample("z", dist.Normal(t, 2.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=0.5)
        numpyro.factor("f", 0.25 * z)

    def objective(t):
        sites, log_p = P.simulate(program, t)
        z = sites["z"]
        by_hand = 3 * dist.Normal(t, 2.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(0.5) + z / 4
        return jnp.stack([log_p - by_hand, P.density(program, sites, t) - by_hand]) @ jnp.ones(2)

    assert P.expectation(objective)(KEY, 0.7) == pytest.approx(0.0, abs=1e-12)


def walk(t, y):
    def step(carry, y):
        z = numpyro.sample("z", dist.Normal(carry, t))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        return z, z

    scan(step, 0.0, y)


def test_a_scan_counts_in_simulate_and_density():
    """Latent and observed sites of every step."""
    y = jnp.array([0.5, 1.5, -0.3])

    def by_hand(z, t):
        before = jnp.concatenate([jnp.zeros(1), z[:-1]])
        return jnp.sum(dist.Normal(before, t).log_prob(z) + dist.Normal(z, 1.0).log_prob(y))

    def objective(t):
        sites, log_p = P.simulate(walk, t, y)
        exact = by_hand(sites["z"], t)
        return (log_p - exact) ** 2 + (P.density(walk, sites, t, y) - exact) ** 2

    assert P.expectation(objective)(KEY, 0.7) == pytest.approx(0.0, abs=1e-20)
    with pytest.raises(ValueError, match="needs a value for site 'z'"):
        P.expectation(lambda t: P.density(walk, {}, t, y))(KEY, 0.7)


def repeated(t):
    return P.particles(3, lambda: numpyro.sample("x", dist.Normal(t, 1.0)))


@pytest.mark.parametrize("around", ["simulate", "condition", "plate"])
def test_sites_under_particles_are_not_lost_to_the_handlers_around_them(around):
    """They are taken into account, or the program is refused."""
    given = lambda t: jnp.sum(handlers.condition(repeated, {"x": jnp.array(1.0)})(t))

    def plated(t):
        with numpyro.plate("rows", 5):
            return jnp.size(repeated(t)) * 1.0

    objective, right = {
        "simulate": (lambda t: 1.0 * (P.simulate(repeated, t)[1] != 0), 1.0),
        "condition": (given, 3.0),
        "plate": (plated, 15.0),
    }[around]
    got = quadrature.outcome(lambda: P.expectation(objective)(KEY, 0.3))
    if isinstance(got, ValueError):
        assert "vmap" in str(got) or "'x'" in str(got)
    else:
        assert got == pytest.approx(right)


def test_density_names_what_is_missing_and_what_is_too_much():
    with pytest.raises(ValueError, match="needs a value for site 'x'; it was given u"):
        P.density(joint, {"u": 1}, THETA)
    with pytest.raises(ValueError, match=r"site 'w', which the program does not have.*u, x"):
        P.density(joint, {"u": 1, "x": 0, "w": 2}, THETA)


@pytest.mark.parametrize("make", [P.marginal, P.normalize])
def test_a_number_of_draws_is_at_least_one(make):
    arguments = (joint, ["x"], proposal) if make is P.marginal else (posterior, draws)
    with pytest.raises(ValueError, match="at least 1"):
        make(*arguments, n=0)


@pytest.mark.parametrize("n", [1, 3])
def test_a_subsample_is_the_same_in_the_further_draws_of_a_marginal(n):
    """Another one would have other data for the local values that are kept."""
    data = 100.0 * jnp.arange(10)

    def program(t):
        with numpyro.plate("rows", 10, subsample_size=2) as i:
            numpyro.sample("u", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(data[i], t))

    def proposal(kept, t):
        with numpyro.plate("rows", 10, subsample_size=2):
            numpyro.sample("u", dist.Normal(0.0, 1.0))

    q = P.marginal(program, ["x"], proposal, n=n)

    def excess(t):
        sites, log_w = P.simulate(q, t)
        row = 100.0 * jnp.round(sites["x"] / 100.0)
        return log_w - 5 * jnp.sum(dist.Normal(row, t).log_prob(sites["x"]))

    assert P.expectation(excess)(KEY, 0.5) == pytest.approx(0.0, abs=1e-9)
