r"""Fit a policy to a target: a generator of steps, on optax.

.. math:: θ ← θ - \mathrm{optax}\Big( ∇_θ \sum_{i,x} c_{ix} \log π_θ(y_{ix} | x) \Big)

A step draws outcomes and scores them (``jit``), turns their log-probabilities into coefficients c
(NumPy float64, checked by value), and descends (``jit``). The caller owns the loop, leaves it
when it likes and logs what it likes.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from infer_align import _supports
from infer_align._arguments import count, instance
from infer_align.diagnostics import batch_metrics
from infer_align.diagnostics._batch import never_moved
from infer_align.estimators import Estimator, LogWeights, checked_update
from infer_align.jax._batch import Batch, draw, of_data, weigh
from infer_align.jax._checks import (
    check_context_arguments,
    check_key,
    check_params,
    check_proposal,
    optimizer_or_adam,
)
from infer_align.jax._support import refuse_moving_support
from infer_align.jax.numpyro import Program, ProgramPrior
from infer_align.jax.numpyro import target as as_target
from infer_align.jax.sources import Mixture
from infer_align.targets import Empirical, Target, check_provides

__all__ = ["FitState", "Step", "fit", "policy_gradient"]

Policy = Callable[..., Any]


class FitState(NamedTuple):
    """All that a fit needs, beside the parameters and the key, to go on from here."""

    index: int
    optimizer: Any
    estimator: dict[str, Any]


class Step(NamedTuple):
    """One optimiser step: ``params`` and ``state`` after it, the rest about the batch before it.

    ``outcomes`` and ``weights`` (NumPy float64) are the batch. ``metrics`` are numbers:
    ``log_potential`` (of a tilt reward/β), ``acceptance``, ``kl_prior``, ``reverse_kl``,
    ``forward_kl``, ``log_z`` and ``ess``, as `infer_align.diagnostics.batch_metrics` gives them;
    ``grad_norm``, and ``skipped`` (1 where all coefficients were zero and no step was taken). A fit
    to samples has ``cross_entropy`` (mean −log π of the batch, nats) in place of the first seven.
    """

    index: int
    params: Any
    outcomes: Any
    weights: LogWeights
    metrics: dict[str, float]
    state: FitState


def fit(
    key: jax.Array,
    policy: Policy,
    params: Any,
    target: Target | Program,
    estimator: Estimator,
    *,
    n: int = 64,
    steps: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    contexts: tuple[Any, ...] = (),
    proposal: Any = None,
    resume: FitState | None = None,
) -> Iterator[Step]:
    """Fit a policy to a target with an estimator's gradient, step by step.

    Parameters
    ----------
    key : PRNG key
        Step i draws with ``fold_in(key, i)``: the same key gives the same run, bit for bit.
    policy : callable
        ``(params, *contexts) -> Distribution`` with batch shape (*contexts).
    params : pytree of arrays
        Initial parameters. They are not changed; each step has its own.
    target : NumPyro program or Target
    estimator : Estimator
        One that requires samples (``maximum_likelihood``) draws its batch from the target: from
        ``demonstrations``, or a ``teacher``.
    n : int
        Outcomes drawn per context and step.
    steps : int
        Optimiser steps in all, counted from 0 also after a resume.
    optimizer : optax.GradientTransformation, optional
        Default ``optax.adam(1e-2)``. Clipping and schedules are optax's.
    contexts : tuple of arrays
        Arguments of the policy and of the target, with leading axes (*contexts).
    proposal : Distribution, or callable like the policy, optional
        Outcomes are drawn from it in place of the policy, and importance-weighted.
    resume : FitState, optional
        ``step.state`` of an earlier fit; pass ``step.params`` and the same key with it.

    Yields
    ------
    Step

    Requirements
    ------------
    Policy and target are JAX code. The proposal is positive wherever the policy or the target is.
    The bounds of the policy's support do not move with its parameters (``Uniform(0, t)``): the
    gradient is a score function, which is wrong there.

    Raises
    ------
    ValueError
        For arguments that cannot be right, a policy whose support moves, a target that does not
        provide what the estimator requires, log-weights that the estimator refuses, and for
        coefficients or gradients that are not finite. The last step yielded remains good.

    Warns
    -----
    UserWarning
        At the end, if every step was skipped.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import numpyro, numpyro.distributions as dist
    >>> from infer_align import divergences, f_dpg
    >>> from infer_align.jax import fit, tabular
    >>> def program():
    ...     y = numpyro.sample("y", dist.Categorical(jnp.array([0.6, 0.3, 0.1])))
    ...     numpyro.factor("reward", 1.0 * y)
    >>> run = fit(jax.random.key(0), tabular, jnp.zeros(3), program,
    ...           f_dpg(divergences.jensen_shannon), steps=100, optimizer=optax.adam(0.1))
    >>> *_, last = run
    >>> p = tabular(last.params).probs                     # the target is .279, .379, .343
    >>> [round(float(x), 1) for x in p]
    [0.3, 0.4, 0.3]
    """
    check_key(key)
    n, steps, contexts = count("n", n), count("steps", steps), check_context_arguments(contexts)
    instance("estimator", estimator, Estimator, "f_dpg(divergences.jensen_shannon)")
    check_proposal(proposal)
    if n < estimator.min_outcomes:
        raise ValueError(
            f"{estimator.name} needs at least {estimator.min_outcomes} outcomes per context, "
            f"got n={n}; raise n"
        )
    if isinstance(policy, dist.Distribution | ProgramPrior) or not callable(policy):
        raise TypeError(
            f"the policy is a {type(policy).__name__}, which has no parameters to fit; pass a "
            "function from parameters to a distribution, such as infer_align.jax.tabular"
        )
    declared = as_target(target)
    check_provides(declared, estimator.requires, estimator.name)
    from_target = "samples" in estimator.requires
    if from_target and proposal is not None:
        raise ValueError(
            f"{estimator.name} draws from the target {declared.name!r} and has no use for a "
            "proposal; leave proposal out, or use an off-policy objective such as f_dpg()"
        )
    run = _Fit(
        policy=policy,
        target=declared,
        estimator=estimator,
        optimizer=optimizer_or_adam(optimizer),
        contexts=contexts,
        proposal=proposal,
        n=n,
        from_target=from_target,
    )
    if from_target and isinstance(declared.prior, Empirical):
        declared.prior.check_contexts(tuple(policy(params, *contexts).batch_shape))
    _check_support(policy, params, contexts)  # before anything is drawn
    fresh = FitState(0, run.optimizer.init(params), estimator.init())
    if resume is not None:
        _check_resume(resume, fresh)
    return run.steps(key, params, fresh if resume is None else resume, steps)


def _check_resume(resume: FitState, fresh: FitState) -> None:
    instance("resume", resume, FitState, "the state of a Step")
    for what, new, old in zip(fresh._fields, fresh, resume, strict=True):
        if jax.tree.structure(new) != jax.tree.structure(old):
            raise ValueError(
                f"the {what} state to resume from was made by another {what}; resume with "
                "the arguments of the earlier fit"
            )


def policy_gradient(
    policy: Policy, params: Any, outcomes: Any, coefficients: Any, *contexts: Any
) -> Any:
    """Gradient Σ c ∇log π in the parameters: the one line behind every step of `fit`.

    Parameters
    ----------
    policy : callable
        ``(params, *contexts) -> Distribution``.
    params : pytree of arrays
    outcomes : array or dict, shape (n, *contexts, ...)
    coefficients : array, shape (n, *contexts)
        An estimator's; they carry no gradient.
    *contexts : array

    Returns
    -------
    pytree like params

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax import policy_gradient, tabular
    >>> c = jnp.array([0.5, -0.5])
    >>> policy_gradient(tabular, jnp.zeros(2), jnp.array([0, 1]), c).tolist()
    [0.5, -0.5]
    """
    check_params(params)

    def surrogate(params: Any) -> jax.Array:
        distribution = policy(params, *contexts)
        log_prob = _regular(_supports.log_prob(distribution, outcomes), distribution, outcomes)
        c = jnp.asarray(coefficients, dtype=log_prob.dtype)
        # 0 · (−inf) is NaN: outcomes that the policy never draws have no gradient.
        return jnp.sum(c * jnp.where(jnp.isfinite(log_prob), log_prob, 0.0))

    return jax.grad(surrogate)(params)


def _check_support(policy: Policy, params: Any, contexts: tuple[Any, ...]) -> None:
    """Refuse parameters that no gradient moves, and a support that moves with them."""
    check_params(params)
    support = lambda params: _regular(jnp.zeros(()), policy(params, *contexts))
    jax.eval_shape(jax.grad(support), params)


def _regular(log_prob: jax.Array, policy: Any, outcomes: Any = None) -> jax.Array:
    """The policy's log-prob, whose derivative raises if its support moves with the parameters."""
    for name, distribution in _parts(policy, outcomes):
        what = f"the policy{name}, whose gradient is the score function,"
        log_prob = refuse_moving_support(log_prob, distribution, what)
    return log_prob


