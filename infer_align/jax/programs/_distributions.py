"""What estimators ask of a NumPyro distribution: elements, support, draws, log-probabilities."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.util import clamp_probs

from infer_align.jax.programs._noise import Recorder, Supply

Array = Any
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def is_a(d: Any, *kinds: Any) -> bool:
    """``isinstance``, after which types of parameters are not guessed."""
    return isinstance(d, kinds)


def base_of(d: Any) -> Any:
    """The distribution inside Independent and ExpandedDistribution."""
    while isinstance(d, dist.Independent | dist.ExpandedDistribution):
        d = d.base_dist
    return d


def elements_of(d: Any) -> Any:
    """The distribution of the independent elements of an event: they become its batch."""
    while True:
        if isinstance(d, dist.Independent):
            d = d.base_dist
        elif isinstance(d, dist.ExpandedDistribution) and isinstance(d.base_dist, dist.Independent):
            inside = d.base_dist
            own = inside.base_dist.batch_shape[len(inside.batch_shape) :]
            d = inside.base_dist.expand((*d.batch_shape, *own))
        else:
            return d


def support_of(d: Any) -> Array:
    """Every value of one element, shape (A, *event).

    Raises
    ------
    ValueError
        If they cannot be listed.
    """
    if not d.has_enumerate_support:
        raise ValueError(
            f"the support of {type(base_of(d)).__name__} cannot be listed: it is infinite, or not "
            "known to NumPyro; use score, or measure_valued where a decomposition is known"
        )
    try:
        support = d.enumerate_support(expand=False)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"NumPyro does not list the support of this {type(base_of(d)).__name__}: {error}"
        ) from None
    return support.reshape((support.shape[0], *d.event_shape))


def log_prob(d: Any, value: Array) -> Array:
    """Of a distribution; of Bernoulli elements by choosing between the logarithms of p and 1 − p.

    Then many values of one element cost no further logarithms, and the gradient at logit 0 is
    right: NumPyro 0.22 differentiates max(x, 0) and |x| apart, and gets 0 or 1 there for ±1/2.
    """
    base, value = base_of(d), jnp.asarray(value)
    whole = jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool
    if not whole or not is_a(base, dist.BernoulliLogits, dist.BernoulliProbs):
        return d.log_prob(value)
    if is_a(base, dist.BernoulliLogits):
        yes, no = -jax.nn.softplus(-base.logits), -jax.nn.softplus(base.logits)
    else:
        p = clamp_probs(base.probs)
        yes, no = jnp.log(p), jnp.log1p(-p)
    shape = jnp.broadcast_shapes(value.shape, (*d.batch_shape, *d.event_shape))
    each = jnp.broadcast_to(jnp.where(value == 1, yes, no), shape)
    return jnp.sum(each, axis=tuple(range(len(shape) - d.event_dim, len(shape))))


def sample(d: Any, source: Supply | Recorder) -> tuple[Array, Array | None]:
    """A draw, from noise where the family is a simple function of it; reparameterised if it is.

    With it the log-density of the draw where it is at hand: of a normal from its noise, of a flow
    from what it went through, which it may not be able to invert. The same number, with the same
    total derivative.
    """
    base, shape = base_of(d), (*d.batch_shape, *d.event_shape)
    if is_a(base, dist.Normal):
        noise = source.noise("normal", shape)
        each = -0.5 * noise**2 - jnp.log(base.scale) - HALF_LOG_2PI
        log_prob = jnp.sum(each, axis=tuple(range(len(shape) - d.event_dim, len(shape))))
        return base.loc + base.scale * noise, log_prob
    # Some families, as the folded ones, have a density of their own, which takes no more.
    general = type(d).log_prob is dist.TransformedDistribution.log_prob
    if is_a(d, dist.TransformedDistribution) and general and d.has_rsample:
        value, passed = d.sample_with_intermediates(source.key())
        return value, d.log_prob(value, passed)
    return _other(d, base, source, shape), None


def _other(d: Any, base: Any, source: Supply | Recorder, shape: tuple[int, ...]) -> Array:
    if is_a(base, dist.Uniform):
        return base.low + (base.high - base.low) * source.noise("uniform", shape)
    if is_a(base, dist.BernoulliProbs, dist.BernoulliLogits):
        below = source.noise("uniform", shape) < base.probs
        return below.astype(jax.dtypes.canonicalize_dtype(jnp.int64))
    if is_a(base, dist.CategoricalProbs, dist.CategoricalLogits):
        cumulative = jnp.cumsum(base.probs, axis=-1)[..., :-1]
        above = source.noise("uniform", shape)[..., None] > cumulative
        return jnp.sum(above, axis=-1)
    return d.rsample(source.key()) if d.has_rsample else d.sample(source.key())
