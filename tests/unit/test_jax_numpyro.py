"""A NumPyro program's density is the one computed by hand, for one outcome at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scipy import stats

from infer_align import Space, condition, indicator, product, tilt
from infer_align.jax import markov, target

PROBS = jnp.array([0.5, 0.3, 0.2])
REWARD = jnp.array([0.0, 1.0, -0.5])


def one_site():
    y = numpyro.sample("y", dist.Categorical(PROBS))
    numpyro.factor("reward", REWARD[y] / 0.5)


def density(t, y, *contexts):
    """Compiled as a whole: eager NumPyro compiles every operation by itself."""
    return jax.jit(t.log_density)(y, *contexts)


def two_sites():
    """A discrete and a continuous latent, an observation, and a factor of three entries."""
    k = numpyro.sample("k", dist.Categorical(PROBS))
    x = numpyro.sample("x", dist.Normal(1.0 * k, 2.0))
    numpyro.sample("seen", dist.Normal(x, 1.0), obs=jnp.array(0.7))
    numpyro.factor("each", x * jnp.array([0.1, 0.2, 0.3]))


def conditional(shift, table):
    y = numpyro.sample("y", dist.Categorical(logits=table))
    numpyro.factor("reward", shift * y)


def test_one_latent_site():
    t, y = target(one_site), jnp.array([0, 1, 2, 1])
    want = np.log(PROBS)[y] + 2.0 * REWARD[y]
    np.testing.assert_allclose(density(t, y), want, rtol=1e-12)
    np.testing.assert_allclose(t.prior.log_prob(y), np.log(PROBS)[y], rtol=1e-12)
    np.testing.assert_allclose(t.log_potential(y), 2.0 * REWARD[y], rtol=1e-12)
    assert t.name == "one_site"
    assert target(t) is t


def test_many_latent_sites_observations_and_factors():
    y = {"k": jnp.array([0, 2]), "x": jnp.array([-0.4, 1.5])}
    prior = np.log([0.5, 0.2]) + stats.norm.logpdf([-0.4, 1.5], [0.0, 2.0], 2.0)
    potential = stats.norm.logpdf(0.7, [-0.4, 1.5], 1.0) + 0.6 * np.array([-0.4, 1.5])
    t = target(two_sites)
    np.testing.assert_allclose(t.given().log_prob(y), prior, rtol=1e-12)
    np.testing.assert_allclose(density(t, y), prior + potential, rtol=1e-12)


def test_density_is_numpyros_own():
    t = target(two_sites)
    theirs = jax.jit(lambda values: numpyro.infer.util.log_density(two_sites, (), {}, values)[0])
    for k, x in ((0, 0.3), (1, -2.0)):
        values = {"k": jnp.array(k), "x": jnp.array(x)}
        got = density(t, jax.tree.map(lambda v: v[None], values))
        np.testing.assert_allclose(got, theirs(values)[None], rtol=1e-12)


def test_sum_in_the_program_stays_within_the_outcome():
    """A stray batch sum is impossible: a program sees one outcome."""

    def program():
        y = numpyro.sample("y", dist.Categorical(PROBS).expand([4]).to_event(1))
        numpyro.factor("reward", REWARD[y].sum())

    y = jnp.array([[0, 1, 2, 0], [1, 1, 1, 1], [2, 2, 0, 0]])
    want = (np.log(PROBS)[y] + REWARD[y]).sum(-1)
    np.testing.assert_allclose(density(target(program), y), want, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (2, 3)], ids=str)
def test_contexts(shape):
    """A batch of contexts is the contexts one by one."""
    t = target(conditional, context_ndim=len(shape))
    shift = jnp.linspace(-1, 1, math.prod(shape)).reshape(shape)
    table = jax.random.normal(jax.random.key(0), (*shape, 3))
    y = jax.random.randint(jax.random.key(1), (4, *shape), 0, 3)
    log_prob, want = np.asarray(jax.nn.log_softmax(table)), np.empty(y.shape)
    for i in np.ndindex(*y.shape):
        c = i[1:]
        want[i] = log_prob[c][y[i]] + shift[c] * y[i]
    np.testing.assert_allclose(density(t, y, shift, table), want, rtol=1e-12)
    assert t.given(shift, table).batch_shape == shape


def test_one_context_without_an_axis():
    t = target(conditional, context_ndim=0)
    table, y = jnp.log(PROBS), jnp.array([0, 2])
    want = np.log(PROBS)[y] + 0.5 * y
    np.testing.assert_allclose(density(t, y, 0.5, table), want, rtol=1e-12)


def test_plates_params_masks_and_deterministic_sites():
    def program():
        scale = numpyro.param("scale", 2.0)
        with numpyro.plate("tokens", 3):
            y = numpyro.sample("y", dist.Normal(0.0, scale))
            with handlers.mask(mask=jnp.array([True, False, True])):
                numpyro.sample("seen", dist.Normal(y, 1.0), obs=jnp.zeros(3))
        numpyro.deterministic("twice", 2 * y)

    y = jnp.array([[0.1, -0.2, 0.3]])
    want = stats.norm.logpdf(y, 0, 2).sum() + stats.norm.logpdf(0, y[0, [0, 2]], 1).sum()
    np.testing.assert_allclose(density(target(program), y), [want], rtol=1e-12)


def test_scaled_latent_keeps_a_normalised_prior():
    def program():
        with handlers.scale(scale=3.0):
            numpyro.sample("y", dist.Categorical(PROBS))

    t, y = target(program), jnp.arange(3)
    np.testing.assert_allclose(t.prior.log_prob(y), np.log(PROBS), rtol=1e-12)
    np.testing.assert_allclose(density(t, y), 3 * np.log(PROBS), rtol=1e-12)


def test_scan_programs():
    """NumPyro's own scan: a Markov chain as a program is our Markov policy."""
    table = jnp.log(jnp.array([[0.1, 0.9], [0.4, 0.6]]))

    def program():
        def step(previous, _):
            y = numpyro.sample("y", dist.Categorical(logits=table[previous]))
            return y, y

        scan(step, 0, None, length=3)

    chain = markov({"initial": table[0], "transition": table}, length=3)
    space = Space.sequences(2, 3, xp=jnp)
    np.testing.assert_allclose(
        density(target(program), space.outcomes), chain.log_prob(space.outcomes), rtol=1e-12
    )


