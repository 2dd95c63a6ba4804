"""The letters of a memoryless model: checked, merged where their rewards tie, and sorted."""

from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy
import numpy as np

from infer_align._arguments import entries, numeric, reals
from infer_align._numerics import Array, as_real, check_defined, concrete, namespace
from infer_align.exact._edges import Edges, memoryless_edges
from infer_align.exact._law import check_normalised
from infer_align.exact._rewards import ExactRewards, combine, exact_rewards


@dataclass(frozen=True)
class Letters:
    """Letters that occur, merged where their rewards tie, in ascending order of reward.

    Parameters
    ----------
    log_p : array, shape (K,)
        Log-probabilities of the merged letters.
    rewards : ExactRewards
        Of the merged letters.
    groups : list of lists of int
        Which given letters each of them stands for.
    probs : array, shape (k,)
        Of the given letters, normalised.
    """

    log_p: Array
    rewards: ExactRewards
    groups: list[list[int]]
    probs: Array

    @property
    def gaps(self) -> np.ndarray:
        """Rewards above the least, correctly rounded, shape (K,)."""
        units = [unit.value() for unit in self.rewards.units]
        low = self.rewards.keys[0]
        steps = [[a - b for a, b in zip(key, low, strict=True)] for key in self.rewards.keys]
        return np.array([float(combine(step, units)) for step in steps])

    def lowest(self, length: int) -> float:
        """The least total reward of so many letters."""
        units = [unit.value() for unit in self.rewards.units]
        return float(length * combine(self.rewards.keys[0], units))

    def codes(self, length: int) -> list[int]:
        """An integer for each merged letter, whose sums over a sequence tie if rewards do."""
        return self.rewards.codes(length)

    def edges(self, length: int) -> Edges:
        """The model as edges, over the given letters."""
        probs = np.asarray(concrete(self.probs))
        codes = [0] * len(probs)
        for group, code in zip(self.groups, self.codes(length), strict=True):
            for j in group:
                codes[j] = code
        with np.errstate(divide="ignore"):
            return memoryless_edges(np.log(probs), codes, length)

    def merged(self, values: Any) -> Array:
        """The mean of a value per given letter, for each merged letter, shape (K,)."""
        xp = namespace(self.log_p)
        if not hasattr(values, "dtype") or isinstance(values, np.ndarray):
            values = reals("values", values, need="one number a letter")
        values = check_defined(
            xp.asarray(as_real(values, "values"), dtype=self.log_p.dtype), "values"
        )
        if tuple(values.shape) != (self.probs.shape[0],):
            raise ValueError(
                f"values of shape {tuple(values.shape)} for {self.probs.shape[0]} letters; give "
                "one number a letter"
            )
        means = []
        for group in self.groups:
            index = xp.asarray(np.array(group))
            share = xp.take(self.probs, index, axis=0)
            means.append(xp.sum(share * xp.take(values, index, axis=0)) / xp.sum(share))
        return xp.stack(means)


def merged_letters(probs: Any, rewards: Any) -> Letters:
    """Check probabilities and rewards; leave out letters of probability 0; merge ties; sort.

    Parameters
    ----------
    probs : array or sequence of k numbers
    rewards : sequence of k numbers, or ExactRewards
    """
    if not hasattr(probs, "shape"):
        probs = np.array([_number(j, p) for j, p in enumerate(entries("probs", probs))])
    xp = namespace(probs)
    exact = exact_rewards(rewards)
    if tuple(probs.shape) != (len(exact),):
        raise ValueError(
            f"probabilities of shape {tuple(probs.shape)} and {len(exact)} rewards; give one of "
            "each for every letter"
        )
    check_normalised(probs, "letter probabilities")
    _check_scale(exact.values())
    if xp is array_api_compat.numpy:
        probs = np.asarray(probs, dtype=float)
    known = concrete(probs)
    kept = [j for j in range(len(exact)) if known is None or known[j] > 0]
    units = [unit.value() for unit in exact.units]
    kept.sort(key=lambda j: combine(exact.keys[j], units))
    groups: list[list[int]] = []
    for j in kept:
        if groups and exact.keys[groups[-1][0]] == exact.keys[j]:
            groups[-1].append(j)
        else:
            groups.append([j])
    probs = probs / xp.sum(probs)
    masses = [xp.sum(xp.take(probs, xp.asarray(np.array(group)), axis=0)) for group in groups]
    return Letters(
        xp.log(xp.stack(masses)), exact.take([group[0] for group in groups]), groups, probs
    )


def _number(letter: int, prob: Any) -> float:
    """A probability, also as a text."""
    try:
        return float(prob if isinstance(prob, str) else numeric(f"probability {letter}", prob))
    except ValueError:
        raise ValueError(f"probability {letter} must be a number, got {prob!r}") from None


def _check_scale(values: np.ndarray) -> None:
    """Refuse rewards whose cubes or inverses floats cannot hold."""
    most, span = float(np.abs(values).max()), float(np.ptp(values))
    if not most < 1e90 or 0 < span < 1e-90:
        raise ValueError(
            f"rewards up to {most:.3g} that differ by up to {span:.3g} are beyond what floats can "
            "square; give them in other units"
        )
