"""From influences to intervals, their reliability, and advice, per context and pooled."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from infer_align.diagnostics._draws import Draws
from infer_align.diagnostics._estimates import Moments, interval, moments
from infer_align.diagnostics._khat import kish_ess, pareto_khat
from infer_align.divergences import FDivergence

KHAT_LIMIT = 0.5
"""Largest k̂ at which an interval is claimed: beyond, the weights' variance is infinite."""
ESS_LIMIT = 200.0
"""Smallest ESS at which an interval is claimed."""


class Estimate(NamedTuple):
    """An estimate with its interval, pooled over contexts.

    Examples
    --------
    >>> from infer_align.diagnostics import Estimate
    >>> Estimate(0.5, 0.1, 0.3, 0.7, reliable=True).high
    0.7
    """

    value: float
    se: float
    """Standard error; ``inf`` where it is unknown, 0 where the value is certain."""
    low: float
    high: float
    reliable: bool
    """Whether the interval is claimed: k̂ < 0.5 and ESS ≥ 200 of the weights that it rests on."""


STATISTICS = Estimate._fields


class Summary(NamedTuple):
    """All estimates and weight diagnostics of a batch of draws.

    ``contexts[name]`` has shape ``(len(STATISTICS), contexts)``; ``pooled[name]`` is an
    `Estimate`; ``weights[name]`` has shape ``(contexts)``: ess and k̂ of both kinds of weight.
    """

    contexts: dict[str, np.ndarray]
    pooled: dict[str, Estimate]
    weights: dict[str, np.ndarray]
    pooled_weights: dict[str, float]
    notes: tuple[str, ...]


def summarise(
    draws: Draws, divergences: Sequence[FDivergence], level: float, *, khat: bool = True
) -> Summary:
    """Estimate everything. Without ``khat`` (slow: a fit per context) the ESS alone decides."""
    if not 0 < level < 1:
        raise ValueError(f"level is the coverage of the intervals, between 0 and 1, got {level}")
    weights = _weights(draws, khat=khat)
    estimates = moments(draws, divergences)
    n, contexts = draws.log_policy.shape
    by_context = {
        name: _intervals(m, _reliable(weights, m.uses), level) for name, m in estimates.items()
    }
    # Where no draw is accepted, P(accept) ≤ 1 − (1 − level)^(1/n) bounds Z if weights are ≤ 1.
    empty = np.isneginf(by_context["log_z"][0])
    by_context["log_z"][3, empty] = math.log(_most_accepted(n, level))
    pooled = {name: _pool(by_context[name], m, level) for name, m in estimates.items()}
    accepted = np.isfinite(draws.log_target)
    by_context["acceptance"] = _wilson(accepted.mean(axis=0), n, level)
    share = np.atleast_1d(accepted.mean())
    pooled["acceptance"] = _estimate(_wilson(share, n * contexts, level)[:, 0])
    pooled_weights = {
        "ess": float(weights["ess"].sum()),
        "ess_min": float(weights["ess"].min()),
        "ess_per_draw": float(weights["ess"].mean() / n),
        "pareto_khat": float(weights["pareto_khat"].max()),
        "ess_policy": float(weights["ess_policy"].sum()),
        "pareto_khat_policy": float(weights["pareto_khat_policy"].max()),
    }
    notes = _notes(draws, weights, pooled, level)
    return Summary(by_context, pooled, weights, pooled_weights, notes)


def _weights(draws: Draws, *, khat: bool) -> dict[str, np.ndarray]:
    n, contexts = draws.log_policy.shape
    out = {}
    kinds = (("", draws.log_target_weight), ("_policy", draws.log_policy_weight))
    for suffix, log_weights in kinds:
        out["ess" + suffix] = kish_ess(log_weights)
        fitted = khat and not (suffix and draws.on_policy)
        columns = log_weights.T if fitted else ()
        out["pareto_khat" + suffix] = (
            np.array([pareto_khat(column) for column in columns])
            if fitted
            else np.full(contexts, -math.inf)
        )
    out["ess_per_draw"] = out["ess"] / n
    return out


def _reliable(weights: dict[str, np.ndarray], uses: tuple[bool, bool]) -> np.ndarray:
    out = np.ones(len(weights["ess"]), dtype=bool)
    for used, suffix in zip(uses, ("_policy", ""), strict=True):
        if used:
            out &= (weights["ess" + suffix] >= ESS_LIMIT) & (
                weights["pareto_khat" + suffix] < KHAT_LIMIT
            )
    return out


