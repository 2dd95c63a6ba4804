"""For each letter at each position, a sequence that has it there and that the potential accepts."""

import math
from collections.abc import Iterator

import numpy as np

from infer_align._numerics import Array, concrete
from infer_align.exact._problem import Problem, Unfit

SEARCH = 20_000_000
"""Tokens that the search evaluates the potential on, beyond the single changes."""


def reference(problem: Problem) -> np.ndarray:
    """A sequence that the potential accepts, shape (m,): of one letter or two, if there is one.

    Raises
    ------
    Unfit
        If there is none among them.
    """
    for group in _candidates(problem):
        accepted = np.flatnonzero(_accepted(problem, group))
        if len(accepted):
            return group[accepted[0]]
    raise Unfit(
        "the potential rejects every sequence of one letter repeated and every cycle of two, so "
        "its terms cannot be read off; multiply an exact.Automaton into the target, or an "
        "exact.Chain"
    )


def surroundings(problem: Problem) -> np.ndarray:
    """Sequences (m, k, m) with letter a at position t, accepted where one is found.

    The reference with one letter changed; where that is rejected, another regular sequence; where
    all are, the beginning and the end of accepted ones around the letter.
    """
    k, m = problem.model.vocabulary_size, problem.model.length
    around = np.tile(reference(problem), (m, k, 1))
    at, letter = (x.ravel() for x in np.indices((m, k)))
    around[at, letter, at] = letter
    around = ended(problem, around.reshape(-1, m)).reshape(m, k, m)
    good = _accepted(problem, around.reshape(-1, m)).reshape(m, k)
    if good.all():
        return around
    for group in _candidates(problem):
        rows = group[_accepted(problem, group)]
        for t in range(m):
            for a in np.flatnonzero(~good[t]):
                having = np.flatnonzero(rows[:, t] == a)
                if len(having):
                    around[t, a], good[t, a] = rows[having[0]], True
    left = SEARCH
    while not good.all():
        found, spent = _bridges(problem, around, good, left)
        left -= spent
        if not found or left <= 0:
            break
    return around


def _bridges(
    problem: Problem, around: np.ndarray, good: np.ndarray, budget: int
) -> tuple[int, int]:
    """Accept letters between beginnings and ends that are; how many were found, tokens spent."""
    m = around.shape[-1]
    found = spent = 0
    for t, a in np.argwhere(~good):
        before = around[t - 1, good[t - 1], :t] if t else around[:1, 0, :0]
        after = around[t + 1, good[t + 1], t + 1 :] if t + 1 < m else around[:1, 0, m:]
        size = len(before) * len(after)
        spent += size * m
        if not size or spent > budget:
            continue
        i, j = (x.ravel() for x in np.indices((len(before), len(after))))
        tried = np.concatenate([before[i], np.full((size, 1), a), after[j]], axis=1)
        tried = ended(problem, tried)
        accepted = np.flatnonzero(_accepted(problem, tried) & (tried[:, t] == a))
        if len(accepted):
            around[t, a], good[t, a] = tried[accepted[0]], True
            found += 1
    return found, spent


def _candidates(problem: Problem) -> Iterator[np.ndarray]:
    """Groups of regular sequences: of one letter, the same with an end, cycles of two."""
    model = problem.model
    k, m = model.vocabulary_size, model.length
    letters = np.array([a for a in range(k) if a not in model.eos])
    constant = np.repeat(letters[:, None], m, axis=1)
    yield constant
    for end in model.eos:
        finished = constant.copy()
        finished[:, -1] = end
        yield finished
    i, j = (letters[x.ravel()] for x in np.indices((len(letters), len(letters))))
    distinct = i != j
    if m * distinct.sum() > SEARCH:
        return
    cycles = np.where(np.arange(m) % 2 == 0, i[distinct, None], j[distinct, None])
    if len(cycles):
        yield cycles
        for end in model.eos:
            cycles[:, -1] = end
            yield cycles


def _accepted(problem: Problem, tokens: np.ndarray) -> np.ndarray:
    known = concrete(values(problem, tokens))
    if known is None:
        raise Unfit("the potential's values are not known inside jax.jit")
    return np.asarray(known) > -math.inf


def values(problem: Problem, tokens: np.ndarray) -> Array:
    """The potential that is not known as an automaton."""
    return problem.potential(tokens, automata=False)


def after_end(problem: Problem, tokens: np.ndarray) -> np.ndarray:
    """Whether a position comes after the first EOS, shape (n, m)."""
    end = np.isin(tokens, problem.model.eos)
    return np.cumsum(end, axis=1) - end > 0


def ended(problem: Problem, tokens: np.ndarray) -> np.ndarray:
    """The same sequences, padded after their first EOS."""
    return np.where(after_end(problem, tokens), problem.model.pad, tokens)
