r"""Rewards as exact numbers, so that ties are decided and not guessed.

A reward is an integer combination of units that no integer combination of which vanishes:

.. math:: r_j = \sum_d \mathrm{keys}_{jd}\, u_d

For decimals there is one unit, the inverse of their common denominator; for log-probabilities
r = log q of rational q there are the logarithms of pairwise coprime integers. Two sequences tie
exactly if the sums of their keys agree, whatever floats say.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np

from infer_align._arguments import entries

DIGITS = 60
"""Of the units, where two sums that are not equal are too close for floats to order."""


@dataclass(frozen=True)
class Unit:
    """The number ``scale``, or ``scale * log(base)``."""

    scale: Fraction
    base: int | None = None

    def value(self) -> Decimal:
        """To 60 digits."""
        with localcontext() as context:
            context.prec = DIGITS
            scale = Decimal(self.scale.numerator) / Decimal(self.scale.denominator)
            return scale if self.base is None else scale * Decimal(self.base).ln()


@dataclass(frozen=True)
class ExactRewards:
    """Rewards of k letters as integer combinations of units; see `exact_rewards`.

    Parameters
    ----------
    keys : tuple of k tuples of int
        One integer for each unit.
    units : tuple of Unit
        Independent over the rationals.
    """

    keys: tuple[tuple[int, ...], ...]
    units: tuple[Unit, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def values(self) -> np.ndarray:
        """The rewards, correctly rounded, shape (k,)."""
        units = [unit.value() for unit in self.units]
        return np.array([float(combine(key, units)) for key in self.keys])

    def totals(self, terms: int, excess: np.ndarray) -> np.ndarray:
        """Sums of so many rewards, each so much above the least: decimals correctly rounded.

        Parameters
        ----------
        terms : int
        excess : array, shape (L,)
            Ascending. Of single rewards, if terms is 1: all of them, in their order.
        """
        if terms == 1:
            return self.values()
        lowest = combine(self.keys[0], [unit.value() for unit in self.units])
        totals = float(terms * lowest) + excess
        denominator = self.units[0].scale.denominator
        decimal = len(self.units) == 1 and self.units[0].base is None
        if decimal and np.abs(totals[[0, -1]]).max() * denominator < 2**50:
            return np.rint(totals * denominator) / denominator
        return totals

    def above(self, codes: Callable[[], np.ndarray]) -> "Callable[[int], np.ndarray] | None":
        """Sums minus one of them, from their exact codes: floats might not tell them apart.

        None where there are several units, and codes do not subtract like rewards.

        Parameters
        ----------
        codes : callable
            Makes the codes, shape (L,), when they are asked for.
        """
        first, *others = self.units
        if others:
            return None
        unit = float(first.value())

        def above(level: int) -> np.ndarray:
            known = codes()
            return (known - known[level]).astype(float) * unit

        return above

    def take(self, letters: Sequence[int]) -> "ExactRewards":
        """The rewards of some letters."""
        return ExactRewards(tuple(self.keys[j] for j in letters), self.units)

    def code(self, key: Sequence[int], terms: int) -> int:
        """One integer for a sum of up to so many rewards, the same only where the sums tie.

        With one unit it is the sum in this unit.
        """
        if len(self.units) == 1:
            return key[0]
        radix = self.radix(terms)
        return sum(n * radix**d for d, n in enumerate(key))

    def radix(self, terms: int) -> int:
        """Base of the codes: their digits are the keys, between −radix/2 and radix/2."""
        return 2 * terms * max(abs(n) for key in self.keys for n in key) + 1

    def codes(self, terms: int) -> list[int]:
        """The code of each reward."""
        return [self.code(key, terms) for key in self.keys]

    def lattice(self) -> "tuple[np.ndarray, tuple[int, ...]] | None":
        """Positions x >= 0 and the step's key, if all rewards are min r + step * x with integer x.

        The step is the largest one, positive; None where there is no such step.
        """
        first = self.keys[0]
        steps = [tuple(a - b for a, b in zip(key, first, strict=True)) for key in self.keys]
        along = next((step for step in steps if any(step)), None)
        if along is None:
            return np.zeros(len(self), dtype=np.int64), (0,) * len(self.units)
        divisor = math.gcd(*along)
        direction = tuple(a // divisor for a in along)
        if combine(direction, [unit.value() for unit in self.units]) < 0:
            direction = tuple(-a for a in direction)
        lead = next(d for d, a in enumerate(direction) if a)
        counts = [step[lead] // direction[lead] for step in steps]
        if any(
            step != tuple(n * a for a in direction) for n, step in zip(counts, steps, strict=True)
        ):
            return None
        common = math.gcd(*counts)
        low = min(counts)
        positions = [(n - low) // common for n in counts]
        if max(positions) > np.iinfo(np.int64).max // 4:
            return None
        return np.array(positions, dtype=np.int64), tuple(common * a for a in direction)


def combine(key: Sequence[int], units: Sequence[Decimal]) -> Decimal:
    """The number that a key stands for, to 60 digits."""
    with localcontext() as context:
        context.prec = DIGITS + 20
        return sum((Decimal(n) * unit for n, unit in zip(key, units, strict=True)), Decimal(0))


def exact_rewards(rewards: Any) -> ExactRewards:
    """Rewards from numbers as they are written: a float is its shortest decimal.

    Parameters
    ----------
    rewards : ExactRewards, or sequence of k numbers, fractions, decimals or texts

    Raises
    ------
    ValueError
        For a reward that is not a finite number.
    """
    if isinstance(rewards, ExactRewards):
        return rewards
    listed = entries("rewards", rewards)
    listed = listed if isinstance(rewards, list | tuple) else list(np.asarray(rewards))
    numbers = [fraction(r, f"reward {j}") for j, r in enumerate(listed)]
    if not numbers:
        raise ValueError("rewards are empty; give one reward a letter")
    denominator = math.lcm(*(r.denominator for r in numbers))
    keys = tuple((int(r * denominator),) for r in numbers)
    return ExactRewards(keys, (Unit(Fraction(1, denominator)),))


def log_rewards(probs: Any, *, scale: Any = 1) -> ExactRewards:
    r"""Log-likelihood rewards r = scale · log q, whose ties are those of products of q.

    As decimals, log 0.1 + log 0.4 and log 0.2 + log 0.2 differ in their last digit; here they
    tie, as they should. (Mismatched tilting, Yang et al. 2024, arXiv 2404.01730.)

    Parameters
    ----------
    probs : sequence of k positive numbers, fractions, decimals or texts
        q, as written; it need not sum to one.
    scale : number
        Any rational, for instance 1/beta.

    Returns
    -------
    ExactRewards
        For `reward_law`.

    Raises
    ------
    ValueError
        If an entry is not a positive finite number.

    Examples
    --------
    >>> import math
    >>> from infer_align.exact import log_rewards, reward_law
    >>> p, q = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3]  # 0.1 · 0.4 = 0.2 · 0.2
    >>> len(reward_law(p, log_rewards(q), 2)), len(reward_law(p, [math.log(x) for x in q], 2))
    (9, 10)
    """
    listed = entries("probs", probs)
    listed = listed if isinstance(probs, list | tuple) else list(np.asarray(probs))
    numbers = [fraction(q, f"probability {j} of the reward log q") for j, q in enumerate(listed)]
    if not numbers or min(numbers) <= 0:
        raise ValueError(f"log q needs positive q, got {[str(q) for q in numbers]}")
    bases = coprime([n for q in numbers for n in (q.numerator, q.denominator)])
    keys = tuple(
        tuple(_valuation(q.numerator, b) - _valuation(q.denominator, b) for b in bases)
        for q in numbers
    )
    factor = fraction(scale, "the scale")
    if not bases or factor == 0:
        return ExactRewards(tuple((0,) for _ in numbers), (Unit(Fraction(1)),))
    return ExactRewards(keys, tuple(Unit(factor, base) for base in bases))


def regularized_rewards(rewards: Any, probs: Any, weight: Any) -> ExactRewards:
    """The reward of regularised best-of-n, r + weight·log p, with exact ties.

    Best-of-n by it prefers what the prior finds likely (Jinnai et al. 2024, arXiv 2404.01054). For
    independent letters it is additive again, so `reward_law` and all that follows apply;
    ``law.level_mean(r)`` then is the original reward by level.

    Parameters
    ----------
    rewards : sequence of k numbers
        r, one a letter.
    probs : sequence of k positive numbers
        p, as written.
    weight : number
        Any rational.

    Returns
    -------
    ExactRewards

    Examples
    --------
    >>> from infer_align.exact import best_of_n, regularized_rewards, reward_law
    >>> p, r = [0.5, 0.3, 0.2], [0, 1, 2]
    >>> law = reward_law(p, regularized_rewards(r, p, 1), 10)
    >>> policy = best_of_n(law, 16)
    >>> round(float(law.expectation(law.level_mean(r), policy)), 4)
    11.4864
    """
    return add(exact_rewards(rewards), log_rewards(probs, scale=weight))


def add(a: ExactRewards, b: ExactRewards) -> ExactRewards:
    """The sum of two rewards of the same letters; a logarithm and a rational never tie."""
    if len(a) != len(b):
        raise ValueError(f"rewards of {len(a)} and of {len(b)} letters do not add up")
    if [unit.base for unit in a.units] == [None] == [unit.base for unit in b.units]:
        pairs = zip(a.keys, b.keys, strict=True)
        return exact_rewards([x[0] * a.units[0].scale + y[0] * b.units[0].scale for x, y in pairs])
    if {unit.base for unit in a.units} & {unit.base for unit in b.units}:
        raise ValueError("two log-likelihood rewards: take the logarithm of the product instead")
    keys = tuple(x + y for x, y in zip(a.keys, b.keys, strict=True))
    return ExactRewards(keys, a.units + b.units)


def coprime(numbers: Sequence[int]) -> list[int]:
    """Pairwise coprime integers > 1 of which all the numbers are products of powers."""
    bases: list[int] = []
    stack = [n for n in numbers if n > 1]
    while stack:
        n = stack.pop()
        for i, base in enumerate(bases):
            common = math.gcd(n, base)
            if common > 1:
                del bases[i]
                stack += [x for x in (n // common, base // common, common) if x > 1]
                break
        else:
            bases.append(n)
    return sorted(bases)


def _valuation(n: int, base: int) -> int:
    power = 0
    while n % base == 0:
        n, power = n // base, power + 1
    return power


def fraction(number: Any, name: str) -> Fraction:
    """The rational that a number is as written."""
    try:
        if isinstance(number, Fraction | int | Decimal) and not isinstance(number, bool):
            return Fraction(number)
        text = number.strip() if isinstance(number, str) else str(np.asarray(number)[()])
        return Fraction(text)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError) as error:
        raise ValueError(f"{name} is {number!r}, which is not a finite number") from error
