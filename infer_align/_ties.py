"""The one rule of a tie: when two computed rewards are one level.

Best-of-n, reward cdfs, thresholds and reward laws see a reward only through what it ties with, and
a sum of floats depends on the order in which it was added up: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 +
0.1. Two rewards are one level if they differ by no more than 16 units in the last place of the
largest reward. Sums of a thousand terms stay within 2 of these units, while rewards that differ by
more than 4e-15 of the largest (2e-6 in single precision) are told apart. Of the largest reward:
sums that cancel, as 0.1 + 0.2 − 0.3, are off by units of their terms and not of themselves.

Two refinements. A level is never wider than that distance: a long chain of rewards, each near the
next, as dense samples of a continuous reward make, is cut into pieces of this width. And the lowest
level does not count as the largest reward, unless it is the only one: the −1e9 that stands for
"rejected" says nothing of how the others were rounded.

Rewards that are written rather than computed (letters of `infer_align.exact.reward_law`, fractions,
decimals, texts) need no such rule: they tie where they are equal.
"""

import math
from typing import Any

import numpy as np
from array_api_compat import is_torch_array

from infer_align._arguments import real as real_number
from infer_align._numerics import Array, namespace

ULPS = 16
"""Units in the last place of the largest reward that tie."""


def real(rewards: Array) -> Array:
    """In floating point, of at least single precision: half is that of numbers stored, not summed.

    Parameters
    ----------
    rewards : array
    """
    xp = namespace(rewards)
    if not xp.isdtype(rewards.dtype, "real floating"):
        wide = is_torch_array(rewards) or isinstance(rewards, np.ndarray)
        return xp.astype(rewards, xp.float64) if wide else rewards * 1.0
    return xp.astype(rewards, xp.float32) if xp.finfo(rewards.dtype).bits < 32 else rewards


def widths(rewards: Array, tolerance: float | int | None = None) -> Array:
    """Distance within which each reward ties, of the rewards' shape; outcomes on axis 0.

    Parameters
    ----------
    rewards : array, shape (N, ...)
        Floating point; ±inf ties with itself alone.
    tolerance : float, optional
        The distance itself, instead of 16 units in the last place.
    """
    xp = namespace(rewards)
    if tolerance is not None:
        if not real_number("tolerance, the distance within which rewards tie,", tolerance) >= 0:
            raise ValueError(f"tolerance must be a distance >= 0, got {tolerance}")
        return xp.full_like(rewards, float(tolerance))
    unit = ULPS * precision(rewards)
    finite = xp.isfinite(rewards)
    size = xp.where(finite, xp.abs(rewards), 0.0)
    lowest = xp.min(xp.where(finite, rewards, math.inf), axis=0, keepdims=True)
    lowest = xp.where(xp.isfinite(lowest), lowest, 0.0)
    others = rewards > lowest + unit * xp.abs(lowest)
    largest = xp.max(xp.where(others, size, 0.0), axis=0, keepdims=True)
    return unit * xp.where(others, largest, xp.maximum(largest, xp.abs(lowest)))


def precision(rewards: Array) -> float:
    """Unit in the last place of 1."""
    return float(namespace(rewards).finfo(rewards.dtype).eps)


def best(rewards: Array, drawn: int, tolerance: float | int | None = None) -> Array:
    """Which of the rewards on axis 0 tie with the greatest of them.

    Parameters
    ----------
    rewards : array, shape (n, ...)
    drawn : int
        How many axes hold draws of one law, the first included: all of them say how large its
        rewards are.
    tolerance : float, optional
        See `widths`.
    """
    rewards = real(rewards)
    xp, shape = namespace(rewards), tuple(rewards.shape)
    draws = xp.reshape(rewards, (math.prod(shape[:drawn]), *shape[drawn:]))
    width = xp.reshape(widths(draws, tolerance), shape)
    top = xp.max(rewards, axis=0, keepdims=True)
    behind = xp.where(rewards == top, 0.0, top) - xp.where(rewards == top, 0.0, rewards)
    # Of the greatest one: of a lowest level that is far below, the distance is another.
    width = xp.max(xp.where(rewards == top, width, 0.0), axis=0, keepdims=True)
    return behind <= width


