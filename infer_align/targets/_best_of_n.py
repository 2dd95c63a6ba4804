r"""Best-of-n and its relatives as targets: the prior reweighted by where its reward stands.

With F the prior's cdf of the reward (`RewardCdf`), a density ratio that depends on F(r⁻), P(r) and
1 − F(r) only. Where the cdf is exact, log Z is known; where it is estimated, the targets carry the
standard error of their potential (``log_potential_se``), which `assess` adds to its intervals.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from infer_align import _ties
from infer_align._arguments import function, positive, real
from infer_align._numerics import (
    Array,
    log1m_exp_neg_exp,
    log_neg_log1mexp,
    logsumexp,
    namespace,
    own,
)
from infer_align.targets._cdf import Cdf, Place, RewardCdf, check_cdf, is_estimated, place_of
from infer_align.targets._combinators import extend
from infer_align.targets._soft import soft_error, soft_log_ratio
from infer_align.targets._target import TAKES, LogPotential, Target, indicator

Of = Callable[[Place], Array]


def best_of_n(base: Any, reward: LogPotential, n: float | int, cdf: Cdf) -> Target:
    r"""The law of the best of n draws of the base, ties shared in proportion to the base.

    .. math:: \log P(y) = \log \mathrm{base}(y) + \log\frac{F(r)^n - F(r^-)^n}{P(r)}

    Beirami et al. 2024 (arXiv 2401.01879), Amini et al. 2024 (vBoN, arXiv 2407.06057). Where
    rewards never tie the ratio is n F(r)^{n−1}. KL(P‖base) <= log n − (n − 1)/n.

    Parameters
    ----------
    base : Distribution, callable or Target
        What is drawn from.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``; ``-inf`` is the worst of all.
    n : float
        > 0; whole numbers are the sampler, others interpolate.
    cdf : RewardCdf, or callable
        The reward's cdf under the (normalised) base; a callable gets the contexts.

    Returns
    -------
    Target
        With log_z = 0 if the cdf is exact (that of a base that is a Target, if it is one);
        ``log_potential_se`` if the cdf is estimated.

    Raises
    ------
    ValueError
        Unless n is positive and finite.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import RewardCdf, best_of_n
    >>> p, reward = jnp.array([0.5, 0.3, 0.2]), lambda y: 1.0 * (y > 0)
    >>> cdf = RewardCdf.exact(reward(jnp.arange(3)), jnp.log(p))
    >>> target = best_of_n(dist.Categorical(probs=p), reward, 2, cdf)
    >>> [round(float(p), 4) for p in jnp.exp(target.log_density(jnp.arange(3)))]  # ¾ as 3 : 2
    [0.25, 0.45, 0.3]
    """
    function("reward", reward, TAKES)
    _check_n(n, 0)
    return _reweighted(
        base, reward, cdf, f"best_of_{n:g}",
        lambda place: log_ratio(place, n), lambda place: _ratio_error(place, n),
    )  # fmt: skip


def soft_best_of_n(
    base: Any, reward: LogPotential, n: float | int, temperature: float | int, cdf: Cdf
) -> Target:
    r"""The law of one of n draws, kept in proportion to w = exp(reward/temperature).

    .. math:: \log P(y) = \log \mathrm{base}(y)
              + \log\Big[n w \int_0^∞ e^{-s w} (E\, e^{-sW})^{n-1} ds\Big]

    Verdun et al. 2025 (arXiv 2505.03156): best-of-n as the temperature falls, the tilt at beta =
    temperature as n grows. A reward of −inf is kept only where all n draws have it.

    Parameters
    ----------
    base : Distribution, callable or Target
        What is drawn from.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    n : float
        >= 1.
    temperature : float
        > 0, in units of the reward.
    cdf : RewardCdf, or callable
        Not one from a formula: expectations over rewards are needed.

    Returns
    -------
    Target
        As of `best_of_n`.

    Raises
    ------
    ValueError
        For n < 1, a temperature that is not positive, or a cdf from a formula.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import RewardCdf, soft_best_of_n
    >>> p, reward = jnp.array([0.5, 0.5]), lambda y: 1.0 * y
    >>> cdf = RewardCdf.exact(jnp.array([0.0, 1.0]), jnp.log(p))
    >>> target = soft_best_of_n(dist.Categorical(probs=p), reward, 2, 1.0, cdf)
    >>> [round(float(p), 4) for p in jnp.exp(target.log_density(jnp.arange(2)))]  # ¼ + ½e/(1 + e)
    [0.3845, 0.6155]
    """
    function("reward", reward, TAKES)
    _check_n(n, 1)
    _check_temperature(temperature, "temperature")

    def potential(y: Any, *contexts: Any) -> Array:
        return soft_log_ratio(_of(cdf, contexts), reward(own(y), *contexts), n, temperature)

    def error(y: Any, *contexts: Any) -> Array:
        return soft_error(_of(cdf, contexts), reward(own(y), *contexts), n, temperature)

    return _finished(base, potential, error, f"soft_best_of_{n:g}", cdf, 0.0)


def quantile(reward: LogPotential, cdf: Cdf, *, upper: bool = False) -> LogPotential:
    r"""The calibrated reward, in [0, 1]: the share of the prior's draws that an outcome beats.

    .. math:: q(y) = F(r^-) + \tfrac12 P(r), \qquad \text{or with upper} \quad q(y) = F(r)

    The first counts a tie as half a win, so that q is the win rate against the prior and its mean
    under the prior is ½ (Balashankar et al. 2024, InfAlign, arXiv 2412.19792); the second is the
    share of draws that are no better (Matrenok et al. 2025, QRPO, arXiv 2507.08068). Without ties
    they agree.

    Parameters
    ----------
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    cdf : RewardCdf, or callable
        Of the reward under the prior.
    upper : bool
        Whether an outcome beats all that it ties with.

    Returns
    -------
    callable
        A reward.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import RewardCdf, quantile
    >>> cdf = RewardCdf.exact(np.array([0.0, 7.0]), np.log([0.4, 0.6]))
    >>> quantile(lambda y: 7.0 * y, cdf)(np.array([0, 1])).round(6).tolist()
    [0.2, 0.7]
    """
    function("reward", reward, TAKES)
    check_cdf(cdf)

    def calibrated(y: Any, *contexts: Any) -> Array:
        return _quantile(place_of(cdf, reward, y, contexts), upper=upper)

    return calibrated


def quantile_tilt(
    base: Any, reward: LogPotential, cdf: Cdf, beta: float | int, *, upper: bool = False
) -> Target:
    r"""Exponential tilt by the calibrated reward, whose log Z needs no sampling.

    .. math:: P = \mathrm{base}\; e^{q(y)/β}, \qquad
              \log Z = \log β + \log(e^{1/β} - 1) \quad \text{without ties}

    Matrenok et al. 2025 (QRPO, arXiv 2507.08068). With ties log Z is summed over the levels.

    Parameters
    ----------
    base : Distribution, callable or Target
        What is tilted.
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    cdf : RewardCdf, or callable
        Of the reward under the base.
    beta : float
        Temperature, > 0; q runs from 0 to 1.
    upper : bool
        As of `quantile`.

    Returns
    -------
    Target
        With ``log_z`` if the cdf is exact; with ``log_potential_se`` if it is estimated, and log Z
        then is what `assess` estimates.

    Raises
    ------
    ValueError
        If beta is not positive and finite.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import RewardCdf, quantile_tilt
    >>> normal = dist.Normal(0.0, 1.0)
    >>> target = quantile_tilt(normal, lambda y: y, RewardCdf.continuous(normal.cdf), beta=0.5)
    >>> round(target.log_z, 6)
    1.161439
    """
    function("reward", reward, TAKES)
    _check_temperature(beta, "beta")
    half = 1.0 if upper else 0.5

    def error(place: Place) -> Array:
        one = namespace(place.log_cdf).ones_like(place.log_cdf) / beta
        return place.standard_error(half * one, (1 - half) * one)

    return _reweighted(
        base, reward, cdf, "quantile_tilt", lambda place: _quantile(place, upper=upper) / beta,
        error, _log_z_of_quantiles(cdf, beta, upper=upper),
    )  # fmt: skip


def top_fraction(base: Any, reward: LogPotential, fraction: float | int, cdf: Cdf) -> Target:
    r"""The best fraction α of the base: exactly so much of it, whatever ties.

    .. math:: \log P(y) = \log \mathrm{base}(y)
              + \log \min\Big(1, \frac{\max(0, α - (1 - F(r)))}{P(r)}\Big)

    Levels above the boundary are kept, the level on it with what of α is left for it. log Z = log
    α. With an estimated cdf the target is the fraction above the estimated boundary: its potential
    is known, its log Z is log α within about √((1 − α)/(α m)) for m samples, and on average over
    samples Z is α.

    Parameters
    ----------
    base : Distribution, callable or Target
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    fraction : float
        α, in (0, 1].
    cdf : RewardCdf, or callable
        Of the reward under the base.

    Raises
    ------
    ValueError
        Unless 0 < fraction <= 1.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import RewardCdf, top_fraction
    >>> p, reward = jnp.array([0.5, 0.3, 0.2]), lambda y: 1.0 * y
    >>> cdf = RewardCdf.exact(reward(jnp.arange(3)), jnp.log(p))
    >>> target = top_fraction(dist.Categorical(probs=p), reward, 0.35, cdf)
    >>> [round(float(p), 4) for p in jnp.exp(target.log_density(jnp.arange(3)))]
    [0.0, 0.15, 0.2]
    """
    function("reward", reward, TAKES)
    if not 0 < real("fraction", fraction, need="a number in (0, 1]") <= 1:
        raise ValueError(
            f"fraction is the share of the base that is kept, in (0, 1], got {fraction}"
        )
    return _reweighted(
        base, reward, cdf, f"top_{fraction:g}", lambda place: _log_kept(place, fraction), None,
        math.log(fraction),
    )  # fmt: skip


def threshold(
    base: Any, reward: LogPotential, at_least: float | int, *, tolerance: float | int | None = None
) -> Target:
    """The base given that the reward reaches a threshold: draw again until it does.

    Parameters
    ----------
    base : Distribution, callable or Target
    reward : callable
        ``(y, *contexts) -> (n, *contexts)``.
    at_least : float
        In units of the reward.
    tolerance : float, optional
        By how much a reward may fall short of it. By default 16 units in its last place, so that
        sums in another order reach it alike; of a threshold of 0 that is nothing: give a tolerance
        if the reward is a sum that cancels.

    Raises
    ------
    ValueError
        If the threshold is not a number.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import threshold
    >>> p = jnp.array([0.5, 0.3, 0.2])
    >>> target = threshold(dist.Categorical(probs=p), lambda y: 1.0 * y, 1.0)
    >>> [round(float(p), 4) for p in jnp.exp(target.log_density(jnp.arange(3)))]
    [0.0, 0.3, 0.2]
    """
    function("reward", reward, TAKES)
    real("at_least is the reward that an outcome must reach: it", at_least)
    if tolerance is not None and real("tolerance", tolerance) < 0:
        raise ValueError(f"tolerance must be a distance >= 0, got {tolerance}")
    slack = 0.0 if math.isinf(at_least) else tolerance

    def accepts(y: Any, *contexts: Any) -> Array:
        values = reward(y, *contexts)
        values = _ties.real(values if hasattr(values, "dtype") else np.asarray(values))
        short = _ties.ULPS * _ties.precision(values) * abs(at_least) if slack is None else slack
        return indicator(values >= at_least - short)

    return extend(base, accepts, f"threshold_{at_least:g}", log_bound=0.0)


def log_ratio(place: Place, n: float | int) -> Array:
    """log[(F(r)^n − F(r⁻)^n)/P(r)], or log n F(r)^{n−1} where r is no level."""
    xp = namespace(place.log_cdf)
    if n == 1:
        return xp.zeros_like(place.log_cdf)
    level, possible = place.log_mass > -math.inf, place.log_cdf > -math.inf
    log_cdf, log_mass = (xp.where(level, x, -1.0) for x in (place.log_cdf, place.log_mass))
    # F(r⁻)/F(r) = 1 − P/F; where that is small, the difference of the logarithms has the digits.
    share = log_mass - log_cdf
    few = (share > -math.log(2)) & (place.log_below > -math.inf)
    far = log_neg_log1mexp(xp.where(few | (share >= 0), -1.0, share))
    drop = xp.where(few, log_cdf - xp.where(few, place.log_below, -2.0), 1.0)
    log_drop = xp.where(few, xp.log(xp.where(drop > 0, drop, 1.0)), far)
    lost = xp.where(share >= 0, 0.0, log1m_exp_neg_exp(math.log(n) + log_drop))
    tied = n * log_cdf + lost - log_mass
    untied = math.log(n) + (n - 1) * xp.where(possible, place.log_cdf, 0.0)
    return xp.where(level, tied, xp.where(possible, untied, -math.inf))


def _ratio_error(place: Place, n: float | int) -> Array:
    """Standard error of `log_ratio`."""
    xp = namespace(place.log_cdf)
    lower = place.log_below > -math.inf
    log_g, mass = log_ratio(place, n), xp.exp(place.log_mass)
    slope = (xp.exp(math.log(n) + (n - 1) * place.log_cdf - log_g) - 1) / mass
    at_below = math.log(n) + (n - 1) * xp.where(lower, place.log_below, 0.0) - log_g
    slope_below = xp.where(lower, (1 - xp.exp(xp.where(lower, at_below, 0.0))) / mass, 0.0)
    return place.standard_error(slope, slope_below)


def _quantile(place: Place, *, upper: bool) -> Array:
    xp = namespace(place.log_cdf)
    if upper:
        return xp.exp(place.log_cdf)
    below, half = xp.exp(place.log_below), xp.exp(place.log_mass) / 2
    return xp.where(below < 0.5, below + half, 1 - (xp.exp(place.log_above) + half))


def _log_kept(place: Place, fraction: float | int) -> Array:
    """Log of the share of a level that belongs to the best fraction."""
    xp = namespace(place.log_cdf)
    left = fraction - xp.exp(place.log_above)
    rounding = 8 * float(xp.finfo(place.log_cdf.dtype).eps) * fraction
    some, level = left > rounding, place.log_mass > -math.inf
    log_left = xp.log(xp.where(some, left, 1.0)) - xp.where(level, place.log_mass, 0.0)
    kept = xp.where(level & (log_left < 0), log_left, 0.0)
    return xp.where(some | (~level & (left >= 0)), kept, -math.inf)


def _log_z_of_quantiles(cdf: Any, beta: float | int, *, upper: bool) -> Any:
    if not isinstance(cdf, RewardCdf) or cdf.estimated:
        return None
    if cdf.table is None:
        return math.log(beta) + 1 / beta + math.log(-math.expm1(-1 / beta))
    xp = namespace(cdf.table.rewards)
    rewards = xp.reshape(cdf.table.rewards, (-1, *cdf.shape))
    log_prob = xp.reshape(cdf.table.log_prob, rewards.shape)
    log_z = logsumexp(log_prob + _quantile(cdf.at(rewards), upper=upper) / beta, axis=0)
    return log_z if cdf.shape else log_z[()]


def _reweighted(
    base: Any,
    reward: LogPotential,
    cdf: Any,
    name: str,
    ratio: Of,
    error: Of | None,
    log_z: Any = 0.0,
) -> Target:
    """The base times a function of where the reward stands."""

    def potential(y: Any, *contexts: Any) -> Array:
        return ratio(place_of(cdf, reward, y, contexts))

    if error is None:
        return _finished(base, potential, None, name, cdf, log_z)

    def potential_error(y: Any, *contexts: Any) -> Array:
        place = place_of(cdf, reward, y, contexts)
        zero = namespace(place.log_cdf).zeros_like(place.log_cdf)
        return zero if place.spread is None else error(place)

    return _finished(base, potential, potential_error, name, cdf, log_z)


def _finished(
    base: Any,
    potential: LogPotential,
    error: LogPotential | None,
    name: str,
    cdf: Any,
    log_z: Any,
) -> Target:
    """With what is known of log Z and of the potential's error."""
    check_cdf(cdf)
    estimated = is_estimated(cdf)
    target = extend(base, potential, name, error if estimated else None)
    before = base.log_z if isinstance(base, Target) else 0.0
    if estimated or before is None or log_z is None:
        return target
    return replace(target, log_z=before + log_z)


