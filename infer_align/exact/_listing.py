"""Levels of listed rewards: which outcomes are one level, and sums over each."""

import functools
from decimal import Decimal
from fractions import Fraction
from typing import Any

import array_api_compat.numpy
import numpy as np
from array_api_compat import is_array_api_obj

from infer_align import _ties
from infer_align._numerics import Array, concrete, logsumexp, namespace
from infer_align.exact._edges import whole_numbers
from infer_align.exact._rewards import ExactRewards, combine, exact_rewards


class Levels:
    """The levels of listed rewards, ascending.

    Floats are levels by the rule of `infer_align._ties`, everything else where it is equal.

    Parameters
    ----------
    rewards : sequence of n numbers, or ExactRewards
    kept : array of int, shape (k,)
        The outcomes that are possible.
    tolerance : float, optional
        Distance within which floats tie; 0: they are what is written.
    """

    def __init__(self, rewards: Any, kept: np.ndarray, tolerance: float | int | None):
        floats = _as_floats(rewards)
        if floats is not None:
            finite = np.isfinite(floats[kept])
            if not finite.all():
                worst = int(kept[np.argmin(finite)])
                raise ValueError(
                    f"reward {worst} is {floats[worst]}, which is not a finite number; leave out "
                    "outcomes that are rejected, by a log-probability of -inf"
                )
            merged = _ties.merged(floats[kept], tolerance, decimals=False)
            self.values, label = np.unique(merged, return_inverse=True)
            self._given: Any = self.values
        elif is_array_api_obj(rewards) and np.asarray(rewards).dtype.kind in "iu":
            distinct, label = np.unique(np.asarray(rewards)[kept], return_inverse=True)
            self._given = exact_rewards([int(r) for r in distinct])
            self.values = self._given.values()
        else:
            exact = exact_rewards(rewards).take(kept.tolist())
            units = [unit.value() for unit in exact.units]
            ordered = sorted(set(exact.keys), key=lambda key: combine(key, units))
            place = {key: i for i, key in enumerate(ordered)}
            label = np.array([place[key] for key in exact.keys])
            self._given = ExactRewards(tuple(ordered), exact.units)
            self.values = self._given.values()
        order = np.argsort(label, kind="stable")
        self.members = kept[order]
        """Outcomes, level by level."""
        self.starts = np.flatnonzero(np.diff(label[order], prepend=-1))

    @functools.cached_property
    def exact(self) -> ExactRewards:
        """The levels as exact numbers."""
        return exact_rewards(self._given)

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """Integers that tell the levels apart, shape (L,)."""
        return whole_numbers(self.exact.codes(1), 2)

    def above(self, level: int) -> np.ndarray:
        """Rewards minus that of a level, as exactly as they are known."""
        exactly = self.exact.above(lambda: self.keys)
        return self.values - self.values[level] if exactly is None else exactly(level)

    def log_sums(self, log_prob: Array) -> Array:
        """Log of the summed probabilities of each level, (L,), from those of all outcomes."""
        if namespace(log_prob) is array_api_compat.numpy:
            return np.logaddexp.reduceat(log_prob[self.members], self.starts)
        parts = [logsumexp(part, axis=0) for part in self._split(log_prob)]
        return namespace(log_prob).stack(parts)

    def means(self, log_prob: Array, values: Any) -> Array:
        """Mean of one value an outcome within each level, (L,)."""
        xp = namespace(log_prob)
        values = xp.asarray(values)
        if xp is array_api_compat.numpy:
            p = np.exp(log_prob[self.members])
            total = np.add.reduceat(p * values[self.members], self.starts)
            return total / np.add.reduceat(p, self.starts)
        shares = [xp.exp(part) for part in self._split(log_prob)]
        pairs = zip(shares, self._split(values), strict=True)
        return xp.stack([xp.sum(p * x) / xp.sum(p) for p, x in pairs])

    def _split(self, x: Array) -> list[Array]:
        xp = namespace(x)
        groups = np.split(self.members, self.starts[1:])
        return [xp.take(x, xp.asarray(group), axis=0) for group in groups]


def _as_floats(rewards: Any) -> np.ndarray | None:
    """Rewards that were computed; None of those that are written: whole numbers, texts, ..."""
    if is_array_api_obj(rewards):
        known = concrete(rewards)
        if known is None:
            raise ValueError("a law of rewards needs their numbers; compute it outside jax.jit")
        return known if np.issubdtype(known.dtype, np.floating) else None
    if isinstance(rewards, ExactRewards):
        return None
    listed = list(rewards)
    written = any(isinstance(r, str | Fraction | Decimal) for r in listed)
    whole = all(isinstance(r, int | np.integer) for r in listed)
    return None if written or whole or not listed else np.asarray(listed, dtype=np.float64)
