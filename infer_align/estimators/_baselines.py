"""Baselines of the score-function estimators.

The coefficient of outcome i is (π/q)_i (f'_i − b_i)/n. Any b_i that does not depend on y_i keeps
the gradient unbiased, because E_q[(π/q) ∇log π] = 0. A baseline sees ``signal[j, i]``, the f' of
outcome j at the Ẑ that outcome i uses (one column where all share Ẑ), so that a leave-one-out
Ẑ₋ᵢ meets only baselines that use Ẑ₋ᵢ too.

Means of (π/q) f' are over the sum of their π/q, not over their number: a constant in f' (an offset
of the rewards, where log Z is unknown) then cancels from f' − b in every batch, as it does in
expectation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from infer_align._arguments import number
from infer_align._numerics import Array, beside, namespace

State = dict[str, Any]


class Baseline(NamedTuple):
    """A baseline: ``init() -> state`` and ``update(state, signal, ratio, f_prime_at_inf)``.

    ``update`` returns ``(b, state)`` with b of shape (n or 1, *contexts).
    """

    init: Callable[[], State]
    update: Callable[[State, Array, Array, float], tuple[Array, State]]
    name: str
    off_policy: bool = True
    min_outcomes: int = 1

    def __repr__(self) -> str:
        return self.name


def none() -> Baseline:
    """No baseline: rejected outcomes (p = 0) get coefficient 0 where f'(∞) is finite.

    With ``forward_kl`` the coefficient is −(p/q)/n, the original DPG. Where f'(∞) is infinite
    f' itself is used.
    """

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        xp = namespace(signal)
        level = at_inf if math.isfinite(at_inf) else 0.0
        return xp.full_like(ratio[:1], level), state

    return Baseline(dict, update, "none")


def dpg() -> Baseline:
    """DPG's baseline: the pseudo-reward at π = p, weighted by π/q.

    With ``forward_kl`` the coefficient is −(p/q − π/q)/n (Korbak et al. 2022, arXiv 2206.00761);
    in general it is (π/q) f' with f'(1) = 0, so that coefficients vanish where policy and
    target agree.
    """

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        return namespace(signal).zeros_like(ratio[:1]), state

    return Baseline(dict, update, "dpg")


def mean() -> Baseline:
    """The batch mean of f', the outcome itself included: scales the gradient by 1 − 1/n.

    On-policy only. Off-policy it is biased by more than a scale, and refused.
    """

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        return namespace(signal).mean(signal, axis=0), state

    return Baseline(dict, update, "mean", off_policy=False)


def leave_one_out() -> Baseline:
    """The π/q-weighted mean of f' over the other outcomes of the same context.

    Unbiased on- and off-policy. Needs at least 2 outcomes per context.
    """

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        xp = namespace(signal)
        finite = xp.isfinite(signal)
        known = xp.sum(xp.astype(finite, signal.dtype), axis=0, keepdims=True)
        # About a mean of the signals, so that an offset of theirs costs no digits.
        level = xp.sum(xp.where(finite, signal, 0.0), axis=0, keepdims=True)
        level = level / xp.where(known > 0, known, 1.0)
        mass = _of_others(ratio[:, None, ...])
        change = _of_others(_weighted(ratio, signal - level))
        b = level[0] + change / xp.where(mass > 0, mass, 1.0)
        return xp.where(mass > 0, b, 0.0), state

    return Baseline(dict, update, "leave_one_out", min_outcomes=2)


def running(*, decay: float | None = None) -> Baseline:
    """The π/q-weighted mean of f' over all *earlier* steps, pooled over contexts.

    At the first step it is `leave_one_out`, or 0 with one outcome a context.

    Parameters
    ----------
    decay : float, optional
        Weight of a step relative to the next one, in (0, 1). Default: all steps count alike.
    """
    keep = _decay(decay)

    def init() -> State:
        return {"origin": 0.0, "mean": 0.0, "count": 0.0}

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        xp = namespace(signal)
        origin, mean, count = (beside(ratio, state[k]) for k in ("origin", "mean", "count"))
        first, _ = leave_one_out().update({}, signal, ratio, at_inf)
        b = xp.where(count > 0, xp.zeros_like(ratio[:1]) + origin + mean, first)
        share = xp.mean(ratio)
        now = xp.mean(_weighted(ratio, signal)) / xp.where(share > 0, share, 1.0)
        # From the first step's, and by its change: single precision has no digits for what a late
        # step adds to a total, or to the mean of signals with an offset.
        origin = xp.where(count > 0, origin, now)
        total = keep * count + share
        change = xp.mean(_weighted(ratio, signal - origin - mean))
        mean = mean + change / xp.where(total > 0, total, 1.0)
        return b, {"origin": origin, "mean": mean, "count": total}

    name = "running" if decay is None else f"running(decay={decay:g})"
    return Baseline(init, update, name)


def _weighted(ratio: Array, signal: Array) -> Array:
    """(π/q) f', with 0 · (±inf) = 0: an outcome that the policy never draws takes no part."""
    drawn = ratio[:, None, ...] > 0
    return ratio[:, None, ...] * namespace(signal).where(drawn, signal, 0.0)


def _of_others(x: Array) -> Array:
    """Sums over axis 0 without outcome i, (n, *contexts), of x[j, i] or of x[j] for every i."""
    xp, n = namespace(x), x.shape[0]
    if x.shape[1] == 1:
        # From both sides: the sum of all less one's own has no digits where that is most of it.
        x = x[:, 0, ...]
        ahead, behind = xp.cumulative_sum(x, axis=0), xp.cumulative_sum(xp.flip(x, axis=0), axis=0)
        none = xp.zeros_like(x[:1])
        before = xp.concat([none, ahead[:-1]], axis=0)
        return before + xp.flip(xp.concat([none, behind[:-1]], axis=0), axis=0)
    rows = xp.arange(n)
    own = xp.reshape(rows, (n, 1)) == xp.reshape(rows, (1, n))
    return xp.sum(xp.where(xp.reshape(own, (n, n) + (1,) * (x.ndim - 2)), 0.0, x), axis=0)


def _decay(decay: Any) -> float:
    if decay is None:
        return 1.0
    kept = number("decay", decay, need="a number in (0, 1)")
    if not 0 < kept < 1:
        raise ValueError(f"decay must lie in (0, 1), got {decay}; leave it out to weigh all alike")
    return kept
