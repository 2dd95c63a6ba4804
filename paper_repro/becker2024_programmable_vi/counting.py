"""Attend, infer, repeat, small: how many objects does an image show? Images are made here.

An image of 12 by 12 pixels shows 0, 1 or 2 crosses, anywhere, over noise. The model explains it by
up to three objects: whether there is one more (discrete), where it is, and what it looks like.
Nobody tells it the counts; they are what the accuracy is of. The guide is a recurrent network over
the objects.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree

from infer_align.jax import programs
from infer_align.jax.programs import expectation, objectives
from paper_repro.becker2024_programmable_vi.networks import initial_layers, layer

SIDE, GLYPH, WHAT, HIDDEN, OBJECTS = 12, 5, 4, 64, 3
PRIOR = (0.5, 0.3, 0.05)
"""Of one more object."""
SCALE = 0.3
CROSS = jnp.array(
    [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0] * 5], float
)
SITES = tuple(f"present_{t}" for t in range(OBJECTS))


def render(where: Any, glyph: Any) -> Any:
    """The glyph with its centre at a real-valued place, bilinear."""
    pixels, offsets = jnp.arange(SIDE), jnp.arange(GLYPH) - GLYPH // 2
    centre = (SIDE - 1) / 2 + 2.5 * where
    rows, columns = (
        jnp.maximum(0, 1 - jnp.abs(pixels[:, None] - centre[i] - offsets)) for i in range(2)
    )
    return rows @ glyph @ columns.T


def images(key: Any, n: int) -> tuple[Any, Any]:
    """Images and their counts."""
    k1, k2, k3 = jax.random.split(key, 3)
    counts = jax.random.randint(k1, (n,), 0, 3)
    where = jax.random.uniform(k2, (n, 2, 2), minval=-1.6, maxval=1.6)
    shown = (jnp.arange(2) < counts[:, None])[..., None, None]
    crosses = jax.vmap(jax.vmap(render, (0, None)), (0, None))(where, CROSS)
    clean = jnp.clip(jnp.sum(shown * crosses, axis=1), 0, 1)
    return clean + 0.1 * jax.random.normal(k3, clean.shape), counts


def initial(key: Any) -> dict[str, Any]:
    """Weights of decoder and encoder."""
    sizes = {
        "decode": (WHAT, 32), "glyph": (32, GLYPH**2),
        "look": (SIDE**2, 128), "step": (128 + HIDDEN + 3 + WHAT, HIDDEN),
        "predict": (HIDDEN, 1 + 2 * (2 + WHAT)),
    }  # fmt: skip
    return initial_layers(key, sizes)


def drawn(params: Any, where: Any, what: Any) -> Any:
    """The picture of one object."""
    hidden = jax.nn.leaky_relu(layer(params, "decode", what))
    glyph = jax.nn.sigmoid(layer(params, "glyph", hidden) - 2.0)
    return render(where, glyph.reshape(GLYPH, GLYPH))


def model(params: Any, image: Any, objects: int = OBJECTS) -> None:
    """Objects until one is absent, their sum, and noise."""
    canvas, present = jnp.zeros((SIDE, SIDE)), 1.0
    for t in range(objects):
        present = numpyro.sample(f"present_{t}", dist.Bernoulli(PRIOR[t] * present))
        where = numpyro.sample(f"where_{t}", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        what = numpyro.sample(f"what_{t}", dist.Normal(jnp.zeros(WHAT), 1.0).to_event(1))
        canvas = canvas + present * drawn(params, where, what)
    numpyro.sample("image", dist.Normal(canvas, SCALE).to_event(2), obs=image)


def guide(params: Any, image: Any, objects: int = OBJECTS) -> None:
    """The same sites, from what the objects so far leave of the image."""
    hidden, last, present = jnp.zeros(HIDDEN), jnp.zeros(3 + WHAT), 1.0
    for t in range(objects):
        seen = jax.nn.leaky_relu(layer(params, "look", image.reshape(-1)))
        hidden = jnp.tanh(layer(params, "step", jnp.concatenate([seen, hidden, last])))
        out = layer(params, "predict", hidden)
        chance = (1e-4 + jax.nn.sigmoid(out[0]) * present) / (1 + 1.01e-4)
        present = numpyro.sample(f"present_{t}", dist.Bernoulli(chance))
        loc, scale = out[1 : 3 + WHAT], jax.nn.softplus(out[3 + WHAT :])
        where = numpyro.sample(f"where_{t}", dist.Normal(loc[:2], scale[:2]).to_event(1))
        what = numpyro.sample(f"what_{t}", dist.Normal(loc[2:], scale[2:]).to_event(1))
        last = jnp.concatenate([present[None], where, what])
        image = image - present * drawn(params, where, what)


CHOICES = {
    "score": (programs.score, 1), "score_running": (programs.score_running(0.95), 1),
    "score_loo(4)": (programs.score_loo(4), 1), "enumerate_": (programs.enumerate_, 1),
    "local_expectation": (programs.local_expectation, 1),
    "measure_valued": (programs.measure_valued, 1),
    "IWELBO 2, score": (programs.score, 2),
    "IWELBO 2, measure_valued": (programs.measure_valued, 2),
}  # fmt: skip
"""Estimator of all discrete sites, and number of particles; the others are reparameterised."""


def loss(name: str, objects: int = OBJECTS) -> Any:
    """−ELBO or −IWELBO of one image."""
    estimator, particles = CHOICES[name]
    given = partial(model, objects=objects), partial(guide, objects=objects)

    def objective(params: Any, image: Any) -> Any:
        if particles == 1:
            return -objectives.elbo(*given, params, image)
        return -objectives.iwelbo(*given, params, image, n=particles)

    return expectation(objective, dict.fromkeys(SITES[:objects], estimator))


def mean_loss(loss: Any) -> Callable[..., Any]:
    """Over a batch of images, each with a key of its own."""

    def mean(params: Any, key: Any, batch: Any, baseline: Any = 0.0) -> Any:
        baselines = dict.fromkeys(SITES, baseline)
        each = lambda key, image: loss(key, params, image, baselines=baselines)
        return jnp.mean(jax.vmap(each)(jax.random.split(key, len(batch)), batch))

    return mean


class Run(NamedTuple):
    """A training run."""

    params: Any
    values: np.ndarray
    seconds: float


def train(name: str, *, steps: int, batch: int, seeds: int = 1, rate: float = 1e-3) -> list[Run]:
    """Adam on fresh images; one run a seed."""
    mean, optimizer = mean_loss(loss(name)), optax.adam(rate)

    def step(state: Any, key: Any) -> tuple[Any, Any]:
        params, moments, baseline = state
        k1, k2 = jax.random.split(key)
        value, slope = jax.value_and_grad(mean)(params, k1, images(k2, batch)[0], baseline)
        updates, moments = optimizer.update(slope, moments)
        # The first value begins the running mean.
        baseline = jnp.where(baseline == 0, value, 0.95 * baseline + 0.05 * value)
        return (optax.apply_updates(params, updates), moments, baseline), value

    def start(seed: int) -> tuple[Any, Any]:
        first, keys = jax.random.split(jax.random.key(seed))
        params = initial(first)
        state = params, optimizer.init(params), jnp.zeros(())
        return state, jax.random.split(keys, steps)

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)).lower(*start(0)).compile()
    done = []
    for seed in range(seeds):
        given = start(seed)
        began = time.perf_counter()
        (params, _, _), values = jax.block_until_ready(run(*given))
        done.append(Run(params, np.asarray(values), time.perf_counter() - began))
    return done


def accuracy(params: Any, n: int = 2_000) -> float:
    """How often the guide's count is the true one, on fresh images."""

    def right(params: Any, image: Any, count: Any) -> Any:
        sites, _ = programs.simulate(guide, params, image)
        return 1.0 * (sum(sites[name] for name in SITES) == count)

    k1, k2 = jax.random.split(jax.random.key(10**6))
    test, counts = images(k1, n)
    each = jax.vmap(expectation(right), (0, None, 0, 0))
    return float(jnp.mean(jax.jit(each)(jax.random.split(k2, n), params, test, counts)))


