"""From influences to intervals, their reliability, and advice, per context and pooled."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import entries, instance, number
from infer_align._numerics import NOISE, Array
from infer_align._reliability import ESS_LIMIT, KHAT_LIMIT, Worth, worth
from infer_align.diagnostics._draws import Draws
from infer_align.diagnostics._estimates import (
    Moments,
    interval,
    moments,
    pooled_interval,
    selected,
    tailed,
)
from infer_align.diagnostics._potential_error import potential_errors, widened
from infer_align.diagnostics._unseen import RULE_OF_THREE, Unseen, lengthen, of_draws
from infer_align.divergences import FDivergence


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
    """Whether the interval is claimed: of the weights that it rests on, k̂ < 0.5, and an expected
    ESS of at least 200 with 95% confidence."""


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
    grounds: "Grounds"
    unseen: Unseen | None = None
    """What the draws may have missed, where a bound of P/q is known."""


def summarise(
    draws: Draws,
    divergences: Sequence[FDivergence],
    level: float,
    *,
    khat: bool = True,
    log_target_se: np.ndarray | None = None,
    log_bound: np.ndarray | None = None,
) -> Summary:
    """Estimate everything. Without ``khat`` (slow: a fit per context) the ESS alone decides."""
    check_level(level)
    divergences = entries("divergences", divergences, of="FDivergence")
    for one in divergences:
        instance("each of divergences", one, FDivergence, "divergences.reverse_kl")
    kinds = {"": draws.log_target_weight, "_policy": draws.log_policy_weight}
    grounds = Grounds({k: worth(x, khat=khat) for k, x in kinds.items()})
    estimates = moments(draws, divergences)
    n = len(draws.log_policy)
    unseen = None
    if log_bound is not None:
        unseen = of_draws(draws, estimates, divergences, log_bound, level)
    most = 0.0 if log_bound is None else log_bound
    by_context, pooled = intervals(estimates, grounds, level, n, most, unseen)
    accepted = np.isfinite(draws.log_target)
    by_context["acceptance"], pooled["acceptance"] = acceptance(accepted, level)
    weights, pooled_weights = grounds.columns(n)
    notes = [
        *_notes(draws, grounds, pooled, level, bounded=log_bound is not None),
        *impossible_notes(estimates, pooled),
    ]
    notes += unseen_notes(unseen, by_context["log_z"], estimates["log_z"], n)
    if log_target_se is not None and log_target_se.any():
        errors = potential_errors(draws, divergences, log_target_se)
        notes.append(widen_all(by_context, pooled, errors, estimates, level))
    return Summary(by_context, pooled, weights, pooled_weights, tuple(notes), grounds, unseen)


class Grounds(NamedTuple):
    """What all estimates rest on: their weights, by suffix, and the law of the outcomes."""

    weights: dict[str, Worth]
    total_variation: np.ndarray | None = None
    """Of an outcome's law from what the weights say, (contexts,); None: none."""

    def bear(self, uses: tuple[str, ...]) -> np.ndarray:
        """Where the weights that an estimate uses bear its interval."""
        distance = 0.0 if self.total_variation is None else self.total_variation
        each = [self.weights[k].bears(total_variation=0.0 if k else distance) for k in uses]
        return np.all(each, axis=0)

    def columns(self, n: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """As they are kept: per context, and pooled (ESS summed, its least, and the largest k̂)."""
        by_context, pooled = {}, {"ess_min": float(self.weights[""].ess.min())}
        for suffix, kind in self.weights.items():
            by_context["ess" + suffix] = kind.ess
            by_context["ess_low" + suffix] = kind.least
            by_context["pareto_khat" + suffix] = kind.khat
            pooled["ess" + suffix] = float(kind.ess.sum())
            pooled["ess_low" + suffix] = float(kind.least.min())
            pooled["pareto_khat" + suffix] = float(kind.khat.max())
        if self.total_variation is not None:
            by_context["total_variation"] = self.total_variation
            pooled["total_variation"] = float(self.total_variation.max())
        by_context["ess_per_draw"] = self.weights[""].ess / n
        pooled["ess_per_draw"] = float(by_context["ess_per_draw"].mean())
        return by_context, pooled


def withdraw(summary: Summary, reasons: Sequence[str]) -> Summary:
    """Nothing is claimed, whatever the weights say; the reasons come first among the notes."""
    contexts = {
        name: np.concatenate([columns[:4], np.zeros_like(columns[4:])])
        for name, columns in summary.contexts.items()
    }
    pooled = {name: e._replace(reliable=False) for name, e in summary.pooled.items()}
    return summary._replace(
        contexts=contexts, pooled=pooled, notes=(*map(str, reasons), *summary.notes)
    )


def widen_all(
    by_context: dict[str, np.ndarray],
    pooled: dict[str, Estimate],
    errors: dict[str, np.ndarray],
    estimates: dict[str, Moments],
    level: float,
) -> str:
    """Add the potential's errors to what is there; the note that says so."""
    bounds = {name: m.bounds for name, m in estimates.items()}
    wider, whole, note = widened(by_context, pooled, errors, bounds, level)
    by_context |= wider
    pooled |= {name: _estimate(column) for name, column in whole.items()}
    return note


def check_level(level: float) -> None:
    """Refuse what is not a coverage."""
    need = "the coverage of the intervals, between 0 and 1"
    if not 0 < number("level", level, need=need) < 1:
        raise ValueError(f"level is the coverage of the intervals, between 0 and 1, got {level}")


def intervals(
    estimates: dict[str, Moments],
    grounds: Grounds,
    level: float,
    proposals: int | None,
    log_bound: np.ndarray | float = 0.0,
    unseen: Unseen | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Estimate]]:
    """Intervals per context and pooled, claimed where the weights allow it.

    Where none of a number of independent proposals is accepted, P(accept) ≤ 1 − (1 − level)^(1/n)
    bounds Z if weights are ≤ 1, or M times that if they are ≤ M.
    """
    estimates = {name: seen(m, grounds, level) for name, m in estimates.items()}
    by_context = {name: _intervals(m, grounds.bear(m.uses), level) for name, m in estimates.items()}
    if proposals is not None:
        empty = np.isneginf(by_context["log_z"][0])
        most = math.log(_most_accepted(proposals, level)) + np.broadcast_to(log_bound, empty.shape)
        by_context["log_z"][3, empty] = most[empty]
    pooled = {name: _pool(by_context[name], m, level) for name, m in estimates.items()}
    if unseen is not None:
        for name, reach in unseen.contexts.items():
            by_context[name] = lengthen(by_context[name], reach.low, reach.high)
            down, up = unseen.pooled[name]
            sure = bool(by_context[name][4].all())
            whole = np.array(pooled[name]._replace(reliable=pooled[name].reliable and sure), float)
            ends = (whole[0] - down, whole[0] + up)
            pooled[name] = _estimate(lengthen(whole[:, None], *map(np.atleast_1d, ends))[:, 0])
    return by_context, pooled


