"""`programs.fit`: parameters, constraints, resumption, baselines, subsamples, autoguides."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer import autoguide

from infer_align.jax import programs as P
from tests import quadrature

KEY = jax.random.key(0)


def model():
    """z | x ~ N(1, 1/√2); s apart."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0)
    numpyro.sample("s", dist.Gamma(3.0, 2.0))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (autoguide.AutoNormal, {"z_auto_loc", "z_auto_scale", "s_auto_loc", "s_auto_scale"}),
        (autoguide.AutoDelta, {"z_auto_loc", "s_auto_loc"}),
        (autoguide.AutoMultivariateNormal, {"auto_loc", "auto_scale_tril"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_autoguides_fit_existing_models_as_they_are(make, names):
    guide = make(model)
    loss = P.expectation(lambda: -P.objectives.elbo(model, guide))
    run = P.fit(KEY, loss, batch=64, steps=80, optimizer=optax.adam(0.1))
    *_, last = run
    assert set(last.params) == names
    quantile = guide.median(last.params)
    assert quantile["z"] == pytest.approx(1.0, abs=0.2)
    assert all(np.all(np.isfinite(x)) for x in last.params.values())
    for name, value in last.params.items():
        if name.endswith("scale") or (name == "s_auto_loc" and make is autoguide.AutoDelta):
            assert np.all(value > 0)


@pytest.mark.parametrize(
    "make",
    [autoguide.AutoIAFNormal, pytest.param(autoguide.AutoBNAFNormal, marks=pytest.mark.slow)],
)
def test_flows_whose_parameters_are_trees_of_networks_are_fitted(make):
    """Neither is inverted: the second cannot be."""
    guide = make(model)
    loss = P.expectation(lambda: -P.objectives.elbo(model, guide))
    run = P.fit(KEY, loss, batch=8, steps=40, optimizer=optax.adam(0.02))
    values = [step.metrics["value"] for step in run]
    assert np.mean(values[-10:]) < np.mean(values[:10])


@pytest.mark.parametrize(
    "make",
    [
        lambda t: dist.Normal(t, jnp.exp(t)),
        lambda t: dist.Normal(t * jnp.ones(3), jnp.exp(t)).to_event(1),
        lambda t: dist.LogNormal(t, jnp.exp(t)),
        lambda t: dist.Gamma(jnp.exp(t), 2.0),
    ],
)
def test_the_density_that_comes_with_a_draw_is_the_densitys(make):
    program = lambda t: numpyro.sample("x", make(t))

    def difference(t):
        sites, log_q = P.simulate(program, t)
        return log_q - P.density(program, sites, t)

    def own(t):
        return P.simulate(program, t)[1]

    value, slope = jax.value_and_grad(P.expectation(difference), argnums=1)(KEY, 0.3)
    assert value == pytest.approx(0.0, abs=1e-12)
    assert slope == pytest.approx(0.0, abs=1e-12)
    assert np.isfinite(jax.grad(P.expectation(own), argnums=1)(KEY, 0.3))


def test_the_loss_of_an_autoguide_works_before_a_fit_or_says_what_to_do():
    guide = autoguide.AutoNormal(model)
    loss = P.expectation(lambda: -P.objectives.elbo(model, guide))
    value = quadrature.outcome(lambda: loss(KEY))
    if isinstance(value, ValueError):
        assert "parameters" in str(value)
        P.parameters(KEY, loss)
        value = loss(KEY)
    assert np.isfinite(value)


def guided():
    loc = numpyro.param("loc", 0.5)
    scale = numpyro.param("scale", 0.8, constraint=constraints.interval(0.1, 0.9))
    return numpyro.sample("z", dist.Normal(loc, scale))


def test_constraints_are_respected_and_first_values_kept():
    loss = P.expectation(lambda: (guided() - 30.0) ** 2 + numpyro.param("free", jnp.ones(2)).sum())
    start = P.parameters(KEY, loss)
    assert float(start["scale"]) == 0.8
    run = P.fit(KEY, loss, steps=30, optimizer=optax.sgd(0.3))
    scales = [float(step.params["scale"]) for step in run]
    assert all(0.1 <= scale <= 0.9 for scale in scales)
    assert min(scales) < 0.5
    with pytest.raises(ValueError, match=r"no numpyro.param site, so there is nothing to fit"):
        P.fit(KEY, P.expectation(lambda: 0.0))


def test_a_step_is_that_of_the_unconstrained_parameters():
    loss = P.expectation(lambda t: numpyro.sample("z", dist.Normal(t["m"], 1.0)) ** 2)
    step = next(P.fit(KEY, loss, {"m": 0.7}, batch=3, optimizer=optax.sgd(0.1)))
    keys = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    each = jax.vmap(jax.value_and_grad(loss, argnums=1), (0, None))(keys, {"m": jnp.asarray(0.7)})
    assert step.metrics["value"] == pytest.approx(float(each[0].mean()), rel=1e-12)
    np.testing.assert_allclose(step.params["m"], 0.7 - 0.1 * each[1]["m"].mean(), rtol=1e-12)
    assert step.metrics["grad_norm"] == pytest.approx(abs(float(each[1]["m"].mean())))


def test_a_fit_resumes_bit_for_bit():
    rules = {"c": P.score_running(0.5), "z": P.reparam}

    def objective():
        m = numpyro.param("m", 0.3)
        c = numpyro.sample("c", dist.Bernoulli(jax.nn.sigmoid(m)))
        return numpyro.sample("z", dist.Normal(m + c, 1.0)) ** 2

    loss = P.expectation(objective, rules)
    whole = list(P.fit(KEY, loss, steps=6))
    first = list(P.fit(KEY, loss, steps=3))
    rest = list(P.fit(KEY, loss, steps=6, resume=first[-1].state))
    assert [step.index for step in first + rest] == list(range(6))
    for one, other in zip(whole, first + rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.state, other.state)
        assert one.metrics == other.metrics


def test_running_baselines_are_the_running_mean_of_earlier_values():
    loss = P.expectation(
        lambda t: 2.0 + numpyro.sample("c", dist.Bernoulli(jax.nn.sigmoid(t))),
        {"c": P.score_running(0.75)},
    )
    mean, before, params = None, 0.0, jnp.asarray(0.2)
    for step in itertools.islice(P.fit(KEY, loss, jnp.asarray(0.2), optimizer=optax.sgd(0.5)), 5):
        key = jax.random.split(jax.random.fold_in(KEY, step.index), 1)[0]
        slope = jax.grad(loss, argnums=1)(key, params, baselines={"c": before})
        np.testing.assert_allclose(step.params, params - 0.5 * slope, rtol=1e-12)
        value = step.metrics["value"]
        mean = value if mean is None else 0.75 * mean + 0.25 * value
        assert step.state.baselines["c"] == pytest.approx(mean, rel=1e-12)
        params, before = step.params, mean


DATA = jnp.array([0.5, -1.0, 2.0, 3.0])


def rows_model(t, size):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 4, subsample_size=size) as i:
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=DATA[i])


