"""Reward laws by brute force: every sequence of letters, in fractions. No infer_align inside."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple


class Level(NamedTuple):
    """The sequences of one reward."""

    key: Any
    """Their reward, exactly."""
    prob: Fraction
    shares: list[float]
    """Expected count of each letter, given the level."""


def log_of(x: Fraction) -> float:
    """log x, also of what floats cannot hold."""
    return math.log(x.numerator) - math.log(x.denominator)


def levels(
    probs: Sequence[Any],
    rewards: Sequence[Any],
    length: int,
    *,
    add: Callable[[Any, Any], Any] = operator.add,
    value: Callable[[Any], Any] = lambda key: key,
) -> list[Level]:
    """The law of the sum of exact rewards, ascending, from all k^m sequences one by one."""
    exact = [Fraction(str(p)) for p in probs]
    common = math.lcm(*(p.denominator for p in exact))
    weights = [int(p * common) for p in exact]
    table: dict[Any, tuple[int, list[int]]] = {}
    rows = [(1, None, (0,) * len(weights))]
    for _ in range(length):
        rows = [
            (
                weight * weights[j],
                rewards[j] if key is None else add(key, rewards[j]),
                (*counts[:j], counts[j] + 1, *counts[j + 1 :]),
            )
            for weight, key, counts in rows
            for j in range(len(weights))
            if weights[j]
        ]
    for weight, key, counts in rows:
        total, sums = table.get(key, (0, [0] * len(weights)))
        table[key] = (
            total + weight,
            [s + weight * n for s, n in zip(sums, counts, strict=True)],
        )
    mass = sum(weights) ** length
    return [
        Level(key, Fraction(total, mass), [s / total for s in sums])
        for key, (total, sums) in sorted(table.items(), key=lambda item: value(item[0]))
    ]


def sequences(letters: int, length: int) -> list[tuple[int, ...]]:
    """All of them, in lexicographic order."""
    return list(itertools.product(range(letters), repeat=length))
