"""Time of a gradient: infer_align, JAX by hand, NumPyro and Pyro, on the same objectives.

By hand means strong: all noise of a call in one draw, densities written out, nothing computed
twice.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.scipy.special import erfinv, logsumexp

from infer_align.jax.programs import expectation, objectives
from paper_repro.becker2024_programmable_vi import cone
from paper_repro.becker2024_programmable_vi.networks import initial_layers, layer

LOG_2PI = math.log(2 * math.pi)
PIXELS, HIDDEN, LATENT = 784, 200, 10

Contender = Callable[[int], Any]
"""By number of the call: a gradient, computed when it returns."""


def vae_params(key: Any) -> dict[str, Any]:
    """784-200-20 and 10-200-784, as in the paper."""
    sizes = {
        "look": (PIXELS, HIDDEN), "encode": (HIDDEN, 2 * LATENT),
        "open": (LATENT, HIDDEN), "decode": (HIDDEN, PIXELS),
    }  # fmt: skip
    return initial_layers(key, sizes)


def encoded(params: Any, images: Any) -> tuple[Any, Any]:
    """Loc and scale."""
    out = layer(params, "encode", jax.nn.leaky_relu(layer(params, "look", images)))
    return out[:, :LATENT], jax.nn.softplus(out[:, LATENT:])


def decoded(params: Any, z: Any) -> Any:
    """Logits."""
    return layer(params, "decode", jax.nn.leaky_relu(layer(params, "open", z)))


def vae_model(params: Any, images: Any) -> None:
    """The paper's model, but for one thing: its code passes probabilities as logits."""
    n = len(images)
    z = numpyro.sample("z", dist.Normal(jnp.zeros((n, LATENT)), 1.0).to_event(2))
    logits = decoded(params, z)
    numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=images)


def vae_guide(params: Any, images: Any) -> None:
    """Amortised normals."""
    numpyro.sample("z", dist.Normal(*encoded(params, images)).to_event(2))


def vae_by_hand(params: Any, key: Any, images: Any) -> Any:
    """−ELBO per image."""
    loc, scale = encoded(params, images)
    noise = jax.random.normal(key, loc.shape)
    z = loc + scale * noise
    logits = decoded(params, z)
    log_p = jnp.sum(images * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(z * z)
    log_q = -0.5 * jnp.sum(noise * noise) - jnp.sum(jnp.log(scale))
    return (log_q - log_p) / len(images)


def log_cone(x: Any, y: Any) -> Any:
    """Log density of the cone, written out."""
    s = x * x + y * y
    scale = 0.1 + s / 100
    prior = -s / 200 - 2 * math.log(10) - LOG_2PI
    return prior - 0.5 * ((5.0 - s) / scale) ** 2 - jnp.log(scale) - 0.5 * LOG_2PI


def naive_by_hand(phi: Any, key: Any, batch: int, n: int) -> Any:
    """−ELBO (n = 1) or −IWELBO of the independent guide."""
    noise = jax.random.normal(key, (batch, n, 2))
    at = phi[:2] + jnp.exp(phi[2:]) * noise
    log_q = -0.5 * jnp.sum(noise * noise, -1) - phi[2] - phi[3] - LOG_2PI
    log_w = log_cone(at[..., 0], at[..., 1]) - log_q
    return -jnp.mean(logsumexp(log_w, axis=1)) + math.log(n)


def ring_by_hand(phi: Any, key: Any, batch: int, n: int, m: int) -> Any:
    """−HVI, −IWHVI or −DIWHVI: n particles with m angles each, the first of them the particle's."""
    uniform = jax.random.uniform(key, (batch, n, m + 2), minval=1e-7, maxval=1 - 1e-7)
    angles = 2 * math.pi * uniform[..., :m]
    noise = math.sqrt(2) * erfinv(2 * uniform[..., m:] - 1)
    around = math.sqrt(5) * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)  # (batch, n, m, 2)
    scale = jnp.exp(phi)
    at = around[:, :, 0] + scale * noise
    apart = (at[:, :, None] - around) / scale
    log_joint = -0.5 * jnp.sum(apart * apart, -1) - phi[0] - phi[1] - LOG_2PI
    log_q = logsumexp(log_joint, axis=-1) - math.log(m)
    log_w = log_cone(at[..., 0], at[..., 1]) - log_q
    return -jnp.mean(logsumexp(log_w, axis=1)) + math.log(n)


BY_HAND = {
    "ELBO": partial(naive_by_hand, n=1), "IWELBO n=5": partial(naive_by_hand, n=5),
    "HVI": partial(ring_by_hand, n=1, m=1), "IWHVI m=5": partial(ring_by_hand, n=1, m=5),
    "DIWHVI n=5,m=5": partial(ring_by_hand, n=5, m=5),
}  # fmt: skip


def compiled(loss: Callable[[Any, Any], Any], params: Any) -> Contender:
    """A gradient of ``loss(params, key)``."""
    gradient, key = jax.jit(jax.grad(loss)), jax.random.key(0)
    keys = list(jax.random.split(key, 64))
    return lambda i: jax.block_until_ready(gradient(params, keys[i % 64]))


