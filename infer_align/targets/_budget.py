"""Tilts by a KL budget: the temperature is solved, not given."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_array_api_obj

from infer_align._arguments import function, instance, real
from infer_align._numerics import as_real, concrete, own
from infer_align.divergences import reverse_kl
from infer_align.targets._combinators import tilt
from infer_align.targets._dual import Points, tilted
from infer_align.targets._moment_fit import (
    ESS_MIN,
    Evaluated,
    bias_notes,
    clustered,
    notes_on,
    selection,
    unit_worth,
    worth_of,
)
from infer_align.targets._moments import as_points, flat
from infer_align.targets._target import TAKES, LogPotential, Target
from infer_align.targets._weighted import WeightedSample


class Budget(NamedTuple):
    """A tilt of a given KL to its base, and how well it is known."""

    target: Target
    """P = base·exp(reward/beta)."""
    beta: float
    """The temperature, in units of the reward."""
    beta_se: float
    """Its standard error; 0 of an exact solution."""
    kl: float
    """KL(p‖base) on the sample, the mean over contexts: the budget, in nats."""
    kl_se: float
    """Standard error of the tilt's true KL about the budget."""
    reward: float
    """E_p[reward], the most that the budget buys."""
    ess: np.ndarray
    """Effective sample size of the tilt, shape (*contexts); inf of an exact solution."""
    ess_pooled: float
    """The same of the average over contexts; of dependent draws, what their errors are worth."""
    reliable: bool
    notes: tuple[str, ...]


def kl_budget(
    base: Any,
    reward: LogPotential,
    kl: float | int,
    sample: WeightedSample,
    *contexts: Any,
    context_weights: Sequence[float] | np.ndarray | None = None,
    ess_min: float | int = ESS_MIN,
) -> Budget:
    r"""The tilt whose KL to its base is a budget: the most reward that a KL buys.

    .. math:: P = \mathrm{base}\, e^{r/β}, \qquad
              \sum_x a_x KL(p_x‖\mathrm{base}_x) = \sum_x a_x [θΛ_x'(θ) - Λ_x(θ)] = Δ, \quad θ = 1/β

    with :math:`Λ_x(θ) = \log E_{\mathrm{base}}[e^{θr}]` on the sample; the left side rises with θ.
    Its exact counterparts are `exact.kl_budget` and `exact.tilts.beta_for_kl`.

    Parameters
    ----------
    base : Distribution, callable or Target
        What is tilted.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``, finite.
    kl : float
        Δ, in nats, > 0: the mean over contexts, which share beta.
    sample : WeightedSample
        Of the base, by any method.
    *contexts
        Of the sample.
    context_weights : array, shape (*contexts), optional
        a, up to a constant. None: all equal.
    ess_min : float
        Effective draws of the tilt below which the result is not called reliable.

    Returns
    -------
    Budget
        Standard errors by the delta method, normalisation included.

    Raises
    ------
    ValueError
        If the budget is not positive, or is not below what the sample can reach, the KL of its
        highest rewards alone, −log P(max); if the sample is empty, or its rewards are all one.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np, numpyro.distributions as dist
    >>> from infer_align import WeightedSample
    >>> from infer_align.targets import kl_budget
    >>> prior = dist.Categorical(jnp.array([0.5, 0.3, 0.2]))
    >>> y = jnp.array([0] * 500 + [1] * 300 + [2] * 200)
    >>> sample = WeightedSample(y, np.zeros(1000), np.zeros(1000))
    >>> budget = kl_budget(prior, lambda y: 1.0 * y, 0.1, sample)
    >>> round(budget.beta, 4), budget.reliable  # exact.tilts.beta_for_kl: 1.8298
    (1.8298, True)
    """
    instance("sample", sample, WeightedSample, "samplers.importance(source, n)")
    log_weights = np.asarray(sample.log_weights, dtype=np.float64)
    labels = None if sample.cluster is None else flat(np.asarray(sample.cluster))
    points = reward_points(
        base, reward, sample.outcomes, contexts, log_weights, context_weights, "accepted draws"
    )
    theta = inverse_temperature(points, kl, "accepted draws")
    terms, reward_mean, variance = _state(points, theta)
    log_mass, _ = tilted(points, np.array([theta]))
    p, w = np.exp(log_mass), np.exp(points.log_mass)
    values = points.features[..., 0]  # less their mean under the base
    rise = p * (values - reward_mean)  # influence of Λ'(θ); that of Λ(θ) is p − w
    influence = np.stack([theta * rise - (p - w), rise], axis=-1)
    influence = influence * points.context_mass[:, None]
    covariance, units = clustered(influence, labels)
    spread = float(points.context_mass @ variance)
    slope = theta * spread
    kind = unit_worth(log_mass, points.features, -influence[..., :1] / slope, labels)
    longer = selection(influence, labels, kind, real("ess_min", ess_min))
    se = math.sqrt(float(covariance[0, 0])) * float(longer[0])
    ess = 1 / (p**2).sum(axis=0)
    pooled = 1 / float((points.context_mass**2 / ess).sum())
    if labels is not None:  # as of a moment: by the error of the tilt's mean reward
        pooled = min(pooled, worth_of(np.array([spread]), covariance[1:, 1]))
    notes = notes_on(kind, pooled, units, real("ess_min", ess_min), sample.total_variation)
    notes += bias_notes(influence[..., 1:], p, np.diag(covariance)[1:])
    return Budget(
        tilt(base, reward, 1 / theta), 1 / theta, se / slope / theta**2,
        float(points.context_mass @ terms), se, _reward(points, reward_mean),
        ess.reshape(log_weights.shape[1:]), pooled, not notes, tuple(notes),
    )  # fmt: skip


