"""Gradients of objectives as programs, beside genjax 1.0.14 for the same estimators.

    python benchmarks/programmable_vi_peer.py [--quick]

Needs Python 3.12 and ``pip install genjax==1.0.14`` beside this package. Calls alternate one by
one, each waits for its result; medians. genjax estimates gradients without values, so both do.
"""

import argparse
import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

if importlib.util.find_spec("genjax") is None:
    print("genjax is not installed: nothing to compare with")
    sys.exit(0)

import jax
import jax.numpy as jnp
import programmable_vi as bench
from genjax import gen, modular_vmap, normal
from genjax.adev import expectation, flip_enum, flip_mvd, flip_reinforce, normal_reparam
from genjax.pjax import seed

Array = Any


@gen
def cone() -> None:
    """As in the other file."""
    x = normal(0.0, 10.0) @ "x"
    y = normal(0.0, 10.0) @ "y"
    s = x**2 + y**2
    normal(s, 0.1 + s / 100) @ "z"


@gen
def naive(phi: Array) -> None:
    """As in the other file."""
    normal_reparam(phi[0], jnp.exp(phi[2])) @ "x"
    normal_reparam(phi[1], jnp.exp(phi[3])) @ "y"


def log_weight(phi: Array) -> Array:
    """log p/q of a draw of the guide."""
    trace = naive.simulate(phi)
    choices, _ = cone.merge({"z": 5.0}, trace.get_choices())
    return cone.assess(choices)[0] + trace.get_score()


@expectation
def elbo(phi: Array) -> Array:
    """ELBO of the cone."""
    return log_weight(phi)


def iwelbo(n: int) -> Any:
    """IWELBO of the cone."""

    @expectation
    def objective(phi: Array) -> Array:
        each = modular_vmap(lambda _: log_weight(phi))(jnp.arange(n))
        return jax.nn.logsumexp(each) - math.log(n)

    return objective


def switches(flip: Any) -> Any:
    """ELBO of six binary causes, drawn one by one."""

    @expectation
    def objective(phi: Array) -> Array:
        probs = jax.nn.sigmoid(phi)
        z = jnp.stack([flip(p).astype(float) for p in probs])
        return bench.hand_log_p(z) - bench.hand_log_q(z, phi)

    return objective


PEERS = {
    "ELBO, cone": elbo,
    "IWELBO K=5, cone": iwelbo(5),
    "IWELBO K=50, cone": iwelbo(50),
    "enumeration, 6 causes": switches(flip_enum),
    "score, 6 causes": switches(flip_reinforce),
    "MVD, 6 causes": switches(flip_mvd),
}


def mean_gradient(one: Callable[[Array, Array], Array], batch: int) -> Callable[..., Array]:
    """Mean of a batch of gradient estimates."""
    return jax.jit(
        lambda phi, key: jax.tree.map(
            lambda g: jnp.mean(g, axis=0),
            jax.vmap(one, (0, None))(jax.random.split(key, batch), phi),
        )
    )


def compare(name: str, batch: int, seconds: float) -> None:
    """Print one row."""
    ours, _, phi = bench.ROWS[name]
    key = jax.random.key(0)
    mine = mean_gradient(jax.grad(ours, argnums=1), batch)
    theirs = mean_gradient(seed(PEERS[name].grad_estimate), batch)
    first = [bench.timed(partial(f, phi, key)) for f in (mine, theirs)]
    a, b, start = [], [], time.perf_counter()
    while time.perf_counter() - start < seconds or len(a) < 50:
        a.append(bench.timed(partial(mine, phi, key)))
        b.append(bench.timed(partial(theirs, phi, key)))
    us, them = (1e6 * statistics.median(x) for x in (a, b))
    print(
        f"{name:<24}{batch:>6}{us:>8.0f} µs{them:>8.0f} µs{us / them:>7.2f}"
        f"{first[0]:>7.1f} s{first[1]:>6.1f} s",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true")
    seconds = 0.7 if parser.parse_args().quick else 4.0
    print(f"{'gradient':<24}{'batch':>6}{'ours':>11}{'genjax':>11}{'ratio':>7}{'first calls':>16}")
    for name in PEERS:
        for batch in (64, 1024):
            compare(name, batch, seconds)


if __name__ == "__main__":
    main()
