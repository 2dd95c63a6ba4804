r"""Optima of f-divergence-regularised reward, on the levels of a `RewardLaw`.

.. math:: \max_π\; E_π[r] - β\, D_f(π‖\mathrm{prior}), \qquad
          π/\mathrm{prior} = (f')^{-1}((r - ν)/β)_+,

with ν the constant that normalises. Reverse KL gives the tilt, Pearson χ² water-filling (what is
too low is cut off), ``mixed_chi2`` the Lambert form of χPO, total variation bang-bang: mass moves
from the lowest levels to the highest. Any generator of `infer_align.divergences` will do: f′
is inverted numerically. A dual bound comes with every optimum, and proves it.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import instance, real
from infer_align.divergences import FDivergence
from infer_align.exact._law import RewardLaw, check_beta, check_law
from infer_align.exact._roots import root

__all__ = ["Optimum", "optimum", "optimum_for_budget"]

SMALLEST = -600.0
"""Least log β that is tried."""


class Optimum(NamedTuple):
    """A regularised optimum; totals over the sequence."""

    log_policy: Float[np.ndarray, " levels"]
    """Log-masses of the levels."""
    reward: float
    """E_π[r]."""
    divergence: float
    """D_f(π‖prior)."""
    kl: float
    """KL(π‖prior), to put all regularisers on one axis."""
    beta: float
    """Temperature: the price of a unit of divergence."""
    dual: float
    """Upper bound on E[r] − beta·D_f of *any* policy; the optimum attains it."""


def optimum(law: RewardLaw, divergence: FDivergence, beta: float | int) -> Optimum:
    """The policy that maximises E[r] − beta·D_f(π‖prior).

    Parameters
    ----------
    law : RewardLaw
    divergence : FDivergence
        D_f, with its first argument the policy.
    beta : float
        Temperature, > 0, in units of the reward.

    Returns
    -------
    Optimum

    Raises
    ------
    ValueError
        If beta is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import divergences
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.regularized import optimum
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> np.exp(optimum(law, divergences.pearson_chi2, 0.4).log_policy).round(4).tolist()
    [0.0625, 0.4125, 0.525]
    """
    _check(law, divergence)
    law, beta = law.known(), float(check_beta(beta))
    if _piecewise_linear(divergence):
        moved = -law.above(-1) > beta * _price(divergence)
        return _summary(law, divergence, beta, _moved_up(law, np.where(moved, 1.0, 0.0)))
    return _summary(law, divergence, beta, law.log_prob + _log_ratio(law, divergence, beta))


def optimum_for_budget(law: RewardLaw, divergence: FDivergence, budget: float | int) -> Optimum:
    r"""The policy of largest reward within D_f(π‖prior) <= budget.

    .. math:: R_f(Δ) = \min_{β,ν}\; ν + βΔ + β\, E\, f^*((r - ν)/β)

    Parameters
    ----------
    law : RewardLaw
    divergence : FDivergence
        D_f, with its first argument the policy.
    budget : float
        Δ >= 0, in the divergence's own units, over the sequence.

    Returns
    -------
    Optimum
        Its ``beta`` is the slope dR/dΔ: inf for a budget of 0, and 0 where the highest level alone
        is within the budget.

    Raises
    ------
    ValueError
        If the budget is negative or not a number, or so large that beta is below the floats.

    Examples
    --------
    >>> from infer_align import divergences
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.regularized import optimum_for_budget
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> best = optimum_for_budget(law, divergences.total_variation, 0.1)
    >>> round(best.reward, 6), best.beta
    (0.9, 2.0)
    """
    _check(law, divergence)
    if not real("a budget", budget, need="a divergence >= 0") >= 0:
        raise ValueError(f"a budget is a divergence >= 0, got {budget}")
    law = law.known()
    top = law.tilt(0.0)
    most = float(divergence(top, law.log_prob))
    if budget >= most:
        return _summary(law, divergence, 0.0, top)
    if budget == 0:
        return _summary(law, divergence, math.inf, law.log_prob)
    if _piecewise_linear(divergence):
        return _spend(law, divergence, float(budget))
    spent = lambda log_beta: float(
        divergence(law.log_prob + _log_ratio(law, divergence, math.exp(log_beta)), law.log_prob)
    )
    low = high = math.log(float(law.above(0)[-1]))
    step = 1.0
    while spent(low) < budget:
        low, step = low - step, 2 * step
        if low < SMALLEST:
            raise ValueError(
                f"a {divergence.name} of {budget:.6g} takes a beta below {math.exp(SMALLEST):.1g}, "
                f"beyond the floats: the highest level alone, a divergence of {most:.6g}, is then "
                "the optimum to rounding, law.tilt(0)"
            )
    step = 1.0
    while spent(high) > budget and high < -SMALLEST:
        high, step = high + step, 2 * step
    log_beta = root(lambda x: spent(x) - budget, low, high, absolute=1e-14)
    return optimum(law, divergence, math.exp(log_beta))


def _check(law: Any, divergence: Any) -> None:
    check_law(law)
    instance("divergence", divergence, FDivergence, "divergences.reverse_kl")


def _log_ratio(law: RewardLaw, divergence: FDivergence, beta: float) -> np.ndarray:
    """log π/prior of each level.

    The unknown is that of the highest level: there the slope f′ may come within rounding of its
    supremum, so that ν itself would not do.
    """
    gaps = -law.above(-1) / beta

    def ratios(top: float) -> np.ndarray:
        slope = float(divergence.f_prime(np.array(top)))
        return np.append(_inverse_slope(divergence, slope - gaps[:-1], top), top)

    excess = lambda top: float(np.logaddexp.reduce(law.log_prob + ratios(top)))
    most = -float(law.log_prob[-1])
    if len(law) == 1 or excess(most) <= 0:  # nothing is left for the others
        return ratios(most)
    if excess(0.0) >= 0:  # the prior, to rounding
        return ratios(0.0)
    return ratios(root(excess, 0.0, most, absolute=1e-17))


def _inverse_slope(divergence: FDivergence, slope: np.ndarray, top: float) -> np.ndarray:
    """log t <= top with f′(t) = slope, by bisection; −inf where the slope is below f′(0)."""
    lowest = float(divergence.f_prime(np.array(-math.inf)))
    high, low = np.full(len(slope), top), np.full(len(slope), top - 1.0)
    inside = slope > lowest
    with np.errstate(over="ignore"):
        for _ in range(40):
            above = inside & (divergence.f_prime(low) > slope)
            if not above.any():
                break
            high = np.where(above, low, high)
            low = np.where(above, top - 2 * (top - low), low)
        for _ in range(100):
            middle = (low + high) / 2
            below = divergence.f_prime(middle) < slope
            low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(inside, high, -math.inf)


def _piecewise_linear(divergence: FDivergence) -> bool:
    """Whether f′ takes one value on either side of 1, as total variation's does."""
    at = divergence.f_prime(np.array([-5.0, -1.0, 1.0, 5.0]))
    return bool(at[0] == at[1] and at[2] == at[3])


