r"""Best-of-n and its relatives, as policies on the levels of a `RewardLaw`.

Best-of-n draws n outcomes from the prior and keeps one of the highest reward. With F_ℓ the prior's
cdf of the reward, ties shared in proportion to the prior,

.. math:: B_ℓ = F_ℓ^n - F_{ℓ-1}^n, \qquad π_n(y) = \mathrm{prior}(y)\, B_ℓ / P_ℓ,

for any real n > 0. Everything here returns log B over the levels, in log space throughout, so
that n = exp(mδ) may be as large as it likes; `RewardLaw` has the expectations, divergences and
win rates of such vectors.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import number, numeric, real, scalar
from infer_align._numerics import (
    Array,
    concrete,
    log1m_exp_neg_exp,
    log1mexp,
    log_neg_log1mexp,
    logsumexp,
    namespace,
    patched,
)
from infer_align.divergences import reverse_kl
from infer_align.exact._edges import Autoregressive
from infer_align.exact._law import RewardLaw, check_beta, check_law
from infer_align.exact._roots import root
from infer_align.exact.tilts import beta_for_kl

__all__ = [
    "Autoregressive",
    "Costs",
    "autoregressive",
    "best_of_n",
    "best_of_poisson",
    "inference_aware",
    "kl_bound",
    "kl_estimate",
    "log_kl_to_best_of_n",
    "sampling_costs",
    "soft_best_of_n",
    "threshold",
    "win_rate_of_best_of_n",
    "win_rate_optimum",
]


def best_of_n(law: RewardLaw, n: Any = None, *, log_n: Any = None) -> Float[Any, " levels"]:
    r"""The law of the best of n draws: log(F_ℓ^n − F_{ℓ−1}^n), ties shared.

    Beirami et al. 2024 (arXiv 2401.01879); Sessa et al. 2024 (arXiv 2407.14622), theorem 1, for
    the ties.

    Parameters
    ----------
    law : RewardLaw
    n : float, optional
        Any real number > 0; whole numbers are the sampler, others interpolate (Yang et al. take
        n = exp(mδ)). For the integer below, pass ``math.floor(n)``.
    log_n : float, optional
        Instead of n, its logarithm, however large.

    Returns
    -------
    array, shape (L,)
        Log-masses. Where a mass is below exp(−1e300) it is −inf.

    Raises
    ------
    ValueError
        Unless exactly one of n and log_n is given, and n > 0.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import best_of_n, reward_law
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> np.exp(best_of_n(law, 2)).round(6).tolist()
    [0.25, 0.39, 0.36]
    """
    check_law(law)
    log_n = _log_n(n, log_n)
    return _log_power_difference(law, log_n)


def _log_n(n: Any, log_n: Any) -> Any:
    if (n is None) == (log_n is None):
        raise ValueError(f"give n or log_n, one of them: got n={n} and log_n={log_n}")
    if n is None:
        log_n = scalar("log_n", log_n, need="a finite number")
        if isinstance(log_n, int | float) and not -math.inf < log_n < math.inf:
            raise ValueError(f"log_n must be a finite number, got {log_n}")
        return log_n
    n = scalar("n", n, need="a finite number > 0")
    if not n > 0 or n == math.inf:
        raise ValueError(f"best-of-n needs a finite n > 0, got {n}")
    return math.log(n) if isinstance(n, int | float) else namespace(n).log(n)


def _log_power_difference(law: RewardLaw, log_n: Any) -> Array:
    """log(F_ℓ^n − F_{ℓ−1}^n) = −x_ℓ + log(1 − exp(−d_ℓ))."""
    parts = []
    for block in _blocks(law):
        log_x, log_d = _exponents(*block, log_n)
        with np.errstate(over="ignore"):
            x = namespace(log_x).exp(log_x)
        parts.append(log1m_exp_neg_exp(log_d) - x)
    return namespace(*parts).concat(parts)


def _blocks(law: RewardLaw) -> Iterator[tuple[Array, Array, Array, Array]]:
    """log P, log F, log F of the level below and log(1 − F), some levels at a time.

    So many that what NumPy makes of them stays in the processor's cache; others get all at once.
    """
    xp, cdf = namespace(law.log_prob), law.log_cdf
    below = xp.concat([xp.full_like(cdf[:1], -math.inf), cdf[:-1]])
    size = 1 << 14 if isinstance(law.log_prob, np.ndarray) else len(law)
    for start in range(0, len(law), size):
        here = slice(start, start + size)
        yield law.log_prob[here], cdf[here], below[here], law.log_above[here]


def _exponents(
    log_prob: Array, cdf: Array, below: Array, above: Array, log_n: Any
) -> tuple[Array, Array]:
    """log x and log d of x = −n log F_ℓ and d = n (log F_ℓ − log F_{ℓ−1})."""
    xp = namespace(log_prob)
    # Where F is 1 to rounding, its logarithm is that of what is above.
    high = above < -math.log(2)
    if isinstance(high, np.ndarray):  # the last ones
        low = len(high) - np.count_nonzero(high)
        log_x = np.concatenate([np.log(-cdf[:low]), log_neg_log1mexp(above[low:])])
    else:
        tail = log_neg_log1mexp(xp.where(high, above, -1.0))
        log_x = xp.where(high, tail, xp.log(-xp.where(high, -1.0, cdf)))
    # F_{ℓ−1}/F_ℓ = 1 − P/F; where that is small, the difference of the logarithms has the digits.
    share = log_prob - cdf
    few = share > -math.log(2)
    log_d = log_neg_log1mexp(xp.where(few, -1.0, share))
    log_d = patched(log_d, few, cdf - below, lambda drop: xp.log(xp.abs(drop)))
    return log_n + log_x, log_n + log_d


def autoregressive(law: RewardLaw, log_policy: Float[Any, " levels"]) -> Autoregressive:
    r"""A policy on the levels, token by token: what best-of-n says next.

    .. math:: π(y_t | y_{<t}) = p(y_t | y_{<t})\, V_t/V_{t-1}, \qquad
              V_t = E[B_ℓ/P_ℓ | y_{\le t}]

    the h-transform of the prior by B/P.

    Parameters
    ----------
    law : RewardLaw
        Exact, of a memoryless model or a chain.
    log_policy : array, shape (L,)
        Log-masses of the levels.

    Returns
    -------
    Autoregressive
        With ``next_log_prob(prefix)``, ``log_prob(tokens)`` and ``sample(rng)``.

    Raises
    ------
    ValueError
        If the law does not know its sequences, or there are over 20 million pairs of a state and a
        partial reward.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import best_of_n, reward_law
    >>> from infer_align.exact.selection import autoregressive
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 3)
    >>> policy = autoregressive(law, best_of_n(law, 4))
    >>> np.exp(policy.next_log_prob([2])).round(4).tolist()
    [0.3225, 0.353, 0.3245]
    """
    check_law(law)
    if law.make_edges is None:
        raise ValueError(
            f"this law ({law.engine}) does not know its sequences exactly; use one of reward_law "
            "or Chain.reward_law that says exact"
        )
    ratio = np.asarray(concrete(law.levels(log_policy))) - np.asarray(concrete(law.log_prob))
    return Autoregressive(law.make_edges(), law.keys, ratio)


def log_kl_to_best_of_n(
    law: RewardLaw, log_policy: Float[Any, " levels"], n: Any = None, *, log_n: Any = None
) -> float:
    r"""log KL(π‖best-of-n), which may be exponentially large in the length.

    Most policies put far more on low levels than best-of-n does; for the tilt of the same budget,
    (1/m) log KL(φ‖π_n) → δ + 2Λ(1/2β) − Λ(1/β) > 0 while KL(π_n‖φ)/m → 0.

    Parameters
    ----------
    law : RewardLaw
    log_policy : array, shape (L,)
        Log-masses of π.
    n, log_n : float
        As in `best_of_n`.

    Returns
    -------
    float
        −inf if the two are the same.
    """
    check_law(law)
    law.levels(log_policy)
    log_n = _log_n(n, log_n)
    kl = float(reverse_kl(log_policy, _log_power_difference(law, log_n)))
    if math.isfinite(kl):
        return math.log(kl) if kl > 0 else -math.inf
    log_x = np.concatenate([_exponents(*block, log_n)[0] for block in _blocks(law.known())])
    return float(logsumexp(concrete(log_policy) + log_x, axis=0))  # the rest is beyond rounding


def soft_best_of_n(
    law: RewardLaw, n: Any = None, temperature: float | int = 1.0, *, log_n: Any = None
) -> Float[Any, " levels"]:
    r"""The law of one of n draws, kept with probability in proportion to exp(reward/temperature).

    .. math:: B_ℓ = n P_ℓ w_ℓ \int_0^∞ e^{-s w_ℓ} (E\, e^{-sW})^{n-1} ds,
              \qquad w = e^{r/\mathrm{temperature}}

    Verdun et al. 2025 (arXiv 2505.03156). It tends to best-of-n as the temperature falls, to the
    tilt at beta = temperature as n grows. The integral is a trapezoidal sum in log s, which for
    whole n is accurate to rounding, since the integrand is analytic.

    Parameters
    ----------
    law : RewardLaw
    n, log_n : float
        As in `best_of_n`; any real n >= 1.
    temperature : float
        > 0, in units of the reward.

    Returns
    -------
    array, shape (L,)
        Log-masses, NumPy.

    Raises
    ------
    ValueError
        If n < 1, or the temperature is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.selection import soft_best_of_n
    >>> law = reward_law([0.5, 0.5], [0, 1])
    >>> np.exp(soft_best_of_n(law, 2, 1.0)).round(6).tolist()  # 1/4 + 1/2 · e/(1 + e) above
    [0.384471, 0.615529]
    """
    check_law(law)
    log_n = float(_log_n(n, log_n))
    if log_n < 0 or not real("temperature", temperature, need="a number > 0") > 0:
        raise ValueError(
            f"soft best-of-n needs n >= 1 and a temperature > 0, got n = {math.exp(log_n):.6g} and "
            f"temperature {temperature}"
        )
    law = law.known()
    if log_n == 0:
        return law.log_prob
    log_p, log_w = law.log_prob, law.above(-1) / temperature
    if -log_w[0] > 100_000:
        raise ValueError(
            f"a temperature of {temperature} is less than a hundred-thousandth of the range of "
            "rewards: soft best-of-n is best_of_n there"
        )
    log_others = math.log(math.expm1(log_n)) if log_n < 37 else log_n
    # The power has branch points near the line of integration unless n is whole.
    step = 0.2 if log_n > 37 or math.exp(log_n).is_integer() else 0.04
    nodes = np.arange(-log_n - 45.0, -log_w[0] + 7.0, step)
    out = np.full(len(law), -math.inf)
    for u in np.array_split(nodes, max(1, len(nodes) * len(law) // 2_000_000)):
        with np.errstate(over="ignore"):
            s_w = np.exp(np.add.outer(u, log_w))
            # log E[1 − exp(−sW)], and from it (n − 1) log E exp(−sW).
            log_lost = np.minimum(logsumexp(log_p + log1mexp(-s_w), axis=1), 0.0)
            power = -np.exp(log_others + log_neg_log1mexp(log_lost))
        out = np.logaddexp(out, logsumexp((u + power)[:, None] + log_w - s_w, axis=0))
    return out + log_n + log_p + math.log(step)


def best_of_poisson(law: RewardLaw, mu: Any = None, *, log_mu: Any = None) -> Float[Any, " levels"]:
    r"""The law of the best of 1 + Poisson(μ) draws.

    .. math:: B_ℓ = G(F_ℓ) - G(F_{ℓ-1}), \qquad G(u) = u\, e^{μ(u-1)}

    Khalaf et al. 2025. Without ties its KL is within 1e-3 nats of the least for its win rate.

    Parameters
    ----------
    law : RewardLaw
    mu, log_mu : float
        Mean number of further draws, or its logarithm.

    Returns
    -------
    array, shape (L,)
        Log-masses.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.selection import best_of_poisson
    >>> np.exp(best_of_poisson(reward_law([0.5, 0.5], [0, 1]), 1.0)).round(6).tolist()
    [0.303265, 0.696735]
    """
    check_law(law)
    given = log_mu if mu is None else mu
    if given is not None:
        real("mu or log_mu", given)
        if given == math.inf:
            raise ValueError("a mean number of draws is finite, got inf; the limit is law.tilt(0)")
    if (mu is None) == (log_mu is None) or (mu is not None and not mu >= 0):
        raise ValueError(f"give mu >= 0 or log_mu, one of them: got mu={mu} and log_mu={log_mu}")
    if mu is not None:
        log_mu = math.log(mu) if mu > 0 else -math.inf
    xp = namespace(law.log_prob)
    with np.errstate(over="ignore"):
        x = xp.exp(log_mu + law.log_above)
    gain = log1m_exp_neg_exp(log_mu + law.log_prob)
    below = xp.concat([xp.full_like(gain[:1], -math.inf), law.log_cdf[:-1]])
    return xp.logaddexp(law.log_prob, below + gain) - x


def threshold(law: RewardLaw, reward: float | int) -> Float[Any, " levels"]:
    """The prior given that the reward reaches a threshold: draw and draw again until it does.

    Its KL to the prior is −log P(reward >= threshold), and 1/P the expected number of draws.

    Parameters
    ----------
    law : RewardLaw
    reward : float
        Total over the sequence; at most the highest level. A level within 16 units in the last
        place of the largest is reached: 3·0.2 reaches 0.6.

    Returns
    -------
    array, shape (L,)
        Log-masses.

    Raises
    ------
    ValueError
        If no level reaches the threshold.
    """
    check_law(law)
    lowest = law.at_least(real("reward, the threshold,", reward))
    if lowest == len(law):
        raise ValueError(
            f"no outcome reaches a reward of {reward}: the highest level is "
            f"{law.reward_range[1]:.6g}"
        )
    xp = namespace(law.log_prob)
    kept = xp.where(xp.arange(len(law)) >= lowest, law.log_prob, -math.inf)
    return kept - logsumexp(kept, axis=0)


class Costs(NamedTuple):
    """Logarithms of how many draws from the prior a tilt takes; see `sampling_costs`."""

    best_of_n: Any
    """KL(φ‖prior): best-of-n then has the tilt's reward and KL per token, though not its law."""
    importance: Any
    """Rényi divergence of order 2: the draws behind one effective draw of importance resampling."""
    rejection: Any
    """Rényi divergence of order ∞: the draws behind one exact draw by rejection."""


