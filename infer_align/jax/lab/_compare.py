"""`compare`: estimators of sample sites, side by side."""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from infer_align._arguments import count
from infer_align.diagnostics import Comparison, Measurement, compare_gradients
from infer_align.diagnostics._policy_gradients import of_row
from infer_align.jax.lab._exact import Exact, exact_gradient
from infer_align.jax.programs import Expectation, SiteEstimator, expectation

__all__ = ["compare"]

TIMED = 5
"""Fewest calls whose median is the time."""
WARM_UP = 50
"""Draws before the first, for baselines that run."""


def compare(
    objective: Callable[..., Any],
    estimators: Mapping[str, Mapping[str, SiteEstimator] | None],
    *args: Any,
    key: jax.Array,
    n: int = 1000,
    exact: Any = None,
    argnums: int | tuple[int, ...] = 0,
    evaluations: int = 1,
    batch: int = 100,
    level: float = 0.95,
) -> Comparison:
    r"""Bias, variance and cost of the gradient of E[objective], by choice of site estimators.

    .. math:: \hat b = \bar g - \nabla E[f], \qquad \hat V = \mathrm{tr}\,\widehat{\mathrm{Cov}}(g),
              \qquad \hat V × \text{time}

    of n gradients of ``expectation(objective, choice)`` for each choice, with intervals for the
    bias; see `infer_align.diagnostics.compare_gradients`.

    Parameters
    ----------
    objective : callable
        ``objective(*args)`` -> scalar, as for `infer_align.jax.programs.expectation`.
    estimators : mapping from label to (mapping from site to SiteEstimator, or None)
        The choices; None for the defaults. All see the same keys, so that a row does not depend on
        the others.
    *args : Any
        Of the objective.
    key : PRNG key
        The same key gives the same numbers, times excepted.
    n : int
        Gradients drawn for each choice, >= 2.
    exact : pytree like the gradient, optional
        The exact gradient. Default: found by enumeration if every site is finite; by Gauss–Hermite
        quadrature over the normal sites, if the others are finite; both where that takes at most
        50,000 runs of the objective. Else it is unknown, and so is the bias.
    argnums : int or tuple of int
        Which of args to differentiate, as in ``jax.grad``.
    evaluations : int
        Of the objective in each gradient (the n of `expectation`).
    batch : int
        Gradients that one compiled call computes, by ``vmap``. Time and FLOPs are those of a call
        divided by it.
    level : float
        Coverage of the intervals, at once over the components of a row.

    Returns
    -------
    infer_align.diagnostics.Comparison
        ``print`` it, or ``comparison.plot(axis)``, ``comparison[label]``.

    Requirements
    ------------
    ``score_running`` baselines run along the draws, after 50 draws of warm-up. FLOPs are XLA's own
    count, which takes a ``scan`` for one step; they are unknown where it gives none. Times are
    medians over calls that take turns.

    Raises
    ------
    ValueError
        For arguments that cannot be right, an ``exact`` of another structure, gradients that are
        not finite, and for what `expectation` refuses; then with the label.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from infer_align.jax import lab, programs
    >>> def objective(p):
    ...     return (numpyro.sample("x", dist.Bernoulli(p)) - 0.4) ** 2
    >>> found = lab.compare(objective, {
    ...     "sum": {"x": programs.enumerate_},
    ...     "score": {"x": programs.score},
    ...     "relaxed": {"x": programs.gumbel_softmax(2.0)}}, 0.3, key=jax.random.key(0))
    >>> print(found.source)
    by enumeration: 2 joint values
    >>> [row.covers_zero for row in found.rows], found["sum"].total_variance
    ([True, True, False], 0.0)
    >>> found["relaxed"].reason
    'the program sees a relaxed value'
    """
    _check(estimators, args, n, batch, evaluations)
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    free = _free(args, chosen, single=isinstance(argnums, int))

    def bind(free: Any) -> tuple[Any, ...]:
        values = (free,) if isinstance(argnums, int) else free
        placed = dict(zip(chosen, values, strict=True))
        return tuple(placed.get(i, x) for i, x in enumerate(args))

    losses = {label: expectation(objective, e, n=evaluations) for label, e in estimators.items()}
    runs = {}
    for label, loss in losses.items():
        with of_row(label):
            runs[label] = _compiled(loss, free, bind, batch)
    truth = exact_gradient(objective, free, bind) if exact is None else _given(exact, free)
    drawn = _draw(runs, free, key, n, batch)
    measured = {
        label: Measurement(
            drawn[label].gradients, truth.gradient, truth.error, drawn[label].seconds / batch,
            run.flops / batch, "unbiased" if not run.reason else "biased", run.reason,
        )
        for label, run in runs.items()
    }  # fmt: skip
    names = _names(objective, args, chosen)
    return compare_gradients(measured, names=names, source=truth.source, level=level)


