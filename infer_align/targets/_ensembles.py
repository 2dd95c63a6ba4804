"""Rewards made of several rewards."""

import math
from typing import Any

from infer_align._arguments import real
from infer_align._numerics import Array, namespace, own
from infer_align.targets._target import LogPotential


def mean_reward(*rewards: LogPotential) -> LogPotential:
    """The mean of several rewards.

    Coste et al. 2023 (arXiv 2310.02743), mean optimisation. Its tilt is the geometric mixture, with
    equal weights, of the tilts by each.

    Parameters
    ----------
    *rewards : callable
        ``(y, *contexts) -> (n, *contexts)`` each.

    Returns
    -------
    callable
        A reward, for `tilt`.

    Raises
    ------
    ValueError
        Without a reward.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.targets import mean_reward
    >>> mean_reward(lambda y: 1.0 * y, lambda y: 4.0 - y)(np.array([0, 1, 2]))
    array([2., 2., 2.])
    """
    _some(rewards)

    def mean(y: Any, *contexts: Any) -> Array:
        values = [reward(own(y), *contexts) for reward in rewards]
        xp = namespace(*values)
        return xp.mean(xp.stack(values), axis=0)

    return mean


def worst_case(*rewards: LogPotential) -> LogPotential:
    """The least of several rewards: conservative optimisation of an ensemble.

    Coste et al. 2023 (arXiv 2310.02743), WCO.

    Parameters
    ----------
    *rewards : callable
        ``(y, *contexts) -> (n, *contexts)`` each.

    Returns
    -------
    callable
        A reward, for `tilt`.

    Raises
    ------
    ValueError
        Without a reward.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import worst_case
    >>> worst_case(lambda y: 1.0 * y, lambda y: 2.0 - y)(np.array([0, 1, 2]))
    array([0., 1., 0.])
    """
    _some(rewards)

    def least(y: Any, *contexts: Any) -> Array:
        values = [reward(own(y), *contexts) for reward in rewards]
        xp = namespace(*values)
        return xp.min(xp.stack(values), axis=0)

    return least


def uncertainty_weighted(*rewards: LogPotential, weight: float | int) -> LogPotential:
    """Mean of several rewards less ``weight`` times their variance.

    Coste et al. 2023 (arXiv 2310.02743), UWO; the variance divides by their number.

    Parameters
    ----------
    *rewards : callable
        ``(y, *contexts) -> (n, *contexts)`` each.
    weight : float
        λ, finite, in units of 1/reward; below 0 it favours what the rewards disagree about.

    Returns
    -------
    callable
        A reward, for `tilt`; ``-inf`` where any of them is.

    Raises
    ------
    ValueError
        Without a reward, or for a weight that is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import uncertainty_weighted
    >>> uncertainty_weighted(lambda y: 1.0 * y, lambda y: 2.0 - y, weight=0.5)(np.array([0, 1, 2]))
    array([0.5, 1. , 0.5])
    """
    _some(rewards)
    if not math.isfinite(real("weight, of the variance,", weight, need="a finite number")):
        raise ValueError(
            f"the weight of the variance must be a finite number, got {weight}; for the least of "
            "the rewards take worst_case(...)"
        )

    def reward(y: Any, *contexts: Any) -> Array:
        values = [one(own(y), *contexts) for one in rewards]
        xp = namespace(*values)
        stacked = xp.stack(values)
        rejected = xp.any(stacked == -math.inf, axis=0)
        stacked = xp.where(rejected, 0.0, stacked)  # -inf less -inf, their spread, is NaN
        mean = xp.mean(stacked, axis=0)
        lowered = mean - weight * xp.mean((stacked - mean) ** 2, axis=0)
        return xp.where(rejected, -math.inf, lowered)

    return reward


def _some(rewards: tuple[LogPotential, ...]) -> None:
    if not rewards:
        raise ValueError("an ensemble needs at least one reward, got none")
