r"""Best-of-n and its relatives where rewards never tie: closed forms in the reward's quantile.

With u = F(r), the prior's quantile of the reward, uniform on [0, 1], a policy is a density on the
unit interval, its win rate against the prior is E[u], and KL and win rate depend on nothing else.
`RewardLaw` has the same numbers for rewards with ties, which win less and spend less KL.
"""

import math
from typing import NamedTuple

from infer_align._arguments import number, real

__all__ = ["Calibrated", "best_of_n", "best_of_poisson", "threshold", "tilt"]


class Calibrated(NamedTuple):
    """What a policy costs and wins."""

    kl: float
    """KL(π‖prior), in nats."""
    win_rate: float
    """P(its draw beats the prior's)."""


def best_of_n(n: float | int) -> Calibrated:
    """Best of n: density n·u^(n − 1), KL log n − 1 + 1/n, win rate n/(n + 1).

    Parameters
    ----------
    n : float
        >= 1.

    Examples
    --------
    >>> from infer_align.exact import calibrated
    >>> calibrated.best_of_n(4)
    Calibrated(kl=0.6362943611198906, win_rate=0.8)
    """
    if not number("n", n, need="a finite number >= 1") >= 1:
        raise ValueError(f"best-of-n of a calibrated reward needs n >= 1, got {n}")
    return Calibrated(math.log(n) - 1 + 1 / n, n / (n + 1))


def tilt(beta: float | int) -> Calibrated:
    r"""The win-rate optimum at its KL: density c·e^{cu}/(e^c − 1), c = 1/beta.

    .. math:: KL = \frac{c}{1 - e^{-c}} - 1 - \log\frac{e^c - 1}{c}, \qquad
              E[u] = \frac{1}{1 - e^{-c}} - \frac1c

    Gui et al. 2024 (BoNBoN, arXiv 2406.00832).

    Parameters
    ----------
    beta : float
        Temperature, > 0, in units of win rate.

    Examples
    --------
    >>> from infer_align.exact import calibrated
    >>> round(calibrated.tilt(0.25).win_rate, 6)
    0.768657
    """
    if not real("beta", beta, need="a number > 0") > 0:
        raise ValueError(f"beta is a temperature and must be positive, got {beta}")
    c = 1 / beta
    if c < 1e-3:  # to c⁴, where the closed forms lose digits
        return Calibrated(c**2 / 24 - c**4 / 960, 0.5 + c / 12 - c**3 / 720)
    inverse = -1 / math.expm1(-c)
    log_norm = c + math.log(-math.expm1(-c)) - math.log(c)
    return Calibrated(c * inverse - 1 - log_norm, inverse - 1 / c)


def best_of_poisson(mu: float | int) -> Calibrated:
    r"""Best of 1 + Poisson(μ): density (1 + μu)·e^{μ(u − 1)}, win rate 1 − (μ − 1 + e^{−μ})/μ².

    Khalaf et al. 2025: its KL is within 1e-3 nats of the least for its win rate.

    Parameters
    ----------
    mu : float
        Mean number of further draws, >= 0.

    Examples
    --------
    >>> from infer_align.exact import calibrated
    >>> [round(x, 6) for x in calibrated.best_of_poisson(3.0)]
    [0.494575, 0.772246]
    """
    from scipy.integrate import quad

    if not number("mu", mu, need="a finite number >= 0") >= 0:
        raise ValueError(f"the mean number of draws must be >= 0, got {mu}")
    if mu < 1e-4:
        return Calibrated(mu**2 / 6, 0.5 + mu / 6)
    log_ratio = lambda v: math.log1p(mu - v) - v  # v = μ(1 − u): the density is largest at v = 0

    def term(v: float) -> float:
        """t log t − t + 1, which is small where the policy is near the prior."""
        x = log_ratio(v)
        return math.exp(x) * x - math.expm1(x)

    points = [x for x in (1.0, 10.0, 40.0) if x < min(mu, 750.0)]
    body = quad(term, 0, min(mu, 750.0), points=points or None, epsabs=0, epsrel=1e-9, limit=200)
    kl = body[0] / mu + max(mu - 750.0, 0.0) / mu  # beyond, t is 0 and the term 1
    return Calibrated(kl, 1 - (mu + math.expm1(-mu)) / mu**2)


def threshold(quantile: float | int) -> Calibrated:
    """Draw again until the reward's quantile is reached: KL −log(1 − τ), win rate (1 + τ)/2.

    Parameters
    ----------
    quantile : float
        τ, in [0, 1).

    Examples
    --------
    >>> from infer_align.exact import calibrated
    >>> calibrated.threshold(0.5)
    Calibrated(kl=0.6931471805599453, win_rate=0.75)
    """
    if not 0 <= real("quantile", quantile, need="a number in [0, 1)") < 1:
        raise ValueError(f"a quantile that can be reached lies in [0, 1), got {quantile}")
    return Calibrated(-math.log1p(-quantile), (1 + quantile) / 2)
