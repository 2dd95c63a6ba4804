r"""The reward–KL frontier: tilts by temperature, by KL budget, by reward.

A *family* has Λ(θ) = log E[exp(θ r)] and its derivatives: a `RewardLaw` (of a sequence, or of one
letter, then everything is per token), or the rate of a Markov model (`Chain.rate`). With θ = 1/β,

.. math:: R(β) = Λ'(θ), \qquad Δ(β) = θΛ'(θ) - Λ(θ) = KL(φ_β‖\mathrm{prior}),
          \qquad \frac{dR}{dΔ} = β, \qquad \frac{d^2R}{dΔ^2} = -\frac{β^3}{Λ''(θ)}.

The tilt φ_β has the largest reward of all policies of its KL, and any policy that comes near it in
reward and KL is near it in KL (Yang et al. 2024, arXiv 2404.01730).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from infer_align import _ties
from infer_align._arguments import numeric, real
from infer_align.divergences import reverse_kl
from infer_align.exact._law import RewardLaw, check_law
from infer_align.exact._roots import root

__all__ = [
    "Closeness",
    "Family",
    "Frontier",
    "beta_for_kl",
    "beta_for_reward",
    "closeness",
    "frontier",
    "small_kl_expansion",
]


TINY = 1e-24
"""KLs of which the first term of their series has 12 digits."""


class Family(Protocol):
    """Tilts of a reward by inverse temperature θ: a `RewardLaw`, or the rate of a Markov model."""

    def cumulants(self, theta: Any) -> tuple[Any, ...]:
        """Λ(θ), Λ'(θ), Λ''(θ), and more where they are known."""
        ...

    def kl_of_tilt(self, theta: Any) -> Any:
        """θΛ'(θ) − Λ(θ)."""
        ...

    @property
    def reward_range(self) -> tuple[float, float]:
        """What Λ' tends to as θ → −∞ and ∞."""
        ...

    @property
    def kl_limits(self) -> tuple[float, float]:
        """What the KL tends to as θ → −∞ and ∞."""
        ...

    @property
    def kl_max(self) -> float:
        """The second of them."""
        ...

    def known(self) -> Any:
        """The same with plain numbers."""
        ...


class Frontier(NamedTuple):
    """Points of the reward–KL frontier: numbers, or arrays where several KLs were given."""

    kl: Any
    """KL(φ‖prior), the budget."""
    beta: Any
    """Temperature of the tilt, and slope dR/dKL: inf at KL 0, 0 from ``kl_max`` on."""
    reward: Any
    """E_φ[r], the most that the budget buys."""
    variance: Any
    """Var_φ[r]."""
    curvature: Any
    """d²R/dKL² = −beta³/variance."""


class Closeness(NamedTuple):
    """Why a policy of comparable reward and KL is near the tilt; see `closeness`."""

    kl_to_tilt: Any
    """KL(π‖φ), the sum of the other two."""
    kl_excess: Any
    """KL(π‖prior) − Δ."""
    reward_shortfall: Any
    """(R(Δ) − E_π[r])/beta."""


def beta_for_kl(family: Any, kl: float | int) -> Any:
    """Temperature of the tilt whose KL to the prior is given.

    Parameters
    ----------
    family : RewardLaw or chain rate
    kl : float
        In nats, >= 0; per token for the law of one letter.

    Returns
    -------
    float
        inf for 0, 0 where the budget exceeds ``kl_max``. An array of the family's library, with
        its gradient, if the family has one.

    Raises
    ------
    ValueError
        If kl is negative or not a number.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.tilts import beta_for_kl
    >>> round(beta_for_kl(reward_law([0.5, 0.3, 0.2], [0, 1, 2]), 0.1), 6)
    1.82978
    """
    check_family(family)
    if not real("a KL budget", kl, need="a number of nats >= 0") >= 0:
        raise ValueError(f"a KL budget is a number of nats >= 0, got {kl}")
    plain = family.known()
    if kl == 0:
        return math.inf
    if kl >= plain.kl_max:
        return 0.0
    if kl < TINY:  # where KL = θ²Λ''/2, and rounding hides it
        # Roots apart: their quotient is a float where that of the squares is none.
        theta = math.sqrt(2 * float(kl)) / math.sqrt(float(plain.cumulants(0.0)[2]))
    else:
        theta = _root(plain.kl_of_tilt, float(kl), 1.0)
    if math.isinf(theta):
        return 0.0
    return _with_gradient(
        family, theta, lambda t: family.kl_of_tilt(t) - kl, theta * plain.cumulants(theta)[2]
    )


def beta_for_reward(family: Any, reward: float | int) -> Any:
    """Temperature of the tilt whose expected reward is given.

    Parameters
    ----------
    family : RewardLaw or chain rate
    reward : float
        Between the least and the greatest.

    Returns
    -------
    float
        Negative below the prior's mean, inf at it, 0.0 at the greatest and −0.0 at the least.

    Raises
    ------
    ValueError
        If no tilt has that reward.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.tilts import beta_for_reward
    >>> round(beta_for_reward(reward_law([0.5, 0.3, 0.2], [0, 1, 2]), 1.0), 6)
    2.182713
    """
    check_family(family)
    plain = family.known()
    low, high = plain.reward_range
    reward = _ties.snapped(real("an expected reward", reward), low, high)
    if not low <= reward <= high:
        raise ValueError(
            f"no tilt has expected reward {reward}: rewards run from {low:.6g} to {high:.6g}"
        )
    if reward in (low, high):
        return 0.0 if reward == high else -0.0
    mean = float(plain.cumulants(0.0)[1])
    if reward == mean:
        return math.inf
    side = 1.0 if reward > mean else -1.0
    theta = side * _root(
        lambda t: side * float(plain.cumulants(side * t)[1]), side * float(reward), 1.0
    )
    if math.isinf(theta):
        return 0.0
    return _with_gradient(
        family, theta, lambda t: family.cumulants(t)[1] - reward, plain.cumulants(theta)[2]
    )


