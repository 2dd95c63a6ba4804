"""Descend an expectation with optax, step by step."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.constraints import real

from infer_align._arguments import count, instance
from infer_align._threads import alone
from infer_align.jax._checks import check_key, check_params, optimizer_or_adam
from infer_align.jax.programs._expectation import Expectation
from infer_align.jax.programs._frame import Frame, Plan
from infer_align.jax.programs._noise import Recorder

__all__ = ["FitState", "Step", "fit", "parameters"]


class FitState(NamedTuple):
    """All that a fit needs, beside the parameters and the key, to go on from here."""

    index: int
    unconstrained: Any
    optimizer: Any
    baselines: dict[str, Any]


class Step(NamedTuple):
    """One optimiser step: ``params`` and ``state`` after it, the rest before it.

    ``params`` are the explicit ones as they were given, or the ``numpyro.param`` sites by name, in
    their constrained form. ``metrics`` are numbers: ``value`` (of the loss), ``grad_norm``.
    """

    index: int
    params: Any
    metrics: dict[str, float]
    state: FitState


def fit(
    key: jax.Array, loss: Expectation, params: Any = None, *args: Any, steps: int = 1000,
    batch: int = 1, optimizer: optax.GradientTransformation | None = None,
    resume: FitState | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Minimise an expectation, step by step.

    Parameters
    ----------
    key : PRNG key
        Step i draws with ``fold_in(key, i)``: the same key gives the same run, bit for bit.
    loss : Expectation
        Of ``objective(params, *args)``; of ``objective(*args)`` if params is None.
    params : pytree of arrays, optional
        What is learnt. None: the objective's ``numpyro.param`` sites, from their initial values and
        within their constraints.
    *args : Any
        Further arguments of the objective; not learnt.
    steps : int
        In all, counted from 0 also after a resume.
    batch : int
        Independent estimates that a step averages.
    optimizer : optax.GradientTransformation, optional
        Default ``optax.adam(1e-2)``.
    resume : FitState, optional
        ``step.state`` of an earlier fit; pass the same key with it.

    Yields
    ------
    Step

    Raises
    ------
    ValueError
        For arguments that cannot be right; for a gradient that is not finite: no step was taken,
        and the last one yielded remains good.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist, optax
    >>> from numpyro.distributions import constraints
    >>> from infer_align.jax import programs
    >>> def model():
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0)
    >>> def guide():
    ...     loc = numpyro.param("loc", 0.0)
    ...     scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    ...     numpyro.sample("z", dist.Normal(loc, scale))
    >>> loss = programs.expectation(lambda: -programs.objectives.elbo(model, guide))
    >>> run = programs.fit(jax.random.key(0), loss, batch=64, optimizer=optax.adam(0.02))
    >>> *_, last = run
    >>> {name: round(float(x), 1) for name, x in last.params.items()}  # N(1, 1/√2)
    {'loc': 1.0, 'scale': 0.7}
    """
    check_key(key)
    instance("loss", loss, Expectation, "programs.expectation(objective)")
    steps, batch = count("steps", steps), count("batch", batch)
    optimizer = optimizer_or_adam(optimizer)
    run = _explicit(loss, params) if params is not None else _by_site(key, loss, args)
    decays = loss.decays(*args) if params is None else loss.decays(params, *args)
    if resume is None:
        resume = FitState(0, run.start, optimizer.init(run.start), dict.fromkeys(decays, 0.0))
    instance("resume", resume, FitState, "the state of a Step")
    return _steps(key, run, args, steps, batch, optimizer, decays, resume)


def parameters(key: jax.Array, loss: Expectation, *args: Any) -> dict[str, Any]:
    """Initial values of an objective's ``numpyro.param`` sites, constrained.

    Parameters
    ----------
    key : PRNG key
        For initial values that are drawn.
    loss : Expectation
    *args : Any
        Of the objective.

    Raises
    ------
    ValueError
        If it has none.
    """
    return {name: value for name, (value, _) in _param_sites(key, loss, args).items()}