def _price(divergence: FDivergence) -> float:
    """What it costs to move a unit of mass from below the prior to above it."""
    return divergence.f_prime_at_inf - float(divergence.f_prime(np.array(-math.inf)))


def _moved_up(law: RewardLaw, share: np.ndarray) -> np.ndarray:
    """Log-masses after a share of every level's mass has moved to the highest."""
    with np.errstate(divide="ignore"):
        moved = np.logaddexp.reduce(law.log_prob[:-1] + np.log(share[:-1]), initial=-math.inf)
        out = law.log_prob + np.log1p(-share)
    out[-1] = np.logaddexp(law.log_prob[-1], moved)
    return out


def _spend(law: RewardLaw, divergence: FDivergence, budget: float) -> Optimum:
    """Move mass up from the lowest levels until the budget is spent."""
    price = _price(divergence)
    below = np.concatenate([[0.0], np.exp(np.logaddexp.accumulate(law.log_prob))[:-1]])
    left = np.maximum(budget / price - below, 0.0)
    mass = np.exp(law.log_prob)
    share = np.where(left >= mass, np.where(left > 0, 1.0, 0.0), left / np.maximum(mass, 1e-300))
    share[-1] = 0.0
    last = int(np.flatnonzero(share > 0)[-1])
    slope = float(law.above(last)[-1]) / price
    return _summary(law, divergence, slope, _moved_up(law, share))


def _summary(
    law: RewardLaw, divergence: FDivergence, beta: float, log_policy: np.ndarray
) -> Optimum:
    reward = float(law.expected_reward(log_policy))
    spent = float(divergence(log_policy, law.log_prob))
    return Optimum(
        log_policy, reward, spent, float(law.kl_to_prior(log_policy)), beta,
        _dual(law, divergence, beta, log_policy),
    )  # fmt: skip


def _dual(law: RewardLaw, divergence: FDivergence, beta: float, log_policy: np.ndarray) -> float:
    """ν + β E f*((r − ν)/β), with ν from the highest level: no policy has a larger objective."""
    if beta == 0:
        return float(law.rewards[-1])
    if math.isinf(beta):
        return float(law.expected_reward(law.log_prob))
    top = log_policy[-1:] - law.log_prob[-1:]
    slope = float(divergence.f_prime(top)[0])
    nu = float(law.rewards[-1]) - beta * slope
    s = slope + law.above(-1) / beta
    log_t = log_policy - law.log_prob
    # f*(s) = s t − f(t) where s = f′(t), and −f(0) below f′(0); f(t) is summed as a divergence.
    mass = np.exp(log_policy)
    linear = float(np.sum(np.where(log_t > -math.inf, mass * s, 0.0)))
    return nu + beta * (linear - float(divergence(log_policy, law.log_prob)))
