"""Value and gradient of an expectation are exact in the mean, whatever the sites' estimators.

Every ordered pair of estimators, upstream and downstream, meets in chains of sites whose
parameters depend on all values upstream; then in every environment that repeats a program.
"""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from infer_align.jax import programs as P
from tests import quadrature

SIGMAS = 5.0
LIBRARY = SimpleNamespace(
    particles=P.particles, vmap=P.vmap, scan=scan, simulate=P.simulate, density=P.density
)
THETA = jnp.array([0.4, -0.3])

FAMILIES = {
    "bernoulli": lambda name, t: numpyro.sample(name, dist.Bernoulli(jax.nn.sigmoid(t))),
    "categorical": lambda name, t: numpyro.sample(
        name, dist.Categorical(logits=jnp.stack([0.3 * t, -t, jnp.sin(t)], axis=-1))
    ),
    "poisson": lambda name, t: numpyro.sample(name, dist.Poisson(jnp.exp(0.3 * t))),
    "normal": lambda name, t: numpyro.sample(name, dist.Normal(t, jnp.exp(0.3 * jnp.sin(t) - 0.5))),
}
RULES = {
    "reparam": (P.reparam, ["normal"]),
    "score": (P.score, ["bernoulli", "categorical", "poisson", "normal"]),
    "loo": (P.score_loo(2), ["bernoulli", "categorical", "poisson", "normal"]),
    "running": (P.score_running(), ["normal", "bernoulli", "categorical", "poisson"]),
    "baseline": (
        P.score_baseline(lambda theta: 1.0 + theta[0]),
        ["bernoulli", "categorical", "poisson", "normal"],
    ),
    "enumerate": (P.enumerate_, ["bernoulli", "categorical"]),
    "local": (P.local_expectation, ["bernoulli", "categorical"]),
    "measure": (P.measure_valued, ["normal", "bernoulli", "categorical", "poisson"]),
}
"""By name: estimator, and the families that it is tried on; of quick tests, the first."""


def chain(kinds, theta, shift=0.0):
    """Sites a, b, ... whose parameters depend on all values before; a nonlinear function of all."""
    past, total = shift, jnp.sin(shift)
    for i, kind in enumerate(kinds):
        t = theta[i % 2] - 0.6 * past + 0.2 * past * theta[0]
        value = FAMILIES[kind]("abc"[i], t) * 1.0
        total = jnp.sin(total + 0.7 * value) + 0.3 * past * value + theta[0] * value
        past = 0.5 * past + value
    return total


def alone(env, kinds, theta):
    return chain(kinds, theta)


def under_particles(env, kinds, theta):
    each = env.particles(2, lambda: chain(kinds, theta))
    return jax.nn.logsumexp(each) + theta[1] * each[0]


def under_vmap(env, kinds, theta):
    each = env.vmap(lambda shift: chain(kinds, theta, shift))(jnp.array([0.5, -0.2]))
    return each[0] * each[1] + each[0] ** 2


def under_scan(env, kinds, theta):
    def step(carry, x):
        carry = 0.4 * carry + chain(kinds, theta * x, carry)
        return carry, jnp.cos(carry)

    end, out = env.scan(step, 0.3, jnp.array([1.0, 0.7]))
    return jnp.sin(end) + out[0] * out[1] + end * theta[1]


def scan_under_particles(env, kinds, theta):
    each = env.particles(2, lambda: under_scan(env, kinds, theta))
    return jax.nn.logsumexp(each)


def vmap_under_vmap(env, kinds, theta):
    rows = env.vmap(lambda x: under_vmap(env, kinds, theta * x))(jnp.array([1.0, 0.6]))
    return jnp.sin(rows[0]) + rows[0] * rows[1]


def particles_under_scan(env, kinds, theta):
    def step(carry, _):
        each = env.particles(2, lambda: chain(kinds, theta, carry))
        return jnp.sin(each[0]) + 0.3 * each[1], None

    return env.scan(step, 0.3, None, length=2)[0] ** 2


def in_plate(env, kinds, theta):
    with numpyro.plate("rows", 2):
        each = chain(kinds, theta, jnp.array([0.5, -0.2]))
    return each[0] * each[1] + each[0] ** 2


def simulated(env, kinds, theta):
    sites, log_q = env.simulate(chain, kinds, theta)
    twin = env.density(chain, sites, kinds, 0.5 * theta)
    return jnp.sin(twin - log_q) + 0.2 * sites["a"] * twin


def simulated_scan(env, kinds, theta):
    def walk(theta):
        def step(carry, _):
            return 0.5 * carry + chain(kinds, theta, carry), None

        env.scan(step, 0.3, None, length=2)

    sites, log_q = env.simulate(walk, theta)
    twin = env.density(walk, sites, 0.5 * theta)
    return jnp.sin(twin - log_q) + 0.2 * sites["a"][1] * twin


ENVIRONMENTS = {
    f.__name__: f
    for f in [
        alone, under_particles, under_vmap, under_scan, scan_under_particles, vmap_under_vmap,
        particles_under_scan, in_plate, simulated, simulated_scan,
    ]
}  # fmt: skip
NESTED = {"scan_under_particles", "vmap_under_vmap", "particles_under_scan"}


@functools.cache
def exact(environment, kinds):
    """Of eight sites, normal ones take only few nodes each."""
    hermite = 6 if environment in NESTED else 10 if environment != "alone" else 20
    program = functools.partial(ENVIRONMENTS[environment], quadrature, kinds)
    return quadrature.exactly(program, THETA, hermite)