def exact_budget(
    base: Any,
    reward: LogPotential,
    kl: float | int,
    outcomes: Any,
    contexts: tuple[Any, ...],
    log_density: np.ndarray,
    context_weights: Any,
) -> Budget:
    """The budget on all outcomes of a base, given its log-density: what `exact` builds on."""
    points = reward_points(
        base, reward, outcomes, contexts, log_density, context_weights, "outcomes"
    )
    theta = inverse_temperature(points, kl, "outcomes")
    spent, mean, _ = _state(points, theta)
    return Budget(
        tilt(base, reward, 1 / theta), 1 / theta, 0.0, float(points.context_mass @ spent), 0.0,
        _reward(points, mean), np.full(log_density.shape[1:], math.inf), math.inf,
        reliable=True, notes=(),
    )  # fmt: skip


def reward_points(
    base: Any,
    reward: LogPotential,
    outcomes: Any,
    contexts: tuple[Any, ...],
    log_weights: np.ndarray,
    context_weights: Any,
    what: str,
) -> Points:
    """Rewards of outcomes beside the base's masses."""
    name = base.name if isinstance(base, Target) else "kl_budget"
    function("reward", reward, TAKES)
    values = as_real(reward(own(outcomes), *contexts), "the reward")
    known = concrete(values) if is_array_api_obj(values) else np.asarray(values)
    if known is None:
        raise ValueError("a KL budget is solved in NumPy, outside jax.jit and other transforms")
    if known.shape != log_weights.shape:
        raise ValueError(
            f"the reward has shape {tuple(known.shape)} and the sample's weights "
            f"{log_weights.shape}; it must be (n, *contexts), one number an outcome"
        )
    weights = flat(log_weights)
    values = np.where(weights > -math.inf, flat(known.astype(np.float64)), 0.0)
    if not np.isfinite(values).all():
        raise ValueError(
            "the reward is not finite on accepted outcomes; put a hard constraint into the base: "
            "condition(base, accepts)"
        )
    sampled = Evaluated(["reward"], np.zeros(1), values[..., None], weights, log_weights.shape[1:])
    return as_points(name, sampled, context_weights, what)


def _reward(points: Points, means: np.ndarray) -> float:
    """Mean reward over contexts, from the means without their offsets."""
    return float(points.context_mass @ means + points.mean_offset[0])


def _state(points: Points, theta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL, mean and variance of the reward under the tilt, (C,) each."""
    log_mass, _ = tilted(points, np.array([theta]))
    p, values = np.exp(log_mass), points.features[..., 0]
    mean = (p * values).sum(axis=0)
    spent = reverse_kl(log_mass, points.log_mass)
    return np.asarray(spent), mean, (p * (values - mean) ** 2).sum(axis=0)


def inverse_temperature(points: Points, kl: float | int, what: str) -> float:
    """θ of a budget, by bisection between what is too little and too much."""
    if not 0 < real("a KL budget", kl, need="a finite number of nats > 0") < math.inf:
        raise ValueError(
            f"a KL budget is a finite number of nats > 0, got {kl}; at 0 the tilt is the base"
        )
    values = points.features[..., 0]
    kept = points.log_mass > -math.inf
    highest = np.where(kept, values, -math.inf).max(axis=0)
    lowest = np.where(kept, values, math.inf).min(axis=0)
    if (highest == lowest).all():
        raise ValueError(
            f"a KL budget of {kl:.6g} has nothing to buy: in no context does the reward vary among "
            f"the {what}, so every tilt is the base, of KL 0; draw more, or see that the reward "
            "tells outcomes apart"
        )
    most = _reach(points)
    if kl >= most - 1e-12:
        raise ValueError(
            f"a KL budget of {kl:.6g} is out of reach: the highest reward alone, among the {what}, "
            f"costs -log P(max) = {most:.6g} nats on average; lower the budget, draw more, or "
            "condition on the highest reward"
        )
    spread = float(highest.max() - lowest.min())
    spent = lambda theta: float(points.context_mass @ _state(points, theta)[0])
    return _rising_root(spent, kl, 1 / spread)


def _reach(points: Points) -> float:
    values = np.where(points.log_mass > -math.inf, points.features[..., 0], -math.inf)
    top = values == values.max(axis=0)
    share = np.where(top, np.exp(points.log_mass), 0.0).sum(axis=0)
    return float(points.context_mass @ -np.log(share))


def _rising_root(rising: Callable[[float], float], value: float, start: float) -> float:
    """Where a function that rises from 0 meets a value, to rounding, by bisection."""
    high = start
    while rising(high) < value:
        high *= 2
    low = high / 2
    while rising(low) > value:
        low /= 2
    high = 2 * low
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return high