def test_hard_constraint():
    def program():
        y = numpyro.sample("y", dist.Categorical(PROBS))
        numpyro.factor("allowed", indicator(y != 1))

    t = target(program)
    log_density = density(t, jnp.arange(3))
    assert log_density[1] == -jnp.inf
    assert not bool(jnp.any(jnp.isnan(log_density)))
    space = Space(jnp.arange(3))
    np.testing.assert_allclose(space.log_z(t), math.log(0.7), rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(space.log_target(t)), [5 / 7, 0, 2 / 7], rtol=1e-12)


def test_combinators_extend_programs():
    y = jnp.arange(3)
    base = np.log(PROBS) + 2.0 * REWARD
    t = target(one_site)
    np.testing.assert_allclose(
        density(tilt(t, lambda y: 1.0 * y, beta=0.5), y), base + 2.0 * y, rtol=1e-12
    )
    np.testing.assert_allclose(density(product(t, t), y), 2 * base, rtol=1e-12)
    assert density(condition(t, lambda y: y > 0), y)[0] == -jnp.inf


def test_prior_samples_follow_log_prob():
    def program(shift):
        k = numpyro.sample("k", dist.Categorical(PROBS))
        j = numpyro.sample("j", dist.Bernoulli(logits=k - shift))
        numpyro.factor("reward", 1.0 * j)

    shift, n = jnp.array([0.0, 2.0]), 20_000
    prior = target(program).given(shift)
    y = jax.jit(lambda key: prior.sample(key, (n,)))(jax.random.key(3))
    assert y["k"].shape == y["j"].shape == (n, 2)
    outcomes = Space.product(3, 2).outcomes
    grid = {name: np.repeat(outcomes[:, i, None], 2, 1) for i, name in enumerate(("k", "j"))}
    expected = n * np.exp(jax.jit(prior.log_prob)(jax.tree.map(jnp.asarray, grid)))
    for c in range(2):
        observed = np.bincount(np.asarray(2 * y["k"] + y["j"])[:, c], minlength=6)
        e = np.asarray(expected)[:, c]
        assert stats.chi2.sf(((observed - e) ** 2 / e).sum(), 5) > 5.7e-7


