r"""Over-optimisation: what a gold reward does along policies that chase a proxy.

A policy that reweights the prior by the proxy r alone has E_π[g] = Σ_ℓ B_ℓ E[g|ℓ] for any gold
reward g, so gold-against-proxy curves of tilts and best-of-n are exact. Along the tilts,

.. math:: \frac{d}{dθ} E_{φ}[g] = \mathrm{Cov}_φ(g, r), \qquad θ = 1/β,

so that gold peaks where the covariance vanishes. Near the prior, with d = √KL,

.. math:: E[g] = g_0 + d(α - β_G d) + O(d^3), \quad α = \sqrt2\,\mathrm{Cov}(g, r)/σ, \quad
          β_G = \frac{2\,\mathrm{Cov}(g, r)\,κ_3(r)}{3σ^4} - \frac{κ(g, r, r)}{σ^2}:

the form that Gao, Schulman and Hilton (2022, arXiv 2210.10760) found for best-of-n.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import function, number, numeric, reals, scalar
from infer_align._numerics import namespace
from infer_align.exact._law import RewardLaw, check_law
from infer_align.exact._roots import root

__all__ = [
    "Expansion",
    "Fit",
    "Peak",
    "best_of_n_form",
    "covariance",
    "expected_gold",
    "fit_form",
    "peak",
    "rl_form",
    "small_kl_form",
]

PER_DECADE = 80
"""Tilts that are tried, by factors of 1.03."""

Form = Callable[[Any, float, float], Any]


class Peak(NamedTuple):
    """Where the gold reward is largest along the tilts of a proxy; see `peak`."""

    beta: float
    """Temperature."""
    kl: float
    """KL to the prior."""
    proxy: float
    """E[r]."""
    gold: float
    """E[g]."""


class Expansion(NamedTuple):
    """Gold near the prior: start + d(alpha − beta·d), d = √KL; see `small_kl_form`."""

    start: float
    alpha: float
    beta: float


class Fit(NamedTuple):
    """A functional form fitted to a gold curve; see `fit_form`."""

    alpha: float
    beta: float
    start: float
    """Gold at d = 0, as given."""
    peak: float
    """d at which the fitted curve is largest; inf if it only rises."""
    residual: float
    """Root mean square of what is left."""


def expected_gold(law: RewardLaw, gold: Any, log_policy: Float[Any, " levels"]) -> Any:
    """E_π[g] of a policy on the levels of the proxy.

    Parameters
    ----------
    law : RewardLaw
        Of the proxy.
    gold : sequence of k numbers
        One a letter, additive over the sequence; for a law of outcomes one an outcome.
    log_policy : array, shape (L,)
        Log-masses.

    Examples
    --------
    >>> from infer_align.exact import best_of_n, reward_law
    >>> from infer_align.exact.overoptimization import expected_gold
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 10)
    >>> [round(float(expected_gold(law, [0, 1, 0.5], best_of_n(law, n))), 4) for n in (1, 16, 256)]
    [4.0, 5.3318, 5.7432]
    """
    check_law(law)
    return law.expectation(law.level_mean(gold), log_policy)


def covariance(law: RewardLaw, gold: Any, beta: Any = math.inf) -> Any:
    """Cov_φ(g, r) under the tilt by the proxy: the slope of the gold reward in 1/beta.

    Parameters
    ----------
    law : RewardLaw
    gold : sequence of k numbers
        As in `expected_gold`.
    beta : float
        Temperature of the tilt; inf is the prior.
    """
    check_law(law)
    return _covariance(law, law.level_mean(gold), beta)


def _covariance(law: RewardLaw, means: Any, beta: Any) -> Any:
    tilt = law.tilt(beta)
    centred = means - law.expectation(means, tilt)
    rewards = law.above(-1)
    return law.expectation(centred * (rewards - law.expectation(rewards, tilt)), tilt)


def peak(law: RewardLaw, gold: Any) -> Peak | None:
    """The first tilt, coming from the prior, beyond which the gold reward falls.

    Parameters
    ----------
    law : RewardLaw
    gold : sequence of k numbers
        As in `expected_gold`.

    Returns
    -------
    Peak or None
        None if the gold reward never falls: the proxy cannot be over-optimised by tilts. At the
        prior itself (beta = inf) if it falls from the start.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.overoptimization import peak
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> round(peak(law, [0, 1, 0.5]).beta, 6)
    0.669278
    """
    check_law(law)
    law = law.known()
    if len(law) == 1:
        return None
    means = law.level_mean(gold)
    rounding = 1e-13 * float(np.abs(means).max())

    def slope(theta: float) -> float:
        """Of the gold reward; 0 where it is not known from 0."""
        beta = 1 / theta if theta else math.inf
        value = float(_covariance(law, means, beta))
        sd = math.sqrt(float(law.cumulants(theta)[2]))
        return value if abs(value) > rounding * sd else 0.0

    spread = math.sqrt(float(law.cumulants(0.0)[2]))
    # To where the tilt sits on the highest level, exp(−40) of it apart.
    behind = -float(law.above(-1)[-2])
    start = 1e-3 / spread
    end = max(1e4 / spread, (40 + float(law.log_prob.max() - law.log_prob[-1])) / behind)
    nodes = 1 + math.ceil(PER_DECADE * math.log10(end / start))
    grid = np.concatenate([[0.0], np.geomspace(start, end, nodes)])
    for low, high in pairwise(grid.tolist()):
        if slope(high) < 0:
            top = root(slope, low, high) if slope(low) > 0 else low
            return _at(law, means, 1 / top if top else math.inf)
    return None


def _at(law: RewardLaw, means: Any, beta: float) -> Peak:
    tilt = law.tilt(beta)
    numbers = law.kl_to_prior(tilt), law.expected_reward(tilt), law.expectation(means, tilt)
    return Peak(beta, *(float(x) for x in numbers))


def small_kl_form(law: RewardLaw, gold: Any) -> Expansion:
    """Coefficients of the gold reward near the prior, by joint cumulants of gold and proxy.

    Parameters
    ----------
    law : RewardLaw
    gold : sequence of k numbers
        As in `expected_gold`.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.overoptimization import small_kl_form
    >>> letter = reward_law([0.5, 0.3, 0.2], [0, 1, 2])
    >>> [round(float(x), 4) for x in small_kl_form(letter, [0, 1, 0.5])]
    [0.4, 0.3984, 0.1875]
    """
    check_law(law)
    _, mean, variance, third = law.cumulants(0.0)
    means = law.level_mean(gold)
    start = law.expectation(means, law.log_prob)
    centred = law.rewards - mean
    both = law.expectation((means - start) * centred, law.log_prob)
    mixed = law.expectation((means - start) * centred**2, law.log_prob)
    alpha = 2**0.5 * both / variance**0.5
    beta = 2 * both * third / (3 * variance**2) - mixed / variance
    return Expansion(float(start), float(alpha), float(beta))


def best_of_n_form(d: Any, alpha: float | int, beta: float | int) -> Any:
    """Gao et al.'s form for best-of-n: d(α − βd), largest at α/2β.

    Parameters
    ----------
    d : float or array
        √KL.
    alpha, beta : float
    """
    numeric("d", d, need="a number, or an array of them")
    alpha, beta = scalar("alpha", alpha), scalar("beta", beta)
    return d * (alpha - beta * d)


def rl_form(d: Any, alpha: float | int, beta: float | int) -> Any:
    """Gao et al.'s form for reinforcement learning: d(α − β log d), largest at exp(α/β − 1).

    Parameters
    ----------
    d : float or array
        √KL; the form is 0 at 0.
    alpha, beta : float
    """
    alpha, beta = scalar("alpha", alpha), scalar("beta", beta)
    xp = namespace(numeric("d", d, need="a number, or an array of them"))
    d = xp.asarray(d) * 1.0
    return d * (alpha - beta * xp.log(xp.where(d > 0, d, 1.0)))


def fit_form(kl: Any, gold: Any, form: Form, *, start: float | int) -> Fit:
    """Fit α and β of a form to a gold curve, by least squares.

    Parameters
    ----------
    kl : array, shape (n,)
        KLs to the prior, n >= 2.
    gold : array, shape (n,)
        E[g] at each.
    form : callable
        `best_of_n_form` or `rl_form`: linear in both coefficients.
    start : float
        Gold reward of the prior.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If there are fewer than two points, a KL is negative, or a number is not finite.
    """
    start = number("start", start)
    function("form", form, "of d, alpha and beta, such as rl_form")
    squares, gain = reals("kl", kl), reals("gold", gold) - start
    known = squares.shape == gain.shape and np.isfinite(squares).all() and np.isfinite(gain).all()
    if not known or squares.ndim != 1 or len(squares) < 2 or squares.min() < 0:
        raise ValueError(
            f"a fit of two coefficients needs at least two pairs of a KL >= 0 and a gold reward, "
            f"finite numbers; got {np.asarray(kl).tolist()} and {np.asarray(gold).tolist()}"
        )
    d = np.sqrt(squares)
    columns = np.stack([form(d, 1.0, 0.0), form(d, 0.0, 1.0)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    left = gain - columns @ np.array([alpha, beta])
    top = math.inf
    if beta > 0:
        top = max(alpha / (2 * beta), 0.0) if form is best_of_n_form else math.exp(alpha / beta - 1)
    return Fit(
        float(alpha), float(beta), float(start), float(top), float(np.sqrt((left**2).mean()))
    )
