"""The cone: (x, y) a priori wide, x² + y² observed to be near 5; five bounds of log p(z = 5)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import integrate

from infer_align.jax.programs import expectation, objectives

KEEP = ("x", "y")


def model() -> None:
    """x, y ~ N(0, 10), z ~ N(x² + y², 0.1 + (x² + y²)/100), z = 5; 10 and so on are scales."""
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", dist.Normal(0.0, 10.0))
    s = x * x + y * y
    numpyro.sample("z", dist.Normal(s, 0.1 + s / 100), obs=5.0)


def naive(phi: Any) -> None:
    """One independent normal each."""
    numpyro.sample("x", dist.Normal(phi[0], jnp.exp(phi[2])))
    numpyro.sample("y", dist.Normal(phi[1], jnp.exp(phi[3])))


def ring(phi: Any) -> None:
    """A point on the circle of radius √5, and noise: the shape of the posterior."""
    angle = 2 * jnp.pi * numpyro.sample("u", dist.Uniform(0.0, 1.0))
    numpyro.sample("x", dist.Normal(jnp.sqrt(5.0) * jnp.cos(angle), jnp.exp(phi[0])))
    numpyro.sample("y", dist.Normal(jnp.sqrt(5.0) * jnp.sin(angle), jnp.exp(phi[1])))


def angle(kept: dict[str, Any]) -> None:
    """Proposal of the ring's own variable: uniform, whatever x and y."""
    numpyro.sample("u", dist.Uniform(0.0, 1.0))


class Case(NamedTuple):
    """An objective with the paper's start."""

    bound: Callable[[Any], Any]
    start: tuple[float, ...]


CASES = {
    "ELBO": Case(lambda phi: objectives.elbo(model, partial(naive, phi)), (0.0, 0.0, 1.0, 1.0)),
    "IWELBO n=5": Case(
        lambda phi: objectives.iwelbo(model, partial(naive, phi), n=5), (3.0, 0.0, 1.0, 1.0)
    ),
    "HVI": Case(
        lambda phi: objectives.hvi(model, partial(ring, phi), angle, keep=KEEP), (0.0, 0.0)
    ),
    "IWHVI m=5": Case(
        lambda phi: objectives.iwhvi(model, partial(ring, phi), angle, keep=KEEP, n=5), (0.0, 0.0)
    ),
    "DIWHVI n=5,m=5": Case(
        lambda phi: objectives.diwhvi(
            model, partial(ring, phi), angle, keep=KEEP, n=5, particles=5
        ),
        (0.0, 0.0),
    ),
}  # fmt: skip


class Trained(NamedTuple):
    """Of each seed."""

    params: np.ndarray
    value: np.ndarray
    """Mean over ``samples`` fresh evaluations."""
    sd: np.ndarray
    """Of one evaluation."""


def train(case: Case, *, seeds: int, steps: int, batch: int, samples: int) -> Trained:
    """Stochastic gradient ascent with step 1e-3, then fresh evaluations, for all seeds at once."""
    bound = expectation(case.bound)

    def mean(phi: Any, key: Any) -> Any:
        return jnp.mean(jax.vmap(bound, (0, None))(jax.random.split(key, batch), phi))

    def ascend(phi: Any, key: Any) -> tuple[Any, None]:
        return phi + 1e-3 * jax.grad(mean)(phi, key), None

    def run(key: Any) -> Any:
        training, evaluation = jax.random.split(key)
        start = jnp.asarray(case.start)
        phi, _ = jax.lax.scan(ascend, start, jax.random.split(training, steps))
        chunk = min(samples, 1_000)
        values = jax.lax.map(
            lambda key: jax.vmap(bound, (0, None))(jax.random.split(key, chunk), phi),
            jax.random.split(evaluation, samples // chunk),
        )
        return phi, values.mean(), values.std()

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return Trained(*(np.asarray(x, dtype=float) for x in jax.jit(jax.vmap(run))(keys)))


def ceiling() -> float:
    """log p(z = 5): in polar coordinates r² is exponential with mean 200, and the angle is free."""

    def integrand(s: float) -> float:
        scale = 0.1 + s / 100
        normal = np.exp(-0.5 * ((5 - s) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
        return float(np.exp(-s / 200) / 200 * normal)

    return float(np.log(integrate.quad(integrand, 0, 100, points=[4, 5, 6], epsabs=0)[0]))
