r"""Twists with parameters, and learning them by contrast.

A parametric twist is a function ``(params, prefix) -> log ψ`` of tokens (n, C, t), t from 0, and
gives each next token's log ψ_{t+1}, of shape (n, C, V).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from infer_align.jax._checks import check_params, optimizer_or_adam
from infer_align.samplers import NextTwist, Source, WeightedSample, next_twist
from infer_align.samplers._contrastive import Contrast, contrast

__all__ = ["TwistStep", "fit_twist", "linear_twist", "table_twist", "twist_table"]

Twist = Callable[[Any, Any], Any]


def twist_table(vocabulary_size: int, length: int) -> list[jax.Array]:
    """Parameters of `table_twist`, zeros: one number for every prefix.

    Parameters
    ----------
    vocabulary_size, length : int
        V and T: V + V² + ... + V^T numbers.

    Examples
    --------
    >>> from infer_align.jax.twists import twist_table
    >>> [table.shape for table in twist_table(3, 2)]
    [(1, 3), (3, 3)]
    """
    return [jnp.zeros((vocabulary_size**t, vocabulary_size)) for t in range(length)]


def table_twist(params: list[jax.Array], prefix: Any) -> Float[Any, "n contexts vocabulary"]:
    """The twist that can be any: a table over prefixes, the same in all contexts.

    Parameters
    ----------
    params : list of arrays (V^t, V)
        See `twist_table`.
    prefix : int array, shape (n, C, t)
        Padding after an end is never read.
    """
    table = params[prefix.shape[-1]]
    size = table.shape[-1]
    code = jnp.zeros(prefix.shape[:-1], dtype=int)
    for t in range(prefix.shape[-1]):
        code = code * size + jnp.clip(prefix[..., t], 0, size - 1)
    return table[code]


def linear_twist(
    features: Callable[[Any], Any], vocabulary_size: int
) -> Callable[[Any, Any], jax.Array]:
    r"""A log-linear twist, :math:`\log ψ_t(y_{1:t}) = θ_t^\top f(y_{1:t})`.

    Parameters
    ----------
    features : callable
        Tokens (..., t), t from 1, to (..., F).
    vocabulary_size : int
        Every prefix is extended by each token in turn.

    Returns
    -------
    callable
        ``(params, prefix) -> log ψ`` of params (T, F).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax.twists import linear_twist
    >>> ones = linear_twist(lambda y: (y == 1).sum(-1, keepdims=True), 2)
    >>> ones(jnp.full((4, 1), 0.5), jnp.ones((1, 1, 2), int)).tolist()
    [[[1.0, 1.5]]]
    """

    def twist(params: Any, prefix: Any) -> jax.Array:
        shape = (*prefix.shape[:-1], vocabulary_size)
        rows = jnp.broadcast_to(jnp.asarray(prefix)[..., None, :], (*shape, prefix.shape[-1]))
        token = jnp.broadcast_to(jnp.arange(vocabulary_size), shape)
        extended = jnp.concatenate([rows, token[..., None].astype(rows.dtype)], axis=-1)
        return features(extended) @ params[prefix.shape[-1]]

    return twist


class TwistStep(NamedTuple):
    """One step of learning: ``params`` and ``state`` after it, ``sample`` before it."""

    index: int
    params: Any
    sample: WeightedSample
    """What `smc` gave with the twist before the step."""
    metrics: dict[str, float]
    """``ess`` (share of n, the mean over contexts), ``log_z``, ``grad_norm``, ``skipped``."""
    state: Any
    """The optimiser's, to go on from."""


