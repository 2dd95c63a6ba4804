"""The engines behind `reward_law`: each makes a `RewardLaw` of independent letters."""

import functools
import math
from typing import Any

import numpy as np

from infer_align._numerics import Array, namespace
from infer_align.exact import _lattice, _logspace, _types
from infer_align.exact._edges import whole_numbers
from infer_align.exact._law import RewardLaw
from infer_align.exact._letters import Letters
from infer_align.exact._rewards import combine

MAX_LATTICE = 3_000_000
"""Levels of a lattice that are listed: about half a second."""
MAX_COUNTS = 50_000_000
"""Most entries of all count vectors together."""
MAX_TYPES = 5_000_000
"""Types that are listed: about two seconds, half a gigabyte."""
MAX_DIFFERENTIABLE = 6_000
"""Levels of a lattice that are convolved in log space, where gradients are wanted."""
COARSEST_GRID = 16
"""Steps of a reward grid between the least and the greatest reward of a letter, at least."""


def on_lattice(
    letters: Letters, m: int, x: np.ndarray, step: float, *, differentiable: bool = False,
    exact: bool = True,
) -> tuple[RewardLaw, int]:  # fmt: skip
    """By tilted FFT or log-space convolution; beside the law, how many levels are not resolved.

    Parameters
    ----------
    letters : Letters
    m : int
        Number of tokens.
    x : array of int, shape (K,)
        Position of each letter's reward, the least 0, without common divisor.
    step : float
        Of the lattice.
    differentiable : bool
        Whether to stay in the library of the arrays.
    exact : bool
        Whether the positions are the rewards, not rounded ones.
    """
    xp = namespace(letters.log_p)
    size = m * int(x.max()) + 1
    attainable = _lattice.attainable_sums(x, m) if size > 1 else np.ones(1, dtype=bool)
    unresolved = 0
    if differentiable:
        engine = "log-space convolution"
        power = lambda n: (_logspace.log_power(letters.log_p, x, n), 0)
        full = power(m)[0]
    else:
        engine = "tilted FFT"
        power = lambda n: _lattice.memoryless_law(letters.log_p, x, n)
        full, unresolved = _lattice.memoryless_law(letters.log_p, x, m, attainable)
    levels = np.flatnonzero(attainable)
    log_prob = xp.take(full, xp.asarray(levels), axis=0)
    shorter = functools.cache(power)

    def level_mean(values: Any) -> Array:
        """m Σ_j v_j p_j P_{m−1}(s − x_j) / P_m(s)."""
        fewer, unclear = shorter(m - 1)
        if unclear and exact and _types.number_of_types(len(x), m) <= MAX_TYPES:
            return by_types(letters, m).level_mean(values)
        total = xp.zeros_like(log_prob)
        for j, value in enumerate(letters.merged(values)):
            before = _lattice.shifted(fewer, int(x[j]), size)
            log_share = xp.take(before, xp.asarray(levels), axis=0) + letters.log_p[j] - log_prob
            total = total + value * m * xp.exp(log_share)
        return total

    reason = f"rewards on a lattice of step {step:.6g}" if size > 1 else "all rewards are equal"
    if unresolved:
        reason += f", {unresolved:,} levels known to 1e-16 of their neighbours'"

    def keys() -> np.ndarray:
        codes = letters.codes(m)
        unit = (codes[-1] - codes[0]) // max(int(x[-1]), 1)
        return whole_numbers([m * codes[0], unit * size], 1)[0] + unit * levels

    excess = step * levels
    rewards = letters.rewards.totals(m, excess) if exact else letters.lowest(m) + excess
    law = RewardLaw(
        xp.asarray(rewards), log_prob, m, engine, reason, keys, level_mean,
        step if size > 1 else None, make_edges=lambda: letters.edges(m),
        make_above=lambda level: step * (levels - levels[level]),
    )  # fmt: skip
    return law, unresolved


def by_types(letters: Letters, m: int) -> RewardLaw:
    """By listing all count vectors."""
    table = _types.additive_table(letters.rewards, m)
    log_type = table.log_prob(letters.log_p)
    log_level = table.level_log_prob(log_type)
    lattice = letters.rewards.lattice()
    units = [unit.value() for unit in letters.rewards.units]
    codes = functools.cache(lambda: table.representatives() @ whole_numbers(letters.codes(m), m))
    return RewardLaw(
        namespace(letters.log_p).asarray(table.rewards), log_level, m, "types",
        f"{len(table.order):,} count vectors of {len(letters.groups)} letters",
        codes,
        lambda values: table.level_mean(log_type, log_level, letters.merged(values)),
        None if lattice is None else abs(float(combine(lattice[1], units))),
        make_edges=lambda: letters.edges(m), make_above=letters.rewards.above(codes),
    )  # fmt: skip


def of_letters(letters: Letters) -> RewardLaw:
    """The law of one letter, of which every level is one."""
    lattice = letters.rewards.lattice()
    units = [unit.value() for unit in letters.rewards.units]
    codes = functools.cache(lambda: whole_numbers(letters.codes(1), 1))
    return RewardLaw(
        namespace(letters.log_p).asarray(letters.rewards.values()), letters.log_p, 1, "letters",
        f"{len(letters.groups):,} letters, one token", codes, letters.merged,
        None if lattice is None else abs(float(combine(lattice[1], units))),
        make_edges=lambda: letters.edges(1), make_above=letters.rewards.above(codes),
    )  # fmt: skip


def by_grid(letters: Letters, m: int, why: str) -> RewardLaw | None:
    """By rounding the rewards to the lattice that fits them best; None if it were too coarse.

    Every sequence's reward then moves by at most m times the largest rounding of a letter.
    """
    gaps = letters.gaps
    finest = (MAX_LATTICE - 1) // m
    if finest < COARSEST_GRID:
        return None
    fewest = max(COARSEST_GRID, finest - 50_000_000 // len(gaps))
    best, rounding = finest, math.inf
    for steps in np.array_split(np.arange(fewest, finest + 1), max(1, finest * len(gaps) // 10**6)):
        share = np.multiply.outer(steps, gaps / gaps[-1])
        worst = np.abs(share - np.round(share)).max(axis=1) / np.maximum(steps, 1)
        if len(worst) and worst.min() < rounding:
            best, rounding = int(steps[np.argmin(worst)]), float(worst.min())
    x = np.round(gaps / gaps[-1] * best).astype(np.int64)
    common = int(np.gcd.reduce(x))
    law, _ = on_lattice(letters, m, x // common, common * float(gaps[-1]) / best, exact=False)
    error = m * rounding * float(gaps[-1])
    return RewardLaw(
        law.rewards, law.log_prob, m, "reward grid",
        f"{why}; rewards rounded to {best:,} steps", lambda: np.arange(len(law)), law.level_mean,
        law.step, error,
    )  # fmt: skip
