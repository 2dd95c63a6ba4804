"""Random numbers of a run, drawn in as few calls as there are kinds of them.

What every scope of a program needs is counted when its sites are found, so that the numbers of all
sites, particles and steps come from one call: a generator per site costs more than most programs.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.util import clamp_probs

Array = Any
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass
class Need:
    """How many numbers of each kind one run of a scope uses."""

    keys: int = 0
    normal: int = 0
    uniform: int = 0
    vectors: bool = False
    """Whether some site takes several at once: its repetitions then had better be in front."""

    def supply(self, key: Array, repeats: int | None = None, *, first: bool = False) -> "Supply":
        """Draw them, for so many repetitions: on axis 0 of each array if first, else on axis 1."""
        kinds = [kind for kind in ("keys", "normal", "uniform") if getattr(self, kind)]
        parts = [key] if len(kinds) < 2 else jax.random.split(key, len(kinds))
        drawn: dict[str, Array] = dict.fromkeys(("keys", "normal", "uniform"))
        for kind, part in zip(kinds, parts, strict=False):
            count = getattr(self, kind)
            shape = (count,) if repeats is None else (count, repeats)
            shape = shape[::-1] if first else shape
            if kind == "normal":
                drawn[kind] = jax.random.normal(part, shape)
            elif kind == "uniform":
                drawn[kind] = jax.random.uniform(part, shape)
            else:
                drawn[kind] = part[None] if shape == (1,) else jax.random.split(part, shape)
        return Supply(**drawn)


@jax.tree_util.register_dataclass
@dataclass
class Supply:
    """The numbers of one run of a scope, taken in the order of the program."""

    keys: Array
    normal: Array
    uniform: Array

    def __post_init__(self) -> None:
        self.used = Need()

    def key(self) -> Array:
        """The next key."""
        self.used.keys += 1
        return self.keys[self.used.keys - 1]

    def noise(self, kind: str, shape: tuple[int, ...]) -> Array:
        """The next standard normals or uniforms."""
        start, size = getattr(self.used, kind), math.prod(shape)
        setattr(self.used, kind, start + size)
        if size == len(getattr(self, kind)):
            return getattr(self, kind).reshape(shape)
        return getattr(self, kind)[start : start + size].reshape(shape)


class Recorder:
    """Stands in for a supply while the sites are found, and counts."""

    def __init__(self, key: Array) -> None:
        self.used, self._key, self._calls = Need(), key, 0

    def key(self) -> Array:
        """Some key."""
        self.used.keys += 1
        self._calls += 1
        return jax.random.fold_in(self._key, self._calls)

    def noise(self, kind: str, shape: tuple[int, ...]) -> Array:
        """Some noise."""
        setattr(self.used, kind, getattr(self.used, kind) + math.prod(shape))
        self.used.vectors |= math.prod(shape) > 1
        self._calls += 1
        draw = jax.random.normal if kind == "normal" else jax.random.uniform
        return draw(jax.random.fold_in(self._key, self._calls), shape)


def log_prob(d: Any, value: Array) -> Array:
    """Of a distribution; of Bernoulli elements by choosing between the logarithms of p and 1 − p.

    Then many values of one element cost no further logarithms, and the gradient at logit 0 is
    right: NumPyro 0.22 differentiates max(x, 0) and |x| apart, and gets 0 or 1 there for ±1/2.
    """
    base = d
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    value = jnp.asarray(value)
    whole = jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool
    if not whole or not isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        return d.log_prob(value)
    if isinstance(base, dist.BernoulliLogits):
        yes, no = -jax.nn.softplus(-base.logits), -jax.nn.softplus(base.logits)
    else:
        p = clamp_probs(base.probs)
        yes, no = jnp.log(p), jnp.log1p(-p)
    shape = jnp.broadcast_shapes(value.shape, (*d.batch_shape, *d.event_shape))
    each = jnp.broadcast_to(jnp.where(value == 1, yes, no), shape)
    return jnp.sum(each, axis=tuple(range(len(shape) - d.event_dim, len(shape))))


def sample(d: Any, source: Supply | Recorder) -> tuple[Array, Array | None]:
    """A draw, from noise where the family is a simple function of it; reparameterised if it is.

    With it the log-density of a normal draw, which its noise gives at once: the same number, with
    the same total derivative.
    """
    shape = tuple(d.batch_shape) + tuple(d.event_shape)
    base = d
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, dist.Normal):
        noise = source.noise("normal", shape)
        each = -0.5 * noise**2 - jnp.log(base.scale) - HALF_LOG_2PI
        log_prob = jnp.sum(each, axis=tuple(range(len(shape) - d.event_dim, len(shape))))
        return base.loc + base.scale * noise, log_prob
    return _other(d, base, source, shape), None


def _other(d: Any, base: Any, source: Supply | Recorder, shape: tuple[int, ...]) -> Array:
    if isinstance(base, dist.Uniform):
        return base.low + (base.high - base.low) * source.noise("uniform", shape)
    if isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits):
        below = source.noise("uniform", shape) < base.probs
        return below.astype(jax.dtypes.canonicalize_dtype(jnp.int64))
    if isinstance(base, dist.CategoricalProbs | dist.CategoricalLogits):
        cumulative = jnp.cumsum(base.probs, axis=-1)[..., :-1]
        above = source.noise("uniform", shape)[..., None] > cumulative
        return jnp.sum(above, axis=-1)
    return d.rsample(source.key()) if d.has_rsample else d.sample(source.key())
