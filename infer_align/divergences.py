r"""f-divergences between a policy π and a target p, by their generators.

.. math:: D_f(π‖p) = \sum_{p>0} p\, f(π/p) + π(p=0)\, f'(∞), \qquad f'(∞) = \lim f(t)/t,

with f convex and normalised so that f(1) = f'(1) = 0. Generators are functions of
log t = log π − log p and have their limits at log t = ±inf. Directions are spelled out:
``forward_kl`` is KL(p‖π), ``reverse_kl`` is KL(π‖p). The gradient of the divergence in the
policy's parameters is E_π[f'(π/p) ∇log π] (Go et al. 2023, eq. 4), so ``f_prime`` is all that
an estimator needs, and the gradient stays finite under a hard constraint (p = 0) exactly
where f'(∞) is finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from infer_align._arguments import array, number
from infer_align._numerics import Array, as_real, check_defined, namespace, softplus

__all__ = [
    "ALL",
    "FDivergence",
    "alpha",
    "forward_kl",
    "generalized_jensen_shannon",
    "jeffreys",
    "jensen_shannon",
    "mixed_chi2",
    "neyman_chi2",
    "pearson_chi2",
    "reverse_kl",
    "squared_hellinger",
    "total_variation",
]

Generator = Callable[[Array], Array]
INF = math.inf


@dataclass(frozen=True)
class FDivergence:
    """An f-divergence D_f(π‖p), given by its generator as a function of log t, t = π/p.

    Parameters
    ----------
    name : str
        The name in the field's standard terms.
    f : callable
        log t → f(t), normalised to f(1) = f'(1) = 0, with its limits at ±inf.
    f_prime : callable
        log t → f'(t) = df/dt (not df/d log t), with its limits at ±inf.
    f_dual : callable
        log s → s·f(1/s): the generator of the same divergence with its arguments exchanged.
        Its limit at −inf is f'(∞), the price of a unit of policy mass where p = 0.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.divergences import total_variation
    >>> policy, target = np.log([0.3, 0.3, 0.4]), np.array([np.log(0.5), np.log(0.5), -np.inf])
    >>> round(float(total_variation(policy, target)), 12)
    0.4
    """

    name: str
    f: Generator
    f_prime: Generator
    f_dual: Generator

    @property
    def f_at_zero(self) -> float:
        """f(0): the price of a unit of target mass that the policy misses."""
        return float(self.f(np.asarray(-INF)))

    @property
    def f_prime_at_inf(self) -> float:
        """f'(∞): the price of a unit of policy mass where p = 0."""
        return float(self.f_dual(np.asarray(-INF)))

    @property
    def bounded_where_target_is_zero(self) -> bool:
        """Whether the coefficient f' stays finite on outcomes that the target rejects."""
        return math.isfinite(self.f_prime_at_inf)

    @property
    def bounded_where_policy_is_zero(self) -> bool:
        """Whether the divergence stays finite when the policy misses part of the target."""
        return math.isfinite(self.f_at_zero)

    def __call__(
        self,
        log_policy: Float[Any, "n *contexts"],
        log_target: Float[Any, "n *contexts"],
    ) -> Float[Any, "*contexts"]:
        """Exact divergence of two normalised log-probability vectors over the same outcomes.

        Differentiable in JAX and torch, ``-inf`` entries included.

        Parameters
        ----------
        log_policy, log_target : array, shape (n, *contexts)
            Normalised log-probabilities in nats of all n outcomes.

        Returns
        -------
        array, shape (*contexts)
            D_f(π‖p) ≥ 0; ``inf`` where the divergence is.
        """
        for what, law in (("log_policy", log_policy), ("log_target", log_target)):
            array(what, law, need="an array of log-probabilities, (n, *contexts)")
            check_defined(as_real(law, what), what)
        if log_policy.shape != log_target.shape:
            raise ValueError(
                f"log_policy has shape {tuple(log_policy.shape)} and log_target "
                f"{tuple(log_target.shape)}; give both over the same outcomes and contexts"
            )
        xp = namespace(log_policy, log_target)
        in_policy, in_target = log_policy > -INF, log_target > -INF
        both = in_policy & in_target
        lp = xp.where(in_policy, log_policy, 0.0)
        lt = xp.where(in_target, log_target, 0.0)
        log_t = xp.where(both, lp - lt, 0.0)
        # p f(t) = π f_dual(1/t): the side without overflow, and the same value, for each t.
        low = xp.exp(lt) * self.f(xp.where(log_t <= 0, log_t, 0.0))
        high = xp.exp(lp) * self.f_dual(xp.where(log_t > 0, -log_t, 0.0))
        zero = xp.zeros_like(log_t)
        term = xp.where(both, xp.where(log_t > 0, high, low), zero)
        term = term + _leak(xp, in_policy & ~in_target, lp, self.f_prime_at_inf)
        term = term + _leak(xp, in_target & ~in_policy, lt, self.f_at_zero)
        return xp.sum(term, axis=0)

    def __repr__(self) -> str:
        return f"FDivergence({self.name})"


