"""`reward_law`: the law of an additive reward of independent letters, by the engine that fits."""

import math
from collections.abc import Callable
from typing import Any

import array_api_compat.numpy
import numpy as np

from infer_align import _ties
from infer_align._arguments import count, entries, function
from infer_align._numerics import as_real, namespace, own
from infer_align.exact._engines import (
    MAX_COUNTS,
    MAX_DIFFERENTIABLE,
    MAX_LATTICE,
    MAX_TYPES,
    by_grid,
    by_types,
    of_letters,
    on_lattice,
)
from infer_align.exact._law import RewardLaw
from infer_align.exact._letters import merged_letters
from infer_align.exact._rewards import combine, fraction
from infer_align.exact._saddle import by_saddle_point
from infer_align.exact._types import TypeTable, compositions, number_of_types


def reward_law(probs: Any, rewards: Any, length: int = 1, *, approximate: bool = True) -> RewardLaw:
    r"""The law of Σ_t r(y_t) over sequences of independent letters, under the prior.

    It lists every level of the total reward with its probability, exactly: rewards are the numbers
    as written (a float is its shortest decimal), and sequences tie if those add up to the same. The
    engine is chosen by size and named in the result:

    - *tilted FFT*, if the rewards lie on a lattice of at most 3 million levels;
    - *types*: all count vectors, at most 5 million, for rewards of any kind;
    - *log-space convolution*, for JAX and torch arrays: differentiable, up to 6,000 levels of a
      lattice (types beyond);
    - *reward grid*, where none of these fits: rewards are rounded to a lattice, and ``error``
      bounds what that moves the reward of any sequence;
    - *saddle point*, where no grid fits either: tail probabilities of Lugannani and Rice (1980),
      with ``log_error`` estimated.

    Parameters
    ----------
    probs : array or sequence of k numbers
        Letter probabilities. A JAX or torch array makes the law differentiable in them.
    rewards : sequence of k numbers, or ExactRewards
        One a letter, finite; see `log_rewards` for r = log q.
    length : int
        Number of letters m, >= 1. 1 gives the law of one letter, which holds all per-token
        asymptotics.
    approximate : bool
        Whether the last two engines may be used. If not, what is too large raises.

    Returns
    -------
    RewardLaw

    Raises
    ------
    ValueError
        For probabilities that are negative, NaN or do not sum to one, rewards that are not finite,
        lengths that do not match, m < 1, and sizes that no engine reaches.

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> p = [0.5, 0.3, 0.2]
    >>> reward_law(p, ["-0.5", "0", "0.25"], 100_000).engine
    'tilted FFT'
    >>> reward_law(p, [-1.6094379124341003, -1.2039728043259361, -0.6931471805599453], 50)
    RewardLaw(1326 levels of 50 tokens, exact; types: 1,326 count vectors of 3 letters)
    """
    m = whole_length(length)
    letters = merged_letters(probs, rewards)
    differentiable = namespace(letters.log_p) is not array_api_compat.numpy
    limit = 1 + (MAX_DIFFERENTIABLE if differentiable else MAX_LATTICE)
    lattice = letters.rewards.lattice()
    types, few = _types(len(letters.groups), m)
    levels = math.inf if lattice is None else m * int(lattice[0].max()) + 1
    if m == 1 and not few:
        return of_letters(letters)
    law = None
    if lattice is not None and levels <= (min(limit, types) if few else limit):
        step = abs(float(combine(lattice[1], [unit.value() for unit in letters.rewards.units])))
        law, unresolved = on_lattice(letters, m, lattice[0], step, differentiable=differentiable)
        if not unresolved or not few:
            return law
    if few:
        return by_types(letters, m)
    size = "no lattice" if lattice is None else f"{levels:,} levels on a lattice"
    why = f"{size} (at most {limit:,}), {_vectors(types, len(letters.groups))}"
    if differentiable or not approximate:
        otherwise = "pass NumPy arrays, without gradients" if differentiable else "approximate=True"
        raise ValueError(
            f"{m} tokens of {len(letters.groups)} different rewards need {why}; shorten the "
            f"sequence, round the rewards to a coarser lattice, or {otherwise}"
        )
    return by_grid(letters, m, why) or by_saddle_point(letters, m, why)


