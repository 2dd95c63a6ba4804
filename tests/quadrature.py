"""Expectations of NumPyro programs by summing over all values of all sites. No infer_align inside.

Discrete sites take every value of their support, Poisson sites those up to 40, normal sites the
nodes of Gauss-Hermite quadrature at the standardised value, gamma and beta sites those of the
trapezoidal rule in the logarithm and the logit: exact to rounding for smooth functions, and
differentiable in the parameters.

A program that repeats itself takes from an *environment* how: this module's `particles`, `vmap`,
`scan`, `simulate` and `density` are loops in Python, which `expected` unrolls into sites.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.primitives import Messenger

HERMITE = 20
POISSON = 40
# These programs are small and run once: what takes time is to compile them.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LOG_GRID = np.linspace(-18.0, 4.2, 112)
LOGIT_GRID = np.linspace(-18.0, 18.0, 120)
POSITIVE = dist.Gamma | dist.Exponential


class _Sizes(Messenger):
    def __init__(self, hermite):
        super().__init__(None)
        self.sizes, self.hermite = [], hermite

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None:
            d = _bare(msg["fn"])
            count = math.prod(d.batch_shape)
            self.sizes += [_count(d, self.hermite)] * count
            msg["value"] = jnp.zeros(d.batch_shape, dtype=int if d.support.is_discrete else float)


class _Nodes(Messenger):
    def __init__(self, index, hermite):
        super().__init__(None)
        self.index, self.used, self.weight = index, 0, 1.0
        self.rule = np.polynomial.hermite_e.hermegauss(hermite)

    def process_message(self, msg):
        if msg["type"] != "sample" or msg["value"] is not None:
            return
        d = _bare(msg["fn"])
        count = math.prod(d.batch_shape)
        index = self.index[self.used : self.used + count].reshape(d.batch_shape)
        self.used += count
        base = d.base_dist if isinstance(d, dist.ExpandedDistribution) else d
        if isinstance(base, dist.Normal):
            x, w = self.rule
            msg["value"] = base.loc + base.scale * jnp.asarray(x)[index]
            self.weight = self.weight * jnp.prod(jnp.asarray(w / w.sum())[index])
        elif isinstance(base, POSITIVE | dist.Beta):
            grid = LOG_GRID if isinstance(base, POSITIVE) else LOGIT_GRID
            x = jnp.exp(grid) if isinstance(base, POSITIVE) else jax.nn.sigmoid(grid)
            slope = (x if isinstance(base, POSITIVE) else x * (1 - x)) * (grid[1] - grid[0])
            msg["value"] = x[index]
            each = jnp.exp(d.log_prob(x[index])) * slope[index]
            self.weight = self.weight * jnp.prod(each)
        else:
            msg["value"] = index
            self.weight = self.weight * jnp.prod(jnp.exp(d.log_prob(index)))


class _LogDensity(Messenger):
    """Collects the values of the latent sites, and the log-probabilities of all."""

    def __init__(self, fn=None):
        super().__init__(fn)
        self.total, self.values = 0.0, {}

    def postprocess_message(self, msg):
        if msg["type"] == "sample":
            self.total = self.total + jnp.sum(msg["fn"].log_prob(msg["value"]))
            if not msg["is_observed"]:
                self.values.setdefault(msg["name"], []).append(msg["value"])


class _Given(Messenger):
    """Gives the latent sites their values, those of repeated sites one after the other."""

    def __init__(self, values):
        super().__init__(None)
        self.values = {name: list(each) for name, each in values.items()}

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None:
            msg["value"] = self.values[msg["name"]].pop(0)


def _bare(d):
    while isinstance(d, dist.Independent):
        d = d.base_dist
    return d


def _count(d, hermite):
    """How many values of a site are summed over."""
    d = d.base_dist if isinstance(d, dist.ExpandedDistribution) else d
    fixed = {dist.Normal: hermite, dist.Poisson: POISSON, dist.Beta: len(LOGIT_GRID)}
    fixed |= {dist.Gamma: len(LOG_GRID), dist.Exponential: len(LOG_GRID)}
    return fixed.get(type(d)) or d.enumerate_support(expand=False).shape[0]


def expected(program, hermite=HERMITE):
    """E[program(*args)] as a differentiable function of its arguments."""

    def total(*args):
        sizes = _Sizes(hermite)
        with sizes:
            program(*args)
        grid = np.indices(sizes.sizes).reshape(len(sizes.sizes), -1).T

        def one(index):
            run = _Nodes(index, hermite)
            with run:
                value = program(*args)
            return run.weight * value

        return jnp.sum(jax.vmap(one)(jnp.asarray(grid)))

    return total


def particles(n, function):
    """The function's results, one for each of n runs."""
    return jax.tree.map(lambda *x: jnp.stack(x), *[function() for _ in range(n)])


def vmap(function):
    """The function at each element of its argument."""
    return lambda xs: jax.tree.map(lambda *x: jnp.stack(x), *[function(x) for x in xs])


def scan(step, carry, xs, length=None):
    """The carry after all steps, and their outputs."""
    out = []
    for i in range(len(xs) if length is None else length):
        carry, y = step(carry, None if xs is None else xs[i])
        out.append(y)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *out)


def simulate(program, *args):
    """Values of the latent sites (stacked where a site repeats) and the log-density."""
    run = _LogDensity()
    with run:
        program(*args)
    values = {name: x[0] if len(x) == 1 else jnp.stack(x) for name, x in run.values.items()}
    return values, run.total


def density(program, values, *args):
    """The log-density at values of the latent sites, where a repeated site has a leading axis."""
    counts = _LogDensity()
    with _Sizes(HERMITE), counts:
        program(*args)
    each = {n: list(x) if len(counts.values[n]) > 1 else [x] for n, x in values.items()}
    run = _LogDensity()
    with run, _Given(each):
        program(*args)
    return run.total


def deviations(loss, exact, theta, *, draws, seed=0):
    """By how many standard errors value and gradient of a loss miss the exact ones.

    What has no variance has to agree to 1e-10 (at 5 deviations). Returns the deviations of
    the value and of the gradient's components, and their variances.
    """
    keys = jax.random.split(jax.random.key(seed), draws)
    run = jax.vmap(jax.value_and_grad(loss, argnums=1), (0, None))
    value, gradient = jax.jit(run).lower(keys, theta).compile(QUICK)(keys, theta)
    each = np.column_stack([np.asarray(value), np.asarray(gradient).reshape(draws, -1)])
    assert np.all(np.isfinite(each))
    exact = np.concatenate([np.reshape(x, -1) for x in exact])
    variance = each.var(axis=0, ddof=1)
    allowed = np.maximum(np.sqrt(variance / draws), 2e-11 * (1 + np.abs(exact)))
    return np.abs(each.mean(axis=0) - exact) / allowed, variance


def outcome(run):
    """What a call returns, or the ValueError that it raises."""
    try:
        return run()
    except ValueError as error:
        return error


def exactly(program, theta, hermite=HERMITE):
    """Exact value and gradient of E[program(theta)]."""
    run = jax.jit(jax.value_and_grad(expected(program, hermite)))
    return jax.tree.map(np.asarray, run.lower(theta).compile(QUICK)(theta))
