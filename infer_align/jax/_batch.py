"""A batch of outcomes and its log-probabilities: drawn in JAX, weighed in NumPy float64."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from infer_align._numerics import Array, log_ratio, logmeanexp
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
    log_policy, log_prior = policy.log_prob(y), target.given(*contexts).log_prob(y)
    log_proposal = None if proposal is None else proposal.log_prob(y)
    log_potential = target.log_potential(y, *contexts)
    batch = Batch(y, log_policy, log_proposal, log_prior, log_potential)
    _check_shapes(batch, n, target.name)
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


def metrics(weighed: Weighed) -> dict[str, float]:
    """Estimates from one batch, averaged over contexts."""
    weights, accepted = weighed.weights, weighed.weights.target > -math.inf
    v, log_w = weights.importance, weights.log_weight
    log_z = logmeanexp(log_w)
    some = log_z > -math.inf
    total = np.where(some, log_z + math.log(len(log_w)), 0.0)
    share = np.exp(log_w - total)  # self-normalised P/q
    d = log_ratio(weights.policy, weights.target)
    kept = np.where(accepted, v, 0.0)
    mass = kept.sum(axis=0)
    reward = (kept * np.where(accepted, weighed.log_potential, 0.0)).sum(axis=0)
    means = {
        "reward": np.where(mass > 0, reward / np.where(mass > 0, mass, 1.0), math.nan),
        "acceptance": accepted.mean(axis=0),
        "kl_prior": _mean(v, log_ratio(weights.policy, weighed.log_prior)),
        # Rejected outcomes make KL(π‖p) infinite; without any accepted one log Z is -inf, too.
        "reverse_kl": _mean(v, d) + np.where(some, log_z, 0.0),
        "forward_kl": np.where(some, _sum(share, -d) - np.where(some, log_z, 0.0), math.nan),
        "log_z": log_z,
        "ess": np.where(some, 1 / np.maximum((share**2).sum(axis=0), 1e-300) / len(log_w), 0.0),
    }
    return {name: float(np.mean(value)) for name, value in means.items()}


def _sum(weight: Array, value: Array) -> Array:
    """Σ weight · value over outcomes, with 0 · inf = 0."""
    return np.sum(np.where(weight > 0, weight, 0.0) * np.where(weight > 0, value, 0.0), axis=0)


def _mean(weight: Array, value: Array) -> Array:
    return _sum(weight, value) / len(weight)


def _host(array: Any) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


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