class _Run(NamedTuple):
    """A loss of unconstrained parameters."""

    start: Any
    loss: Callable[..., Any]
    """``(key, unconstrained, *args, baselines=...)``."""
    constrain: Callable[[Any], Any]


def _explicit(loss: Expectation, params: Any) -> _Run:
    check_params(params)
    return _Run(jax.tree.map(jnp.asarray, params), loss, lambda free: free)


def _by_site(key: jax.Array, loss: Expectation, args: tuple[Any, ...]) -> _Run:
    sites = _param_sites(key, loss, args)
    maps = {name: _map(constraint) for name, (_, constraint) in sites.items()}
    start = {name: maps[name].inv(value) for name, (value, _) in sites.items()}
    start = jax.tree.map(jnp.asarray, start)
    constrain = jax.jit(lambda free: {name: maps[name](value) for name, value in free.items()})

    def substituted(key: jax.Array, free: Any, *args: Any, baselines: Any = None) -> Any:
        with alone(), handlers.substitute(data=constrain(free)):
            return loss(key, *args, baselines=baselines)

    return _Run(start, substituted, constrain)


class _Free:
    """No constraint: also of the networks of autoguides, whose parameters are trees of arrays."""

    def __call__(self, free: Any) -> Any:
        return free

    inv = __call__


def _map(constraint: Any) -> Any:
    """From unconstrained values to a parameter's."""
    return _Free() if constraint is real else biject_to(constraint)


def _param_sites(key: jax.Array, loss: Expectation, args: tuple[Any, ...]) -> dict[str, Any]:
    """By name: initial value and constraint. Runs the objective once, on numbers."""
    plan = Plan(loss.choose, concrete=True)
    seeded = handlers.seed(rng_seed=key)
    with alone(), handlers.trace() as trace, seeded, Frame(plan, Recorder(key), {}):
        loss.objective(*args)
    sites = {
        name: (site["value"], site["kwargs"].get("constraint", real))
        for name, site in trace.items()
        if site["type"] == "param"
    }
    if not sites:
        raise ValueError(
            "the objective has no numpyro.param site, so there is nothing to fit; pass params, or "
            "declare them with numpyro.param"
        )
    return sites


def _steps(
    key: jax.Array, run: _Run, args: tuple[Any, ...], steps: int, batch: int,
    optimizer: optax.GradientTransformation, decays: dict[str, float], state: FitState,
) -> Iterator[Step]:  # fmt: skip
    def mean(free: Any, key: jax.Array, baselines: Any, args: tuple[Any, ...]) -> Any:
        each = lambda key: run.loss(key, free, *args, baselines=baselines)
        return jnp.mean(jax.vmap(each)(jax.random.split(key, batch)))

    @jax.jit
    def descend(free: Any, optimizer_state: Any, key: Any, baselines: Any, args: Any) -> Any:
        value, gradient = jax.value_and_grad(mean)(free, key, baselines, args)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, free)
        return (
            optax.apply_updates(free, updates), optimizer_state, value, optax.tree.norm(gradient)
        )  # fmt: skip

    for index in range(state.index, steps):
        free, optimizer_state, value, norm = descend(
            state.unconstrained, state.optimizer, jax.random.fold_in(key, index),
            state.baselines, args,
        )  # fmt: skip
        metrics = {"value": float(value), "grad_norm": float(norm)}
        if not all(map(math.isfinite, metrics.values())):
            raise ValueError(
                f"the gradient or the loss at step {index} is not finite (the loss is "
                f"{metrics['value']:.6g}, the gradient's norm {metrics['grad_norm']:.6g}), and no "
                "step was taken; lower the learning rate, or see that every draw has a finite "
                "log-density"
            )
        # The first value begins the mean; later ones enter with weight 1 − decay.
        baselines = {
            name: (decay * state.baselines[name] + (1 - decay) * metrics["value"])
            if index
            else metrics["value"]
            for name, decay in decays.items()
        }
        state = FitState(index + 1, free, optimizer_state, baselines)
        yield Step(index, run.constrain(free), metrics, state)