def fit_twist(
    source: Source,
    twist: Twist,
    params: Any,
    *,
    n: int = 64,
    steps: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    outcomes: Any = None,
    state: Any = None,
) -> Iterator[TwistStep]:
    r"""Learn a twist by contrast: outcomes of the target against prefixes of the twist.

    .. math:: ∇ \sum_t KL(p(y_{1:t}) ‖ π_t^ψ) = -\sum_t \left( E_p[∇ \log ψ_t(y_{1:t})]
              - E_{π_t^ψ}[∇ \log ψ_t(y_{1:t})] \right), \qquad π_t^ψ ∝ q(y_{1:t}) ψ_t(y_{1:t})

    Zhao, Brekelmans, Makhzani and Grosse 2024 (arXiv 2404.17546). Its optimum is the exact
    look-ahead function, up to a factor for each t.

    Parameters
    ----------
    source : Source
        Whose proposal is the filter's.
    twist : callable
        ``(params, prefix) -> log ψ`` (n, C, V), such as `table_twist`.
    params : pytree of arrays
        Initial parameters.
    n : int
        Particles.
    steps : int
    optimizer : optax.GradientTransformation, optional
        Default ``optax.adam(3e-2)``.
    outcomes : array, shape (k, *contexts, T), optional
        Exact draws of the target. Default: those of the filter itself, by their weights; a
        context where it accepts none is skipped.
    state : optional
        Of an earlier step, with its params.

    Yields
    ------
    TwistStep

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, optax
    >>> from infer_align import condition
    >>> from infer_align.jax import source
    >>> from infer_align.jax.twists import fit_twist, table_twist, twist_table
    >>> prior = dist.Categorical(jnp.array([0.7, 0.3])).expand([2]).to_event(1)
    >>> target = condition(prior, lambda y: y.sum(-1) == 1)
    >>> *_, last = fit_twist(source(jax.random.key(0), target), table_twist, twist_table(2, 2),
    ...                      n=100, steps=30, optimizer=optax.adam(0.2))
    >>> last.metrics["ess"] > 0.9
    True
    """
    optimizer = optimizer_or_adam(optimizer, 3e-2)
    check_params(params)
    state = optimizer.init(params) if state is None else state
    stream, compiled = source.tokens(), jax.jit(twist)
    slope = jax.jit(jax.grad(partial(_surrogate, twist)))
    given = None if outcomes is None else np.asarray(outcomes)
    for index in range(steps):
        batch = contrast(source, stream, _bound(compiled, params), n, outcomes=given)
        gradient = slope(params, _arrays(batch))
        norm = float(optax.tree.norm(gradient))
        skipped = float(not batch.positive.any())
        if not np.isfinite(norm):
            raise ValueError(
                f"step {index}: the gradient of the twist is not finite; the last step yielded "
                "remains good: go on from it with a smaller learning rate"
            )
        if not skipped:
            update, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, update)
        metrics = {**_quality(batch.sample), "grad_norm": norm, "skipped": skipped}
        yield TwistStep(index, params, batch.sample, metrics, state)


def _bound(twist: Twist, params: Any) -> NextTwist:
    return next_twist(lambda prefix: twist(params, prefix))


def _arrays(batch: Contrast) -> tuple[Any, ...]:
    return batch.prefixes, batch.negative, batch.outcomes, batch.positive


def _surrogate(twist: Twist, params: Any, batch: tuple[Any, ...]) -> Any:
    """Its gradient is the contrastive one; its value means nothing."""
    prefixes, negative, outcomes, positive = batch
    total = 0.0
    for t in range(outcomes.shape[-1]):
        theirs = _log_psi(twist, params, prefixes[t], t, negative[t])
        total = total + theirs - _log_psi(twist, params, outcomes, t, positive[t])
    return total


def _log_psi(twist: Twist, params: Any, tokens: Any, t: int, coefficients: Any) -> Any:
    """Σ coefficients · log ψ_{t+1} of tokens (n, C, T)."""
    values = twist(params, tokens[..., :t])
    token = jnp.clip(tokens[..., t], 0, values.shape[-1] - 1)
    picked = jnp.take_along_axis(values, token[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(coefficients != 0, coefficients * picked, 0.0))


def _quality(sample: WeightedSample) -> dict[str, float]:
    p = sample.probabilities
    squares = (p**2).sum(axis=0)
    ess = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1.0), 0.0) / len(p)
    return {"ess": float(np.mean(ess)), "log_z": float(np.mean(sample.log_z))}