class _Run(NamedTuple):
    """A compiled call: ``(free, keys, baselines) -> (values (batch,), gradients (batch, P))``."""

    call: Callable[..., Any]
    decays: dict[str, float]
    reason: str
    flops: float


class _Drawn(NamedTuple):
    gradients: np.ndarray
    seconds: float


def _check(estimators: Any, args: tuple[Any, ...], n: int, batch: int, evaluations: int) -> None:
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(
            f"estimators is {estimators!r}; needed is a mapping from labels to choices, such as "
            '{"score": {"x": programs.score}, "default": None}'
        )
    for label, choice in estimators.items():
        if choice is not None and not isinstance(choice, Mapping):
            raise TypeError(
                f"{label!r} has the choice {choice!r}; needed is a mapping from sites to "
                "estimators, or None for the defaults"
            )
    if not args:
        raise ValueError(
            "the objective has no argument to differentiate; pass its parameters as its first one "
            "(those of numpyro.param with numpyro.handlers.substitute(objective, data=params))"
        )
    for what, value, least in (("n", n, 2), ("batch", batch, 1), ("evaluations", evaluations, 1)):
        count(what, value, low=least)


def _free(args: tuple[Any, ...], chosen: tuple[int, ...], *, single: bool) -> Any:
    if bad := [i for i in chosen if not 0 <= i < len(args)]:
        raise ValueError(f"argnums has {bad[0]}, and the objective gets {len(args)} arguments")
    values = tuple(jax.tree.map(jnp.asarray, args[i]) for i in chosen)
    leaves = jax.tree.leaves(values)
    if not leaves or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
        kinds = sorted({str(x.dtype) for x in leaves}) or "nothing"
        raise ValueError(
            f"the arguments {chosen} hold {kinds}, and only floating-point numbers have a "
            "gradient; choose others by argnums, or convert them"
        )
    return values[0] if single else values


def _compiled(loss: Expectation, free: Any, bind: Any, batch: int) -> _Run:
    args = bind(free)
    decays = loss.decays(*args)
    biased = [s for s in loss.sites(*args) if s.estimator.bias]
    reason = "; ".join(dict.fromkeys(s.estimator.bias for s in biased))

    def one(free: Any, key: Any, baselines: Any) -> Any:
        value = lambda free: loss(key, *bind(free), baselines=baselines)
        value, gradient = jax.value_and_grad(value)(free)
        return value, ravel_pytree(gradient)[0]

    keys = jax.random.split(jax.random.key(0), batch)
    zeros = {name: jnp.zeros(batch, dtype=jnp.result_type(float)) for name in decays}
    call = jax.jit(jax.vmap(one, (None, 0, 0))).lower(free, keys, zeros).compile()
    return _Run(call, decays, reason, flops(call))


def flops(compiled: Any) -> float:
    """XLA's count for a compiled function; NaN where it has none.

    Parameters
    ----------
    compiled : of ``jax.jit(...).lower(...).compile()``
    """
    try:
        analysis = compiled.cost_analysis()
    except (NotImplementedError, RuntimeError):  # of backends that cannot
        return math.nan
    if isinstance(analysis, list | tuple):  # one a device, in earlier versions
        analysis = analysis[0] if analysis else None
    found = (analysis or {}).get("flops", math.nan)
    return float(found) if found >= 0 else math.nan


