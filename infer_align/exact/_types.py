r"""The law of an additive reward by types (count vectors): exact for any rewards.

.. math:: P(n) = \frac{m!}{\prod_j n_j!} \prod_j p_j^{n_j}, \qquad r(n) = \sum_j n_j r_j

All C(m+k−1, k−1) types are listed and sorted by reward. Floats order them; where two rewards are
closer than floats can tell, their exact keys decide.
"""

import math
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy
import numpy as np

from infer_align._numerics import Array, logsumexp, namespace
from infer_align.exact._rewards import ExactRewards, combine


def number_of_types(letters: int, length: int) -> int:
    """C(m+k−1, k−1)."""
    return math.comb(length + letters - 1, letters - 1)


def log_factorials(n: int) -> np.ndarray:
    """log 0!, ..., log n!; a running sum would lose digits."""
    from scipy.special import gammaln

    return gammaln(np.arange(n + 1) + 1.0)


def compositions(length: int, letters: int) -> list[np.ndarray]:
    """Counts of each letter, one array a letter, over all types; the last letter's vary fastest.

    Within a block the last but one letter grows as the first shrinks, so rewards that grow with the
    letter come in sorted runs.
    """
    rest = np.array([length], dtype=np.int32)
    columns: list[np.ndarray] = []
    for _ in range(letters - 1):
        copies = rest + 1
        starts = np.cumsum(copies, dtype=np.int64) - copies
        total = int(copies.sum(dtype=np.int64))
        count = (np.arange(total) - np.repeat(starts, copies)).astype(np.int32)
        columns = [*(np.repeat(column, copies) for column in columns), count]
        rest = np.repeat(rest, copies) - count
    return [rest, *columns]


@dataclass(frozen=True)
class TypeTable:
    """All types in order of their rewards.

    Parameters
    ----------
    columns : list of k arrays of int, shape (T,)
        Counts of each letter.
    order : array of int, shape (T,)
        Types by ascending reward.
    starts : array of int, shape (L,)
        Where each level begins in that order.
    rewards : array, shape (L,)
        Of each level.
    """

    columns: list[np.ndarray]
    order: np.ndarray
    starts: np.ndarray
    rewards: np.ndarray

    @property
    def tied(self) -> bool:
        """Whether some level has several types."""
        return len(self.starts) < len(self.order)

    def log_prob(self, log_p: Array) -> Array:
        """Log-probability of every type in order, shape (T,)."""
        xp = namespace(log_p)
        length = int(sum(int(column[0]) for column in self.columns))
        log_factorial = log_factorials(length)
        if xp is array_api_compat.numpy:
            total = np.full(len(self.order), log_factorial[length])
            for column, log_letter in zip(self.columns, log_p, strict=True):
                total += (np.arange(length + 1) * log_letter - log_factorial)[column]
            return total[self.order]
        counts = np.stack(self.columns, axis=1)[self.order]
        constant = log_factorial[length] - log_factorial[counts].sum(axis=1)
        likelihood = xp.asarray(counts, dtype=log_p.dtype) @ log_p
        return xp.asarray(constant, dtype=log_p.dtype) + likelihood

    def level_log_prob(self, log_type: Array) -> Array:
        """Log-probability of every level, from that of every type, shape (L,)."""
        if not self.tied:
            return log_type
        if namespace(log_type) is array_api_compat.numpy:
            return np.logaddexp.reduceat(log_type, self.starts)
        index, inside = self._padded()
        xp = namespace(log_type)
        taken = xp.reshape(xp.take(log_type, xp.asarray(index.ravel()), axis=0), index.shape)
        return logsumexp(xp.where(xp.asarray(inside), taken, -math.inf), axis=1)

    def level_mean(self, log_type: Array, log_level: Array, values: Array) -> Array:
        """E[Σ_t values[y_t] | level], shape (L,)."""
        xp = namespace(log_type, values)
        total = sum(
            xp.asarray(column[self.order], dtype=log_type.dtype) * value
            for column, value in zip(self.columns, values, strict=True)
        )
        if not self.tied:
            return total
        level = np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(self.order)))
        weighted = xp.exp(log_type - xp.take(log_level, xp.asarray(level), axis=0)) * total
        if xp is array_api_compat.numpy:
            return np.add.reduceat(weighted, self.starts)
        index, inside = self._padded()
        taken = xp.reshape(xp.take(weighted, xp.asarray(index.ravel()), axis=0), index.shape)
        return xp.sum(xp.where(xp.asarray(inside), taken, 0.0), axis=1)

    def representatives(self) -> np.ndarray:
        """Counts of one type of each level, shape (L, k)."""
        first = self.order[self.starts]
        return np.stack([column[first] for column in self.columns], axis=1)

    def _padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of each level's types as a matrix, and which entries are no padding."""
        sizes = np.diff(self.starts, append=len(self.order))
        index = self.starts[:, None] + np.arange(sizes.max())
        inside = np.arange(sizes.max()) < sizes[:, None]
        return np.where(inside, index, 0), inside