def _types(letters: int, length: int) -> tuple[int, bool]:
    """The number of count vectors, and whether they are few enough to be listed."""
    # Beyond this length their number alone takes long to write down.
    if min(letters, length) > 10_000:
        return MAX_TYPES + 1, False
    types = number_of_types(letters, length)
    return types, types <= MAX_TYPES and types * letters <= MAX_COUNTS


def _vectors(types: int, letters: int) -> str:
    """So many count vectors, and what the most would be."""
    size = f"{types:,}" if types < 10**15 else f"about 1e{int(math.log10(types))}"
    return (
        f"{size} count vectors of {letters:,} letters (at most {MAX_TYPES:,}, and {MAX_COUNTS:,} "
        "counts in all)"
    )


def whole_length(length: Any) -> int:
    """A number of tokens, checked."""
    number = fraction(length, "the number of tokens")
    if isinstance(length, bool) or number.denominator != 1 or number < 1:
        raise ValueError(f"length is the number of tokens, a whole number >= 1, got {length!r}")
    return int(number)


def reward_law_of_counts(
    probs: Any, reward: Callable[[np.ndarray], Any], length: int, *, digits: int = 12
) -> RewardLaw:
    """The law of a reward that depends on how often each letter occurs, by types.

    Parameters
    ----------
    probs : sequence of k numbers
        Letter probabilities.
    reward : callable
        ``counts (T, k) -> (T,)``: the total reward of each count vector. The worst case of several
        additive rewards, for instance: ``worst_case(*[lambda n, r=r: n @ r for r in rewards])``.
    length : int
        Number of letters m, >= 1.
    digits : int
        Significant digits of the largest reward to which all are rounded, so that ties are not
        broken by the order of summation.

    Returns
    -------
    RewardLaw

    Raises
    ------
    ValueError
        If there are over 5 million count vectors, or a reward is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import reward_law_of_counts
    >>> reward_law_of_counts([0.5, 0.3, 0.2], lambda n: np.abs(n[:, 2] - 2), 5).rewards.tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    m = whole_length(length)
    function("reward", reward, "of counts (N, k), giving N numbers")
    probs = probs if hasattr(probs, "shape") else entries("probs", probs)
    given = merged_letters(probs, list(range(len(probs))))
    types, few = _types(len(given.groups), m)
    if not few:
        raise ValueError(f"{_vectors(types, len(given.groups))}, to list; shorten m = {m}")
    letters = [group[0] for group in given.groups]
    columns = compositions(m, len(letters))
    counts = np.zeros((len(columns[0]), len(probs)), dtype=np.int64)
    counts[:, letters] = np.stack(columns, axis=1)
    values = np.asarray(as_real(reward(own(counts)), "the reward"), dtype=float)
    if values.shape == (len(counts),) and not np.isfinite(values).all():
        i = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"the reward of counts {counts[i].tolist()} is {values[i]}, not finite")
    if values.shape != (len(counts),):
        raise ValueError(
            f"the reward of counts of shape {counts.shape} must be {len(counts)} numbers, "
            f"got shape {values.shape}"
        )
    rounded = _ties.in_digits(values, count("digits", digits))
    order = np.argsort(rounded, kind="stable")
    starts = np.flatnonzero(np.diff(rounded[order], prepend=-math.inf) > 0)
    table = TypeTable(columns, order, starts, rounded[order][starts])
    log_type = table.log_prob(given.log_p)
    log_level = table.level_log_prob(log_type)
    return RewardLaw(
        table.rewards, log_level, m, "types", f"{types:,} count vectors, rewards of their own",
        lambda: starts, lambda v: table.level_mean(log_type, log_level, given.merged(v)),
    )  # fmt: skip