def sampling_costs(law: RewardLaw, beta: Any) -> Costs:
    r"""What a draw from the tilt costs, by three samplers.

    .. math:: Δ = θΛ' - Λ \;\le\; D_2 = Λ(2θ) - 2Λ(θ) \;\le\; D_∞ = θ r_{max} - Λ(θ),
              \qquad θ = 1/β

    Parameters
    ----------
    law : RewardLaw
    beta : float
        Temperature of the tilt.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.selection import sampling_costs
    >>> [round(float(x), 4) for x in sampling_costs(reward_law([0.5, 0.3, 0.2], [0, 1, 2]), 1.0)]
    [0.3228, 0.5583, 0.9728]
    """
    check_law(law)
    tilt = law.tilt(check_beta(beta))
    return Costs(
        law.kl_of_tilt(1 / beta),
        logsumexp(2 * tilt - law.log_prob, axis=0),
        tilt[-1] - law.log_prob[-1],
    )


def kl_bound(n: Any) -> Any:
    """log n − (n − 1)/n >= KL(best-of-n‖prior), attained where rewards never tie.

    Beirami et al. 2024 (arXiv 2401.01879), theorem 3.1.

    Parameters
    ----------
    n : float or array
        >= 1.
    """
    numeric("n", n, need="a number >= 1, or an array of them")
    if isinstance(n, int | float) and not 1 <= n < math.inf:
        raise ValueError(f"the bound is of a finite n >= 1, got {n}")
    xp = namespace(n)
    return xp.log(xp.asarray(n) * 1.0) - (n - 1) / n


