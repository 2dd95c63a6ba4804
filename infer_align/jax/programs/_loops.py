"""Repetition inside an objective: `vmap`, `particles`, and NumPyro's `scan`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import _PYRO_STACK

from infer_align._arguments import count
from infer_align.jax.programs._frame import Frame, Override, current
from infer_align.jax.programs._noise import Recorder, Supply

__all__ = ["particles", "vmap"]

Array = Any


def vmap(function: Callable[..., Any], in_axes: Any = 0, *, size: int | None = None) -> Any:
    """``jax.vmap`` for functions with sample sites: each repetition draws its own.

    Parameters
    ----------
    function : callable
        Part of an objective.
    in_axes : int, None, or sequence of them
        Of the arguments, as in ``jax.vmap``.
    size : int, optional
        Number of repetitions, where no argument has an axis.

    Returns
    -------
    callable
        Outputs have the repetitions on axis 0.

    Raises
    ------
    ValueError
        Outside an expectation, or inside a transformation of JAX that it does not know.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def objective(locs):
    ...     draw = lambda loc: numpyro.sample("x", dist.Normal(loc, 1.0)) ** 2
    ...     return jnp.sum(programs.vmap(draw)(locs))
    >>> loss = programs.expectation(objective)
    >>> jax.grad(loss, argnums=1)(jax.random.key(0), jnp.zeros(3)).shape
    (3,)
    """

    def repeated(*args: Any) -> Any:
        frame = current()
        if frame is None:
            raise ValueError(
                "programs.vmap and particles repeat what an expectation runs; call them inside an "
                "objective given to programs.expectation"
            )
        frame.check_trace("vmap")
        if _PYRO_STACK[-1] is not frame:
            raise ValueError(
                "vmap or particles is inside a NumPyro handler or plate "
                f"({type(_PYRO_STACK[-1]).__name__}), which would not see the sites that are "
                "repeated; repeat outside of it, or use a plate, or scan"
            )
        axes = in_axes if isinstance(in_axes, list | tuple) else (in_axes,) * len(args)
        count = size if size is not None else _size(args, axes)
        scope = frame.unique("vmap") + "/"

        def one(source: Any, overrides: dict[str, Override], *args: Any) -> Any:
            with frame.inner(taken(source), overrides, scope) as inner:
                out = function(*args)
            return out, inner.reports

        source = inner_source(frame, scope, count)
        lanes = jax.vmap(one, (0, 0, *axes), axis_size=count)
        out, reports = lanes(source, frame.overrides_of(scope), *args)
        frame.absorb(reports)
        return out

    return repeated


def particles(n: int, function: Callable[[], Any]) -> Any:
    """Evaluate a part of an objective n times, with draws of its own each time.

    Parameters
    ----------
    n : int
    function : callable
        Without arguments.

    Returns
    -------
    array or pytree
        Its results on axis 0.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import programs
    >>> def objective(p):
    ...     draw = lambda: numpyro.sample("x", dist.Bernoulli(p))
    ...     return jnp.sum(programs.particles(3, draw)) ** 2
    >>> loss = programs.expectation(objective, {"x": programs.enumerate_})
    >>> value, slope = jax.value_and_grad(loss, argnums=1)(jax.random.key(0), 0.3)
    >>> round(float(value), 4), round(float(slope), 4)  # E[(sum)²] is 3p(1 − p) + 9p²
    (1.44, 6.6)
    """
    return vmap(function, (), size=count("n, the number of particles,", n))()


def inner_source(frame: Frame, scope: str, repeats: int) -> Any:
    """Random numbers of all repetitions of a scope, on axis 0; keys, while sites are found."""
    key = frame.source.key()
    if not frame.plan.complete:
        return jax.random.split(key, repeats)
    return frame.plan.needs[scope].supply(key, repeats)


def taken(source: Any) -> Supply | Recorder:
    """Those of one repetition; a key, while the sites are found."""
    if isinstance(source, Supply):
        return Supply(source.keys, source.draws)
    return Recorder(source)


def _size(args: tuple[Any, ...], axes: Any) -> int:
    for arg, axis in zip(args, axes, strict=True):
        leaves = jax.tree.leaves(arg)
        if axis is not None and leaves:
            return int(jnp.shape(leaves[0])[axis])
    raise ValueError("no argument has an axis to repeat over; give in_axes, or size")


def inside_scan(frame: Frame, msg: dict[str, Any]) -> None:
    """Let NumPyro's scan run its body in a frame of its own, and bring back the reports."""
    function, init, xs, length, reverse = msg["args"]
    kwargs = msg["kwargs"]
    if kwargs["substitute_stack"]:
        raise ValueError(
            "a scan under condition, substitute or replay is not supported where its other sites "
            "are drawn; condition the body's sites inside the body"
        )
    if length is None:
        length = int(jnp.shape(jax.tree.leaves(xs)[0])[0])
    scope = frame.unique("scan") + "/"

    def body(carry: Any, x: Any) -> Any:
        x, source, overrides = x
        with frame.inner(taken(source), overrides, scope, in_scan=True) as inner:
            carry, y = function(carry, x)
        return carry, (y, inner.reports)

    source = inner_source(frame, scope, length)
    (end, (trace, (ys, reports))) = msg["fn"](
        body, init, (xs, source, frame.overrides_of(scope)), length, reverse, **kwargs
    )
    frame.absorb(reports)
    msg["value"] = (end, (trace, ys))
