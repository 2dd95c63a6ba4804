"""Baselines of the score-function estimators.

The coefficient of outcome i is (π/q)_i (f'_i − b_i)/n. Any b_i that does not depend on y_i keeps
the gradient unbiased, because E_q[(π/q) ∇log π] = 0. A baseline sees ``signal[j, i]``, the f' of
outcome j at the Ẑ that outcome i uses (one column where all share Ẑ), so that a leave-one-out
Ẑ₋ᵢ meets only baselines that use Ẑ₋ᵢ too.
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
    """The mean of (π/q) f' over the other outcomes of the same context.

    Unbiased on- and off-policy. Needs at least 2 outcomes per context.
    """

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        xp = namespace(signal)
        n = ratio.shape[0]
        weighted = _weighted(ratio, signal)
        if signal.shape[1] == 1:
            own = weighted[:, 0, ...]
        else:
            rows = xp.arange(n)
            own = weighted[rows, rows, ...]
        return (xp.sum(weighted, axis=0) - own) / (n - 1), state

    return Baseline(dict, update, "leave_one_out", min_outcomes=2)


def running(*, decay: float | None = None) -> Baseline:
    """The mean of (π/q) f' over all *earlier* steps, pooled over contexts; 0 at the first step.

    Parameters
    ----------
    decay : float, optional
        Weight of a step relative to the next one, in (0, 1). Default: all steps count alike.
    """
    keep = _decay(decay)

    def init() -> State:
        return {"total": 0.0, "count": 0.0}

    def update(state: State, signal: Array, ratio: Array, at_inf: float) -> tuple[Array, State]:
        xp = namespace(signal)
        total, count = (beside(ratio, state[k]) for k in ("total", "count"))
        b = xp.where(count > 0, total / xp.where(count > 0, count, 1.0), 0.0)
        now = xp.mean(_weighted(ratio, signal))
        new = {"total": keep * total + now, "count": keep * count + 1.0}
        return xp.zeros_like(ratio[:1]) + b, new

    name = "running" if decay is None else f"running(decay={decay:g})"
    return Baseline(init, update, name)


def _weighted(ratio: Array, signal: Array) -> Array:
    """(π/q) f', with 0 · (±inf) = 0: an outcome that the policy never draws takes no part."""
    drawn = ratio[:, None, ...] > 0
    return ratio[:, None, ...] * namespace(signal).where(drawn, signal, 0.0)


def _decay(decay: Any) -> float:
    if decay is None:
        return 1.0
    kept = number("decay", decay, need="a number in (0, 1)")
    if not 0 < kept < 1:
        raise ValueError(f"decay must lie in (0, 1), got {decay}; leave it out to weigh all alike")
    return kept
