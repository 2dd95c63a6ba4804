"""A batch of outcomes and its log-probabilities: drawn in JAX, weighed in NumPy float64."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from infer_align import _supports
from infer_align._numerics import as_real
from infer_align.estimators import LogWeights
from infer_align.targets import Target, add_potential


class Batch(NamedTuple):
    """Outcomes with the four log-probabilities that are computed in JAX, (n, *contexts) each."""

    outcomes: Any
    log_policy: Any
    log_proposal: Any
    log_prior: Any
    log_potential: Any


class Weighed(NamedTuple):
    """A batch's log-probabilities in NumPy float64."""

    weights: LogWeights
    log_prior: np.ndarray
    log_potential: np.ndarray


def draw(
    key: jax.Array,
    policy: Any,
    proposal: Any,
    target: Target,
    n: int,
    contexts: tuple[Any, ...],
) -> Batch:
    """Draw n outcomes from the proposal (None: the policy) and score them; safe under ``jit``."""
    source = policy if proposal is None else proposal
    y = jax.lax.stop_gradient(source.sample(key, (n,)))
    log_prior = _supports.log_prob(target.given(*contexts), y)
    log_policy = policy.log_prob(y) if proposal is None else _supports.log_prob(policy, y)
    log_proposal = None if proposal is None else proposal.log_prob(y)
    log_potential = target.log_potential(y, *contexts)
    batch = Batch(y, log_policy, log_proposal, log_prior, log_potential)
    _check_shapes(batch, n, target.name)
    return batch


def of_data(policy: Any, outcomes: Any, n: int, name: str) -> Batch:
    """Samples of the target, scored by the policy: all else known of them is that P/q is 1."""
    log_policy = _supports.log_prob(policy, outcomes)
    nothing = jax.numpy.zeros_like(log_policy)
    batch = Batch(outcomes, log_policy, nothing, nothing, nothing)
    _check_shapes(batch, n, name)
    return batch


def weigh(batch: Batch, name: str) -> Weighed:
    """Log-probabilities as NumPy float64: nothing is subtracted in float32."""
    policy, prior, potential = map(_host, (batch.log_policy, batch.log_prior, batch.log_potential))
    shape = policy.shape[1:]
    weights = LogWeights(
        policy=policy,
        target=add_potential(prior, potential, name),
        proposal=None if batch.log_proposal is None else _host(batch.log_proposal),
        context=np.arange(math.prod(shape)).reshape(shape),
    )
    return Weighed(weights, prior, potential)


def _host(array: Any) -> np.ndarray:
    return np.asarray(as_real(array, "a log-probability or potential"), dtype=np.float64)


def _check_shapes(batch: Batch, n: int, name: str) -> None:
    shape = tuple(batch.log_policy.shape)
    scored = {
        "the prior's log_prob": batch.log_prior,
        "the log-potential": batch.log_potential,
        "the proposal's log_prob": batch.log_proposal,
    }
    shapes = {what: tuple(x.shape) for what, x in scored.items() if x is not None}
    if shape[:1] != (n,) or set(shapes.values()) != {shape}:
        raise ValueError(
            f"for {n} outcomes of {name!r} the policy's log_prob has shape {shape}, and "
            + ", ".join(f"{what} {s}" for what, s in shapes.items())
            + "; all must be (n, *contexts), one number an outcome: declare token axes with "
            ".to_event(1), and give policy and target the same contexts"
        )
