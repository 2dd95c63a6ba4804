r"""Point estimates and their influence functions, in NumPy, for all contexts at once.

With draws y_i ~ q, let a_i = (π/q)_i and b_i = (P/q)_i, each divided by its mean over the
draws. Every estimate is a smooth function of means, so

.. math:: \hat θ - θ ≈ \frac1n \sum_i φ_i, \qquad se² = \frac{1}{n(n-1)} \sum_i φ_i²,

with the influences φ (delta method), which carry the noise of log Ẑ along:

=====================  ==========================  ==========================================
estimate               value                       φ_i
=====================  ==========================  ==========================================
log Z                  log mean P/q                b_i − 1
E_π[h], E_p[h]         mean a h, mean b h          a_i (h_i − θ), b_i (h_i − θ)
D_f(π‖p)               D = mean b f(a/b)           b f(a/b) − D − A(a_i − 1) − (D − A)(b_i − 1)
=====================  ==========================  ==========================================

where A = mean a f'(a/b). The D's are divergences of two normalised vectors over the draws, so
they are never negative. With f(t) = t log t they are E_π[log π − log P] + log Ẑ (on-policy).

Where the φ of a divergence all but vanish (a heavy weight near the share at which the divergence
is largest), what is left is of second order, and the interval has room for it: with
C = mean a t f''(t) and s = A its mean is

.. math:: B = \frac{1}{2n} \big[ -2\,cov(a f', a) + 2\,cov(a f' - b f, b) + (2s + C)\,var(a)
              - 2 C\,cov(a, b) + (2D - 2s + C)\,var(b) \big]
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from infer_align._numerics import Array, log_ratio, logmeanexp, mean_under
from infer_align._reliability import Worth
from infer_align.diagnostics._draws import Draws
from infer_align.divergences import FDivergence

INF = math.inf
TARGET, POLICY = ("",), ("_policy",)
"""Suffixes of P/q and π/q."""


class Moments(NamedTuple):
    """One estimate in every context: its value (contexts) and influences (n, contexts).

    ``se`` is ``inf`` where nothing was accepted; ``bounds`` are those of the quantity itself;
    ``uses`` says on which weights it rests, by their suffix in `Summary.weights`.
    """

    value: np.ndarray
    influence: np.ndarray
    se: np.ndarray
    third: np.ndarray
    """Third cumulant of the estimate, Σ φ³ / n³."""
    fourth: np.ndarray
    """Σ φ⁴ / n⁴: the variance of se²."""
    bounds: tuple[float, float]
    uses: tuple[str, ...]
    proven: np.ndarray
    """Where the value is certain, as an infinite divergence shown by one draw is."""
    bias: np.ndarray | float = 0.0
    """Mean of the second-order term of the estimate's error."""
    longer: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 0.0)
    """In standard errors: how much is added to the lower and to the upper end."""


def moments(draws: Draws, divergences: Sequence[FDivergence]) -> dict[str, Moments]:
    """All estimates by name: log_z, the divergences, then expectations under π and p."""
    log_v, log_w = draws.log_policy_weight, draws.log_target_weight
    log_z = logmeanexp(log_w)
    empty = log_z == -INF
    log_a = log_v - logmeanexp(log_v)
    log_b = log_w - np.where(empty, 0.0, log_z)
    a, b = np.exp(log_a), np.exp(log_b)
    z = _moments(log_z, b - 1, (-INF, INF), TARGET, empty)
    out = {"log_z": z._replace(bias=-((b - 1) ** 2).sum(axis=0) / 2 / len(b) ** 2)}
    for divergence in divergences:
        out[divergence.name] = _divergence(divergence, log_a, log_b, empty)
    nothing = np.zeros_like(empty)
    if draws.log_prior is not None:
        log_ratios = log_ratio(draws.log_policy, draws.log_prior)
        out["kl_prior"] = _expectation(a, log_ratios, (0.0, INF), POLICY, nothing)
    surprise = np.where(a > 0, -draws.log_policy, 0.0)
    out["entropy"] = _expectation(a, surprise, (-INF, INF), POLICY, nothing)
    for name, values in draws.features.items():
        bounds = (-INF, INF)
        out[f"policy_{name}"] = _expectation(a, values, bounds, POLICY, nothing)
        out[f"target_{name}"] = _expectation(b, values, bounds, TARGET, empty)
    return out


def _expectation(
    a: np.ndarray,
    values: np.ndarray,
    bounds: tuple[float, float],
    uses: tuple[str, ...],
    empty: np.ndarray,
) -> Moments:
    """Self-normalised mean of the values; NaN where there is no draw to average."""
    values = np.where(a > 0, values, 0.0)
    mean = mean_under(a / len(a), values)
    finite = np.isfinite(mean)
    influence = np.where(finite, a * (np.where(finite, values, 0.0) - np.where(finite, mean, 0)), 0)
    m = _moments(np.where(empty, np.nan, mean), influence, bounds, uses, empty, ~finite)
    return m._replace(bias=-(influence * (a - 1)).sum(axis=0) / len(a) ** 2)