def _parts(policy: Any, outcomes: Any) -> Iterator[tuple[str, Any]]:
    """The NumPyro distributions of a policy, each with the site that it is at."""
    if isinstance(policy, Mixture):
        for component in policy.components:
            yield from _parts(component, outcomes)
    elif isinstance(policy, ProgramPrior) and outcomes is not None:
        one = (0,) * (1 + len(policy.batch_shape))
        values = jax.tree.map(lambda y: jnp.asarray(y)[one], outcomes)
        for site, distribution in policy.latent(values).items():
            yield f" at site {site!r}", distribution
    elif isinstance(policy, dist.Distribution):
        yield "", policy


@dataclass(frozen=True)
class _Fit:
    """What stays the same from step to step."""

    policy: Policy
    target: Target
    estimator: Estimator
    optimizer: optax.GradientTransformation
    contexts: tuple[Any, ...]
    proposal: Any
    n: int
    from_target: bool

    def steps(self, key: jax.Array, params: Any, state: FitState, steps: int) -> Iterator[Step]:
        drawn, descended = jax.jit(self._draw), jax.jit(self._descend)
        moved, accepted = False, 0.0
        scored, first = jax.jit(self._score_data), state.index
        for index in range(state.index, steps):
            step_key = jax.random.fold_in(key, index)
            if self.from_target:
                batch = scored(params, self._data(step_key, params), self.contexts)
            else:
                batch = drawn(step_key, params, self.contexts)
            weighed = weigh(batch, self.target.name)
            coefficients, estimator_state, info = self._coefficients(
                weighed.weights, state.estimator
            )
            if self.from_target:
                numbers = {"cross_entropy": -float(weighed.weights.policy.mean())} | info
            else:
                numbers = batch_metrics(*weighed) | info
            optimizer_state, norm = state.optimizer, 0.0
            skipped = not np.any(coefficients)
            moved, accepted = moved or not skipped, accepted + numbers.get("acceptance", 1.0)
            if not skipped:
                params, optimizer_state, norm = descended(
                    params, optimizer_state, batch.outcomes, coefficients, self.contexts
                )
                self._check_norm(norm, index)
            numbers |= {"grad_norm": float(norm), "skipped": float(skipped)}
            state = FitState(index + 1, optimizer_state, estimator_state)
            yield Step(index, params, batch.outcomes, weighed.weights, numbers, state)
        if not moved and (done := steps - first) > 0:
            text = never_moved(self.target.name, done, accepted / done)
            warnings.warn(text, UserWarning, stacklevel=2)

    def _draw(self, key: jax.Array, params: Any, contexts: tuple[Any, ...]) -> Batch:
        policy = self.policy(params, *contexts)
        proposal = self.proposal
        if proposal is not None and not hasattr(proposal, "log_prob"):
            proposal = proposal(params, *contexts)
        return draw(key, policy, proposal, self.target, self.n, contexts)

    def _data(self, key: jax.Array, params: Any) -> Any:
        """Samples of the target."""
        law = self.target.prior
        if not isinstance(law, Empirical):
            return self.target.given(*self.contexts).sample(key, (self.n,))
        axes = len(self.policy(params, *self.contexts).batch_shape)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        return jax.tree.map(jnp.asarray, law.draw(self.n, rng, context_axes=axes))

    def _score_data(self, params: Any, outcomes: Any, contexts: tuple[Any, ...]) -> Batch:
        return of_data(self.policy(params, *contexts), outcomes, self.n, self.target.name)

    def _coefficients(
        self, weights: LogWeights, state: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
        update = checked_update(self.estimator, state, weights)
        reported = ("undefined", "coefficient_bias")  # log Z is the batch's own in every run
        info = {name: float(update.info[name]) for name in reported if name in update.info}
        return update.coefficients, update.state, info

    def _descend(
        self,
        params: Any,
        state: Any,
        outcomes: Any,
        coefficients: jax.Array,
        contexts: tuple[Any, ...],
    ) -> tuple[Any, Any, jax.Array]:
        gradient = policy_gradient(self.policy, params, outcomes, coefficients, *contexts)
        updates, state = self.optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    def _check_norm(self, norm: jax.Array, index: int) -> None:
        if not math.isfinite(float(norm)):
            raise ValueError(
                f"the gradient at step {index} is not finite, and no step was taken; see that "
                "the policy's log_prob is differentiable at every outcome it can draw, or lower "
                "the learning rate"
            )