def _intervals(m: Moments, reliable: np.ndarray, level: float) -> np.ndarray:
    """Value, se, low, high, reliable of every context."""
    unknown = np.isinf(m.se)
    infinite = np.isinf(m.value) & ~unknown  # certain, or beyond the floats
    centre = np.where(unknown | infinite, 0.0, m.value)
    ends = interval(centre, np.where(unknown, 0.0, m.se), m.third, level)
    low, high = (np.where(infinite, m.value, np.clip(end, *m.bounds)) for end in ends)
    low, high = np.where(unknown, m.bounds[0], low), np.where(unknown, m.bounds[1], high)
    return np.stack([m.value, m.se, low, high, (reliable | m.proven) & ~unknown])


def _pool(columns: np.ndarray, m: Moments, level: float) -> Estimate:
    """Mean over contexts, which are fixed: their errors are independent."""
    value, se, low, high, reliable = columns
    mean, error = value.mean(), math.sqrt((se**2).sum()) / len(se)
    if math.isfinite(mean) and math.isfinite(error):
        ends = np.clip(interval(mean, error, m.third.sum() / len(se) ** 3, level), *m.bounds)
    else:
        ends = [low.mean(), high.mean()]
    return Estimate(float(mean), error, float(ends[0]), float(ends[1]), bool(reliable.all()))


def _most_accepted(n: int, level: float) -> float:
    """Largest acceptance rate that n rejections leave plausible: 3/n at 95%, one-sided."""
    return -math.expm1(math.log1p(-level) / n)


def _wilson(share: np.ndarray, n: int, level: float) -> np.ndarray:
    """Wilson interval of a share, which holds at 0 and 1 and for small n, too."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    se = np.sqrt(share * (1 - share) / n)
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.stack([share, se, low, high, np.ones_like(share)])


def _estimate(column: np.ndarray) -> Estimate:
    value, se, low, high, reliable = (float(x) for x in column)
    return Estimate(value, se, low, high, bool(reliable))


def _notes(
    draws: Draws, weights: dict[str, np.ndarray], pooled: dict[str, Estimate], level: float
) -> tuple[str, ...]:
    """What the reader must know before believing the numbers, and what to do about it."""
    n = len(draws.log_policy)
    notes = []
    empty = ~np.isfinite(draws.log_target).any(axis=0)
    if empty.any():
        bound = _most_accepted(n, level)
        notes.append(
            f"no accepted draw{_of(empty)}: the acceptance rate is below {bound:.2g} "
            f"({level:.0%}, one-sided), so Z < {bound:.2g} where no weight P/q exceeds 1 (a "
            "constraint on the prior, drawn from the prior). Draw more, or from a proposal that "
            "meets the constraint more often."
        )
    kinds = [("", "P/q", "target")]
    if not draws.on_policy:
        kinds.append(("_policy", "π/q", "policy"))
    for suffix, ratio, whose in kinds:
        khat, ess = weights["pareto_khat" + suffix], weights["ess" + suffix]
        few, heavy, hopeless = ess < ESS_LIMIT, khat >= KHAT_LIMIT, khat >= 0.7
        few, heavy, hopeless = few & ~empty, heavy & ~empty, hopeless & ~empty
        if hopeless.any():
            notes.append(
                f"the weights {ratio} have too heavy a tail{_of(hopeless)} (Pareto k-hat up to "
                f"{khat[~empty].max():.2f}, intervals hold below 0.5): more draws will hardly "
                f"help; draw from a proposal closer to the {whose}."
            )
        elif heavy.any():
            notes.append(
                f"the weights {ratio} have a heavy tail{_of(heavy)} (Pareto k-hat up to "
                f"{khat[~empty].max():.2f}, intervals hold below 0.5): draw from a proposal "
                f"closer to the {whose}; more draws help slowly."
            )
        if few.any():
            need = math.ceil(n * ESS_LIMIT / ess[few].min() / 100) * 100
            more = "" if hopeless.any() else f"draw about {need} per context, or "
            notes.append(
                f"the effective sample size of {ratio} is {ess[few].min():.0f}{_of(few)}, "
                f"intervals hold from {ESS_LIMIT:.0f} on: {more}draw from a proposal closer to "
                f"the {whose}."
            )
        if (ties := np.isneginf(khat)).any():
            notes.append(
                f"the largest weights {ratio} tie{_of(ties)}: there is no "
                "tail to fit, Pareto k-hat is -inf, and the ESS alone decides."
            )
    infinite = [name for name, e in pooled.items() if e.value == math.inf and e.low == math.inf]
    if infinite:
        notes.append(
            f"{' and '.join(infinite)} = inf is certain: draws of one distribution lie where the "
            "other has probability 0. Compare by jensen_shannon or total_variation."
        )
    return tuple(notes)


def _of(which: Any) -> str:
    return f" in {which.sum()} of {len(which)} contexts" if len(which) > 1 else ""
