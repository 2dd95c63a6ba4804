"""Fits in several threads are those of one: programs take turns while JAX traces them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from infer_align import divergences, f_dpg
from infer_align.jax import fit, source, tabular, target
from infer_align.jax import programs as P

PROBS = jnp.array([0.5, 0.3, 0.2])


def slowly() -> None:
    """Tracing hands over to the other threads in the midst of a program."""
    time.sleep(0.01)


def policies(seed: int) -> Any:
    def program() -> None:
        y = numpyro.sample("y", dist.Categorical(PROBS))
        slowly()
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.1 * seed))
        numpyro.factor("reward", 1.0 * seed * y + z)

    def policy(params: Any) -> Any:
        def drawn() -> None:
            numpyro.sample("y", dist.Categorical(logits=params))
            slowly()
            numpyro.sample("z", dist.Bernoulli(0.5))

        return target(drawn).prior

    steps = fit(
        jax.random.key(seed), policy, jnp.zeros(3), program,
        f_dpg(divergences.jensen_shannon), n=16, steps=2,
    )  # fmt: skip
    *_, last = steps
    return last.params


def objectives(seed: int) -> Any:
    def model() -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        slowly()
        numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0 + seed)

    def guide() -> None:
        loc = numpyro.param("loc", 0.1 * seed)
        slowly()
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        numpyro.sample("z", dist.Normal(loc, scale))

    loss = P.expectation(lambda: -P.objectives.iwelbo(model, guide, n=2))
    *_, last = P.fit(jax.random.key(seed), loss, batch=4, steps=2)
    return last.params


def draws(seed: int) -> Any:
    def program() -> None:
        y = numpyro.sample("y", dist.Categorical(PROBS))
        slowly()
        numpyro.factor("reward", 1.0 * seed * y)

    proposal = tabular(jnp.zeros(3))
    return source(jax.random.key(seed), target(program), proposal=proposal).draw(8).log_target


def densities(seed: int) -> Any:
    def program() -> None:
        z = numpyro.sample("z", dist.Normal(1.0 * seed, 1.0))
        slowly()
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.5)

    return jnp.stack([P.density(program, {"z": 0.1 * k}) for k in range(4)])


def test_what_runs_in_threads_is_what_runs_alone() -> None:
    tasks: list[tuple[Callable[[int], Any], int]] = [
        (run, seed) for run in (policies, objectives) for seed in (1, 2)
    ]
    tasks += [(draws, 1), (densities, 1)]
    one = [run(seed) for run, seed in tasks]
    start = threading.Barrier(len(tasks))

    def together(task: tuple[Callable[[int], Any], int]) -> Any:
        start.wait()
        return task[0](task[1])

    with ThreadPoolExecutor(len(tasks)) as pool:
        many = list(pool.map(together, tasks))
    for alone, beside in zip(one, many, strict=True):
        jax.tree.map(np.testing.assert_array_equal, alone, beside)