def rows_guide(t, size):
    numpyro.sample("mu", dist.Normal(t[0], 0.7))
    with numpyro.plate("rows", 4, subsample_size=size) as i:
        numpyro.sample("z", dist.Normal(t[1] * DATA[i], 0.4))


@pytest.mark.parametrize(
    ("size", "rules"),
    [
        (None, {}),
        (2, {}),
        (2, {"mu": P.reparam, "z": P.score_loo(4)}),
        (2, {"mu": P.measure_valued, "z": P.measure_valued}),
    ],
    ids=["all", "reparam", "score", "measure"],
)
def test_a_subsample_is_shared_and_the_gradient_is_that_of_all_data(size, rules):
    """By model and guide; the scale of the plate enters densities, not the score."""
    theta = jnp.array([0.4, 0.6])
    elbo = P.expectation(lambda t: P.objectives.elbo(rows_model, rows_guide, t, size), rules)

    def exact(t):
        """Closed form: Gaussian cross-entropies."""
        mu, z = (t[0], 0.7**2), (t[1] * DATA, 0.4**2)
        square = lambda mean, variance: mean**2 + variance
        total = -square(*mu) / 8 + jnp.sum(-square(z[0] - mu[0], z[1] + mu[1]) / 2)
        total += jnp.sum(-square(DATA - z[0], z[1]) / 0.5)
        constants = -np.log(2.0) - 4 * np.log(0.5) - 4.5 * np.log(2 * np.pi)
        entropy = np.log(0.7) + 4 * np.log(0.4) + 2.5 * (1 + np.log(2 * np.pi))
        return total + constants + entropy

    want = jax.value_and_grad(exact)(theta)
    deviations, _ = quadrature.deviations(elbo, want, theta, draws=20_000)
    assert np.all(deviations < 5), deviations


def test_plates_of_one_name_draw_the_same_subsample():
    seen = []

    def rows():
        with numpyro.plate("rows", 100, subsample_size=3) as i:
            seen.append(i)

    def both():
        rows()
        rows()
        return 1.0 * jnp.sum(jnp.abs(seen[-1] - seen[-2]))

    assert P.expectation(both)(KEY) == 0


@pytest.mark.parametrize("where", ["particles", "scan"])
def test_parameters_declared_in_a_repetition_are_learnt_or_refused(where):
    """Never left at their first value."""

    def objective():
        numpyro.param("other", 1.0)
        mean = lambda c: numpyro.sample("x", dist.Normal(c + numpyro.param("m", 1.0), 1.0))
        if where == "particles":
            return jnp.sum(P.particles(3, lambda: mean(0.0)) ** 2)
        return scan(lambda c, _: (mean(c), None), 0.0, None, length=2)[0] ** 2

    last = quadrature.outcome(lambda: list(P.fit(KEY, P.expectation(objective), steps=3))[-1])
    if isinstance(last, ValueError):
        assert "'m'" in str(last)
    else:
        assert np.shape(last.params["m"]) == ()
        assert last.params["m"] != 1.0


def test_arguments_that_cannot_be_right_are_refused():
    loss = P.expectation(lambda t: t**2)
    for wrong in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            P.fit(KEY, loss, jnp.asarray(1.0), **wrong)
    infinite = P.expectation(lambda t: jnp.log(t))
    with pytest.raises(ValueError, match="loss at step 0 is not finite"):
        next(P.fit(KEY, infinite, jnp.asarray(0.0)))