def additive_table(rewards: ExactRewards, length: int) -> TypeTable:
    """The types of sequences whose reward is the sum of their letters'.

    Parameters
    ----------
    rewards : ExactRewards
        Of letters in ascending order.
    length : int
    """
    columns = compositions(length, len(rewards))
    units = [unit.value() for unit in rewards.units]
    low = rewards.keys[0]
    steps = [tuple(a - b for a, b in zip(key, low, strict=True)) for key in rewards.keys]
    gaps = [float(combine(step, units)) for step in steps]
    counts = np.arange(length + 1)
    excess = np.zeros(len(columns[0]))
    for column, gap in zip(columns[1:], gaps[1:], strict=True):
        excess += (counts * gap)[column]
    order = np.argsort(excess, kind="stable")
    excess = excess[order]
    # What adding up k rounded products can be off by, twice.
    tolerance = 4 * len(rewards) * np.finfo(float).eps * max(length * gaps[-1], 1e-300)
    order, new = _decide_ties(columns, order, excess, tolerance, steps, units)
    starts = np.flatnonzero(new)
    return TypeTable(columns, order, starts, rewards.totals(length, excess[starts]))


def _decide_ties(
    columns: list[np.ndarray], order: np.ndarray, excess: np.ndarray, tolerance: float,
    steps: list[tuple[int, ...]], units: list[Any],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The order with close rewards in their exact order, and where a new level begins."""
    close = np.flatnonzero(np.diff(excess) <= tolerance)
    new = np.ones(len(order), dtype=bool)
    if not len(close):
        return order, new
    touched = np.union1d(close, close + 1)
    run = np.cumsum(np.concatenate([[True], np.diff(excess[touched]) > tolerance]))
    keys = [
        _exact_sums(columns, order[touched], [step[d] for step in steps]) for d in range(len(units))
    ]
    rank = _exact_order(keys, run, units)
    order = order.copy()
    order[touched] = order[touched][rank]
    same = np.concatenate([[False], np.diff(run) == 0])
    for key in keys:
        key = key[rank]
        same &= np.concatenate([[False], key[1:] == key[:-1]])
    new[touched] = ~same
    return order, new


def _exact_sums(columns: list[np.ndarray], types: np.ndarray, steps: list[int]) -> np.ndarray:
    """Σ_j n_j step_j exactly: int64 where it fits, Python integers where not."""
    length = sum(int(column[0]) for column in columns)
    fits = length * max(map(abs, steps)) < 2**62
    total = np.zeros(len(types), dtype=np.int64 if fits else object)
    for column, step in zip(columns, steps, strict=True):
        total += column[types].astype(total.dtype) * step
    return total


def _exact_order(keys: list[np.ndarray], run: np.ndarray, units: list[Any]) -> np.ndarray:
    """Positions sorted within each run by the exact reward."""
    if len(keys) == 1:
        key = keys[0]
        if key.dtype == object:
            return np.array(sorted(range(len(run)), key=lambda i: (run[i], key[i])))
        return np.lexsort((key, run))
    rows = list(zip(*keys, strict=True))
    value = {row: combine([int(n) for n in row], units) for row in set(rows)}
    return np.array(sorted(range(len(run)), key=lambda i: (run[i], value[rows[i]])))