def kl_estimate(n: Any, log_prob: Any) -> Any:
    r"""Estimate of KL(best-of-n‖prior) from the prior's probability of the outcome selected.

    .. math:: (1-ε)^n [\log n + (n-1)\log(1-ε) - \tfrac{n-1}{n}]
              + (1 - (1-ε)^n) \log\frac{1 - (1-ε)^n}{ε}

    The KL of a prior with one best outcome of probability ε above a continuum; average it over
    selected outcomes. Beirami et al. 2024 (arXiv 2401.01879), section 4.

    Parameters
    ----------
    n : float
        >= 1.
    log_prob : float or array
        log ε, of the selected outcome under the prior.

    Examples
    --------
    >>> import math
    >>> from infer_align.exact.selection import kl_bound, kl_estimate
    >>> round(float(kl_estimate(32, math.log(0.1))), 4), round(float(kl_bound(32)), 4)
    (2.1634, 2.497)
    """
    if number("n", n, need="a finite number >= 1") < 1:
        raise ValueError(f"the estimate is of n >= 1, got {n}")
    xp = namespace(numeric("log_prob", log_prob, need="a number, or an array of them"))
    log_prob = xp.asarray(log_prob) * 1.0
    # x = −n log(1 − ε) is that of a miss, 1 − exp(−x) the probability of a hit.
    log_x = math.log(n) + log_neg_log1mexp(xp.where(log_prob < 0, log_prob, 0.0))
    certain = log_x > 6.6
    x = xp.exp(xp.where(certain, 0.0, log_x))
    log_hit = log1m_exp_neg_exp(xp.where(certain, 6.6, log_x))
    miss = xp.where(certain, 0.0, xp.exp(-x) * (kl_bound(n) - (n - 1) / n * x))
    return miss + xp.exp(log_hit) * (log_hit - log_prob)


