r"""Supports whose bounds move with what is differentiated, where the score function is wrong.

.. math:: \nabla_θ \int_{a(θ)}^{b(θ)} q_θ f = E[f \nabla\log q_θ] + q_θ(b)f(b)b' - q_θ(a)f(a)a'

A score function is the first term alone. What moves is found from the distribution: its support's
bounds, and those of what it transforms, at two values of each of its parameters. Whether such a
parameter is differentiated is known to JAX while it differentiates, as a tangent that is not zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from numpyro.distributions import constraints

__all__ = ["bounds_of", "refuse_moving_support"]

Array = Any
PROBES = (0.7, 1.3)


def refuse_moving_support(log_prob: Array, d: Any, what: str) -> Array:
    """A log-probability at a given value, whose derivative raises if it moves the support.

    Parameters
    ----------
    log_prob : array
        Of ``d``.
    d : Distribution
    what : str
        For the message: whose distribution it is.

    Returns
    -------
    array
        ``log_prob`` itself.

    Raises
    ------
    ValueError
        When differentiated in something that a bound of the support depends on.
    """
    bounds = bounds_of(d)
    if not bounds:
        return log_prob
    family = type(_inside(d)).__name__
    instead = "reparam (infer_align.jax.programs)"
    if not d.has_rsample:
        instead += " with a distribution that has such a sampler"
    message = (
        f"{what} has a support whose bounds move with what is differentiated ({family}), and "
        "E[f ∇log q] leaves out what crosses them: the gradient would be wrong; use "
        f"{instead}, or hold the bounds fixed with jax.lax.stop_gradient"
    )

    @jax.custom_jvp
    def same(log_prob: Array, bounds: Any) -> Array:
        return log_prob

    def slope(primals: Any, tangents: Any) -> tuple[Array, Array]:
        moved = [t for t in tangents[1] if not isinstance(t, SymbolicZero)]
        if moved:
            raise ValueError(message)
        value, tangent = primals[0], tangents[0]
        return value, jnp.zeros_like(value) if isinstance(tangent, SymbolicZero) else tangent

    same.defjvp(slope, symbolic_zeros=True)
    return same(log_prob, bounds)


def bounds_of(d: Any) -> tuple[Array, ...]:
    """What can be differentiated and moves a bound of the support.

    Parameters
    ----------
    d : Distribution

    Returns
    -------
    tuple of array
        Bounds, or parameters of the distribution; empty if the support is fixed.
    """
    transformed = lambda x: isinstance(x, dist.TransformedDistribution)
    if any(map(transformed, jax.tree.leaves(d, is_leaf=transformed))):
        found = _parameters_that_move(d)
        if found is not None:
            return found
    return tuple(x for x in jax.tree.leaves(_ends(d, transformed=False)) if _differentiable(x))


def _inside(d: Any) -> Any:
    """The distribution inside Independent, ExpandedDistribution and MaskedDistribution."""
    while isinstance(d, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        d = d.base_dist
    return d


def _each(support: Any) -> Any:
    """The constraint of each entry."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _differentiable(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _ends(d: Any, *, transformed: bool = True) -> list[Array]:
    """Bounds of the support, infinite ones and those of the distributions inside included.

    Parameters
    ----------
    d : Distribution
    transformed : bool
        Follow the bounds of what is transformed, whose image NumPyro takes for the whole line.
    """
    d = _inside(d)
    if isinstance(d, dist.Delta):  # a point: that is all its support
        return [d.v]
    if isinstance(d, dist.MixtureSameFamily):
        return _ends(d.component_distribution, transformed=transformed)
    if isinstance(d, dist.MixtureGeneral):
        parts = [_ends(one, transformed=transformed) for one in d.component_distributions]
        return [x for part in parts for x in part]
    each = _each(d.support)
    own = [getattr(each, name) for name in ("lower_bound", "upper_bound") if hasattr(each, name)]
    own = own or jax.tree.leaves(each)
    if not transformed or not isinstance(d, dist.TransformedDistribution):
        return own
    return _images(d)


def _images(d: Any) -> list[Array]:
    """Where the bounds of what is transformed come to lie."""
    base, shape = d.base_dist, d.base_dist.shape()
    points = _ends(base)
    each = _each(base.support)
    if each is constraints.real or hasattr(each, "lower_bound") or hasattr(each, "upper_bound"):
        points = points if hasattr(each, "lower_bound") else [*points, -jnp.inf]
        points = points if hasattr(each, "upper_bound") else [*points, jnp.inf]
    else:  # a set without bounds of single numbers moves if a point of it does
        points = [*points, base.support.feasible_like(jnp.zeros(shape))]
    images = []
    for point in points:
        image = jnp.broadcast_to(jnp.asarray(point, dtype=float), shape)
        for transform in d.transforms:
            image = transform(image)
        images.append(image)
    return images


def _parameters_that_move(d: Any) -> tuple[Array, ...] | None:
    """The parameters that some finite bound depends on; None where it cannot be found out.

    Only what is traced can be differentiated; the other parameters keep their values.
    """
    leaves, structure = jax.tree.flatten(d)
    traced = [i for i, x in enumerate(leaves) if isinstance(x, Tracer)]
    free = [i for i in traced if _differentiable(leaves[i])]

    def ends(changed: int | None = None) -> list[np.ndarray]:
        values = list(leaves)
        for i in traced:
            dtype = jnp.result_type(leaves[i])
            values[i] = jnp.full(jnp.shape(leaves[i]), PROBES[i == changed], dtype=dtype)
        return [np.asarray(x) for x in _ends(jax.tree.unflatten(structure, values))]

    try:
        with jax.ensure_compile_time_eval():
            before = ends()
            return tuple(leaves[i] for i in free if any(map(_moved, before, ends(i))))
    # A distribution of the user's whose fields JAX does not know: its own support has to do.
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None


def _moved(before: np.ndarray, after: np.ndarray) -> bool:
    finite = np.isfinite(before) & np.isfinite(after)
    return bool(np.any(before[finite] != after[finite]))