def check_family(family: Any) -> None:
    """Refuse what is no family of tilts."""
    if not all(hasattr(family, name) for name in ("known", "cumulants", "kl_of_tilt")):
        raise TypeError(
            f"family must be a RewardLaw or the rate of a chain, got {family!r} "
            f"({type(family).__name__}); give one, such as exact.reward_law(probs, rewards)"
        )


def _root(rising: Callable[[float], Any], value: float, start: float) -> float:
    """θ > 0 where a function that rises from below meets the value; inf if floats can't tell."""
    high = start
    while float(rising(high)) < value:
        high *= 2
        if high > 1e300:
            return math.inf
    low = high / 2
    while low > 0 and float(rising(low)) > value:
        low /= 2
    return root(lambda t: float(rising(t)) - value, low, high)


def _with_gradient(family: Any, theta: float, residual: Callable[[Any], Any], slope: Any) -> Any:
    """1/θ, with one Newton step in the family's own arrays: it carries the gradient."""
    if family.known() is family or not float(slope) > 0:
        return float(1 / theta)
    return 1 / (theta - residual(theta) / float(slope))


def frontier(family: Any, kl: Any) -> Frontier:
    """The most reward that a KL budget buys, and at what marginal price.

    Parameters
    ----------
    family : RewardLaw or chain rate
    kl : float, or sequence of float
        Budgets in nats, >= 0.

    Returns
    -------
    Frontier

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.tilts import frontier
    >>> point = frontier(reward_law([0.5, 0.3, 0.2], [0, 1, 2]), 0.1)
    >>> round(point.reward, 6), round(point.beta, 6)
    (1.059857, 1.82978)
    """
    if isinstance(kl, list | tuple | np.ndarray):
        points = [frontier(family, real("a KL budget", one)) for one in kl]
        if not points:
            raise ValueError("kl has no budget in it; give a number of nats >= 0, or some of them")
        return Frontier(
            *(np.array([float(x) for x in column]) for column in zip(*points, strict=True))
        )
    beta = beta_for_kl(family, kl)
    if isinstance(beta, float) and beta == 0:
        return Frontier(kl, 0.0, family.reward_range[1], 0.0, 0.0)
    _, reward, variance, *_ = (_plain(x) for x in family.cumulants(1 / beta))
    # By factors, for Python's power raises where a product is inf.
    curvature = -beta / variance * beta * beta if kl > 0 else -math.inf
    return Frontier(kl, beta, reward, variance, curvature)


def _plain(x: Any) -> Any:
    """NumPy's scalars as Python's; arrays with gradients as they are."""
    return float(x) if isinstance(x, np.generic) else x


def small_kl_expansion(law: RewardLaw, kl: Any) -> Any:
    r"""The frontier near the prior, to first order in the KL.

    .. math:: R(Δ) = μ + σ\sqrt{2Δ} + \frac{κ_3}{3σ^2} Δ + O(Δ^{3/2})

    Parameters
    ----------
    law : RewardLaw
    kl : float or array
        Δ, in nats.
    """
    check_law(law)
    numeric("kl", kl, need="a number of nats >= 0, or an array of them")
    if isinstance(kl, int | float) and not kl >= 0:
        raise ValueError(f"a KL is a number of nats >= 0, got {kl}")
    _, mean, variance, third = law.cumulants(0.0)
    return mean + (2 * variance) ** 0.5 * kl**0.5 + third / (3 * variance) * kl


def closeness(law: RewardLaw, log_policy: Float[Any, " levels"], kl: float | int) -> Closeness:
    r"""How far a policy is from the tilt of a KL budget, and why.

    .. math:: KL(π‖φ_Δ) = [KL(π‖\mathrm{prior}) - Δ] + [R(Δ) - E_π r]/β(Δ)

    An identity, for every policy: whoever spends a comparable KL on a comparable reward is near the
    tilt (Yang et al. 2024, arXiv 2404.01730).

    Parameters
    ----------
    law : RewardLaw
    log_policy : array, shape (L,)
        Log-masses of the levels.
    kl : float
        Δ, between 0 and ``law.kl_max``, in nats over the sequence.

    Returns
    -------
    Closeness

    Raises
    ------
    ValueError
        If the budget is not below ``kl_max``: the tilt then misses part of the prior.

    Examples
    --------
    >>> from infer_align.exact import best_of_n, reward_law
    >>> from infer_align.exact.tilts import closeness
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 10)
    >>> [round(float(x), 6) for x in closeness(law, best_of_n(law, 4), 0.6)]
    [0.111742, 0.025616, 0.086127]
    """
    check_law(law)
    beta = beta_for_kl(law, kl)
    if beta == 0:
        raise ValueError(
            f"a KL of {kl} is not below {law.kl_max:.6g}, that of the highest level alone: the "
            "tilt is the prior there, and any policy with mass elsewhere is infinitely far"
        )
    tilt = law.tilt(beta)
    shortfall = (law.expected_reward(tilt) - law.expected_reward(log_policy)) / beta
    return Closeness(reverse_kl(log_policy, tilt), law.kl_to_prior(log_policy) - kl, shortfall)