def win_rate_optimum(law: RewardLaw, kl: float | int) -> Float[Any, " levels"]:
    """The policy that beats the prior most often at its KL: the tilt of the calibrated reward.

    Gui et al. 2024 (BoNBoN, arXiv 2406.00832). Its frontier is that of ``law.calibrated()``.

    Parameters
    ----------
    law : RewardLaw
    kl : float
        Budget in nats over the sequence.

    Returns
    -------
    array, shape (L,)
        Log-masses.
    """
    check_law(law)
    calibrated = law.calibrated()
    return calibrated.tilt(beta_for_kl(calibrated, kl))


def win_rate_of_best_of_n(
    law: RewardLaw, log_policy: Float[Any, " levels"], n: float | int
) -> float:
    """P(the best of n draws of π beats the best of n of the prior), a tie counting half.

    Parameters
    ----------
    law : RewardLaw
    log_policy : array, shape (L,)
        Log-masses of π.
    n : float
        > 0.
    """
    check_law(law)
    theirs = np.exp(np.asarray(concrete(best_of_n(law, n))))
    win_rates = np.cumsum(theirs) - theirs / 2
    ours = np.asarray(concrete(law.levels(log_policy)))
    cdf = np.minimum(np.cumsum(np.exp(ours)), 1.0) ** n
    return float(np.diff(cdf, prepend=0.0) @ win_rates)