def seen(m: Moments, grounds: Grounds, level: float) -> Moments:
    """`tailed` by the heaviest of the weights that the estimate rests on, and `selected`."""
    kinds = [grounds.weights[suffix] for suffix in m.uses]
    return selected(tailed(m, np.max([kind.khat for kind in kinds], axis=0)), kinds, level)


def acceptance(accepted: np.ndarray, level: float) -> tuple[np.ndarray, Estimate]:
    """Share of accepted draws (n, contexts), per context and over all."""
    share = np.atleast_1d(accepted.mean())
    pooled = _estimate(_wilson(share, accepted.size, level)[:, 0])
    return _wilson(accepted.mean(axis=0), len(accepted), level), pooled


def within(
    ends: tuple[Array, Array], bounds: tuple[float, float], se: Array | float
) -> tuple[Array, Array, Array]:
    """Both ends within the bounds, and whether the interval reaches there of itself.

    One that lies beyond says that the draws miss something: it ends a standard error inside.
    """
    low, high = ends
    possible = (high >= bounds[0] - NOISE) & (low <= bounds[1] + NOISE)
    low, high = np.minimum(low, bounds[1] - se), np.maximum(high, bounds[0] + se)
    return np.clip(low, *bounds), np.clip(high, *bounds), possible


def _intervals(m: Moments, trusted: np.ndarray, level: float) -> np.ndarray:
    """Value, se, low, high, reliable of every context."""
    unknown = np.isinf(m.se)
    infinite = np.isinf(m.value) & ~unknown  # certain, or beyond the floats
    centre = np.where(unknown | infinite, 0.0, m.value)
    se = np.where(unknown, 0.0, m.se)
    ends = interval(centre, se, m.third, level, fourth=m.fourth, bias=m.bias, longer=m.longer)
    low, high, possible = within(ends, m.bounds, se)
    low, high = np.where(infinite, m.value, low), np.where(infinite, m.value, high)
    low, high = np.where(unknown, m.bounds[0], low), np.where(unknown, m.bounds[1], high)
    # Where the second order is not small beside the first, the level is not what it says.
    z = NormalDist().inv_cdf(0.5 + level / 2)
    trusted = trusted & (possible | infinite) & (z * np.abs(m.bias) <= se + NOISE)
    return np.stack([m.value, m.se, low, high, (trusted | m.proven) & ~unknown])


def _pool(columns: np.ndarray, m: Moments, level: float) -> Estimate:
    """Mean over contexts, which are fixed: their errors are independent."""
    value, se, low, high, trusted = columns
    mean, error = value.mean(), math.sqrt((se**2).sum()) / len(se)
    left, right, possible = low.mean(), high.mean(), True
    if math.isfinite(mean) and math.isfinite(error):
        *_, left, right = pooled_interval(m, level)
        left, right, possible = within((left, right), m.bounds, error)
    sure = bool(trusted.all() and possible)
    return Estimate(float(mean), error, float(left), float(right), sure)


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
    value, se, low, high, sure = (float(x) for x in column)
    return Estimate(value, se, low, high, bool(sure))