def levels(rewards: Array, width: Array) -> Array:
    """Number of the level of each reward, (N, C) from 0 upwards; rewards ascending on axis 0.

    Parameters
    ----------
    rewards : array, shape (N, C)
    width : array, shape (N, C)
        From `widths`, in the same order.
    """
    xp = namespace(rewards)
    differ = rewards[1:] != rewards[:-1]
    gap = xp.where(differ, rewards[1:], 0.0) - xp.where(differ, rewards[:-1], 0.0)
    first = xp.ones_like(rewards[:1], dtype=xp.bool)
    apart = xp.concat([first, gap > width[1:]])
    start = _running_max(xp.where(apart, rewards, -math.inf))
    inside = xp.isfinite(start) & (width > 0)
    beyond = xp.where(inside, rewards - xp.where(inside, start, 0.0), 0.0)
    piece = xp.ceil(beyond / xp.where(inside, width, 1.0))
    piece = xp.where(piece < 1, 1.0, piece)
    cut = apart | xp.concat([~first, piece[1:] != piece[:-1]])
    return _running(cut) - 1


def in_digits(rewards: np.ndarray, digits: int) -> np.ndarray:
    """Rewards (N,) rounded to significant digits of the largest: of one level, to one number.

    Rounding each by itself would part two that lie on either side of a rounding's edge.

    Parameters
    ----------
    rewards : array of float64, shape (N,)
    digits : int
    """
    top = float(np.abs(rewards).max(initial=0.0))
    if not top:
        return rewards + 0.0
    return merged(rewards, 10.0 ** (math.floor(math.log10(top)) + 1 - digits), decimals=True)


def merged(
    rewards: np.ndarray, tolerance: float | int | None = None, *, decimals: bool
) -> np.ndarray:
    """Rewards (N,) with one number for each level, in NumPy.

    Parameters
    ----------
    rewards : array, shape (N,)
        Floating point.
    tolerance : float, optional
        See `widths`.
    decimals : bool
        Whether rewards that tie with no other are rounded too, to the decimals that the tolerance
        tells apart: 0.6 for 0.6000000000000001.
    """
    plain = rewards.astype(np.float64)
    if rewards.dtype != np.float64:  # as they are written
        plain = np.array([float(str(x)) for x in rewards])
    width = widths(rewards, tolerance).astype(np.float64)
    order = np.argsort(plain, kind="stable")
    ordered, width = plain[order], width[order]
    label = levels(ordered[:, None], width[:, None])[:, 0]
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    stops = np.append(starts[1:], len(label)) - 1
    low, high = ordered[starts], ordered[stops]
    change = np.full(len(starts), fill_value=True) if decimals else low != high
    middle = np.where(change, _rounded(low + (high - low) / 2, width[stops]), low)
    out = np.empty_like(plain)
    out[order] = middle[label]
    return out


def nearest(levels_: np.ndarray, reward: float | int, tolerance: float | int | None = None) -> int:
    """Index of the level that a reward is, in NumPy; −1 if it is none. Levels are ascending."""
    after = int(np.searchsorted(levels_, reward))
    near = [i for i in (after - 1, after) if 0 <= i < len(levels_)]
    i = min(near, key=lambda i: 0.0 if levels_[i] == reward else abs(float(levels_[i]) - reward))
    same = levels_[i] == reward
    return i if same or abs(levels_[i] - reward) <= widths(levels_, tolerance)[i] else -1


def snapped(reward: float, low: float, high: float) -> float:
    """A reward, or the end of its range that it ties with."""
    width = ULPS * float(np.finfo(np.float64).eps) * max(abs(low), abs(high))
    ends = [end for end in (low, high) if abs(reward - end) <= width]
    return min(ends, key=lambda end: abs(reward - end), default=reward)


def _rounded(values: np.ndarray, width: np.ndarray) -> np.ndarray:
    """To the last decimal that is no larger than a width; as they are where there is none."""
    out = values.copy()
    with np.errstate(divide="ignore"):
        places = -np.floor(np.log10(width) + 1e-9)
    for place in np.unique(places[np.isfinite(places)]):
        here = places == place
        out[here] = [round(x, int(place)) + 0.0 for x in values[here].tolist()]
    return out


def _running(new: Array) -> Array:
    xp: Any = namespace(new)
    return xp.cumulative_sum(xp.astype(new, xp.int32), axis=0, dtype=xp.int32)


def _running_max(x: Array) -> Array:
    """The greatest entry so far, along axis 0; by doubling the span where there is no other way."""
    xp, step = namespace(x), 1
    if isinstance(x, np.ndarray):
        return np.maximum.accumulate(x, axis=0)
    while step < x.shape[0]:
        before = xp.concat([xp.full_like(x[:step], -math.inf), x[:-step]])
        x, step = xp.maximum(x, before), 2 * step
    return x