def _leak(xp: Any, where: Array, log_mass: Array, price: float) -> Array:
    """Mass on one side only, times its price (with 0 · inf = 0)."""
    mass = xp.where(where, xp.exp(log_mass), 0.0)
    if math.isfinite(price):
        return mass * price
    return xp.where(where, INF, mass)


def _generator(body: Callable[[Any, Array], Array], at_zero: float, at_inf: float) -> Generator:
    """A function of log t with its limits written at log t = −inf and +inf."""

    def evaluate(log_t: Array) -> Array:
        xp = namespace(log_t)
        with np.errstate(over="ignore"):  # an f' beyond the floats is inf, as it should be
            value = body(xp, xp.where(xp.isinf(log_t), 0.0, log_t))
        return xp.where(log_t == -INF, at_zero, xp.where(log_t == INF, at_inf, value))

    return evaluate


_forward = _generator(lambda xp, x: xp.expm1(x) - x, INF, INF)
_reverse = _generator(lambda xp, x: xp.exp(x) * x - xp.expm1(x), 1.0, INF)

forward_kl = FDivergence(
    "forward_kl", _forward, _generator(lambda xp, x: -xp.expm1(-x), -INF, 1.0), _reverse
)
"""KL(p‖π): f = t − 1 − log t, f' = 1 − 1/t. Infinite where p > 0 = π."""
reverse_kl = FDivergence("reverse_kl", _reverse, _generator(lambda xp, x: x, -INF, INF), _forward)
"""KL(π‖p): f = t log t − t + 1, f' = log t. Infinite where π > 0 = p."""


def _half_sign(xp: Any, log_t: Array) -> Array:
    """½ sign(t − 1), with the 0 of ∂f(1) also where log t is 0 but for rounding."""
    return xp.where(xp.abs(log_t) > 64 * xp.finfo(log_t.dtype).eps, 0.5 * xp.sign(log_t), 0.0)


_tv = _generator(lambda xp, x: 0.5 * xp.abs(xp.expm1(x)), 0.5, INF)
total_variation = FDivergence("total_variation", _tv, _generator(_half_sign, -0.5, 0.5), _tv)
"""½ Σ |π − p|: f = ½|t − 1|, f' = ½ sign(t − 1). Bounded by 1."""

_js = _generator(
    lambda xp, x: 0.5 * (xp.exp(x) * (math.log(2) - softplus(-x)) + math.log(2) - softplus(x)),
    0.5 * math.log(2),
    INF,
)
jensen_shannon = FDivergence(
    "jensen_shannon",
    _js,
    _generator(lambda xp, x: 0.5 * (math.log(2) - softplus(-x)), -INF, 0.5 * math.log(2)),
    _js,
)
"""½KL(π‖m) + ½KL(p‖m), m = ½(π + p): f' = ½ log(2t/(1 + t)). Bounded by log 2."""

_pearson = _generator(lambda xp, x: xp.expm1(x) ** 2, 1.0, INF)
_neyman = _generator(lambda xp, x: (xp.expm1(0.5 * x) - xp.expm1(-0.5 * x)) ** 2, INF, INF)
pearson_chi2 = FDivergence(
    "pearson_chi2", _pearson, _generator(lambda xp, x: 2 * xp.expm1(x), -2.0, INF), _neyman
)
"""χ²(π‖p) = E_p[(t − 1)²]: f' = 2(t − 1). Infinite where π > 0 = p."""
neyman_chi2 = FDivergence(
    "neyman_chi2", _neyman, _generator(lambda xp, x: -xp.expm1(-2 * x), -INF, 1.0), _pearson
)
"""χ²(p‖π): f = (t − 1)²/t, f' = 1 − t⁻². Infinite where p > 0 = π."""

mixed_chi2 = FDivergence(
    "mixed_chi2",
    _generator(lambda xp, x: 0.5 * xp.expm1(x) ** 2 + xp.exp(x) * x - xp.expm1(x), 1.5, INF),
    _generator(lambda xp, x: xp.expm1(x) + x, -INF, INF),
    _generator(lambda xp, x: xp.expm1(x) - x + 0.5 * xp.expm1(x) * -xp.expm1(-x), INF, INF),
)
"""½χ²(π‖p) + KL(π‖p), χPO's (Huang et al. 2024): f' = t − 1 + log t. Infinite where π > 0 = p."""

_hellinger = _generator(lambda xp, x: xp.expm1(0.5 * x) ** 2, 1.0, INF)
squared_hellinger = FDivergence(
    "squared_hellinger",
    _hellinger,
    _generator(lambda xp, x: -xp.expm1(-0.5 * x), -INF, 1.0),
    _hellinger,
)
"""E_p[(√t − 1)²]: f' = 1 − 1/√t. Bounded by 2."""

_jeffreys = _generator(lambda xp, x: x * xp.expm1(x), INF, INF)
jeffreys = FDivergence(
    "jeffreys", _jeffreys, _generator(lambda xp, x: x - xp.expm1(-x), -INF, INF), _jeffreys
)
"""KL(p‖π) + KL(π‖p): f' = 1 − 1/t + log t. Infinite where either side misses the other."""