def check(environment, rules, kinds, draws):
    """Value and gradient agree with the exact ones; to 1e-10 where nothing is drawn."""
    program = functools.partial(ENVIRONMENTS[environment], LIBRARY, kinds)
    loss = P.expectation(program, {"abc"[i]: RULES[rule][0] for i, rule in enumerate(rules)})
    given = functools.partial(loss, baselines=dict.fromkeys("abc", 0.8))
    deviations, variance = quadrature.deviations(
        given, exact(environment, kinds), THETA, draws=draws
    )
    assert np.all(deviations < SIGMAS), (deviations, variance)
    if set(rules) == {"enumerate"}:
        assert np.all(variance < 1e-20)


def chains(names):
    """Few triples in which every ordered pair of names occurs, one upstream of the other."""
    left = {(a, b) for a in names for b in names}
    out = []
    triples = [(a, b, c) for a in names for b in names for c in names]
    while left:
        best = max(triples, key=lambda t: len({(t[0], t[1]), (t[0], t[2]), (t[1], t[2])} & left))
        out.append(best)
        left -= {(best[0], best[1]), (best[0], best[2]), (best[1], best[2])}
    return out


IN_CHAINS = [rule for rule in RULES if rule != "baseline"]  # which is a running one's twin


@pytest.mark.parametrize("rules", chains(IN_CHAINS), ids="-".join)
def test_estimators_in_a_chain_are_unbiased_together(rules):
    check("alone", rules, tuple(RULES[rule][1][0] for rule in rules), 20_000)


QUICKLY = [
    ("under_particles", "local-enumerate bernoulli-categorical"),
    ("under_vmap", "measure-loo normal-bernoulli"),
    ("under_scan", "local-enumerate categorical-bernoulli"),
    ("under_scan", "enumerate-enumerate bernoulli-categorical"),
    ("under_scan", "measure-score normal-bernoulli"),
    ("vmap_under_vmap", "score-local bernoulli-bernoulli"),
    ("particles_under_scan", "reparam-running normal-bernoulli"),
    ("in_plate", "local-enumerate bernoulli-categorical"),
    ("in_plate", "measure-baseline normal-bernoulli"),
    ("simulated", "enumerate-enumerate bernoulli-categorical"),
    ("simulated_scan", "local-score bernoulli-bernoulli"),
]


@pytest.mark.parametrize(("environment", "cell"), QUICKLY)
def test_estimators_are_unbiased_where_a_program_repeats(environment, cell):
    rules, kinds = (tuple(part.split("-")) for part in cell.split())
    check(environment, rules, kinds, 10_000)


def mixed(env, theta):
    """Elements of a plate, of a vmap and of a scan; a count; a last one that sees them all."""
    with numpyro.plate("rows", 2):
        rows = FAMILIES["bernoulli"]("rows", theta[0] + jnp.array([0.2, -0.4])) * 1.0
    draw = lambda t: FAMILIES["normal"]("each", t + rows[0] - rows[1])
    each = env.vmap(draw)(jnp.array([0.3, -0.5]) * theta[1])

    def step(carry, _):
        return 0.5 * carry + FAMILIES["categorical"]("step", carry * theta[0]), carry

    end, path = env.scan(step, each[0] * 0.3, None, length=2)
    last = FAMILIES["bernoulli"]("last", end - each[1] + theta[1]) * 1.0
    return jnp.sin(end + last) + path[1] * rows[1] + last * each[1] + theta[0] * rows[0]


def test_local_sites_of_every_kind_meet_in_one_program():
    exact_ones = quadrature.exactly(functools.partial(mixed, quadrature), THETA, 10)
    rules = {"rows": P.local_expectation, "each": P.measure_valued}
    rules |= {"step": P.local_expectation, "last": P.local_expectation}
    loss = P.expectation(functools.partial(mixed, LIBRARY), rules)
    deviations, variance = quadrature.deviations(loss, exact_ones, THETA, draws=20_000)
    assert np.all(deviations < SIGMAS), (deviations, variance)


def test_jit_of_the_expectation_and_of_its_gradient_change_nothing():
    program = functools.partial(alone, LIBRARY, ("bernoulli", "categorical", "normal"))
    loss = P.expectation(program, {"a": P.local_expectation, "b": P.enumerate_, "c": P.score})
    key = jax.random.key(3)
    plain = jax.jit(jax.grad(loss, argnums=1))(key, THETA)
    inside = jax.jit(jax.grad(jax.jit(loss), argnums=1))(key, THETA)
    forward = jax.jit(jax.jacfwd(loss, argnums=1))(key, THETA)
    np.testing.assert_allclose(inside, plain, rtol=1e-12)
    np.testing.assert_allclose(forward, plain, rtol=1e-12)


def _cells():
    """Alone, each pair of rules on each pair of families; elsewhere each pair of rules on one."""
    for environment in ENVIRONMENTS:
        listed = {
            rule: [f for f in families if environment not in NESTED or f != "normal"]
            for rule, (_, families) in RULES.items()
            if rule != "running"
        }
        if environment != "alone":
            listed = {rule: families[:1] for rule, families in listed.items() if families}
        for rules in itertools.product(listed, repeat=2):
            for kinds in itertools.product(*(listed[rule] for rule in rules)):
                yield environment, rules, kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "rules", "kinds"),
    list(_cells()),
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_every_pair_of_estimators_and_families_is_unbiased_everywhere(environment, rules, kinds):
    check(environment, rules, kinds, 200_000)
