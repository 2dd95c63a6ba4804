"""Tables of reward levels: sorted rewards, the mass at, below and above each, and looking one up.

All arrays are (N, C), contexts flattened to the last axis. Shapes depend on nothing but N and C, so
tables may be made and read inside ``jax.jit``.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_jax_array, is_torch_array

from infer_align._numerics import Array, concrete, log1mexp, logsumexp, namespace
from infer_align._ties import levels

HALF = -math.log(2)


class Sums(NamedTuple):
    """Logs of sums over the entries of a level, over all below it and over all above it."""

    at: Array
    below: Array
    above: Array
    up_to: Array
    from_on: Array


class Table(NamedTuple):
    """Entries in ascending order of reward; each knows the sums of its level."""

    rewards: Array
    log_prob: Array
    """Of the entry itself."""
    width: Array
    """Distance within which a reward is the entry's: see `infer_align._ties`."""
    sums: Sums
    squares: Sums | None = None
    """The same of squared probabilities, if the entries are samples."""


class Found(NamedTuple):
    """Sums at rewards that were looked up, (R, C). Where no level is met, ``at`` is −inf."""

    at: Array
    below: Array
    above: Array
    up_to: Array


def table_of(rewards: Array, log_prob: Array, width: Array, *, squares: bool) -> Table:
    """Sort entries (N, C) by reward and sum over levels: those within their width of each other."""
    xp = namespace(rewards, log_prob)
    order = xp.argsort(rewards, axis=0)
    rewards, log_prob, width = (rows(x, order) for x in (rewards, log_prob, width))
    group = levels(rewards, width)
    start, stop = count_at_most(group, group - 1), count_at_most(group, group)
    sums = _sums(log_prob, group, start, stop)
    second = _sums(2 * log_prob, group, start, stop) if squares else None
    return Table(rewards, log_prob, width, _normalised(sums), second)


def _sums(x: Array, group: Array, start: Array, stop: Array) -> Sums:
    xp = namespace(x)
    nothing = xp.full_like(x[:1], -math.inf)
    upwards = xp.concat([nothing, _cumulative(x)])
    downwards = xp.concat([xp.flip(_cumulative(xp.flip(x, axis=0)), axis=0), nothing])
    within = rows(_cumulative(x, group), stop - 1)
    return Sums(
        within, rows(upwards, start), rows(downwards, stop), rows(upwards, stop),
        rows(downwards, start),
    )  # fmt: skip


def _normalised(s: Sums) -> Sums:
    """Where a sum is nearly all, from what is missing: its logarithm then has all its digits."""
    return s._replace(
        below=_accurate(s.below, s.from_on),
        up_to=_accurate(s.up_to, s.above),
        above=_accurate(s.above, s.up_to),
        from_on=_accurate(s.from_on, s.below),
    )


def _accurate(log_share: Array, log_rest: Array) -> Array:
    xp = namespace(log_share)
    small = log_rest < HALF
    return xp.where(small, log1mexp(xp.where(small, log_rest, -1.0)), log_share)


def look_up(table: Table, sums: Sums, r: Array, coarser: float) -> Found:
    """Sums at, below and above rewards (R, C), each by the nearest entry if that is its level.

    ``coarser`` is how much coarser than the table's the precision of the rewards is.
    """
    xp, last = namespace(r), table.rewards.shape[0] - 1
    under = count_at_most(table.rewards, r) - 1
    below, above = xp.where(under >= 0, under, 0), xp.where(under < last, under + 1, last)
    use_above = _distance(rows(table.rewards, above), r) < _distance(rows(table.rewards, below), r)
    nearest = xp.where(use_above, above, below)
    met = _distance(rows(table.rewards, nearest), r) <= coarser * rows(table.width, nearest)
    known = met | (under >= 0)
    index = xp.where(met, nearest, below)
    up_to = xp.where(known, rows(sums.up_to, index), -math.inf)
    return Found(
        at=xp.where(met, rows(sums.at, index), -math.inf),
        below=xp.where(met, rows(sums.below, index), up_to),
        above=xp.where(known, rows(sums.above, index), rows(sums.from_on, xp.zeros_like(index))),
        up_to=up_to,
    )


def _distance(x: Array, y: Array) -> Array:
    """Between rewards, of which both may be the same infinity."""
    xp, same = namespace(x, y), x == y
    return xp.abs(xp.where(same, 0.0, x) - xp.where(same, 0.0, y))


def count_at_most(ascending: Array, x: Array) -> Array:
    """How many entries of each column (N, C) are at most x (R, C): binary search in each."""
    xp = namespace(x)
    n = ascending.shape[0]
    low = xp.zeros_like(x, dtype=xp.int32)
    high = low + n
    for _ in range(n.bit_length()):
        middle = (low + high) // 2
        open_ = low < high
        smaller = open_ & (rows(ascending, xp.where(open_, middle, 0)) <= x)
        low, high = (
            xp.where(smaller, middle + 1, low),
            xp.where(open_ & ~smaller, middle, high),
        )
    return low


def rows(table: Array, index: Array) -> Array:
    """Entries of table (N, C) at index (R, C), column by column."""
    xp = namespace(table, index)
    columns = table.shape[1]
    column = xp.arange(columns, dtype=index.dtype)
    if is_torch_array(index):
        column = column.to(index.device)
    flat = xp.reshape(index * columns + column, (-1,))
    return xp.reshape(xp.take(xp.reshape(table, (-1,)), flat, axis=0), index.shape)


def _cumulative(x: Array, group: Array | None = None) -> Array:
    """Log of cumulative sums along axis 0, begun anew with each group; by doubling the span.

    Unlike ``logaddexp``, two −inf add up with a gradient that is 0 and not NaN.
    """
    xp = namespace(x)
    if group is None and isinstance(x, np.ndarray):
        return np.logaddexp.accumulate(x)
    step = 1
    while step < x.shape[0]:
        before = xp.concat([xp.full_like(x[:step], -math.inf), x[:-step]])
        if group is not None:
            same = xp.concat([group[:step] < 0, group[step:] == group[:-step]])
            before = xp.where(same, before, -math.inf)
        x = logsumexp(xp.stack([x, before]), axis=0)
        step *= 2
    return x


def known(x: Any) -> np.ndarray | None:
    """The values of an array as NumPy's, or None where JAX is tracing."""
    if is_torch_array(x):
        return concrete(x)
    try:
        return np.asarray(x)
    except TypeError:
        return None


def host(x: Array) -> Array:
    """A JAX array that is not being traced as NumPy's, which needs no compilation; others as is."""
    plain = known(x) if is_jax_array(x) else None
    return x if plain is None else plain
