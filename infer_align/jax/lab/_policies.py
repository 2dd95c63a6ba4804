"""`compare_policy_gradients`: the core's estimators, by the gradient that they give a policy."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

from infer_align.diagnostics import Comparison, compare_gradients
from infer_align.diagnostics import _policy_gradients as listed_
from infer_align.estimators import Estimator, checked_update
from infer_align.jax._batch import draw, weigh
from infer_align.jax.fit import policy_gradient
from infer_align.jax.lab._compare import component_names, flops
from infer_align.jax.numpyro import Program, ProgramPrior
from infer_align.jax.numpyro import target as as_target
from infer_align.spaces import Space
from infer_align.targets import Target

__all__ = ["compare_policy_gradients"]


def compare_policy_gradients(
    policy: Callable[..., Any],
    params: Any,
    target: Target | Program,
    estimators: Mapping[str, Estimator],
    *,
    space: Space,
    key: jax.Array,
    n: int = 1000,
    outcomes: int = 16,
    contexts: tuple[Any, ...] = (),
    proposal: Any = None,
    level: float = 0.95,
) -> Comparison:
    r"""Bias, variance and cost of the gradients that the core's estimators give a policy.

    .. math:: \hat g = \sum_{i,x} c_{ix} ∇\log π(y_{ix}|x), \qquad
              g = \sum_{y,x} \frac{∂L}{∂\log π(y|x)} ∇\log π(y|x)

    with the coefficients c of a batch that was drawn, and each estimator's own exact loss L over
    all outcomes: rows with other divergences have other exact gradients, and are compared by
    ``rel. sd``, noise to signal.

    Parameters
    ----------
    policy : callable
        ``(params, *contexts) -> Distribution``, as for `infer_align.jax.fit.fit`.
    params : pytree of arrays
        At which the gradients are compared.
    target : NumPyro program or Target
    estimators : mapping from label to Estimator
        Of `infer_align.estimators`. All see the same batches.
    space : Space
        Every outcome of the policy.
    key : PRNG key
        The same key gives the same numbers, times excepted.
    n : int
        Gradients of each estimator, >= 2.
    outcomes : int
        Outcomes per context that one gradient is made of.
    contexts : tuple of arrays
        Of policy and target.
    proposal : Distribution, or callable like the policy, optional
        Outcomes are drawn from it in place of the policy.
    level : float
        Coverage of the intervals, at once over the components of a row.

    Returns
    -------
    infer_align.diagnostics.Comparison

    Requirements
    ------------
    N·contexts·P numbers fit in memory. Estimators that remember go through 50 batches first. Time
    and FLOPs are those of drawing, weighing and differentiating one batch, as `fit` does.

    Raises
    ------
    ValueError
        For a space that is not the policy's, and for what an estimator refuses; with its label.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import Space, divergences, estimators, tilt
    >>> from infer_align.jax import lab, tabular
    >>> prior = dist.Categorical(probs=jnp.array([0.5, 0.3, 0.2]))
    >>> target = tilt(prior, lambda y: 1.0 * y, beta=0.5)
    >>> found = lab.compare_policy_gradients(tabular, jnp.zeros(3), target, {
    ...     "none": estimators.reinforce(baseline=estimators.none()),
    ...     "loo": estimators.reinforce(),
    ...     "mean": estimators.reinforce(baseline=estimators.mean())},
    ...     space=Space(jnp.arange(3)), key=jax.random.key(0), n=400, outcomes=4)
    >>> found["loo"].total_variance < found["none"].total_variance
    True
    >>> found["mean"].claim, found["loo"].covers_zero
    ('scaled by 1 - 1/n', True)
    """
    listed_.checked(estimators, n, outcomes)
    if isinstance(policy, dist.Distribution | ProgramPrior):
        raise TypeError(
            "the policy is a distribution, which has no parameters; pass a function from "
            "parameters to a distribution, such as infer_align.jax.tabular"
        )
    params, declared = jax.tree.map(jnp.asarray, params), as_target(target)

    def source(params: Any) -> Any:
        if proposal is None or isinstance(proposal, dist.Distribution | ProgramPrior):
            return proposal
        return proposal(params, *contexts)

    table, slopes = _listed(policy, params, declared, estimators, space, contexts, source)
    draws = (n + listed_.WARM_UP) * outcomes

    def sampled(key: Any, params: Any) -> Any:
        origin = source(params)
        return (policy(params, *contexts) if origin is None else origin).sample(key, (draws,))

    y = jax.jit(sampled)(key, params)
    index = space.index(y).reshape(-1, outcomes, *table.log_policy.shape[1:])

    def drawn(key: Any, params: Any) -> Any:
        return draw(key, policy(params, *contexts), source(params), declared, outcomes, contexts)

    descend = lambda params, y, c: policy_gradient(policy, params, y, c, *contexts)
    seconds, work = _cost(drawn, descend, declared, params, estimators, key)
    measured = {
        label: listed_.measurement(table, label, e, index, slopes[label], seconds[label], work)
        for label, e in estimators.items()
    }
    return compare_gradients(
        measured, names=component_names(params, "params"), source=listed_.source(len(space)),
        level=level,
    )  # fmt: skip


def _listed(
    policy: Any, params: Any, target: Target, estimators: Mapping[str, Estimator], space: Space,
    contexts: tuple[Any, ...], source: Callable[[Any], Any],
) -> tuple[listed_.Listed, dict[str, Any]]:  # fmt: skip
    """Everything about every outcome, and the slopes of each estimator's loss."""
    log_policy = space.log_prob(policy(params, *contexts))
    log_density = jax.jit(lambda: space.log_density(target, *contexts))()
    origin = source(params)
    log_proposal = None if origin is None else space.log_prob(origin)

    def masked(params: Any) -> Any:
        log_prob = space.log_prob(policy(params, *contexts), tolerance=float("inf"))
        return jnp.where(jnp.isfinite(log_prob), log_prob, 0.0)

    leaves = jax.tree.leaves(jax.jit(jax.jacrev(masked))(params))
    scores = [_host(x).reshape(*log_policy.shape, -1) for x in leaves]
    slopes = {}
    for label, e in estimators.items():
        if not listed_.has_exact(e, off_policy=origin is not None):
            slopes[label] = None
            continue
        loss = lambda x, e=e: jnp.mean(e.loss(x, log_density, log_proposal))
        slopes[label] = _host(jax.jit(jax.grad(loss))(log_policy))
    table = listed_.Listed(
        np.concatenate(scores, axis=-1), _host(log_policy), _host(log_density),
        None if log_proposal is None else _host(log_proposal),
    )  # fmt: skip
    return table, slopes


def _cost(
    drawn: Callable[..., Any], descend: Callable[..., Any], target: Target, params: Any,
    estimators: Mapping[str, Estimator], key: Any,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Seconds of each estimator's steps, and the FLOPs that all have in common."""
    draws = jax.jit(drawn).lower(key, params).compile()
    batch = draws(key, params)
    zeros = jnp.zeros(batch.log_policy.shape, dtype=batch.log_policy.dtype)
    steps = jax.jit(descend).lower(params, batch.outcomes, zeros).compile()
    states = {label: e.init() for label, e in estimators.items()}

    def step(label: str) -> None:
        batch = draws(key, params)
        update = checked_update(estimators[label], states[label], weigh(batch, target.name).weights)
        states[label] = update.state
        c = jnp.asarray(update.coefficients, dtype=zeros.dtype)
        jax.block_until_ready(ravel_pytree(steps(params, batch.outcomes, c))[0])

    return listed_.timed(estimators, step), flops(draws) + flops(steps)


def _host(x: Any) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)