class Gradients(NamedTuple):
    """Of one estimator, at fixed parameters and images."""

    mean: np.ndarray
    """Along a few directions in parameter space."""
    error: np.ndarray
    """Of that mean."""
    variance: float
    """Trace of the covariance of the weights that predict presence."""
    milliseconds: float


def gradients(
    params: Any, names: Any, *, batch: int, draws: int, objects: int = OBJECTS
) -> dict[str, Gradients]:
    """Mean, variance and median time of each estimator's gradient; the estimators take turns."""
    fixed, _ = images(jax.random.key(3), batch)
    directions = jax.random.normal(jax.random.key(4), (5, ravel_pytree(params)[0].size))

    def one(mean: Any, baseline: Any, key: Any) -> Any:
        slope = jax.grad(mean)(params, key, fixed, baseline)
        return directions @ ravel_pytree(slope)[0], slope["predict"][0][:, 0]

    key = jax.random.key(5)
    out = {name: ([], [], []) for name in names}
    runs = {}
    for name in names:
        mean = mean_loss(loss(name, objects))
        # What a running mean would have become: the expected value here.
        level = 0.0
        if name == "score_running":
            value = jax.jit(lambda key, f=mean: f(params, key, fixed))
            level = jnp.mean(jnp.stack([value(key) for key in jax.random.split(key, 8)]))
        runs[name] = jax.jit(lambda key, f=mean, b=level: one(f, b, key))
        jax.block_until_ready(runs[name](jax.random.key(0)))
    for key in jax.random.split(jax.random.key(6), draws):
        for name, run in runs.items():
            start = time.perf_counter()
            along, presence = jax.block_until_ready(run(key))
            for record, x in zip(out[name], (along, presence, time.perf_counter() - start),
                                 strict=True):  # fmt: skip
                record.append(np.asarray(x, dtype=float))
    return {
        name: Gradients(
            np.mean(along, axis=0), np.std(along, axis=0, ddof=1) / draws**0.5,
            float(np.var(presence, axis=0, ddof=1).sum()), 1e3 * float(np.median(seconds)),
        )
        for name, (along, presence, seconds) in out.items()
    }  # fmt: skip