def terms_of(
    divergence: FDivergence, log_a: np.ndarray, log_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """b f(a/b), whose mean is the divergence, and a f'(a/b); both with what lies on one side."""
    a, b = np.exp(log_a), np.exp(log_b)
    # By the logs: a density too small for a float is not a density of 0.
    in_policy, in_target = log_a > -INF, log_b > -INF
    both = in_policy & in_target
    log_t = np.where(both, np.where(both, log_a, 0.0) - np.where(both, log_b, 0.0), 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        # b f(t) = a f_dual(1/t): the side that does not overflow.
        low = b * divergence.f(np.minimum(log_t, 0.0))
        high = a * divergence.f_dual(np.minimum(-log_t, 0.0))
        terms = np.where(log_t > 0, high, low)
        # a f'(t), as b t f'(t) where t is small.
        x = np.maximum(log_t, -700.0)
        slopes = np.where(x > 0, a, b * np.exp(np.minimum(x, 0.0))) * divergence.f_prime(x)
    at_inf, at_zero = divergence.f_prime_at_inf, divergence.f_at_zero
    leak, miss = in_policy & ~in_target, in_target & ~in_policy
    terms = np.where(both, terms, 0.0) + _price(leak, a, at_inf) + _price(miss, b, at_zero)
    return terms, np.where(both, slopes, 0.0) + _price(leak, a, at_inf)


def _divergence(
    divergence: FDivergence, log_a: np.ndarray, log_b: np.ndarray, empty: np.ndarray
) -> Moments:
    a, b = np.exp(log_a), np.exp(log_b)
    in_policy, in_target = log_a > -INF, log_b > -INF
    both, leak, miss = in_policy & in_target, in_policy & ~in_target, in_target & ~in_policy
    terms, slopes = terms_of(divergence, log_a, log_b)
    at_inf, at_zero = divergence.f_prime_at_inf, divergence.f_at_zero
    most = at_zero + at_inf
    value = np.where(empty, most, terms.mean(axis=0))
    finite = np.isfinite(value) & ~empty
    d, slope = np.where(finite, value, 0.0), np.where(finite, slopes.mean(axis=0), 0.0)
    with np.errstate(invalid="ignore"):
        influence = terms - d - slope * (a - 1) - (d - slope) * (b - 1)
    influence = np.where(finite, influence, 0.0)
    proven = np.isinf(value) & ((leak & (at_inf == INF)) | (miss & (at_zero == INF))).any(axis=0)
    m = _moments(value, influence, (0.0, most), POLICY + TARGET, ~finite & ~proven, proven)
    terms, slopes = np.where(finite, terms, 0.0), np.where(finite, slopes, 0.0)
    log_t = np.where(both, np.where(both, log_a, 0.0) - np.where(both, log_b, 0.0), 0.0)
    bend = np.where(both, a * _bend(divergence, log_t, a, b), 0.0).mean(axis=0)
    return m._replace(bias=np.where(finite, _second_order(a, b, terms, slopes, bend), 0.0))


def _bend(divergence: FDivergence, log_t: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """t f''(t), over a step as wide as log t is uncertain: f' may jump, as of total variation."""
    step = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
    step = np.clip(step, 1e-4, 1.0)
    # Beyond, f' is at its limit or beyond the floats.
    x = np.clip(log_t, -600.0, 600.0)
    with np.errstate(over="ignore", invalid="ignore"):
        rise = (divergence.f_prime(x + step) - divergence.f_prime(x - step)) / (2 * step)
    return np.where(np.isfinite(rise), rise, 0.0)


def _second_order(
    a: np.ndarray, b: np.ndarray, terms: np.ndarray, slopes: np.ndarray, bend: np.ndarray
) -> np.ndarray:
    """B of the module's docstring, from terms b f and slopes a f'."""
    cov = lambda x, y: ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0)
    d, slope = terms.mean(axis=0), slopes.mean(axis=0)
    twice = -2 * cov(slopes, a) + 2 * cov(slopes - terms, b) + (2 * slope + bend) * cov(a, a)
    twice += -2 * bend * cov(a, b) + (2 * d - 2 * slope + bend) * cov(b, b)
    return twice / (2 * len(a))


def _price(where: np.ndarray, mass: np.ndarray, price: float) -> np.ndarray:
    """Mass on one side only, times its price, with 0 · inf = 0."""
    return np.where(where, mass * price if math.isfinite(price) else price, 0.0)


def _moments(
    value: np.ndarray,
    influence: np.ndarray,
    bounds: tuple[float, float],
    uses: tuple[str, ...],
    empty: np.ndarray,
    proven: np.ndarray | None = None,
) -> Moments:
    n = len(influence)
    se = np.sqrt((influence**2).sum(axis=0) / (n * (n - 1)))
    proven = np.zeros_like(empty) if proven is None else proven
    third, fourth = ((influence**k).sum(axis=0) / n**k for k in (3, 4))
    se = np.where(empty, INF, se)
    return Moments(value, influence, se, third, fourth, bounds, uses, proven)


def interval(
    value: Array,
    se: Array,
    third: Array,
    level: float,
    *,
    fourth: Array | float = 0.0,
    bias: Array | float = 0.0,
    longer: tuple[Array | float, Array | float] = (0.0, 0.0),
) -> tuple[Array, Array]:
    r"""Delta-method interval, lengthened on the side to which the estimate is skewed.

    .. math:: \hat θ ± z\,se, \quad \text{and } \frac{κ_3}{se^2} \frac{1 + 2z^2}{6}
                \text{ more at the end of the skew}

    The shift is that of Johnson's modified t (1978, JASA 73:536). Importance weights are skewed
    to the right: large ones are rare, so that estimate and standard error are low together, and
    the symmetric interval for KL(p‖π) misses the truth from below. With ``fourth``, the variance
    of se², z at that end is the quantile of Student's t with 2 se⁴ / fourth degrees of freedom
    (Satterthwaite 1946). Where nothing is left of first order, at the top of a quantity say, the
    truth is off by B times a χ² of one degree of freedom, B the mean of the second-order term: the
    end on its side is √((z se)² + (z² B)²) away. ``longer`` is added, in standard errors.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    positive = np.where(se > 0, se, 1.0)
    far = _student(2 * positive**4 / np.maximum(fourth, 1e-300), level) if np.any(fourth) else z
    shift = third / positive**2 * (1 + 2 * far**2) / 6
    left, right = np.where(third < 0, far, z), np.where(third > 0, far, z)
    below = np.hypot(left * se, z**2 * np.maximum(-np.asarray(bias), 0)) + longer[0] * se
    above = np.hypot(right * se, z**2 * np.maximum(bias, 0)) + longer[1] * se
    return value - below + np.minimum(shift, 0), value + above + np.maximum(shift, 0)


def pooled_interval(m: Moments, level: float) -> tuple[float, float, Array, Array]:
    """Mean over contexts, which are fixed, its standard error, and both ends.

    The errors of contexts are independent, but for their biases, which have one sign in all of
    them and by which the far end moves out. What each adds for being a claim adds up as errors do:
    the more contexts pass together, the further is each within its limits.
    """
    se, contexts = m.se, len(m.se)
    mean, error = float(m.value.mean()), math.sqrt((se**2).sum()) / contexts
    third, fourth = m.third.sum() / contexts**3, m.fourth.sum() / contexts**4
    bias, unit = float(np.mean(m.bias)), error or 1.0
    off = (max(bias, 0.0), max(-bias, 0.0)) if contexts > 1 else (0.0, 0.0)
    longer = tuple(
        (math.sqrt(float(np.sum((end * se) ** 2))) / contexts + b) / unit
        for end, b in zip(m.longer, off, strict=True)
    )
    ends = interval(
        mean, error, third, level, fourth=fourth, longer=(longer[0], longer[1]),
        bias=bias if contexts == 1 else 0.0,
    )  # fmt: skip
    return mean, error, *ends


def selected(m: Moments, kinds: Sequence[Worth], level: float) -> Moments:
    """Allow for the estimate being one of those whose weights passed the rule: `Worth.selects`."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    ends = [kind.selects(m.influence, m.third, z) for kind in kinds]
    low, high = (np.max([end[k] for end in ends], axis=0) for k in (0, 1))
    return m._replace(longer=(low, high))


def tailed(m: Moments, khat: np.ndarray) -> Moments:
    """Allow for the skew that the draws do not show, by the tail index of their weights.

    The third moment of weights is infinite from k = 1/3 on, and what a sample shows of it is too
    small long before. Multiplied by 1 + 4k, intervals cover 92% to 98% for lognormal and Pareto
    weights alike (tests/statistical/test_diagnostics_coverage.py); without it 85% to 96%.
    """
    return m._replace(third=m.third * (1 + 4 * np.clip(khat, 0.0, 0.5)))


def _student(degrees: Array, level: float) -> Array:
    from scipy.special import stdtrit

    return stdtrit(np.clip(degrees, 3.0, 1e6), 0.5 + level / 2)
