r"""Long sequences: rate functions, scaled cumulants, Rényi cross entropies, sharp tails.

For sequences of m independent letters with additive reward, everything per token follows from the
law of one letter, and for Markov models from the Perron root: a *family* of tilts in either case.
Laws of the reward per token concentrate exponentially fast,

.. math:: P_m(r/m ≈ x) = e^{-m I(x) + o(m)},

with I₀(x) = sup_θ θx − Λ(θ) for the prior, I_β(x) = I₀(x) − x/β + Λ(1/β) for the tilt, and
I₀(x) − δ above R(δ), infinite below, for best-of-n with n = exp(mδ): tilt and best-of-n share their
reward and their KL per token, not their large deviations (Yang et al. 2024, arXiv 2404.01730).
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from infer_align import _ties
from infer_align._arguments import array, count, number, real, scalar
from infer_align._numerics import as_real, check_defined, logsumexp, namespace
from infer_align.divergences import reverse_kl
from infer_align.exact._law import RewardLaw, check_law
from infer_align.exact.tilts import beta_for_kl, beta_for_reward, check_family, frontier

__all__ = [
    "BestOfNLimit",
    "bahadur_rao",
    "best_of_n_limit",
    "log_kl_exponent",
    "rate",
    "rate_of_best_of_n",
    "renyi_cross_entropy",
    "scaled_cumulant",
    "scaled_cumulant_of_best_of_n",
]

EPS = 2.0**-52
EULER = 0.57721566490153286061
ECHO = 0.1
"""Relative error of a tail from which on `bahadur_rao` warns."""
MOST = 50_000_000
"""Frequencies times letters that are looked at."""
FINE = 1e-4
"""A lattice of steps below this share of β is none, to 1e-9."""


def rate(family: Any, reward: float | int, *, beta: float | int = math.inf) -> float:
    r"""Rate function of the reward per token under a tilt, I_β(x).

    .. math:: I_β(x) = \sup_t\, tx - [Λ(1/β + t) - Λ(1/β)] = KL(φ_θ‖φ_β), \quad Λ'(θ) = x

    Parameters
    ----------
    family : RewardLaw of one letter, or chain rate
    reward : float
        x, per token.
    beta : float
        Temperature of the tilt; inf, the default, is the prior.

    Returns
    -------
    float
        In nats per token; inf outside the range of rewards.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.asymptotics import rate
    >>> letter = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> round(rate(letter, 1.0), 6), round(rate(letter, 2), 6)
    (0.069934, 1.609438)
    """
    check_family(family)
    family = family.known()
    low, high = family.reward_range
    reward = _ties.snapped(real("reward, per token,", reward), low, high)
    if not low <= reward <= high:
        return math.inf
    inside = low < reward < high
    if isinstance(family, RewardLaw) and inside:
        # As a divergence, which keeps the digits where the two laws are near.
        own = beta_for_reward(family, reward)
        return float(reverse_kl(family.tilt(own), family.tilt(beta)))
    if inside:
        theta = 1 / beta_for_reward(family, reward)
        at_prior = float(family.kl_of_tilt(theta))
    else:
        at_prior = family.kl_limits[0 if reward == low else 1]
    real("beta, a temperature,", beta)
    if beta == 0:
        return 0.0 if reward == high else math.inf
    if math.isinf(beta):
        return at_prior
    return max(at_prior - reward / beta + float(family.cumulants(1 / beta)[0]), 0.0)


def rate_of_best_of_n(family: Any, reward: float | int, kl: float | int) -> float:
    r"""Rate function of the reward per token under best-of-n, n = exp(m·kl).

    I₀(x) − δ for x >= R(δ), inf below: the best of many is never much worse than it should be.

    Parameters
    ----------
    family : RewardLaw of one letter, or chain rate
    reward : float
        x, per token.
    kl : float
        δ, per token.
    """
    check_family(family)
    family, reward = family.known(), real("reward, per token,", reward)
    scalar("kl, per token,", kl)
    if reward < float(frontier(family, kl).reward):
        return math.inf
    return max(rate(family, reward) - kl, 0.0)


def scaled_cumulant(family: Any, t: Any, *, beta: float | int = math.inf) -> Any:
    r"""lim (1/m) log E[exp(t r)] under a tilt: Λ(1/β + t) − Λ(1/β).

    For independent letters it is that at every m. With r = log q it is −t·H_{1+t}(φ_β‖q), a Rényi
    cross entropy (Yang et al. 2024).

    Parameters
    ----------
    family : RewardLaw of one letter, or chain rate
    t : float
        Any real number.
    beta : float
        Temperature of the tilt; inf is the prior, 0 the limit of the highest reward.
    """
    check_family(family)
    t, beta = scalar("t", t), scalar("beta, a temperature,", beta)
    if any(isinstance(x, float) and math.isnan(x) for x in (t, beta)):
        raise ValueError(f"t and beta, a temperature, must be numbers, got {t} and {beta}")
    if isinstance(beta, int | float) and beta == 0:
        return t * family.reward_range[1]
    theta = 0.0 if isinstance(beta, float) and math.isinf(beta) else 1 / beta
    return family.cumulants(theta + t)[0] - family.cumulants(theta)[0]


def scaled_cumulant_of_best_of_n(family: Any, t: float | int, kl: float | int) -> float:
    r"""lim (1/m) log E[exp(t r)] under best-of-n, n = exp(m·kl).

    It is tR(δ) up to t = 1/β(δ), then Λ(t) + δ.

    Parameters
    ----------
    family : RewardLaw of one letter, or chain rate
    t : float
        Any real number.
    kl : float
        δ, per token.
    """
    check_family(family)
    t, kl = number("t", t), real("kl, per token,", kl, need="a number of nats >= 0")
    point = frontier(family, kl)
    if t * float(point.beta) <= 1:
        return t * float(point.reward)
    return float(family.cumulants(t)[0]) + kl


def renyi_cross_entropy(log_p: Any, log_q: Any, order: Any) -> Any:
    r"""Rényi cross entropy of a law p to a law q.

    .. math:: H_α(p‖q) = \frac{1}{1-α} \log \sum p\, q^{α-1}

    Order 1 is −Σ p log q, order ∞ is −log max q and −∞ is −log min q over the support of p; it does
    not increase with the order. Thierrin, Alajaji and Linder 2022.

    Parameters
    ----------
    log_p, log_q : array, shape (k,)
        Log-probabilities; −inf is ordinary.
    order : float
        α, any real number, ±inf included.

    Returns
    -------
    float or 0-d array
        inf where p has mass that q has not, for orders up to 1.

    Examples
    --------
    >>> import math, numpy as np
    >>> from infer_align.exact.asymptotics import renyi_cross_entropy
    >>> p, q = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.3, 0.5])
    >>> [round(float(renyi_cross_entropy(p, q, a)), 6) for a in (0, 1, 2, math.inf)]
    [1.360977, 1.30454, 1.237874, 0.693147]
    """
    order = scalar("order", order)
    if isinstance(order, float) and math.isnan(order):
        raise ValueError("order must be a number, got nan")
    for what, law in (("log_p", log_p), ("log_q", log_q)):
        array(what, law, need="an array of log-probabilities")
        check_defined(as_real(law, what), what)
    if tuple(log_p.shape) != tuple(log_q.shape):
        raise ValueError(
            f"log_p has shape {tuple(log_p.shape)} and log_q {tuple(log_q.shape)}; give both over "
            "the same outcomes"
        )
    xp = namespace(log_p, log_q)
    inside = log_p > -math.inf
    if isinstance(order, int | float) and (order == 1 or math.isinf(order)):
        if order == 1:
            return -xp.sum(xp.exp(log_p) * xp.where(inside, log_q, 0.0))
        if order > 0:
            return -xp.max(xp.where(inside, log_q, -math.inf))
        return -xp.min(xp.where(inside, log_q, math.inf))
    missed = bool(xp.any(inside & (log_q == -math.inf)))
    if missed and order < 1:
        return math.inf
    kept = inside & (log_q > -math.inf)
    terms = xp.where(kept, log_p + (order - 1) * xp.where(kept, log_q, 0.0), -math.inf)
    return logsumexp(terms, axis=0) / (1 - order)


def bahadur_rao(law: RewardLaw, reward: float | int, length: int) -> float:
    r"""log P(Σ r >= m x) under the prior, by the sharp large-deviation estimate.

    .. math:: P ≈ \frac{e^{-m I_0(x)}}{θ\sqrt{2πm Λ''(θ)}}, \qquad Λ'(θ) = x;
              \quad \text{on a lattice of step } d: \frac1θ \to \frac{d}{1 - e^{-θd}}

    Bahadur and Rao 1960. On a lattice m·x is moved up to the next level.

    The relative error is of order 1/m once m tokens resolve the step of the lattice: where the
    tilted letter's characteristic function ψ has |ψ(ω)|^m small at all frequencies up to π/d but
    those about 0. Rewards 0, 1, 1.001 have a step of 0.001, but look like the lattice 0, 1 until m
    is about 10⁶: there the logarithm is off by up to ±0.8. Without a lattice (0, 1, √2) the error
    falls like 1/√m only, for the same reason. What these echoes contribute is estimated, and warned
    of beyond 10%. The exact tail is ``reward_law(probs, rewards, m).log_tail(m * x)``.

    Parameters
    ----------
    law : RewardLaw
        Of one letter; its ``step`` says whether the rewards lie on a lattice.
    reward : float
        x, per token, between the prior's mean and the greatest reward.
    length : int
        Number of tokens m.

    Raises
    ------
    ValueError
        If x is not between the mean and the greatest reward.

    Warns
    -----
    UserWarning
        If m tokens do not resolve the step of the rewards.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.asymptotics import bahadur_rao
    >>> letter, law = (reward_law([0.5, 0.3, 0.2], [0, 1, 2], m) for m in (1, 200))
    >>> round(bahadur_rao(letter, 1.0, 200), 4), round(float(law.log_tail(200)), 4)
    (-16.3598, -16.3867)
    """
    check_law(law)
    low, high = law.reward_range
    reward, length = real("reward, per token,", reward), count("length", length)
    mean = float(law.cumulants(0.0)[1])
    if not mean < reward < high:
        raise ValueError(
            f"the estimate holds for rewards between the mean {mean:.6g} and the greatest "
            f"{high:.6g}, got {reward}"
        )
    if law.step is not None:
        rounding = _ties.ULPS * EPS * max(abs(low), abs(high)) / law.step
        levels = math.ceil((reward - low) * length / law.step - max(1e-9, rounding * length))
        reward = low + levels * law.step / length
        if reward >= high:
            return length * float(law.log_prob[-1])
    theta = 1 / beta_for_reward(law, reward)
    variance = float(law.cumulants(theta)[2])
    if (echo := _echo(law, theta, variance, length)) > ECHO:
        warnings.warn(
            f"the tail of {length} tokens may be off by up to {echo:.0%} of itself: so few do not "
            "resolve the rewards' "
            f"{'differences' if law.step is None else f'step of {law.step:.3g}'}; take the exact "
            "tail, reward_law(probs, rewards, length).log_tail(length * reward)",
            stacklevel=2,
        )
    scale = 1 / theta if law.step is None else law.step / -math.expm1(-theta * law.step)
    return (
        -length * rate(law, reward)
        + math.log(scale)
        - 0.5 * math.log(2 * math.pi * length * variance)
    )


def _echo(law: RewardLaw, theta: float, variance: float, length: int) -> float:
    """The most that frequencies away from 0 contribute to the tail, relative to those about 0.

    The tail is the integral of ψ(ω)^m over its kernel, 1/(θ + iω) or that of the lattice. Beyond
    100 θ the kernel leaves less than 1% of any.
    """
    known = law.known()
    width = 1 / math.sqrt(length * variance)
    low, high = 5 * width, 100 * theta
    if law.step is not None:
        high = min(high, math.pi / law.step)
    if low >= high:
        return 0.0
    q, rewards = np.exp(known.tilt(1 / theta)), known.above(-1).astype(float)
    points = min(math.ceil((high - low) / (0.3 * width)), 1 + MOST // len(known))
    grid, total = np.linspace(low, high, points), 0.0
    for omega in np.array_split(grid, 1 + points * len(known) // 10**6):
        size = np.abs(np.exp(1j * np.multiply.outer(omega, rewards)) @ q)
        if law.step is None:
            kernel = theta / np.abs(theta + 1j * omega)
        else:
            at_zero, decay = -math.expm1(-theta * law.step), np.exp(-1j * omega * law.step)
            kernel = at_zero / np.abs(1 - math.exp(-theta * law.step) * decay)
        total += float((np.minimum(size, 1.0) ** length * kernel).sum())
    return 2 * total * (high - low) / points / (math.sqrt(2 * math.pi) * width)


class BestOfNLimit(NamedTuple):
    """Totals over the sequence, to o(1) in its length; see `best_of_n_limit`."""

    reward_gap: float
    """m R(δ) − E[reward]."""
    kl_to_prior: float
    """KL(π_n‖prior)."""
    kl_to_tilt: float
    """KL(π_n‖φ): it grows like ½ log m, so that only the KL per token vanishes."""


def best_of_n_limit(law: RewardLaw, kl: float | int, length: int) -> BestOfNLimit:
    r"""Best-of-n with n = exp(mδ) beside the tilt of the same budget, for long sequences.

    Without a lattice, with b = 1/β(δ) and Euler's γ,

    .. math:: mR(δ) - E r ≈ [\tfrac12\log(2πmb^2Λ'') - γ]/b, \qquad KL(π_n‖\mathrm{prior}) ≈ mδ - 1,
              \qquad KL(π_n‖φ) ≈ \tfrac12\log(2πmb^2Λ'') - 1 - γ:

    the best reward is Gumbel of width β, the tilt's Gaussian of width √(mΛ''). On a lattice the
    best level's law is a discrete Gumbel, whose phase depends on m.

    Parameters
    ----------
    law : RewardLaw
        Of one letter.
    kl : float
        δ, per token, strictly between 0 and ``law.kl_max``.
    length : int
        Number of tokens m.

    Raises
    ------
    ValueError
        For a budget at or beyond the ends.

    Examples
    --------
    >>> from infer_align.exact import log_rewards, reward_law
    >>> from infer_align.exact.asymptotics import best_of_n_limit
    >>> letter = reward_law([0.5, 0.3, 0.2], log_rewards([0.2, 0.3, 0.5]))
    >>> round(best_of_n_limit(letter, 0.5, 800).kl_to_tilt, 4)
    2.5993
    """
    check_law(law)
    length = count("length", length)
    if not 0 < real("kl, per token,", kl) < law.kl_max:
        raise ValueError(
            f"the limit holds for budgets per token between 0 and {law.kl_max:.6g}, got {kl}"
        )
    point = frontier(law, kl)
    b, variance = 1 / float(point.beta), float(point.variance)
    spread = 0.5 * math.log(2 * math.pi * length * variance)
    if law.step is None or law.step * b < FINE:
        gap = (spread + math.log(b) - EULER) / b
        to_prior = length * kl - 1
    else:
        gap, to_prior = _discrete_gumbel(law, b, spread, float(point.reward), kl, length)
    # KL(π‖φ) = KL(π‖prior) − mδ + b (mR − E r), for every π.
    return BestOfNLimit(gap, to_prior, to_prior - length * kl + b * gap)


def _discrete_gumbel(
    law: RewardLaw, b: float, spread: float, reward: float, kl: float, length: int
) -> tuple[float, float]:
    """m R − E[r] and KL to the prior, from levels of law exp(−n P(>k)) − exp(−n P(>=k))."""
    step = law.step
    assert step is not None
    low = law.reward_range[0]
    centre = math.floor((reward - low) * length / step)
    reach = math.ceil((60 + spread) / (b * step))
    levels = centre + np.arange(-reach, reach + 1)
    above = levels * step - (reward - low) * length  # the level's reward less m R
    with np.errstate(over="ignore"):
        n_mass = np.exp(math.log(step) - spread - b * above)
        n_tail = n_mass / -math.expm1(-b * step)
        mass = np.exp(-(n_tail - n_mass)) * -np.expm1(-n_mass)
    log_ratio = np.log(np.maximum(mass, 1e-300)) - np.log(np.maximum(n_mass, 1e-300))
    return float(-(mass @ above)), length * kl + float(mass @ log_ratio)


def log_kl_exponent(family: Any, kl: float | int) -> float:
    r"""lim (1/m) log KL(φ‖best-of-n), n = exp(mδ): the other direction explodes.

    .. math:: δ + 2Λ(b/2) - Λ(b) > 0, \qquad b = 1/β(δ)

    The tilt has mass on rewards that the best of n has not, exp(−n·tail) of it.

    Parameters
    ----------
    family : RewardLaw of one letter, or chain rate
    kl : float
        δ, per token, strictly between 0 and ``kl_max``.
    """
    check_family(family)
    beta = beta_for_kl(family, kl)
    if beta == 0 or math.isinf(beta):
        raise ValueError(
            f"the exponent holds for budgets strictly between 0 and {family.kl_max:.6g}, got {kl}"
        )
    if isinstance(family, RewardLaw):  # Σ √(prior·tilt), which knows no offset of the reward
        family = family.known()
        return float(kl + 2 * logsumexp((family.log_prob + family.tilt(beta)) / 2, axis=0))
    half, whole = (family.cumulants(theta)[0] for theta in (0.5 / beta, 1 / beta))
    return float(kl + 2 * half - whole)