def inference_aware(law: RewardLaw, n: float | int, beta: float | int) -> Float[Any, " levels"]:
    r"""The policy whose best of n beats the prior's best of n most often, less beta·KL.

    Its log-masses are those of the prior plus Φ/beta, the fixed point of

    .. math:: Φ_{ℓ+1} - Φ_ℓ = n\, G_ℓ^{n-1} (c_{ℓ+1} - c_ℓ), \qquad
              c_ℓ = \tfrac12 (F_ℓ^n + F_{ℓ-1}^n),

    with G its own cdf and F the prior's. The objective is strictly concave, so there is one.
    Balashankar et al. 2024 (InfAlign, arXiv 2412.19792), whose calibrated rewards are levels here.

    Parameters
    ----------
    law : RewardLaw
    n : float
        >= 1.
    beta : float
        Temperature, > 0, in units of win rate.

    Returns
    -------
    array, shape (L,)
        Log-masses, NumPy.

    Raises
    ------
    ValueError
        If n < 1, or beta is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.selection import inference_aware, win_rate_of_best_of_n
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> round(win_rate_of_best_of_n(law, inference_aware(law, 4, 1.0), 4), 4)
    0.5979
    """
    check_law(law)
    if not number("n", n, need="a finite number >= 1") >= 1:
        raise ValueError(f"inference-aware optimisation of best-of-n needs n >= 1, got {n}")
    beta = float(check_beta(beta))
    log_prior = law.known().log_prob.tolist()
    theirs = np.exp(np.asarray(concrete(best_of_n(law, n))))
    rises = [*(n * np.diff(np.cumsum(theirs) - theirs / 2) / beta).tolist(), 0.0]

    def policy(log_ratio: float) -> tuple[list[float], float]:
        """Log-masses from the lowest level's density ratio, and log of their sum so far.

        The others follow one by one; once the sum exceeds one, the rest need not be known.
        """
        out, log_cdf = [], -math.inf
        for log_mass, rise in zip(log_prior, rises, strict=True):
            out.append(log_mass + log_ratio)
            top = max(log_cdf, out[-1])
            log_cdf = top + math.log(math.exp(log_cdf - top) + math.exp(out[-1] - top))
            if log_cdf > 0:
                break
            log_ratio += rise * math.exp((n - 1) * log_cdf)
        return out, log_cdf

    scale = 0.0 if len(law) == 1 else root(lambda x: policy(x)[1], -sum(rises) - 1e-9, 1e-9)
    while len(policy(scale)[0]) < len(law):  # to rounding, the sum exceeded one too early
        scale = math.nextafter(scale, -math.inf)
    out = np.array(policy(scale)[0])
    return out - np.logaddexp.reduce(out)