def test_random_initial_parameters_are_the_same_in_sample_and_log_prob():
    def program():
        mean = numpyro.param("mean", lambda key: 100 * jax.random.normal(key))
        numpyro.sample("y", dist.Normal(mean, 1e-3))

    prior = target(program).prior
    y = prior.sample(jax.random.key(5), (10,))
    assert bool(jnp.all(prior.log_prob(y) > -20))


def test_nothing_leaks_to_handlers_outside():
    t = target(one_site)

    def outer():
        y = numpyro.sample("y", dist.Categorical(PROBS))
        numpyro.factor("inner", density(t, y[None])[0])

    sites = handlers.trace(handlers.seed(outer, 0)).get_trace()
    assert set(sites) == {"y", "inner"}
    np.testing.assert_allclose(
        density(target(outer), jnp.arange(3)), 2 * np.log(PROBS) + 2.0 * REWARD, rtol=1e-12
    )


def test_gradient_in_a_continuous_outcome():
    gradient = jax.grad(lambda x: density(target(two_sites), {"k": jnp.array([1]), "x": x})[0])
    want = -(0.5 - 1.0) / 4 + (0.7 - 0.5) + 0.6
    np.testing.assert_allclose(gradient(jnp.array([0.5])), [want], rtol=1e-12)


def no_latent():
    numpyro.factor("reward", 1.0)


def subsampled():
    with numpyro.plate("data", 10, subsample_size=2):
        numpyro.sample("y", dist.Normal(0.0, 1.0))


def masked():
    with handlers.mask(mask=jnp.array(False)):
        numpyro.sample("y", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "y", "contexts", "message"),
    [
        (no_latent, jnp.zeros(2), (), "no latent sample site"),
        (subsampled, jnp.zeros((2, 2)), (), "subsample of 2 of 10"),
        (masked, jnp.zeros(2), (), "'y'.*masked"),
        (one_site, jnp.zeros((4, 3), int), (), r"shape \(4, 3\).*needed is \('n',\)"),
        (one_site, jnp.array(0), (), r"needed is \('n',\)"),
        (two_sites, jnp.zeros(2), (), r"several latent sites \(k, x\)"),
        (two_sites, {"k": jnp.zeros(2, int)}, (), r"\['k', 'x'\].*has \['k'\]"),
        (two_sites, {"k": jnp.zeros(2, int), "x": jnp.zeros(3)}, (), "numbers of outcomes"),
        (conditional, jnp.zeros((4, 2), int), (jnp.zeros(3), jnp.zeros((3, 3))), "contexts"),
        (conditional, jnp.zeros((4, 2), int), (jnp.zeros(2), jnp.zeros((3, 3))), "close over"),
        (conditional, jnp.zeros(4, int), (0.5, jnp.zeros(3)), "context_ndim=0"),
        (conditional, jnp.zeros((4, 2), int), (["a", "b"], jnp.zeros((2, 3))), "type str"),
    ],
)
def test_errors_say_what_to_do(program, y, contexts, message):
    with pytest.raises(ValueError, match=message):
        target(program).log_density(y, *contexts)


def test_not_a_program():
    with pytest.raises(TypeError, match=r"Target, got float|Actual value: 1.0"):
        target(1.0)
    with pytest.raises(ValueError, match="context_ndim"):
        target(one_site, context_ndim=-1)