def cone_contenders(name: str, batch: int) -> dict[str, Contender]:
    """Of one objective of the cone, averaged over a batch of independent draws."""
    case = cone.CASES[name]
    phi, bound = jnp.asarray(case.start) + 0.1, expectation(case.bound)

    def ours(phi: Any, key: Any) -> Any:
        return -jnp.mean(jax.vmap(bound, (0, None))(jax.random.split(key, batch), phi))

    out = {
        "infer_align": compiled(ours, phi),
        "by hand": compiled(lambda phi, key: BY_HAND[name](phi, key, batch), phi),
    }
    model = lambda phi: cone.model()
    if name == "ELBO":
        elbo = numpyro.infer.Trace_ELBO(num_particles=batch)
        out["NumPyro"] = compiled(lambda phi, k: elbo.loss(k, {}, model, cone.naive, phi), phi)
        out["Pyro"] = pyro_cone(phi, batch)
    if name == "IWELBO n=5":
        renyi = numpyro.infer.RenyiELBO(alpha=0.0, num_particles=5)
        each = lambda key, phi: renyi.loss(key, {}, model, cone.naive, phi)
        out["NumPyro"] = compiled(
            lambda phi, key: jnp.mean(jax.vmap(each, (0, None))(jax.random.split(key, batch), phi)),
            phi,
        )
    return out


def vae_contenders(batch: int) -> dict[str, Contender]:
    """Of the ELBO of a variational autoencoder."""
    params = vae_params(jax.random.key(1))
    pixels = np.random.default_rng(0).random((batch, PIXELS)) < 0.3
    images = jnp.asarray(pixels, float)
    ours = expectation(
        lambda params: -objectives.elbo(vae_model, vae_guide, params, images) / batch
    )
    elbo = numpyro.infer.Trace_ELBO()
    return {
        "infer_align": compiled(lambda params, key: ours(key, params), params),
        "by hand": compiled(lambda params, key: vae_by_hand(params, key, images), params),
        "NumPyro": compiled(
            lambda params, key: elbo.loss(key, {}, vae_model, vae_guide, params, images) / batch,
            params,
        ),
        "Pyro": pyro_vae(params, images),
    }


def pyro_vae(params: Any, images: Any) -> Contender:
    """The same in Pyro, not compiled."""
    import pyro
    import pyro.distributions as d
    import torch
    from torch.nn import functional as f

    pyro.set_rng_seed(0)
    weights = {
        name: tuple(torch.tensor(np.array(x), requires_grad=True) for x in pair)
        for name, pair in params.items()
    }
    x, n = torch.tensor(np.array(images)), len(images)
    flat = [w for name in sorted(weights) for w in weights[name]]  # as JAX flattens them

    def apply(name: str, x: Any) -> Any:
        return x @ weights[name][0] + weights[name][1]

    def guide() -> None:
        out = apply("encode", f.leaky_relu(apply("look", x)))
        scale = f.softplus(out[:, LATENT:])
        pyro.sample("z", d.Normal(out[:, :LATENT], scale).to_event(2))

    def model() -> None:
        z = pyro.sample("z", d.Normal(torch.zeros(n, LATENT), 1.0).to_event(2))
        logits = apply("decode", f.leaky_relu(apply("open", z)))
        pyro.sample("x", d.Bernoulli(logits=logits, validate_args=False).to_event(2), obs=x)

    elbo = pyro.infer.Trace_ELBO()
    return lambda i: torch.autograd.grad(elbo.differentiable_loss(model, guide) / n, flat)


def pyro_cone(phi: Any, batch: int) -> Contender:
    """The cone's ELBO in Pyro."""
    import pyro
    import pyro.distributions as d
    import torch

    pyro.set_rng_seed(0)
    free = torch.tensor(np.array(phi), requires_grad=True)

    def guide() -> None:
        pyro.sample("x", d.Normal(free[0], free[2].exp()))
        pyro.sample("y", d.Normal(free[1], free[3].exp()))

    def model() -> None:
        x = pyro.sample("x", d.Normal(0.0, 10.0))
        y = pyro.sample("y", d.Normal(0.0, 10.0))
        s = x * x + y * y
        pyro.sample("z", d.Normal(s, 0.1 + s / 100), obs=torch.tensor(5.0))

    elbo = pyro.infer.Trace_ELBO(num_particles=batch, vectorize_particles=True)
    return lambda i: torch.autograd.grad(elbo.differentiable_loss(model, guide), free)


def flat(gradient: Any) -> np.ndarray:
    """One vector, also of torch tensors."""
    if isinstance(gradient, tuple):
        return np.concatenate([np.asarray(x.detach()).ravel() for x in gradient])
    return np.asarray(ravel_pytree(gradient)[0])


def disagreement(contenders: dict[str, Contender], calls: int) -> dict[str, float]:
    """z scores of each one's mean gradient along a random direction against ours."""
    means = {}
    for name, contender in contenders.items():
        direction = np.random.default_rng(1).normal(size=flat(contender(0)).size)
        along = np.array([flat(contender(i)) @ direction for i in range(calls)])
        means[name] = along.mean(), along.var(ddof=1) / calls
    at, variance = means.pop("infer_align")
    return {name: float((m - at) / math.sqrt(v + variance)) for name, (m, v) in means.items()}


def medians(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Milliseconds a call. The contenders take turns, in another order each round.

    Who always came first would always find the caches as the last one left them.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    rng, order = np.random.default_rng(0), list(contenders)
    for name in contenders:
        contenders[name](0)
    for i in range(rounds):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            contenders[name](i)
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}
