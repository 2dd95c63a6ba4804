"""Gradients of objectives as programs, beside strong hand-written JAX for the same estimator.

    python benchmarks/programmable_vi.py [--quick] [--json]

Each row is a jitted value-and-gradient of the mean over a batch of independent estimates: ours and
hand-written calls alternate one by one, each waits for its result, and medians are compared. The
hand-written form draws all noise of an estimate in one call, writes densities out, and is what one
would write knowing the estimator. `first_call_s` is the time of the first call: tracing, compiling
and running. A second table, without --json or --quick, has the first calls of programs with many
sites, where a method that copies the program per site or value takes minutes. Run by `make bench`.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from infer_align.jax import programs
from infer_align.jax.programs import objectives

Array = Any
stop = jax.lax.stop_gradient
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
X = jax.random.normal(jax.random.key(7), (100, 10))
Y = X @ jnp.linspace(-1.0, 1.0, 10) + 0.5 * jax.random.normal(jax.random.key(8), (100,))
EFFECTS = jnp.array([0.7, -0.4, 1.1, 0.3, -0.9, 0.5])
LOG_ODDS = math.log(0.3 / 0.7)
TABLE = jnp.stack([(jnp.arange(64) >> j) & 1 for j in range(6)], axis=-1).astype(float)


def regression() -> None:
    """Linear regression with known noise."""
    z = numpyro.sample("z", dist.Normal(jnp.zeros(10), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(X @ z, 0.5).to_event(1), obs=Y)


def mean_field(phi: Array) -> None:
    """Its guide."""
    numpyro.sample("z", dist.Normal(phi[0], jnp.exp(phi[1])).to_event(1))


def hand_regression(key: Array, phi: Array) -> Array:
    """ELBO of the regression."""
    loc, log_scale = phi
    noise = jax.random.normal(key, (10,))
    z = loc + jnp.exp(log_scale) * noise
    residual = Y - X @ z
    constants = 100 * math.log(2.0) - 100 * HALF_LOG_2PI
    return (
        constants - 0.5 * jnp.sum(z**2) - 2.0 * jnp.sum(residual**2)
        + 0.5 * jnp.sum(noise**2) + jnp.sum(log_scale)
    )  # fmt: skip


def cone() -> None:
    """Becker et al. 2024, section 2: a ring of radius √5."""
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", dist.Normal(0.0, 10.0))
    s = x**2 + y**2
    numpyro.sample("z", dist.Normal(s, 0.1 + s / 100), obs=5.0)


def naive(phi: Array) -> None:
    """Independent normals."""
    numpyro.sample("x", dist.Normal(phi[0], jnp.exp(phi[2])))
    numpyro.sample("y", dist.Normal(phi[1], jnp.exp(phi[3])))


def hand_cone_weight(noise: Any, phi: Array) -> Array:
    """log p(x, y, z) − log q(x, y), elementwise over noise (2, ...)."""
    x = phi[0] + jnp.exp(phi[2]) * noise[0]
    y = phi[1] + jnp.exp(phi[3]) * noise[1]
    log_q = -0.5 * (noise[0] ** 2 + noise[1] ** 2) - phi[2] - phi[3]
    s = x**2 + y**2
    scale = 0.1 + s / 100
    log_p = -0.5 * (x**2 + y**2) / 100 - 2 * math.log(10.0)
    return log_p - 0.5 * ((5.0 - s) / scale) ** 2 - jnp.log(scale) - HALF_LOG_2PI - log_q


def hand_cone(key: Array, phi: Array) -> Array:
    """ELBO of the cone."""
    return hand_cone_weight(jax.random.normal(key, (2,)), phi)


def hand_iwelbo(key: Array, phi: Array, n: int) -> Array:
    """IWELBO of the cone."""
    if n < 16:  # the faster of the two in each case
        noise = [jax.random.normal(part, (n,)) for part in jax.random.split(key)]
    else:
        both = jax.random.normal(key, (2 * n,))
        noise = [both[:n], both[n:]]
    return jax.nn.logsumexp(hand_cone_weight(noise, phi)) - math.log(n)


def switches() -> None:
    """Six binary causes of one observation."""
    with numpyro.plate("causes", 6):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(z @ EFFECTS, 0.5), obs=1.0)


def independent(phi: Array) -> None:
    """Their guide."""
    with numpyro.plate("causes", 6):
        numpyro.sample("z", dist.Bernoulli(logits=phi))


def hand_log_q(z: Array, phi: Array) -> Array:
    """Of the guide, over the last axis."""
    return jnp.sum(z * phi - jax.nn.softplus(phi), axis=-1)


def hand_log_p(z: Array) -> Array:
    """Of the causes and the observation."""
    prior = jnp.sum(z * LOG_ODDS + math.log(0.7), axis=-1)
    return prior - 2.0 * (1.0 - z @ EFFECTS) ** 2 + math.log(2.0) - HALF_LOG_2PI


def hand_enumerated(key: Array, phi: Array) -> Array:
    """ELBO, summed over the 64 values."""
    log_q = hand_log_q(TABLE, phi)
    return jnp.sum(jnp.exp(log_q) * (LOG_P - log_q))


def hand_score(key: Array, phi: Array) -> Array:
    """REINFORCE without baseline."""
    z = stop((jax.random.uniform(key, (6,)) < jax.nn.sigmoid(phi)).astype(float))
    log_q = hand_log_q(z, phi)
    value = hand_log_p(z) - log_q
    return value + stop(value) * (log_q - stop(log_q))


def hand_score_loo(key: Array, phi: Array, n: int = 4) -> Array:
    """The same with the mean of the others as baseline."""
    z = stop((jax.random.uniform(key, (n, 6)) < jax.nn.sigmoid(phi)).astype(float))
    log_q = hand_log_q(z, phi)
    value = hand_log_p(z) - log_q
    others = (jnp.sum(value) - value) / (n - 1)
    return jnp.mean(value + stop(value - others) * (log_q - stop(log_q)))


def hand_measure_valued(key: Array, phi: Array) -> Array:
    """Each cause switched, the others as drawn."""
    probs = jax.nn.sigmoid(phi)
    z = stop((jax.random.uniform(key, (6,)) < probs).astype(float))
    switched = z + jnp.diag(1 - 2 * z)
    elbo = lambda z: hand_log_p(z) - hand_log_q(z, phi)
    value = elbo(z)
    difference = stop((2 * z - 1) * (value - elbo(switched)))
    return value + jnp.sum(difference * (probs - stop(probs)))


ELBO = lambda model, guide: lambda phi: objectives.elbo(model, partial(guide, phi))
LOG_P = hand_log_p(TABLE)
PHI2, PHI4 = jnp.zeros((2, 10)), jnp.array([2.0, 0.1, -1.0, -1.0])
PHI6 = jnp.linspace(-0.5, 0.6, 6)
SWITCHES = ELBO(switches, independent)
ROWS: dict[str, tuple[Any, Callable[..., Any], Array]] = {
    "ELBO, regression": (programs.expectation(ELBO(regression, mean_field)), hand_regression, PHI2),
    "ELBO, cone": (programs.expectation(ELBO(cone, naive)), hand_cone, PHI4),
    "IWELBO K=5, cone": (
        programs.expectation(lambda phi: objectives.iwelbo(cone, partial(naive, phi), n=5)),
        partial(hand_iwelbo, n=5), PHI4,
    ),
    "IWELBO K=50, cone": (
        programs.expectation(lambda phi: objectives.iwelbo(cone, partial(naive, phi), n=50)),
        partial(hand_iwelbo, n=50), PHI4,
    ),
    "enumeration, 6 causes": (
        programs.expectation(SWITCHES, {"z": programs.enumerate_}), hand_enumerated, PHI6
    ),
    "score, 6 causes": (programs.expectation(SWITCHES, {"z": programs.score}), hand_score, PHI6),
    "score LOO(4), 6 causes": (
        programs.expectation(SWITCHES, {"z": programs.score_loo(4)}), hand_score_loo, PHI6
    ),
    "MVD, 6 causes": (
        programs.expectation(SWITCHES, {"z": programs.measure_valued}), hand_measure_valued, PHI6
    ),
}  # fmt: skip


def gradient(one: Callable[..., Any], batch: int) -> Callable[[Array, Array], Any]:
    """Value and gradient of the mean of a batch of estimates."""
    mean = lambda phi, key: jnp.mean(jax.vmap(one, (0, None))(jax.random.split(key, batch), phi))
    return jax.jit(jax.value_and_grad(mean))


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call, its result included."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def row(name: str, batch: int, seconds: float) -> dict[str, Any]:
    """One comparison, calls interleaved for so many seconds."""
    ours, hand, phi = ROWS[name]
    key = jax.random.key(0)
    mine, theirs = gradient(ours, batch), gradient(hand, batch)
    first = timed(lambda: mine(phi, key))
    timed(lambda: theirs(phi, key))
    a, b, start = [], [], time.perf_counter()
    while time.perf_counter() - start < seconds or len(a) < 50:
        a.append(timed(lambda: mine(phi, key)))
        b.append(timed(lambda: theirs(phi, key)))
    ours_us, hand_us = (1e6 * statistics.median(x) for x in (a, b))
    return {
        "name": name, "batch": batch, "ours_us": ours_us, "hand_us": hand_us,
        "ratio_to_hand": ours_us / hand_us, "first_call_s": first,
    }  # fmt: skip


def chain(sites: int) -> Callable[[Array], Array]:
    """Binary sites, each depending on the one before."""

    def objective(phi: Array) -> Array:
        last, total = 0.0, 0.0
        for t in range(sites):
            last = numpyro.sample(f"z{t}", dist.Bernoulli(logits=phi[t] + 0.5 * last))
            total = total + (t % 3 - 1) * last
        return jnp.sin(total) + total**2

    return objective


def rings(phi: Array) -> Array:
    """DIWHVI of the cone, five draws of five."""
    return objectives.diwhvi(
        cone, partial(ring, phi), lambda kept: numpyro.sample("u", dist.Uniform(0.0, 1.0)),
        keep=("x", "y"), n=5, particles=5,
    )  # fmt: skip


def ring(phi: Array) -> None:
    """A guide on the ring, by an angle."""
    angle = 2 * math.pi * numpyro.sample("u", dist.Uniform(0.0, 1.0))
    numpyro.sample("x", dist.Normal(math.sqrt(5) * jnp.cos(angle), jnp.exp(phi[0])))
    numpyro.sample("y", dist.Normal(math.sqrt(5) * jnp.sin(angle), jnp.exp(phi[1])))


def first_calls() -> dict[str, float]:
    """Seconds of the first gradient."""
    every = lambda sites, estimator: {f"z{t}": estimator for t in range(sites)}
    cases = {
        "8 binary sites, enumeration": (chain(8), every(8, programs.enumerate_), 8),
        "chain of 20, score": (chain(20), every(20, programs.score), 20),
        "chain of 20, local expectation": (chain(20), every(20, programs.local_expectation), 20),
        "chain of 100, score": (chain(100), every(100, programs.score), 100),
        "chain of 100, local expectation": (
            chain(100),
            every(100, programs.local_expectation),
            100,
        ),
        "DIWHVI of the cone": (rings, None, 2),
    }
    out = {}
    for name, (objective, estimators, size) in cases.items():
        slope = jax.jit(jax.grad(programs.expectation(objective, estimators), argnums=1))
        out[name] = timed(lambda f=slope, n=size: f(jax.random.key(0), jnp.full(n, 0.1)))
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds = 0.7 if options.quick else 4.0
    rows = [row(name, batch, seconds) for name in ROWS for batch in (64, 1024)]
    mean = math.exp(statistics.fmean(math.log(r["ratio_to_hand"]) for r in rows))
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'value and gradient':<26}{'batch':>6}{'ours':>11}{'hand':>11}{'ratio':>7}{'first':>8}")
    for r in rows:
        print(
            f"{r['name']:<26}{r['batch']:>6}{r['ours_us']:>8.0f} µs{r['hand_us']:>8.0f} µs"
            f"{r['ratio_to_hand']:>7.2f}{r['first_call_s']:>6.1f} s"
        )
    print(f"geometric mean of the ratios: {mean:.2f}")
    if options.quick:
        return
    print()
    for name, seconds in first_calls().items():
        print(f"first call, {name:<34}{seconds:>6.1f} s")


if __name__ == "__main__":
    main()