def _notes(
    draws: Draws, grounds: Grounds, pooled: dict[str, Estimate], level: float, *, bounded: bool
) -> tuple[str, ...]:
    """What the reader must know before believing the numbers, and what to do about it."""
    n = len(draws.log_policy)
    empty = ~np.isfinite(draws.log_target).any(axis=0)
    notes = empty_notes(empty, n, level, bounded=bounded)
    notes += weight_notes(grounds.weights[""], "P/q", "target", ~empty, n)
    if not draws.on_policy:
        notes += weight_notes(grounds.weights["_policy"], "π/q", "policy", ~empty, n)
    return tuple(notes + infinite_notes(pooled))


def empty_notes(empty: Any, n: int, level: float, *, bounded: bool = False) -> list[str]:
    """Contexts without an accepted draw, and what their n rejections say."""
    if not empty.any():
        return []
    bound = _most_accepted(n, level)
    meaning = (
        f"so Z is below {bound:.2g} times the bound of P/q"
        if bounded
        else f"so Z < {bound:.2g} where no weight P/q exceeds 1 (a constraint on the prior, drawn "
        "from the prior)"
    )
    return [
        f"no accepted draw{_of(empty)}: the acceptance rate is below {bound:.2g} "
        f"({level:.0%}, one-sided), {meaning}. Draw more, or from a proposal that meets the "
        "constraint more often."
    ]


def weight_notes(
    weights: Worth,
    ratio: str,
    whose: str,
    some: Any,
    n: int,
) -> list[str]:
    """Whether weights bear an interval, in the contexts that have some; n draws gave them."""
    khat, ess, least = weights.khat, weights.ess, weights.least
    few, heavy, hopeless = (least < ESS_LIMIT) & some, (khat >= KHAT_LIMIT) & some, khat >= 0.7
    hopeless &= some
    notes = []
    if hopeless.any():
        notes.append(
            f"the weights {ratio} have too heavy a tail{_of(hopeless)} (Pareto k-hat up to "
            f"{khat[some].max():.2f}, intervals hold below 0.5): more draws will hardly "
            f"help; draw from a proposal closer to the {whose}."
        )
    elif heavy.any():
        notes.append(
            f"the weights {ratio} have a heavy tail{_of(heavy)} (Pareto k-hat up to "
            f"{khat[some].max():.2f}, intervals hold below 0.5): draw from a proposal "
            f"closer to the {whose}; more draws help slowly."
        )
    if few.any():
        need = math.ceil(n * ESS_LIMIT / max(least[few].min(), 1.0) / 100) * 100
        more = "" if hopeless.any() else f"draw about {need} per context, or "
        notes.append(
            f"the effective sample size of {ratio} is {ess[few].min():.0f}{_of(few)} (at least "
            f"{least[few].min():.0f} with 95% confidence), intervals hold from {ESS_LIMIT:.0f} on: "
            f"{more}draw from a proposal closer to the {whose}."
        )
    if (ties := np.isneginf(khat)).any():
        notes.append(
            f"the largest weights {ratio} tie{_of(ties)}: there is no "
            "tail to fit, Pareto k-hat is -inf, and the ESS alone decides."
        )
    return notes


def unseen_notes(unseen: Unseen | None, log_z: np.ndarray, m: Moments, n: int) -> list[str]:
    """Where a known bound leaves room for a hidden mode."""
    if unseen is None:
        return []
    se = np.where(np.isfinite(m.se), m.se, 0.0)
    shift = np.where(np.isfinite(m.value), unseen.contexts["log_z"].high - m.value, 0.0)
    wide = shift > np.where(np.isfinite(log_z[3]), 4 * se, math.inf)
    if not wide.any():
        return []
    ratio = float((np.expm1(np.minimum(shift, 50.0)) / np.maximum(4 * se, 1e-9))[wide].max())
    need = f"about {n * ratio**2:.2g} draws a context would settle it, or "
    return [
        f"a region that {n} draws may have missed, of probability up to {RULE_OF_THREE / n:.2g}, "
        f"can hold more of Z than the interval says{_of(wide)}, as far as the known bound of P/q "
        f"goes: {need if ratio < 1e3 else ''}draw from a proposal with a smaller bound (closer to "
        "the target)."
    ]


def infinite_notes(pooled: dict[str, Estimate]) -> list[str]:
    """Divergences that one draw has shown to be infinite."""
    infinite = [name for name, e in pooled.items() if e.value == math.inf and e.low == math.inf]
    if not infinite:
        return []
    return [
        f"{' and '.join(infinite)} = inf is certain: draws of one distribution lie where the "
        "other has probability 0. Compare by jensen_shannon or total_variation."
    ]


def impossible_notes(estimates: dict[str, Moments], pooled: dict[str, Estimate]) -> list[str]:
    """Divergences estimated below 0 by more than their error."""
    below = [
        name
        for name, m in estimates.items()
        if m.bounds[0] == 0 and pooled[name].value + 2 * pooled[name].se < -NOISE
    ]
    if not below:
        return []
    return [
        f"{' and '.join(below)} came out below 0, which no divergence is: the draws miss a part of "
        "the target that matters. Draw more, or from a proposal closer to the target."
    ]


def _of(which: Any) -> str:
    return f" in {which.sum()} of {len(which)} contexts" if len(which) > 1 else ""