def _draw(
    runs: Mapping[str, _Run], free: Any, key: Any, n: int, batch: int
) -> dict[str, _Drawn]:  # fmt: skip
    """All choices in turn, so that a busy moment of the machine hits them alike."""
    calls = max(math.ceil(n / batch), TIMED)
    lanes = jnp.arange(batch)
    keys = jax.jit(
        lambda call: jax.vmap(lambda i: jax.random.fold_in(key, i))(call * batch + lanes)
    )
    baselines = {label: _running(run, free, keys, calls, batch) for label, run in runs.items()}
    gradients: dict[str, list[np.ndarray]] = {label: [] for label in runs}
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for label, run in runs.items():  # the first call of all is slower
        jax.block_until_ready(run.call(free, keys(0), baselines[label][0]))
    for call in range(calls):
        these = jax.block_until_ready(keys(call))
        for label, run in runs.items():
            start = time.perf_counter()
            _, g = jax.block_until_ready(run.call(free, these, baselines[label][call]))
            seconds[label].append(time.perf_counter() - start)
            if call * batch < n:
                gradients[label].append(np.asarray(g))
    return {
        label: _Drawn(np.concatenate(g)[:n], statistics.median(seconds[label]))
        for label, g in gradients.items()
    }


def _running(
    run: _Run, free: Any, keys: Any, calls: int, batch: int
) -> list[dict[str, Any]]:  # fmt: skip
    """Baselines (batch,) of every call: running means of the values before each draw."""
    kind = jnp.result_type(float)
    zeros = {name: jnp.zeros(batch, dtype=kind) for name in run.decays}
    if not run.decays:
        return [zeros] * calls
    # Warm-up draws have keys of their own, beyond those of the calls.
    before = range(calls, calls + math.ceil(WARM_UP / batch))
    values = np.concatenate(
        [np.asarray(run.call(free, keys(call), zeros)[0]) for call in (*before, *range(calls))]
    )
    means = {}
    for name, decay in run.decays.items():
        mean = np.empty(len(values))
        mean[0], running = 0.0, values[0]
        for i in range(1, len(values)):
            mean[i], running = running, decay * running + (1 - decay) * values[i]
        means[name] = mean[len(before) * batch :].reshape(calls, batch)
    return [
        {name: jnp.asarray(mean[call], dtype=kind) for name, mean in means.items()}
        for call in range(calls)
    ]


def _given(exact: Any, free: Any) -> Exact:
    tree = jax.tree.map(jnp.asarray, exact)
    same = jax.tree.structure(tree) == jax.tree.structure(free)
    shapes = [[tuple(x.shape) for x in jax.tree.leaves(t)] for t in (tree, free)]
    if not same or shapes[0] != shapes[1]:
        raise ValueError(
            f"exact has the structure {jax.tree.structure(tree)} with shapes {shapes[0]}, and the "
            f"gradient {jax.tree.structure(free)} with shapes {shapes[1]}; give one like the "
            "differentiated arguments"
        )
    return Exact(np.asarray(ravel_pytree(tree)[0], dtype=np.float64), 0.0, "as given")


def _names(objective: Any, args: tuple[Any, ...], chosen: Sequence[int]) -> list[str]:
    """Of all components: argument, path in it, index."""
    try:
        known = list(inspect.signature(objective).parameters.values())
    except (TypeError, ValueError):  # callables without a signature
        known = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.name for p in known if p.kind in plain]
    names = []
    for i in chosen:
        name = known[i] if i < len(known) else f"argument {i}"
        names += component_names(args[i], name)
    return names


def component_names(tree: Any, name: str) -> list[str]:
    """Of the numbers of a pytree, in the order of ``ravel_pytree``.

    Parameters
    ----------
    tree : pytree
    name : str
        Of the whole.
    """
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        steps = jax.tree_util.keystr(path, simple=True, separator=".")
        whole = ".".join(x for x in (name, steps) if x)
        shape = np.shape(leaf)
        for index in np.ndindex(shape):
            names.append(whole + (f"[{', '.join(map(str, index))}]" if shape else ""))
    return names
