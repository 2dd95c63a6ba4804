"""What expectations refuse, naming the site; what they describe."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

from infer_align.jax import programs as P

KEY = jax.random.key(0)


def draw(t):
    return numpyro.sample("x", dist.Normal(t, 1.0))


AROUND = {
    "vmap": lambda f, t: jnp.sum(jax.vmap(f)(jnp.ones(2) * t)),
    "vectorize": lambda f, t: jnp.sum(jnp.vectorize(f)(jnp.ones(2) * t)),
    "scan": lambda f, t: jax.lax.scan(lambda c, _: (f(c), None), t, None, length=2)[0],
    "map": lambda f, t: jnp.sum(jax.lax.map(f, jnp.ones(2) * t)),
    "fori_loop": lambda f, t: jax.lax.fori_loop(0, 2, lambda i, c: f(c), t),
    "while_loop": lambda f, t: jax.lax.while_loop(lambda c: c < 9, lambda c: f(c) ** 2 + 1 + c, t),
    "cond": lambda f, t: jax.lax.cond(t > 0, f, lambda t: t, t),
    "switch": lambda f, t: jax.lax.switch(0, [f, lambda t: t], t),
    "jit": lambda f, t: jax.jit(f)(t),
    "grad": lambda f, t: jax.grad(f)(t),
    "value_and_grad": lambda f, t: jax.value_and_grad(f)(t)[0],
    "jvp": lambda f, t: jax.jvp(f, (t,), (1.0,))[0],
    "vjp": lambda f, t: jax.vjp(f, t)[0],
    "linearize": lambda f, t: jax.linearize(f, t)[0],
    "jacfwd": lambda f, t: jax.jacfwd(f)(t),
    "checkpoint": lambda f, t: jax.checkpoint(f)(t),
    "vmap in vmap": lambda f, t: jnp.sum(
        P.vmap(lambda s: jnp.sum(jax.vmap(f)(jnp.ones(2) * s)))(jnp.ones(2) * t)
    ),
    "jit in scan": lambda f, t: scan(lambda c, _: (jax.jit(f)(c), None), t, None, length=2)[0],
}
SITES = {
    "reparam": (draw, P.reparam, "site 'x'"),
    "score": (draw, P.score, "site 'x'"),
    "enumerate": (lambda t: numpyro.sample("x", dist.Bernoulli(jax.nn.sigmoid(t))) * 1.0,
                  P.enumerate_, "site 'x'"),
    "particles": (lambda t: jnp.sum(P.particles(2, lambda: draw(t))), P.score, "vmap"),
    "numpyro's scan": (
        lambda t: scan(lambda c, _: (draw(c), None), t, None, length=2)[0], P.score, "scan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("around", AROUND)
def test_sites_in_transformations_of_jax_are_refused(around, site):
    function, estimator, name = SITES[site]
    loss = P.expectation(lambda t: AROUND[around](function, t), {"x": estimator})
    with pytest.raises(ValueError, match=f"{name} is inside jax"):
        loss(KEY, 0.3)


def test_a_simulated_guide_under_raw_vmap_is_refused_too():
    guide = lambda t: draw(t)
    loss = P.expectation(lambda t: jnp.sum(jax.vmap(lambda s: P.simulate(guide, s)[1])(t)))
    with pytest.raises(ValueError, match="site 'x' is inside"):
        loss(KEY, jnp.ones(2))


def test_keys_and_subsamples_under_raw_vmap_are_refused():
    def keyed(t):
        return jnp.sum(jax.vmap(lambda s: s * jax.random.normal(numpyro.prng_key()))(t))

    def plated(t):
        def row(s):
            with numpyro.plate("rows", 5, subsample_size=2) as i:
                return s * jnp.sum(i)

        return jnp.sum(jax.vmap(row)(t))

    for objective in (keyed, plated):
        with pytest.raises(ValueError, match="is inside jax"):
            P.expectation(objective)(KEY, jnp.ones(2))


def test_numpyro_cond_is_refused():
    loss = P.expectation(lambda t: cond(t > 0, draw, lambda t: t, t))
    with pytest.raises(ValueError, match=r"control_flow.cond draws in one of its branches"):
        loss(KEY, 0.3)


@pytest.mark.parametrize("handler", [handlers.substitute, handlers.condition])
def test_a_scan_under_substituted_values_is_refused_where_others_are_drawn(handler):
    def program(t):
        def step(c, _):
            return numpyro.sample("y", dist.Normal(draw(c), 1.0)), None

        return scan(step, t, None, length=2)[0]

    loss = P.expectation(lambda t: handler(program, {"y": jnp.ones(2)})(t))
    with pytest.raises(ValueError, match="a scan under condition, substitute or replay"):
        loss(KEY, 0.3)


def test_repetition_outside_an_expectation_is_refused():
    with pytest.raises(ValueError, match="inside an objective given to"):
        P.particles(2, lambda: draw(0.0))
    with pytest.raises(ValueError, match="inside an objective given to"):
        P.vmap(draw)(jnp.ones(2))
    with pytest.raises(ValueError, match="number of particles, must be at least 1, got 0"):
        P.particles(0, lambda: draw(0.0))


def test_an_error_inside_an_objective_leaves_no_frame_behind():
    def broken(t):
        P.particles(2, lambda: draw(t))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        P.expectation(broken)(KEY, 0.3)
    with pytest.raises(ValueError, match="inside an objective"):
        P.particles(2, lambda: draw(0.0))


poisson = lambda t: 1.0 * numpyro.sample("n", dist.Poisson(t))
coin = lambda t: 1.0 * numpyro.sample("c", dist.Bernoulli(t))
gauss = lambda t: numpyro.sample("x", dist.Normal(t, 1.0))
several = lambda t: coin(t) + gauss(t) + poisson(t)


@pytest.mark.parametrize(
    ("objective", "estimators", "message"),
    [
        (poisson, {"n": P.reparam}, "site 'n'.*Poisson has no reparameterised sampler"),
        (poisson, {"n": P.enumerate_}, "site 'n'.*support of Poisson cannot be listed"),
        (poisson, {"n": P.local_expectation}, "site 'n'.*support of Poisson cannot be listed"),
        (gauss, {"x": P.enumerate_}, "site 'x'.*support of Normal cannot be listed"),
        (gauss, {"x": P.gumbel_softmax(0.5)}, "site 'x'.*Normal has no relaxation"),
        (lambda t: numpyro.sample("b", dist.Beta(t, 1.0)), {"b": P.measure_valued},
         "site 'b'.*no measure-valued derivative of Beta is known; there are those of .*Poisson"),
        (gauss, {"y": P.score}, "given for site 'y', which the objective does not draw; its "
         "sites are x"),
        (lambda t: t, {"y": P.score}, "site 'y'.*its sites are none"),
        (several, {"x": P.score}, r"site 'c' \(BernoulliProbs\) cannot be reparameterised and no"),
        (several, {}, "site 'c'.*no estimator is given"),
        (lambda t: numpyro.sample("m", dist.Normal(t, 1.0).mask(False)), None, "'m' is masked"),
        (lambda t: handlers.mask(lambda: gauss(t), mask=False)(), None, "site 'x' is masked"),
        (lambda t: numpyro.sample("m", dist.Normal(t, 1.0).expand([2]).mask(False).to_event(1))[0],
         None, "site 'm' is masked"),
        (lambda t: jnp.sum(numpyro.sample("c", dist.Bernoulli(t).expand([20]))) * 1.0,
         {"c": P.enumerate_}, r"1,048,576 joint values \(c 2\^20\)"),
        (lambda t: coin(t) + gauss(t), {"c": P.score_loo(2), "x": P.score_loo(3)},
         r"leave-one-out baselines of \[2, 3\] evaluations"),
        (lambda t: jnp.ones(2) * gauss(t), None, r"a number, got shape \(2,\)"),
        (lambda t: (gauss(t), gauss(t)), None, "an objective returns a number, got"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_with_its_name(objective, estimators, message):
    with pytest.raises(ValueError, match=message):
        P.expectation(objective, estimators)(KEY, 0.3)


def test_a_support_that_is_not_known_in_advance_is_refused_by_name():
    """Binomials of different sizes have no common support."""
    sizes = jnp.array([2, 3])
    loss = P.expectation(
        lambda t: jnp.sum(numpyro.sample("k", dist.Binomial(sizes, t))) * 1.0, {"k": P.enumerate_}
    )
    with pytest.raises(ValueError, match="site 'k'"):
        loss(KEY, 0.3)


@pytest.mark.parametrize("returned", [None, {"a": 1.0}, "text"], ids=str)
def test_an_objective_returns_a_number(returned):
    with pytest.raises((TypeError, ValueError), match="an objective returns a number"):
        P.expectation(lambda: returned)(KEY)


def test_detaching_keeps_what_is_no_number_to_differentiate():
    """The support of a binomial is known as before."""
    program = lambda t: numpyro.sample("k", dist.Binomial(3, t))
    loss = P.expectation(
        lambda t: 1.0 * P.simulate(P.detach(program), t)[0]["k"], {"k": P.enumerate_}
    )
    value, slope = jax.value_and_grad(loss, argnums=1)(KEY, 0.3)
    assert value == pytest.approx(0.9)
    assert slope == 0


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="'x'"):
        P.expectation(gauss, {"x": "score"})
    with pytest.raises(TypeError, match="'x'"):
        P.expectation(gauss, {"x": P.score_loo})
    at_site = lambda t: numpyro.sample("x", dist.Normal(t, 1.0), infer={"gradient": "score"})
    with pytest.raises(TypeError, match=r"site 'x' has infer=.*'score'"):
        P.expectation(at_site)(KEY, 0.3)


def test_numbers_that_make_no_estimator_are_refused():
    with pytest.raises(ValueError, match="must be at least 2, got 1"):
        P.score_loo(1)
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"in \[0, 1\)"):
            P.score_running(decay)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        P.expectation(gauss, n=0)
    for relaxation in (P.gumbel_softmax, P.straight_through):
        with pytest.raises(ValueError, match="positive, got 0"):
            P.expectation(coin, {"c": relaxation(0.0)})(KEY, 0.3)
    with pytest.raises(ValueError, match=r"n=5 evaluations, and score_loo\(2\) needs 2"):
        P.expectation(coin, {"c": P.score_loo(2)}, n=5)(KEY, 0.3)


def test_a_description_lists_sites_elements_and_estimators():
    def objective(t):
        with numpyro.plate("rows", 3):
            numpyro.sample("a", dist.Bernoulli(t))
        each = P.particles(4, lambda: numpyro.sample("b", dist.Categorical(jnp.ones(3) / 3)))
        scan(lambda c, _: (numpyro.sample("c", dist.Normal(c, t)), None), t, None, length=5)
        return jnp.sum(each) * 1.0

    estimators = {"a": P.enumerate_, "b": P.local_expectation}
    table = P.expectation(objective, estimators).describe(0.5)
    assert table.splitlines() == [
        "site    distribution      elements  estimator",
        "a       BernoulliProbs    3         enumerate",
        "vmap/b  CategoricalProbs  4         local_expectation",
        "scan/c  Normal            5         reparam (default)",
    ]


def test_an_estimator_is_found_by_name_then_at_the_site_then_by_default():
    marked = lambda t: (
        numpyro.sample("c", dist.Bernoulli(t), infer={"gradient": P.enumerate_}) * 1.0
    )
    names = lambda *given: [s.estimator.name for s in P.expectation(marked, *given).sites(0.3)]
    assert names() == ["enumerate"]
    assert names({"c": P.score}) == ["score"]
    assert [s.estimator.name for s in P.expectation(several).sites(0.3)] == [
        "score", "reparam", "score",
    ]  # fmt: skip
    running = P.expectation(several, {"c": P.score_running(0.7), "n": P.score})
    assert running.decays(0.3) == {"c": 0.7}


def test_the_same_name_twice_is_two_sites_that_are_drawn_independently():
    twice = P.expectation(lambda t: coin(t) * coin(t), {"c": P.enumerate_})
    value, slope = jax.value_and_grad(twice, argnums=1)(KEY, 0.3)
    assert value == pytest.approx(0.09)
    assert slope == pytest.approx(0.6)
    assert [site.uid for site in twice.sites(0.3)] == ["c", "c#2"]
    noise = P.expectation(lambda: draw(0.0) - draw(0.0))
    assert noise(KEY) != 0


def test_every_repetition_has_noise_of_its_own():
    """Particles in particles, scan steps, further repetitions: no two of 16 numbers are equal."""

    def objective():
        rows = P.particles(3, lambda: P.particles(2, lambda: draw(0.0))).reshape(-1)
        step = lambda c, _: (c, (draw(0.0), numpyro.sample("y", dist.Beta(2.0, 2.0))))
        steps = scan(step, 0.0, None, length=3)[1]
        again = P.particles(3, lambda: draw(0.0))
        every = jnp.concatenate([rows, *steps, again, draw(0.0)[None]])
        assert every.shape == (16,)
        return jnp.min(jnp.diff(jnp.sort(every)))

    assert jax.jit(lambda key: P.expectation(objective)(key))(KEY) > 0


def test_vmap_takes_axes_like_that_of_jax():
    a, b = jnp.arange(6.0).reshape(2, 3), 2.0
    along = lambda a, b: jnp.sum(P.vmap(lambda x, y: x[0] * y + 0 * draw(y), (1, None))(a, b))
    assert P.expectation(along)(KEY, a, b) == pytest.approx(6.0)
    tree = lambda t: jnp.sum(P.vmap(lambda x: x["p"] + 0 * draw(x["q"]))(t))
    assert P.expectation(tree)(KEY, {"p": jnp.ones(2), "q": jnp.ones(2)}) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no argument has an axis to repeat over"):
        P.expectation(lambda: P.vmap(lambda x: x, None)(a))(KEY)


@pytest.mark.parametrize("estimator", [P.score, P.enumerate_, P.local_expectation], ids=str)
def test_an_expectation_is_a_function_to_jit_and_to_differentiate(estimator):
    loss = P.expectation(lambda t: 3.0 * coin(t), {"c": estimator})
    compiled = jax.jit(loss)
    np.testing.assert_allclose(compiled(KEY, 0.3), loss(KEY, 0.3), rtol=1e-12)
    slope = jax.grad(compiled, argnums=1)(KEY, 0.3)
    np.testing.assert_allclose(slope, jax.grad(loss, argnums=1)(KEY, 0.3), rtol=1e-12)


def test_impossible_values_without_a_density_cost_nothing():
    """0 · log 0 at a value of probability 0."""

    def objective(t):
        z = numpyro.sample("z", dist.Categorical(probs=jnp.stack([t, 1 - t, 0.0 * t])))
        return jnp.where(z == 2, -jnp.inf, 2.0 * z)

    for estimator in (P.enumerate_, P.local_expectation, P.score):
        loss = P.expectation(objective, {"z": estimator})
        value, slope = jax.jit(jax.value_and_grad(loss, argnums=1))(KEY, 0.4)
        assert np.isfinite(value), estimator
        assert np.isfinite(slope), estimator
