r"""Two-sided bounds of log Z and of both KLs, from replications of its estimate.

Unbiased estimates of Z (importance sampling, particle filters) bound log Z from below, those
that start from an exact draw of the target from above:

.. math:: E[\hat Z] = Z \;⇒\; E[\log \hat Z] \le \log Z, \qquad
          E[1/\hat Z_{cond}] = 1/Z \;⇒\; E[\log \hat Z_{cond}] \ge \log Z

(Jensen; Grosse, Ghahramani and Adams 2015, arXiv 1511.02543; Grosse, Ancha and Roy 2016, arXiv
1606.02275). R independent replications have :math:`E[\prod_r \hat Z_r] = Z^R`, so by Markov's
inequality

.. math:: \frac1R \sum_r \log \hat Z_r - \frac{\log(1/δ)}{R} \le \log Z
          \quad \text{with probability} \ge 1 − δ,

for any R and any distribution of Ẑ, and with the signs turned around for the upper bound. More
replications bring the end nearer to the bound in expectation, more particles bring that nearer
to log Z.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import array, count, function
from infer_align._numerics import Array
from infer_align.diagnostics._draws import numpy
from infer_align.diagnostics._estimates import interval
from infer_align.diagnostics._summary import check_level, seen, within
from infer_align.diagnostics._weighted_estimates import (
    Weighted,
    checked,
    expectation,
    grounds_of,
    weighted,
)
from infer_align.targets import WeightedSample

INF = math.inf


class Bounds(NamedTuple):
    """An interval of a quantity, and the two bounds in expectation behind it.

    Arrays have the shape of the contexts, ``()`` without.

    Examples
    --------
    >>> from infer_align.diagnostics import log_z_bounds
    >>> bounds = log_z_bounds([-0.2, 0.1, -0.1, 0.0], [0.1, 0.3, 0.2, 0.2])
    >>> round(float(bounds.mean_low), 2), round(float(bounds.mean_high), 2)
    (-0.05, 0.2)
    """

    low: Any
    """Lower end: both ends hold at once with probability at least ``level``."""
    high: Any
    """Upper end; ``inf`` where nothing bounds from above."""
    mean_low: Any
    """Estimate of the lower bound in expectation: its own expectation is no greater than the
    quantity."""
    mean_high: Any
    se_low: Any
    """Standard error of ``mean_low``; ``inf`` where it is unknown."""
    se_high: Any
    level: float
    reliable: Any = True
    """Whether the level is claimed: of log Z always, of a KL where k̂ < 0.5 and the ESS, bounded
    from below, is at least 200 of the draws its expectation rests on, see `assess_sample`."""


def log_z_bounds(
    lower: Array | list[float], upper: Array | list[float] | None = None, *, level: float = 0.95
) -> Bounds:
    r"""Bounds of log Z from replications of log Ẑ.

    .. math:: \overline{\log \hat Z} - \tfrac{1}{R} \log \tfrac{2}{δ} \;\le\; \log Z \;\le\;
              \overline{\log \hat Z_{cond}} + \tfrac{1}{R'} \log \tfrac{2}{δ}, \qquad δ = 1 − level

    hold at once with probability at least ``level``, without any assumption on the estimates but
    that they are independent and unbiased (module docstring; arXiv 1511.02543).

    Parameters
    ----------
    lower : array, shape (R, *contexts)
        log Ẑ of independent runs of an unbiased estimator, in nats: `replicate`.
    upper : array, shape (R', *contexts), optional
        log Ẑ of conditional runs, each of its own exact draw of the target
        (``samplers.conditional_importance``, ``samplers.conditional_smc``). Without, ``high`` is
        infinite, and the whole of δ goes to the lower end.
    level : float
        Of each context's interval, not of all of them at once.

    Returns
    -------
    Bounds
        An estimate of 0 among ``lower`` makes its end ``-inf``: give each run more particles.

    Raises
    ------
    ValueError
        For NaN, +inf, differing contexts, or a conditional estimate of 0, which cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import log_z_bounds
    >>> rng = np.random.default_rng(0)
    >>> p, q = np.array([0.6, 0.4]), np.array([0.5, 0.5])             # Z = 1
    >>> y, exact = rng.choice(2, size=(50, 20), p=q), rng.choice(2, size=(50, 1), p=p)
    >>> lower = np.log(np.mean((p / q)[y], axis=1))
    >>> upper = np.log(np.mean((p / q)[np.concatenate([exact, y[:, 1:]], axis=1)], axis=1))
    >>> bounds = log_z_bounds(lower, upper)
    >>> bool(bounds.low < 0 < bounds.high), bool(bounds.high - bounds.low < 0.2)
    (True, True)
    """
    check_level(level)
    below = _replications(lower, "lower")
    tail = (1 - level) / (1 if upper is None else 2)
    penalty = -math.log(tail)
    mean_low, se_low = _mean(below)
    low = mean_low - penalty / len(below)
    if upper is None:
        unbounded = np.full(mean_low.shape, INF)[()]
        return Bounds(low[()], unbounded, mean_low[()], unbounded, se_low[()], unbounded, level)
    above = _replications(upper, "upper")
    if above.shape[1:] != below.shape[1:]:
        raise ValueError(
            f"lower has contexts of shape {below.shape[1:]} and upper {above.shape[1:]}; both "
            "need the same contexts, replications on axis 0"
        )
    if bad := int((above == -INF).sum()):
        raise ValueError(
            f"{bad} of {above.size} conditional estimates are 0 (log Ẑ = -inf), but the exact "
            "draw that each starts from has a positive weight; check that it was passed on, and "
            "that the twist and the proposal give it a positive probability"
        )
    mean_high, se_high = _mean(above)
    high = mean_high + penalty / len(above)
    return Bounds(low[()], high[()], mean_low[()], mean_high[()], se_low[()], se_high[()], level)


def replicate(
    estimate: Callable[[int], WeightedSample], replications: int
) -> Float[np.ndarray, "r *contexts"]:
    """Log Ẑ of independent runs of a sampler, for `log_z_bounds`.

    Parameters
    ----------
    estimate : callable
        The number of the run, 0, 1, ..., to its sample; the runs must be independent: seed them
        by the number, or draw all from one generator.
    replications : int
        Runs, R.

    Returns
    -------
    array, shape (R, *contexts)

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import WeightedSample
    >>> from infer_align.diagnostics import log_z_bounds, replicate
    >>> def importance(run):
    ...     log_w = np.random.default_rng(run).normal(-0.5, 1.0, size=200)   # log Z = 0
    ...     return WeightedSample(None, log_w, log_w, evidence=log_w)
    >>> bool(-0.3 < log_z_bounds(replicate(importance, 20)).low < 0)
    True
    """
    function("estimate", estimate, "of the number of a run, giving its WeightedSample")
    rows = []
    for run in range(count("replications", replications)):
        sample = estimate(run)
        if sample.evidence is None:
            raise ValueError(
                f"run {run} ({sample.method or 'no method named'}) has no evidence, so no "
                "estimate of Z; take importance sampling, rejection or SMC"
            )
        rows.append(np.asarray(sample.log_z, dtype=np.float64))
    return np.stack(rows)


def reverse_kl_bounds(
    log_policy: Array,
    log_target: Array,
    lower: Array,
    upper: Array | None = None,
    *,
    level: float = 0.95,
) -> Bounds:
    r"""Bounds of KL(π‖p) from draws of π and replications of log Ẑ.

    .. math:: KL(π‖p) = E_π[\log π - \log P] + \log Z

    Parameters
    ----------
    log_policy, log_target : array, shape (n, *contexts)
        log π and log P of independent draws y ~ π.
    lower, upper : array, shape (R, *contexts)
        As for `log_z_bounds`, on the scale of log P. Without ``upper`` there is no upper end.
    level : float
        Half of δ = 1 − level is spent on log Z, half on the sampling error of the expectation,
        whose interval is asymptotic.

    Returns
    -------
    Bounds
        ``inf`` at both ends, with certainty, where a draw of π is rejected by the target.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import reverse_kl_bounds
    >>> policy, p = np.array([0.5, 0.5]), np.array([0.8, 0.2])
    >>> y = np.random.default_rng(0).choice(2, size=4000, p=policy)
    >>> exact = np.zeros(5000)                                        # estimates without error
    >>> kl = reverse_kl_bounds(np.log(policy)[y], np.log(p)[y], exact, exact)
    >>> bool(kl.low < 0.2231 < kl.high), bool(kl.high - kl.low < 0.15)
    (True, True)
    """
    check_level(level)
    shape = tuple(array("log_policy", log_policy).shape)
    policy = checked(log_policy, "log_policy", shape)
    target = checked(log_target, "log_target", shape)
    if bad := int((policy == -INF).sum()):
        raise ValueError(
            f"{bad} of {policy.size} outcomes have probability 0 under the policy that they are "
            "said to be drawn from"
        )
    log_z = log_z_bounds(lower, upper, level=(1 + level) / 2)
    zero = np.zeros(policy.shape)
    draws = weighted(WeightedSample(None, zero, zero))
    return _combine(draws, policy - target, log_z, 1.0, shape[1:], level)


def forward_kl_bounds(
    sample: WeightedSample,
    log_policy: Array,
    lower: Array,
    upper: Array | None = None,
    *,
    level: float = 0.95,
) -> Bounds:
    r"""Bounds of KL(p‖π) from a sample of the target and replications of log Ẑ.

    .. math:: KL(p‖π) = E_p[\log P - \log π] - \log Z

    Parameters
    ----------
    sample : WeightedSample
        Exact draws (rejection), or weighted ones; errors are those of its clusters.
    log_policy : array, shape (n, *contexts)
        log π of its outcomes, normalised.
    lower, upper : array, shape (R, *contexts)
        As for `log_z_bounds`, on the scale of the sample's log P. Without ``upper`` the lower end
        is 0.
    level : float
        Spent as for `reverse_kl_bounds`.

    Returns
    -------
    Bounds
        ``inf`` where π misses an outcome of positive weight. The error of an estimated potential
        is not in it: see `assess_sample`.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import WeightedSample
    >>> from infer_align.diagnostics import forward_kl_bounds
    >>> policy, p = np.array([0.5, 0.5]), np.array([0.8, 0.2])
    >>> y = np.random.default_rng(0).choice(2, size=4000, p=p)
    >>> drawn = WeightedSample(y, np.zeros(4000), np.log(p)[y])
    >>> exact = np.zeros(5000)                                        # estimates without error
    >>> kl = forward_kl_bounds(drawn, np.log(policy)[y], exact, exact)
    >>> bool(kl.low < 0.1927 < kl.high), bool(kl.high - kl.low < 0.15)
    (True, True)
    """
    check_level(level)
    w = weighted(sample)
    policy = checked(log_policy, "log_policy", tuple(sample.log_weights.shape))
    log_z = log_z_bounds(lower, upper, level=(1 + level) / 2)
    values = np.where(w.log_weights > -INF, w.log_target, 0.0) - policy
    return _combine(w, values, log_z, -1.0, sample.log_weights.shape[1:], level)


def _combine(
    w: Weighted,
    values: np.ndarray,
    log_z: Bounds,
    sign: float,
    shape: tuple[int, ...],
    level: float,
) -> Bounds:
    """E[values] + sign · log Z; never below 0."""
    if np.shape(log_z.low) != shape:
        raise ValueError(
            f"lower has contexts of shape {np.shape(log_z.low)}, the draws have {shape}; both "
            "need the same contexts"
        )
    grounds = grounds_of(w, w.uses)
    m = seen(expectation(w, values), grounds, (1 + level) / 2)
    unknown, certain = np.isinf(m.se), m.proven
    centre, se = np.where(unknown | certain, 0.0, m.value), np.where(unknown, 0.0, m.se)
    ends = interval(centre, se, m.third, (1 + level) / 2, fourth=m.fourth, longer=m.longer)
    sides = ("low", "high") if sign > 0 else ("high", "low")
    whole = [end + sign * _flat(log_z, side) for end, side in zip(ends, sides, strict=True)]
    low, high, possible = within((whole[0], whole[1]), (0.0, INF), se)
    columns = [
        np.where(certain, m.value, np.where(unknown, nothing, end))
        for end, nothing in ((low, 0.0), (high, INF))
    ]
    for side in sides:
        with np.errstate(invalid="ignore"):
            total = m.value + sign * _flat(log_z, f"mean_{side}")
        columns.append(np.where(certain, m.value, total))
    columns += [np.hypot(m.se, _flat(log_z, f"se_{side}")) for side in sides]
    columns.append(certain | (grounds.bear(m.uses) & possible & ~unknown))
    ends = [column.reshape(shape)[()] for column in columns]
    return Bounds(ends[0], ends[1], ends[2], ends[3], ends[4], ends[5], level, ends[6])


def _flat(log_z: Bounds, field: str) -> np.ndarray:
    return np.asarray(getattr(log_z, field), dtype=np.float64).reshape(-1)


def _replications(values: Any, name: str) -> np.ndarray:
    array = numpy(values)
    if array.ndim == 0 or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}; give log Ẑ of at least one run, replications on "
            "axis 0"
        )
    if bad := int((np.isnan(array) | (array == INF)).sum()):
        raise ValueError(f"{name} has {bad} NaN or +inf among its {array.size} entries")
    return array


def _mean(log_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over replications and its standard error, ``inf`` of a single one."""
    mean = np.asarray(log_z.mean(axis=0))
    if len(log_z) < 2:
        return mean, np.full(mean.shape, INF)
    finite = np.isfinite(mean)
    spread = np.where(finite, log_z, 0.0).std(axis=0, ddof=1) / math.sqrt(len(log_z))
    return mean, np.where(finite, spread, INF)
