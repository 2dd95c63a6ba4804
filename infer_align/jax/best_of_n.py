"""`BestOfN`: the best of n draws as a NumPyro distribution, for a sample site."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from infer_align import _supports, _ties
from infer_align.exact._cdf import cdf_of_support
from infer_align.targets import add_potential, best_of_draws, check_draws, tolerance_of

__all__ = ["BestOfN"]


class BestOfN(dist.Distribution):
    r"""Draw n outcomes of the base and keep one of the best, ties broken at random.

    .. math:: \log π(y) = \log \mathrm{base}(y) + \log\frac{F(r)^n - F(r^-)^n}{P(r)}

    Beirami et al. 2024 (arXiv 2401.01879). With a temperature one of the n is kept in proportion to
    exp(reward/temperature): soft best-of-n, Verdun et al. 2025 (arXiv 2505.03156).

    Parameters
    ----------
    base : Distribution
        Its batch shape is that of the contexts.
    reward : callable
        ``(y, *contexts) -> (m, *batch)`` of outcomes y of shape (m, \*batch, ...); ``-inf`` is the
        worst of all.
    n : int
        >= 1.
    cdf : RewardCdf, or callable, optional
        Of the reward under the base. By default it is summed over the base's support, at every
        ``log_prob``. With an estimated cdf ``log_prob`` is an estimate.
    contexts : tuple, optional
        Further arguments of the reward, of the cdf if it is a callable.
    temperature : float, optional
        > 0, in units of the reward.

    Raises
    ------
    ValueError
        Unless n is a whole number >= 1; from ``log_prob``, for a base whose outcomes cannot be
        listed, without a cdf.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align.jax import BestOfN
    >>> best = BestOfN(dist.Categorical(jnp.array([0.5, 0.3, 0.2])), lambda y: 1.0 * y, 2)
    >>> [round(float(p), 4) for p in jnp.exp(best.log_prob(jnp.arange(3)))]
    [0.25, 0.39, 0.36]
    >>> best.sample(jax.random.key(0), (4,)).shape
    (4,)
    """

    pytree_data_fields = ("base", "contexts")
    pytree_aux_fields = ("reward", "n", "reward_cdf", "temperature")

    def __init__(
        self,
        base: dist.Distribution,
        reward: Callable[..., Any],
        n: int | float,
        cdf: Any = None,
        *,
        contexts: tuple[Any, ...] = (),
        temperature: float | int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_draws(n, temperature)
        self.base, self.reward, self.n, self.reward_cdf = base, reward, int(n), cdf
        self.contexts, self.temperature = contexts, temperature
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether the base lists its support."""
        return self.base.has_enumerate_support

    @property
    def support(self) -> Any:
        """That of the base."""
        return self.base.support

    def enumerate_support(self, expand: bool = True) -> jax.Array:  # noqa: FBT001, FBT002
        """The base's support."""
        return self.base.enumerate_support(expand=expand)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Outcomes of shape (*sample_shape, *batch, ...), each of n draws of the base.

        Parameters
        ----------
        key : PRNG key
        sample_shape : tuple of int
        """
        draw_key, keep_key = jax.random.split(key)
        size = (self.n, *sample_shape)
        flat: Any = self.base.sample(draw_key, (math.prod(size),))
        rewards = jnp.reshape(self._rewards(flat), size + self.batch_shape)
        noise = jax.random.gumbel(keep_key, rewards.shape)
        top = jnp.max(rewards, axis=0)
        if self.temperature is None:
            score = jnp.where(self._tied(rewards), noise, -jnp.inf)
        else:
            some = top > -jnp.inf
            log_weight = (rewards - jnp.where(some, top, 0.0)) / self.temperature
            score = noise + jnp.where(some, log_weight, 0.0)
        kept = jnp.argmax(score, axis=0)
        index = jnp.reshape(kept, (1, *kept.shape, *(1,) * len(self.event_shape)))
        drawn = jnp.reshape(flat, size + self.batch_shape + self.event_shape)
        return jnp.take_along_axis(drawn, index, axis=0)[0]

    def log_prob(self, value: Any) -> jax.Array:
        """Normalised log-probability, shape (*sample_shape, *batch).

        Parameters
        ----------
        value : array, shape (*sample_shape, *batch, ...)
        """
        value = jnp.asarray(value)
        leading = value.shape[: value.ndim - len(self.event_shape)]
        leading = jnp.broadcast_shapes(leading, self.batch_shape)
        value = jnp.broadcast_to(value, leading + self.event_shape)
        rows = (-1, *self.batch_shape)
        flat = jnp.reshape(value, rows + self.event_shape)
        potential = self._potential(flat, *self.contexts)
        log_prior = jnp.reshape(_supports.log_prob(self.base, value), potential.shape)
        return jnp.reshape(add_potential(log_prior, potential, "BestOfN"), leading)

    def _potential(self, y: jax.Array, *contexts: Any) -> jax.Array:
        cdf: Any = self.reward_cdf if self.reward_cdf is not None else self._listed()
        target = best_of_draws(self.base, self.reward, self.n, cdf, self.temperature)
        return target.log_potential(y, *contexts)

    def _listed(self) -> Any:
        with jax.ensure_compile_time_eval():  # what is known needs no compilation, even under jit
            return cdf_of_support(self.base, self.reward, *self.contexts)

    def _tied(self, rewards: jax.Array) -> jax.Array:
        """Which of the n draws on axis 0 are the best."""
        draws = rewards.ndim - len(self.batch_shape)
        return _ties.best(rewards, draws, tolerance_of(self.reward_cdf, self.contexts))

    def _rewards(self, y: jax.Array) -> jax.Array:
        rewards = jnp.asarray(self.reward(y, *self.contexts)) * 1.0
        wanted = (y.shape[0], *self.batch_shape)
        if rewards.shape != wanted:
            raise ValueError(
                f"the reward of outcomes of shape {y.shape} has shape {rewards.shape}; needed is "
                f"one number an outcome, {wanted}: sum over the token axis with .sum(-1)"
            )
        return rewards