def _of(cdf: Any, contexts: tuple[Any, ...]) -> RewardCdf:
    return cdf if isinstance(cdf, RewardCdf) else cdf(*contexts)


def _check_n(n: float | int, least: int) -> None:
    need = "n > 0" if least == 0 else f"n >= {least}"
    value = real("n, of the best of n draws,", n, need=f"a finite {need}")
    if not (value > 0 and value >= least and math.isfinite(value)):
        raise ValueError(f"the best of n draws needs a finite {need}, got {n}")


def _check_temperature(value: float | int, name: str) -> None:
    positive(name, value, need="positive and finite")


def check_draws(n: float | int, temperature: float | int | None) -> None:
    """Refuse a number of draws, or a temperature, that cannot be sampled with."""
    value = real("n, of the best of n draws,", n, need="a whole n >= 1")
    if not math.isfinite(value) or value != int(value) or value < 1:
        raise ValueError(
            f"the best of n draws needs a whole n >= 1, got {n}; the target "
            "infer_align.best_of_n takes any n > 0"
        )
    if temperature is not None:
        _check_temperature(temperature, "temperature")


def best_of_draws(
    base: Any, reward: LogPotential, n: int, cdf: Cdf, temperature: float | int | None
) -> Target:
    """Hard best-of-n, or soft best-of-n at a temperature."""
    if temperature is None:
        return best_of_n(base, reward, n, cdf)
    return soft_best_of_n(base, reward, n, temperature, cdf)