def _gjs_f(w: float) -> Generator:
    """Generator of the generalised Jensen–Shannon divergence for 0 < w < 1."""

    def body(xp: Any, x: Array) -> Array:
        # log u with u = w + (1 − w) t, from whichever side keeps it small.
        to_one = _log_mixture(xp, x, 1 - w)
        return ((1 - w) * xp.exp(x) * (x - to_one) - w * to_one) / (w * (1 - w))

    return _generator(body, -math.log(w) / (1 - w), INF)


def _log_mixture(xp: Any, x: Array, v: float) -> Array:
    """log(1 − v + v·exp(x)), accurate for small v and for large |x|."""
    near = xp.log1p(v * xp.expm1(xp.where(x < 30, x, 0.0)))
    far = x + math.log(v) + xp.log1p((1 - v) / v * xp.exp(-xp.where(x < 30, 30.0, x)))
    return xp.where(x < 30, near, far)


def generalized_jensen_shannon(w: float) -> FDivergence:
    r"""Generalised Jensen–Shannon divergence, scaled so that it tends to the KLs at its ends.

    .. math:: \frac{w\,KL(p‖m) + (1-w)\,KL(π‖m)}{w(1-w)}, \quad m = w p + (1-w) π

    It tends to ``forward_kl`` as w → 0 and to ``reverse_kl`` as w → 1, and is 4·JS at w = ½.
    (GKD's β-JSD, Agarwal et al. 2024, is w(1−w) times this, which vanishes at both ends.)

    Parameters
    ----------
    w : float
        Weight of the target in the mixture, in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.divergences import generalized_jensen_shannon, jensen_shannon
    >>> policy, target = np.log([0.2, 0.8]), np.log([0.6, 0.4])
    >>> gjs = generalized_jensen_shannon(0.5)(policy, target)
    >>> round(float(gjs / jensen_shannon(policy, target)), 10)
    4.0
    """
    if not 0 <= number("w, the weight of the target,", w) <= 1:
        raise ValueError(f"the weight of the target must lie in [0, 1], got {w}")
    if w in (0, 1):
        return forward_kl if w == 0 else reverse_kl
    f_prime = _generator(lambda xp, x: -_log_mixture(xp, -x, w) / w, -INF, -math.log1p(-w) / w)
    return FDivergence(f"generalized_jensen_shannon({w:g})", _gjs_f(w), f_prime, _gjs_f(1 - w))


def _alpha_f(a: float) -> Generator:
    """Generator of the α divergence for a not in {0, 1}; the form that is stable for this a."""

    def body(xp: Any, x: Array) -> Array:
        if a < 0.5:
            return (xp.expm1(a * x) - a * xp.expm1(x)) / (a * (a - 1))
        small = xp.abs((a - 1) * x) < 1  # t^a − t, without cancellation near a = 1
        near = xp.exp(xp.where(small, x, 0.0)) * xp.expm1((a - 1) * xp.where(small, x, 0.0))
        power = xp.where(small, near, xp.expm1(a * x) - xp.expm1(x))
        return (power - (a - 1) * xp.expm1(x)) / (a * (a - 1))

    return _generator(body, 1 / a if a > 0 else INF, INF)


def alpha(a: float) -> FDivergence:
    r"""α divergence, defined by f'(t) = (t^{α−1} − 1)/(α − 1).

    It tends to ``forward_kl`` as α → 0 and to ``reverse_kl`` as α → 1. alpha(2) is ½χ²(π‖p),
    alpha(−1) is ½χ²(p‖π), alpha(½) is twice the squared Hellinger distance. The α of f-DPO's
    code (and TRL's) is 1 − α here.

    Parameters
    ----------
    a : float
        The order α, any finite real number.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.divergences import alpha, pearson_chi2
    >>> policy, target = np.log([0.2, 0.8]), np.log([0.6, 0.4])
    >>> round(float(alpha(2.0)(policy, target) / pearson_chi2(policy, target)), 10)
    0.5
    """
    a = number("the order of an α divergence", a)
    if a in (0, 1):
        return forward_kl if a == 0 else reverse_kl
    f_prime = _generator(
        lambda xp, x: xp.expm1((a - 1) * x) / (a - 1),
        -INF if a < 1 else -1 / (a - 1),
        1 / (1 - a) if a < 1 else INF,
    )
    return FDivergence(f"alpha({a:g})", _alpha_f(a), f_prime, _alpha_f(1 - a))


ALL: tuple[FDivergence, ...] = (
    forward_kl,
    reverse_kl,
    total_variation,
    jensen_shannon,
    generalized_jensen_shannon(0.25),
    pearson_chi2,
    neyman_chi2,
    mixed_chi2,
    squared_hellinger,
    alpha(0.5),
    alpha(2.0),
    alpha(-1.0),
    jeffreys,
)
"""One instance of each divergence: what the contract suite runs over."""
